"""Does a generator know a style? By a fitted classifier on the embedded one, else beside what the generator draws."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from PIL import Image
from torch import Tensor

from concept_erase import embedded, known_styles, typed
from concept_erase.clip import Scorer, load_scorer
from concept_erase.concepts import PROFILES, Kind, fill
from concept_erase.errors import InputError, MissingModelError
from concept_erase.generate import Sampling, generate
from concept_erase.methods import Progress
from concept_erase.model import Model, Source, open_model
from concept_erase.surroundings import profile

TEMPLATES = ("a {context} in {target} style", "an icon of a {context}, {target} style", "a {target} {context}")
OBJECTS = (
    "cat", "car", "house", "pizza", "tulip", "guitar", "rocket", "penguin", "umbrella", "crown", "clock", "mushroom",
    "tree", "dog", "boat", "apple", "lamp", "bird", "horse", "bridge", "chair", "flower", "castle", "mountain",
)  # fmt: skip
DRAWS = 200  # random sets behind each calibrated bound
MOST = 500  # pictures of one question


class Verdict(StrEnum):
    """Whether a generator knows the style of own pictures."""

    KNOWS = "knows"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Recognition:
    """The answer, with what it rests on.

    On the embedded generator closeness is the share, 0 to 1, that `known_styles` gives to a style, the mean over the
    pictures; the bounds were measured on art of many styles, known and foreign. On other generators it is the mean
    cosine to the generator's own pictures of the style, after what all styles share was taken away, and the bounds come
    from these pictures alone.

    Attributes:
        verdict: "knows": closeness reaches `knows_from`. Else "unknown", however near the nearest style is.
        nearest: The style that is nearest; what the verdict is about.
        ranking: All styles with their closeness, nearest first.
        closeness: Of the nearest style.
        knows_from: Where "knows" begins.
        own: 5% and 95% quantiles of what sets in a style of the generator reach.
        foreign: The same of sets in styles that it lacks, to the style that is then nearest.
        named: How many of the pictures the scorer names so from text alone.
        pictures: How many own pictures there were.
    """

    verdict: Verdict
    nearest: str
    ranking: tuple[tuple[str, float], ...]
    closeness: float
    knows_from: float
    own: tuple[float, float]
    foreign: tuple[float, float]
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
        scorer: As in `score`, an open_clip model; needed on other generators than the embedded one.
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
    prompts = [prompt for name in names for prompt in _prompts(model, name, n)]
    seeds = [i % n for i in range(len(prompts))]
    drawn = generate(model, prompts, seeds, sampling=sampling, progress=progress, what="pictures of each style")
    images = tuple(drawn[i * n : (i + 1) * n] for i in range(len(names)))
    raw = judge.embed_images(drawn).split(n)
    centre = torch.stack([vectors.mean(0) for vectors in raw]).mean(0)
    return Album(names, images, centre, tuple(_around(vectors, centre) for vectors in raw))


def drawings(
    model: Source, style: str, n: int, *, sampling: Sampling = Sampling(), progress: Progress | None = None
) -> list[Image.Image]:
    """n pictures that a generator draws in a style, the same every time."""
    model = open_model(model)
    prompts = _prompts(model, style, n)
    return generate(model, prompts, range(n), sampling=sampling, progress=progress, what=f"pictures of {style}")


def _prompts(model: Model, style: str, n: int) -> list[str]:
    known = embedded.objects() if model.is_embedded else OBJECTS
    objects = [name for name in OBJECTS if name in known]
    return [fill(TEMPLATES[i % len(TEMPLATES)], style, objects[i % len(objects)]) for i in range(n)]


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
        known: The generator's album, when it is at hand. The embedded generator needs none.
    Raises:
        InputError: no picture, or too many.
    """
    if not images or len(images) > MOST:
        raise InputError(f"{len(images)} pictures were given; use between 1 and {MOST}.")
    model = open_model(model)
    judge = _scorer(model, scorer)
    squares = [_on_white(image) for image in images]
    raw = judge.embed_images(squares)
    if model.is_embedded and typed.scorer(scorer)[1] is None and (known is None or known.styles == embedded.styles()):
        fitted = known_styles.load()
        ranking = _ranked(fitted.styles, fitted.shares(images).mean(0).tolist())
        knows_from, own, foreign = fitted.knows_from, fitted.own, fitted.foreign
    else:
        book = known or album(model, scorer=scorer, sampling=sampling, progress=progress)
        vectors = _around(raw, book.centre)
        ranking = _ranked(book.styles, [float((vectors @ theirs.T).mean()) for theirs in book.vectors])
        knows_from, own, foreign = bounds(book, ranking[0][0], len(images))
    nearest, closeness = ranking[0]
    verdict = Verdict.KNOWS if closeness >= knows_from else Verdict.UNKNOWN
    words = judge.classify(raw, [name for name, _ in ranking], profile(model, Kind.STYLE).probes)
    named = sum(word == nearest for word in words)
    return Recognition(verdict, nearest, ranking, closeness, knows_from, own, foreign, named, len(images))


def _ranked(styles: Sequence[str], closeness: Sequence[float]) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(zip(styles, closeness, strict=True), key=lambda pair: -pair[1]))


Range = tuple[float, float]


def bounds(book: Album, style: str, size: int) -> tuple[float, Range, Range]:
    """What closeness means for a set of `size` pictures, from the generator's own pictures alone.

    A style that was taken out of the album stands for one that the generator lacks. That says little of styles unlike
    all of them, so "knows" takes more than any of these got.

    Returns:
        Where "knows" begins; the 5% and 95% quantiles of sets of the style's own pictures, each left out of what it is
        compared with; and those of sets of a style that was taken out, compared with their then nearest style.
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
    return max(_middle(own)[0], foreign[-1]), _middle(own), _middle(foreign)


def _middle(ordered: Sequence[float]) -> Range:
    """5% and 95% quantiles."""
    return ordered[int(0.05 * len(ordered))], ordered[int(0.95 * len(ordered))]


def _drawn(values: Sequence[float], size: int, rng: random.Random) -> float:
    return sum(rng.choices(values, k=size)) / size


def _around(vectors: Tensor, centre: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors - centre, dim=-1)


def _scorer(model: Model, name: str | None) -> Scorer:
    _, clip = typed.scorer(name)  # the base itself names pictures, but it does not say how near one is to another
    if clip is None and not model.is_embedded:
        raise MissingModelError(
            f"no scorer was named for {model.name!r} that can compare pictures; name an open_clip model, for example "
            "ViT-B-32:laion2b_s34b_b79k."
        )
    return load_scorer(clip or str(embedded.scorer()))


def _on_white(image: Image.Image) -> Image.Image:
    """A square on white, as the scorer expects it; nothing of the picture is cut off."""
    image = image.convert("RGB")
    side = max(image.size)
    if image.size == (side, side):
        return image
    paper = Image.new("RGB", (side, side), "white")
    paper.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return paper
