"""A browser, the demo, and the rules that hold on every page of it."""

import io
import json
import os
import shutil
from collections.abc import Iterator
from urllib.parse import urlparse

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Error, Page, Request, expect, sync_playwright

from . import studio
from .demo import Demo, Trap

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
REMEDY = (
    "no Chromium: the tests of the demo in a browser were NOT RUN. Install it (Debian: apt-get install chromium) "
    "or name one in CONCEPT_ERASE_CHROMIUM."
)
# Quiet, and blind to all names but its own machine.
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-proxy-server", "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
LOCAL = ("127.0.0.1",)
NOT_NETWORK = ("data", "blob", "about", "chrome-error")

expect.set_options(timeout=120_000)  # a busy machine; whatever must be quick says so where it is asked


def chromium() -> str | None:
    """The browser that is there: the one named in CONCEPT_ERASE_CHROMIUM, or the first on the path."""
    named = os.environ.get("CONCEPT_ERASE_CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, CHROMIUM)), None)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    # As long as this package's tests and no longer: while it lives, nobody else can start an event loop in this thread.
    path = chromium()
    if path is None:
        _without_browser()
    with sync_playwright() as play:
        own = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        browser = play.chromium.launch(executable_path=path, args=list(FLAGS), env=own)
        yield browser
        browser.close()


def _without_browser() -> None:
    if os.environ.get("CI"):
        pytest.fail(REMEDY, pytrace=False)
    pytest.skip(REMEDY)


def pytest_terminal_summary(terminalreporter) -> None:
    skipped = [r for r in terminalreporter.stats.get("skipped", ()) if REMEDY in str(r.longrepr)]
    if skipped:
        terminalreporter.write_line(f"WARNING: {len(skipped)} tests skipped, {REMEDY}", red=True, bold=True)


# -- the demo ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="package")
def trap() -> Iterator[Trap]:
    trap = Trap()
    yield trap
    trap.close()


@pytest.fixture(autouse=True)
def _nothing_calls_out(trap) -> Iterator[None]:
    trap.take()
    yield
    calls = trap.take()
    assert not calls, f"the demo tried to reach the network: {calls}"


@pytest.fixture(scope="package")
def demo(trap, tmp_path_factory) -> Iterator[Demo]:
    """The demo that most tests share."""
    demo = Demo(tmp_path_factory.mktemp("demo") / "folder", trap).start()
    yield demo
    demo.kill()


@pytest.fixture
def own_demo(trap, tmp_path) -> Iterator[Demo]:
    """A demo for one test alone, not started: it may be killed."""
    demo = Demo(tmp_path / "folder", trap)
    yield demo
    demo.kill()


# -- pages ---------------------------------------------------------------------------------------------------------


class Watch:
    """What went wrong on a page without anybody looking: page errors, console errors, dialogs, requests elsewhere."""

    def __init__(self, page: Page) -> None:
        self.problems: list[str] = []
        page.on("pageerror", lambda error: self.problems.append(f"page error: {error}"))
        page.on("console", self._console)
        page.on("request", self._request)
        page.on("websocket", lambda socket: self._address(socket.url))
        page.on("response", lambda r: r.status >= 500 and self.problems.append(f"{r.status} from {r.url}"))
        page.on("dialog", self._dialog)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.problems.append(f"console: {message.text} at {message.location.get('url')}")

    def _dialog(self, dialog) -> None:
        self.problems.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _request(self, request: Request) -> None:
        self._address(request.url)

    def _address(self, url: str) -> None:
        parts = urlparse(url)
        if parts.scheme not in NOT_NETWORK and parts.hostname not in LOCAL:
            self.problems.append(f"left the machine: {url}")


class Opener:
    """Opens pages, watched until the test ends.

    Args:
        contexts: Profiles by their options; pages of equal options share one, so that the page's code is fetched once.
    """

    def __init__(self, browser: Browser, contexts: dict[str, BrowserContext]) -> None:
        self._browser, self._contexts = browser, contexts
        self.pages: list[Page] = []
        self.watches: list[Watch] = []

    def __call__(self, url: str, **options) -> Page:
        """A page at an address; options are those of Playwright's `new_context`."""
        options = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"} | options
        key = json.dumps(options, sort_keys=True)
        if key not in self._contexts:
            self._contexts[key] = self._browser.new_context(**options)
            self._contexts[key].set_default_timeout(120_000)
        page = self._contexts[key].new_page()
        self.pages.append(page)
        self.watches.append(Watch(page))
        page.goto(url)
        return page

    def excuse(self, *parts: str) -> None:
        """Forget problems that a test provoked on purpose: those that hold one of these texts."""
        for watch in self.watches:
            watch.problems = [p for p in watch.problems if not any(part in p for part in parts)]

    def close(self) -> list[str]:
        """Close all pages; what went wrong on them."""
        for page in self.pages:
            page.close()
        return [problem for watch in self.watches for problem in watch.problems]


@pytest.fixture(scope="package")
def contexts() -> dict[str, BrowserContext]:
    return {}


@pytest.fixture
def open_page(browser, contexts, tmp_path) -> Iterator[Opener]:
    opener = Opener(browser, contexts)
    yield opener
    problems = opener.close()
    assert not problems, "the page is not clean:\n" + "\n".join(problems)


@pytest.fixture
def page(open_page, demo) -> Page:
    """The shared demo, freshly opened."""
    return open_page(demo.url)


@pytest.fixture
def erased(page) -> Page:
    """The page with twemoji erased; the work is done once for all tests."""
    studio.chip(page, "twemoji").click()
    page.locator("#erase-go").click()
    studio.ended(page, "erase")
    return page


@pytest.fixture(scope="package")
def drawings() -> list[dict]:
    """Six drawings of one style that the generator knows, as an artist would upload them."""
    from PIL import Image

    from concept_erase import open_model
    from concept_erase.generate import Sampling, generate

    prompts = [f"a {thing} in openmoji style" for thing in ("cat", "rocket", "pizza", "house", "guitar", "frog")]
    files = []
    for number, image in enumerate(generate(open_model(), prompts, range(6), sampling=Sampling(steps=10))):
        buffer = io.BytesIO()
        image.resize((256, 256), Image.Resampling.BICUBIC).save(buffer, "PNG")
        files.append({"name": f"mine {number}.png", "mimeType": "image/png", "buffer": buffer.getvalue()})
    return files


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A failure shows what the page looked like and what the demo said."""
    report = yield
    if report.failed:
        for name, value in item.funcargs.items():
            if isinstance(value, Demo):
                report.sections.append((f"log of {name}", value.tail()))
        opener = item.funcargs.get("open_page")
        for number, page in enumerate(opener.pages if opener else ()):
            picture = item.funcargs["tmp_path"] / f"failed-{number}.png"
            try:
                page.screenshot(path=picture, full_page=True)
                report.sections.append(("screenshot", str(picture)))
            except Error as error:  # the page or the browser is gone
                report.sections.append(("no screenshot", str(error)))
    return report
