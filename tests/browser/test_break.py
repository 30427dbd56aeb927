"""Try to break it: the original and the erased generator side by side."""

import re

import pytest
from playwright.sync_api import Page, expect

from concept_erase import embedded

from . import hostile, studio


@pytest.fixture
def arena(erased) -> Page:
    """The tab with twemoji's erasure picked."""
    studio.tab(erased, "Try to break it")
    expect(erased.locator("#break-adapter .token")).to_have_count(1)  # what was just looked at
    expect(erased.locator("#break-adapter .token")).to_contain_text("twemoji")
    return erased


def difference(page: Page) -> float:
    return studio.distance(
        studio.pixels(page.locator("#break-original img")), studio.pixels(page.locator("#break-erased img"))
    )


def test_only_the_erased_concept_changes(arena):
    studio.draw(arena, "a cat in twemoji style")
    expect(arena.locator("#break-original")).to_contain_text("twemoji")
    expect(arena.locator("#break-erased")).not_to_contain_text("twemoji")
    expect(arena.locator("#break-verdict")).to_contain_text("It held in 1 of 1 seed")
    changed = difference(arena)
    studio.draw(arena, "a cat in blue ink style")
    assert difference(arena) < changed / 3
    expect(arena.locator("#break-verdict")).to_contain_text("on either side")
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


def test_each_picture_is_blurred_by_what_it_shows(arena):
    studio.draw(arena, "a tulip, not a knife, in noto style")
    for side in ("original", "erased"):
        shown = arena.locator(f"#break-{side} .ce-quiet").inner_text()
        veiled = arena.locator(f"#break-{side} .ce-sensitive").count() == 1
        assert veiled == any(name in shown for name in embedded.objects(violent=True))
    assert arena.locator("#break-result .ce-sensitive").count() == 0  # a tulip is what both show


def test_counted_over_several_seeds(arena):
    arena.locator("#break-prompt").get_by_role("textbox").fill("a twemoji cat")
    arena.locator("#break-count").click()
    studio.ended(arena, "break")
    tries = arena.locator("#break-result .ce-tried")
    expect(tries).to_have_count(4)
    through = [t for t in tries.all() if "twemoji" in t.locator(".ce-quiet").nth(1).inner_text()]
    word = f"It came through in {len(through)} of 4 seeds" if through else "It held in 4 of 4 seeds"
    expect(arena.locator("#break-verdict")).to_contain_text(word)
    expect(arena.locator("#break-verdict")).to_contain_text(re.compile("the original shows it in [1-4] of 4"))


def test_an_erasure_at_no_strength_is_said_to_come_through(arena):
    studio.unfold(arena, "break-advanced")
    arena.locator("#break-scale input[type=number]").fill("0")
    arena.locator("#break-scale input[type=number]").press("Tab")
    studio.draw(arena, "a cat in twemoji style")
    expect(arena.locator("#break-verdict")).to_contain_text("It came through in 1 of 1 seed")


def test_nothing_is_picked_before_anything_was_looked_at(erased, open_page, demo):
    page = open_page(demo.url)
    studio.tab(page, "Try to break it")
    page.locator("#break-adapter input").first.click()
    expect(page.get_by_role("option", name="twemoji").first).to_be_visible()  # the list has come
    expect(page.locator("#break-adapter .token")).to_have_count(0)
