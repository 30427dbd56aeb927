"""The page of a batch: one static file beside the adapters, with what was erased, how well, and what went wrong.

It needs no server and no network: pictures and files are linked by relative addresses, style and script are inline and
the only ones that its Content-Security-Policy lets run. Names come from users and are escaped wherever they stand.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from concept_erase import words
from concept_erase.names import folded
from concept_erase.statistics import rate

Entry = Mapping[str, Any]

SHOWN_MEMBERS = 12
SHOWN_CHIPS = 40  # of the most frequent tags
SHOWN_ROWS = 200  # of what failed, of problems and of notices; index.json has all
MEANINGS = {
    "UA": "Unlearning accuracy: pictures that ask for the erased concept and are not recognised as it",
    "IRA": "In-domain retain accuracy: pictures of its neighbours that are still recognised",
    "CRA": "Cross-domain retain accuracy: what these pictures show besides, still recognised",
}


def page(index: Mapping[str, Any]) -> str:
    """`index.html` for the folder of a batch.

    Args:
        index: What `index.json` holds.
    Returns:
        HTML that links to the files in the same folder and loads nothing else.
    """
    entries, joint = index["entries"], index.get("joint") or []
    made = [_card(entry, entry["kind"]) for entry in entries if entry["state"] == "done"]
    failed = [_failure(entry, f"row {entry['row']}", entry["target"]) for entry in entries if entry["state"] != "done"]
    failed += [_failure(one, "joint", _joint_name(one)) for one in joint if one["state"] != "done"]
    kinds = {folded(entry["target"]): entry["kind"] for entry in entries}
    together = [_joint_card(one, kinds) for one in joint if one["state"] == "done"]
    style, script = _asset("gallery.css"), _asset("gallery.js")
    common = _common([*made, *together], "not_scored")
    for card in (*made, *together):
        card["not_scored"] = None if common else card["not_scored"]
    return _template().render(
        index=index,
        title=_title([card["name"] for card in made] or [entry["target"] for entry in entries]),
        facts=_facts(index, len(made), len(failed)),
        over_all=_over_all(made),
        not_scored=common,
        scored=any(card["scores"] for card in made),
        joint=sorted(together, key=lambda card: card["tag"] != "all"),
        cards=made,
        chips=_chips(entries),
        failed=_first(failed),
        problems=_first(index.get("problems") or []),
        notices=_first(index.get("notices") or []),
        interference=_interference(index.get("interference")),
        meanings=MEANINGS,
        words=words,
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
    )


# -- cards ---------------------------------------------------------------------------------------------------------


def _card(entry: Entry, kind: str) -> dict[str, Any]:
    """What the template shows of one adapter."""
    folder, scores = entry["folder"], entry.get("scores")
    name = entry.get("target") or _joint_name(entry)
    card: dict[str, Any] = {
        "name": name,
        "kind": kind,
        "tag": None,
        "anchor": entry.get("anchor"),
        "tags": entry.get("tags") or [],
        "picture": link(folder, entry.get("picture")),
        "hidden": kind == "violence",
        "adapter": link(folder, entry.get("adapter")),
        "size": words.size(entry["bytes"]) if entry.get("bytes") else None,
        "report": link(folder, "report.json"),
        "readme": link(folder, "README.md"),
        "notes": entry.get("notes") or [],
        "not_scored": None if scores else entry.get("not_scored") or "scoring was switched off",
        "scores": [],
        "verdict": None,
        "grade": None,
    }
    if scores:
        what = name if entry.get("target") else "what was erased"
        ua, ira, cra = scores["UA"], scores["IRA"], scores["CRA"]
        null = scores.get("nonsense")
        card["grade"] = words.grade(ua["before"], ua["after"], null)
        told = (
            ("UA", ua, words.recognised(ua["after"], what, before=ua["before"], nonsense=null)),
            ("IRA", ira, words.kept(ira["after"], kind)),
            ("CRA", cra, words.shown(cra["after"], kind)),
        )
        card["scores"] = [{"name": n, "text": text, **sides, **_interval(sides["after"])} for n, sides, text in told]
        card["verdict"] = words.verdict(ua["before"], ua["after"], null)
    return card


def _joint_card(one: Entry, kinds: Mapping[str, str]) -> dict[str, Any]:
    members = one.get("members") or []
    of = {kinds.get(folded(member), "") for member in members}
    card = _card({**one, "tags": []}, of.pop() if len(of) == 1 else "")
    card["hidden"] = any(kinds.get(folded(member)) == "violence" for member in members)
    return {**card, "tag": one["tag"], "members": members[:SHOWN_MEMBERS], "more": members[SHOWN_MEMBERS:]}


def _joint_name(one: Entry) -> str:
    count = len(one.get("members") or [])
    if one["tag"] == "all":
        return f"All {count:,} concepts together" if count > 1 else "The whole list"
    return f"{one['tag']}, {_some(count, 'concept')}" + (" together" if count > 1 else "")


def _failure(entry: Entry, where: str, name: str) -> dict[str, Any]:
    return {"where": where, "name": name, "error": entry.get("error") or "it was not reached"}


def _interval(after: Mapping[str, Any]) -> dict[str, str]:
    """Where its bar stands, in per cent of the width."""
    low, high = (min(max(float(after[side]), 0.0), 100.0) for side in ("low", "high"))
    return {"x": f"{low:.1f}", "width": f"{max(high - low, 0.8):.1f}"}


def _first(rows: Sequence[Any]) -> dict[str, Any]:
    return {"rows": rows[:SHOWN_ROWS], "more": max(len(rows) - SHOWN_ROWS, 0)}


# -- the whole batch -----------------------------------------------------------------------------------------------


def _title(names: Sequence[str]) -> str:
    if not names:
        return "Nothing was erased"
    if len(names) > 3:
        return f"{len(names):,} concepts, erased"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names) + ", erased"


def _facts(index: Mapping[str, Any], made: int, failed: int) -> list[tuple[str, str]]:
    """How it was made, in a few words each."""
    base, job = index["base"], index["job"]
    # The folder of a base on somebody's disk is nobody else's business: its last part names it.
    name = re.split(r"[/\\]", str(base["name"]).rstrip("/\\"))[-1] if _is_path(base["name"]) else str(base["name"])
    name = "the embedded generator" if name == "embedded" else name
    facts = [("From", f"{name}, revision {base['revision']}" if base.get("revision") else name)]
    settings = ", ".join(f"{key} {value}" for key, value in (job.get("settings") or {}).items())
    methods = Counter(entry.get("method") or job["method"] for entry in index["entries"])
    facts.append(("By", " and ".join(methods or [job["method"]]) + (f" ({settings})" if settings else "")))
    problems = len(index.get("problems") or [])
    told = [_some(made, "adapter")]
    told += [f"{failed:,} failed"] if failed else []
    told += [_some(problems, "row problem")] if problems else []
    facts.append(("Result", ", ".join(told)))
    if job.get("pictures"):
        guidance = f", guidance {job['guidance']:g}" if job.get("guidance") is not None else ""
        pictures, steps = _some(job["pictures"], "picture"), _some(job["steps"], "step")
        facts.append(("Scored on", f"{pictures} of each group, {steps}{guidance}"))
    if base.get("hash"):
        facts.append(("Hash", str(base["hash"])[:12]))
    return facts


def _some(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _is_path(name: str) -> bool:
    return bool(re.match(r"[/\\~.]|[A-Za-z]:[/\\]", name)) or name.count("/") > 1


def _over_all(cards: Sequence[Mapping[str, Any]]) -> str | None:
    """One sentence over all concepts that were scored."""
    known = [card for card in cards if card["scores"] and card["grade"] != "unknown"]
    counts = [words.count(card["scores"][0]["after"]) for card in known]
    if len(counts) < 2:
        return None
    estimate = rate(sum(k for k, _ in counts), sum(n for _, n in counts)).as_dict()
    return words.recognised(estimate, "what was erased")


def _common(cards: Sequence[Mapping[str, Any]], field: str) -> str | None:
    """The value that all cards share, to be said once."""
    values = {card[field] for card in cards}
    return values.pop() if len(values) == 1 and len(cards) > 1 else None


def _chips(entries: Sequence[Entry]) -> list[tuple[str, str, int]]:
    """(value, label, count) of what cards can be filtered by: kinds where there are several, then tags."""
    done = [entry for entry in entries if entry["state"] == "done"]
    kinds = Counter(entry["kind"] for entry in done)
    tags = Counter(tag.casefold() for entry in done for tag in entry.get("tags") or [])
    label = {tag.casefold(): tag for entry in reversed(done) for tag in entry.get("tags") or []}
    chips = [(f"kind:{kind}", kind, n) for kind, n in sorted(kinds.items())] if len(kinds) > 1 else []
    return chips + [(f"tag:{tag}", label[tag], n) for tag, n in tags.most_common(SHOWN_CHIPS)]


def _interference(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not found:
        return None
    return {
        "file": link("", found.get("file")),
        "picture": link("", found.get("picture")),
        "worst": found.get("worst") or [],
    }


# -- safety --------------------------------------------------------------------------------------------------------


def link(folder: str | None, name: str | None) -> str | None:
    """A relative address inside the batch's folder, quoted; None for a name that could lead out of it."""
    if not name or folder is None:
        return None
    path = f"{folder}/{name}" if folder else name
    if "\\" in path or any(part in ("", ".", "..") for part in path.split("/")):
        return None
    return quote(path, safe="/")


def _policy(style: str, script: str) -> str:
    def allowed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    # `file:` is for a page that is opened from disk: browsers differ in whether 'self' means anything there.
    return (
        f"default-src 'none'; img-src 'self' file:; style-src {allowed(style)}; script-src {allowed(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


@cache
def _template() -> Any:
    here = Path(__file__).parent
    options: dict[str, Any] = {"autoescape": True, "undefined": StrictUndefined}
    return Environment(loader=FileSystemLoader(here), trim_blocks=True, lstrip_blocks=True, **options).get_template(
        "gallery.html.j2"
    )
