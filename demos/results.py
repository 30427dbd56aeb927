"""A finished erasure as a page: what is still recognised, before and after, what was hurt, what to take home."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from concept_erase import embedded
from concept_erase import words as told
from concept_erase.names import folded

from .library import Item
from .models import is_sensitive, judged
from .places import unplaced
from .view import LARGE, SMALL, Pair, capital, esc, figure, file_data, grid, message, picture_data, viewer

SCORES = (
    ("forgotten", "Not recognised", "UA"),
    ("neighbours", "Neighbours kept", "IRA"),
    ("contexts", "What they show, kept", "CRA"),
)


def pairs_of(item: Item, *, most: int = 100, side: int = LARGE) -> list[Pair]:
    """The stored pictures of an erasure, those of the erased concept first; none if it was not scored.

    Args:
        most: How many pairs at most.
        side: Pixels they are shown at.
    """
    folder = item.folder / "pictures"
    try:
        rows = json.loads((folder / "pictures.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    kinds = {folded(str(c.get("target", ""))): str(c.get("kind", "")) for c in item.report.get("concepts", [])}
    pairs = []
    listed = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    for row in sorted(listed, key=lambda row: not row.get("erased"))[:most]:
        files = [folder / Path(str(row.get(side, ""))).name for side in ("before", "after")]
        if not all(file.is_file() for file in files):
            continue
        concept = str(row.get("concept", ""))
        sensitive = kinds.get(folded(concept)) == "violence" or is_sensitive(concept, str(row.get("prompt", "")))
        before, after = (file_data(file, side) for file in files)
        pairs.append(Pair(row, before, after, file_data(files[1], SMALL), sensitive))
    return pairs


def strip(folder: Path, see: Callable[[list[Image.Image]], list[str]], columns: int = 4) -> tuple[str, bool]:
    """The first pairs of `before_after.png`, before above after: a data address, and whether any is sensitive.

    Adapters of a batch come with this one picture; its layout is that of `concept_erase.picture`, and what it shows
    only a judge can tell.

    Args:
        see: Pictures to what the judge takes them for.
    Returns:
        "" and False if there is no picture.
    """
    file = folder / "before_after.png"
    if not file.is_file():
        return "", False
    key = (str(file), file.stat().st_mtime_ns, columns)
    if key not in _strips:
        tiles, joined = _tiles(file, columns)
        if len(_strips) > 500:
            _strips.clear()
        _strips[key] = (picture_data(joined, joined.width), is_sensitive(*see(tiles)))
    return _strips[key]


_strips: dict[tuple[str, int, int], tuple[str, bool]] = {}


def _tiles(file: Path, columns: int) -> tuple[list[Image.Image], Image.Image]:
    from concept_erase.picture import GAP, HEAD, LABEL, TILE

    with Image.open(file) as sheet:
        columns = max(1, min(columns, (sheet.width - LABEL) // (TILE + GAP)))
        joined = Image.new("RGB", (columns * TILE, 2 * TILE), "white")
        tiles = []
        for i in range(2 * columns):
            x, y = LABEL + i % columns * (TILE + GAP), HEAD + 20 + i // columns * (TILE + GAP)
            tiles.append(sheet.crop((x, y, x + TILE, y + TILE)).convert("RGB"))
            joined.paste(tiles[-1], (i % columns * TILE, i // columns * TILE))
    return tiles, joined


def page(item: Item, prefix: str = "erase") -> tuple[str, str]:
    """The result as HTML, in two parts with room for the downloads between them.

    Elements are named `prefix`-words, -slider, -hurt and -grid.
    """
    pairs = pairs_of(item)
    top = [words(item, prefix)]
    if any(pair.sensitive for pair in pairs):
        top.append(
            '<button type="button" class="ce-unveil-all" aria-pressed="false">Show all sensitive pictures</button>'
        )
    top.append(viewer(pairs, f"{prefix}-slider"))
    if not pairs and (item.folder / "before_after.png").is_file():
        picture = file_data(item.folder / "before_after.png", 1000)
        sensitive = any(c.get("kind") == "violence" for c in item.report["concepts"]) or is_sensitive(*item.targets)
        top.append(figure(picture, f"{item.title}: before and after", sensitive=sensitive, kind="ce-wide"))
    rest = [how_to_use(item), score_cards(item), hurt(item, prefix)]
    if pairs:
        rest.append(f"<h3>Same words, same seeds</h3>{grid(pairs, f'{prefix}-grid')}")
    rest.append(notes(item))
    return tuple(f'<div class="ce-result">{"".join(part)}</div>' for part in (top, rest))  # type: ignore[return-value]


PRESETS = (("Quick look", 6), ("Normal", 60), ("Proof", 200))  # what to call a test, and its pictures of each group


def words(item: Item, prefix: str) -> str:
    """The headline: what the concept has become; then how sure that is, and how to be surer."""
    scores = item.scores
    if not scores:
        why = item.report.get("not_scored") or "scoring was switched off"
        return (
            f'<div class="ce-words" id="{prefix}-words"><h2>The adapter for {esc(item.title)} is ready.</h2>'
            f"<p>It was not scored: {esc(unplaced(str(why)))}.</p></div>"
        )
    before, after, null = scores["before"], scores["after"], _nonsense(item)
    if not told.knew(before["UA"], null):
        text = told.recognised(after["UA"], item.title, before=before["UA"], nonsense=null)
        return (
            f'<div class="ce-words" id="{prefix}-words"><h2>There was nothing to forget.</h2><p>{esc(text)}</p></div>'
        )
    n = int(before["UA"]["n"])
    knew = n - told.count(before["UA"])[0]
    was = f"Before, {'all' if knew == n else f'{knew:,}'} of them were."
    stayed = told.kept(after["IRA"], _kind(item))
    return (
        f'<div class="ce-words" id="{prefix}-words"><h2>{esc(headline(item))}</h2>'
        f"<p>{esc(told.recognised(after['UA'], item.title))} {esc(was)} {esc(capital(stayed))}</p>"
        f"{_surer(after['UA'], prefix)}</div>"
    )


def _nonsense(item: Item) -> dict[str, Any] | None:
    """How often pictures of nonsense names are taken for what was erased; None in reports that do not say."""
    scores = item.scores or {}
    return (scores.get("controls") or {}).get("nonsense") or scores.get("nonsense")


def headline(item: Item) -> str:
    """What one gets now when asking for what was erased, in words an artist would use."""
    before, after = item.scores["before"]["UA"], item.scores["after"]["UA"]  # type: ignore[index]
    k, n = told.count(after)
    if told.verdict(before, after, _nonsense(item)) == told.UNKNOWN:
        return f"It hardly knew {item.title} before, so there was little to erase."
    if n and (n - k) / n > 0.7:
        return f"Asked for {item.title}, it still draws {item.title}."
    if n and (n - k) / n > 0.2:
        return f"Asked for {item.title}, it still draws {item.title} now and then."
    return f"Asked for {item.title}, it now draws {became(item) or 'something else'}."


def became(item: Item) -> str:
    """What the judge takes most of the stored pictures for that were asked to show the erased concept; "" if it is
    unsure, or does not know this generator."""
    if item.base != embedded.NAME or len(item.targets) != 1 or _kind(item) == "identity":
        return ""
    folder = item.folder / "pictures"
    try:
        rows = json.loads((folder / "pictures.json").read_text(encoding="utf-8"))
        files = [folder / Path(str(row["after"])).name for row in rows if row.get("erased")]
        key = (str(folder), tuple(file.stat().st_mtime_ns for file in files))
        if key not in _became:
            images = []
            for file in files:
                with Image.open(file) as image:
                    images.append(image.convert("RGB"))
            seen = judged(images) if images else ([], [])
            _became[key] = Counter(seen[0] if _kind(item) == "style" else seen[1]).most_common(1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    name, number = (_became[key] or [("", 0)])[0]
    return name if number > len(files) / 2 and name.casefold() != item.targets[0].casefold() else ""


_became: dict[tuple[str, tuple[int, ...]], list[tuple[str, int]]] = {}


def _surer(ua: dict[str, Any], prefix: str) -> str:
    """What so few pictures leave open, with the next firmer test of the same erasure where it can be asked for."""
    k, n = told.count(ua)
    high = max(0.0, 100.0 - float(ua["low"]))
    name, more = next(((name, more) for name, more in PRESETS if more > n), ("", 0))
    if not more:
        return ""
    text = (
        f"With {n:,} new pictures, up to {high:.0f} in 100 could still show it. {more} pictures narrow that."
        if k == n
        else f"{n:,} pictures are few for an exact number. {more} pictures tell it better."
    )
    button = (
        f'<button type="button" class="ce-firmer" data-pictures="{more}">{name} test: {more} pictures</button>'
        if prefix == "erase"
        else ""
    )
    return f'<p class="ce-surer">{esc(text)} {button}</p>'


def _kind(item: Item) -> str:
    """The kind of what was erased, "" where there are several."""
    kinds = {str(c.get("kind", "")) for c in item.report.get("concepts", [])}
    return kinds.pop() if len(kinds) == 1 else ""


def _meaning(name: str, item: Item, after: dict[str, Any], before: dict[str, Any] | None) -> str:
    if name == "UA":
        return told.recognised(after, item.title, before=before, nonsense=_nonsense(item))
    return (told.kept if name == "IRA" else told.shown)(after, _kind(item), before=before)


def score_cards(item: Item) -> str:
    """The three scores, each as a sentence and as its interval on a line from 0 to 100."""
    scores = item.scores
    if not scores:
        return ""
    cards = []
    for _, title, name in SCORES:
        after, before = scores["after"].get(name), scores["before"].get(name)
        if not after:
            continue
        hollow = name == "UA" and not told.knew(before, _nonsense(item))
        number = "–" if hollow else f"{after['value']:.0f}<small>%</small>"
        cards.append(
            f'<div class="ce-card"><h3 class="ce-h4">{esc(title)}</h3>'
            f'<p class="ce-number">{number}</p>'
            f"{interval(after, before)}<p>{esc(_meaning(name, item, after, before))}</p></div>"
        )
    return f'<div class="ce-cards">{"".join(cards)}</div>'


def interval(after: dict[str, Any], before: dict[str, Any] | None) -> str:
    """A 95% interval drawn as a band; a tick where it was before."""
    low, high, value = (max(0.0, min(100.0, float(after[k]))) for k in ("low", "high", "value"))
    tick = f'<i class="ce-was" style="left:{float(before["value"]):.1f}%"></i>' if before else ""
    was = f"; before: {before['value']:.0f}%" if before else ""
    return (
        f'<div class="ce-interval" role="img" aria-label="{value:.0f}%, between {low:.0f} and {high:.0f}{was}">'
        f'<b style="left:{low:.1f}%;width:{max(high - low, 1):.1f}%"></b>'
        f'<i class="ce-is" style="left:{value:.1f}%"></i>{tick}</div>'
    )


def hurt(item: Item, prefix: str) -> str:
    """The kept concept that lost most, in words."""
    counted = (item.scores or {}).get("by_concept") or {}
    text = told.hurt_most(counted, item.targets)
    return f'<p class="ce-hurt" id="{prefix}-hurt">{esc(text)}</p>' if text else ""


USES = (
    ("ComfyUI", "Put it into models/loras, add a Load LoRA node after the checkpoint, strength 1."),
    ("A1111 and Forge", "Put it into models/Lora and write <lora:NAME:1> into the prompt."),
    ("InvokeAI", "Models, Import, choose the file; then add it under Concepts with weight 1."),
    ("diffusers", "pipe.load_lora_weights(FOLDER, weight_name=FILE), with the file for diffusers."),
)


def how_to_use(item: Item) -> str:
    """A few steps for each program, folded; a file for the built-in generator is of use to that alone."""
    if item.base == embedded.NAME:
        steps = (
            "<p>This file is for the built-in generator only: other programs cannot load that generator, so the file "
            "does nothing there. Try it here under “Try to break it”, or in Python:</p>"
            "<p><code>concept_erase.load_erasure(concept_erase.open_model().pipe, FOLDER)</code></p>"
            "<p>For ComfyUI, A1111, Forge or InvokeAI choose your own generator at the top of the page and erase "
            "there.</p>"
        )
    else:
        name = item.kohya.stem if item.kohya else "NAME"
        listed = "".join(f"<dt>{esc(k)}</dt><dd>{esc(v.replace('NAME', name, 1))}</dd>" for k, v in USES)
        steps = f"<p>It works with {esc(unplaced(item.base))} and models made from it.</p><dl>{listed}</dl>"
    return f'<details class="ce-use"><summary>How to use this file</summary>{steps}</details>'


def notes(item: Item) -> str:
    """How it was made, folded."""
    report = item.report
    lines = "".join(f"<li>{esc(unplaced(str(note)))}</li>" for note in report.get("notes", []))
    anchors = ", ".join(f"{c['target']} becomes {c['anchor']}" for c in report["concepts"] if c.get("anchor"))
    lead = f"<p>{esc(anchors)}.</p>" if anchors else ""
    scores = report.get("scores") or {}
    beside = scores.get("scorer") if scores.get("scorer") != scores.get("judge") else ""
    beside = f" Scorer: {esc(unplaced(str(beside)))}." if beside else ""
    judge = f"<p>Judge: {esc(unplaced(scores['judge']))}.{beside}</p>" if scores.get("judge") else ""
    return (
        f'<details class="ce-notes"><summary>How it was made</summary>{lead}<ul>{lines}</ul>{judge}'
        f"<p>Method: {esc(item.method)}. Generator: {esc(unplaced(item.base))}.</p></details>"
    )


def failure(text: str) -> str:
    """A job that ended without a result."""
    return message(text, bad=True)
