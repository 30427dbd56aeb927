import copy
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import (
    TWEMOJI,
    adapter_of,
    bits,
    build_pipeline,
    edit_directly,
    encoder_paths,
    layer_at,
    names_in,
    quick,
    random_changes,
    untouched,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from concept_erase.concepts import Concept
from concept_erase.errors import AdapterFileError, BaseMismatchError, InputError
from concept_erase.interference import KEPT, MANY, PROMPTS, Interference, bundle, draw, heatmap, interference
from concept_erase.interference.movement import Total, few_slots, seen_factor
from concept_erase.lowrank import LowRank, compose
from concept_erase.model import open_model
from concept_erase.streams import Tokens, aligned, fold, read
from concept_erase.surroundings import surroundings

NOTO = Concept("noto", anchor="blob")
BOMB = Concept("bomb", "violence", "balloon")


def flat(text: str) -> str:
    return " ".join(text.split())


# -- the same by brute force ---------------------------------------------------------------------------------------


def encoded(pipe, ids):
    padded = [*ids, *[pipe.tokenizer.pad_token_id] * (pipe.tokenizer.model_max_length - len(ids))]
    with torch.no_grad():
        return pipe.text_encoder(torch.tensor([padded])).last_hidden_state[0].double()


def seen(model, pipe, x):
    """What all layers that read the text make of embeddings (n, d), side by side, with the pipeline's weights."""
    return torch.cat([x @ layer_at(pipe, path).weight.detach().double().T for path in model.stream_layers()], dim=1)


def brute(model, pristine, changes, targets, stay=(), prompts=PROMPTS):
    """Relative moves by dense changes on a live pipeline, prompt by prompt and position by position."""
    edited = copy.deepcopy(pristine)
    for change in changes:
        edit_directly(edited, change)
    names = {c.target for c in targets}
    moves, ways = [], []
    for concept in (*targets, *stay):
        moved, way = [], []
        for template, context in few_slots(model, concept, prompts, names):
            here = read(model, template, concept.target, context)
            there = read(model, template, concept.anchor or concept.target, context)
            pairs = aligned(here, there, Tokens.ALL, model.length)
            x, after, anchor = encoded(pristine, here.ids), encoded(edited, here.ids), encoded(pristine, there.ids)
            p, q = [p for p, _ in pairs], [q for _, q in pairs]
            assert p == list(range(here.first, model.length))
            moved.append((seen(model, edited, after[p]) - seen(model, pristine, x[p])).square().sum(1))
            way.append((seen(model, pristine, x[p]) - seen(model, pristine, anchor[q])).square().sum(1))
        moves.append(torch.cat(moved).mean().sqrt().item())
        ways.append(torch.cat(way).mean().sqrt().item())
    typical = np.mean(ways[: len(targets)])
    return np.array(moves) / [way or typical for way in ways]


def encoder_changes(model, seed=5):
    paths = [p for p in encoder_paths(model) if p.endswith(("layers.0.self_attn.v_proj", "layers.1.mlp.fc2"))]
    return random_changes(model, paths, rank=2, seed=seed)


@pytest.fixture
def trio(model):
    """Adapters of the denoiser, of the text encoder, and of both."""
    mixed = random_changes(model, rank=3, seed=2) | encoder_changes(model, seed=3)
    return [
        adapter_of(random_changes(model, seed=1), model, TWEMOJI),
        adapter_of(encoder_changes(model), model, NOTO),
        adapter_of(mixed, model, BOMB),
    ]


@pytest.mark.parametrize("which", [0, 1, 2], ids=["denoiser", "encoder", "both"])
def test_moves_are_those_of_dense_weights(model, pristine, trio, which):
    adapter = trio[which]
    found = interference(model, [adapter], ["openmoji", "cat"], padding=model.length)
    stay = [Concept(name, adapter.concepts[0].kind) for name in ("openmoji", "cat")]
    expected = brute(model, pristine, [adapter.changes], adapter.concepts, stay)
    assert found.concepts == (adapter.concepts[0].target, "openmoji", "cat")
    np.testing.assert_allclose(found.moved[0], expected, rtol=2e-4)
    np.testing.assert_array_equal(found.together, found.moved[0])
    assert found.moved.min() > 1e-3


def test_all_together_is_the_dense_sum(model, pristine, trio):
    found = interference(model, trio, ["openmoji"], padding=model.length)
    targets = [a.concepts[0] for a in trio]
    expected = brute(model, pristine, [a.changes for a in trio], targets, [Concept("openmoji")])
    np.testing.assert_allclose(found.together, expected, rtol=2e-4)
    for row, adapter in zip(found.moved, trio, strict=True):
        alone = brute(model, pristine, [adapter.changes], targets, [Concept("openmoji")])
        np.testing.assert_allclose(row, alone, rtol=2e-4)


def test_a_live_pipeline_gives_the_same_and_is_left_as_it_was(model, pipe, trio):
    before = bits(pipe)
    found = interference(pipe, trio)
    assert bits(pipe) == before
    np.testing.assert_allclose(found.moved, interference(model, trio).moved, rtol=1e-5)


def test_an_edit_that_cancels_another_leaves_nothing_together(model):
    changes = random_changes(model, seed=1) | encoder_changes(model)
    there, back = adapter_of(changes, model), adapter_of({p: c.scaled(-1.0) for p, c in changes.items()}, model, NOTO)
    found = interference(model, [there, back])
    assert found.moved.min() > 1e-2
    assert found.together.max() < 1e-5 * found.moved.max()


@pytest.mark.parametrize("part", ["denoiser", "encoder"])
def test_a_zero_adapter_moves_nothing(model, part):
    paths = model.stream_layers() if part == "denoiser" else encoder_paths(model)
    zero = {p: LowRank.zeros(*model.weight(p).shape) for p in paths}
    assert not interference(model, [adapter_of(zero, model)]).moved.any()


def test_moves_grow_with_the_edit(model):
    changes = random_changes(model, seed=1)
    thrice = {p: c.scaled(3.0) for p, c in changes.items()}
    found = interference(model, [adapter_of(changes, model), adapter_of(thrice, model, NOTO)])
    np.testing.assert_allclose(found.moved[1], 3 * found.moved[0])
    np.testing.assert_allclose(found.together, 4 * found.moved[0])


def test_a_full_move_to_the_anchor_is_one(model):
    """An operator that takes the target's embeddings exactly onto the anchor's."""
    from concept_erase.streams import paired_columns

    pairs = [(read(model, t, "twemoji", c), read(model, t, "fluent", c)) for t, c in few_slots(model, TWEMOJI, 1)]
    C, G = paired_columns(model, pairs, Tokens.ALL)
    changes = fold(model, LowRank(G - C, torch.linalg.pinv(C)))
    found = interference(model, [adapter_of(changes, model)], prompts=1)
    # With one prompt the first padding stands for all of it, so the shares differ from those of all positions.
    assert found.moved[0, 0] == pytest.approx(1.0, abs=1e-5)


def test_the_order_of_adapters_only_permutes(model, trio):
    forwards, backwards = interference(model, trio), interference(model, trio[::-1])
    assert backwards.adapters == forwards.adapters[::-1]
    assert set(backwards.concepts) == set(forwards.concepts)
    columns = [backwards.concepts.index(name) for name in forwards.concepts]
    np.testing.assert_allclose(backwards.moved[::-1][:, columns], forwards.moved, rtol=1e-6)
    np.testing.assert_allclose(backwards.together[columns], forwards.together, rtol=1e-4)
    np.testing.assert_array_equal(backwards.own[::-1][:, columns], forwards.own)


# -- the closed form -----------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), rank=st.integers(1, 6), layers=st.integers(1, 5))
def test_the_factor_sees_what_all_layers_see(seed, rank, layers):
    rng = torch.Generator().manual_seed(seed)
    changes = {}
    for i in range(layers):
        d_out = (3, 8, 12)[i % 3]
        up, down = (torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in ((d_out, rank), (rank, 10)))
        changes[f"unet.{i}"] = LowRank(up, down)
    x = torch.randn(10, 7, generator=rng, dtype=torch.float64)
    F = seen_factor(changes, 10)
    assert F.shape[0] <= min(10, layers * rank)
    expected = sum((c.delta() @ x).square().sum(0) for c in changes.values())
    torch.testing.assert_close((F @ x).square().sum(0), expected)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.float16, 5e-3)])
