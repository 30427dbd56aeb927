import pytest

from concept_erase import words
from concept_erase.statistics import rate


def of(k, n):
    return rate(k, n).as_dict()


# -- counts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "n", "told"),
    [
        (120, 120, "0 of 120 pictures are still recognised as Twemoji; at most 3%."),
        (200, 200, "0 of 200 pictures are still recognised as Twemoji; at most 2%."),
        (5000, 5000, "0 of 5,000 pictures are still recognised as Twemoji; at most 0.1%."),
        (119, 120, "1 of 120 pictures is still recognised as Twemoji; between 0.1% and 5%."),
        (60, 120, "60 of 120 pictures are still recognised as Twemoji; between 41% and 59%."),
        (0, 120, "120 of 120 pictures are still recognised as Twemoji; at least 97%."),
        (1, 1, "0 of 1 picture is still recognised as Twemoji; at most 79%."),
        (500_000, 1_000_000, "500,000 of 1,000,000 pictures are still recognised as Twemoji; about 50%."),
    ],
)
def test_what_is_still_recognised_is_what_ua_does_not_count(k, n, told):
    assert words.recognised(of(k, n), "Twemoji") == told


@pytest.mark.parametrize("k", range(0, 25, 4))
def test_the_bounds_are_those_of_the_other_rate(k):
    n = 24
    still = rate(n - k, n)
    told = words.recognised(of(k, n), "x")
    bounds = [b for b, wanted in ((still.low, k != n), (still.high, k != 0)) if wanted]
    assert [words.percent(b) for b in bounds] == [part.rstrip(".") for part in told.split() if "%" in part]


def test_it_says_what_was_before():
    told = words.recognised(of(120, 120), "Twemoji", before=of(2, 120))
    assert told == "0 of 120 pictures are still recognised as Twemoji; at most 3%. Before, 118 were."
    assert words.recognised(of(3, 3), "x", before=of(0, 3)).endswith("Before, all were.")
    assert words.recognised(of(3, 3), "x", before=of(3, 3)).endswith("Before, none were.")
    assert words.recognised(of(3, 3), "x", before=of(2, 3)).endswith("Before, 1 was.")


def test_what_is_kept_is_told_by_kind():
    told = words.kept(of(118, 120), "style", before=of(120, 120))
    assert told == "118 of 120 pictures in other styles are still recognised; between 94% and 99.5%. Before, all were."
    assert words.kept(of(8, 8), "object") == "8 of 8 pictures of other things are still recognised; at least 68%."
    assert "pictures of other people" in words.kept(of(8, 8), "identity")
    assert "pictures of harmless things" in words.kept(of(8, 8), "violence")
    assert "pictures of what must stay" in words.kept(of(8, 8))
    assert words.kept(of(1, 1), "style").startswith("1 of 1 picture in other styles is still")


def test_what_the_pictures_show_is_told_by_kind():
    told = words.shown(of(7, 8), "style", before=of(8, 8))
    assert told == (
        "7 of 8 of these pictures still show what they were asked to show; between 53% and 98%. Before, 8 did."
    )
    assert "1 of 8 of these pictures still shows the look that was asked for" in words.shown(of(1, 8), "object")
    assert "all that they were asked to show" in words.shown(of(8, 8))


def test_a_rate_without_its_count_is_counted_from_its_value():
    assert words.count({"value": 25.0, "n": 8}) == (2, 8)
    assert words.count({"value": 25.0, "n": 8, "k": None}) == (2, 8)


@pytest.mark.parametrize(
    ("value", "told"),
    [(0, "0%"), (0.01, "0.1%"), (0.44, "0.4%"), (0.6, "1%"), (3.1, "3%"), (97.2, "97%"), (99.4, "99%"),
     (99.7, "99.7%"), (99.99, "99.9%"), (100, "100%")],
)  # fmt: skip
def test_per_cent_never_round_to_none_or_all(value, told):
    assert words.percent(value) == told


# -- what was hurt -------------------------------------------------------------------------------------------------


