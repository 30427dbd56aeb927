"""Try to break it: the original and the erased generator side by side."""

import re

import pytest
from playwright.sync_api import Page, expect

from . import hostile, studio


@pytest.fixture
def arena(erased) -> Page:
    """The tab with twemoji's erasure picked."""
    studio.tab(erased, "Try to break it")
    studio.only(erased, "break-adapter", "twemoji")
    return erased


def difference(page: Page) -> float:
    return studio.distance(
        studio.pixels(page.locator("#break-original img")), studio.pixels(page.locator("#break-erased img"))
    )


def test_only_the_erased_concept_changes(arena):
    studio.draw(arena, "a cat in twemoji style")
    expect(arena.locator("#break-original")).to_contain_text("twemoji")
    expect(arena.locator("#break-erased")).not_to_contain_text("twemoji")
    changed = difference(arena)
    studio.draw(arena, "a cat in blue ink style")
    assert difference(arena) < changed / 3
    expect(arena.locator("#break-past")).to_contain_text("a cat in twemoji style")


def test_same_seed_same_picture(arena):
    studio.draw(arena, "a twemoji house")
    first = studio.pixels(arena.locator("#break-erased img"))
    studio.draw(arena, "a noto house")
    studio.draw(arena, "a twemoji house")
    assert studio.distance(first, studio.pixels(arena.locator("#break-erased img"))) == 0


def test_ideas_fill_the_prompt(arena):
    idea = arena.locator("#break-ideas [data-prompt]").first
    idea.click()
    expect(arena.locator("#break-prompt").get_by_role("textbox")).to_have_value(idea.get_attribute("data-prompt"))


@pytest.mark.parametrize(("prompt", "word"), [("", "empty"), ("   ", "empty"), ("cat " * 200, "long|limit|tokens")])
def test_prompts_that_cannot_be_drawn(arena, prompt, word):
    arena.locator("#break-prompt").get_by_role("textbox").fill(prompt)
    arena.locator("#break-go").click()
    studio.refused(arena, "break")
    expect(studio.state(arena, "break")).to_contain_text(re.compile(word))


def test_script_as_a_prompt_is_text(arena):
    studio.draw(arena, hostile.SCRIPT[:40])
    expect(arena.locator("#break-result").get_by_text("<script>alert").first).to_be_visible()


def test_violent_prompts_are_blurred(arena):
    studio.draw(arena, "a knife in noto style")
    picture = arena.locator("#break-original img")
    assert "blur" in picture.evaluate("e => getComputedStyle(e).filter")
    arena.locator("#break-original .ce-veil").click()
    expect(picture).to_have_css("filter", "none")
