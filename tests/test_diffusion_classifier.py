"""The base as its own judge: laws of the verdict, who judges, and what it is called."""

import contextlib
import json

import pytest
import torch
from conftest import TWEMOJI, adapter_of, bits, quick, random_changes
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image

from concept_erase import card, diffusion_classifier, erase, knowledge, scores, typed, words
from concept_erase.attach import attached, detached, erasures, load_erasure
from concept_erase.concepts import Concept, Kind
from concept_erase.diffusion_classifier import LEFT, LEVELS, NAME, DiffusionClassifier
from concept_erase.errors import InputError, MissingModelError, NumericalError
from concept_erase.generate import Sampling, generate
from concept_erase.model import open_model
from concept_erase.scores import CANDIDATES, Judges, Shot, Verdicts, score
from concept_erase.statistics import rate
from concept_erase.surroundings import surroundings

NAMES = ("noto", "blob", "twemoji", "pixel art", "fluent")
TEMPLATES = ("a {context} in {target} style", "{target} style")


@pytest.fixture(autouse=True)
def _no_backbone(monkeypatch):
    monkeypatch.setattr(scores.perceptual, "distances", lambda net, before, after: [0.5] * len(before))


@pytest.fixture(scope="module")
def image(model):
    return generate(model, ["a cat"], [3], sampling=Sampling(2))[0]


def oracle(monkeypatch, pipe, image, right: str) -> list[int]:
    """The denoiser knows the noise in this picture, and says it the worse the less a prompt is the right one."""
    model = open_model(pipe)
    latents = DiffusionClassifier(model)._latents(image)
    text = pipe.encode_prompt([right], "cpu", 1, False)[0]
    alphas, kind, rows = pipe.scheduler.alphas_cumprod, pipe.scheduler.config.prediction_type, []

    def forward(sample, timestep, encoder_hidden_states, return_dict=False):
        rows.append(len(sample))
        alpha = alphas[timestep]
        noise = (sample - alpha.sqrt() * latents) / (1 - alpha).sqrt()
        said = {
            "epsilon": noise,
            "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * latents,
            "sample": latents.expand_as(noise),
        }[kind]
        wrong = (encoder_hidden_states - text).square().mean(dim=(1, 2))
        return (said + wrong[:, None, None, None],)

    monkeypatch.setattr(pipe.unet, "forward", forward)
    return rows


# -- laws ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("right", ["noto", "pixel art"])
def test_the_prompt_that_explains_a_picture_wins_whatever_the_denoiser_predicts(monkeypatch, pipe, image, kind, right):
    pipe.scheduler.register_to_config(prediction_type=kind)
    oracle(monkeypatch, pipe, image, f"a cat in {right} style")
    judge = DiffusionClassifier(open_model(pipe))
    assert judge.classify([image], NAMES, TEMPLATES, ["cat"]) == [right]
    errors = judge.errors(image, [f"a cat in {name} style" for name in NAMES])
    assert min(errors) == errors[NAMES.index(right)] == pytest.approx(0, abs=1e-9)
    assert judge.classify([image], NAMES, TEMPLATES, ["dog"]) != [""], "told otherwise it still says one of the names"


def test_what_is_not_told_is_not_in_the_prompt(monkeypatch, pipe, image):
    oracle(monkeypatch, pipe, image, "blob style")
    judge = DiffusionClassifier(open_model(pipe))
    assert judge.classify([image] * 2, NAMES, TEMPLATES, ["", ""]) == judge.classify([image] * 2, NAMES, TEMPLATES)
    assert judge.classify([image], NAMES, TEMPLATES) == ["blob"]
    assert judge.errors(image, ["blob style"]) == pytest.approx([0], abs=1e-9)


def test_neither_order_nor_company_nor_the_size_of_batches_changes_a_verdict(model, image, monkeypatch):
    pictures = [image, *generate(model, ["a dog", "noto style"], [1, 2], sampling=Sampling(2))]
    judge = DiffusionClassifier(model)
    one_by_one = [DiffusionClassifier(model).classify([p], NAMES, TEMPLATES, ["cat"])[0] for p in pictures]
    assert judge.classify(pictures, NAMES[::-1], TEMPLATES, ["cat"] * 3) == one_by_one
    assert judge.classify(pictures[::-1], [*NAMES, "NOTO", "Pixel-Art"], TEMPLATES, ["cat"] * 3) == one_by_one[::-1]
    prompts = [f"{name} style" for name in NAMES]
    errors = judge.errors(image, prompts)
    assert len(set(errors)) == len(NAMES)
    monkeypatch.setattr(diffusion_classifier, "ROWS", 2)
    assert DiffusionClassifier(model).errors(image, prompts) == pytest.approx(errors, rel=1e-4)