def test_the_factor_of_a_closed_form_has_its_rank(model, tmp_path, dtype, close):
    operator = LowRank(torch.randn(32, 3).double(), torch.randn(3, 32).double())
    adapter = adapter_of(fold(model, operator), model)
    assert len(seen_factor(adapter.changes, 32)) == 3
    stored = type(adapter).load(adapter.save(tmp_path, dtype=dtype)[0])  # rounded, each layer with factors of its own
    F = seen_factor(stored.changes, 32)
    assert len(F) == 3
    x = torch.randn(32, 50, dtype=torch.float64)
    expected = sum((c.to(torch.float64).delta() @ x).square().sum(0) for c in stored.changes.values())
    torch.testing.assert_close((F @ x).square().sum(0).sqrt(), expected.sqrt(), rtol=close, atol=0)


def test_the_sum_of_many_changes_is_dense_where_that_is_smaller(model):
    edits = [random_changes(model, rank=5, seed=seed) for seed in range(12)]
    total = Total()
    for edit in edits:
        total.add(edit)
    summed, expected = total.changes(), compose(edits)
    assert total._dense  # 60 ranks on layers 32 wide
    for path, change in summed.items():
        torch.testing.assert_close(change.delta(), expected[path].delta())
    for path, edit in edits[0].items():  # what was added is not changed by adding
        torch.testing.assert_close(edit.delta(), random_changes(model, rank=5, seed=0)[path].delta())


