"""What a person has typed or picked stays: no late answer of the server and nothing of the page overwrites it."""

import contextlib
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, Route, expect

from . import studio

SETTLED = 1500  # milliseconds in which a page that is slowed down has answered


@contextlib.contextmanager
def slow(page: Page, rate: float = 6) -> Iterator[None]:
    """The browser as on a machine that is busy: everything on the page takes `rate` times as long."""
    devtools = page.context.new_cdp_session(page)
    devtools.send("Emulation.setCPUThrottlingRate", {"rate": rate})
    yield
    devtools.send("Emulation.setCPUThrottlingRate", {"rate": 1})


# Types into each field in the very moment that it is there: no person and no test is as quick.
AT_ONCE = """([open, wanted]) => new Promise((done, failed) => {
    const left = new Map(Object.entries(wanted));
    const look = () => {
        for (const [field, value] of left) {
            const e = document.querySelector(field);
            if (!e) continue;
            left.delete(field);
            if (e.type === 'checkbox') { if (e.checked !== value) e.click(); continue; }
            e.value = value;
            e.dispatchEvent(new Event('input', {bubbles: true}));
            e.dispatchEvent(new Event('blur', {bubbles: true}));
        }
        if (left.size) return;
        watch.disconnect();
        setTimeout(() => done(Object.fromEntries(Object.keys(wanted).map((field) => {
            const e = document.querySelector(field);
            return [field, e.type === 'checkbox' ? e.checked : e.value];
        }))), 1500);
    };
    const watch = new MutationObserver(look);
    watch.observe(document, {subtree: true, childList: true});
    setTimeout(() => failed(new Error(`not there: ${[...left.keys()]}`)), 20000);
    open.map((button) => document.querySelector(button)).forEach((button) => button.click());
    look();
})"""
FOLDED = {
    "erase": {
        "#erase-anchor :is(input, textarea)": "car", "#erase-pictures input": "3", "#erase-steps input": "5",
        "#erase-half input": True,
    },
    "batch": {"#batch-pictures input": "0", "#batch-steps input": "2", "#batch-half input": True},
    "break": {
        "#break-seed input": "17", "#break-prompt :is(input, textarea)": "a cat",
        "#break-scale input[type=number]": "0.5",
    },
    "model": {"#model-source :is(input, textarea)": "some/model", "#model-scorer :is(input, textarea)": "a:b"},
}  # fmt: skip
OPENED = {
    "erase": ["#erase-advanced button"], "batch": ["#tab-batch-button", "#batch-advanced button"],
    "break": ["#tab-break-button", "#break-advanced button"], "model": ["#model-choice button"],
}  # fmt: skip


@pytest.mark.parametrize("part", list(FOLDED))
def test_typed_in_the_moment_of_unfolding(page, part):
    expect(page.locator("#erase-go")).to_be_visible()
    with slow(page):
        assert page.evaluate(AT_ONCE, [OPENED[part], FOLDED[part]]) == FOLDED[part]


def test_typed_right_after_unfolding(page):
    with slow(page):
        studio.advanced(page, "erase", pictures=3, steps=5)
        page.locator("#erase-anchor").get_by_role("textbox").fill("car")
        page.locator("#erase-half input").check()
        page.wait_for_timeout(SETTLED)
    assert page.locator("#erase-pictures input").input_value() == "3"
    assert page.locator("#erase-steps input").input_value() == "5"
    assert page.locator("#erase-anchor").get_by_role("textbox").input_value() == "car"
    assert page.locator("#erase-half input").is_checked()


FOLDS = ("model-choice", "erase-advanced", "break-advanced", "batch-advanced")
# Clicks twice on each fold in the very moment that it is there, as somebody does who sees nothing happen.
UNFOLD_AT_ONCE = """(() => {
    const clicked = new Set();
    new MutationObserver(() => document.querySelectorAll('.ce-unfold').forEach((button) => {
        const { id } = button.closest('.ce-fold');
        if (clicked.has(id)) return;
        clicked.add(id);
        for (const detail of [1, 2])
            button.dispatchEvent(new MouseEvent('click', {bubbles: true, detail}));
    })).observe(document, {subtree: true, childList: true});
})()"""


def folds(page: Page) -> dict[str, list]:
    """Of each fold: whether it says that it is open, and whether what is in it can be seen."""
    script = """(id) => { const fold = document.getElementById(id), inside = document.getElementById(`${id}-inside`);
        return [fold.querySelector('.ce-unfold').getAttribute('aria-expanded'),
                getComputedStyle(inside).display !== 'none']; }"""
    return {name: page.evaluate(script, name) for name in FOLDS}


def test_unfolded_in_the_first_moment_of_a_page(page):
    page.add_init_script(UNFOLD_AT_ONCE)
    with slow(page):
        page.reload()
        expect(page.locator("#erase-pictures input")).to_be_visible()
        page.wait_for_timeout(SETTLED)
    assert folds(page) == {name: ["true", True] for name in FOLDS}


