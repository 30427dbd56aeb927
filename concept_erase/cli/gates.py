"""The command that teaches a gated pipeline to know concepts without their names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from concept_erase.cli.common import ModelOption, event, say


def gates(
    file: Annotated[Path, typer.Argument(help="Operator file, or the folder of an erasure by a closed form.")],
    model: ModelOption = None,
) -> None:
    """Fit the probes by which the gated pipeline knows a concept where no text is at hand.

    Without them an operator acts on prompts that hold the name; with them also on embeddings, and on other names of the
    same embedding. The file is written again.
    """
    from concept_erase import operators
    from concept_erase.files import atomic_write
    from concept_erase.model import open_model, source_of

    path = operators.file_in(file)
    base = open_model(model or source_of(operators.read(path).base))
    found = operators.add_probes(path, base)
    report = path.parent / "report.json"
    if report.is_file():  # which tells the sizes of all files, so that a batch knows whether they are whole
        told = json.loads(report.read_text(encoding="utf-8"))
        if path.name in told.get("bytes", {}):
            told["bytes"][path.name] = path.stat().st_size
            atomic_write(report, json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    for concept, gate in zip(found.concepts, found.gates, strict=True):
        hits, alarms = ("{} of {}".format(*pair) for pair in (gate.hits, gate.alarms))
        told_of = f"found in {hits} prompts with it and {alarms} without it"
        if gate.direction is None:
            say(f"warning: {concept.target!r} stays known by its words alone: a probe is {told_of}.")
        else:
            say(f"{concept.target!r}: {told_of}, on prompts the probe did not see.")
    say(f"operator: {path}")
    event(event="done", file=str(path))
