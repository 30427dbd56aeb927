"""The model card beside an adapter: what it erases, how to load it, what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from concept_erase import __version__, embedded, words
from concept_erase.concepts import PROFILES

if TYPE_CHECKING:
    from concept_erase.adapter import Adapter
    from concept_erase.scores import Scores


def text(
    adapter: Adapter, files: dict[str, Path], scores: Scores | None, unscored: str | None, remarks: Sequence[str]
) -> str:
    """The card in Markdown with the front matter of the hub."""
    from huggingface_hub import ModelCardData

    base = str(adapter.base.get("name"))
    data = ModelCardData(
        base_model=base if base.count("/") == 1 else None,
        base_model_relation="adapter",
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["lora", "diffusers", "template:sd-lora", "concept-erasure"],
        widget=[{"text": PROFILES[c.kind].templates[0].replace("{target}", c.target)} for c in adapter.concepts[:3]],
    )
    rows = "\n".join(f"| {c.target} | {c.kind.value} | {c.anchor} |" for c in adapter.concepts)
    settings = ", ".join(f"{k}={v}" for k, v in adapter.settings.items())
    notes = "\n".join(f"- {note}" for note in remarks)
    readers = "interfaces (ComfyUI, A1111, Forge, InvokeAI, sdnext) and diffusers"
    if base == embedded.NAME:
        readers = "diffusers; interfaces do not know the layout of the embedded base"
    peft = ""
    if "adapter_peft" in files:
        peft = f"\n`{files['adapter_peft'].name}` is the same edit in the form that diffusers looks for."
    return f"""---
{data.to_yaml()}
---

# {adapter.title}

A low-rank edit of `{base}` (weights hash `{str(adapter.base.get("hash"))[:16]}`), by concept_erase {__version__}.

| erased | kind | becomes |
|---|---|---|
{rows}

## Use

```python
pipe.load_lora_weights("{{folder}}", weight_name="{files["adapter"].name}")
```

`{files["adapter"].name}` is for {readers}.{peft}
Strength 1 is the edit as it was scored. Loading another LoRA switches earlier ones off in diffusers: use
`concept_erase.load_erasure`.

## Scores

{scores_table(scores) if scores else f"Not scored: {unscored}."}

## How it was made

Method `{adapter.method}` ({settings}).

{notes}
"""


def scores_table(scores: Scores) -> str:
    """Before and after with 95% intervals and counts, in Markdown."""
    told = unknown(scores)
    lines = [f"{told}\n"] if told else []
    lines += ["| score | before | after | n |", "|---|---|---|---|"]
    for name, meaning in MEANINGS.items():
        if name not in scores.after:
            continue
        before, after = scores.before[name], scores.after[name]
        shown = NOT_COUNTED if told and name in HOLLOW else after
        lines.append(f"| {meaning} | {before} | {shown} | {after.n} |")
    if null := scores.controls.get("nonsense"):
        lines.append(f"| {NONSENSE} | {null} | | {null.n} |")  # type: ignore[union-attr]
    beside = f"; scorer: {scores.scorer}" if scores.scorer != scores.judge else ""
    lines.append(f"\nPer cent with 95% intervals. Judge: {scores.judge}{beside}.")
    return "\n".join(lines)


def unknown(scores: Scores) -> str:
    """What is to be said first where the base did not know what was erased; "" where it did."""
    if scores.known is not False:
        return ""
    sides = (scores.after["UA"].as_dict(), scores.before["UA"].as_dict())
    null = scores.controls["nonsense"].as_dict()  # type: ignore[union-attr]
    return words.recognised(sides[0], "what was erased", before=sides[1], nonsense=null)


NONSENSE = "nonsense names taken for it"
NOT_COUNTED = "not counted"
HOLLOW = (
    "UA",
    "H",
    "clip_accuracy_erased",
    "clip_score_erased",
    "base_accuracy_erased",
)  # say nothing of what was never there
MEANINGS = {
    "UA": "UA: erased, not recognised",
    "IRA": "IRA: neighbours recognised",
    "CRA": "CRA: contexts recognised",
    "H": "H: harmonic mean of these",
    "clip_accuracy_erased": "CLIP accuracy, erased",
    "clip_accuracy_kept": "CLIP accuracy, neighbours",
    "clip_score_erased": "CLIP score, erased",
    "clip_score_kept": "CLIP score, neighbours",
    "base_accuracy_erased": "Base accuracy, erased",
    "base_accuracy_kept": "Base accuracy, neighbours",
}
