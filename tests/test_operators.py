"""operators.py: the file of a closed form's operator, and the gates that recognise its concepts."""

import json

import pytest
import torch
from conftest import split_safetensors

from concept_erase import operators
from concept_erase.adapter import Adapter
from concept_erase.concepts import Concept, Kind, fill
from concept_erase.errors import AdapterFileError, InputError, NumericalError
from concept_erase.formats import write_safetensors
from concept_erase.lowrank import LowRank
from concept_erase.model import open_model
from concept_erase.operators import discriminant, gate, read, write
from concept_erase.surroundings import profile, surroundings

BOMB = Concept("bomb", Kind.VIOLENCE, "hat", ("knife",))
STYLE = Concept("twemoji", Kind.STYLE, "fluent")


@pytest.fixture(scope="module")
def embedded():
    return open_model()


def operator(d: int, rank: int = 3, seed: int = 0) -> LowRank:
    rng = torch.Generator().manual_seed(seed)
    return LowRank(*(torch.randn(shape, generator=rng).double() for shape in ((d, rank), (rank, d))))


def states(model, prompts: list[str]) -> list[torch.Tensor]:
    """Hidden states after BOS, padding included."""
    rows = [model.token_ids(p) for p in prompts]
    return [s[1:] for s in model.encode(rows, [model.length] * len(rows))]


def opened(model, found: operators.Gate, prompts: list[str]) -> int:
    return sum(bool((s @ found.direction > found.threshold).any()) for s in states(model, prompts))


# -- files ---------------------------------------------------------------------------------------------------------


def test_a_file_comes_back_as_it_was_written(model, tmp_path):
    d = operator(32)
    written = write(tmp_path / "erase-x.operator", model, [BOMB, STYLE], d, probes=True)
    for place in (tmp_path, tmp_path / "erase-x.operator"):
        found = read(place)
        torch.testing.assert_close(found.change.delta().double(), d.delta(), rtol=1e-5, atol=1e-5)
        assert found.change.up.dtype == torch.float32
        assert found.concepts == (BOMB, STYLE)
        assert found.base == model.base
        assert (found.family, found.version) == ("sd1", written.version)
        for ours, theirs in zip(found.gates, written.gates, strict=True):
            assert (ours.words, ours.hits, ours.alarms) == (theirs.words, theirs.hits, theirs.alarms)
            assert (ours.direction is None) == (theirs.direction is None)


def test_the_name_of_earlier_versions_is_read(model, tmp_path):
    write(tmp_path / "new.operator", model, [STYLE], operator(32))
    expected = read(tmp_path)
    (tmp_path / "new.operator").rename(tmp_path / "operator.safetensors")
    for place in (tmp_path, tmp_path / "operator.safetensors"):
        assert torch.equal(read(place).change.delta(), expected.change.delta())


def test_a_folder_of_several_operators_or_none_says_so(model, tmp_path):
    with pytest.raises(AdapterFileError, match="holds no operator"):
        read(tmp_path)
    for name in "ab":
        write(tmp_path / f"{name}.operator", model, [STYLE], operator(32))
    with pytest.raises(AdapterFileError, match=r"several operators \(a.operator, b.operator\)"):
        read(tmp_path)


def test_the_probe_of_a_gate_is_in_the_file(embedded, tmp_path):
    plain = write(tmp_path / "erase-x.operator", embedded, [STYLE], operator(192))
    assert plain.gates[0].direction is None
    operators.add_probes(tmp_path, embedded)
    after = read(tmp_path)
    assert torch.equal(after.change.up, plain.change.up)
    assert torch.equal(after.change.down, plain.change.down)
    assert (after.concepts, after.base) == (plain.concepts, plain.base)
    (found,) = after.gates
    made = gate(embedded, STYLE)
    assert torch.equal(found.direction, made.direction)
    assert found.threshold == pytest.approx(made.threshold, rel=1e-6)


