"""The base as its own judge, beside the classifier that knows the embedded base: how often do they agree?

    python benchmarks/self_judge.py --json benchmarks/results/self_judge.json

Pictures of known styles and things, told apart from all that the base knows; pictures after erasures; and pictures of
names that mean nothing. The judge beside it is the embedded classifier, which reads no text and knows no generator. A
second run measures what is not in the file yet.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from concept_erase import Concept, Kind, embedded, erase, open_model
from concept_erase.attach import attached
from concept_erase.concepts import fill
from concept_erase.files import atomic_write
from concept_erase.generate import Sampling, generate
from concept_erase.model import Model
from concept_erase.names import same_name
from concept_erase.scores import Judges, Shot, nonsense_shots
from concept_erase.statistics import kappa, rate
from concept_erase.surroundings import profile

ERASED = (Concept("twemoji"), Concept("guitar", Kind.OBJECT), Concept("bomb", Kind.VIOLENCE))


def shots_of(model: Model, n: int, targets: Sequence[Concept] = ()) -> list[Shot]:
    """Pictures of styles and things as shots of the style; every fourth thing is violent. Of targets, each in turn."""
    dice = random.Random(n)
    templates = profile(model, Kind.STYLE).unseen
    found = []
    for i in range(n):
        style = embedded.styles()[i % 8]
        thing = dice.choice(embedded.objects(violent=i // 8 % 4 == 3))
        if targets:
            target = targets[i % len(targets)]
            style, thing = (target.target, thing) if target.kind is Kind.STYLE else (style, target.target)
        prompt = fill(templates[i // 8 % len(templates)], style, thing)
        found.append(Shot(prompt, 70_000 + i, style, thing, bool(targets), True))
    return found


def turned(shot: Shot, *, told: bool = True) -> Shot:
    """The same picture as a shot of the thing."""
    return Shot(shot.prompt, shot.seed, shot.context, shot.concept if told else "", shot.erased, not shot.style)


def untold(shot: Shot) -> Shot:
    return Shot(shot.prompt, shot.seed, shot.concept, "", shot.erased, shot.style)


def beside(judges: Judges, shots: Sequence[Shot], images: Sequence[Image.Image], *, asked: bool) -> dict[str, Any]:
    """What the classifier and the base take the same pictures for.

    Args:
        asked: Whether what the prompts ask for is the truth.
    """
    started = time.process_time()
    looked = judges.look(shots, images)
    seconds = (time.process_time() - started) / len(shots)
    agreed = sum(same_name(a, b) for a, b in zip(looked.concepts, looked.base_concepts, strict=True))
    found = {
        "pictures": len(shots),
        "agreement": rate(agreed, len(shots)).as_dict(),
        "kappa": round(kappa(looked.concepts, looked.base_concepts), 4),
        "cpu_seconds_a_picture": round(seconds, 3),
    }
    for who, names in (("judge", looked.concepts), ("base", looked.base_concepts)):
        right = sum(same_name(name, shot.concept) for name, shot in zip(names, shots, strict=True))
        found[f"{who}_{'right' if asked else 'taken_for_it'}"] = rate(right, len(shots)).as_dict()
    return found


def measured(n: int, sampling: Sampling, found: dict[str, Any]) -> dict[str, Any]:
    """All groups of pictures, each by both judges.

    Args:
        found: Groups that were measured before; they are not measured again.
    """
    model = open_model()
    judges = Judges(model, ERASED, "base")

    def drawn(shots: Sequence[Shot], variant: str = "") -> list[Image.Image]:
        return generate(model, [s.prompt for s in shots], [s.seed for s in shots], sampling=sampling, variant=variant)

    shots = shots_of(model, n)
    started = time.process_time()
    images = drawn(shots)
    found.setdefault("drawing_cpu_seconds_a_picture", round((time.process_time() - started) / n, 3))

    def keep(name: str, shots: Sequence[Shot], images: Sequence[Image.Image], asked: bool = True) -> None:
        if name in found:
            return
        found[name] = beside(judges, shots, images, asked=asked)
        print(name, found[name], flush=True)

    keep("styles, thing told", shots, images)
    keep("styles, nothing told", [untold(s) for s in shots], images)
    keep("things, style told", [turned(s) for s in shots], images)
    some = shots[::3]
    keep("things, nothing told", [turned(s, told=False) for s in some], images[::3])
    violent = [
        (turned(s), i) for s, i in zip(shots, images, strict=True) if s.context in embedded.objects(violent=True)
    ]
    keep("violent things, style told", [s for s, _ in violent], [i for _, i in violent])
    found["violent things, style told"].pop("cpu_seconds_a_picture", None)  # of those above: they were not judged again
    for concept in ERASED:
        adapter = erase(concept, n=0).adapter
        after = shots_of(model, n // 4, [concept])
        with attached(model.pipe, adapter):
            images = drawn(after, adapter.digest)
        style = concept.kind is Kind.STYLE
        mine, rest = (after, [turned(s) for s in after]) if style else ([turned(s) for s in after], after)
        keep(f"{concept.target} erased: what was asked for", mine, images, asked=False)
        keep(f"{concept.target} erased: the rest, told what was asked for", rest, images)
        became = judges.look(mine, images).base_concepts
        rest = [Shot(s.prompt, s.seed, s.concept, name, True, s.style) for s, name in zip(rest, became, strict=True)]
        keep(f"{concept.target} erased: the rest, told what it became", rest, images)
    for concept in ERASED[:2]:
        if f"nonsense taken for {concept.target}" in found:
            continue
        null = nonsense_shots(model, concept)
        images = drawn(null)
        looked = judges.look(null, images)
        row = beside(judges, null, images, asked=False)
        del row["cpu_seconds_a_picture"]  # they were judged just before
        for who, names in (("judge", looked.concepts), ("base", looked.base_concepts)):
            taken = sum(same_name(name, concept.target) for name in names)
            row[f"{who}_taken_for_it"] = rate(taken, len(null)).as_dict()
        found[f"nonsense taken for {concept.target}"] = row
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=96, help="of known styles and things; the other groups follow")
    parser.add_argument("--steps", type=int, default=8, help="denoising steps")
    parser.add_argument("--json", type=Path, help="file for the result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"pictures": options.pictures, "steps": options.steps}
    there = json.loads(options.json.read_text()) if options.json and options.json.is_file() else {}
    before = there["found"] if there.get("settings") == settings else {}
    found = measured(options.pictures, Sampling(options.steps), before)
    table = Table(title="Per cent: the embedded classifier and the base itself on the same pictures")
    for title in ("pictures", "n", "agreement", "kappa", "classifier", "base", "CPU s a picture"):
        table.add_column(title, justify="left" if title == "pictures" else "right")
    for name, row in found.items():
        if isinstance(row, dict):
            values = [f"{row[k]['value']:.1f}" for k in row if k.startswith(("judge_", "base_"))]
            agreement = "{value:.1f} [{low:.1f}, {high:.1f}]".format(**row["agreement"])
            seconds = f"{row['cpu_seconds_a_picture']:.2f}" if "cpu_seconds_a_picture" in row else ""
            table.add_row(name, str(row["pictures"]), agreement, f"{row['kappa']:.2f}", *values, seconds)
    Console().print(table)
    if options.json:
        machine = {"cpu": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": 1}
        result = {"settings": settings, "machine": machine, "found": found}
        atomic_write(options.json, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
