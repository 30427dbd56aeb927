"""Does `recognise` tell the embedded generator's styles from those that it never saw? Fits and judges its classifier.

    pip install '.[recipe]' scikit-image scikit-learn     # the last two for their sample photographs
    python benchmarks/styles.py --work DIR                # fetches icon sets by npm; about half an hour on one core
    python benchmarks/styles.py --work DIR --write        # also writes concept_erase/known_styles.json

Fitted on: half of each style's real art and of the generator's own drawings, against the foreign styles of
`styles_art.CALIBRATION`. The bound is found on these by leaving out groups of styles and objects in turn. Judged on:
the other half, and on foreign styles that had no part in any of it. A question is a set of pictures that had the same
treatment, as a person's uploads have.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import styles_art as art
import torch
from PIL import Image
from torch import Tensor

from concept_erase import embedded, open_model
from concept_erase.generate import Sampling, generate
from concept_erase.known_styles import FILE, KnownStyles, features, fit
from concept_erase.statistics import rate

PICTURES, ART = 16, 40  # of each style and source; of the art that the generator was trained on
DRAWN = 24  # by the generator, in each style
SIZES = (3, 5, 7, 12)
DRAWS = 6  # sets of each style, source, treatment and size
FOLDS = 4
FALSE_ALARMS = 0.025  # aimed at while calibrating: half of what is promised
SHARES = {"art": 0.45, "drawn": 0.4, "other art": 0.15}  # of all that is known, while fitting
FOREIGN = ("foreign", "held out")
PROMPTS = ("{s} art of a {o}", "the {s} {o} emoji", "a {o} drawn in {s} style", "a {o} in {s} style", "a {s} {o}")


@dataclass(eq=False)
class Source:
    """Pictures of one style, with features under each treatment.

    Attributes:
        name: Of the style.
        origin: "art", "other art" (objects that the generator never saw), "drawn" by the generator, or "foreign",
            "held out", "related".
        found: Treatment -> (n, d).
    """

    name: str
    origin: str
    found: dict[str, Tensor]

    @property
    def known(self) -> bool:
        return self.origin in ("art", "other art", "drawn")


def pictures(work: Path) -> dict[tuple[str, str], list[Image.Image]]:
    """All pictures by origin and style."""
    art.fetch(work)
    made: dict[tuple[str, str], list[Image.Image]] = {}
    for i, style in enumerate(embedded.styles()):
        made["art", style] = art.known_art(work, i, ART)
        made["other art", style] = art.known_art(work, i, PICTURES, known=False)
    groups = (
        ("foreign", art.CALIBRATION, art.DRAWN, art.PHOTOGRAPHS),
        ("held out", art.HELD_OUT, art.DRAWN_HELD_OUT, art.PHOTOGRAPHS_HELD_OUT),
        ("related", art.RELATED, {}, {}),
    )
    for origin, icons, kinds, photographs in groups:
        made |= {(origin, name): art.icon_pictures(work, one, PICTURES) for name, one in icons.items()}
        made |= {(origin, name): art.drawn(kind, PICTURES) for name, kind in kinds.items()}
        made |= {(origin, name): art.photographs(files, PICTURES) for name, files in photographs.items()}
    model, rng = open_model(), random.Random(5)
    for s, style in enumerate(embedded.styles()):
        things = rng.sample(embedded.objects(), DRAWN)
        prompts = [PROMPTS[i % len(PROMPTS)].format(s=style, o=thing) for i, thing in enumerate(things)]
        seeds = [5000 + 100 * s + i for i in range(len(prompts))]
        made["drawn", style] = generate(model, prompts, seeds, sampling=Sampling(25, batch=12))
    return made


def sources(work: Path) -> list[Source]:
    """Features of everything, kept in the work folder; delete `features.pt` there when a style's pictures change."""
    kept = work / "features.pt"
    rows = torch.load(kept) if kept.is_file() else []
    known = {(origin, name) for name, origin, _ in rows}
    for (origin, name), images in pictures(work).items():
        if (origin, name) in known:
            continue
        large = [im if im.width == art.SIDE else im.resize((art.SIDE,) * 2, Image.Resampling.BICUBIC) for im in images]
        found = {}
        for treatment, treat in art.TREATMENTS.items():
            rng = random.Random(f"{origin} {name} {treatment}")
            found[treatment] = features([treat(image, rng) for image in large])
        rows.append((name, origin, found))
        print(origin, name, len(images), flush=True)
    torch.save(rows, kept)
    return [Source(*row) for row in rows]


