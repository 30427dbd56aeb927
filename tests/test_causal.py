"""causal.py: our own pass of the text encoder, against the module's."""

import pytest
import torch

from concept_erase import causal
from concept_erase.model import Memory, Model, open_model

ROWS = [
    (1, 5, 6, 7, 2), (1, 5, 6, 8, 9, 2), (1, 5, 6, 7, 2, 2, 2, 2), (1, 2), (1,), (1, 5, 6, 7, 2), (3, 5, 6, 7, 2),
    tuple(range(1, 25)),
]  # fmt: skip


def by_module(encoder, row):
    with torch.no_grad():
        return encoder(torch.tensor([row])).last_hidden_state[0]


@pytest.fixture
def encoder(pipe):
    return pipe.text_encoder


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], ROWS[3:5], ROWS[::-1]], ids=len)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_states_are_those_of_the_module(encoder, rows, attention):
    encoder.set_attn_implementation(attention)
    assert causal.plain(encoder)
    with torch.no_grad():
        found = causal.states(encoder, rows)
    for row, states in zip(rows, found, strict=True):
        assert states.shape == (len(row), 32)
        torch.testing.assert_close(states, by_module(encoder, row), rtol=1e-5, atol=1e-5)


def test_what_rows_have_in_common_is_computed_once_and_the_rest_in_parts(encoder, monkeypatch):
    computed = []
    real = encoder.get_input_embeddings().forward
    monkeypatch.setattr(
        type(encoder.get_input_embeddings()), "forward", lambda self, ids: computed.append(ids) or real(ids)
    )
    with torch.no_grad():
        whole = causal.states(encoder, ROWS)
    tokens = computed[0]
    assert len(tokens) == len({row[: n + 1] for row in ROWS for n in range(len(row))}) < sum(map(len, ROWS))
    monkeypatch.setattr(causal, "_TOKENS", 12)
    computed.clear()
    with torch.no_grad():
        parts = causal.states(encoder, ROWS)
    assert len(computed) > 4
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


FRONTS = [(1, 5, 6), (1,), (1, 5, 6, 7, 2), (3, 5)]  # one holds another, one is a whole row


def test_fronts_that_are_known_are_not_computed_again_and_change_nothing(encoder, monkeypatch):
    with torch.no_grad():
        known = causal.fronts(encoder, FRONTS)
        computed = []
        embed = type(encoder.get_input_embeddings())
        real = embed.forward
        monkeypatch.setattr(embed, "forward", lambda self, ids: computed.append(ids) or real(self, ids))
        found = causal.states(encoder, ROWS, known)
        whole = causal.states(encoder, [(1, 5, 6)], known)
    held = {front[: n + 1] for front in FRONTS for n in range(len(front))}
    new = {row[: n + 1] for row in ROWS for n in range(len(row))} - held
    assert [len(tokens) for tokens in computed[::2]] == [len(new), 0]
    for row, states in zip([*ROWS, (1, 5, 6)], [*found, *whole], strict=True):
        torch.testing.assert_close(states, by_module(encoder, row), rtol=1e-5, atol=1e-5)


def _leaf_hook(encoder):
    encoder.final_layer_norm.register_forward_hook(lambda module, inputs, output: output * 2)


def _forward(encoder):
    mlp = encoder.encoder.layers[1].mlp
    real = mlp.forward
    mlp.forward = lambda x: 2 * real(x)


def _lora(encoder):
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(target_modules=["fc1", "q_proj"], init_lora_weights=False), encoder)


def _pruned(encoder):
    from torch.nn.utils import prune

    prune.l1_unstructured(encoder.encoder.layers[0].mlp.fc1, "weight", 0.5)


def _parametrized(encoder):
    torch.nn.utils.parametrizations.weight_norm(encoder.encoder.layers[0].mlp.fc1)


def _offloaded(encoder):
    from accelerate import cpu_offload

    cpu_offload(encoder, torch.device("cpu"))


def _block_hook(encoder):
    encoder.encoder.layers[0].register_forward_hook(lambda module, inputs, output: output * 2)


def _block_forward(encoder):
    attention = encoder.encoder.layers[1].self_attn
    real = attention.forward
    attention.forward = lambda *args, **kwargs: (2 * real(*args, **kwargs)[0], None)


def _half(encoder):
    encoder.to(torch.bfloat16)


def _training(encoder):
    encoder.train()


def _elsewhere(encoder):
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    hook = AlignDevicesHook(execution_device="cpu")
    add_hook_to_module(encoder, hook)
    hook.execution_device = "cuda"


CALLED = [_leaf_hook, _forward, _lora, _pruned, _parametrized, _offloaded]
PASSED_BY = [_block_hook, _block_forward, _half, _training]


@pytest.mark.parametrize("change", CALLED)
def test_parts_that_were_changed_are_called_as_they_are(encoder, change):
    before = by_module(encoder, ROWS[0])
    change(encoder)
    assert causal.plain(encoder)
    with torch.no_grad():
        found = causal.states(encoder, ROWS[:3])
    for row, states in zip(ROWS[:3], found, strict=True):
        torch.testing.assert_close(states, by_module(encoder, row), rtol=1e-5, atol=1e-5)
    assert torch.equal(before, by_module(encoder, ROWS[0])) == (change is _offloaded)


@pytest.mark.parametrize("change", PASSED_BY)
def test_an_encoder_whose_frame_was_changed_is_called_whole(base_folder, encoder, change, monkeypatch):
    model = open_model(base_folder)
    model.__dict__["text_encoder"] = encoder
    change(encoder)
    assert not causal.plain(encoder)
    monkeypatch.setattr(causal, "states", None)  # would raise
    for row, states in zip(ROWS[:2], model.encode(ROWS[:2], [5, 6]), strict=True):
        torch.testing.assert_close(states, by_module(encoder, row).float(), rtol=1e-5, atol=1e-5)


def test_what_computes_elsewhere_or_is_another_encoder_is_not_passed_by(encoder):
    _elsewhere(encoder)
    assert not causal.plain(encoder)
    assert not causal.plain(torch.nn.Linear(2, 2))


def test_a_model_encodes_the_same_with_and_without_it(base_folder, monkeypatch):
    model, upto = open_model(base_folder), [1, 9, 24, 2, 1, 5, 4, 24]
    fast = model.encode(ROWS, upto)
    monkeypatch.setattr(causal, "plain", lambda encoder: False)
    for n, one, other in zip(upto, fast, model.encode(ROWS, upto), strict=True):
        assert len(one) == n
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_memory_forgets_what_was_not_asked_for_longest():
    memory, made = Memory(100_000), []

    def ask(name, size):
        return memory.recall(name, lambda: made.append(name) or [torch.zeros(size * 250)])

    first = ask("a", 40)
    ask("b", 40)
    assert ask("a", 40) is first
    ask("c", 40)  # too much: b goes
    assert ask("a", 40) is first
    ask("b", 40)
    ask("large", 400)
    assert ask("large", 400) is ask("large", 400), "the last one is kept, however large"
    assert made == ["a", "b", "c", "b", "large"]


def test_a_model_remembers_calls_and_not_rows(base_folder, monkeypatch):
    calls = []
    real = Model.encode
    monkeypatch.setattr(Model, "encode", lambda self, *args: calls.append(args) or real(self, *args))
    model = open_model(base_folder)
    one = model.states((ROWS[0], ROWS[1]), (5, 6))
    assert model.states((ROWS[0], ROWS[1]), (5, 6)) is one
    model.states((ROWS[0],), (5,))
    assert len(calls) == 2
