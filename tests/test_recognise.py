"""Does the generator know a style? Its own other drawings, a style that was taken from it, and what it cannot know."""

import math
import random

import pytest
import torch
from PIL import Image, ImageDraw

from concept_erase import embedded
from concept_erase.errors import InputError, MissingModelError
from concept_erase.generate import Sampling, generate
from concept_erase.model import open_model
from concept_erase.recognise import Album, Verdict, album, bounds, recognise

QUICK = Sampling(steps=8)
THINGS = ("fish", "gift", "hat", "anchor")  # none of them is in the album


@pytest.fixture(scope="module")
def generator():
    return open_model()


@pytest.fixture(scope="module")
def book(generator):
    return album(generator, n=6, sampling=QUICK)


@pytest.fixture(scope="module")
def own(generator):
    """Pictures of two styles with other words, things and seeds than the album's."""

    def draw(style):
        prompts = [f"{style} art of a {thing}" for thing in THINGS]
        return [im.resize((200, 200)) for im in generate(generator, prompts, [91, 92, 93, 94], sampling=QUICK)]

    return {style: draw(style) for style in ("blue ink", "blob")}


def without(book, style):
    """The album of a generator that lacks a style."""
    keep = [i for i, name in enumerate(book.styles) if name != style]
    return Album(
        tuple(book.styles[i] for i in keep), tuple(book.images[i] for i in keep), book.centre,
        tuple(book.vectors[i] for i in keep),
    )  # fmt: skip


def scribbles():
    rng = random.Random(1)
    made = []
    for _ in range(4):
        image = Image.new("RGB", (160, 120), tuple(rng.randrange(256) for _ in range(3)))
        pen = ImageDraw.Draw(image)
        for _ in range(30):
            pen.line([rng.randrange(160) for _ in range(4)], fill=tuple(rng.randrange(256) for _ in range(3)), width=5)
        made.append(image)
    return made


def test_a_known_style_is_known_by_name(generator, book, own):
    for style, pictures in own.items():
        found = recognise(pictures, generator, known=book)
        assert (found.verdict, found.nearest) == (Verdict.KNOWS, style)
        assert found.ranking[0] == (style, found.closeness)
        assert found.closeness >= found.knows_from >= found.similar_from
        assert found.named >= 3
        assert found.pictures == 4


def test_a_style_that_is_taken_away_is_not_known(generator, book, own):
    for style, pictures in own.items():
        found = recognise(pictures, generator, known=without(book, style))
        assert found.verdict is not Verdict.KNOWS
        assert found.nearest != style


def test_scribbles_are_not_known(generator, book):
    assert recognise(scribbles(), generator, known=book).verdict is not Verdict.KNOWS


def test_the_order_of_pictures_does_not_matter(generator, book, own):
    pictures = own["blob"]
    once, turned = (recognise(p, generator, known=book) for p in (pictures, pictures[::-1]))
    assert math.isclose(once.closeness, turned.closeness, abs_tol=1e-5)
    assert once.verdict is turned.verdict


def test_the_album_is_of_all_styles_and_balanced(book):
    assert book.styles == embedded.styles()
    assert all(len(images) == len(vectors) == 6 for images, vectors in zip(book.images, book.vectors, strict=True))
    for vectors in book.vectors:
        assert torch.allclose(vectors.norm(dim=1), torch.ones(6), atol=1e-5)


def test_bounds_are_those_of_known_distributions():
    """Three styles on three axes: own pictures agree wholly, and a style that is left out is at right angles to all."""
    axes = torch.eye(3)
    made = Album(("a", "b", "c"), ([], [], []), torch.zeros(3), tuple(axis.expand(5, 3) for axis in axes))
    own, lacking, usual = bounds(made, "b", 4)
    assert own == pytest.approx(1)
    assert lacking == pytest.approx(0)
    assert usual == pytest.approx(0)


def test_larger_sets_are_held_to_narrower_bounds(book):
    few, many = bounds(book, "noto", 1)[0], bounds(book, "noto", 40)[0]
    assert many > few


@pytest.mark.parametrize("pictures", [[], [Image.new("RGB", (8, 8))] * 501])
def test_none_and_too_many_pictures_are_refused(generator, book, pictures):
    with pytest.raises(InputError, match="use between 1 and 500"):
        recognise(pictures, generator, known=book)


@pytest.mark.parametrize(("styles", "n"), [(["a", "b"], 12), (["a", "b", "c"], 3)])
def test_what_cannot_be_calibrated_is_refused(generator, styles, n):
    with pytest.raises(InputError, match="cannot be calibrated"):
        album(generator, styles=styles, n=n)


def test_another_generator_needs_a_scorer(model):
    with pytest.raises(MissingModelError, match="no scorer was named"):
        recognise([Image.new("RGB", (8, 8))], model)


def test_another_generator_with_a_scorer(model, scorer_folder):
    book = album(model, scorer=str(scorer_folder), styles=("noto", "blob", "fluent"), n=4, sampling=Sampling(steps=2))
    found = recognise(list(book.images[1]), model, scorer=str(scorer_folder), known=book)
    assert {name for name, _ in found.ranking} == {"noto", "blob", "fluent"}
