"""Library: adapters composed, exported, deleted."""

import zipfile

import pytest
from playwright.sync_api import Page, expect

from concept_erase.adapter import Adapter

from . import studio
from .demo import FOR_SHOW


@pytest.fixture
def shelf(page, demo) -> Page:
    """The library with at least two adapters: twemoji, and a violin without scores, which no other test erases."""
    if not list(demo.folder.glob("erasures/twemoji-*/report.json")):
        studio.chip(page, "twemoji").click()
        page.locator("#erase-go").click()
        studio.ended(page, "erase")
    if not list(demo.folder.glob("erasures/violin-*/report.json")):
        erase_violin(page)
    studio.tab(page, "Library")
    for title in ("twemoji", "violin"):
        expect(card(page, title)).to_be_visible()
    return page


def erase_violin(page: Page) -> None:
    """Erase a violin, without scores where nobody looks, and with an anchor that need not be looked for."""
    page.locator("#erase-kind").get_by_text("An object").click()
    studio.write(page, "erase-target", "violin")
    studio.advanced(page, "erase", **({} if FOR_SHOW else {"pictures": 0}))
    page.locator("#erase-anchor").get_by_role("textbox").fill("car")
    page.locator("#erase-go").click()
    expect(page.locator("#erase-words")).to_contain_text("violin", timeout=studio.WORK)


def card(page: Page, title: str):
    titled = page.get_by_role("heading", name=title, exact=True)
    return page.locator("#library-list .ce-item").filter(has=titled)


def pick(page: Page, *titles: str) -> None:
    for title in titles:
        card(page, title).locator(".ce-take").click()
        expect(card(page, title).locator(".ce-take")).to_have_attribute("aria-pressed", "true")


def test_two_adapters_become_one(shelf):
    pick(shelf, "twemoji", "violin")
    shelf.locator("#library-compose").click()
    studio.ended(shelf, "library")
    matrix = shelf.locator("#library-matrix")
    expect(matrix).to_be_visible()
    for name in ("twemoji", "violin"):
        expect(matrix.get_by_role("rowheader", name=name)).to_be_visible()
        expect(matrix.locator("td.ce-own").first).to_be_visible()
    both = shelf.locator("#library-list .ce-item").filter(has_text="composed").first
    expect(both).to_contain_text("twemoji")
    expect(both).to_contain_text("violin")


def test_export_holds_what_was_picked(shelf, tmp_path):
    pick(shelf, "twemoji", "violin")
    shelf.locator("#library-export").click()
    with shelf.expect_download() as waiting:
        shelf.locator("#library-zip").click()
    waiting.value.save_as(tmp_path / "all.zip")
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        archive.extractall(tmp_path / "all")
    adapters = [Adapter.load(path) for path in (tmp_path / "all").rglob("erase-*.safetensors")]
    assert {c.target for a in adapters for c in a.concepts} == {"twemoji", "violin"}


def test_nothing_picked(shelf):
    for action in ("compose", "export", "delete"):
        shelf.locator(f"#library-{action}").click()
        studio.refused(shelf, "library", "choose")


def test_a_past_result_opens_again(shelf):
    card(shelf, "twemoji").get_by_role("button", name="Open twemoji").click()
    expect(shelf.locator("#library-item-words")).to_contain_text("twemoji")
    expect(shelf.locator("#library-item-slider")).to_be_visible()
    expect(shelf.locator("#library-item-more .ce-card").first).to_be_visible()
    expect(shelf.locator("#library-item-more .ce-notes")).to_be_visible()
    expect(card(shelf, "twemoji").locator(".ce-take")).to_have_attribute("aria-pressed", "false")  # opened, not picked
    with shelf.expect_download() as waiting:
        shelf.locator("#library-item-file-report").click()
    assert waiting.value.suggested_filename == "report.json"

    card(shelf, "violin").get_by_role("button", name="Open violin").click()
    expect(shelf.locator("#library-item-words")).to_contain_text("violin")
    studio.tab(shelf, "Try to break it")  # what was looked at last, and nothing else
    expect(shelf.locator("#break-adapter .token")).to_have_count(1)
    expect(shelf.locator("#break-adapter .token")).to_contain_text("violin")


def test_only_what_the_question_named_is_deleted(shelf, demo):
    pick(shelf, "violin")
    shelf.locator("#library-delete").click()
    expect(shelf.locator("#library-confirm-row")).to_contain_text("violin")
    pick(shelf, "twemoji")
    shelf.locator("#library-confirm").click()
    studio.ended(shelf, "library")
    expect(card(shelf, "violin")).to_have_count(0)
    expect(card(shelf, "twemoji").locator(".ce-take")).to_have_attribute("aria-pressed", "true")
    assert list(demo.folder.glob("erasures/twemoji-*/report.json"))


def test_what_was_opened_goes_with_its_deletion(shelf):
    card(shelf, "violin").get_by_role("button", name="Open violin").click()
    expect(shelf.locator("#library-item-words")).to_contain_text("violin")
    pick(shelf, "violin")
    shelf.locator("#library-delete").click()
    shelf.locator("#library-confirm").click()
    studio.ended(shelf, "library")
    expect(shelf.locator("#library-item-words")).to_have_count(0)
    expect(shelf.locator("#library-item-files")).to_be_hidden()


def test_deleting_asks_first(shelf, demo):
    pick(shelf, "violin")
    shelf.locator("#library-delete").click()
    expect(shelf.locator("#library-confirm-row")).to_contain_text("violin")
    shelf.locator("#library-keep").click()
    expect(shelf.locator("#library-confirm-row")).to_be_hidden()
    assert list(demo.folder.glob("erasures/violin-*/report.json"))

    shelf.locator("#library-delete").click()
    shelf.locator("#library-confirm").click()
    studio.ended(shelf, "library")
    expect(card(shelf, "violin")).to_have_count(0)
    expect(card(shelf, "twemoji")).to_be_visible()
    assert not list(demo.folder.glob("erasures/violin-*"))


def test_a_card_is_picked_by_a_click_anywhere(shelf):
    """On its picture, its name or its scores; not on the button that opens it."""
    card = shelf.locator("#library-list .ce-item").filter(has=shelf.get_by_text("before", exact=True)).first
    take = card.locator(".ce-take")
    for y, pressed in ((0.2, "true"), (0.72, "false"), (0.8, "true")):
        box = card.bounding_box()  # anew, and clicked when it rests: a pick moves what is on the page
        card.click(position={"x": box["width"] * 0.8, "y": box["height"] * y})
        expect(take).to_have_attribute("aria-pressed", pressed)
    expect(card.get_by_text("before", exact=True).first).to_be_visible()
    expect(card.get_by_text("after", exact=True).first).to_be_visible()
