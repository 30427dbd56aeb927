"""Library: the adapters made so far; composed, exported, deleted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from PIL import Image

from concept_erase import words as told

from .. import results, view
from .. import shelf as acts
from ..library import Item
from ..models import is_sensitive
from ..results import pairs_of, strip
from .break_it import choices
from .common import DRAWING, LIGHT, PRUNE, Place, Result, sentence
from .erase import PICK, TOGGLE

MARK = (
    "(ids) => { document.querySelectorAll('#library-list [data-name]').forEach((b) => "
    "b.setAttribute('aria-pressed', String((ids || []).includes(b.dataset.name)))); }"
)
OPEN = (
    "element.addEventListener('click', (e) => { const t = e.target.closest('[data-open]'); if (!t) return; "
    "window.ceOpen = t.dataset.open; trigger('select'); })"
)
See = Callable[[list[Image.Image]], list[str]]  # what a judge takes pictures for
SHOWN = 48
CALM = 0.25  # parts of the way to an anchor, up to which what should stay hardly looks different
ORIGINS = {"erasure": "", "composed": "composed", "batch": "from a batch"}


def cards(items: list[Item], see: See) -> str:
    """The shelf: a picture pair, what is erased, how well."""
    if not items:
        return view.message("Nothing here yet. What you erase is kept here.")
    shown = "".join(_card(item, see) for item in items[:SHOWN])
    more = f'<p class="ce-quiet">and {len(items) - SHOWN:,} more.</p>' if len(items) > SHOWN else ""
    return f'<div class="ce-result"><div class="ce-shelf" role="list">{shown}</div>{more}</div>'


def _card(item: Item, see: See) -> str:
    pairs = [pair for pair in pairs_of(item, most=2, side=view.SMALL) if pair.erased]
    sensitive = any(c.get("kind") == "violence" for c in item.report["concepts"]) or is_sensitive(*item.targets)
    pictures = "".join(
        f'<img src="{source}" alt="{view.esc(f"{word}: {pair.prompt}")}">'
        for pair in pairs
        for word, source in (("before", pair.before), ("after", pair.after))
    )
    beside = bool(pictures)  # before left, after right; a strip has before above after
    data, shown = ("", False) if pictures else strip(item.folder, see, 2)
    sensitive = sensitive or shown or any(pair.sensitive for pair in pairs)
    if data:
        pictures = f'<img class="ce-all" src="{data}" alt="{view.esc(f"{item.title}: before above after")}">'
    initial = f'<i aria-hidden="true">{view.esc(item.title[:1].upper())}</i>'
    sides = '<span class="ce-tag">before</span><span class="ce-tag">after</span>' if pictures else ""
    kind = f"{' ce-blurred' if sensitive else ''}{' ce-beside' if beside else ' ce-above'}"
    holder = f'<div class="ce-quad{kind}">{pictures or initial}{sides}</div>'
    name = (" + " if item.origin == "composed" else ", ").join(item.targets)
    scores = item.scores
    text = told.recognised(scores["after"]["UA"], "it") if scores else "not scored"
    where = tag_of(item) or ORIGINS[item.origin]
    origin = f' <span class="ce-badge">{view.esc(where)}</span>' if where else ""
    take = (
        f'<button type="button" class="ce-take" data-name="{item.id}" aria-pressed="false" '
        f'aria-label="{view.esc(f"Pick {item.title}")}"><span aria-hidden="true">\u2713</span></button>'
    )
    return (
        f'<div class="ce-item" role="listitem" data-id="{item.id}">{holder}{take}'
        f'<h3 class="ce-h4" title="{view.esc(name)}">{view.esc(name)}</h3>{origin}'
        f"<p>{view.esc(view.capital(text))}</p>"
        f'<p class="ce-quiet">{view.esc(item.method)}, {view.esc(item.base)}</p>'
        f'<button type="button" class="ce-open" data-open="{item.id}" aria-label="{view.esc(f"Open {item.title}")}">'
        "Open</button></div>"
    )


def tag_of(item: Item) -> str:
    """For a joint adapter of a batch, what its concepts have in common; "" for others."""
    if item.folder.parent.name != "joint":
        return ""
    tag = item.folder.name.rpartition("-")[0]
    return "the whole list, in one" if tag == "all" else f"tag: {tag.replace('-', ' ')}"


def matters(found: Any) -> str:
    """What a person has to know of the interference, in a sentence."""
    best: tuple[float, str, str] = (0.0, "", "")
    names = [name.removeprefix("Erases ") for name in found.adapters]
    for name, moved in [*zip(names, found.moved, strict=True), ("all together", found.together)]:
        for j, concept in enumerate(found.concepts):
            if not found.erased[j] and float(moved[j]) > best[0]:
                best = (float(moved[j]), name, concept)
    if best[0] <= CALM:
        return f"Nothing that should stay moves by more than {max(0.01, best[0]):.2f}."
    what = "All together they move" if best[1] == "all together" else f"Erasing {best[1]} also moves"
    return f"{what} {best[2]} by {best[0]:.2f}: check it under “Try to break it”."


def matrix(found: Any) -> str:
    """The interference as a table of shaded cells: numbers are there for who cannot see the shades."""
    columns = list(range(len(found.concepts)))[:24]
    head = "".join(
        f'<th scope="col" class="{"ce-gone" if found.erased[j] else ""}"><span>{view.esc(found.concepts[j])}</span>'
        "</th>"
        for j in columns
    )
    rows = []
    names = [name.removeprefix("Erases ") for name in found.adapters]
    listed = list(zip(names, found.moved, found.own, strict=True))
    for name, moved, own in [*listed, ("all together", found.together, [False] * len(found.concepts))]:
        values = [(float(moved[j]), bool(own[j])) for j in columns]
        cells = "".join(
            f'<td style="--v:{min(1.0, value):.3f}"{_classes(mine, value)}>{value:.2f}</td>' for value, mine in values
        )
        rows.append(f'<tr><th scope="row">{view.esc(name)}</th>{cells}</tr>')
    return (
        f'<div class="ce-result"><h3>How they move each other</h3>'
        f'<p class="ce-plan" id="library-matters">{view.esc(matters(found))}</p>'
        '<div class="ce-scroll ce-wide-scroll" tabindex="0" role="region" aria-label="Interference">'
        '<table class="ce-matrix" id="library-matrix"><caption class="ce-hidden">How far each adapter moves each '
        "concept; 1 is as far as the way to its anchor</caption>"
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="ce-quiet">1 is as far as the way from a concept to what it becomes. Outlined: what the adapter '
        "erases itself. Names in red are erased, the others should stay near 0.</p></div>"
    )


def _classes(own: bool, value: float) -> str:
    names = [*(["ce-own"] if own else []), *(["ce-deep"] if value > 0.5 else [])]
    return f' class="{" ".join(names)}"' if names else ""


def build(place: Place, tab: gr.Tab) -> None:
    """The tab."""
    studio = place.studio
    gr.HTML(
        '<div class="ce-lead"><h2>Your library</h2><p>Everything erased so far. Pick some to put together, take home '
        "or remove.</p></div>"
    )
    shelf = gr.HTML("", elem_id="library-list", js_on_load=f"{PICK}; {OPEN}")
    picked = gr.Dropdown(
        [], multiselect=True, label="Picked", info="One or several.", elem_id="library-pick",
    )  # fmt: skip
    with gr.Row(elem_classes="ce-actions"):
        compose = gr.Button("Put together", variant="primary", elem_id="library-compose", min_width=150)
        export = gr.Button("Take home as zip", elem_id="library-export", min_width=150)
        delete = gr.Button("Delete", variant="stop", elem_id="library-delete", min_width=120)
    with gr.Row(visible=False, elem_classes="ce-confirm", elem_id="library-confirm-row") as confirm_row:
        question = gr.HTML("")
        confirm = gr.Button("Delete for good", variant="stop", size="md", elem_id="library-confirm", min_width=140)
        keep = gr.Button("Keep", size="md", elem_id="library-keep", min_width=100)
    status = gr.HTML(view.state("library-state", "idle"), elem_id="library-status")
    zip_file = gr.DownloadButton(
        "Download the zip", size="md", visible=False, elem_id="library-zip", elem_classes="ce-small"
    )
    matrix_html = gr.HTML("", elem_id="library-result")
    opened = Result(place, "library-item")
    wanted, known = gr.Textbox(visible=False), gr.JSON(visible=False)
    shown, asked = gr.State(""), gr.State([])

    def see(tiles: list[Image.Image]) -> list[str]:
        return studio.generators.seen("", tiles)

    def listing() -> list[Any]:
        """The shelf and what there is to pick; what is picked is never sent, it may have changed by now."""
        items = studio.library.items()
        return [cards(items, see), gr.update(choices=choices(items)), [item.id for item in items]]

    def show(key: str) -> list[Any]:
        """One erasure, as it was shown when it was made."""
        try:
            item = studio.library.get(key)
            return [
                item.id,
                view.state("library-state", "opened"),
                *opened.show(*results.page(item, "library-item"), item),
            ]
        except Exception as error:
            return ["", failed(error), *opened.nothing()]

    def failed(error: Exception) -> str:
        return view.state("library-state", "failed", view.message(sentence(error), bad=True))

    def begin() -> str:
        return view.state(
            "library-state", "running", view.message("Putting them together, drawing with them, measuring.")
        )

    def put_together(chosen: list[str] | None, model: str) -> list[Any]:
        try:
            item = acts.compose(studio, chosen)
            html = matrix(acts.measure(studio, chosen, model))
            text = f"Made: {item.title}. It is in your library as one adapter."
            return [view.state("library-state", "done", view.message(text)), html, *listing()]
        except Exception as error:
            return [failed(error), *[gr.skip()] * 4]

    def take_home(chosen: list[str] | None) -> list[Any]:
        try:
            return [
                view.state("library-state", "done"),
                gr.update(value=str(acts.export(studio, chosen)), visible=True),
            ]
        except Exception as error:
            return [failed(error), gr.update(visible=False)]

    def ask(chosen: list[str] | None) -> list[Any]:
        try:
            items = studio.library.some(chosen)
            names = "; ".join(item.title for item in items)
            question = view.message(f"Delete {names}? This cannot be undone.")
            return [gr.update(visible=True), question, gr.skip(), chosen]
        except Exception as error:
            return [gr.update(visible=False), "", failed(error), []]

    def remove(chosen: list[str] | None, open_: str) -> list[Any]:
        try:
            names = [acts.delete(studio, item.id).title for item in studio.library.some(chosen)]
            told_ = view.state("library-state", "done", view.message(f"Deleted: {'; '.join(names)}."))
            rest = opened.nothing() if open_ in (chosen or ()) else opened.unchanged()
            return [told_, gr.update(visible=False), "", gr.update(visible=False), *listing(), *rest]
        except Exception as error:
            kept = [gr.skip(), gr.skip(), *listing(), *opened.unchanged()]
            return [failed(error), gr.update(visible=False), *kept]

    listed = [shelf, picked, known]
    settle: dict[str, Any] = {
        "fn": None, "inputs": [picked, known], "outputs": picked, "js": PRUNE, "api_visibility": "private"
    }  # fmt: skip
    mark: dict[str, Any] = {"fn": None, "inputs": picked, "outputs": None, "js": MARK, "api_visibility": "private"}
    shelf.click(None, picked, picked, js=TOGGLE, api_visibility="private")
    elsewhere = gr.Button("Open", elem_id="library-open", elem_classes="ce-unseen")  # pressed by the page alone
    gr.on(
        [shelf.select, elsewhere.click], show, wanted, [shown, status, *opened.outputs], js="() => window.ceOpen",
        **LIGHT,
    ).then(None, None, None, js="() => window.ceGoTo('library-item-words')", api_visibility="private")  # fmt: skip
    picked.change(**mark)
    tab.select(listing, None, listed, **LIGHT).then(**settle).then(**mark)
    compose.click(begin, None, status, **LIGHT).then(
        put_together, [picked, place.model], [status, matrix_html, *listed], **DRAWING
    ).then(**settle).then(**mark)
    export.click(take_home, picked, [status, zip_file], **LIGHT)
    delete.click(ask, picked, [confirm_row, question, status, asked], **LIGHT)
    keep.click(lambda: gr.update(visible=False), None, confirm_row, **LIGHT)
    confirm.click(
        remove, [asked, shown], [status, confirm_row, matrix_html, zip_file, *listed, *opened.outputs], **LIGHT
    ).then(**settle).then(**mark)
