"""What runs and waits: listed on every tab and every page, with names, places and a button to cancel."""

import time

from playwright.sync_api import Page, expect

from . import studio


def begin(page: Page, name: str, pictures: int = 400) -> None:
    """Begin an erasure that takes long and whose anchor need not be looked for."""
    studio.advanced(page, "erase", pictures=pictures)
    page.locator("#erase-anchor").get_by_role("textbox").fill("fluent")
    studio.chip(page, name).click()
    page.locator("#erase-go").click()
    expect(page.locator("#erase-status")).to_contain_text(f"Erasing {name}")


def row(page: Page, name: str):
    return page.locator("#jobs-list li").filter(has_text=f"Erasing {name}")


def test_jobs_are_listed_kept_and_cancelled(own_demo, open_page):
    own_demo.start()
    page = open_page(own_demo.url)
    expect(page.locator("#jobs-list")).to_have_count(0)
    begin(page, "twemoji")
    other = open_page(own_demo.url)
    expect(row(other, "twemoji")).to_be_visible()
    expect(other.locator("#erase-status")).to_contain_text("Erasing twemoji")  # a page that comes says what is done
    begin(other, "noto")
    third = open_page(own_demo.url)
    begin(third, "blob")
    for name in ("My style", "Library"):
        studio.tab(third, name)
        expect(row(third, "noto")).to_contain_text("waiting, number 1")
        expect(row(third, "blob")).to_contain_text("waiting, number 2")
    expect(row(third, "twemoji")).to_contain_text("Drawing before", timeout=studio.WORK)

    page.close()
    other.reload()
    expect(row(other, "noto")).to_be_visible()
    row(other, "noto").get_by_role("button", name="Cancel: Erasing noto").click()
    expect(row(other, "noto")).to_have_count(0)
    expect(row(third, "blob")).to_contain_text("waiting, number 1")
    row(third, "twemoji").get_by_role("button").click()
    expect(row(third, "twemoji")).to_have_count(0)
    expect(row(third, "blob")).not_to_contain_text("waiting")
    row(third, "blob").get_by_role("button").click()
    expect(third.locator("#jobs-list")).to_have_count(0)
    expect(studio.state(third, "erase")).to_have_attribute("data-state", "cancelled")
    open_page.excuse(*studio.LEFT)  # of the page that was loaded again


def test_what_ended_while_the_page_was_closed_is_pointed_to(own_demo, open_page):
    own_demo.start()
    page = open_page(own_demo.url)
    expect(page.locator("#jobs-missed section")).to_have_count(1)
    begin(page, "twemoji", pictures=0)
    page.wait_for_function("localStorage.getItem('ce-seen')")
    page.close()
    end = time.monotonic() + studio.WORK / 1000
    while '"state": "done"' not in next(own_demo.folder.glob("jobs/*/job.json")).read_text():
        assert time.monotonic() < end
        time.sleep(0.2)
    page = open_page(own_demo.url)
    missed = page.locator("#jobs-missed li").filter(has_text="Erasing twemoji")
    expect(page.locator("#jobs-missed")).to_contain_text("Finished while you were away")
    missed.get_by_role("button", name="Open twemoji").click()
    expect(page.locator("#library-item-words")).to_contain_text("twemoji")
    expect(page.get_by_role("tab", name="Library", exact=True)).to_have_attribute("aria-selected", "true")
    expect(missed).to_be_hidden()
    page.wait_for_timeout(1200)  # the page remembers by now that this was seen
    page.reload()
    expect(page.locator("#jobs-missed section")).to_have_count(1)
    expect(page.locator("#jobs-missed li")).to_have_count(0)
    open_page.excuse(*studio.LEFT)  # of the pages that were left
