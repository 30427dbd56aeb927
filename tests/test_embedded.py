"""The generator, scorer and judge that ship: complete, unchanged, stock formats, and erasable."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from conftest import names_in
from PIL import Image

from concept_erase import embedded, erase, methods
from concept_erase.adapter import Adapter
from concept_erase.errors import AdapterFileError, MissingModelError
from concept_erase.generate import Sampling, generate
from concept_erase.model import open_model

MIB = 2**20


@pytest.fixture(scope="module")
def house():
    return open_model()


def manifest() -> dict[str, str]:
    return json.loads((embedded.folder() / "manifest.json").read_text())["files"]


# -- the files -----------------------------------------------------------------------------------------------------


def test_the_manifest_names_every_file_and_its_hash():
    root, files = embedded.folder(), manifest()
    for name, digest in files.items():
        assert hashlib.sha256((root / name).read_bytes()).hexdigest() == digest, name
    shipped = {p for part in ("base", "scorer", "judge") for p in (root / part).rglob("*") if p.is_file()}
    assert {p.relative_to(root).as_posix() for p in shipped} | {"vocabulary.json"} == set(files)
    assert embedded.verified() == root


def test_they_are_small_enough_to_ship():
    sizes = [(embedded.folder() / name).stat().st_size for name in manifest()]
    assert sum(sizes) <= 60 * MIB
    assert max(sizes) <= 16 * MIB


def test_licence_and_attribution_ship_too():
    for name in ("README.md", "LICENSE"):
        assert (embedded.folder() / name).stat().st_size > 200
    text = (embedded.folder() / "README.md").read_text().lower()
    assert re.search(r"cc.by.sa.4\.0", text)
    assert all(style in text for style in embedded.styles())
    assert all(licence in text for licence in ("apache-2.0", "cc by 4.0", "mit"))


def test_only_safetensors_ship():
    assert {Path(name).suffix for name in manifest()} <= {".safetensors", ".json", ".txt"}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The weights as links in another folder, which the package takes for its own."""
    for name in (*manifest(), "manifest.json"):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(embedded.folder() / name)
    monkeypatch.setattr(embedded, "folder", lambda: tmp_path)
    embedded.verified.cache_clear()
    yield tmp_path
    embedded.verified.cache_clear()


def test_an_unchanged_copy_is_accepted(elsewhere):
    assert embedded.base() == elsewhere / "base"
    assert embedded.scorer() == elsewhere / "scorer"
    assert embedded.judge() == elsewhere / "judge"


@pytest.mark.parametrize("name", ["base/model_index.json", "judge/config.json", "vocabulary.json"])
@pytest.mark.parametrize("fault", ["changed", "missing"])
def test_a_file_that_changed_or_is_missing_is_found_before_use(elsewhere, name, fault):
    content = (elsewhere / name).read_bytes()
    (elsewhere / name).unlink()
    if fault == "changed":
        (elsewhere / name).write_bytes(content + b" ")
    with pytest.raises(AdapterFileError, match=f"{name} (differs from manifest.json|is missing)"):
        open_model()


def test_without_weights_there_is_no_embedded_generator(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "__file__", str(tmp_path / "concept_erase" / "embedded.py"))
    with pytest.raises(MissingModelError, match="use a checkout"):
        embedded.folder.__wrapped__()


def test_the_vocabulary_is_the_one_promised():
    assert embedded.styles() == (
        "noto", "blob", "twemoji", "openmoji", "fluent", "high contrast", "blue ink", "pixel art",
    )  # fmt: skip
    assert len(embedded.objects()) >= 145
    violent = set(embedded.objects(violent=True))
    assert {"bomb", "dagger", "knife", "skull", "explosion", "fire", "syringe", "cigarette", "pill", "fist"} <= violent
    assert violent | set(embedded.objects(violent=False)) == set(embedded.objects())
    assert not violent & set(embedded.objects(violent=False))


# -- stock libraries -----------------------------------------------------------------------------------------------


