"""A base is known again within rounding, and what else differs is told."""

import pytest
import torch
from conftest import TWEMOJI, adapter_of, build_pipeline, quick, random_changes

from concept_erase import Concept, erase, load_erasure, open_model
from concept_erase.errors import BaseMismatchError, InputError
from concept_erase.generate import Sampling, generate
from concept_erase.identity import FLOATS, NUMBERS, SCALED, alike, identity, probes, sketch_of
from concept_erase.interference.bundle import Bundle


@pytest.fixture(scope="module")
def weights(model):
    return {path: model.weight(path) for path in model.stream_layers()}


def rounded(weights, name, rows=True):
    """Weights in another type; scaled ones to fill its range, by a factor of each row or of the whole layer."""
    kind = getattr(torch, name.removeprefix(SCALED))
    if not name.startswith(SCALED):
        return {path: weight.to(kind) for path, weight in weights.items()}
    found = {}
    for path, weight in weights.items():
        factor = (weight.abs().amax(1, keepdim=True) if rows else weight.abs().max()) / torch.finfo(kind).max
        found[path] = (weight / factor).to(kind).to(torch.float32) * factor
    return found


def with_edit(weights, changes, scale=1.0):
    return {path: weight + scale * changes[path].delta().float() for path, weight in weights.items()}


@pytest.mark.parametrize("stored", [name for name in FLOATS if not name.startswith(SCALED)])
def test_a_record_of_an_earlier_version_which_tells_no_rounding_is_known_again(weights, stored):
    record = identity(rounded(weights, stored)).record
    fine = identity(weights)
    del record["rounding"]
    assert fine.difference(record) is None
    assert alike(record, fine.record)
    other = {path: weight.flip(0) for path, weight in weights.items()}
    assert "differ" in identity(other).difference(record)


@pytest.mark.parametrize("live", FLOATS)
@pytest.mark.parametrize("stored", FLOATS)
def test_a_rounded_base_is_the_same_and_a_fused_erasure_is_not(weights, model, live, stored):
    changes = random_changes(model, seed=1, size=0.03)
    record = identity(rounded(weights, stored)).record
    assert record["dtype"] == stored
    assert len(record["sketch"]) == NUMBERS * len(weights)
    own = sketch_of(changes, weights)
    assert identity(rounded(weights, live)).difference(record) is None
    assert identity(rounded(weights, live)).difference(record, own) is None
    fused = identity(rounded(with_edit(weights, changes), live))
    assert "this erasure is in these weights already" in fused.difference(record, own)
    if "e5m2" not in live + stored:  # what two bits lose is more than this edit changes
        assert "another erasure fused in" in fused.difference(record)


def test_the_distance_of_sketches_is_about_that_of_the_weights(weights, model):
    for seed in range(3):
        changes = random_changes(model, seed=seed, size=0.05)
        edited = with_edit(weights, changes)
        true = sum((edited[p] - w).square().sum() for p, w in weights.items()).sqrt()
        a, b = (torch.tensor(identity(w).sketch) for w in (weights, edited))
        assert 0.4 < (a - b).norm() / NUMBERS**0.5 / true < 2.0
        torch.testing.assert_close((b - a).double(), sketch_of(changes, weights), rtol=1e-3, atol=1e-3)


def test_rounding_is_foreseen(weights):
    size = sum(w.square().sum() for w in weights.values()).sqrt()
    for name in FLOATS[:-1]:
        coarse = rounded(weights, name)
        error = sum((coarse[p].float() - w).square().sum() for p, w in weights.items()).sqrt()
        assert 0.7 < identity(coarse).rounding / (error / size) < 1.4


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("size", [0.01, 0.1])
def test_weights_below_a_types_normal_numbers_are_the_same_base(weights, name, size):
    """As in Stable Diffusion, where many are about 0.02: plain float8 rounds some of them to nothing."""
    small = {path: size * weight for path, weight in weights.items()}
    true, coarse = identity(small), identity(rounded(small, name))
    assert coarse.dtype == name
    for one, other in ((true, coarse), (coarse, true)):
        assert one.difference(other.record) is None
        assert alike(one.record, other.record)
    tuned = {path: weight + 0.3 * weight.roll(1) for path, weight in small.items()}
    assert "differ by about" in identity(tuned).difference(coarse.record)
    assert not alike(identity(tuned).record, coarse.record)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("name", [name for name in FLOATS if name.startswith(SCALED)])
def test_scaled_weights_are_seen_in_whatever_they_are_stored(weights, name, rows):
    coarse = rounded(weights, name, rows)
    for stored in ("float32", "float16", "bfloat16"):
        found = identity(rounded(coarse, stored))
        assert found.dtype == name
        assert found.difference(identity(weights).record) is None
    one = next(iter(weights))
    assert identity({**coarse, one: weights[one]}).dtype == "float32", "one layer is not rounded"
    nothing = {path: torch.zeros_like(weight) for path, weight in weights.items()}
    assert identity(nothing).rounding == 0.0


