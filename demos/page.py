"""The page around the tabs: header, choice of the generator, tabs."""

from __future__ import annotations

from typing import Any

import gradio as gr

from . import api, view
from .models import check_source
from .studio import Studio
from .tabs import batch, break_it, erase, library, style
from .tabs.common import DRAWING, LIGHT, Place, sentence

HEADER = (
    '<header class="ce-header"><div class="ce-mark" aria-hidden="true"></div><div><h1>concept erase</h1>'
    "<p>Teach a picture generator to forget.</p></div></header>"
)


def compose(studio: Studio) -> gr.Blocks:
    """All of it."""
    with gr.Blocks(title="Concept erase", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        model, scorer = gr.State(studio.defaults.model), gr.State("")
        place = Place(studio, page, model, scorer)
        gr.HTML(HEADER)
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap"):
            with gr.Tab("Erase", id="erase", elem_id="tab-erase"):
                erase.build(place)
            with gr.Tab("My style", id="style", elem_id="tab-style"):
                style.build(place)
            with gr.Tab("Try to break it", id="break", elem_id="tab-break") as tab:
                break_it.build(place, tab)
            with gr.Tab("Batch", id="batch", elem_id="tab-batch") as tab:
                batch.build(place, tab)
            with gr.Tab("Library", id="library", elem_id="tab-library") as tab:
                library.build(place, tab)
        _generator(place)
        api.add(studio)
        page.load(studio.generators.warm_soon, None, None, **LIGHT)
    return page


def _generator(place: Place) -> None:
    """Which generator everything is about; folded, because most people never need it."""
    studio = place.studio
    with gr.Accordion("Generator", open=False, elem_id="model-choice", elem_classes="ce-generator"):
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
                info="For other generators: an open_clip model, NAME:TAG.",
            )  # fmt: skip
        use = gr.Button("Use this generator", size="md", elem_id="model-use", elem_classes="ce-small")
        told = gr.HTML(view.state("model-state", "idle", describe(studio.defaults.model)), elem_id="model-status")

    def choose(text: str, wanted: str) -> list[Any]:
        try:
            chosen = check_source(text, local=studio.local)
            named = studio.scorer(wanted) or ""
            opened = studio.generators.open(chosen)
            inner = view.message(f"Using {opened.name}." if chosen else "Using the built-in generator.")
            return [chosen, named, view.state("model-state", "done", inner)]
        except Exception as error:
            inner = view.message(sentence(error), bad=True)
            return [gr.skip(), gr.skip(), view.state("model-state", "failed", inner)]

    def begin() -> str:
        return view.state("model-state", "running", view.message("Looking for it."))

    use.click(begin, None, told, **LIGHT).then(choose, [source, judge], [place.model, place.scorer, told], **DRAWING)


def describe(model: str) -> str:
    return view.message(f"Using {model}." if model else "Using the built-in generator.")
