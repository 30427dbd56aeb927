"""Variants of the closed-form edit and the trained eraser on the embedded base, judged on templates they never saw.

    python benchmarks/variants.py --pictures 200 --json benchmarks/results/variants.json

The first row of each concept is the published form: the bare name, its last token, onto the published kind of anchor.
"""

import argparse
import json
import platform
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from concept_erase import Concept, Kind, anchors, erase, open_model
from concept_erase.methods import Method
from concept_erase.methods.encoder import Encoder, Metric
from concept_erase.methods.uce import UCE
from concept_erase.streams import Tokens

PUBLISHED = UCE(tokens=Tokens.SUBJECT, bare=True, ridge=0.5, strength=1.0, rank=None)


def variants(concept: Concept, neutral: str, others: tuple[str, ...]) -> list[tuple[str, Concept, Method]]:
    """(label, concept with anchor, method); `concept` has the anchor that is chosen when nothing is said."""

    def onto(anchor: str, preserve: tuple[str, ...] = ()) -> Concept:
        return Concept(concept.target, concept.kind, anchor, preserve)

    chosen = concept.anchor
    rows: list[tuple[str, Concept, Method]] = [
        (f"published: bare name, last token, onto {neutral!r}", onto(neutral, others), PUBLISHED),
        (f"bare name, last token, onto {chosen!r}", onto(chosen, others), PUBLISHED),
        *((f"uce, tokens={t}", concept, UCE(tokens=t)) for t in Tokens),
        *((f"uce, rank={r}", concept, UCE(rank=r)) for r in (1, 4, None)),
        ("uce, one context, few preserved", concept, UCE(contexts=1, preserve_prompts=20)),
        (f"uce, onto {neutral!r}", onto(neutral), UCE()),
        ("encoder", concept, Encoder()),
        ("encoder, metric=plain", concept, Encoder(metric=Metric.PLAIN)),
    ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200, help="of each group")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--brief", action="store_true", help="only the published form, and which tokens move")
    parser.add_argument("--only", nargs="*", choices=["twemoji", "bomb"], default=["twemoji", "bomb"])
    options = parser.parse_args()
    model, console = open_model(), Console()
    beds = {
        "twemoji": (Concept("twemoji", Kind.STYLE), "art", ("noto", "blob", "openmoji", "fluent")),
        "bomb": (Concept("bomb", Kind.VIOLENCE), "art", ("cat", "car", "knife", "skull")),
    }
    figures = {"machine": f"{platform.processor() or platform.machine()}, torch {torch.__version__}", "rows": []}
    for target in options.only:
        concept, neutral, others = beds[target]
        concept, reason = anchors.choose(model, concept)
        console.print(reason, highlight=False, markup=False)
        table = Table(title=f"{target}: UA / IRA / CRA in per cent, n = {options.pictures} each")
        for heading in ("edit", "UA", "IRA", "CRA", "rank", "undone", "damage"):
            table.add_column(heading)
        rows = variants(concept, neutral, others)
        for label, row_concept, method in (rows[0], *rows[2:5]) if options.brief else rows:
            result = erase(row_concept, model, method, n=options.pictures)
            before, after = result.scores.before, result.scores.after
            if not table.rows:
                table.add_row("the base itself", *(f"{before[s].value:.1f}" for s in ("UA", "IRA", "CRA")))
                base = {s: before[s].as_dict() for s in ("UA", "IRA", "CRA", "H")}
                figures["rows"].append({"target": target, "edit": "the base itself", "scores": base})
            values = [f"{after[s].value:.1f}" for s in ("UA", "IRA", "CRA")]
            measures = [f"{result.measures[m]:.2f}" for m in ("undone", "damage")]
            table.add_row(label, *values, str(result.adapter.rank), *measures)
            console.print(label, *values, highlight=False, markup=False)
            scores = {s: after[s].as_dict() for s in ("UA", "IRA", "CRA", "H")}
            row = {"target": target, "edit": label, "rank": result.adapter.rank, "scores": scores}
            figures["rows"].append({**row, "measures": result.measures})
        console.print(table)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