def test_the_noise_follows_from_the_picture_alone(model, image):
    judge = DiffusionClassifier(model)
    other = image.copy()
    other.putpixel((0, 0), tuple(255 - value for value in image.getpixel((0, 0))))
    assert judge.errors(image, ["a cat"]) == judge.errors(image.copy(), ["a cat"])
    assert judge.errors(image, ["a cat"], 1) != judge.errors(image, ["a cat"]) != judge.errors(other, ["a cat"])


def test_all_names_are_seen_once_and_only_the_best_more_often(monkeypatch, pipe, image):
    names = [f"{a}{b}" for a in "abcdef" for b in "uvwxyz"]
    rows = oracle(monkeypatch, pipe, image, "cw style")
    assert DiffusionClassifier(open_model(pipe)).classify([image], names, TEMPLATES) == ["cw"]
    assert sum(rows) == len(names) + sum(LEFT)
    assert len(LEVELS) == len(LEFT) + 1


def test_the_same_question_is_answered_once(monkeypatch, pipe, image):
    rows = oracle(monkeypatch, pipe, image, "blob style")
    model = open_model(pipe)
    DiffusionClassifier(model).classify([image, image.copy()], NAMES, TEMPLATES)
    asked = list(rows)
    assert DiffusionClassifier(model).classify([image], NAMES, TEMPLATES) == ["blob"]
    assert rows == asked


def test_pictures_of_any_size_and_mode_are_judged(model):
    judge = DiffusionClassifier(model)
    for picture in (Image.new("L", (5, 40), 99), Image.new("RGBA", (64, 64), (9, 9, 9, 9)), Image.new("P", (16, 16))):
        assert judge.classify([picture], NAMES, TEMPLATES)[0] in NAMES


def test_memory_that_runs_out_takes_smaller_batches(monkeypatch, pipe, image):
    rows = oracle(monkeypatch, pipe, image, "blob style")
    fine = pipe.unet.forward

    def forward(sample, *rest, **more):
        if len(sample) > 2:
            raise torch.OutOfMemoryError
        return fine(sample, *rest, **more)

    monkeypatch.setattr(pipe.unet, "forward", forward)
    assert DiffusionClassifier(open_model(pipe)).classify([image], NAMES, TEMPLATES) == ["blob"]
    assert max(rows) == 2


# -- it is the unedited base that judges -------------------------------------------------------------------------------


def test_an_erasure_that_is_attached_or_loaded_is_taken_out_meanwhile(pipe, image, tmp_path):
    model = open_model(pipe)
    adapter = adapter_of(random_changes(model))
    prompts = [f"a cat in {name} style" for name in NAMES]
    plain, untouched = DiffusionClassifier(model).errors(image, prompts), bits(pipe)
    adapter.save(tmp_path)
    with attached(pipe, adapter):
        edited = bits(pipe)
        judge = DiffusionClassifier(open_model(pipe))
        assert judge.errors(image, prompts) == plain
        assert judge.classify([image], NAMES, TEMPLATES, ["cat"])
        assert bits(pipe) == edited != untouched
    assert bits(pipe) == untouched
    name = load_erasure(pipe, tmp_path, check=False)
    loaded = bits(pipe)
    assert DiffusionClassifier(open_model(pipe)).errors(image, prompts) == plain
    assert (bits(pipe), list(erasures(pipe))) == (loaded, [name])


def test_an_erasure_comes_back_whatever_happens_meanwhile(pipe):
    adapter = adapter_of(random_changes(open_model(pipe)))
    untouched = bits(pipe)
    with attached(pipe, adapter):
        edited = bits(pipe)
        with contextlib.suppress(ZeroDivisionError), detached(pipe):
            assert bits(pipe) == untouched
            raise ZeroDivisionError
        assert bits(pipe) == edited
    with detached(pipe):  # nothing to take out
        assert bits(pipe) == untouched


# -- bases that cannot be asked ----------------------------------------------------------------------------------------


def test_a_base_that_does_not_draw_from_a_text_alone_is_refused(pipe):
    pipe.unet.register_to_config(in_channels=9)
    with pytest.raises(InputError, match="takes a picture and its mask beside the text"):
        DiffusionClassifier(open_model(pipe))


