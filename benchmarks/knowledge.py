"""Which names the embedded base knows: every style, a spread of objects, and names it never saw.

    python benchmarks/knowledge.py --json benchmarks/results/knowledge.json

Each is judged as `concept-erase erase NAME --kind KIND --pictures 32` judges it before it erases anything.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from concept_erase import Concept, Kind, embedded, knowledge, open_model
from concept_erase.names import same_name
from concept_erase.scores import Judges
from concept_erase.surroundings import spread

NEVER = {
    Kind.STYLE: (
        "Van Gogh", "Claude Monet", "Vincent van Gogh", "steampunk", "watercolor", "Studio Ghibli", "ukiyo-e",
        "\N{GRINNING FACE}\N{PARTY POPPER}", "فان غوخ", "葛飾北斋", "Ван Гог",
        "twemoj", "pixle art", "blobb", "3d", "emoji",
    ),
    Kind.OBJECT: (
        "zebra", "Mickey Mouse", "unicorn horn", "violin", "Eiffel Tower", "\N{SLICE OF PIZZA}\N{SNAIL}", "حصان", "kat",
    ),
    Kind.IDENTITY: ("Barack Obama", "Elon Musk"),
    Kind.VIOLENCE: ("guillotine", "swastika", "bommb"),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=12, help="harmless ones, evenly over the vocabulary")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    model, console = open_model(), Console()
    known = [Concept(name, Kind.STYLE) for name in embedded.styles()]
    known += [Concept(name, Kind.OBJECT) for name in spread(embedded.objects(violent=False), options.objects)]
    known += [Concept(name, Kind.VIOLENCE) for name in spread(embedded.objects(violent=True), 6)]
    vocabulary = (*embedded.styles(), *embedded.objects())
    never = [
        Concept(n, kind) for kind, names in NEVER.items() for n in names if not any(same_name(n, v) for v in vocabulary)
    ]
    machine = f"{platform.processor() or platform.machine()}, torch {torch.__version__}"
    rows = []
    table = Table("name", "kind", "in the vocabulary", "state", "its pictures", "nonsense names", "difference", "s")
    for concept in (*never, *known):
        started = time.monotonic()
        found = knowledge.look(model, Judges(model, [concept], None), [concept], 32).found[0]
        seconds = round(time.monotonic() - started, 1)
        row = {"kind": concept.kind.value, "vocabulary": concept in known, **found.as_dict(), "seconds": seconds}
        rows.append(row)
        cells = (concept.target, concept.kind, "yes" if row["vocabulary"] else "no", found.state)
        table.add_row(*cells, str(found.own), str(found.null), str(found.difference), str(seconds))
        if options.json:  # as it goes: it takes long
            text = json.dumps({"machine": machine, "rows": rows}, indent=1, ensure_ascii=False)
            options.json.write_text(text + "\n", encoding="utf-8")
        print(f"{concept.target}: {found.state}, {found.own}, {found.null}, {seconds} s", file=sys.stderr, flush=True)
    console.print(table)
    right = {side: [r["state"] == ("known" if side else "unknown") for r in rows if r["vocabulary"] is side]
             for side in (True, False)}  # fmt: skip
    console.print(f"known: {sum(right[True])} of {len(right[True])}; never seen: {sum(right[False])} of "
                  f"{len(right[False])} found unknown")  # fmt: skip


if __name__ == "__main__":
    main()
