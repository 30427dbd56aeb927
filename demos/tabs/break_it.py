"""Try to break it: any prompt on the original and the erased generator, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from .. import verdict, view
from ..library import Item
from ..studio import LONGEST_PROMPT, whole
from .common import DRAWING, LIGHT, Place, fold, sentence

IDEA = (
    "element.addEventListener('click', (e) => { const t = e.target.closest('[data-prompt]'); if (!t) return; "
    "window.ceIdea = t.dataset.prompt; trigger('click'); })"
)
WAS = "(ids) => { window.cePickedWas = JSON.stringify(ids ?? []); }"
OFFER = "(ids, told) => window.ceOffer(ids, told)"
NEW_SEED = "() => Math.floor(Math.random() * 1e6)"
REMEMBERED = 6
SEEDS = 4  # that an attempt is tried on


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


def both(tries: Sequence[verdict.Try], prompt: str, title: str, words: Sequence[str]) -> str:
    """The verdict above the pictures of each seed.

    Args:
        title: Of what was erased.
        words: The prompt and what was erased, which decide about blurring where no judge looks at the pictures.
    """
    headline, told = verdict.verdict(tries, title)
    single = len(tries) == 1
    pairs = "".join(_pair(t, prompt, words, single) for t in tries)
    body = f'<div class="ce-both">{pairs}</div>' if single else f'<div class="ce-tries">{pairs}</div>'
    seed = f"seed {tries[0].seed}" + ("" if single else f" to {tries[-1].seed}")
    return (
        f'<div class="ce-result"><div class="ce-verdict" id="break-verdict"><h3>{view.esc(headline)}</h3>'
        f"<p>{view.esc(told)}</p></div>{body}"
        f'<p class="ce-prompt">{view.esc(prompt)} <span>{seed}</span></p></div>'
    )


def _pair(t: verdict.Try, prompt: str, words: Sequence[str], single: bool) -> str:
    """Original and erased of one seed, each with what the judge sees in it."""
    sides = []
    for side, image, seen in (
        ("original", t.drawn.original, t.drawn.original_seen), ("erased", t.drawn.erased, t.drawn.erased_seen)
    ):  # fmt: skip
        name = f' id="break-{side}"' if single else ""
        data = view.picture_data(image, view.LARGE if single else view.MEDIUM)
        figure = view.figure(data, f"{side}: {prompt}", side.capitalize(), sensitive=verdict.veiled(seen, *words))
        told = f'<p class="ce-quiet">the judge sees: {view.esc(seen)}</p>' if seen else ""
        sides.append(f"<div{name}>{figure}{told}</div>")
    if single:
        return "".join(sides)
    came = {True: "came through", False: "held", None: "look for yourself"}[t.after]
    if t.before is False and t.after is False:
        came = "on neither side"
    mark = f'<p class="ce-try{" ce-gone" if t.after else ""}"><span>seed {t.seed}: {came}</span></p>'
    return f'<section class="ce-tried">{mark}<div class="ce-couple">{"".join(sides)}</div></section>'


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
    with fold("Strength", "break-advanced"):
        scale = gr.Slider(
            0, 2, 1.0, step=0.05, label="Strength of the erasures", info="1 is the erasure as it was scored.",
            elem_id="break-scale", buttons=[],
        )  # fmt: skip
    with gr.Row():
        go = gr.Button("Draw both", variant="primary", elem_id="break-go", elem_classes="ce-go")
        count = gr.Button(f"Try {SEEDS} seeds", elem_id="break-count", elem_classes="ce-go2")
        other = gr.Button("Another seed", elem_id="break-seed-new", elem_classes="ce-go2")
    status = gr.HTML(view.state("break-state", "idle"), elem_id="break-status")
    result = gr.HTML("", elem_id="break-result")
    before = gr.HTML("", elem_id="break-past")
    past = gr.State([])

    known = gr.JSON(visible=False)

    def refresh(looked: str) -> list[Any]:
        """What there is to pick from; what is picked is decided in the page, see `OFFER`."""
        items = studio.library.items()
        return [gr.update(choices=choices(items)), {"known": [item.id for item in items], "looked": looked}]

    def hint(chosen: list[str] | None) -> str:
        items = studio.library.items()
        picked = [item for item in items if item.id in (chosen or ())]
        if picked or items:
            return ideas(picked)
        return view.message("Your library is empty: erase something first, then come back.")

    def begin() -> str:
        return _running("Drawing")

    def draw(seeds: int, text: str, number: Any, chosen: Any, strength: Any, model: str, past: Any) -> Iterator[Any]:
        try:
            start = whole(number, "seed", 0, 2**32 - 1)
            last = min(start + seeds, 2**32)
            tries = []
            items = studio.library.some(chosen) if chosen else []
            targets = [name for item in items for name in item.targets]
            for seed in range(start, last):
                if seeds > 1:
                    told = _running(f"Drawing seed {seed}: {seed - start + 1} of {seeds}", (seed - start) / seeds)
                    yield [told, gr.skip(), gr.skip(), gr.skip()]
                tries.append(verdict.tried(seed, studio.compare(text, seed, chosen, strength, model), targets))
            title = " or ".join([", ".join(targets[:-1]), targets[-1]] if len(targets) > 1 else targets)
            html = both(tries, text.strip(), title, [text, *targets])
            past = [{"prompt": text, "pictures": _small(tries[0], text, targets)}, *past][: REMEMBERED + 1]
            yield [view.state("break-state", "done"), html, remembered(past), past]
        except Exception as error:
            told = view.message(sentence(error), bad=True)
            yield [view.state("break-state", "failed", told), gr.skip(), gr.skip(), gr.skip()]

    def one(*values: Any) -> Iterator[Any]:
        yield from draw(1, *values)

    def several(*values: Any) -> Iterator[Any]:
        yield from draw(SEEDS, *values)

    inputs = [prompt, seed, adapter, scale, place.model, past]
    outputs = [status, result, before, past]
    private: dict[str, Any] = {"api_visibility": "private"}
    for trigger in (go.click, prompt.submit):
        trigger(begin, None, status, **LIGHT).then(one, inputs, outputs, **DRAWING)
    count.click(begin, None, status, **LIGHT).then(several, inputs, outputs, **DRAWING)
    other.click(None, None, seed, js=NEW_SEED, **private).then(begin, None, status, **LIGHT).then(
        one, inputs, outputs, **DRAWING
    )
    adapter.change(hint, adapter, hints, **LIGHT)
    hints.click(None, prompt, prompt, js="(old) => window.ceIdea || old", **private)
    tab.select(None, adapter, None, js=WAS, **private).then(refresh, place.looked, [adapter, known], **LIGHT).then(
        None, [adapter, known], adapter, js=OFFER, **private
    ).then(hint, adapter, hints, **LIGHT)


def _running(words: str, share: float | None = None) -> str:
    kind, width = (" ce-unknown", 4.0) if share is None else ("", 100 * share)
    return view.state(
        "break-state",
        "running",
        f'<div class="ce-progress"><p>{view.esc(words)}</p><div class="ce-track{kind}">'
        f'<span style="width:{width:.0f}%"></span></div></div>',
    )


def _small(t: verdict.Try, prompt: str, targets: Sequence[str]) -> list[str]:
    """A pair as it is remembered."""
    sides = (("original", t.drawn.original, t.drawn.original_seen), ("erased", t.drawn.erased, t.drawn.erased_seen))
    return [
        view.figure(
            view.picture_data(image, view.SMALL), f"{side}: {prompt}", sensitive=verdict.veiled(seen, prompt, *targets)
        )
        for side, image, seen in sides
    ]