def test_the_stock_pipeline_opens_the_base():
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(embedded.base(), use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.tokenizer.model_max_length == 24
    image = pipe(
        "a cat in noto style", num_inference_steps=2, height=64, width=64, generator=torch.Generator().manual_seed(0)
    ).images[0]
    assert image.size == (64, 64)
    assert {"vocab.json", "merges.txt"} <= set(names_in(embedded.base() / "tokenizer"))


def test_every_style_and_object_fits_every_prompt(house):
    from concept_erase.concepts import Kind, fill

    longest = {
        kind: max(names, key=lambda name: len(house.token_ids(name)))
        for kind, names in ((Kind.STYLE, embedded.styles()), (Kind.OBJECT, embedded.objects()))
    }
    for template in embedded.PROFILES[Kind.STYLE].templates + embedded.PROFILES[Kind.STYLE].unseen:
        assert len(house.token_ids(fill(template, longest[Kind.STYLE], longest[Kind.OBJECT]))) <= 24


def test_open_clip_opens_the_scorer():
    import open_clip

    model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{embedded.scorer()}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{embedded.scorer()}")
    with torch.no_grad():
        images = model.eval().encode_image(prepare(Image.new("RGB", (64, 64), "white"))[None], normalize=True)
        texts = model.encode_text(tokenize(["a cat in noto style", "a dog"]), normalize=True)
    assert images.shape[1] == texts.shape[1]
    assert (images @ texts.T).isfinite().all()


@pytest.fixture(scope="module")
def pictures(house):
    """Pictures of the base, and the style and object that each shall show."""
    things = ("cat", "rose", "car", "pizza", "rocket")
    truth = [(style, thing) for style in embedded.styles() for thing in things]
    prompts = [f"a {thing} in {style} style" for style, thing in truth]
    return truth, generate(house, prompts, list(range(len(prompts))), sampling=Sampling(10))


def test_the_judge_recognises_what_the_base_draws(pictures):
    from concept_erase.judge import Judge

    truth, images = pictures
    judge = Judge.load(embedded.judge())
    assert set(judge.styles) == set(embedded.styles())
    assert set(judge.objects) == set(embedded.objects())
    styles, objects = judge.name(images)
    right = [(a == s, b == o) for a, b, (s, o) in zip(styles, objects, truth, strict=True)]
    assert sum(style for style, _ in right) >= 0.7 * len(right)
    assert sum(thing for _, thing in right) >= 0.6 * len(right)


def test_the_scorer_recognises_what_the_base_draws(pictures):
    from concept_erase.clip import load_scorer
    from concept_erase.concepts import Kind

    truth, images = pictures
    scorer = load_scorer(str(embedded.scorer()))
    styles = scorer.classify(scorer.embed_images(images), embedded.styles(), embedded.PROFILES[Kind.STYLE].probes)
    assert sum(a == s for a, (s, _) in zip(styles, truth, strict=True)) >= 0.6 * len(truth)


def test_the_base_itself_recognises_what_it_draws(pictures):
    """Opened as a plain folder, of which nothing is known but its files."""
    from concept_erase.diffusion_classifier import DiffusionClassifier

    truth, images = (some[::7] for some in pictures)
    judge = DiffusionClassifier(open_model(embedded.base()))
    assert not open_model(embedded.base()).is_embedded
    styles = judge.classify(images, embedded.styles(), ["a {context} in {target} style"], [t for _, t in truth])
    assert sum(a == s for a, (s, _) in zip(styles, truth, strict=True)) >= 0.8 * len(truth)
    truth, images = (some[:3] for some in pictures)
    things = [*embedded.objects()[:12], *(thing for _, thing in truth)]
    found = judge.classify(images, things, ["a {target}"])
    assert sum(a == t for a, (_, t) in zip(found, truth, strict=True)) >= 2


# -- the whole way -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", methods.available())
def test_erasing_a_style_leaves_the_others(method, tmp_path):
    quick = {"steps": 60, "contexts": 24, "preserve_prompts": 200}
    known = {setting for setting, *_ in methods.describe(method).settings}
    eraser = methods.make(method, {k: v for k, v in quick.items() if k in known})
    outcome = erase("twemoji", method=eraser, out=tmp_path, n=24, sampling=Sampling(10))

    assert set(names_in(tmp_path)) == {
        "README.md", "before_after.png", "pictures", f"{outcome.adapter.slug}.safetensors",
        "pytorch_lora_weights.safetensors", "report.json",
        *([f"{outcome.adapter.slug}.operator"] if outcome.operator else []),
    }  # fmt: skip
    report = json.loads((tmp_path / "report.json").read_text())
    scores = report["scores"]
    assert scores["UA"]["before"]["value"] <= 40
    assert scores["UA"]["after"]["value"] >= 70
    for kept in ("IRA", "CRA"):
        assert scores[kept]["after"]["value"] >= scores[kept]["before"]["value"] - 25
        assert scores[kept]["after"]["n"] == 24
    assert scores["controls"]["positive"]["value"] == pytest.approx(100 - scores["UA"]["before"]["value"])
    assert report["base"]["name"] == "embedded"
    assert report["concept"]["anchor"] in set(embedded.styles()) - {"twemoji"}
    assert report["not_scored"] is None

    for path in (outcome.files["adapter"], outcome.files["adapter_peft"]):
        loaded = Adapter.load(path)
        assert loaded.method == method
        assert path.stat().st_size < 4 * MIB
    with Image.open(tmp_path / "before_after.png") as picture:
        assert picture.width > 600
