import os

import numpy as np
import pytest
from conftest import names_in, no_space
from PIL import Image

from concept_erase.errors import OutputError
from concept_erase.picture import GAP, HEAD, LABEL, TILE, before_after, save
from concept_erase.scores import Shot

RED, GREEN, BLUE = (255, 0, 0), (0, 200, 0), (0, 0, 255)


def shots(*groups):
    """`(name, erased, contexts)` as shots."""
    return [Shot("p", 0, name, context, erased, True) for name, erased, contexts in groups for context in contexts]


def plain(colours):
    return [Image.new("RGB", (64, 64), colour) for colour in colours]


def colours_at(sheet, colour):
    """Rows and columns of the tiles of one colour."""
    found = np.argwhere((np.asarray(sheet) == colour).all(-1))
    return {(int(y - HEAD) // (2 * (TILE + GAP) + 26), int(x - LABEL) // (TILE + GAP)) for y, x in found}


def test_erased_and_kept_are_shown_before_over_after_at_the_same_place():
    listed = shots(("twemoji", True, ["cat", "dog"]), ("noto", False, ["cat"]))
    sheet = before_after(listed, plain([RED, RED, BLUE]), plain([GREEN, GREEN, BLUE]), "Erases twemoji")
    assert sheet.mode == "RGB"
    assert colours_at(sheet, RED) == {(0, 0), (0, 1)} == colours_at(sheet, GREEN)
    assert colours_at(sheet, BLUE) == {(1, 0)}
    pixels = np.asarray(sheet)
    assert (pixels == RED).all(-1).sum() == 2 * TILE * TILE
    assert (pixels == GREEN).all(-1).sum() == 2 * TILE * TILE
    assert (pixels == BLUE).all(-1).sum() == 2 * TILE * TILE
    red, green = (np.argwhere((pixels == colour).all(-1)) for colour in (RED, GREEN))
    assert red[:, 0].max() < green[:, 0].min()


def test_at_most_eight_columns_with_distinct_contexts_first():
    contexts = ["cat"] * 20 + ["dog", "sun"]
    listed = shots(("twemoji", True, contexts))
    marked = [GREEN if context != "cat" else RED for context in contexts]
    sheet = before_after(listed, plain(marked), plain([BLUE] * len(marked)), "x")
    assert len(colours_at(sheet, GREEN)) == 2
    assert len(colours_at(sheet, RED)) == 6
    assert sheet.width == LABEL + 8 * (TILE + GAP) + GAP


def test_at_most_three_erased_and_four_kept_rows():
    listed = shots(*((f"style {i}", i < 6, ["cat"] * (i + 1)) for i in range(12)))
    sheet = before_after(listed, plain([RED if s.erased else BLUE for s in listed]), plain([GREEN] * len(listed)), "x")
    assert {row for row, _ in colours_at(sheet, RED)} == {0, 1, 2}
    assert {row for row, _ in colours_at(sheet, BLUE)} == {3, 4, 5, 6}


def test_long_names_and_other_scripts_do_not_break_it():
    listed = shots(("x" * 300, True, ["y" * 300]), ("فان جوخ 🐱", False, [""]))
    assert before_after(listed, plain([RED, BLUE]), plain([RED, BLUE]), "z" * 1000).size[1] > HEAD


def test_a_picture_is_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "picture.png"
    save(Image.new("RGB", (8, 8), RED), path)
    with Image.open(path) as image:
        assert (image.format, image.getpixel((3, 3))) == ("PNG", RED)
    old = path.read_bytes()
    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(OutputError):
        save(Image.new("RGB", (8, 8), BLUE), path)
    assert path.read_bytes() == old
    assert names_in(path.parent) == ["picture.png"]