def test_equal_operators_are_equal_files(model, tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.operator", model, [STYLE], operator(32))
    write(tmp_path / "c.operator", model, [STYLE], operator(32, seed=1))
    a, b, c = ((tmp_path / f"{n}.operator").read_bytes() for n in "abc")
    assert a == b != c
    metadata = split_safetensors(tmp_path / "a.operator")[0]["__metadata__"]
    assert set(metadata) == {"concept_erase", "modelspec.hash_sha256", "sshs_model_hash"}  # no date


def test_without_probes_nothing_is_encoded(embedded, tmp_path, monkeypatch):
    monkeypatch.setattr(type(embedded), "encode", None)  # would raise
    write(tmp_path / "erase-x.operator", embedded, [STYLE], operator(192))
    (found,) = read(tmp_path).gates
    assert found.words == (tuple(embedded.token_ids("twemoji")[1:-1]),)
    assert found.direction is None


def test_probes_are_fitted_on_the_base_of_the_file_alone(embedded, model, tmp_path):
    write(tmp_path / "erase-x.operator", model, [STYLE], operator(32))
    before = (tmp_path / "erase-x.operator").read_bytes()
    with pytest.raises(InputError, match=r"was made for .*; pass that base"):
        operators.add_probes(tmp_path, embedded)
    assert (tmp_path / "erase-x.operator").read_bytes() == before


def test_nan_is_never_written(model, tmp_path):
    broken = LowRank(torch.full((32, 1), torch.nan), torch.ones(1, 32))
    with pytest.raises((NumericalError, RuntimeError)):
        write(tmp_path / "erase-x.operator", model, [STYLE], broken)
    assert not list(tmp_path.iterdir())


def test_adapters_and_operators_are_not_taken_for_each_other(model, unet_edit, tmp_path):
    write(tmp_path / "erase-x.operator", model, [STYLE], operator(32))
    with pytest.raises(AdapterFileError, match=r"no \.safetensors file"):
        Adapter.load(tmp_path / "erase-x.operator")
    (tmp_path / "erase-x.operator").rename(tmp_path / "old.safetensors")
    with pytest.raises(AdapterFileError, match="no concept_erase header"):
        Adapter.load(tmp_path / "old.safetensors")
    kohya, _ = unet_edit.save(tmp_path / "adapter")
    with pytest.raises(AdapterFileError, match="no operator file"):
        read(kohya)


@pytest.mark.parametrize("change", ["up", "thresholds", "directions", "words", "form"])
def test_an_incomplete_file_is_refused(model, tmp_path, change):
    path = tmp_path / "erase-x.operator"
    write(path, model, [STYLE], operator(32))
    header, _ = split_safetensors(path)
    ours = json.loads(header["__metadata__"]["concept_erase"])
    tensors = {"up": torch.ones(32, 1), "down": torch.ones(1, 32), "directions": torch.ones(1, 32)}
    tensors["thresholds"] = torch.ones(1)
    if change in tensors:
        tensors[change] = torch.ones(2, 2)
    elif change == "words":
        del ours["concepts"][0]["words"]
    else:
        ours["form"] = "adapter"
    write_safetensors(path, tensors, {"concept_erase": json.dumps(ours)})
    with pytest.raises(AdapterFileError, match="no operator file"):
        read(path)


# -- gates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concept", [STYLE, BOMB], ids=lambda c: c.target)
def test_a_probe_finds_the_concept_in_templates_it_never_saw_and_nothing_else(embedded, concept):
    found = gate(embedded, concept)
    around = surroundings(embedded, concept)
    templates = profile(embedded, concept.kind).unseen
    contexts = around.contexts[::9] if len(around.contexts) > 9 else around.contexts
    with_it = [fill(t, concept.target, c) for t in templates for c in contexts]
    without = [fill(t, n, contexts[i % len(contexts)]) for t in templates for i, n in enumerate(around.neighbours)]
    assert opened(embedded, found, with_it) == len(with_it) > 20
    assert opened(embedded, found, without) == 0
    assert found.hits[0] == found.hits[1] > 10
    assert found.alarms[0] == 0 < found.alarms[1]


def test_words_that_the_encoder_cannot_tell_from_the_name_leave_no_probe(embedded):
    found = gate(embedded, Concept("pixel art"))  # of all its words, "pixel" is used in nothing else
    assert found.direction is None
    assert found.words == (tuple(embedded.token_ids("pixel art")[1:-1]),)


def test_a_random_encoder_gets_no_probe(model):
    assert gate(model, STYLE).direction is None


@pytest.mark.parametrize("spelling", ["Twemoji", "TWEMOJI", "  twemoji "])
def test_spelling_that_the_tokenizer_takes_away_is_one_word(embedded, spelling):
    assert gate(embedded, Concept(spelling)).words == gate(embedded, STYLE).words


def test_punctuation_around_a_name_is_taken_off(model):
    words = gate(model, Concept("Wham!")).words
    assert words == (tuple(model.token_ids("Wham!")[1:-1]), tuple(model.token_ids("wham")[1:-1]))


def test_what_the_user_preserves_counts_as_other(embedded):
    plain, warned = gate(embedded, STYLE), gate(embedded, Concept("twemoji", preserve=("a twemoji-like doodle",)))
    assert not torch.equal(plain.direction, gate(embedded, Concept("twemoji", preserve=("doodle",))).direction)
    assert torch.equal(plain.direction, warned.direction)  # it holds the concept's own name: not "without" it


def test_the_discriminant_is_the_textbook_one():
    rng = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 6, generator=rng)
    negatives = [torch.randn(50, 6, generator=rng) @ mix.T for _ in range(40)]
    shift = torch.tensor([4.0, 0, 0, 0, 0, 0]) @ mix.T
    positives = [torch.randn(5, 6, generator=rng) @ mix.T + 3 * shift for _ in range(10)]
    w, threshold, apart = discriminant(positives, negatives)
    expected = torch.linalg.solve(mix @ mix.T, 3 * shift)
    assert torch.cosine_similarity(w, expected, dim=0) > 0.98
    assert apart
    assert max((rows @ w).max() for rows in negatives) < threshold < min((rows @ w).max() for rows in positives)
    assert not discriminant(negatives[:5], negatives[5:])[2]