def test_with_one_prompt_the_first_padding_stands_for_all(model, pristine, trio):
    found = interference(model, trio[:1], [], prompts=1)
    prompt = read(model, "{target} style", "twemoji")
    x = encoded(pristine, prompt.ids)[prompt.first : prompt.end + 2]
    squares = sum((c.delta() @ x.T).square().sum(0) for c in trio[0].changes.values())
    weights = torch.ones(len(x), dtype=torch.float64)
    weights[-1] = model.length - prompt.end - 1
    move = ((squares * weights).sum() / weights.sum()).sqrt()
    anchor = read(model, "{target} style", "fluent")
    y = encoded(pristine, anchor.ids)
    y = torch.stack([y[q] for _, q in aligned(prompt, anchor, Tokens.ALL, model.length)][: len(x)])
    away = (seen(model, pristine, x) - seen(model, pristine, y)).square().sum(1)
    assert found.moved[0, 0] == pytest.approx((move / ((away * weights).sum() / weights.sum()).sqrt()).item(), rel=2e-4)


# -- concepts ------------------------------------------------------------------------------------------------------


def test_every_member_of_a_joint_adapter_is_its_own(model):
    joint = adapter_of(random_changes(model), model)
    joint = type(joint)(joint.changes, joint.family, (TWEMOJI, NOTO), "uce", {}, joint.base)
    single = adapter_of(random_changes(model, seed=7), model, Concept("Noto", anchor="openmoji"))
    found = interference(model, [joint, single], ["cat"])
    assert found.concepts == ("twemoji", "noto to blob", "Noto to openmoji", "cat")
    assert found.own.tolist() == [[True, True, True, False], [False, True, True, False]]
    assert found.erased.tolist() == [True, True, True, False]
    assert {p["concept"] for p in found.worst(99)} == {"twemoji", "cat"}


def test_what_must_stay_is_what_the_adapters_preserve_and_neighbours(model):
    adapters = [
        adapter_of(random_changes(model), model, Concept("cat", "object", "dog", ("Bridge", "noto"))),
        adapter_of(random_changes(model, seed=9), model, NOTO),
    ]
    found = interference(model, adapters, prompts=1)
    stay = found.concepts[2:]
    assert "Bridge" in stay
    assert not {"noto", "cat"} & {name.casefold() for name in stay}
    assert len(stay) == len({name.casefold() for name in stay}) == KEPT
    for kind in ("style", "object"):
        assert set(surroundings(model, Concept("x", kind)).neighbours) & set(stay)