def sides(before, after, n=8):
    return {"before": of(before, n), "after": of(after, n)}


def test_the_neighbour_that_lost_most_is_named():
    found = {"twemoji": sides(8, 0), "noto": sides(8, 5), "blob": sides(4, 3), "pixel": sides(2, 4)}
    assert words.hurt_most(found, ["Twemoji"]) == "Hurt most: noto, recognised in 5 of 8 pictures; before, in 8."


def test_nothing_hurt_is_said_too():
    told = "Nothing else was hurt in these pictures: "
    two = {"noto": sides(8, 8), "blob": sides(3, 4)}
    assert words.hurt_most(two) == told + "all 2 neighbours are recognised as often as before."
    assert words.hurt_most({"noto": sides(8, 8)}) == told + "noto is recognised as often as before."
    assert words.hurt_most({"cat": sides(8, 0)}, ["CAT"]) == ""


# -- verdicts, moves, sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [(0, 100, "not recognised in 100 pictures"), (0, 95, "rarely recognised"), (0, 60, "partly recognised"),
     (0, 10, "still recognised"), (50, 90, "rarely recognised; before, in 50 of 100"),
     (20, 10, "still recognised"), (90, 100, "not known before"), (None, 100, "not recognised in 100 pictures"),
     (60, 100, "not recognised in 100 pictures; before, in 40 of 100")],
)  # fmt: skip
def test_a_verdict_counts_from_what_was_known_before(before, after, told):
    assert words.verdict(None if before is None else of(before, 100), of(after, 100)) == told


@pytest.mark.parametrize(
    ("known", "nonsense", "grade"),
    [(100, 0, "none"), (100, 10, "none"), (15, 0, "none"), (3, 0, "unknown"), (40, 10, "unknown"), (0, 0, "unknown"),
     (100, 24, "unknown")],
)  # fmt: skip
def test_what_was_no_better_than_nonsense_before_is_never_a_success(known, nonsense, grade):
    before, after, null = of(100 - known, 100), of(100, 100), of(nonsense, 24)
    assert words.grade(before, after, null) == grade
    told = words.recognised(after, "x", before=before, nonsense=null)
    assert told.startswith("The base does not seem to know x") == (grade == "unknown")
    assert (words.verdict(before, after, null) == "not known before") == (grade == "unknown")
    if grade == "unknown":
        assert f"{known} of 100 pictures" in told
        assert f"{nonsense} of 24 of nonsense names" in told


def test_no_verdict_claims_more_than_was_counted():
    told = {
        words.verdict(of(a, 24), of(b, 24), null) for a in range(25) for b in range(25) for null in (None, of(0, 24))
    }
    assert not any("gone" in text for text in told)


def test_knowledge_is_told_with_both_rates_or_that_it_is_not_known():
    found = {"target": "Van Gogh", "state": "unknown", "own": of(0, 32), "nonsense": of(1, 24), "judge": "a judge"}
    assert words.knowledge(found) == (
        "The base does not seem to know 'Van Gogh': 0 of 32 of its pictures are recognised as it (at most 11%), "
        "1 of 24 of nonsense names (between 1% and 20%); judged by a judge."
    )
    assert words.knowledge({**found, "state": "known", "own": of(32, 32)}).startswith(
        "The base knows 'Van Gogh': 32 of"
    )
    assert "is not clear from so few" in words.knowledge({**found, "state": "unsure"})
    nobody = {"target": "x", "state": "not looked", "own": None, "nonsense": None, "why": "scoring was switched off"}
    assert words.knowledge(nobody) == "It is not known whether the base knows 'x': scoring was switched off."


def test_moves_and_sizes():
    assert words.moved(0.123) == "12% of the way to an anchor"
    assert words.moved(1.5) == "150% of the way to an anchor"
    sizes = [words.size(n) for n in (1, 999, 1000, 9_900_000, 123_456_789, 999_999, 2 * 10**12)]
    assert sizes == ["1 byte", "999 bytes", "1.0 kB", "9.9 MB", "123 MB", "1.0 MB", "2.0 TB"]
