"""The page of a batch in a browser: its script, its veils and its Content-Security-Policy."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image
from playwright.sync_api import expect
from test_gallery import HOSTILE, entry, index, joint, scores

from concept_erase.batch.gallery import page as gallery_page

CARDS = "#cards article:visible h3 bdi"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """The address of a page with six adapters and a joint one."""
    folder = tmp_path_factory.mktemp("gallery")
    entries = [
        entry("twemoji", tags=["icons", "flat"], scores=scores(ua=10)),
        entry("bomb", "violence", scores=scores(ua=20)),
        entry("Cézanne", tags=["painters"], scores=scores(ira=10)),
        entry("artist 10", scores=None, picture=None),
        entry("artist 9", tags=["Icons"], scores=scores(ua=15)),
        entry(HOSTILE[1], "object", tags=[HOSTILE[0]], scores=scores(ua=5)),
    ]
    for number, one in enumerate(entries):
        one["folder"] = f"concepts/{number}"
    joined = joint(members=[one["target"] for one in entries])
    for one in (*entries, joined):
        path = folder / one["folder"] / "before_after.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (1288, 1540), "white").save(path)
    (folder / "favicon.ico").touch()  # a browser asks for it by itself
    (folder / "index.html").write_text(gallery_page(index(*entries, joint=[joined])), encoding="utf-8")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/index.html"
    server.shutdown()
    server.server_close()


def test_search_filter_and_sort(open_page, gallery):
    page = open_page(gallery)
    cards = page.locator(CARDS)
    expect(cards).to_have_count(6)
    page.keyboard.press("/")
    page.keyboard.type("cezanne flu")
    expect(cards).to_have_text(["Cézanne"])
    expect(page.locator("#count")).to_have_text("1 of 6")
    page.keyboard.press("Escape")
    expect(cards).to_have_count(6)
    page.get_by_role("button", name="icons").focus()
    page.keyboard.press("Space")
    expect(cards).to_have_text(["twemoji", "artist 9"])
    page.get_by_role("button", name="violence").click()
    expect(cards).to_have_count(0)
    page.get_by_role("button", name="Show all").click()
    page.get_by_label("Sort by").select_option("name")
    expect(cards).to_have_text([HOSTILE[1], "artist 9", "artist 10", "bomb", "Cézanne", "twemoji"])
    page.get_by_label("Sort by").select_option("ua")
    expect(cards).to_have_text([HOSTILE[1], "twemoji", "artist 9", "bomb", "Cézanne", "artist 10"])
    page.get_by_label("Sort by").select_option("-ira")
    expect(cards.last).to_have_text("artist 10")
    expect(cards.nth(4)).to_have_text("Cézanne")


def test_a_violent_picture_is_veiled_until_it_is_asked_for(open_page, gallery):
    page = open_page(gallery)
    card = page.locator("article[data-name=bomb]")
    veil, picture = card.get_by_role("checkbox"), card.locator("img")
    blurred = "getComputedStyle(document.querySelector('article[data-name=bomb] img')).filter"
    picture.scroll_into_view_if_needed()
    assert "blur" in page.evaluate(blurred)
    expect(card.get_by_role("link", name="bomb: pictures")).to_have_count(0)  # no key leads to it either
    veil.focus()
    assert "blur" in page.evaluate(blurred)
    page.keyboard.press("Space")
    assert "blur" not in page.evaluate(blurred)
    card.get_by_text("Hide").click()
    assert "blur" in page.evaluate(blurred)
    card.locator(".sheet").click(position={"x": 30, "y": 30})  # anywhere on it: shows it, and leads nowhere
    assert "blur" not in page.evaluate(blurred)
    assert page.url == gallery
    assert "blur" in page.evaluate("getComputedStyle(document.querySelector('.joint img')).filter")


def test_all_is_there_without_the_script(open_page, gallery):
    page = open_page(gallery, java_script_enabled=False)
    expect(page.locator(CARDS)).to_have_count(6)
    expect(page.locator("#tools")).to_be_hidden()
    page.locator("article[data-name=bomb] label").click()
    expect(page.locator("article[data-name=bomb]").get_by_role("checkbox")).to_be_checked()


def test_nothing_else_may_run_or_be_loaded(open_page, gallery):
    page = open_page(gallery)
    page.evaluate(
        """() => {
            const add = (tag, values) => document.body.append(Object.assign(document.createElement(tag), values));
            add("script", { textContent: "window.ran = true" });
            add("img", { src: "http://example.org/x.png" });
            add("style", { textContent: "body { opacity: 0.5 }" });
        }"""
    )
    page.wait_for_timeout(200)
    assert page.evaluate("[window.ran, getComputedStyle(document.body).opacity]") == [None, "1"]
    open_page.excuse("Content Security Policy", "http://example.org/x.png")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_at_the_side(open_page, gallery, scheme, width):
    page = open_page(gallery, color_scheme=scheme, viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = page.evaluate(
        "(s => [s.color, s.backgroundColor].map((c) => Number(c.match(/[0-9]+/)[0])))(getComputedStyle(document.body))"
    )
    assert abs(ink - paper) > 150
    assert (ink > paper) == (scheme == "dark")
