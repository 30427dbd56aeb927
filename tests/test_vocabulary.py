"""What a base can know, told by its own tokenizer and text encoder: on the embedded generator, opened blind."""

import pytest
import torch

from concept_erase import embedded, memory, retained, vocabulary
from concept_erase.concepts import Concept, Kind
from concept_erase.model import Model, open_model
from concept_erase.moments import of_kept
from concept_erase.streams import Tokens
from concept_erase.surroundings import free_of, preserved_groups, said_of_words
from concept_erase.vocabulary import knows, nearest, whole_words


@pytest.fixture(scope="module")
def blind():
    """The embedded generator as a folder that nobody described."""
    model = open_model(embedded.base())
    assert not model.is_embedded
    return model


@pytest.fixture(scope="module")
def words(blind):
    return vocabulary.vocabulary(blind)


LISTED = {*embedded.objects(), *embedded.styles()}


def test_whole_words_are_single_tokens_the_most_frequent_first(blind):
    words = whole_words(blind)
    assert len(words) == len(set(words))
    assert all(len(blind.token_ids(word)) == 3 for word in words[::50])
    ids = [blind.token_ids(word)[1] for word in words]
    assert ids == sorted(ids)


def test_what_the_base_was_trained_on_is_known_and_most_else_is_not(blind, words):
    parts = {part for name in LISTED for part in name.split()}
    trained = [word for word in words.words if word in parts]
    known = set(words.known)
    assert sum(word in known for word in trained) >= 0.9 * len(trained)
    others = [word for word in words.words if word not in parts]
    assert sum(word in known for word in others) <= 0.05 * len(others)


def test_names_of_several_words_and_unknown_ones_are_told_apart(blind):
    asked = ["police car", "ice cream", "pixel art", "Salvador Dali", "vaporwave"]
    assert knows(blind, asked) == [True, True, True, False, False]


@pytest.mark.parametrize("style", embedded.styles())
def test_the_neighbours_of_a_style_are_styles(blind, style):
    parts = {part for name in embedded.styles() for part in name.split()}
    found = [name for name, _ in nearest(blind, Concept(style)) if name not in style.split()]
    assert sum(name in parts for name in found[:6]) >= 5


def test_what_can_be_said_of_things_leaves_them_apart(words):
    parts = {part for name in embedded.styles() for part in name.split()}
    assert sum(word in parts for word in words.modifiers) >= 6
    assert len(set(words.modifiers)) == len(words.modifiers) < len(words.styles.words)


def test_it_is_computed_once_and_kept_by_what_it_depends_on(tmp_path, monkeypatch):
    monkeypatch.setenv("CONCEPT_ERASE_CACHE", str(tmp_path))
    calls = []
    encode = Model.encode
    monkeypatch.setattr(Model, "encode", lambda *a, **k: (calls.append(1), encode(*a, **k))[1])
    first = vocabulary.vocabulary(open_model(embedded.base()))
    made = len(calls)
    again = vocabulary.vocabulary(open_model(embedded.base()))
    assert made > 0
    assert len(calls) == made
    assert again.words == first.words
    assert torch.equal(again.styles.effects, first.styles.effects)
    files = sorted((tmp_path / "bases").iterdir())
    files[0].write_bytes(b"damaged")
    third = vocabulary.vocabulary(open_model(embedded.base()))
    assert third.words == first.words
    assert torch.equal(third.things.effects, first.things.effects)


def test_another_text_encoder_has_a_description_of_its_own(model, blind):
    assert model.text_hash != blind.text_hash
    assert vocabulary.vocabulary(model).words != vocabulary.vocabulary(blind).words


def test_a_base_whose_words_are_as_nonsense_still_has_some(model):
    found = vocabulary.vocabulary(model)
    assert len(found.known) >= vocabulary._LEAST
    assert nearest(model, Concept("cat", Kind.OBJECT))


def test_a_name_that_is_too_long_is_near_nothing(blind):
    assert knows(blind, ["long " * 40]) == [False]


def test_the_oldest_go_when_there_is_too_much(tmp_path, monkeypatch):
    monkeypatch.setenv("CONCEPT_ERASE_CACHE", str(tmp_path))
    monkeypatch.setattr(memory, "MOST", 3000)
    made = []

    def kept(i):
        return memory.kept({"i": i}, lambda: (made.append(i), {"x": torch.full((300,), float(i))})[1])

    for i in range(4):
        kept(i)
    assert len(list((tmp_path / "bases").iterdir())) == 2
    kept(3)
    assert made == [0, 1, 2, 3]
    kept(0)
    assert made == [0, 1, 2, 3, 0]


def test_a_folder_that_cannot_be_written_costs_time_alone(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("CONCEPT_ERASE_CACHE", str(blocked))
    assert memory.kept({"a": 1}, lambda: {"x": torch.ones(2)})["x"].tolist() == [1, 1]


@pytest.mark.parametrize("kind", Kind)
def test_what_must_stay_is_the_same_however_it_is_summed_up(blind, kind):
    concept = Concept("cat", kind, "dog", ("bear",))
    for part in (0, 1):
        whole = of_kept(blind, preserved_groups(blind, [concept], 60, part), Tokens.ALL)
        quick = retained.kept(blind, [concept], 60, Tokens.ALL, part)
        assert quick.n == whole.n
        assert torch.allclose(quick.PP, whole.PP, atol=1e-6 * float(whole.PP.abs().max()))


def test_nothing_that_is_erased_stays_in_the_sum(blind):
    cat, dog = Concept("cat", Kind.OBJECT, "ball"), Concept("dog", Kind.OBJECT, "ball")
    both = retained.kept(blind, [cat, dog], 400, Tokens.ALL)
    one = retained.kept(blind, [cat], 400, Tokens.ALL)
    assert both.n != one.n
    spoken = said_of_words(blind, 400, 0)
    assert any("cat" in (s.word, s.context) for s in spoken)
    assert not any("cat" in (s.word, s.context) for s in free_of(spoken, [cat]))


def test_a_further_concept_encodes_nothing_for_what_must_stay(blind, monkeypatch):
    retained.kept(blind, [Concept("cat", Kind.OBJECT, "ball", ("bear",))], 400, Tokens.ALL)
    second = Concept("horse", Kind.OBJECT, "ball", ("bear",))
    nearest(blind, second)
    encoded = []
    encode = Model.encode
    monkeypatch.setattr(Model, "encode", lambda self, rows, *a: (encoded.append(len(rows)), encode(self, rows, *a))[1])
    retained.kept(blind, [second], 400, Tokens.ALL)
    assert sum(encoded) <= 2
