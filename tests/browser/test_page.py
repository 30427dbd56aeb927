"""What holds on every tab: reachable by keyboard, readable in light and dark, narrow windows, words for pictures."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from . import studio

TABS = ("Erase", "My style", "Try to break it", "Batch", "Library")
IMAGES = """() => [...document.images].filter(i => i.checkVisibility()).map(i => ({
    alt: i.getAttribute('alt'),
    named: !!i.closest('button, a, [role=button]')?.innerText.trim() || !!i.closest('[aria-label]'),
    html: i.outerHTML.slice(0, 80),
}))"""
FOCUS = """() => {
    const shown = (e) => {
        const style = getComputedStyle(e);
        return (style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2) || style.boxShadow !== 'none';
    };
    const e = document.activeElement;
    const around = [e, e.parentElement, e.closest('label'), e.closest('.ce-frame'), e.closest('.block')];
    return {
        id: e.id, html: e.outerHTML.slice(0, 120), seen: around.some((x) => x && shown(x)),
        inside: e !== document.body && e.getBoundingClientRect().width > 0,
    };
}"""


def walk(page, until: str, most: int = 60) -> list[dict]:
    """Press Tab until an element has the focus; every stop on the way."""
    stops = []
    for _ in range(most):
        page.keyboard.press("Tab")
        stops.append(page.evaluate(FOCUS))
        if stops[-1]["id"] == until:
            return stops
    raise AssertionError(f"#{until} was not reached with {most} tabs: {[s['html'][:60] for s in stops]}")


def complaints(page) -> list[str]:
    """What the axe rules of accessibility find."""
    return [
        f"{rule['id']}: {node['html'][:160]}"
        for rule in Axe().run(page).response["violations"]
        for node in rule["nodes"]
    ]


def light(page, what: str) -> float:
    """Lightness of a colour of the page, from 0 to 255."""
    seen = """(e, what) => {
        while (e.parentElement && getComputedStyle(e)[what] === 'rgba(0, 0, 0, 0)') e = e.parentElement;
        return getComputedStyle(e)[what];
    }"""
    colour = page.get_by_role("heading", level=1).evaluate(seen, what)
    red, green, blue = (float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3])
    return 0.3 * red + 0.59 * green + 0.11 * blue


def test_keyboard_alone_erases(erased, open_page, demo):
    page = open_page(demo.url)
    expect(studio.chip(page, "twemoji")).to_be_visible()
    stops = walk(page, "erase-go")
    assert all(stop["seen"] for stop in stops if stop["inside"]), [s["html"] for s in stops if not s["seen"]]
    page.keyboard.press("Enter")
    studio.refused(page, "erase", "pick")
    studio.chip(page, "twemoji").focus()
    page.keyboard.press("Enter")
    walk(page, "erase-go")
    page.keyboard.press("Enter")
    expect(page.locator("#erase-words")).to_contain_text("twemoji", timeout=studio.WORK)


def test_tabs_by_arrow_or_tab_key(page):
    page.get_by_role("tab", name="Erase", exact=True).focus()
    for name in TABS[1:]:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.innerText").strip() == name
    page.keyboard.press("Enter")
    expect(page.get_by_role("tab", name="Library", exact=True)).to_have_attribute("aria-selected", "true")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable_in_every_tab(open_page, demo, erased, scheme):
    page = open_page(demo.url, color_scheme=scheme)
    assert (light(page, "backgroundColor") < 60) == (scheme == "dark")
    assert (light(page, "color") > 180) == (scheme == "dark")
    studio.chip(page, "twemoji").click()
    page.locator("#erase-go").click()
    studio.ended(page, "erase")
    expect(page.locator("#erase-grid")).to_be_visible()
    for name in TABS:
        studio.tab(page, name)
        expect(page.get_by_role("tab", name=name, exact=True)).to_have_attribute("aria-selected", "true")
        assert complaints(page) == [], name
        wordless = [i for i in page.evaluate(IMAGES) if i["alt"] is None or not (i["alt"].strip() or i["named"])]
        assert wordless == [], name


@pytest.mark.parametrize("width", [420, 360])
def test_narrow_windows_do_not_scroll_sideways(open_page, demo, erased, width):
    page = open_page(demo.url, viewport={"width": width, "height": 800})
    studio.chip(page, "twemoji").click()
    page.locator("#erase-go").click()
    studio.ended(page, "erase")
    expect(page.locator("#erase-slider")).to_be_visible()
    too_wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(too_wide) <= 0
    cut = page.locator("#erase-slider .ce-frame").first.bounding_box()
    assert cut["x"] >= 0
    assert cut["x"] + cut["width"] <= width
    for name in TABS[1:]:
        if not page.get_by_role("tab", name=name, exact=True).is_visible():
            page.locator("#tabs .overflow-menu button").first.click()
            page.locator("#tabs .overflow-dropdown").get_by_text(name, exact=True).click()
        else:
            studio.tab(page, name)
        assert page.evaluate(too_wide) <= 0, name


# -- choice of the generator ---------------------------------------------------------------------------------------


def choose(page, source: str) -> None:
    studio.unfold(page, "model-choice")
    page.locator("#model-source").get_by_role("textbox").fill(source)
    page.locator("#model-use").click()


def test_generator_from_a_folder(page, base_folder):
    choose(page, str(base_folder))
    studio.ended(page, "model")
    expect(studio.state(page, "model")).to_contain_text(base_folder.name)
    choose(page, "")
    expect(studio.state(page, "model")).to_contain_text("built-in")


def test_generators_that_cannot_be(page):
    for source, words in {
        "/": "/ has no model_index.json",
        "https://example.com/model": "an address is not fetched",
        "/etc/passwd": "passwd has no model_index.json",
        "file:///etc/passwd": "an address is not fetched",
        "no/such/folder/here": "neither a folder",
    }.items():
        choose(page, source)
        studio.refused(page, "model", words)


def test_hub_that_cannot_be_reached(page, trap):
    choose(page, "someone/some-model")
    expect(studio.state(page, "model")).to_contain_text("can the hub be reached", timeout=60_000)
    studio.refused(page, "model", "someone/some-model")
    calls = trap.take()  # asked for by name: the one thing that may look outside
    assert calls
    assert all("huggingface.co" in call for call in calls)
