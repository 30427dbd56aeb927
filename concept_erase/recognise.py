"""Does a generator know a style? Own pictures beside what the generator draws in each style, by the CLIP scorer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from PIL import Image
from torch import Tensor

from concept_erase import embedded
from concept_erase.clip import Scorer, load_scorer
from concept_erase.concepts import PROFILES, Kind, fill
from concept_erase.errors import InputError, MissingModelError
from concept_erase.generate import Sampling, generate
from concept_erase.methods import Progress
from concept_erase.model import Model, Source, open_model
from concept_erase.scores import STYLE_PROBES

TEMPLATES = ("a {context} in {target} style", "an icon of a {context}, {target} style", "a {target} {context}")
OBJECTS = (
    "cat", "car", "house", "pizza", "tulip", "guitar", "rocket", "penguin", "umbrella", "crown", "clock", "mushroom",
    "tree", "dog", "boat", "apple", "lamp", "bird", "horse", "bridge", "chair", "flower", "castle", "mountain",
)  # fmt: skip
DRAWS = 200  # random sets behind each calibrated bound
MOST = 500  # pictures of one question


class Verdict(StrEnum):
    """How near own pictures are to the nearest style of a generator."""

    KNOWS = "knows"
    SIMILAR = "similar"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Recognition:
    """The answer, with what it rests on.

    A picture's closeness to a style is the mean cosine to the generator's own pictures of it, after what all styles
    share was taken away; that of a set is the mean over its pictures.

    Attributes:
        verdict: "knows": the set is as close as the style's own pictures are to each other (5% quantile, leave-one-out)
            and closer than a style that the generator lacks gets to its nearest (95% quantile, leaving out one style
            at a time). "similar": at least as close as such a lacking style usually is. "unknown": neither.
        nearest: The style that it is about.
        ranking: All styles with their closeness, nearest first.
        closeness: Of the nearest style.
        knows_from, similar_from: The two bounds.
        named: How many of the pictures the scorer names so from text alone.
        pictures: How many own pictures there were.
    """

    verdict: Verdict
    nearest: str
    ranking: tuple[tuple[str, float], ...]
    closeness: float
    knows_from: float
    similar_from: float
    named: int
    pictures: int


@dataclass(frozen=True, eq=False)
class Album:
    """What a generator draws in each style, as the scorer sees it.

    Attributes:
        styles: Names.
        images: For each style its pictures.
        centre: (d,) what all styles share.
        vectors: For each style (n, d) unit vectors around that centre.
    """

    styles: tuple[str, ...]
    images: tuple[list[Image.Image], ...]
    centre: Tensor
    vectors: tuple[Tensor, ...]


def album(
    model: Source = None,
    *,
    scorer: str | None = None,
    styles: Sequence[str] | None = None,
    n: int = 12,
    sampling: Sampling = Sampling(),
    progress: Progress | None = None,
) -> Album:
    """Draw n pictures in each style; the same every time, so the cache serves them again.

    Args:
        model: None for the embedded generator.
        scorer: As in `score`; needed on other generators than the embedded one.
        styles: Names; the embedded generator's own, or the built-in list, when None.
    Raises:
        InputError: fewer than three styles or four pictures: nothing could be calibrated.
        MissingModelError: no scorer was named for another generator.
    """
    model = open_model(model)
    judge = _scorer(model, scorer)
    names = tuple(styles or (embedded.styles() if model.is_embedded else PROFILES[Kind.STYLE].neighbours))
    if len(names) < 3 or n < 4:
        raise InputError(f"{len(names)} styles of {n} pictures cannot be calibrated; use at least 3 of 4.")
    known = embedded.objects() if model.is_embedded else OBJECTS
    objects = [name for name in OBJECTS if name in known]
    slots = [(TEMPLATES[i % len(TEMPLATES)], objects[i % len(objects)]) for i in range(n)]
    prompts = [fill(template, name, thing) for name in names for template, thing in slots]
    seeds = [i % n for i in range(len(prompts))]
    drawn = generate(model, prompts, seeds, sampling=sampling, progress=progress, what="pictures of each style")
    images = tuple(drawn[i * n : (i + 1) * n] for i in range(len(names)))
    raw = judge.embed_images(drawn).split(n)
    centre = torch.stack([vectors.mean(0) for vectors in raw]).mean(0)
    return Album(names, images, centre, tuple(_around(vectors, centre) for vectors in raw))


def recognise(
    images: Sequence[Image.Image],
    model: Source = None,
    *,
    scorer: str | None = None,
    known: Album | None = None,
    sampling: Sampling = Sampling(),
    progress: Progress | None = None,
) -> Recognition:
    """Whether a generator knows the style of some pictures.

    Args:
        images: Own pictures, at least one, all of one style.
        known: The generator's album, when it is at hand.
    Raises:
        InputError: no picture, or too many.
    """
    if not images or len(images) > MOST:
        raise InputError(f"{len(images)} pictures were given; use between 1 and {MOST}.")
    model = open_model(model)
    judge = _scorer(model, scorer)
    book = known or album(model, scorer=scorer, sampling=sampling, progress=progress)
    raw = judge.embed_images([_on_white(image) for image in images])
    vectors = _around(raw, book.centre)
    ranking = sorted(
        ((name, _mean(vectors @ theirs.T)) for name, theirs in zip(book.styles, book.vectors, strict=True)),
        key=lambda pair: -pair[1],
    )
    nearest, closeness = ranking[0]
    own, lacking, usual = bounds(book, nearest, len(images))
    knows_from = max(own, lacking)
    similar_from = min(usual, knows_from)
    verdict = Verdict.KNOWS if closeness >= knows_from else Verdict.UNKNOWN
    if verdict is Verdict.UNKNOWN and closeness >= similar_from:
        verdict = Verdict.SIMILAR
    words = judge.classify(raw, book.styles, STYLE_PROBES)
    named = sum(word == nearest for word in words)
    return Recognition(verdict, nearest, tuple(ranking), closeness, knows_from, similar_from, named, len(images))


def bounds(book: Album, style: str, size: int) -> tuple[float, float, float]:
    """What closeness means for a set of `size` pictures.

    Returns:
        The 5% quantile of sets of the style's own pictures, each left out of what it is compared with; the 95% and the
        25% quantile of sets of a style that was taken out of the album, compared with their then nearest style.
    """
    rng = random.Random(0)
    matrices = [[ours @ theirs.T for theirs in book.vectors] for ours in book.vectors]
    at = book.styles.index(style)
    n = len(book.vectors[at])
    left_out = ((matrices[at][at].sum(1) - matrices[at][at].diagonal()) / (n - 1)).tolist()
    own = sorted(_drawn(left_out, size, rng) for _ in range(DRAWS))
    foreign = []
    for i in range(len(book.styles)):
        per_picture = torch.stack([matrices[i][j].mean(1) for j in range(len(book.styles)) if j != i], 1)
        for _ in range(max(1, DRAWS // len(book.styles))):
            chosen = [rng.randrange(len(per_picture)) for _ in range(size)]
            foreign.append(per_picture[chosen].mean(0).max().item())
    foreign.sort()
    return own[int(0.05 * len(own))], foreign[int(0.95 * len(foreign))], foreign[int(0.25 * len(foreign))]


def _drawn(values: Sequence[float], size: int, rng: random.Random) -> float:
    return sum(rng.choices(values, k=size)) / size


def _mean(matrix: Tensor) -> float:
    return float(matrix.mean())


def _around(vectors: Tensor, centre: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors - centre, dim=-1)


def _scorer(model: Model, name: str | None) -> Scorer:
    if name is None and not model.is_embedded:
        raise MissingModelError(
            f"no scorer was named for {model.name!r}; name an open_clip model, for example ViT-B-32:laion2b_s34b_b79k."
        )
    return load_scorer(name or str(embedded.scorer()))


def _on_white(image: Image.Image) -> Image.Image:
    """A square on white, as the scorer expects it; nothing of the picture is cut off."""
    image = image.convert("RGB")
    side = max(image.size)
    if image.size == (side, side):
        return image
    paper = Image.new("RGB", (side, side), "white")
    paper.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return paper
