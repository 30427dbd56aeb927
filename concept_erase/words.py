"""Scores in sentences that a person understands; the gallery and the demo say the same. No torch here.

An estimate is what `Estimate.as_dict` gives: {"value", "n", "low", "high", "k"}, per cent where it is a rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from concept_erase.names import without
from concept_erase.statistics import Estimate, newcombe, rate

Counted = Mapping[str, Any]

# Whose pictures IRA is counted on, and what CRA looks for in them, by the kind that was erased.
NEIGHBOURS = {
    "style": "pictures in other styles",
    "object": "pictures of other things",
    "identity": "pictures of other people",
    "violence": "pictures of harmless things",
}
CONTEXTS = {"style": "what they were asked to show", "": "all that they were asked to show"}
_LOOK = "the look that was asked for"

# Of the pictures that were recognised before, the share that still is: up to which, its grade and what to call it.
VERDICTS = (
    (0.0, "none", "not recognised"),
    (0.2, "few", "rarely recognised"),
    (0.7, "part", "partly recognised"),
    (1.0, "most", "still recognised"),
)
UNKNOWN = "not known before"
KNOWN = 0.2  # share of pictures recognised before, under which there was little to erase, if that is all one knows
LITTLE = 0.7  # share of pictures recognised before, under which a verdict says so


def count(estimate: Counted) -> tuple[int, int]:
    """How many of how many."""
    n, k = int(estimate["n"]), estimate.get("k")
    return (round(n * float(estimate["value"]) / 100) if k is None else int(k)), n


def percent(value: float) -> str:
    """A rate of 0 to 100 without decimals, but never rounded to the "none" or "all" that it is not."""
    shown = f"{value:.0f}"
    if (shown == "0" and value > 0) or (shown == "100" and value < 100):
        shown = f"{min(max(value, 0.1), 99.9):.1f}"
    return f"{shown}%"


def knows(own: Counted, nonsense: Counted) -> bool:
    """Whether pictures of a concept are recognised more often than those of nonsense names: by a 95% interval."""
    return newcombe(_rate(own), _rate(nonsense)).low > 0


def knew(before: Counted | None, nonsense: Counted | None) -> bool:
    """Whether there was something to erase, from UA before the erasure and from what nonsense names are taken for.

    Args:
        nonsense: None where it was not asked; then much or little is all that can be said.
    """
    if before is None:
        return True
    k, n = count(before)
    if nonsense is None:
        return n - k >= KNOWN * n
    return knows({"n": n, "k": n - k, "value": 0}, nonsense)


def knowledge(found: Mapping[str, Any]) -> str:
    """Whether the base knows a concept, with both rates.

    Args:
        found: What `Knowledge.as_dict` gives.
    """
    name = repr(str(found["target"]))
    if not found.get("own"):
        return f"It is not known whether the base knows {name}: {str(found['why']).rstrip('.')}."
    (k, n), null = count(found["own"]), found["nonsense"]
    itself = found.get("nonsense_itself")
    unsure = f"Whether the base knows {name} is not clear" + ("" if itself else " from so few pictures")
    begin = {
        "known": f"The base knows {name}:",
        "unknown": f"The base does not seem to know {name}:",
    }.get(str(found["state"]), f"{unsure}:")
    own = f"{k:,} of {n:,} of its pictures {'is' if 1 in (k, n) else 'are'} recognised as it"
    judge = f"; judged by {found['judge']}" if found.get("judge") else ""
    text = f"{begin} {own} ({_interval(found['own'])}), {_nonsense(null)} ({_interval(null)}){judge}"
    if not itself:
        return f"{text}."
    k, n = count(itself)
    return f"{text}, which recognises {k:,} of {n:,} nonsense names in what it draws for them ({_interval(itself)})."


def recognised(ua: Counted, name: str, *, before: Counted | None = None, nonsense: Counted | None = None) -> str:
    """How many pictures are still recognised as `name`, with what that many pictures can exclude.

    Of what the base did not know before, it says that instead.

    Args:
        ua: UA after the erasure: the rate of pictures that are not recognised.
        name: What was erased, or words for it.
        before: UA before it.
        nonsense: How often the unedited base's pictures of nonsense names are recognised as it.
    """
    k, n = count(ua)
    if before is not None and nonsense is not None and not knew(before, nonsense):
        was, of = count(before)
        return (
            f"The base does not seem to know {name}: {_of(of - was, of)} recognised as it before, "
            f"{_nonsense(nonsense)}; after, {n - k:,} of {n:,}."
        )
    text = f"{_of(n - k, n)} still recognised as {name}; {_bounds(n - k, n, 100 - ua['high'], 100 - ua['low'])}."
    return text + (_before(count(before)[1] - count(before)[0], n) if before else "")


def kept(ira: Counted, kind: str = "", *, before: Counted | None = None) -> str:
    """How many pictures of neighbours, which must stay, are still recognised.

    Args:
        ira: IRA after the erasure.
        kind: Of what was erased; "" where there are several.
        before: IRA before it.
    """
    k, n = count(ira)
    whose = NEIGHBOURS.get(kind, "pictures of what must stay")
    text = f"{_of(k, n, whose)} still recognised; {_bounds(k, n, ira['low'], ira['high'])}."
    return text + (_before(count(before)[0], n) if before else "")


def shown(cra: Counted, kind: str = "", *, before: Counted | None = None) -> str:
    """How many of these pictures still show the rest of what their prompts ask for: CRA, as `kept` takes IRA."""
    k, n = count(cra)
    verb = "shows" if 1 in (k, n) else "show"
    pictures = "picture" if n == 1 else "pictures"
    what = CONTEXTS.get(kind, _LOOK)
    text = f"{k:,} of {n:,} of these {pictures} still {verb} {what}; {_bounds(k, n, cra['low'], cra['high'])}."
    return text + (f" Before, {count(before)[0]:,} did." if before else "")


def hurt_most(by_concept: Mapping[str, Mapping[str, Counted]], erased: Iterable[str] = ()) -> str:
    """The concept that lost most among those that must stay, "" if none was counted.

    Args:
        by_concept: Concept -> "before" and "after": how often it is recognised in pictures of it.
        erased: Names that do not count.
    """
    rest = {name: by_concept[name] for name in without(by_concept, *erased)}
    if not rest:
        return ""

    def drop(name: str) -> float:
        return float(rest[name]["before"]["value"]) - float(rest[name]["after"]["value"])

    name = max(rest, key=drop)
    if drop(name) <= 0:
        whom = f"all {len(rest):,} neighbours are" if len(rest) > 1 else f"{name} is"
        return f"Nothing else was hurt in these pictures: {whom} recognised as often as before."
    (k, n), (was, _) = count(rest[name]["after"]), count(rest[name]["before"])
    return f"Hurt most: {name}, recognised in {k:,} of {n:,} {'picture' if n == 1 else 'pictures'}; before, in {was:,}."


def grade(before: Counted | None, after: Counted, nonsense: Counted | None = None) -> str:
    """One word for programs and colours: "none", "few", "part" or "most" of the pictures are recognised; "unknown".

    Args:
        before, after: UA before and after the erasure.
        nonsense: How often nonsense names are recognised as it.
    """
    if not knew(before, nonsense):
        return "unknown"
    k, n = count(after)
    was, of = count(before) if before is not None else (0, 1)
    left = (n - k) * of / (n * max(of - was, 1))
    return next((grade for most, grade, _ in VERDICTS if left <= most), VERDICTS[-1][1])


def verdict(before: Counted | None, after: Counted, nonsense: Counted | None = None) -> str:
    """A few words for an erasure: "not recognised in 24 pictures" to "still recognised", or "not known before".

    Where the base drew the concept only sometimes, they say how often that was.
    """
    found = grade(before, after, nonsense)
    if found == "unknown":
        return UNKNOWN
    n = count(after)[1]
    text = next(words for _, name, words in VERDICTS if name == found)
    text += f" in {n:,} {'picture' if n == 1 else 'pictures'}" if found == "none" else ""
    was, of = count(before) if before is not None else (0, 1)
    return text if of - was >= LITTLE * of else f"{text}; before, in {of - was:,} of {of:,}"


def moved(part: float) -> str:
    """How far an adapter moves a concept, in parts of the way from a concept to its own anchor."""
    return f"{percent(100 * part)} of the way to an anchor"


def size(bytes_: int) -> str:
    """A file's size: "9.9 MB"."""
    value, unit = float(bytes_), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    if unit == "bytes":
        return f"{bytes_:,} {'byte' if bytes_ == 1 else 'bytes'}"
    return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"


def _of(k: int, n: int, whose: str = "pictures") -> str:
    pictures = whose.replace("pictures", "picture", 1) if n == 1 else whose
    return f"{k:,} of {n:,} {pictures} {'is' if 1 in (k, n) else 'are'}"


def _nonsense(null: Counted) -> str:
    k, n = count(null)
    return f"{k:,} of {n:,} of nonsense names"


def _rate(estimate: Counted) -> Estimate:
    return rate(*count(estimate))


def _interval(estimate: Counted) -> str:
    return _bounds(*count(estimate), estimate["low"], estimate["high"])


def _bounds(k: int, n: int, low: float, high: float) -> str:
    if k == 0:
        return f"at most {percent(high)}"
    if k == n:
        return f"at least {percent(low)}"
    if percent(low) == percent(high):
        return f"about {percent(low)}"
    return f"between {percent(low)} and {percent(high)}"


def _before(k: int, n: int) -> str:
    return f" Before, {'none' if k == 0 else 'all' if k == n > 1 else f'{k:,}'} {'was' if k == 1 else 'were'}."
