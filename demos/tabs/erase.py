"""Erase: pick what to forget, press one button, see what is left of it."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from concept_erase import embedded
from concept_erase.concepts import Kind

from .. import results, view
from ..jobs import Job
from ..library import Item
from ..models import is_sensitive, tile_prompts
from ..studio import Studio
from .common import DRAWING, LIGHT, Panel, Place
from .settings import Advanced

KINDS = (("A style", "style"), ("An object", "object"), ("Violent content", "violence"), ("A person", "identity"))
COLUMNS = {10: 10, 12: 6}  # tiles in a row, by how many there are
# A click is remembered in the page and changes the field there: the button may be pressed before a server could answer.
PICK = (
    "element.addEventListener('click', (e) => { const t = e.target.closest('[data-name]'); "
    "if (!t || e.target.closest('[data-open]')) return; "
    "window.cePicked = t.dataset.name; trigger('click'); })"
)
TOGGLE = (
    "(names) => { const n = window.cePicked, had = [].concat(names ?? []); "  # one output: a list in a list
    "return [!n ? had : had.includes(n) ? had.filter((x) => x !== n) : [...had, n]]; }"
)
NOBODY = (
    '<p class="ce-quiet">The built-in generator draws no real people. Type a name, and choose a generator that knows '
    "it at the top of the page.</p>"
)
MARK = (
    "(names) => { document.querySelectorAll('#erase-chips [data-name]').forEach((b) => "
    "b.setAttribute('aria-pressed', String((names || []).includes(b.dataset.name)))); }"
)


PRESET = "(preset, number) => preset || number"
OWN_NUMBER = f"(number) => {[n for _, n in results.PRESETS]}.includes(number) ? number : 0"


def expected(studio: Studio, pictures: Any, method: Any = "uce", steps: Any = None, model: str = "") -> str:
    """How long an erasure takes on this computer, from what was measured here."""
    number = int(pictures) if isinstance(pictures, int | float) else studio.defaults.pictures
    wanted = int(steps) if isinstance(steps, int | float) else studio.defaults.steps
    asked = {"model": model or None, "method": method, "steps": wanted, "pictures": number}
    seconds = studio.queue.pace.whole("erase", asked)
    text = (
        "How long this takes here is not known yet: the first time, a few minutes. You can close the page meanwhile."
        if seconds is None
        else f"{view.duration(seconds)} on this computer."
    )
    return f'<p class="ce-quiet">{view.esc(text)}</p>'


def known(kind: object, model: str = "") -> list[str]:
    """What can be picked: the embedded generator's vocabulary; other generators know more than a list could hold."""
    if model:
        return []
    if kind == Kind.STYLE:
        return list(embedded.styles())
    if kind == Kind.OBJECT:
        return list(embedded.objects(violent=False))
    return list(embedded.objects(violent=True)) if kind == Kind.VIOLENCE else []


def chips(kind: object, pictures: list[tuple[str, Any]] | None) -> str:
    """A button with a picture for each concept that can be picked; without pictures, initials hold their place."""
    try:
        names, _ = tile_prompts(Kind(str(kind)))
    except ValueError:
        names = []
    if not names:
        return NOBODY
    drawn = dict(pictures or ())
    parts = []
    for name in names:
        blurred = " ce-blurred" if is_sensitive(name) else ""
        inside = f'<img src="{view.picture_data(drawn[name], 160)}" alt="">' if name in drawn else "<i></i>"
        parts.append(
            f'<button type="button" class="ce-chip{blurred}" data-name="{view.esc(name)}" aria-pressed="false">'
            f"{inside}<span>{view.esc(name)}</span></button>"
        )
    columns = COLUMNS.get(len(names), 8)
    return (
        f'<div class="ce-chips" style="--n:{columns}" role="group" aria-label="Concepts the generator knows">'
        f"{''.join(parts)}</div>"
    )