def half(source: Source, second: bool) -> Source:
    """Every other picture."""
    return Source(source.name, source.origin, {t: f[int(second) :: 2] for t, f in source.found.items()})


def fitted(chosen: list[Source]) -> tuple[Tensor, Tensor]:
    """The classifier: all styles count alike, and all foreign ones together as much as all known."""
    styles = embedded.styles()
    foreign = sum(not s.known for s in chosen)
    found, labels, weights = [], [], []
    for s in chosen:
        rows = torch.cat(list(s.found.values()))
        found.append(rows)
        labels.append(torch.full((len(rows),), styles.index(s.name) if s.known else len(styles)))
        share = SHARES[s.origin] / len(styles) if s.known else 1 / foreign
        weights.append(torch.full((len(rows),), share / len(rows)))
    return fit(torch.cat(found), torch.cat(labels), torch.cat(weights), len(styles) + 1)


@dataclass(frozen=True)
class Question:
    """A set of pictures and what it was answered: the nearest style and its mean share."""

    source: Source
    treatment: str
    size: int
    nearest: str
    share: float


def asked(chosen: list[Source], judge: KnownStyles) -> list[Question]:
    """Sets of each size from each source under each treatment."""
    made = []
    for s in chosen:
        rng = random.Random(f"{s.origin} {s.name}")
        for treatment, rows in s.found.items():
            shares = judge.of(rows)
            for size in SIZES:
                for _ in range(DRAWS):
                    picked = shares[rng.sample(range(len(rows)), min(size, len(rows)))].mean(0)
                    best = int(picked.argmax())
                    made.append(Question(s, treatment, size, judge.styles[best], float(picked[best])))
    return made


def crossed(chosen: list[Source]) -> list[Question]:
    """Questions to classifiers that saw neither the foreign style nor the known picture that is asked about."""
    foreign = [s for s in chosen if not s.known]
    random.Random(1).shuffle(foreign)
    made = []
    for fold in range(FOLDS):
        left_out = foreign[fold::FOLDS]
        known = [s for s in chosen if s.known]
        kept = [_picked(s, fold, False) for s in known] + [s for s in foreign if s not in left_out]
        weight, bias = fitted(kept)
        judge = KnownStyles(embedded.styles(), weight, bias, 0, (0, 0), (0, 0))
        made += asked([_picked(s, fold, True) for s in known] + left_out, judge)
        print(f"fold {fold + 1} of {FOLDS}", flush=True)
    return made


def _picked(source: Source, fold: int, inside: bool) -> Source:
    """The pictures of a fold, or all others."""
    found = {}
    for treatment, rows in source.found.items():
        at = torch.arange(len(rows)) % FOLDS == fold
        found[treatment] = rows[at if inside else ~at]
    return Source(source.name, source.origin, found)


def bounds(questions: list[Question]) -> tuple[float, tuple[float, float], tuple[float, float]]:
    """Where "knows" begins, and the middle 90% of shares of known and of foreign sets.

    A style wrongly called known is worse than one that is missed, so a tenth of the known sets is given up here, where
    each classifier has seen less than the one that ships; what that costs is measured on the sets that are held out.
    """
    foreign = torch.tensor([q.share for q in questions if not q.source.known])
    own = torch.tensor([q.share for q in questions if q.source.origin in ("art", "drawn")])
    knows_from = max(float(foreign.quantile(1 - FALSE_ALARMS)), float(own.quantile(0.10)))
    ends = torch.tensor([0.05, 0.95])
    return round(knows_from, 3), _two(own.quantile(ends)), _two(foreign.quantile(ends))


