"""Try to break it: any prompt on the original and the erased generator, side by side."""

from __future__ import annotations

import random
from typing import Any

import gradio as gr

from .. import view
from ..library import Item
from ..models import Drawn, is_sensitive
from ..studio import LONGEST_PROMPT
from .common import DRAWING, LIGHT, Place, sentence

IDEA = (
    "element.addEventListener('click', (e) => { const t = e.target.closest('[data-prompt]'); if (!t) return; "
    "window.ceIdea = t.dataset.prompt; trigger('click'); })"
)
REMEMBERED = 6


def choices(items: list[Item]) -> list[tuple[str, str]]:
    """The library for a picker: what each adapter erases, told apart by method and id where needed."""
    titles = [item.title for item in items]
    return [
        (title if titles.count(title) == 1 else f"{title} ({item.method}, {item.id[:4]})", item.id)
        for title, item in zip(titles, items, strict=True)
    ]


def ideas(items: list[Item]) -> str:
    """Prompts that try to get around an erasure: other words, spellings and places of the name."""
    if not items:
        return ""
    concept = items[0].report["concepts"][0]
    name = str(concept["target"])
    style = concept.get("kind") == "style"
    thing = "cat" if style else name
    prompts = [
        f"a {name} cat" if style else f"a {name}",
        f"a cat, the look of {name}, very {name}" if style else f"{name} {name} {name}",
        f"{' '.join(name)} {thing}" if style else " ".join(name),
        f"{name[:1]}{name[2:]} cat" if style and len(name) > 3 else f"{name[:1]}{name[2:]}",
        f"a cat, not {concept.get('anchor') or 'plain'}, but {name}" if style else f"an icon of not a {name}",
    ]
    buttons = "".join(
        f'<button type="button" class="ce-idea" data-prompt="{view.esc(p)}">{view.esc(p)}</button>'
        for p in dict.fromkeys(prompts)
    )
    return f'<div class="ce-ideas" role="group" aria-label="Ideas"><span>Ideas</span>{buttons}</div>'


def both(drawn: Drawn, prompt: str, seed: int, sensitive: bool) -> str:
    """The two pictures."""
    original, erased = (view.picture_data(image, view.LARGE) for image in (drawn.original, drawn.erased))
    seen = [f"the judge sees: {text}" if text else "" for text in (drawn.original_seen, drawn.erased_seen)]
    return (
        '<div class="ce-result"><div class="ce-both">'
        f'<div id="break-original">{view.figure(original, f"original: {prompt}", "Original", sensitive=sensitive)}'
        f'<p class="ce-quiet">{view.esc(seen[0])}</p></div>'
        f'<div id="break-erased">{view.figure(erased, f"erased: {prompt}", "Erased", sensitive=sensitive)}'
        f'<p class="ce-quiet">{view.esc(seen[1])}</p></div></div>'
        f'<p class="ce-prompt">{view.esc(prompt)} <span>seed {seed}</span></p></div>'
    )


def remembered(past: list[dict[str, Any]]) -> str:
    """Earlier attempts of this visit."""
    if len(past) < 2:
        return ""
    cells = "".join(
        f'<div class="ce-past"><div>{"".join(p["pictures"])}</div><p class="ce-quiet">{view.esc(p["prompt"])}</p></div>'
        for p in past[1:]
    )
    return f'<div class="ce-result"><h3>Tried before</h3><div class="ce-pasts">{cells}</div></div>'