def build(place: Place) -> None:
    """The tab."""
    studio = place.studio
    gr.HTML(
        '<div class="ce-lead"><h2>What should it forget?</h2><p>Pick it and press the button. You see what the '
        "generator draws afterwards, how sure that is, and get a small file that does it to the generator.</p></div>"
    )
    kind = gr.Radio(list(KINDS), value="style", label="Kind", show_label=False, elem_id="erase-kind", container=False)
    tiles: dict[str, gr.HTML] = {}
    with gr.Column(elem_id="erase-chips"):
        for _, each in KINDS:
            shown = chips(each, studio.generators.tiles_at_hand(Kind(each))) if not studio.defaults.model else ""
            tiles[each] = gr.HTML(shown, elem_id=f"erase-chips-{each}", js_on_load=PICK)
    names = known("style", studio.defaults.model)
    with gr.Row(elem_classes="ce-pairrow"):
        target = gr.Dropdown(
            names, multiselect=True, allow_custom_value=True, value=[], label="Forget", elem_id="erase-target",
            info="Pick above, choose from the list, or type a name and press Enter.", min_width=300,
        )  # fmt: skip
        preserve = gr.Dropdown(
            names, multiselect=True, allow_custom_value=True, value=[], label="What must stay",
            info="Its neighbours are kept if you leave this empty.", elem_id="erase-preserve", min_width=300,
        )  # fmt: skip
    known_number = studio.defaults.pictures in {number for _, number in results.PRESETS}
    sure = gr.Radio(
        [(f"{name} \u00b7 {number} pictures", number) for name, number in results.PRESETS] + [("Another number", 0)],
        value=studio.defaults.pictures if known_number else 0, label="How sure do you want to be?",
        info="It is tested on new pictures. Six give an impression; sixty an answer; two hundred a proof.",
        elem_id="erase-sure",
    )  # fmt: skip
    plan = gr.HTML(view.state("erase-plan", "idle", expected(studio, studio.defaults.pictures)), elem_id="erase-time")
    advanced = Advanced("erase", studio.defaults)
    go = gr.Button("Erase", variant="primary", elem_id="erase-go", elem_classes="ce-go")

    def result(job: Job) -> tuple[str, str, Item | None]:
        item = studio.item_of(job)
        return (
            (*results.page(item), item) if item else (results.failure("The result is gone; erase it again."), "", None)
        )

    panel = Panel(place, "erase", result)
    # The buttons of a result are part of its text; they press these, which only the page can see.
    more = [(gr.Button(f"{n}", elem_id=f"erase-firmer-{n}", elem_classes="ce-unseen"), n) for _, n in results.PRESETS]

    def firmer(n: int) -> Any:
        def act(key: str) -> list[Any]:
            try:
                return panel.show(studio.firmer(key, n))
            except Exception as error:
                return panel.failed(error)

        return act

    def foresee(number: Any, method: Any, steps: Any, model: str) -> str:
        return view.state("erase-plan", "idle", expected(studio, number, method, steps, model))

    def offer(kind: str, model: str) -> list[Any]:
        """The lists to choose from; never what is chosen, which may have changed by now."""
        names = known(kind, model)
        return [gr.update(choices=names), gr.update(choices=names)]

    def change_model(kind: str, model: str) -> list[Any]:
        shown = ["" if model else chips(k, studio.generators.tiles_at_hand(Kind(k))) for k in tiles]
        return [*shown, *offer(kind, model)]

    def draw(kind: str, model: str) -> list[Any]:
        """Pictures for the tiles of one kind, into those of that kind, whichever is shown by now."""
        drawn: Any = gr.skip()
        try:
            if not model:
                drawn = chips(kind, studio.generators.tiles(Kind(kind)))
        except Exception:  # the pictures are an ornament: names are enough to go on
            pass
        return [drawn if k == kind else gr.skip() for k in tiles]

    def start(kind: str, targets: Any, preserve: Any, model: str, scorer: str, *rest: Any) -> list[Any]:
        try:
            chosen = advanced.read(*rest)
            return panel.show(studio.erase(targets, kind, preserve, model=model, scorer=scorer, **chosen))
        except Exception as error:
            return panel.failed(error)

    change = f"(kind, ...picked) => window.ceKind({json.dumps({each: known(each) for each in tiles})}, kind, picked)"
    mark: dict[str, Any] = {"fn": None, "inputs": target, "outputs": None, "js": MARK, "api_visibility": "private"}
    pictures = list(tiles.values())
    kind.change(None, [kind, target, preserve], [target, preserve], js=change, api_visibility="private")
    kind.change(offer, [kind, place.model], [target, preserve], **LIGHT).then(
        draw, [kind, place.model], pictures, **DRAWING
    ).then(**mark)
    place.model.change(change_model, [kind, place.model], [*pictures, target, preserve], **LIGHT).then(**mark).then(
        draw, [kind, place.model], pictures, **DRAWING
    ).then(**mark)
    for html in tiles.values():
        html.click(None, target, target, js=TOGGLE, api_visibility="private")
    target.change(**mark)
    sure.input(None, [sure, advanced.pictures], advanced.pictures, js=PRESET, api_visibility="private")
    advanced.pictures.change(None, advanced.pictures, sure, js=OWN_NUMBER, api_visibility="private")
    asked: list[Any] = [advanced.pictures, advanced.method, advanced.steps, place.model]
    gr.on([c.change for c in (*asked, panel.result)], foresee, asked, plan, **LIGHT)
    place.page.load(foresee, asked, plan, **LIGHT)
    for button, n in more:
        button.click(firmer(n), panel.job, panel.outputs, **panel.in_turn)
    asked_for = [kind, target, preserve, place.model, place.scorer, *advanced.inputs]
    go.click(start, asked_for, panel.outputs, **panel.in_turn)
    place.page.load(lambda: panel.running("erase"), None, panel.outputs, **panel.in_turn)
    place.page.load(draw, [kind, place.model], pictures, **DRAWING).then(**mark)
