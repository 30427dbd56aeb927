import copy

import pytest
import torch
from conftest import QUICK, TWEMOJI, edit_directly, encoder_paths, quick
from hypothesis import given
from hypothesis import strategies as st

from concept_erase.concepts import Concept
from concept_erase.errors import InputError
from concept_erase.methods import Run, make
from concept_erase.methods.encoder import forget_targets, full_states, metric_factor
from concept_erase.streams import Tokens, aligned, read, seen_size


def train(model, concepts=(TWEMOJI,), run=Run(), **settings):
    return quick("encoder", **{"steps": 12, **settings}).edit(model, concepts, run)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_the_metric_factor_measures_as_the_gram_matrix_does(d, layers, seed):
    W = torch.randn(layers, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = torch.randn(5, d, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    measured = (x @ metric_factor(W.T @ W).double()).square().sum(1)
    assert torch.allclose(measured, (W @ x.T).square().sum(0), rtol=1e-4, atol=1e-5)


def test_goals_are_the_anchors_states_from_the_concept_on_and_the_targets_own_before(model):
    template = "a cat in {target} style"
    pair = read(model, template, "pixel art"), read(model, template, "fluent")
    ids, goals = forget_targets(model, [pair])
    (own,), (anchor,) = (full_states(model, [p])[1] for p in pair)
    assert ids[0, : len(pair[0].ids)].tolist() == list(pair[0].ids)
    matched = dict(aligned(*pair, Tokens.ALL, model.length))
    for position in range(model.length):
        expected = anchor[matched[position]] if position in matched else own[position]
        assert torch.equal(goals[0, position], expected)


def test_the_edit_changes_every_encoder_layer_and_nothing_else(model):
    edit = train(model, rank=3)
    assert sorted(edit.changes) == sorted(encoder_paths(model))
    assert {change.rank for change in edit.changes.values()} == {3}
    assert all(change.delta().norm() > 0 for change in edit.changes.values())


def test_training_leaves_the_model_and_the_global_randomness_alone(model):
    before = copy.deepcopy(model.text_encoder.state_dict())
    randomness = torch.get_rng_state()
    train(model)
    assert torch.equal(torch.get_rng_state(), randomness)
    after = model.text_encoder.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_same_seed_gives_the_same_edit_and_another_does_not(model):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        one = train(model, seed=1).changes
        torch.manual_seed(9)
        again, other = (train(model, seed=seed).changes for seed in (1, 2))
    assert all(torch.equal(one[path].delta(), again[path].delta()) for path in one)
    assert any(not torch.equal(one[path].delta(), other[path].delta()) for path in one)


def test_more_steps_leave_less_undone(model):
    few, many = train(model, steps=1).measures, train(model, steps=60).measures
    assert many["undone"] < 0.7 * few["undone"]
    assert many["loss"] < few["loss"]


def test_weight_on_the_rest_protects_it(model):
    bold, careful = (train(model, steps=40, retain_weight=w).measures for w in (0.0, 50.0))
    assert careful["damage"] < 0.5 * bold["damage"]


@pytest.mark.parametrize("metric", ["gram", "plain"])
def test_measures_are_those_of_the_edited_encoder(model, pipe, metric):
    from concept_erase.surroundings import concept_prompts

    edit = train(model, steps=20, metric=metric)
    pairs = concept_prompts(model, TWEMOJI, QUICK["contexts"])
    ids, goals = forget_targets(model, pairs)
    before = full_states(model, [target for target, _ in pairs])[1]
    edit_directly(pipe, edit.changes)
    with torch.no_grad():
        after = pipe.text_encoder(ids).last_hidden_state
    gram = model.gram if metric == "gram" else torch.eye(32, dtype=torch.float64)

    def size(x):
        return seen_size(x.flatten(0, 1).T.double(), gram)

    assert edit.measures["undone"] == pytest.approx(size(after - goals) / size(before - goals), rel=1e-3)


def test_progress_is_told(model):
    seen = []
    train(model, run=Run(progress=lambda *told: seen.append(told)))
    assert [(done, total) for done, total, _ in seen] == [(i, 12) for i in range(1, 13)]


def test_a_target_whose_tokens_equal_its_anchors_is_refused(model):
    with pytest.raises(InputError, match="same tokens"):
        train(model, [Concept("style2", anchor="style 2")])


@pytest.mark.parametrize(
    "settings",
    [
        {"rank": 0},
        {"steps": 0},
        {"lr": 0},
        {"lr": "nan"},
        {"retain_weight": -1},
        {"metric": "cosine"},
        {"steps": "ten"},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(InputError):
        make("encoder", settings)
