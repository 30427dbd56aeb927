"""The page around the tabs: header, choice of the generator, tabs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from concept_erase import embedded

from . import api, view
from .models import check_source
from .studio import Studio
from .tabs import at_work, batch, break_it, erase, library, style
from .tabs.common import DRAWING, LIGHT, Place, fold, sentence

TABS = {
    "erase": "Erase", "style": "My style", "break": "Try to break it", "batch": "Batch", "library": "Library",
}  # fmt: skip
SIDE = 64  # pixels of a picture of the built-in generator
HEADER = (
    '<header class="ce-header"><div class="ce-mark" aria-hidden="true"></div><div><h1>concept erase</h1>'
    "<p>Teach a picture generator to forget: a style, a thing, a person.</p></div></header>"
)


def compose(studio: Studio) -> gr.Blocks:
    """All of it."""
    with gr.Blocks(title="Concept erase", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        model, scorer = gr.State(studio.defaults.model), gr.State("")
        place = Place(studio, page, model, scorer, gr.State(""))
        gr.HTML(HEADER)
        _generator(place)
        at_work.build(place)
        tabs = _tabs()
        with _below("erase"):
            erase.build(place)
        with _below("style"):
            style.build(place)
        with _below("break"):
            break_it.build(place, tabs["break"])
        with _below("batch"):
            batch.build(place, tabs["batch"])
        with _below("library"):
            library.build(place, tabs["library"])
        api.add(studio)
        page.load(studio.generators.warm_soon, None, None, **LIGHT)
    return page


def _tabs() -> dict[str, gr.Tab]:
    """The row of tabs by name. What they show lies below: what is in a tab is built when it is opened, see `fold`."""
    tabs = {}
    with gr.Tabs(elem_id="tabs", overflow_behavior="wrap"):
        for name, title in TABS.items():
            with gr.Tab(title, id=name, elem_id=f"tab-{name}") as tab:
                pass
            tabs[name] = tab
            tab.select(None, None, None, js=f"() => window.ceTab('{name}')", api_visibility="private")
    return tabs


def _below(name: str) -> gr.Column:
    """Where what a tab shows lies."""
    return gr.Column(elem_id=f"below-{name}", elem_classes="ce-below" + (" ce-first" if name == "erase" else ""))


def _generator(place: Place) -> None:
    """Which generator everything is about, in a line; how to choose another one is folded below it."""
    studio = place.studio
    told = gr.HTML(view.state("model-state", "idle", describe(studio.defaults.model)), elem_id="model-status")
    with fold("Change", "model-choice", "ce-generator"):
        with gr.Row(equal_height=True):
            source = gr.Textbox(
                studio.defaults.model, label="Generator", placeholder="the built-in one", max_length=1000,
                info="Leave empty for the built-in generator, or give a folder on this computer"
                + (" " if studio.local else " (only when the demo runs on this computer) ")
                + "or a hub name such as name/model.",
                elem_id="model-source", scale=3,
            )  # fmt: skip
            judge = gr.Textbox(
                "", label="Scorer", placeholder="the built-in one", max_length=1000, elem_id="model-scorer", scale=2,
                info="For other generators: base (the generator itself; slow), or an open_clip model, NAME:TAG.",
            )  # fmt: skip
        use = gr.Button("Use this generator", size="md", elem_id="model-use", elem_classes="ce-small")

    def choose(text: str, wanted: str) -> list[Any]:
        try:
            chosen = check_source(text, local=studio.local)
            named = studio.scorer(wanted) or ""
            opened = studio.generators.open(chosen)
            return [chosen, named, view.state("model-state", "done", describe(opened.name if chosen else ""))]
        except Exception as error:
            inner = view.message(sentence(error), bad=True)
            return [gr.skip(), gr.skip(), view.state("model-state", "failed", inner)]

    def begin() -> str:
        return view.state("model-state", "running", view.message("Looking for it."))

    use.click(begin, None, told, **LIGHT).then(choose, [source, judge], [place.model, place.scorer, told], **DRAWING)


def describe(model: str) -> str:
    """The line about the generator in use."""
    if model:
        name = Path(model).name if Path(model).is_absolute() else model
        return f'<p class="ce-generator-line">Generator: <b>{view.esc(name)}</b></p>'
    objects, styles = len(embedded.objects()), len(embedded.styles())
    return (
        f'<p class="ce-generator-line">Generator: <b>built-in</b> ({objects} objects, {styles} styles, small icons of '
        f"{SIDE} px)</p>"
    )
