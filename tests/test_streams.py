import pytest
import torch
from conftest import edit_directly
from hypothesis import given
from hypothesis import strategies as st

from concept_erase.errors import InputError
from concept_erase.lowrank import LowRank
from concept_erase.streams import (
    PADDING,
    TRIED,
    Prompt,
    Tokens,
    aligned,
    columns,
    condensed_columns,
    fold,
    paired_columns,
    read,
    seen_size,
)

LENGTH = 24


@st.composite
def prompts(draw):
    """A prompt of arbitrary ids with a concept somewhere between BOS and EOS."""
    n = draw(st.integers(3, LENGTH))
    first = draw(st.integers(1, n - 2))
    last = draw(st.integers(first, n - 2))
    return Prompt(tuple(range(n)), first, last)


# -- finding the concept in a prompt -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "name", "context"),
    [
        ("{target}", "twemoji", ""),
        ("a {context} in {target} style", "high contrast", "cat"),
        ("{context}, {target} style", "pixel art", "police car"),
        ("a {target} {context}", "fluent", "ice cream"),
        ("{target} icon of a {context}", "Claude Monet", "dog"),
        ("a picture of a {context} in the style of {target}", "blue ink", "sun"),
    ],
)
def test_the_tokens_of_the_concept_are_found_in_its_prompt(model, template, name, context):
    prompt = read(model, template, name, context)
    alone = model.token_ids(name)[1:-1]
    assert list(prompt.ids) == model.token_ids(template.replace("{context}", context).replace("{target}", name))
    assert list(prompt.ids[prompt.first : prompt.last + 1]) == alone
    assert prompt.ids[prompt.end] == model.tokenizer.eos_token_id


def test_a_concept_too_long_for_the_encoder_is_refused_with_its_limit(model):
    name = "very " * 30 + "long"
    with pytest.raises(InputError, match=r"takes \d+ tokens.*holds 24; shorten it"):
        read(model, "a {target}", name)


# -- pairing positions ---------------------------------------------------------------------------------------------


@given(prompts(), prompts(), st.sampled_from(Tokens))
def test_pairs_stay_within_both_prompts_and_move_a_position_once(target, anchor, tokens):
    pairs = aligned(target, anchor, tokens, LENGTH)
    here = [p for p, _ in pairs]
    assert len(here) == len(set(here))
    assert all(target.first <= p < LENGTH and anchor.first <= q < LENGTH for p, q in pairs)
    assert (target.last, anchor.last) in pairs


@given(prompts(), prompts())
def test_each_choice_of_tokens_covers_what_it_says(target, anchor):
    def positions(tokens):
        return sorted(p for p, _ in aligned(target, anchor, tokens, LENGTH))

    assert positions(Tokens.SUBJECT) == [target.last]
    assert positions(Tokens.SUBJECT_TO_END) == list(range(target.last, LENGTH))
    assert positions(Tokens.ALL) == list(range(target.first, LENGTH))


@given(prompts(), prompts())
def test_end_pairs_with_end_where_the_words_after_are_as_many_and_padding_with_padding(target, anchor):
    pairs = dict(aligned(target, anchor, Tokens.ALL, LENGTH))
    if target.end - target.last == anchor.end - anchor.last:
        assert pairs[target.end] == anchor.end
    for p in range(target.end + 1, LENGTH):
        assert pairs[p] > anchor.end or anchor.end == LENGTH - 1
        assert pairs[p] == p or p <= anchor.end


@given(prompts(), st.sampled_from(Tokens))
def test_a_prompt_pairs_with_itself_position_by_position(prompt, tokens):
    assert all(p == q for p, q in aligned(prompt, prompt, tokens, LENGTH))


# -- embeddings ----------------------------------------------------------------------------------------------------