def test_a_scheduler_of_another_kind_changes_nothing_unless_it_hides_the_noise(pipe, image):
    prompts = ["a cat", "noto style"]
    errors = DiffusionClassifier(open_model(pipe)).errors(image, prompts)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    assert DiffusionClassifier(open_model(pipe)).errors(image, prompts) == errors
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(InputError, match=r"FlowMatchEulerDiscreteScheduler .* does not say which noise"):
        DiffusionClassifier(open_model(pipe)).errors(image, prompts)


def test_a_denoiser_that_answers_with_nan_does_not_judge(monkeypatch, pipe, image):
    monkeypatch.setattr(pipe.unet, "forward", lambda sample, *_, **__: (sample * torch.nan,))
    with pytest.raises(NumericalError, match="answers with NaN or Inf"):
        DiffusionClassifier(open_model(pipe)).classify([image], NAMES, TEMPLATES)


def test_names_that_do_not_fit_are_asked_about_without_what_is_told_or_refused(model, image):
    judge = DiffusionClassifier(model)
    context = " ".join(["very long"] * 9)
    assert judge.classify([image], NAMES, TEMPLATES, [context]) == judge.classify([image], NAMES, TEMPLATES)
    with pytest.raises(InputError, match=r"tokens, the text encoder of .* holds"):
        judge.classify([image], [*NAMES, "x y z " * 30], TEMPLATES)
    with pytest.raises(InputError, match="no name to choose from"):
        judge.classify([image], [], TEMPLATES)


# -- as a scorer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [(None, (False, None)), ("", (False, None)), ("base", (True, None)), (" Base ", (True, None)),
     ("base+", (True, None)), ("base+ViT-B-32:x", (True, "ViT-B-32:x")), ("ViT:x", (False, "ViT:x")),
     ("./base", (False, "./base")), ("a+b", (False, "a+b")), ("base/line", (False, "base/line"))],
)  # fmt: skip
def test_how_a_scorer_is_named(text, found):
    assert typed.scorer(text) == found


