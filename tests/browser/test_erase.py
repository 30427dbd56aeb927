"""Erase: the first thing a stranger does."""

import re

import pytest
from playwright.sync_api import expect

from concept_erase.adapter import Adapter

from . import hostile, studio

SENTENCE = re.compile(r"(\d+) of (\d+) pictures (is|are) still recognised as (\w+); at most (\d+)%")


class Clicks:
    """Counts the clicks that a page has seen."""

    def __init__(self, page) -> None:
        page.evaluate("window.clicks = 0; addEventListener('click', (e) => { clicks += e.isTrusted }, true)")
        self._page = page

    def __int__(self) -> int:
        return self._page.evaluate("clicks")


def test_three_clicks_to_an_erased_style(own_demo, open_page, tmp_path):
    page = open_page(own_demo.start().url)
    expect(studio.chip(page, "twemoji")).to_be_visible()
    clicks = Clicks(page)
    studio.chip(page, "twemoji").click()
    page.locator("#erase-go").click()
    studio.running(page, "erase")
    expect(page.get_by_role("progressbar")).to_be_visible()
    studio.ended(page, "erase")

    expect(page.locator("#erase-words")).to_contain_text(SENTENCE)
    still, of, _, name, most = SENTENCE.search(page.locator("#erase-words").inner_text()).groups()
    assert (still, of, name) == ("0", "8", "twemoji")
    assert 0 < int(most) < 50
    expect(page.locator("#erase-slider")).to_be_visible()
    expect(page.locator("#erase-grid")).to_contain_text("twemoji")
    expect(page.locator("#erase-grid").get_by_text("before").first).to_be_visible()
    expect(page.locator("#erase-grid").get_by_text("after").first).to_be_visible()

    with page.expect_download() as waiting:
        page.locator("#erase-file-kohya").click()
    assert int(clicks) == 3
    path = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(path)
    adapter = Adapter.load(path)
    assert [c.target for c in adapter.concepts] == ["twemoji"]
    assert adapter.rank > 0


@pytest.mark.parametrize(("file", "suffix"), [("peft", ".safetensors"), ("report", ".json"), ("zip", ".zip")])
def test_everything_else_can_be_taken_home(erased, file, suffix, tmp_path):
    with erased.expect_download() as waiting:
        erased.locator(f"#erase-file-{file}").click()
    assert waiting.value.suggested_filename.endswith(suffix)
    waiting.value.save_as(tmp_path / "file")
    assert (tmp_path / "file").stat().st_size > 500


def test_before_and_after_show_the_erasure(erased):
    """What was erased looks different after, what was kept looks the same."""
    moved = {}
    for word in ("erased", "kept"):
        block = erased.locator("#erase-grid .ce-row").filter(has=erased.get_by_text(word, exact=True)).first
        pair = block.locator(".ce-pair").first.locator("img")
        moved[word] = studio.distance(studio.pixels(pair.nth(0)), studio.pixels(pair.nth(1)))
    assert moved["erased"] > 3 * moved["kept"]


def test_slider_follows_mouse_and_keys(erased):
    cut = erased.locator("#erase-slider .ce-slide:not([hidden]) .ce-cut")
    over = erased.locator("#erase-slider .ce-slide:not([hidden]) .ce-over")
    clip = "e => getComputedStyle(e).clipPath"
    seen = {over.evaluate(clip)}
    cut.focus()
    for _ in range(10):
        cut.press("ArrowRight")
    assert cut.input_value() == "60"
    seen.add(over.evaluate(clip))
    box = cut.bounding_box()
    cut.click(position={"x": box["width"] * 0.2, "y": box["height"] / 2})
    assert int(cut.input_value()) < 40
    seen.add(over.evaluate(clip))
    assert len(seen) == 3
    erased.locator("#erase-slider .ce-pick").nth(1).click()
    expect(erased.locator("#erase-slider .ce-slide:not([hidden])")).to_have_attribute("data-n", "1")


