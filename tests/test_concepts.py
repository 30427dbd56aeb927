import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from concept_erase import embedded
from concept_erase.concepts import PROFILES, Concept, Kind, check_together, fill, normalise, prompts
from concept_erase.errors import InputError
from concept_erase.names import folded, same_name

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
names = st.text("abcdefgh XYé\u0301ع🐱\u200b", min_size=1).filter(
    lambda text: any(c.isalpha() and not unicodedata.combining(c) for c in text)
)


# -- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "blank",
    ["", " ", "\t\n", "\u200b", "\u200b \u200b", "\ufeff", "\u2060", "\u00ad", "\u200c\u200d", "\u3000", "\u2063"],
)
def test_a_blank_or_zero_width_concept_is_refused(blank):
    with pytest.raises(InputError, match="target is blank"):
        Concept(blank)


@pytest.mark.parametrize(("field", "value"), [("target", " "), ("anchor", "\u200b"), ("preserve", ("ok", ""))])
def test_the_field_of_a_blank_name_is_named(field, value):
    with pytest.raises(InputError, match=f"^{field} is blank.*name a concept"):
        Concept(**{"target": "cat", field: value})


@pytest.mark.parametrize("control", [*BIDI, "\x00", "\x07", "\x1b", "\x7f", "\x9b", "\ud800"])
def test_control_and_bidirectional_control_characters_are_refused_by_code(control):
    with pytest.raises(InputError, match=f"U\\+{ord(control):04X}"):
        Concept(f"Van {control}Gogh")


@pytest.mark.parametrize("value", [None, 3, b"cat", ["cat"]])
def test_a_name_that_is_no_text_is_refused(value):
    with pytest.raises(InputError, match="target must be text"):
        Concept(value)


@pytest.mark.parametrize(
    "name", ["👩‍👩‍👧 family", "❤️ heart", "فان جوخ", "می‌خواهم", "北斎", "नमस्ते", "O'Keeffe {target}"]
)
def test_emoji_arabic_and_joiners_are_kept(name):
    assert Concept(name).target == name


def test_names_are_put_in_nfc_with_single_spaces():
    assert Concept("  Ce\u0301zanne\t Paul\u200b ").target == "Cézanne Paul"


@given(st.text())
@example("e\u200b\u0301")
@example("a\u200d\u00ad")
def test_what_is_accepted_is_clean_and_stays_as_it_is(text):
    try:
        clean = normalise(text, "name")
    except InputError:
        return
    assert clean == unicodedata.normalize("NFC", clean)
    assert clean == " ".join(clean.split())
    assert not any(c in BIDI or unicodedata.category(c) in ("Cc", "Cs") for c in clean)
    assert normalise(clean, "name") == clean


@pytest.mark.parametrize(
    ("a", "b"),
    [("Van Gogh", "van  gogh "), ("Cézanne", "ce\u0301zanne"), ("STRASSE", "straße"), ("cat", "ca\u200bt"),
     ("Paul Cézanne", "Paul Cezanne"), ("pixel art", "Pixel-Art"), ("The Scream", "scream"), ("bomb", "a bomb")],
)  # fmt: skip
def test_two_writings_of_a_name_are_one_concept(a, b):
    assert same_name(a, b)
    with pytest.raises(InputError, match="target and anchor are the same"):
        Concept(a, anchor=b)
    with pytest.raises(InputError, match="both erased and preserved"):
        Concept(a, preserve=("other", b))


def test_different_names_are_not_the_same():
    assert not same_name("cat", "cats")
    assert Concept("cat", anchor="cats").anchor == "cats"


# -- concepts ------------------------------------------------------------------------------------------------------


def test_kind_is_taken_by_name_and_an_unknown_one_lists_the_known():
    assert Concept("bomb", "violence").kind is Kind.VIOLENCE
    with pytest.raises(InputError, match=r"'mood'.*style, object, identity, violence"):
        Concept("sad", "mood")


def test_preserved_names_are_merged_and_a_bare_text_is_refused():
    assert Concept("a", preserve=("Monet", " monet", "Dali")).preserve == ("Monet", "Dali")
    with pytest.raises(InputError, match="must be a list of names"):
        Concept("a", preserve="Monet")


# -- several at once -----------------------------------------------------------------------------------------------


