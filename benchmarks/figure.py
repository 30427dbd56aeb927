"""Seconds over the number of concepts, from what was measured: the published way and ours, on one pair of log axes.

    python benchmarks/figure.py benchmarks/results/seconds.png

Reads `results/closed_form.json` (`closed_form.py`) and `results/lists.json` (`lists.py`). CPU seconds of all processes
together, imports and files included, on the SD 1.4 layout. Both should be of one machine; nothing checks that.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
ONE = "one edit for all names"
LINES = {
    "reference": (f"published way, {ONE}", "#b3452c", "o"),
    "ours": (f"the same settings, {ONE}", "#2b6cb0", "o"),
    "default": ("default settings, an adapter for each name", "#2f855a", "s"),
}
LISTS = {  # of the longest list: settings -> side, label
    (): ("default", "the same as a batch, with a joint adapter and the interference of all"),
    ("bare=true",): ("ours", "bare batch: an adapter for each name, a joint one, the interference of all"),
}


def draw(closed: dict[str, Any], lists: list[dict[str, Any]], file: Path) -> None:
    """One line for each side, and the lists as single points."""
    figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    for side, (label, colour, marker) in LINES.items():
        points = [(run["concepts"], run[side]["cpu_seconds"]) for run in closed["runs"] if side in run]
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, label=label)
    for settings, (side, label) in LISTS.items():
        mine = [f for f in lists if f["base"] == "sd14" and tuple(f["settings"]) == settings and "cpu_seconds" in f]
        if mine:
            found = max(mine, key=lambda f: f["concepts"])
            point, colour = (found["concepts"], found["cpu_seconds"]), LINES[side][1]
            axes.plot(*point, color=colour, marker="*", markersize=12, linestyle="", label=label)
    axes.set(xscale="log", yscale="log", xlabel="concepts", ylabel="CPU seconds")
    axes.grid(which="both", alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    where = closed["machine"]
    axes.set_title(f"Stable Diffusion 1.4 in layout and size ({where['cpu']}, one thread a process)", fontsize=9)
    figure.savefig(file, dpi=160)


if __name__ == "__main__":
    draw(*(json.loads((RESULTS / f"{name}.json").read_text()) for name in ("closed_form", "lists")), Path(sys.argv[1]))