def test_vectors_are_the_same_everywhere():
    (u, v), *others = probes("unet.a", 3, 5)
    assert (u.tolist(), v.tolist()) == ([1, -1, 1], [-1, 1, -1, -1, -1])
    assert len({tuple(right.tolist()) for _, right in [(u, v), *others]}) > 1


@pytest.mark.parametrize("sketch", [None, [], [1.0], ["a"] * 56, [float("nan")] * 56, "text"])
def test_without_a_sketch_the_hash_decides(weights, sketch):
    known = identity(weights)
    assert known.difference({"hash": known.hash, "sketch": sketch}) is None
    assert "hash" in known.difference({"hash": "0" * 64, "sketch": sketch})


def test_other_bases_and_fine_tunes_are_told_apart(weights, model):
    record = model.identity.record
    stranger = open_model(build_pipeline(seed=1)).identity
    assert "another base" in stranger.difference(record)
    noise = torch.Generator().manual_seed(0)
    tuned = {p: w + 0.005 * w.std() * torch.randn(w.shape, generator=noise) for p, w in weights.items()}
    assert "differ by about 0." in identity(tuned).difference(record)
    barely = {p: w * (1 + 1e-6) for p, w in weights.items()}
    assert identity(barely).hash != model.fingerprint
    assert identity(barely).difference(record) is None


def test_a_bfloat16_pipeline_and_its_erasures_are_at_home_on_the_base(model, pipe):
    coarse = open_model(pipe.to(torch.bfloat16))
    assert coarse.base["dtype"] == "bfloat16"
    assert coarse.fingerprint != model.fingerprint
    adapter = erase(TWEMOJI, coarse, n=0).adapter
    assert adapter.base == coarse.base
    Bundle(model, check=True).add(adapter)
    stranger = adapter_of(adapter.changes)
    stranger.base.update(open_model(build_pipeline(seed=1)).base)
    with pytest.raises(BaseMismatchError, match="differ by about"):
        Bundle(model, check=True).add(stranger)


@pytest.fixture(scope="module")
def plain(base_folder):
    return erase(TWEMOJI, base_folder, quick("uce"), n=0)


def kept_in(pipe, dtype, how):
    """A pipeline whose weights are kept in a coarse type: as they are, or made finer for each computation."""
    if how == "cast at every call":
        pipe.unet.enable_layerwise_casting(storage_dtype=dtype, compute_dtype=torch.float32)
        return pipe
    for part in (pipe.unet, pipe.text_encoder, pipe.vae):
        for weight in part.parameters():
            weight.data = weight.data.to(dtype)
    return pipe


@pytest.mark.parametrize("how", ["folder", "live", "cast at every call"])
@pytest.mark.parametrize("name", [name for name in FLOATS[:-1] if not name.startswith(SCALED)])
def test_erasures_of_a_coarse_base_and_of_the_base_go_together(model, pipe, plain, tmp_path, name, how):
    base = kept_in(pipe, getattr(torch, name), how)
    if how == "folder":
        base.save_pretrained(tmp_path / "base")
        base = tmp_path / "base"
    coarse = open_model(base)
    other = erase(Concept("blob", anchor="noto", preserve=("fluent",)), base, quick("uce"), out=tmp_path / "b", n=0)
    assert other.adapter.base["dtype"] == name
    assert alike(other.adapter.base, plain.adapter.base)
    assert alike(plain.adapter.base, other.adapter.base)
    for opened in (model, coarse):
        bundle = Bundle(opened, check=True)
        bundle.add(plain.adapter)
        bundle.add(other.adapter)
    for live in (build_pipeline(), pipe):
        load_erasure(live, tmp_path / "b")


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_what_is_kept_in_eight_bits_says_how_to_draw(pipe, name):
    outcome = erase(TWEMOJI, kept_in(pipe, getattr(torch, name), "live"), quick("uce"), n=2)
    assert outcome.scores is None
    assert f"is kept in {name}, in which nothing is computed" in outcome.unscored
    with pytest.raises(InputError, match="enable_layerwise_casting"):
        generate(open_model(pipe), ["a cat"], [1], sampling=Sampling(steps=1))
    cast = kept_in(build_pipeline(), getattr(torch, name), "cast at every call")
    assert len(generate(open_model(cast), ["a cat"], [1], sampling=Sampling(steps=1))) == 1


@pytest.mark.parametrize("other", FLOATS)
def test_two_records_of_one_base_are_alike_within_rounding(weights, model, other):
    record, coarse = model.identity.record, identity(rounded(weights, other)).record
    assert alike(record, coarse)
    assert alike(coarse, record)
    assert alike({"hash": "x"}, {"hash": "x"})
    stranger = open_model(build_pipeline(seed=1)).identity.record
    changes = random_changes(model, seed=1, size=0.2)
    for else_ in (stranger, identity(with_edit(weights, changes)).record, {"hash": "0" * 64}, {}):
        assert not alike(record, else_)
        assert not alike(else_, record)
