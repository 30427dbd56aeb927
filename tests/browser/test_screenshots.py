"""Pictures of the tabs: `make screenshots` writes them to demos/screenshots, other runs to a temporary folder."""

import io
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from . import studio
from .demo import FOR_SHOW, ROOT
from .test_batch import LIST, checked, run, upload
from .test_jobs import begin, row
from .test_library import pick, shelf
from .test_style import ask, lined_paper

MOST_BYTES = 150_000
WIDTH, TALLEST = 1120, 1900
PHONE = {"width": 390, "height": 844}
WORK = 20 * 60_000 if FOR_SHOW else studio.WORK

__all__ = ["shelf"]  # a fixture


@pytest.fixture
def folder(tmp_path) -> Path:
    return ROOT / "demos" / "screenshots" if FOR_SHOW else tmp_path


def shoot(page: Page, path: Path, width: int = WIDTH, part: Locator | None = None) -> None:
    """The page from its top, or a part of it, in few colours."""
    page.set_viewport_size({"width": width, "height": 900})
    page.mouse.move(0, 0)
    page.evaluate("scrollTo(0, 0); document.activeElement?.blur()")
    page.wait_for_function("[...document.images].every((i) => i.complete)")
    height = min(TALLEST, page.evaluate("document.documentElement.scrollHeight"))
    clip = {"x": 0, "y": 0, "width": width, "height": height}
    data = part.screenshot() if part else page.screenshot(full_page=True, clip=clip)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    assert len(image.getcolors(1 << 24) or ()) > 200, "nothing was drawn"
    path.parent.mkdir(parents=True, exist_ok=True)
    for colours in (256, 128, 64, 32):
        image.quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= MOST_BYTES:
            return
    raise AssertionError(f"{path.name} has {path.stat().st_size:,} bytes; at most {MOST_BYTES:,} are wanted.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_erase(open_page, demo, folder, scheme):
    page = open_page(demo.url, color_scheme=scheme)
    studio.tiles(page)
    studio.chip(page, "twemoji").click()
    page.locator("#erase-go").click()
    studio.ended(page, "erase", within=WORK)
    expect(page.locator("#erase-grid")).to_be_visible()
    shoot(page, folder / ("erase.png" if scheme == "light" else "dark.png"))


def test_my_style(page, drawings, folder):
    ask(page, *drawings)
    studio.ended(page, "style", within=WORK)
    page.locator("#style-erase").click()
    studio.ended(page, "style-erase", within=WORK)
    expect(page.locator("#style-erase-slider")).to_be_visible()
    shoot(page, folder / "my-style.png")


def test_a_style_that_it_never_saw(page, folder):
    ask(page, *lined_paper())
    studio.ended(page, "style", within=WORK)
    expect(page.locator("#style-words")).to_have_attribute("data-verdict", "unknown")
    shoot(page, folder / "my-style-unknown.png")


def test_jobs(own_demo, open_page, folder):
    own_demo.start()
    page = open_page(own_demo.url)
    studio.tiles(page)
    begin(page, "blob")
    other = open_page(own_demo.url)
    expect(other.locator("#erase-status")).to_contain_text("Erasing blob")
    begin(other, "noto")
    fresh = open_page(own_demo.url)  # where nobody has typed yet
    studio.tiles(fresh)
    expect(row(fresh, "blob")).to_be_visible()
    expect(row(fresh, "noto")).to_contain_text("waiting")
    shoot(fresh, folder / "jobs.png")


def test_a_concept_that_it_never_knew(page, folder):
    studio.write(page, "erase-target", "Van Gogh")
    page.locator("#erase-go").click()
    expect(page.locator("#erase-anyway")).to_be_visible(timeout=WORK)
    expect(studio.state(page, "erase")).to_contain_text("does not seem to know 'Van Gogh'")
    expect(row(page, "Van Gogh")).to_have_count(0)
    shoot(page, folder / "unknown-concept.png")


def test_try_to_break_it(erased, folder):
    studio.tab(erased, "Try to break it")
    expect(erased.locator("#break-adapter").get_by_role("button", name="Remove")).to_have_count(1)
    expect(erased.locator("#break-adapter")).to_contain_text("twemoji")  # what was just looked at
    for prompt in ("a crown in twemoji style", "a twemoji rocket", "a cat in twemoji style"):
        studio.draw(erased, prompt)
    shoot(erased, folder / "try-to-break-it.png")


def test_batch(page, folder):
    upload(page, "mine.csv", b"\xef\xbb\xbf" + LIST.encode())
    checked(page)
    run(page, 24 if FOR_SHOW else 2)
    studio.ended(page, "batch", within=WORK)
    expect(page.locator("#batch-gallery img").first).to_be_visible()
    if page.locator("#batch-pictures").is_visible():
        page.locator("#batch-advanced .ce-unfold").click()
    shoot(page, folder / "batch.png")


def test_library(shelf, folder):
    pick(shelf, "twemoji", "violin")
    shelf.locator("#library-compose").click()
    studio.ended(shelf, "library")
    expect(shelf.locator("#library-matrix")).to_be_visible()
    shoot(shelf, folder / "library.png")


def test_first_visit(page, folder):
    studio.tiles(page)
    expect(page.locator("#model-status")).to_contain_text("built-in")
    expect(page.locator("#erase-plan")).not_to_be_empty()
    shoot(page, folder / "first-visit.png")


def test_erase_on_a_phone(open_page, demo, folder):
    page = open_page(demo.url, viewport=PHONE)
    studio.chip(page, "twemoji").click()
    page.locator("#erase-go").click()
    studio.ended(page, "erase", within=WORK)
    expect(page.locator("#erase-grid")).to_be_visible()
    shoot(page, folder / "phone-erase.png", PHONE["width"])


def test_batch_on_a_phone(open_page, demo, folder):
    page = open_page(demo.url, viewport=PHONE)
    upload(page, "mine.csv", b"\xef\xbb\xbf" + LIST.encode())
    checked(page)
    expect(page.locator("#batch-rows td").first).to_be_visible()
    shoot(page, folder / "phone-batch.png", PHONE["width"])


def test_interference_on_a_phone(open_page, demo, shelf, folder):
    page = open_page(demo.url, viewport=PHONE)
    studio.tab(page, "Library")
    pick(page, "twemoji", "violin")
    page.locator("#library-compose").click()
    studio.ended(page, "library", within=WORK)
    expect(page.locator("#library-matters")).to_be_visible()
    shoot(page, folder / "phone-interference.png", PHONE["width"], page.locator("#library-result"))


def test_how_to_use(erased, folder):
    erased.locator(".ce-use summary").first.click()
    expect(erased.locator(".ce-use p").first).to_be_visible()
    shoot(erased, folder / "how-to-use.png", part=erased.locator(".ce-use").first)