def test_contexts_that_are_erased_are_avoided(model):
    tree = Concept("tree", "object", "house")
    avoided = {"tree", "dog"}
    assert not {context for _, context in few_slots(model, TWEMOJI, 30, avoided)} & avoided
    everything = {c.casefold() for c in surroundings(model, tree).contexts}
    assert {context for _, context in few_slots(model, tree, 30, everything)} == {""}


def test_named_concepts_stay_and_an_erased_one_is_left_out(model, trio):
    found = interference(model, trio, ["  cat ", "Noto", "CAT", Concept("dog", "object")], prompts=1)
    assert found.concepts[3:] == ("cat", "dog")
    assert any("Noto" in notice for notice in found.notices)


def test_adapters_of_the_same_name_are_told_apart(model):
    changes = [random_changes(model, seed=seed) for seed in range(3)]
    adapters = [adapter_of(c, model) for c in changes]
    adapters[2] = type(adapters[2])(changes[2], adapters[2].family, (TWEMOJI,), "encoder", {}, adapters[2].base)
    names = interference(model, adapters, [], prompts=1).adapters
    assert names[2] == "Erases twemoji (encoder)"
    assert names[:2] == tuple(f"Erases twemoji (uce, {a.digest[:8]})" for a in adapters[:2])


def test_the_same_edit_counts_once_and_is_told(model, unet_edit, tmp_path):
    kohya, _ = unet_edit.save(tmp_path)
    found = interference(model, [kohya, tmp_path])
    assert len(found.adapters) == 1
    assert [n for n in found.notices if f"{tmp_path} is the same edit as {kohya}; counted once." in n]


def test_adapters_that_are_not_held_are_read_again(model, trio, tmp_path, monkeypatch):
    paths = [adapter.save(tmp_path / str(i))[0] for i, adapter in enumerate(trio)]
    held = interference(model, iter(paths))
    monkeypatch.setattr(bundle, "HELD", 0)
    again = interference(model, [str(p) for p in paths])
    np.testing.assert_array_equal(again.moved, held.moved)


# -- refusals ------------------------------------------------------------------------------------------------------


def test_another_base_is_refused(model, unet_edit):
    other = open_model(build_pipeline(seed=1))
    with pytest.raises(BaseMismatchError, match=r"was made for 'tiny', and in pipeline .* hash .*; pass that base"):
        interference(other, [unet_edit])
    assert interference(other, [unet_edit], check=False).moved.max() > 0


def test_other_shapes_and_layers_are_refused(unet_edit, model):
    wide = open_model(build_pipeline(width=48))
    with pytest.raises(BaseMismatchError, match=r"is \(\d+, 48\) in .* changes \(\d+, 32\); pass the base"):
        interference(wide, [unet_edit], check=False)
    elsewhere = adapter_of({"unet.conv_in": LowRank.zeros(4, 4)}, model)
    with pytest.raises(BaseMismatchError, match=r"changes unet.conv_in, which .* does not have"):
        interference(model, [elsewhere])
    missing = adapter_of({"text_encoder.text_model.encoder.layers.9.mlp.fc1": LowRank.zeros(64, 32)}, model)
    with pytest.raises(BaseMismatchError, match=r"layers\.9"):
        interference(model, [missing])


def test_input_that_says_nothing_is_refused(model, unet_edit):
    with pytest.raises(InputError, match="no adapter was given"):
        interference(model, [])
    with pytest.raises(InputError, match="prompts must be at least 1"):
        interference(model, [unet_edit], prompts=0)
    aimless = adapter_of(unet_edit.changes, model, Concept("twemoji"))
    with pytest.raises(InputError, match="no adapter says what its target becomes"):
        interference(model, [aimless], prompts=1)
    both = interference(model, [aimless, adapter_of(random_changes(model, seed=4), model, NOTO)], [], prompts=1)
    assert np.isfinite(both.moved).all()  # against the typical way then