@given(st.lists(names, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_a_list_never_matters(targets, random):
    concepts = [Concept(target, anchor="anchor") for target in targets]
    shuffled = random.sample(concepts, len(concepts))
    first, second = check_together(concepts)[0], check_together(shuffled)[0]
    assert [folded(c.target) for c in first] == [folded(c.target) for c in second]
    assert len(first) == len({folded(c.target) for c in concepts})


def test_duplicates_are_merged_with_a_notice():
    merged, notices = check_together(
        [Concept("Cat", preserve=("dog",)), Concept("cat ", anchor="fox", preserve=("owl",)), Concept("bee")]
    )
    assert merged == (Concept("bee"), Concept("Cat", anchor="fox", preserve=("dog", "owl")))
    assert len(notices) == 1
    assert "'cat' is listed twice" in notices[0]


def test_a_duplicate_with_another_anchor_is_refused():
    with pytest.raises(InputError, match="two anchors, 'fox' and 'cow'"):
        check_together([Concept("cat", anchor="fox"), Concept("cat", anchor="cow")])


def test_every_concept_that_is_erased_and_preserved_is_listed():
    with pytest.raises(InputError, match="erased and preserved at once") as refused:
        check_together([Concept("cat", preserve=("DOG",)), Concept("dog", preserve=("owl", "cat"))])
    assert "'DOG' (preserved for 'cat')" in str(refused.value)
    assert "'cat' (preserved for 'dog')" in str(refused.value)
    assert "owl" not in str(refused.value)


def test_an_anchor_that_contains_another_erased_concept_is_a_warning_or_refused_when_strict():
    concepts = [Concept("cat", anchor="a dog"), Concept("dog", anchor="fox")]
    (notice,) = check_together(concepts)[1]
    assert notice == "warning: the anchor 'a dog' of 'cat' contains 'dog', erased too."
    with pytest.raises(InputError, match="contains 'dog', erased too; name another anchor"):
        check_together(concepts, strict=True)
    assert check_together([concepts[1]], strict=True)[1] == []


def test_an_anchor_is_searched_for_whole_words():
    assert check_together([Concept("art", anchor="fox"), Concept("cat", anchor="Bart")])[1] == []
    (notice,) = check_together([Concept("Twemoji", anchor="fox"), Concept("cat", anchor="a twemoji style")])[1]
    assert notice == "warning: the anchor 'a twemoji style' of 'cat' contains 'Twemoji', erased too."


def test_two_writings_are_merged_and_clash_like_one_name():
    merged, notices = check_together([Concept("Paul Cézanne", preserve=("Monet",)), Concept("paul cezanne")])
    assert merged == (Concept("Paul Cézanne", preserve=("Monet",)),)
    assert notices == ["'paul cezanne' is listed twice; merged, in its first writing 'Paul Cézanne'."]
    with pytest.raises(InputError, match=r"'Cezanne' \(preserved for 'cat'\)"):
        check_together([Concept("cat", preserve=("Cezanne",)), Concept("Cézanne")])


def test_what_the_user_preserves_or_names_as_anchor_may_contain_the_target_and_that_is_said():
    concept = Concept("Monet", anchor="a forged Monet", preserve=("Claude Monet", "Monetary"))
    (same,), notices = check_together([concept])
    assert same == concept
    assert notices == [
        "the anchor 'a forged Monet' contains 'Monet' itself and may bring it back; it is taken because it was named.",
        "'Claude Monet', which shall stay, contains 'Monet', erased; it is kept because it was named.",
    ]


def test_a_recorded_concept_of_an_older_version_can_be_read():
    fields = {"target": "Paul Cézanne", "kind": "style", "anchor": "Paul Cezanne", "preserve": ["paul cezanne", "Klee"]}
    assert Concept.recorded(fields) == Concept("Paul Cézanne", preserve=("Klee",))
    assert Concept.recorded({**fields, "anchor": "art"}).anchor == "art"


def test_an_empty_list_is_refused():
    with pytest.raises(InputError, match="no concept to erase"):
        check_together([])


# -- prompts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profiles", [PROFILES, embedded.PROFILES], ids=["general", "embedded"])
@pytest.mark.parametrize("kind", Kind)
def test_profiles_name_the_concept_in_every_template_and_share_none_with_the_scores(profiles, kind):
    profile = profiles[kind]
    assert all(probe.format("cat").count("cat") == 1 for probe in profile.probes)
    assert all("{target}" in t for t in profile.templates + profile.unseen)
    assert not set(profile.templates) & set(profile.unseen)
    assert profile.anchors
    assert profile.neighbours
    assert any("{context}" in t for t in profile.templates + profile.unseen)
    assert profile.contexts


@given(names)
def test_braces_in_a_name_are_harmless(name):
    tricky = name + "{context}{0}{target}%s"
    assert fill("a {context} in {target} style", tricky, "cat") == f"a cat in {tricky} style"


def test_prompts_are_every_template_with_every_context_once():
    lines = prompts("dog", ["red", "blue"], ["a {target}", "a {context} {target}", "a {target}"])
    assert lines == ["a dog", "a red dog", "a blue dog"]
