"""What a person does on the demo's page, by the names of its elements."""

import base64
import io
import re

from PIL import Image
from playwright.sync_api import Locator, Page, expect

WORK = 600_000  # milliseconds a small piece of work may take on a busy machine
# What Gradio writes to the console when a page is left while it asks the server for something, as it does all the time.
LEFT = ("AbortError: signal is aborted", "Connection errored out")
ENDED = re.compile("^(done|failed|cancelled)$")


def tab(page: Page, name: str) -> None:
    """Go to a tab."""
    page.get_by_role("tab", name=name, exact=True).click()


def state(page: Page, prefix: str) -> Locator:
    """The element that says where a tab stands."""
    return page.locator(f"#{prefix}-state")


def ended(page: Page, prefix: str, how: str = "done", within: float = WORK) -> None:
    """Wait until the work of a tab has ended, and as expected."""
    expect(state(page, prefix)).to_have_attribute("data-state", ENDED, timeout=within)
    found = state(page, prefix).get_attribute("data-state")
    assert found == how, f"{prefix} ended {found}: {state(page, prefix).inner_text()}"


def running(page: Page, prefix: str) -> None:
    """Wait until the work of a tab has begun."""
    expect(state(page, prefix)).to_have_attribute("data-state", "running")


def refused(page: Page, prefix: str, *words: str) -> None:
    """What was asked for was not taken, and the page says why beside it."""
    expect(state(page, prefix)).to_have_attribute("data-state", "failed")
    for word in words:
        expect(state(page, prefix)).to_contain_text(word, ignore_case=True)


def chip(page: Page, name: str) -> Locator:
    """The button of a concept that the generator knows."""
    return page.locator(f'#erase-chips [data-name="{name}"]')


def tiles(page: Page) -> None:
    """Wait until the concepts to pick have pictures."""
    expect(page.locator("#erase-chips i:visible")).to_have_count(0, timeout=WORK)


def write(page: Page, field: str, *names: str) -> None:
    """Type names into a field that takes several."""
    box = page.locator(f"#{field} input").first
    for name in names:
        box.fill(name)
        box.press("Enter")
    box.blur()  # its options would lie over what comes next


def unfold(page: Page, name: str) -> None:
    """Open a part of the form that is folded."""
    button = page.locator(f"#{name} .ce-unfold")
    if button.get_attribute("aria-expanded") != "true":
        button.click()


def advanced(page: Page, prefix: str, **numbers: float) -> None:
    """Unfold the advanced settings and change some."""
    unfold(page, f"{prefix}-advanced")
    for name, number in numbers.items():
        page.locator(f"#{prefix}-{name} input").fill(str(number))
        page.locator(f"#{prefix}-{name} input").press("Tab")


def draw(page: Page, prompt: str) -> None:
    """Draw a prompt, other than the last one, in "Try to break it"."""
    page.locator("#break-prompt").get_by_role("textbox").fill(prompt)
    page.locator("#break-go").click()
    expect(page.locator("#break-result .ce-prompt")).to_contain_text(prompt, timeout=WORK)
    expect(state(page, "break")).to_have_attribute("data-state", "done")


def pixels(image: Locator) -> Image.Image:
    """The picture of an <img> whose address is data."""
    source = image.get_attribute("src") or ""
    assert source.startswith("data:image/"), source[:80]
    return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGB")


def distance(a: Image.Image, b: Image.Image) -> float:
    """Mean difference of two pictures of equal size, from 0 to 255."""
    assert a.size == b.size
    bands = [abs(x - y) for x, y in zip(a.tobytes(), b.tobytes(), strict=True)]
    return sum(bands) / len(bands)