def full(pipe, text):
    ids = pipe.tokenizer(text, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        return pipe.text_encoder(ids).last_hidden_state[0].double()


@pytest.mark.parametrize("tokens", Tokens)
def test_columns_are_the_states_of_the_full_padded_prompts(model, pristine, tokens):
    texts = [("a cat in pixel art style", "a cat in fluent style"), ("twemoji", "high contrast")]
    pairs = [
        (read(model, "a cat in {target} style", "pixel art"), read(model, "a cat in {target} style", "fluent")),
        (read(model, "{target}", "twemoji"), read(model, "{target}", "high contrast")),
    ]
    C, G = paired_columns(model, pairs, tokens)
    matched = [aligned(*pair, tokens, LENGTH) for pair in pairs]
    for columns_, side in ((C, 0), (G, 1)):
        expected = [full(pristine, t[side])[[m[side] for m in ms]] for t, ms in zip(texts, matched, strict=True)]
        assert torch.allclose(columns_.T, torch.cat(expected), atol=1e-5)


# Names and prompts of several lengths, with more and fewer tokens than their anchors; one leaves no room for padding.
CASES = [
    ("a cat in {target} style", "pixel art", "fluent"),
    ("a cat in {target} style", "fluent", "pixel art"),
    ("{target}", "twemoji", "high contrast"),
    ("a {target} of " + "one " * 17, "twemoji", "fluent"),
]


@pytest.fixture
def resting(base_folder, monkeypatch):
    """A model whose padding is at rest: a state of the prompt, and one of the position that is equal in all prompts."""
    from concept_erase.model import open_model

    model = open_model(base_folder)
    encoded, rng = model.encode, torch.Generator().manual_seed(0)
    drift = torch.randn(LENGTH, 32, generator=rng)

    def encode(rows, upto, *fronts):
        found = encoded(rows, upto)
        for ids, states in zip(rows, found, strict=True):
            states[len(ids) :] = encoded([ids], [len(ids)])[0][-1] + drift[len(ids) : len(states)]
        return found

    monkeypatch.setattr(model, "encode", encode)
    return model


@pytest.mark.parametrize("tokens", Tokens)
@pytest.mark.parametrize("cases", [CASES, CASES[:1], CASES[-1:]], ids=["all", "one", "full"])
def test_condensed_columns_have_the_moments_of_all_where_the_padding_is_at_rest(resting, tokens, cases):
    pairs = [(read(resting, t, target), read(resting, t, anchor)) for t, target, anchor in cases]
    C, G = paired_columns(resting, pairs, tokens)
    fewC, fewG, n = condensed_columns(resting, pairs, tokens)
    assert n == C.shape[1]
    assert fewC.shape == fewG.shape
    for left, right, few_left, few_right in ((C, C, fewC, fewC), (G - C, C, fewG - fewC, fewC), (G, G, fewG, fewG)):
        assert torch.allclose(few_left @ few_right.T, left @ right.T, rtol=1e-5, atol=1e-4)


def test_most_of_the_padding_is_not_computed(base_folder, monkeypatch):
    from concept_erase.model import open_model

    model, asked = open_model(base_folder), []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda rows, upto, *fronts: asked.append((rows, upto)) or encode(rows, upto))
    pairs = [(read(model, CASES[0][0], target), read(model, CASES[0][0], "fluent")) for target in ("blob", "twemoji")]
    condensed_columns(model, pairs, Tokens.ALL)
    most = max(p.end for pair in pairs for p in pair) + PADDING + 1
    assert all(n <= most for rows, upto in asked for row, n in zip(rows, upto, strict=True) if len(row) > 2)
    assert sum(n == LENGTH for _, upto in asked for n in upto) == 1, "the empty prompt, once"


def test_a_trial_with_few_prompts_is_a_part_of_the_whole_whatever_a_name_becomes(base_folder, monkeypatch):
    from concept_erase.concepts import Concept
    from concept_erase.model import open_model
    from concept_erase.surroundings import concept_prompts

    model, asked = open_model(base_folder), []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda rows, *how: asked.extend(rows) or encode(rows, *how))
    for anchor in ("fluent", "pixel art"):
        pairs = concept_prompts(model, Concept("twemoji", anchor=anchor), 20)
        condensed_columns(model, pairs[:TRIED], Tokens.ALL, slots=True)
    asked.clear()
    condensed_columns(model, pairs, Tokens.ALL, slots=True)
    assert set(asked) == {prompt.ids for pair in pairs[TRIED:] for prompt in pair}
    asked.clear()
    other = concept_prompts(model, Concept("blob", anchor="fluent"), TRIED)
    condensed_columns(model, other, Tokens.ALL, slots=True)
    assert set(asked) == {target.ids for target, _ in other}, "the anchor is known, however long the target"


def test_columns_of_no_prompt_are_empty_and_of_the_right_height(model):
    assert columns(model, [], Tokens.ALL).shape == (32, 0)


def test_folding_moves_every_layer_as_the_operator_moves_its_input(model, pipe):
    rng = torch.Generator().manual_seed(0)
    operator = LowRank(torch.randn(32, 3, generator=rng).double() / 9, torch.randn(3, 32, generator=rng).double())
    changes = fold(model, operator)
    x = torch.randn(32, 5, generator=rng).double()
    before = {path: model.weight(path).double() for path in model.stream_layers()}
    edit_directly(pipe, changes)
    from concept_erase.model import open_model

    for path in model.stream_layers():
        after = open_model(pipe).weight(path).double()
        assert torch.allclose(after @ x, before[path] @ (x + operator.delta() @ x), atol=1e-4)


def test_seen_size_is_the_size_of_what_the_layers_make_of_it(model):
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(3)).double()
    outputs = torch.cat([model.weight(path).double() @ x for path in model.stream_layers()])
    assert seen_size(x, model.gram) == pytest.approx(outputs.square().sum(0).mean().sqrt().item())
    assert seen_size(x[:, :0], model.gram) == 0