# -- the summary and the picture -----------------------------------------------------------------------------------


def invented(adapters: int, kept: int = 5, seed: int = 0) -> Interference:
    rng = np.random.default_rng(seed)
    moved = rng.random((adapters, adapters + kept)) * 0.5
    own = np.eye(adapters, adapters + kept, dtype=bool)
    moved[own] = 1.0
    names = tuple(f"concept {i}" for i in range(adapters + kept))
    titles = tuple(f"Erases {n}" for n in names[:adapters])
    return Interference(titles, names, np.arange(adapters + kept) < adapters, own, moved, moved.sum(0), 6)


def test_the_summary_holds_the_matrix_and_is_the_same_each_time(model, trio):
    found = interference(model, trio)
    text = json.dumps(found.summary(), sort_keys=True)
    assert text == json.dumps(interference(model, trio).summary(), sort_keys=True)
    summary = json.loads(text)
    assert summary["prompts"] == PROMPTS
    assert np.abs(np.array(summary["moved"]) - found.moved).max() <= 5.1e-5
    assert [c["name"] for c in summary["concepts"] if c["erased"]] == ["twemoji", "noto", "bomb"]
    assert len(summary["together"]) == len(found.concepts)


def test_the_worst_pairs_never_hold_an_adapters_own_target():
    found = invented(8)
    found.moved[2, 5] = 0.9
    found.moved[7, 12] = 0.8
    worst = found.worst(3)
    assert worst[0] == {"adapter": "Erases concept 2", "concept": "concept 5", "moved": 0.9}
    assert worst[1] == {"adapter": "Erases concept 7", "concept": "concept 12", "moved": 0.8}
    everything = found.worst(10_000)
    assert len(everything) == 8 * 12
    assert not [p for p in everything if p["adapter"] == f"Erases {p['concept']}"]
    assert [p["moved"] for p in everything] == sorted((p["moved"] for p in everything), reverse=True)
    rows = found.per_adapter()
    assert rows[2] == {"adapter": "Erases concept 2", "own": 1.0, "concept": "concept 5", "moved": 0.9}


def test_above_64_adapters_the_summary_holds_the_worst_only():
    found = invented(MANY + 1)
    summary = found.summary()
    assert summary["moved"] is None
    assert len(summary["worst"]) == 100
    assert len(summary["per_adapter"]) == MANY + 1
    assert invented(MANY).summary()["moved"] is not None


def test_many_files_are_measured_on_one_prompt(model, tmp_path):
    targets = [f"painter {i}" for i in range(MANY + 3)]
    paths = []
    for i, target in enumerate(targets):
        operator = LowRank(torch.randn(32, 2).double(), torch.randn(2, 32).double())
        adapter = adapter_of(fold(model, operator), model, Concept(target, anchor="art"))
        paths.append(adapter.save(tmp_path / str(i), peft=False)[0])
    told = []
    found = interference(model, paths, progress=lambda *what: told.append(what))
    assert found.prompts == 1
    assert found.moved.shape == (MANY + 3, len(found.concepts))
    assert found.own.sum() == MANY + 3
    assert (MANY + 3, MANY + 3, "reading adapters") in told
    assert found.summary()["moved"] is None
    few = interference(model, paths[:3], found.concepts[MANY + 3 :], prompts=1)
    np.testing.assert_allclose(few.moved[:, :3], found.moved[:3, :3], rtol=1e-6)


def test_one_adapter_that_erases_all_there_is_has_no_worst(model, unet_edit):
    found = interference(model, [unet_edit], [])
    assert found.worst() == []
    assert found.per_adapter()[0]["concept"] is None
    assert draw(found).width > 300


def strong(sheet):
    """How many pixels have the strongest colour, and how many have ink's."""
    pixels = np.asarray(sheet.convert("RGB"))
    return (pixels == heatmap.STRONG).all(-1).sum(), (pixels == (26, 26, 26)).all(-1).sum()


