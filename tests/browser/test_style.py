"""My style: own pictures, recognised, erased, gone; and pictures that nobody should send."""

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from . import hostile, studio


def ask(page: Page, *files: dict) -> None:
    studio.tab(page, "My style")
    page.locator("#style-upload input[type=file]").set_input_files(list(files))
    expect(page.locator("#style-upload").get_by_text(files[-1]["name"][:4]).first).to_be_visible()
    page.locator("#style-go").click()


def test_own_style_is_recognised_and_erased(page, drawings):
    ask(page, *drawings)
    studio.ended(page, "style")
    verdict = page.locator("#style-words")
    expect(verdict).to_have_attribute("data-nearest", "openmoji")
    expect(verdict).to_have_attribute("data-verdict", "knows")
    expect(page.locator("#style-own img")).to_have_count(6)
    expect(page.locator("#style-drawn img").first).to_be_visible()
    page.locator("#style-erase").click()
    studio.ended(page, "style-erase")
    expect(page.locator("#style-erase-words")).to_contain_text("0 of 8 pictures are still recognised as openmoji")
    expect(page.locator("#style-erase-slider")).to_be_visible()
    with page.expect_download() as waiting:
        page.locator("#style-erase-file-kohya").click()
    assert "openmoji" in waiting.value.suggested_filename


def picture(name: str, content: bytes) -> dict:
    return {"name": name, "mimeType": "image/png", "buffer": content}


@pytest.mark.parametrize(
    ("content", "word"),
    [
        pytest.param(hostile.bomb_png(), "pixels", id="header bomb"),
        pytest.param(hostile.truncated_png(), "damaged", id="truncated"),
        pytest.param(hostile.zipped(), "never opened", id="zip as png"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "not a PNG", id="svg"),
        pytest.param(b"GIF89a" + bytes(100), "not a PNG", id="gif"),
    ],
)
def test_pictures_that_cannot_be_used(page, content, word):
    ask(page, picture("mine.png", content))
    studio.refused(page, "style", word, "mine.png")


def test_pickle_as_picture_is_never_opened(page, tmp_path):
    canary = tmp_path / "ran"
    ask(page, picture("mine.png", hostile.pickled(canary)))
    studio.refused(page, "style", "mine.png")
    assert not canary.exists()


def test_no_pictures(page):
    studio.tab(page, "My style")
    page.locator("#style-go").click()
    studio.refused(page, "style", "upload")


def test_good_ones_are_used_and_bad_ones_named(page, drawings):
    ask(page, *drawings, picture("mine bad.png", hostile.truncated_png()))
    studio.ended(page, "style")
    expect(studio.state(page, "style")).to_contain_text("mine bad.png")
    expect(page.locator("#style-own img")).to_have_count(6)


def test_what_a_camera_writes_is_dropped(page, demo):
    """No kept file and nothing on the page holds the place or the camera."""
    ask(page, {"name": "mine.jpg", "mimeType": "image/jpeg", "buffer": hostile.jpeg_with_place()})
    studio.ended(page, "style")
    kept = [p for p in (demo.folder / "uploads" / "pictures").rglob("*") if p.is_file()]
    assert kept
    for path in kept:
        assert b"SecretCamera" not in path.read_bytes()
        with Image.open(path) as image:
            assert not dict(image.getexif())
    assert "SecretCamera" not in page.content()