def test_a_fold_is_open_until_it_is_closed(page):
    fold = page.locator("#erase-advanced .ce-unfold")
    fold.dblclick()
    assert folds(page)["erase-advanced"] == ["true", True]
    # Built anew by the page's own code, as it was sent; and our script is put into the page once more.
    page.evaluate("""() => {
        const fold = document.getElementById('erase-advanced');
        fold.removeAttribute('data-open');
        const anew = fold.cloneNode(true);
        anew.querySelector('.ce-unfold').setAttribute('aria-expanded', 'false');
        fold.replaceWith(anew);
        const ours = [...document.scripts].find((script) => script.textContent.includes('ce-unfold'));
        const again = document.createElement('script');
        again.textContent = ours.textContent;
        document.head.append(again);
    }""")
    assert folds(page)["erase-advanced"] == ["true", True]
    fold.click()
    assert folds(page)["erase-advanced"] == ["false", False]
    fold.click()
    assert folds(page)["erase-advanced"] == ["true", True]


def test_settings_of_a_method_typed_right_after_it_was_chosen(page):
    studio.unfold(page, "erase-advanced")
    with slow(page):
        page.locator("#erase-method input").click()
        page.get_by_role("option", name="encoder:").click()
        number = page.locator("#erase-methods > .ce-of-encoder input[type=number]").first
        number.fill("7")
        number.press("Tab")
        page.wait_for_timeout(SETTLED)
    assert number.input_value() == "7"
    expect(page.locator("#erase-methods > .ce-of-uce")).to_be_hidden()


# -- answers that come late --------------------------------------------------------------------------------------


class Late:
    """Holds back what the page asks its server for, from now on until told."""

    def __init__(self, page: Page) -> None:
        self._page, self._held, self._late = page, list[Route](), True
        page.route("**/queue/join*", self._come)

    def _come(self, route: Route) -> None:
        if self._late:
            self._held.append(route)
        else:
            route.continue_()

    def go(self) -> None:
        """Let all of it through and wait until it was answered."""
        self._late = False
        for route in self._held:
            route.continue_()
        self._page.wait_for_timeout(SETTLED)


def picked(page: Page, field: str) -> list[str]:
    """What is picked in a field that takes several."""
    return [token.inner_text().strip() for token in page.locator(f"#{field} .token").all()]


def test_names_typed_once_the_kind_has_changed(page):
    studio.chip(page, "twemoji").click()
    late = Late(page)
    page.locator("#erase-kind").get_by_text("An object").click()
    expect(studio.chip(page, "guitar")).to_be_visible()  # no answer is needed for that
    studio.write(page, "erase-target", "violin")
    studio.write(page, "erase-preserve", "my old car")
    studio.chip(page, "guitar").click()
    late.go()
    assert picked(page, "erase-target") == ["violin", "guitar"]  # twemoji is no object
    assert picked(page, "erase-preserve") == ["my old car"]
    expect(studio.chip(page, "guitar")).to_have_attribute("aria-pressed", "true")


def test_half_a_name_survives_new_choices(page):
    late = Late(page)
    page.locator("#erase-kind").get_by_text("Violent content").click()
    box = page.locator("#erase-target input").first
    box.press_sequentially("knuckle dus")
    late.go()
    assert box.input_value() == "knuckle dus"


def test_names_of_ones_own_outlive_another_kind(page):
    studio.write(page, "erase-target", "Hilma af Klint")
    page.locator("#erase-kind").get_by_text("A person").click()
    page.wait_for_timeout(SETTLED)
    assert picked(page, "erase-target") == ["Hilma af Klint"]


def test_tiles_of_the_kind_that_is_chosen_by_now(page):
    late = Late(page)
    page.locator("#erase-kind").get_by_text("An object").click()
    page.locator("#erase-kind").get_by_text("Violent content").click()
    late.go()
    expect(studio.chip(page, "bomb")).to_be_visible()
    expect(studio.chip(page, "guitar")).to_be_hidden()
    expect(studio.chip(page, "twemoji")).to_be_hidden()


def test_picked_while_the_library_is_read(erased):
    page = erased
    studio.tab(page, "Library")
    expect(page.locator("#library-list .ce-take").first).to_be_visible()
    studio.tab(page, "Erase")
    late = Late(page)
    studio.tab(page, "Library")
    page.locator("#library-list .ce-take").first.click()
    late.go()
    assert len(picked(page, "library-pick")) == 1
    expect(page.locator("#library-list .ce-take").first).to_have_attribute("aria-pressed", "true")


def test_typed_while_the_list_of_erasures_is_read(erased):
    page = erased
    late = Late(page)
    studio.tab(page, "Try to break it")
    page.locator("#break-prompt").get_by_role("textbox").fill("a cat")
    page.locator("#break-seed input").fill("17")
    late.go()
    assert page.locator("#break-prompt").get_by_role("textbox").input_value() == "a cat"
    assert page.locator("#break-seed input").input_value() == "17"


def test_cleared_erasures_stay_cleared(erased):
    page = erased
    studio.tab(page, "Try to break it")
    expect(page.locator("#break-adapter .token")).to_have_count(1)
    page.locator("#break-adapter").get_by_role("button", name="Clear").click()
    studio.tab(page, "Erase")
    studio.tab(page, "Try to break it")
    page.wait_for_timeout(SETTLED)
    assert picked(page, "break-adapter") == []