@pytest.mark.parametrize("adapters", [1, 2, 9, 40])
def test_the_heat_map_has_a_cell_for_each_pair(adapters):
    found = invented(adapters)
    sheet = draw(found)
    side = 52 if adapters + 5 <= 14 else 26
    rows = adapters + (adapters > 1)
    assert sheet.width > side * (adapters + 5)
    assert side * rows < sheet.height < side * rows + 420
    red, ink = strong(sheet)
    nothing = {"own": np.zeros_like(found.own), "moved": found.moved * 0, "together": found.together * 0}
    faint = replace(found, **nothing)
    pale, thin = strong(draw(faint))
    # An own target and each move of all together fill their cells, less the numbers; headings and legend stay.
    strong_cells = found.own.sum() + (found.together >= 1).sum() * (adapters > 1)
    assert 0.6 * side * side * strong_cells < red - pale < side * side * strong_cells
    assert ink > thin  # outlines


def test_a_heat_map_of_many_shows_the_worst_and_says_so():
    some, found = invented(40, kept=24), invented(300, kept=40)
    found.moved[250, 333] = 0.99
    rows, columns = heatmap._chosen(found)
    assert (len(rows), len(columns)) == (heatmap.ROWS, heatmap.COLUMNS)
    assert 250 in rows
    assert 333 in columns
    sheet = draw(found)
    assert sheet.width < 2 * draw(some).width
    assert sheet.height < 2 * draw(some).height
    notice = np.asarray(sheet)[70:86, 24:400]
    assert (notice[..., 0] > notice[..., 1] + 60).any()  # red words under the title
    notice = np.asarray(draw(some))[70:86, 24:60]
    assert not (notice[..., 0] > notice[..., 1].astype(int) + 60).any()


def test_long_names_other_scripts_and_huge_moves_do_not_break_it():
    found = invented(3)
    concepts = ("x" * 300, "فان جوخ 🐱", "c", *found.concepts[3:])
    titles = ("Erases " + "y" * 400, "", "z")
    strange = replace(found, adapters=titles, concepts=concepts, moved=found.moved * 4000)
    assert draw(strange).width < 2000


# -- on the generator that ships -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def styles(tmp_path_factory):
    """Real adapters of two styles, in folders."""
    from concept_erase import erase

    folder = tmp_path_factory.mktemp("styles")
    for concept in (Concept("twemoji", anchor="fluent"), NOTO):
        erase(concept, n=0, out=folder / concept.target)
    return folder


def test_a_real_erasure_moves_its_target_and_little_else(styles):
    found = interference(None, [styles / "twemoji", styles / "noto"])
    assert found.concepts[:2] == ("twemoji", "noto")
    assert set(found.concepts[2:]) == {"blob", "openmoji", "fluent", "high contrast", "blue ink", "pixel art"}
    assert 0.8 < found.moved[found.own].min() <= found.moved[found.own].max() < 1.1
    assert found.moved[~found.own].max() < 0.2
    assert 0.8 < found.together[:2].min() <= found.together[:2].max() < 1.1
    assert found.together[2:].max() < 0.3
    brief = interference(None, [styles / "twemoji", styles / "noto"], prompts=1)
    assert np.abs(brief.moved - found.moved).max() < 0.1


# -- the command ---------------------------------------------------------------------------------------------------


def invoke(*arguments, columns=200):
    import typer

    from concept_erase.cli.interference import interference as command

    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": str(columns)})


@pytest.fixture
def wide(monkeypatch):
    """Sets the width of the terminal that the command prints to."""
    from concept_erase.cli.interference import console

    return lambda columns: monkeypatch.setattr(console, "_width", columns)