def _two(values: Tensor) -> tuple[float, float]:
    return round(float(values[0]), 3), round(float(values[1]), 3)


def table(questions: list[Question], knows_from: float) -> list[dict]:
    """For each style and origin: how many sets were answered "knows", and rightly."""
    groups = defaultdict(list)
    for q in questions:
        groups[q.source.origin, q.source.name].append(q)
    rows = []
    for (origin, name), group in groups.items():
        knows = [q for q in group if q.share >= knows_from]
        shares = sorted(q.share for q in group)
        row = {"style": name, "origin": origin, "sets": len(group), "knows": len(knows)}
        if group[0].source.known:
            row["rightly"] = sum(q.nearest == name for q in knows)
        else:
            nearest = [q.nearest for q in group]
            row["nearest"] = max(set(nearest), key=nearest.count)
        rows.append({**row, "share": [round(shares[int(p * (len(shares) - 1))], 3) for p in (0.05, 0.5, 0.95)]})
    return rows


def totals(questions: list[Question], knows_from: float) -> dict:
    """Rates with intervals: in all, by treatment and by size."""

    def told(chosen: list[Question], origins: tuple[str, ...]) -> dict:
        picked = [q for q in chosen if q.source.origin in origins]
        known = origins[0] not in FOREIGN
        hits = sum(q.share >= knows_from and (not known or q.nearest == q.source.name) for q in picked)
        return {"sets": len(picked), "knows": hits, **rate(hits, len(picked)).as_dict()}

    result = {}
    groups = {
        "known styles found": ("art", "drawn"),
        "known styles found, other objects": ("other art",),
        "false alarms": FOREIGN,
    }
    for label, origins in groups.items():
        result[label] = {
            "all": told(questions, origins),
            **{t: told([q for q in questions if q.treatment == t], origins) for t in art.TREATMENTS},
            **{f"{n} pictures": told([q for q in questions if q.size == n], origins) for n in SIZES},
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where packages and features are kept")
    parser.add_argument("--write", action="store_true", help=f"write {FILE.name} into the package")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "styles.json")
    options = parser.parse_args()
    every = sources(options.work)
    first = [half(s, False) for s in every if s.known] + [s for s in every if s.origin == "foreign"]
    second = [half(s, True) for s in every if s.known] + [s for s in every if s.origin == "held out"]
    calibrating = crossed(first)
    knows_from, own, foreign = bounds(calibrating)
    weight, bias = fitted(first)
    judge = KnownStyles(embedded.styles(), weight, bias, knows_from, own, foreign)
    judged = asked(second, judge)
    result = {
        "knows_from": knows_from,
        "own": own,
        "foreign": foreign,
        "calibration": totals(calibrating, knows_from),
        "held out": totals(judged, knows_from),
        "styles": table(judged, knows_from),
        "related": table(asked([s for s in every if s.origin == "related"], judge), knows_from),
        "calibration styles": table(calibrating, knows_from),
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    for row in [*result["styles"], *result["related"]]:
        print(f"{row['origin']:10} {row['style']:36} {row['knows']:4} of {row['sets']}  {row['share']} ", end="")
        print(row.get("rightly", row.get("nearest")))
    print(json.dumps({k: {n: v["all"] for n, v in result[k].items()} for k in ("calibration", "held out")}, indent=1))
    print("knows from", knows_from, "own", own, "foreign", foreign)
    if options.write:
        judge.save(FILE, {n: v["all"] for n, v in result["held out"].items()})


if __name__ == "__main__":
    main()