@pytest.fixture(scope="module")
def scored(base_folder, tmp_path_factory):
    """An erasure from the tiny base, scored by itself, and its folder."""
    folder = tmp_path_factory.mktemp("scored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores.perceptual, "distances", lambda net, before, after: None)
        how = {"n": 2, "scorer": "base", "sampling": Sampling(1), "force": True}
        return erase(TWEMOJI, base_folder, quick("uce"), out=folder, **how), folder


def test_alone_it_is_the_judge_and_never_called_clip(scored):
    result = scored[0].scores
    assert (result.judge, result.scorer) == (NAME, NAME)
    names = {*result.before, *result.after, *result.change, *result.controls}
    assert not [name for name in names if "clip" in name or "kappa" in name]
    for side in (result.before, result.after):
        assert side["base_accuracy_erased"].value == pytest.approx(100 - side["UA"].value)
        assert side["base_accuracy_kept"].value == side["IRA"].value
    table = card.scores_table(result)
    assert "CLIP" not in table
    assert NAME in table
    assert "Base accuracy" in table


def test_what_it_says_is_in_report_and_card(scored):
    outcome, folder = scored
    report = json.loads((folder / "report.json").read_text())
    assert report["not_scored"] is None
    assert report["scores"]["judge"] == report["knowledge"][0]["judge"] == NAME
    assert report["scores"]["after"]["base_accuracy_kept"]["n"] == 2
    assert "CLIP" not in (folder / "README.md").read_text()
    assert outcome.scores.controls["nonsense"].n == scores.NULL


def test_beside_open_clip_both_are_told_by_their_names(model, scorer_folder):
    result = score(model, adapter_of(random_changes(model)), n=2, scorer=f"base+{scorer_folder}", sampling=Sampling(1))
    assert result.judge == f"{scorer_folder.name} (zero-shot)"
    assert result.scorer == f"{scorer_folder.name} and {NAME}"
    assert {"clip_accuracy_erased", "clip_score_kept", "base_accuracy_erased", "base_accuracy_kept"} <= set(
        result.after
    )
    assert {"kappa", "kappa_base"} <= set(result.controls)


def test_what_was_drawn_is_told_apart_by_what_the_base_says(monkeypatch, pipe, image):
    concept = Concept("twemoji", anchor="fluent", preserve=("noto", "blob"))
    context = surroundings(open_model(pipe), concept).contexts[1]
    oracle(monkeypatch, pipe, image, f"a {context} in noto style")
    judges = Judges(open_model(pipe), [concept], "base")
    shots = [Shot("p", 0, name, context, name == "twemoji", True) for name in ("twemoji", "noto", "blob")]
    looked = judges.look(shots, [image] * 3)
    assert looked == Verdicts(["noto"] * 3, looked.contexts, [], [], ["noto"] * 3)
    assert looked.contexts == [context] * 3, "told the style that it saw, not the one that was asked for"
    assert judges.taken([image] * 3, [concept], shots) == {"twemoji": 0}
    assert judges.judge_of(concept) == judges.name == NAME


def test_what_a_concept_became_is_among_the_answers(monkeypatch, pipe, image):
    oracle(monkeypatch, pipe, image, "a cat in fluent style")
    judges = Judges(open_model(pipe), [Concept("twemoji", anchor="fluent", preserve=("noto",))], "base")
    shots = [Shot("p", 0, "twemoji", "cat", True, True)]
    assert judges.look(shots, [image]).concepts == ["fluent"]


def test_people_are_asked_for_by_their_names_alone(monkeypatch, pipe, image):
    concept = Concept("Barack Obama", Kind.IDENTITY)
    context = surroundings(open_model(pipe), concept).contexts[1]
    oracle(monkeypatch, pipe, image, f"Barack Obama, {context}")
    judges = Judges(open_model(pipe), [concept], "base")
    looked = judges.look([Shot("p", 0, "Barack Obama", context, True, False)], [image])
    assert (looked.concepts, looked.contexts) == (["Barack Obama"], [context])


def test_of_thousands_of_names_a_bounded_number_is_asked_about(monkeypatch, pipe, image):
    concepts = [Concept(f"artist {a}{b}{c}", preserve=("noto",)) for a in "abcdef" for b in "uvwxyz" for c in "ghklmn"]
    rows = oracle(monkeypatch, pipe, image, "a cat in artist bvk style")
    judges = Judges(open_model(pipe), concepts, "base")
    found = judges.look([Shot("p", 0, "artist bvk", "cat", True, True)], [image])
    assert found.concepts == ["artist bvk"]
    assert len(concepts) > CANDIDATES
    assert sum(rows) <= CANDIDATES + 40 + 2 * sum(LEFT)


def test_without_a_scorer_the_base_is_offered_first(model):
    with pytest.raises(MissingModelError, match=r"pass --scorer base, .* or --scorer with an open_clip model"):
        Judges(model, [TWEMOJI], None)


def test_progress_is_told_while_it_judges(model, image):
    told = []
    DiffusionClassifier(model, lambda *step: told.append(step)).classify([image] * 2, NAMES, TEMPLATES)
    assert told == [(1, 2, "pictures judged by the base itself"), (2, 2, "pictures judged by the base itself")]


# -- what nonsense is taken for ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("itself", "state", "known"), [(0, "known", True), (16, "known", True), (23, "unsure", None), (24, "unsure", None)]
)
def test_a_base_that_recognises_nonsense_as_well_does_not_know_what_it_knows(
    model, image, monkeypatch, itself, state, known
):
    def taken(self, images, concepts, shots):
        return {c.target: len(shots) * shots[0].erased for c in concepts}

    monkeypatch.setattr(knowledge, "generate", lambda model, prompts, seeds, **_: [image] * len(prompts))
    monkeypatch.setattr(Judges, "taken", taken)
    monkeypatch.setattr(Judges, "themselves", lambda self, images, concept, shots: itself)
    (found,) = knowledge.look(model, Judges(model, [TWEMOJI], "base"), [TWEMOJI], 24).found
    assert (found.state.value, found.own.k, found.null.k, found.itself.k) == (state, 24, 0, itself)
    told = words.knowledge(found.as_dict())
    assert f", which recognises {itself} of 24 nonsense names in what it draws for them (" in told
    assert told.startswith("The base knows" if known else "Whether the base knows 'twemoji' is not clear:")
    controls = {"positive": rate(24, 24), "nonsense": rate(0, 24), "nonsense_itself": rate(itself, 24)}
    assert scores.Scores({}, {}, {}, controls, {}, "", "").known is known


def test_nonsense_is_asked_for_in_the_targets_place(monkeypatch, pipe, image):
    concept = Concept("twemoji", anchor="fluent", preserve=("noto", "blob"))
    model = open_model(pipe)
    first, second, *_ = scores.nonsense_shots(model, concept)
    oracle(monkeypatch, pipe, image, f"a {first.context} in {first.concept} style")
    judges = Judges(model, [concept], "base")
    assert judges.themselves([image], concept, [first]) == 1
    oracle(monkeypatch, pipe, image, f"a {second.context} in blob style")
    other = image.copy()
    assert Judges(open_model(pipe), [concept], "base").themselves([other], concept, [second]) == 0
