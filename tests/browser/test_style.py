"""My style: own pictures, recognised, erased, gone; and pictures that nobody should send."""

import io

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Page, expect

from . import hostile, studio


def ask(page: Page, *files: dict) -> None:
    studio.tab(page, "My style")
    choose(page, *files)
    page.locator("#style-go").click()


def choose(page: Page, *files: dict) -> None:
    """Put files into the upload field and wait until each is shown, or named with the reason why not."""
    page.locator("#style-upload input[type=file]").set_input_files(list(files))
    shown = page.locator("#style-chosen-list img, #style-chosen-list .ce-bad")
    expect(shown).to_have_count(len(files))


def test_own_style_is_recognised_and_erased(page, drawings):
    ask(page, *drawings)
    studio.ended(page, "style")
    verdict = page.locator("#style-words")
    expect(verdict).to_have_attribute("data-nearest", "openmoji")
    expect(verdict).to_have_attribute("data-verdict", "knows")
    expect(page.locator("#style-own img")).to_have_count(6)
    expect(page.locator("#style-drawn img").first).to_be_visible()
    expect(page.locator("#style-erase")).to_have_text("Erase openmoji, the style it calls yours")
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


def lined_paper() -> list[dict]:
    """Flat teal and mustard shapes with thick purple outlines on lined cream paper."""
    files = []
    for n in range(7):
        image = Image.new("RGB", (320, 320), (250, 243, 224))
        pen = ImageDraw.Draw(image)
        for y in range(12, 320, 20):
            pen.line([(0, y), (320, y)], fill=(206, 214, 224), width=2)
        for k, fill in enumerate([(30, 140, 140), (217, 164, 40)]):
            x, y = 60 + 17 * n + 60 * k, 70 + 80 * k
            (pen.ellipse if (n + k) % 2 else pen.rectangle)((x, y, x + 110, y + 110), fill, (88, 40, 120), 10)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        files.append(picture(f"sheet {n}.png", buffer.getvalue()))
    return files


def test_a_style_that_it_never_saw_is_not_offered_for_erasing(page):
    ask(page, *lined_paper())
    studio.ended(page, "style")
    expect(page.locator("#style-words")).to_have_attribute("data-verdict", "unknown")
    expect(page.locator("#style-words h2")).to_have_text("It does not seem to know this style.")
    expect(page.locator("#style-words")).to_contain_text("styles it never saw")
    expect(page.locator("#style-erase")).to_be_hidden()


def test_other_files_clear_what_was_said_of_the_last(page, drawings):
    studio.tab(page, "My style")
    page.locator("#style-go").click()
    studio.refused(page, "style", "upload")
    choose(page, *drawings[:3])
    expect(studio.state(page, "style")).to_have_attribute("data-state", "idle")
    expect(studio.state(page, "style")).to_be_empty()
    page.locator("#style-go").click()
    studio.ended(page, "style")
    page.locator("#style-upload").get_by_label("Clear").click()
    expect(page.locator("#style-words")).to_have_count(0)
    expect(page.locator("#style-erase")).to_be_hidden()
    expect(page.locator("#style-thumbs")).to_have_count(0)


def test_files_of_other_kinds_are_named_as_soon_as_they_are_chosen(page, drawings):
    studio.tab(page, "My style")
    text = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"}
    layers = {"name": "layers.psd", "mimeType": "application/octet-stream", "buffer": b"8BPS" + bytes(40)}
    choose(page, drawings[0], text, layers)
    expect(page.locator("#style-thumbs img")).to_have_count(1)
    for name in ("notes.txt", "layers.psd"):
        expect(page.locator("#style-chosen-list .ce-bad").filter(has_text=name)).to_contain_text("not a PNG")


def test_a_look_says_what_it_does_and_can_be_cancelled(own_demo, open_page, drawings):
    """In a demo of its own: nothing is drawn or loaded yet, so there is something to wait for."""
    own_demo.start()
    page = open_page(own_demo.url)
    ask(page, *drawings)
    expect(page.locator("#style-status .ce-progress p")).to_be_visible()
    page.locator("#style-cancel").click()
    expect(studio.state(page, "style")).to_have_attribute("data-state", "cancelled")
    expect(page.locator("#style-cancel")).to_be_hidden()
    page.locator("#style-go").click()  # the generator is free again
    studio.running(page, "style")
    studio.ended(page, "style")
    expect(page.locator("#style-words")).to_have_attribute("data-nearest", "openmoji")


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
