"""kill -9 in the middle of the work, and the same folder again."""

import os
import time
from pathlib import Path

from playwright.sync_api import Page, expect

from . import studio


def pictures() -> dict[Path, int]:
    """Drawn pictures in the cache, and when each was written."""
    folder = Path(os.environ["CONCEPT_ERASE_CACHE"]) / "pictures"
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*.png")}


def erase(page: Page, name: str, anchor: str, n: int) -> None:
    """Begin an erasure whose anchor need not be looked for."""
    studio.advanced(page, "erase", pictures=n)
    page.locator("#erase-anchor").get_by_role("textbox").fill(anchor)
    studio.chip(page, name).click()
    expect(studio.chip(page, name)).to_have_attribute("aria-pressed", "true")
    page.locator("#erase-go").click()


def test_work_goes_on_after_kill_9(own_demo, open_page, tmp_path, monkeypatch):
    monkeypatch.setenv("CONCEPT_ERASE_CACHE", str(tmp_path / "cache"))  # nobody else writes into it, or drew before
    own_demo.start()
    page = open_page(own_demo.url)
    erase(page, "twemoji", "noto", 0)
    studio.ended(page, "erase")
    first = own_demo.finished()
    assert len(first) == 1

    page.goto(own_demo.url)
    erase(page, "blob", "fluent", 12)
    expect(studio.state(page, "erase")).to_contain_text("Drawing", timeout=studio.WORK)
    (worker,) = own_demo.workers()
    page.close()
    own_demo.kill()
    # Of the page that was left, whose streams break off at whatever they were doing.
    open_page.excuse(*studio.LEFT, "404: Not Found", "network error", "ERR_INCOMPLETE_CHUNKED_ENCODING")
    before = pictures()
    end = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert own_demo.workers() == [], "work goes on without the demo that started it"
    assert own_demo.finished() == first

    own_demo.start()
    page = open_page(own_demo.url)
    studio.running(page, "erase")
    studio.ended(page, "erase")
    expect(page.locator("#erase-words")).to_contain_text("of 12 pictures are still recognised as blob")
    after = own_demo.finished()
    assert len(after) == 2
    assert {path: after[path] for path in first} == first
    assert {path: when for path, when in pictures().items() if path in before} == before
