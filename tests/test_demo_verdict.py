"""Whether an erasure held: counted over seeds by what the judge sees, and honest where there is none."""

import pytest
from PIL import Image

from demos.models import Drawn
from demos.verdict import shows, tried, veiled, verdict

BLANK = Image.new("RGB", (8, 8))


def tries(*seen: tuple[str, str], targets=("twemoji",)):
    return [tried(seed, Drawn(BLANK, BLANK, *pair), targets) for seed, pair in enumerate(seen)]


@pytest.mark.parametrize(
    ("seen", "targets", "answer"),
    [
        ("cat, twemoji", ["twemoji"], True),
        ("cat, twemoji", ["TweMoji"], True),
        ("cat, noto", ["twemoji"], False),
        ("cat, noto", ["twemoji", "cat"], True),
        ("cat, noto", ["twemoji", "Hilma af Klint"], None),  # nobody can tell whether it is a Klint
        ("cat, twemoji", ["twemoji", "Hilma af Klint"], True),
        ("", ["twemoji"], None),
    ],
)
def test_shows(seen, targets, answer):
    assert shows(seen, targets) is answer


def test_counts_over_seeds():
    through = tries(("cat, twemoji", "cat, noto"), ("cat, twemoji", "cat, twemoji"), ("cat, noto", "cat, noto"))
    headline, told = verdict(through, "twemoji")
    assert headline == "It came through in 1 of 3 seeds."
    assert "the original shows it in 2 of 3" in told
    assert verdict(tries(*[("cat, twemoji", "cat, noto")] * 4), "twemoji")[0] == "It held in 4 of 4 seeds."


def test_one_picture_says_little():
    assert "try several seeds" in verdict(tries(("cat, twemoji", "cat, noto")), "twemoji")[1]


def test_prompt_that_shows_it_on_neither_side_says_nothing():
    headline, told = verdict(tries(*[("cat, noto", "cat, noto")] * 4), "twemoji")
    assert "held" not in headline
    assert "says nothing" in told


def test_without_a_judge_one_looks_for_oneself():
    for pairs, targets in (([("", "")], ["twemoji"]), ([("cat, noto", "cat, noto")], ["Hilma af Klint"])):
        headline, _ = verdict(tries(*pairs, targets=targets), targets[0])
        assert headline == "Look for yourself."


@pytest.mark.parametrize(
    ("seen", "words", "answer"),
    [
        ("knife, noto", ["a tulip"], True),
        ("tulip, noto", ["not a knife"], False),
        ("", ["not a knife"], True),
        ("", ["a tulip"], False),
        ("", ["a tulip", "knife"], True),
    ],
)
def test_veiled_by_what_it_shows_and_by_words_without_a_judge(seen, words, answer):
    assert veiled(seen, *words) is answer