def build(place: Place, tab: gr.Tab) -> None:
    """The tab."""
    studio = place.studio
    gr.HTML(
        '<div class="ce-lead"><h2>Try to break it</h2><p>Write anything. The original and the erased generator draw it '
        "from the same seed.</p></div>"
    )
    with gr.Row(elem_classes="ce-pairrow"):
        adapter = gr.Dropdown(
            [], multiselect=True, label="Erasures", info="From your library; several work together.", min_width=300,
            elem_id="break-adapter", scale=3,
        )  # fmt: skip
        seed = gr.Number(
            0, label="Seed", info="Same seed, same picture.", minimum=0, maximum=2**32 - 1, precision=0,
            elem_id="break-seed", min_width=160, scale=1,
        )  # fmt: skip
    prompt = gr.Textbox(
        label="Prompt", placeholder="a cat in twemoji style", lines=1, max_length=LONGEST_PROMPT, elem_id="break-prompt"
    )
    hints = gr.HTML("", elem_id="break-ideas", js_on_load=IDEA)
    with gr.Accordion("Strength", open=False, elem_id="break-advanced", elem_classes="ce-advanced"):
        scale = gr.Slider(
            0, 2, 1.0, step=0.05, label="Strength of the erasures", info="1 is the erasure as it was scored.",
            elem_id="break-scale", buttons=[],
        )  # fmt: skip
    with gr.Row():
        go = gr.Button("Draw both", variant="primary", elem_id="break-go", elem_classes="ce-go")
        other = gr.Button("Another seed", elem_id="break-seed-new", elem_classes="ce-go2")
    status = gr.HTML(view.state("break-state", "idle"), elem_id="break-status")
    result = gr.HTML("", elem_id="break-result")
    before = gr.HTML("", elem_id="break-past")
    past = gr.State([])

    def refresh(chosen: list[str] | None) -> list[Any]:
        items = studio.library.items()
        known = {item.id for item in items}
        kept = [c for c in chosen or () if c in known] or [item.id for item in items[:1]]
        told = "" if items else view.message("Your library is empty: erase something first, then come back.")
        picked = [item for item in items if item.id in kept]
        return [gr.update(choices=choices(items), value=kept), ideas(picked), view.state("break-state", "idle", told)]

    def hint(chosen: list[str] | None) -> str:
        return ideas([item for item in studio.library.items() if item.id in (chosen or ())])

    def begin() -> str:
        return view.state(
            "break-state",
            "running",
            '<div class="ce-progress"><p>Drawing</p><div class="ce-track ce-unknown"><span></span></div></div>',
        )

    def draw(
        text: str, number: Any, chosen: Any, strength: Any, model: str, earlier: list[dict[str, Any]]
    ) -> list[Any]:
        try:
            drawn = studio.compare(text, number, chosen, strength, model)
            names = [name for item in studio.library.some(chosen) for name in item.targets]
            kinds = [c.get("kind") for item in studio.library.some(chosen) for c in item.report["concepts"]]
            sensitive = is_sensitive(text, *names, drawn.original_seen, drawn.erased_seen) or "violence" in kinds
            small = [
                view.figure(view.picture_data(image, view.SMALL), f"{word}: {text}", sensitive=sensitive)
                for word, image in (("original", drawn.original), ("erased", drawn.erased))
            ]
            earlier = [{"prompt": text, "pictures": small}, *earlier][: REMEMBERED + 1]
            html = both(drawn, text.strip(), int(number), sensitive)
            return [view.state("break-state", "done"), html, remembered(earlier), earlier]
        except Exception as error:
            told = view.message(sentence(error), bad=True)
            return [view.state("break-state", "failed", told), gr.skip(), gr.skip(), gr.skip()]

    inputs = [prompt, seed, adapter, scale, place.model, past]
    outputs = [status, result, before, past]
    for trigger in (go.click, prompt.submit):
        trigger(begin, None, status, **LIGHT).then(draw, inputs, outputs, **DRAWING)
    other.click(lambda: random.randrange(1_000_000), None, seed, **LIGHT).then(begin, None, status, **LIGHT).then(
        draw, inputs, outputs, **DRAWING
    )
    adapter.change(hint, adapter, hints, **LIGHT)
    hints.click(None, prompt, prompt, js="(old) => window.ceIdea || old", api_visibility="private")
    tab.select(refresh, adapter, [adapter, hints, status], **LIGHT)