def test_same_request_is_answered_at_once(demo, erased, open_page):
    """Finished work is shown, not redone."""
    reports = demo.finished()
    page = open_page(demo.url)
    studio.chip(page, "twemoji").click()
    page.locator("#erase-go").click()
    expect(studio.state(page, "erase")).to_have_attribute("data-state", "done")
    expect(page.locator("#erase-words")).to_contain_text("twemoji")
    assert demo.finished() == reports


def test_cancel_stops_at_once(page, demo):
    studio.advanced(page, "erase", pictures=500)
    studio.chip(page, "blob").click()
    page.locator("#erase-go").click()
    studio.running(page, "erase")
    expect(studio.state(page, "erase")).to_contain_text("Drawing before", timeout=studio.WORK)
    page.locator("#erase-cancel").click()
    expect(studio.state(page, "erase")).to_have_attribute("data-state", "cancelled")
    assert demo.workers() == []
    assert not list(demo.folder.glob("erasures/blob*/report.json")), "what was cancelled is no result"
    expect(page.locator("#erase-go")).to_be_enabled()


# -- what people and others type -----------------------------------------------------------------------------------


def test_nothing_named(page):
    page.locator("#erase-go").click()
    studio.refused(page, "erase", "pick or type")


def test_names_that_cannot_be_used(page):
    for name, told in {
        "cat " * 200: "characters|tokens|limit|long",
        hostile.BIDI: "control|direction|bidi",
        "a\x00b": "control|character",
    }.items():
        studio.write(page, "erase-target", name)
        page.locator("#erase-go").click()
        expect(studio.state(page, "erase")).to_contain_text(re.compile(told, re.IGNORECASE))
        studio.refused(page, "erase")
        page.locator("#erase-target").get_by_role("button", name="Clear").click()


def test_script_as_a_concept_is_text(page):
    """It is drawn, scored and shown like any other name; no dialog and no element comes of it."""
    studio.advanced(page, "erase", pictures=0)
    page.locator("#erase-anchor").get_by_role("textbox").fill("cat")  # named, so that none has to be looked for
    studio.write(page, "erase-target", hostile.SCRIPT)
    page.locator("#erase-go").click()
    expect(studio.state(page, "erase")).to_have_attribute("data-state", studio.ENDED, timeout=studio.WORK)
    expect(page.get_by_text("<script>alert").first).to_be_visible()
    assert page.locator("img[src=x]").count() == 0
    assert page.evaluate("[...document.scripts].some(s => s.textContent.includes(\"alert('concept')\"))") is False


def test_erased_and_kept_at_once(page):
    studio.chip(page, "twemoji").click()
    studio.write(page, "erase-preserve", "Twemoji")
    page.locator("#erase-go").click()
    studio.refused(page, "erase", "twemoji")


def test_violent_pictures_are_blurred_until_clicked(page):
    page.locator("#erase-kind").get_by_text("Violent content").click()
    expect(studio.chip(page, "bomb")).to_be_visible()
    blur = "e => getComputedStyle(e).filter"
    expect(studio.chip(page, "bomb").locator("img")).to_be_visible(timeout=studio.WORK)
    assert "blur" in studio.chip(page, "bomb").locator("img").evaluate(blur)
    studio.chip(page, "bomb").click()
    studio.advanced(page, "erase", pictures=4)
    page.locator("#erase-go").click()
    studio.ended(page, "erase")
    first = page.locator("#erase-slider .ce-slide:not([hidden])")
    assert "blur" in first.locator("img").first.evaluate(blur)
    for thumbnail in page.locator("#erase-slider .ce-pick.ce-blurred img").all():
        assert "blur" in thumbnail.evaluate(blur)
    first.locator(".ce-veil").click()
    expect(first.locator("img").first).to_have_css("filter", "none")
    hidden = page.locator("#erase-grid .ce-sensitive img").first
    assert "blur" in hidden.evaluate(blur)
    page.locator(".ce-unveil-all").first.click()
    expect(hidden).to_have_css("filter", "none")
