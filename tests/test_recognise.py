"""Does the generator know a style? Its own other drawings, a style that was taken from it, and what it cannot know."""

import io
import json
import math
import random

import pytest
import torch
from PIL import Image, ImageChops, ImageDraw

from concept_erase import embedded, known_styles
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
        assert found.closeness >= found.knows_from
        assert found.named >= 3
        assert found.pictures == 4


def test_a_style_that_is_taken_away_is_not_known(generator, book, own):
    for style, pictures in own.items():
        found = recognise(pictures, generator, known=without(book, style))
        assert found.verdict is not Verdict.KNOWS
        assert found.nearest != style


def lined_paper():
    """Flat teal and mustard shapes with thick purple outlines on lined cream paper."""
    rng = random.Random(4)
    made = []
    for _ in range(7):
        image = Image.new("RGB", (600, 480), (250, 243, 224))
        pen = ImageDraw.Draw(image)
        for y in range(20, 480, 30):
            pen.line([(0, y), (600, y)], fill=(206, 214, 224), width=2)
        for fill in ((30, 140, 140), (217, 164, 40), (30, 140, 140)):
            x, y, r = rng.randrange(120, 480), rng.randrange(120, 360), rng.randrange(50, 100)
            draw = rng.choice((pen.ellipse, pen.rectangle))
            draw((x - r, y - r, x + r, y + r), fill=fill, outline=(88, 40, 120), width=14)
        made.append(image)
    return made


def rings():
    """Thin blue rings, in the ink of a style that it knows."""
    made = []
    for n in range(5):
        image = Image.new("RGB", (200, 200), "white")
        for k in range(3):
            ImageDraw.Draw(image).ellipse(
                (20 + 9 * n, 20 + 20 * k, 110 + 9 * n, 110 + 20 * k), outline="#1d4ed8", width=4
            )
        made.append(image)
    return made


def clouds():
    """Smooth grey noise, as close to a photograph as can be drawn here."""
    noise = [Image.effect_noise((40, 40), 90 + n) for n in range(4)]
    return [image.resize((300, 300), Image.Resampling.BICUBIC) for image in noise]


def bars():
    return [Image.linear_gradient("L").rotate(90 * n).convert("RGB") for n in range(4)]


@pytest.mark.parametrize("draw", [lined_paper, scribbles, bars, rings, clouds])
def test_what_it_never_saw_is_not_known(generator, draw):
    """No album is given: the one that ships with the package decides."""
    pictures = draw()
    found = recognise(pictures, generator)
    assert found.verdict is Verdict.UNKNOWN
    assert found.closeness < found.knows_from
    assert found.foreign[0] < found.own[0]


def test_scans_of_a_known_style_are_known(generator, own):
    """Cream paper, a wide margin, and JPEG: what an artist uploads of a style that the generator knows."""
    for style, pictures in own.items():
        scans = []
        for image in pictures:
            sheet = Image.new("RGB", (300, 260), "white")
            sheet.paste(image, (60, 20))
            buffer = io.BytesIO()
            ImageChops.multiply(sheet, Image.new("RGB", sheet.size, (248, 240, 222))).save(buffer, "JPEG", quality=70)
            scans.append(Image.open(buffer))
        found = recognise(scans, generator)
        assert (found.verdict, found.nearest) == (Verdict.KNOWS, style)


def test_the_classifier_was_fitted_to_the_weights_that_ship():
    """With another judge or scorer all has to be fitted anew: benchmarks/styles.py --write."""
    read = json.loads(known_styles.FILE.read_text())
    assert read["eyes"] == known_styles.eyes()
    assert known_styles.load().styles == embedded.styles()


def test_paper_is_made_white_and_its_margin_cut():
    scan = Image.new("RGB", (400, 300), (240, 230, 205))
    ImageDraw.Draw(scan).rectangle((150, 100, 209, 159), fill=(30, 60, 120))
    seen = known_styles.sheet(scan)
    assert seen.size == (68, 68)
    assert seen.getpixel((0, 0)) == (255, 255, 255)
    dark = Image.new("RGB", (40, 30), (20, 20, 30))
    assert known_styles.sheet(dark).getpixel((20, 20)) == (20, 20, 30)


def test_a_separable_problem_is_fitted():
    rows = torch.tensor([[0.0, 1.0], [0.0, 2.0], [3.0, 0.0], [4.0, 0.0]])
    weight, bias = known_styles.fit(rows, torch.tensor([0, 0, 1, 1]), torch.ones(4), 2)
    assert (rows @ weight.T + bias).argmax(1).tolist() == [0, 0, 1, 1]


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
    knows_from, own, foreign = bounds(made, "b", 4)
    assert (knows_from, *own) == pytest.approx((1, 1, 1))
    assert foreign == pytest.approx((0, 0))


def test_larger_sets_are_held_to_narrower_bounds(book):
    few, many = bounds(book, "noto", 1)[1], bounds(book, "noto", 40)[1]
    assert many[0] > few[0]
    assert many[1] < few[1]


def test_knows_takes_more_than_any_style_that_was_taken_out(book):
    for style in book.styles:
        knows_from, own, foreign = bounds(book, style, 4)
        assert knows_from >= max(own[0], foreign[1])


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