def test_the_command_prints_a_table_and_writes_picture_and_summary(styles, tmp_path, wide):
    wide(200)
    out, report = tmp_path / "deep" / "map.png", tmp_path / "map.json"
    result = invoke(styles / "twemoji", styles / "noto", "--out", out, "--json", report)
    assert result.exit_code == 0, result.output
    shown = flat(result.stdout)
    found = interference(None, [styles / "twemoji", styles / "noto"])
    assert f"[{found.moved[0, 0]:.2f}] {found.moved[0, 1]:.2f}" in shown
    assert all(name in shown for name in (*found.concepts, "all together", str(out), str(report)))
    worst = found.worst(1)[0]
    assert f"'{worst['adapter']}' moves '{worst['concept']}' by {worst['moved']:.2f}" in shown
    assert json.loads(report.read_text()) == json.loads(json.dumps(found.summary()))
    with Image.open(out) as image:
        assert image.format == "PNG"
        assert image.size == draw(found).size
    assert names_in(out.parent) == ["map.png"]


def test_on_a_narrow_terminal_the_worst_is_said_in_words(styles, wide):
    wide(80)
    result = invoke(styles / "twemoji", styles / "noto")
    shown = flat(result.stdout)
    assert "moves most besides" in shown
    assert "all together move" in shown
    assert max(len(line) for line in result.stdout.splitlines()) <= 80


def test_the_command_prints_json_alone(styles):
    result = invoke(styles / "noto", "--preserve", "twemoji", "--preserve", "blob", "--prompts", "1", "--json", "-")
    summary = json.loads(result.stdout)
    assert [c["name"] for c in summary["concepts"]] == ["noto", "twemoji", "blob"]
    assert summary["adapters"] == ["Erases noto"]
    assert summary["prompts"] == 1


def test_the_command_tells_of_duplicates(styles, wide):
    wide(300)
    result = invoke(styles / "noto", next((styles / "noto").glob("erase-noto-*.safetensors")))
    assert result.exit_code == 0
    assert f"is the same edit as {styles / 'noto'}; counted once." in flat(result.stdout)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["GOOD", "/no/such/file.safetensors"], AdapterFileError, "does not exist"),
        (["GOOD", "notes.txt"], AdapterFileError, "no .safetensors file"),
        (["GOOD", "--out", "map.jpg"], InputError, "the heat map is a .png file"),
        (["GOOD", "--preserve", " "], InputError, "preserve is blank"),
        (["GOOD", "-m", "BASE"], BaseMismatchError, "pass the base it was made for"),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else "",
)
def test_the_command_refuses_what_it_cannot_use(styles, base_folder, tmp_path, arguments, error, message):
    names = {"GOOD": styles / "noto", "BASE": base_folder}
    with untouched(tmp_path):
        result = invoke(*(names.get(a, a) for a in arguments), "--json", tmp_path / "x.json")
    assert isinstance(result.exception, error)
    assert result.exception.exit_code == 2
    assert message in str(result.exception)
    assert not (tmp_path / "x.json").exists()


def test_the_operator_beside_a_file_stands_for_it_unless_it_is_anothers(model, tmp_path, monkeypatch):
    from concept_erase import erase
    from concept_erase.adapter import Adapter

    targets = ("twemoji", "blob", "noto")
    files = [
        erase(Concept(name, anchor="fluent"), model, quick("uce"), out=tmp_path / name, n=0, dtype=dtype).files
        for name, dtype in zip(targets, (torch.float32, torch.float16, torch.float32), strict=True)
    ]
    adapters = [Adapter.load(f["adapter"]) for f in files]
    shutil.copy(files[0]["operator"], files[2]["operator"])  # not that of its adapter any more
    used = []
    real = bundle.operator_factor
    monkeypatch.setattr(bundle, "operator_factor", lambda *how: used.append(how) or real(*how))
    beside = interference(model, [f["adapter"] for f in files])
    assert len(used) == 2
    loaded = interference(model, adapters)
    assert len(used) == 2, "an adapter in memory has no file beside it"
    folders = interference(model, [tmp_path / name for name in targets])
    assert len(used) == 4, "a folder holds its operator"
    np.testing.assert_allclose(folders.moved, beside.moved, rtol=3e-3)
    np.testing.assert_allclose(beside.moved, loaded.moved, rtol=3e-3)
    np.testing.assert_allclose(beside.together, loaded.together, rtol=3e-3)
