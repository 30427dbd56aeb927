"""Bases as people have them: odd files, odd live pipelines, paths that are no pipeline."""

import copy
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import (
    TWEMOJI,
    adapter_of,
    build_pipeline,
    encoder_paths,
    layer_at,
    names_in,
    random_changes,
    raw_safetensors,
    untouched,
)
from safetensors.torch import load_file, save_file

from concept_erase import Concept, erase, methods
from concept_erase.attach import load_erasure, unload_erasure
from concept_erase.checkpoint import base_name
from concept_erase.errors import ConceptEraseError, InputError, MissingModelError
from concept_erase.generate import Sampling, generate
from concept_erase.model import open_model, source_of

METHODS = ["uce", "encoder"]
UNET_FILE = Path("unet", "diffusion_pytorch_model.safetensors")
VAE_FILE = Path("vae", "diffusion_pytorch_model.safetensors")
ENCODER_FILE = Path("text_encoder", "model.safetensors")
ONE = Sampling(1)


def rename(path, change):
    """Rewrite a safetensors file with other names; None leaves a tensor out."""
    tensors = {change(name): tensor for name, tensor in load_file(path).items()}
    tensors.pop(None, None)
    save_file(tensors, path, metadata={"format": "pt"})


def settings(path, **changes):
    """Change a JSON file; None takes an entry out."""
    found = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def brief(name):
    """A method with so little to do that it is no matter what it makes, only of what."""
    return methods.make(name, {"contexts": 2} | ({"steps": 6, "preserve_prompts": 20} if name == "encoder" else {}))


def erased(base, method="uce", concept=TWEMOJI):
    return erase(concept, base, brief(method), n=0)


@pytest.fixture(scope="session")
def expected(base_folder):
    """What each method makes of the tiny generator as it is."""
    return {method: erased(base_folder, method).adapter for method in METHODS}


# -- the files hold what the model must be given -------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["foo.", "module.text_model.", "text_encoder.", "base_model.model."])
@pytest.mark.parametrize("method", METHODS)
def test_a_text_encoder_under_a_foreign_prefix_is_refused_and_one_tensor_named(base_copy, prefix, method):
    rename(base_copy / ENCODER_FILE, lambda name: prefix + name)
    with pytest.raises(InputError, match=rf"text_encoder in .*lacks '.*' and 35 more.*holds '{re.escape(prefix)}"):
        erased(base_copy, method)


WRONG = {
    "a missing tensor": (lambda n: None if n == "final_layer_norm.bias" else n, r"lacks 'final_layer_norm.bias'"),
    "a LoRA's base layers": (lambda n: n.replace("q_proj.", "q_proj.base_layer."), r"holds '.*q_proj\.base_layer"),
    "another number of layers": (lambda n: n.replace("layers.1", "layers.2"), r"lacks '.*layers\.1\..*holds '.*\.2"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_a_text_encoder_that_is_not_filled_by_its_files_is_refused(base_copy, wrong):
    change, message = WRONG[wrong]
    rename(base_copy / ENCODER_FILE, change)
    with pytest.raises(InputError, match=message):
        open_model(base_copy).encode([(2998, 2999)], [2])


def test_a_lora_left_in_the_text_encoder_s_files_is_refused(base_copy):
    tensors = load_file(base_copy / ENCODER_FILE)
    tensors["encoder.layers.0.self_attn.q_proj.lora_A.default.weight"] = torch.zeros(2, 32)
    save_file(tensors, base_copy / ENCODER_FILE, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"holds '.*lora_A\.default\.weight'"):
        _ = open_model(base_copy).text_encoder


def test_names_that_transformers_has_used_are_all_right(base_copy, expected):
    rename(base_copy / ENCODER_FILE, lambda name: f"text_model.{name.removeprefix('text_model.')}")
    tensors = load_file(base_copy / ENCODER_FILE)
    tensors["text_model.embeddings.position_ids"] = torch.arange(24)[None]
    tensors["text_projection.weight"] = torch.zeros(4, 32)  # of CLIP, which the text encoder is a part of
    save_file(tensors, base_copy / ENCODER_FILE, metadata={"format": "pt"})
    for method in METHODS:
        assert erased(base_copy, method).adapter.digest == expected[method].digest


def test_weights_that_do_not_fit_their_configuration_are_refused(base_copy):
    settings(base_copy / "text_encoder" / "config.json", intermediate_size=48)
    with pytest.raises(InputError, match=r"cannot be read as a CLIPTextModel.*config\.json do not fit"):
        _ = open_model(base_copy).text_encoder


UNET = {
    "a foreign prefix": (lambda n: f"foo.{n}", r"lacks 'down_blocks.*holds 'foo\.down_blocks.*to_k\.weight' instead"),
    "a LoRA's base layers": (
        lambda n: re.sub(r"(attn2\.to_[kv])\.", r"\1.base_layer.", n), r"lacks .*holds '.*base_layer\.weight' instead",
    ),
    "a missing layer": (
        lambda n: None if "mid_block" in n and "attn2.to_v" in n else n, r"lacks 'mid_block.*attn2\.to_v\.weight'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", UNET)
def test_a_denoiser_without_all_its_keys_and_values_is_refused(base_copy, wrong):
    change, message = UNET[wrong]
    rename(base_copy / UNET_FILE, change)
    with pytest.raises(InputError, match=message):
        erased(base_copy)


def test_keys_come_with_values_also_where_no_configuration_says_so(base_copy):
    (base_copy / "unet" / "config.json").unlink()
    rename(base_copy / UNET_FILE, lambda name: None if "mid_block" in name and "attn2.to_k" in name else name)
    with pytest.raises(InputError, match=r"lacks 'mid_block.*to_k\.weight'"):
        erased(base_copy)


@pytest.mark.parametrize("file", [UNET_FILE, VAE_FILE, ENCODER_FILE], ids=lambda file: file.parts[0])
def test_no_picture_is_drawn_with_weights_that_are_not_in_the_files(base_copy, file):
    lost = min(name for name in load_file(base_copy / file) if "norm" in name)
    rename(base_copy / file, lambda name: None if name == lost else name)
    with pytest.raises(InputError, match=f"the {file.parts[0]} in .* lacks '{re.escape(lost)}'"):
        generate(open_model(base_copy), ["a cat"], [1], sampling=ONE)


def test_a_vae_with_attention_under_its_old_names_draws(base_copy, base_folder):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    pattern = re.compile("|".join(map(re.escape, old)))
    rename(base_copy / VAE_FILE, lambda name: pattern.sub(lambda m: old[m[0]], name))
    pictures = [generate(open_model(f), ["a cat"], [1], sampling=ONE)[0] for f in (base_copy, base_folder)]
    assert pictures[0].tobytes() == pictures[1].tobytes()


# -- shards and variants -------------------------------------------------------------------------------------------


@pytest.fixture
def sharded(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    return tmp_path / "sharded"


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_missing_shard_is_named(sharded, part):
    lost = sorted((sharded / part).glob("*-of-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(MissingModelError, match=rf"names '{re.escape(lost.name)}', which is not beside it; fetch"):
        erased(sharded)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_shard_that_lacks_what_the_index_promises_is_named(sharded, part):
    index = next((sharded / part).glob("*.index.json"))
    listed = json.loads(index.read_text())["weight_map"]
    name = next(n for n in sorted(listed) if n.endswith(("attn2.to_k.weight", "q_proj.weight")))
    rename(sharded / part / listed[name], lambda n: None if n == name else n)
    with pytest.raises(InputError, match=rf"{re.escape(listed[name])} lacks '{re.escape(name)}', which the index prom"):
        erased(sharded)


@pytest.mark.parametrize("content", ['{"weight_map": 3}', "{}", "[]", "nonsense"])
def test_an_index_that_names_no_weights_is_refused(sharded, content):
    next((sharded / "unet").glob("*.index.json")).write_text(content)
    with pytest.raises(InputError, match=r"index\.json .*fetch it again"):
        erased(sharded)


def test_an_index_cannot_point_out_of_its_folder(sharded):
    index = next((sharded / "unet").glob("*.index.json"))
    found = json.loads(index.read_text())
    shutil.copy(sharded / ENCODER_FILE.parent / names_in(sharded / "text_encoder")[-1], sharded / "out.safetensors")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(found["weight_map"], "../out.safetensors")}))
    with pytest.raises(MissingModelError, match="not beside it"):
        erased(sharded)


def test_files_of_another_naming_are_named(base_copy):
    (base_copy / UNET_FILE).rename(base_copy / "unet" / "pruned.safetensors")
    with pytest.raises(MissingModelError, match=r"holds pruned\.safetensors, which is not how diffusers names"):
        erased(base_copy)


VARIANTS = {
    "all fp16": {"unet": ".fp16", "text_encoder": ".fp16", "vae": ".fp16"},
    "each another": {"unet": ".fp16", "text_encoder": "", "vae": ".bf16"},
    "a name of one's own": {"unet": ".pruned", "text_encoder": ".pruned", "vae": ""},
}


@pytest.mark.parametrize("how", VARIANTS)
def test_whatever_variant_is_there_is_erased_from_and_drawn_with(base_copy, base_folder, expected, how):
    for part, variant in VARIANTS[how].items():
        file = {"unet": UNET_FILE, "vae": VAE_FILE, "text_encoder": ENCODER_FILE}[part]
        (base_copy / file).rename((base_copy / file).with_suffix(f"{variant}.safetensors"))
    model = open_model(base_copy)
    assert erased(model).adapter.digest == expected["uce"].digest
    pictures = [generate(m, ["a cat"], [1], sampling=ONE)[0] for m in (model, open_model(base_folder))]
    assert pictures[0].tobytes() == pictures[1].tobytes()


def cached(folder, cache, name="some/one"):
    """Put a folder into a hub cache, as a snapshot."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    return repository / "snapshots" / revision


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_cached_hub_model_of_a_variant_alone_is_erased_from_and_drawn(base_copy, cache, expected):
    for file in (UNET_FILE, VAE_FILE, ENCODER_FILE):
        (base_copy / file).rename((base_copy / file).with_suffix(".fp16.safetensors"))
    cached(base_copy, cache)
    model = open_model("some/one")
    assert erased(model).adapter.digest == expected["uce"].digest
    assert generate(model, ["a cat"], [1], sampling=ONE)[0].size == (16, 16)


def test_a_cached_hub_model_that_lacks_a_shard_says_which(sharded, cache):
    snapshot = cached(sharded, cache)
    lost = sorted((snapshot / "unet").glob("*-of-*.safetensors"))[0]
    lost.unlink()
    with pytest.raises(MissingModelError, match="hub"):
        open_model("some/one")


def test_a_safety_checker_that_the_index_names_is_missed_when_drawing(base_copy, cache, expected):
    settings(base_copy / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    cached(base_copy, cache)
    model = open_model("some/one")
    assert erased(model).adapter.digest == expected["uce"].digest
    with pytest.raises(MissingModelError, match="safety_checker"):
        _ = model.pipe


def test_what_is_fetched_are_plain_files_and_variants_only_where_there_are_no_others(base_copy, tmp_path, monkeypatch):
    (base_copy / UNET_FILE).rename((base_copy / UNET_FILE).with_suffix(".fp16.safetensors"))
    shutil.copy(base_copy / ENCODER_FILE, (base_copy / ENCODER_FILE).with_suffix(".fp16.safetensors"))
    target, asked = tmp_path / "fetched", []

    def download(name, revision=None, local_files_only=False, allow_patterns=None, ignore_patterns=None):
        from huggingface_hub.utils import filter_repo_objects

        if local_files_only:
            raise OSError("nothing cached")
        files = [p.relative_to(base_copy).as_posix() for p in base_copy.rglob("*") if p.is_file()]
        for file in filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(base_copy / file, target / file)
        asked.append(sorted(p.relative_to(target).as_posix() for p in target.rglob("*.safetensors")))
        return str(target)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    model = open_model("some/one")
    assert asked[0] == ["text_encoder/model.safetensors"]
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in asked[1]
    assert not (target / "vae").exists(), "an edit needs none"
    assert generate(model, ["a cat"], [1], sampling=ONE)[0].size == (16, 16)
    assert (target / "vae").is_dir()


# -- parts of another kind -----------------------------------------------------------------------------------------


def test_an_encoder_of_another_kind_is_refused_in_a_sentence(base_copy, pipe):
    from transformers import BertConfig, BertModel

    bert = BertModel(
        BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    )
    bert.save_pretrained(base_copy / "text_encoder")
    settings(base_copy / "model_index.json", text_encoder=["transformers", "BertModel"])
    pipe.text_encoder = bert
    for base in (base_copy, pipe):
        with pytest.raises(InputError, match=r"text encoder of .* is of the kind 'bert'.*have a CLIPTextModel"):
            erased(base)


def test_a_tokenizer_of_another_kind_is_refused_in_a_sentence(base_copy, pipe, tmp_path):
    from transformers import BertTokenizer

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat"]))
    shutil.rmtree(base_copy / "tokenizer")
    pipe.tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"))
    pipe.tokenizer.save_pretrained(base_copy / "tokenizer")
    for base in (base_copy, pipe):
        with pytest.raises(InputError, match=r"tokenizer of .* is a BertTokenizer.*have a CLIPTokenizer"):
            erased(base)


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "unet"])
def test_a_pipeline_without_a_part_says_which(base_copy, pipe, part):
    settings(base_copy / "model_index.json", **{part: [None, None]})
    setattr(pipe, part, None)
    with pytest.raises(MissingModelError, match=f"tiny was saved without a {part} .*null in model_index"):
        erased(base_copy)
    with pytest.raises(InputError, match=rf"has no {part} \(None\)"):
        erased(pipe)


@pytest.mark.parametrize("part", ["vae", "scheduler"])
def test_a_pipeline_that_lacks_only_what_draws_is_erased_from(pipe, part, expected):
    setattr(pipe, part, None)
    assert erased(pipe).adapter.digest == expected["uce"].digest
    with pytest.raises(InputError, match=f"has no {part}; pass a whole pipeline to draw"):
        generate(open_model(pipe), ["a cat"], [1], sampling=ONE)


@pytest.mark.parametrize("part", ["vae", "scheduler"])
@pytest.mark.parametrize("how", ["folder", "settings"])
def test_a_folder_that_lacks_only_what_draws_says_so_when_it_draws(base_copy, expected, part, how):
    if how == "folder":
        shutil.rmtree(base_copy / part)
    else:
        for file in (base_copy / part).glob("*config.json"):
            file.write_text("{")
    assert erased(base_copy).adapter.digest == expected["uce"].digest
    with pytest.raises(ConceptEraseError, match=part):
        generate(open_model(base_copy), ["a cat"], [1], sampling=ONE)


@pytest.mark.parametrize("part", ["text_encoder", "unet"])
def test_a_configuration_that_is_no_json_is_named(base_copy, part):
    (base_copy / part / "config.json").write_text("{")
    with pytest.raises(InputError, match=rf"{part}/config\.json is no JSON"):
        erased(base_copy)


def test_a_text_encoder_without_a_configuration_is_refused(base_copy):
    (base_copy / "text_encoder" / "config.json").unlink()
    with pytest.raises(MissingModelError, match=r"text_encoder of tiny has no config\.json"):
        erased(base_copy)


# -- tokenizer and text encoder ------------------------------------------------------------------------------------


def test_a_tokenizer_without_a_limit_takes_the_text_encoder_s(base_copy, pipe, expected):
    settings(base_copy / "tokenizer" / "tokenizer_config.json", model_max_length=None)
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    pipe.tokenizer.model_max_length = int(1e30)
    for base in (base_copy, pipe):
        model = open_model(base)
        assert model.tokenizer.model_max_length > 1e9
        assert model.length == 24
        assert erased(model).adapter.digest == expected["uce"].digest
        assert generate(model, ["a cat"], [1], sampling=ONE)[0].size == (16, 16)
    assert pipe.tokenizer.model_max_length > 1e9, "what is not ours stays as it was"


def test_a_tokenizer_that_allows_more_than_the_encoder_holds_is_refused(base_copy, pipe):
    settings(base_copy / "tokenizer" / "tokenizer_config.json", model_max_length=512)
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    pipe.tokenizer.model_max_length = 25
    for base, allowed in ((base_copy, 512), (pipe, 25)):
        with pytest.raises(InputError, match=f"allows {allowed} tokens, its text encoder holds 24.*Set .* to 24"):
            erased(base)
        with pytest.raises(InputError, match="do not belong together"):
            generate(open_model(base), ["a cat"], [1], sampling=ONE)


def test_a_tokenizer_that_allows_less_is_kept_to(pipe):
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    pipe.tokenizer.model_max_length = 16
    assert open_model(pipe).length == 16


def test_a_token_that_the_encoder_lacks_is_refused_where_it_is_used(base_copy, pipe, expected):
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    pipe.tokenizer.add_tokens("<mine>")
    pipe.tokenizer.save_pretrained(base_copy / "tokenizer")
    for base in (base_copy, pipe):
        assert erased(base).adapter.digest == expected["uce"].digest
        with pytest.raises(InputError, match=r"makes token 3000 \('<mine>'\) .*text encoder knows 3000"):
            erased(base, concept=Concept("<mine>", anchor="art"))


def inversion(pipe, token="<mine>", vectors=4):
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    rng = torch.Generator().manual_seed(3)
    pipe.load_textual_inversion({token: torch.randn(vectors, 32, generator=rng)}, token=token)
    return pipe


def test_a_textual_inversion_is_erased_with_all_its_vectors(pipe, tmp_path):
    inversion(pipe).save_pretrained(tmp_path / "inverted")
    plain = pipe.tokenizer("a twemoji cat").input_ids
    for base in (pipe, tmp_path / "inverted"):
        model = open_model(base)
        assert model.token_ids("<mine>")[1:-1] == [3000, 3001, 3002, 3003]
        assert model.token_ids("a <mine> cat") == [2998, plain[1], 3000, 3001, 3002, 3003, plain[-2], 2999]
        assert model.token_ids("a twemoji cat") == plain
        from concept_erase.streams import read

        prompt = read(model, "a {target} {context}", "<mine>", "cat")
        assert (prompt.first, prompt.last) == (2, 5)
    edits = [erased(base, concept=Concept("<mine>", anchor="art")).adapter for base in (pipe, tmp_path / "inverted")]
    assert edits[0].digest == edits[1].digest


def test_one_vector_and_several_inversions_are_told_apart(pipe):
    model = open_model(pipe)
    assert len(model.token_ids("<one> <two>")) > 5, "not loaded yet: letters"
    inversion(pipe, "<one>", 1)
    inversion(pipe, "<two>", 2)
    model = open_model(pipe)
    assert model.token_ids("<one> <two> <one>")[1:-1] == [3000, 3001, 3002, 3000]


def test_the_gate_of_a_textual_inversion_does_not_open_for_the_word_in_its_name(pipe):
    from concept_erase.operators import _words

    model = open_model(inversion(pipe, "<cat>"))
    assert _words(model, Concept("<cat>", anchor="art")) == ((3000, 3001, 3002, 3003),)


# -- other layouts -------------------------------------------------------------------------------------------------

LAYOUTS = {
    "Stable Diffusion 2": ({"hidden_size": 1024, "hidden_act": "gelu"}, {"cross_attention_dim": 1024}),
    "Stable Diffusion 2, tiny": ({"hidden_act": "gelu", "num_hidden_layers": 23}, {}),
    "SDXL": ({}, {"addition_embed_type": "text_time", "cross_attention_dim": 2048}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_layout_with_the_class_names_of_sd_1_is_refused(base_copy, layout):
    text, unet = LAYOUTS[layout]
    settings(base_copy / "text_encoder" / "config.json", **text)
    settings(base_copy / "unet" / "config.json", **unet)
    with pytest.raises(
        InputError, match=f"tiny has .*{layout.split(',')[0]}.*Stable Diffusion 1 layouts are supported"
    ):
        open_model(base_copy)


def test_a_live_pipeline_of_another_layout_is_refused(pipe):
    pipe.unet.register_to_config(cross_attention_dim=1024)
    with pytest.raises(InputError, match="Stable Diffusion 2 layout"):
        open_model(pipe)


def test_the_width_of_the_weights_tells_where_no_configuration_does(base_copy):
    (base_copy / "unet" / "config.json").unlink()
    tensors = load_file(base_copy / UNET_FILE)
    wide = {n: torch.zeros(len(t), 1024) if re.search(r"attn2\.to_[kv]\.weight$", n) else t for n, t in tensors.items()}
    save_file(wide, base_copy / UNET_FILE, metadata={"format": "pt"})
    with pytest.raises(InputError, match="Stable Diffusion 2 layout"):
        erased(base_copy)


def test_parts_that_do_not_belong_together_are_refused(pipe):
    pipe.text_encoder = build_pipeline(width=16).text_encoder
    with pytest.raises(InputError, match="gives embeddings of width 16, its denoiser reads 32"):
        erased(pipe)


@pytest.mark.parametrize("name", ["embedded", "tiny"])
def test_small_bases_are_sd_1(name, base_folder):
    assert open_model(name if name == "embedded" else base_folder).family.name == "sd1"


# -- live pipelines as people have them ----------------------------------------------------------------------------


def compiled(pipe):
    pipe.unet, pipe.text_encoder = torch.compile(pipe.unet), torch.compile(pipe.text_encoder)


def compiled_inside(pipe):
    pipe.unet.down_blocks[0] = torch.compile(pipe.unet.down_blocks[0])
    attention = pipe.text_encoder.encoder.layers[1].self_attn
    attention.q_proj = torch.compile(attention.q_proj)


def parallel(pipe):
    pipe.unet, pipe.text_encoder = (torch.nn.DataParallel(part) for part in (pipe.unet, pipe.text_encoder))


def wrapped_twice(pipe):
    pipe.unet = torch.compile(torch.nn.DataParallel(pipe.unet))


def offloaded(pipe):
    from accelerate import cpu_offload

    for part in (pipe.unet, pipe.text_encoder, pipe.vae):
        cpu_offload(part, execution_device="cpu", offload_buffers=True)


def offloaded_to_disk(pipe, tmp_path):
    from accelerate import disk_offload

    for name in ("unet", "text_encoder"):
        disk_offload(getattr(pipe, name), tmp_path / name, execution_device="cpu")


def offloaded_in_groups(pipe):
    pipe.unet.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")


WAYS = [compiled, compiled_inside, parallel, wrapped_twice, offloaded, offloaded_to_disk, offloaded_in_groups]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_wrapped_and_offloaded_weights_give_the_same_file(pipe, expected, tmp_path, way):
    way(*([pipe, tmp_path] if way is offloaded_to_disk else [pipe]))
    for method in METHODS:
        adapter = erased(pipe, method).adapter
        assert adapter.base["hash"] == expected[method].base["hash"]
        assert list(adapter.changes) == list(expected[method].changes)
        assert adapter.digest == expected[method].digest


def test_weights_that_cannot_be_read_are_refused(pipe, tmp_path):
    pipe.unet.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="leaf_level", offload_to_disk_path=str(tmp_path)
    )
    with pytest.raises(InputError, match="offloaded to where they cannot be read; erase before offloading"):
        erased(pipe)


def test_a_shell_without_weights_is_refused(pipe):
    pipe.unet.to("meta")
    with pytest.raises(InputError, match="offloaded out of reach; do this before offloading"):
        erased(pipe)


def test_quantised_weights_are_refused(pipe, model):
    for path in model.stream_layers():
        layer = layer_at(pipe, path)
        layer.weight = torch.nn.Parameter(torch.zeros(layer.weight.shape, dtype=torch.int8), requires_grad=False)
    with pytest.raises(InputError, match=r"is stored as torch\.int8; do this with float weights"):
        erased(pipe)


@pytest.fixture
def with_lora(pipe, model, tmp_path):
    """The tiny pipeline with a LoRA on denoiser and text encoder, switched on."""
    changes = random_changes(model, model.stream_layers() + encoder_paths(model), size=1.0)
    adapter_of(changes).save(tmp_path / "lora")
    pipe.load_lora_weights(tmp_path / "lora", weight_name="pytorch_lora_weights.safetensors", adapter_name="inked")
    return pipe


@pytest.mark.parametrize("method", METHODS)
def test_a_lora_that_is_switched_on_is_refused_by_name(with_lora, method, tmp_path):
    with pytest.raises(InputError, match=r"switched on in pipeline \(inked\).*disable_lora\(\)"):
        erase(TWEMOJI, with_lora, brief(method), n=0, out=tmp_path / "out")
    assert names_in(tmp_path / "out") == []


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_lora_on_one_part_alone_is_refused(with_lora, part):
    other = {"unet": "text_encoder", "text_encoder": "unet"}[part]
    with_lora.set_adapters("inked", adapter_weights=[{part: 1.0, other: 0.0}])
    with pytest.raises(InputError, match=r"\(inked\)"):
        open_model(with_lora).encode([(2998, 2999)], [2])
    with pytest.raises(InputError, match=r"\(inked\)"):
        _ = open_model(with_lora).gram


@pytest.mark.parametrize("unloaded", [False, True])
def test_a_fused_lora_is_refused_by_name(with_lora, unloaded):
    with_lora.fuse_lora()
    if unloaded:
        with_lora.unload_lora_weights()
    with pytest.raises(InputError, match=r"fused into the weights of pipeline \(inked\).*unfuse_lora\(\)"):
        erased(with_lora)


@pytest.mark.parametrize("method", METHODS)
def test_erasures_that_are_loaded_are_named_and_taken_out_first(pipe, expected, method, tmp_path):
    file = expected["uce"].save(tmp_path / "adapter")[0]
    load_erasure(pipe, file, name="first")
    with pytest.raises(
        InputError, match=r"erasures are loaded into pipeline \('first'\).*unload_erasure\(pipe\) first"
    ):
        erased(pipe, method)
    unload_erasure(pipe)
    assert erased(pipe, method).adapter.digest == expected[method].digest


def off(pipe):
    pipe.disable_lora()


def at_zero(pipe):
    pipe.set_adapters("inked", 0.0)


def off_and_compiled(pipe):
    pipe.disable_lora()
    compiled(pipe)


@pytest.mark.parametrize("way", [off, at_zero, off_and_compiled, lambda pipe: pipe.unload_lora_weights()])
def test_beneath_a_lora_that_does_nothing_are_the_weights_of_the_base(with_lora, expected, way):
    way(with_lora)
    for method in METHODS:
        adapter = erased(with_lora, method).adapter
        assert adapter.base["hash"] == expected[method].base["hash"]
        assert adapter.digest == expected[method].digest


# -- bases that do not draw from a text alone ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "needs"), [(9, "a picture and its mask"), (8, "a picture to edit"), (5, "depth map")]
)
def test_a_base_that_needs_a_picture_is_erased_from_and_not_drawn(base_copy, pipe, expected, channels, needs):
    from diffusers import UNet2DConditionModel

    config = dict(pipe.unet.config) | {"in_channels": channels}
    unet = UNet2DConditionModel.from_config(config)
    state = {name: t for name, t in pipe.unet.state_dict().items() if name != "conv_in.weight"}
    unet.load_state_dict(state, strict=False)
    unet.save_pretrained(base_copy / "unet")
    pipe.unet = unet
    for base in (base_copy, pipe):
        model = open_model(base)
        assert erased(model).adapter.digest == expected["uce"].digest
        with pytest.raises(InputError, match=f"{channels} input channels, a text alone fills 4: it takes .*{needs}"):
            generate(model, ["a cat"], [1], sampling=ONE)
        assert "pipe" not in vars(model), "refused before any work"


@pytest.mark.parametrize("kind", ["StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"])
def test_pipelines_for_pictures_with_a_plain_denoiser_draw_from_a_text(base_copy, base_folder, pipe, kind):
    import diffusers

    live = getattr(diffusers, kind)(**pipe.components, requires_safety_checker=False)
    live.set_progress_bar_config(disable=True)
    settings(base_copy / "model_index.json", _class_name=kind)
    (usual,) = generate(open_model(base_folder), ["a cat"], [1], sampling=ONE)
    for base in (base_copy, live):
        (picture,) = generate(open_model(base), ["a cat"], [1], sampling=ONE)
        assert picture.tobytes() == usual.tobytes()


# -- paths that are no pipeline, and names -------------------------------------------------------------------------


def lora_file(path):
    return raw_safetensors(
        path, {"lora_unet_mid.alpha": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4
    )


def checkpoint_file(path):
    header = {"model.diffusion_model.out.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    return raw_safetensors(path, header, b"\0" * 4)


def text_file(path):
    path.write_text("hello")


FILES = {
    "dreamy.safetensors": (checkpoint_file, r"single-file checkpoint.*from_single_file\('dreamy.safetensors'\)"),
    "dreamy.SAFETENSORS": (checkpoint_file, r"single-file checkpoint"),
    "lora.safetensors": (lora_file, "a LoRA file, not a base; pass the base"),
    "cut.safetensors": (text_file, "not a valid safetensors file.*fetch it again"),
    "dreamy.ckpt": (text_file, r"pickled checkpoint.*from_single_file\('dreamy.ckpt'\).*save_pretrained\('dreamy'\)"),
    "list.csv": (text_file, r"a file \(.csv\), not a pipeline; pass a folder"),
    "noending": (text_file, r"a file \(without ending\)"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["full path", "relative", "Path"])
def test_a_file_in_the_place_of_a_base_is_told_what_it_is(tmp_path, monkeypatch, name, how):
    make, message = FILES[name]
    (tmp_path / "models").mkdir()
    make(tmp_path / "models" / name)
    monkeypatch.chdir(tmp_path)
    source = {"full path": str(tmp_path / "models" / name), "relative": f"models/{name}", "Path": Path("models", name)}
    with untouched(tmp_path), pytest.raises(InputError, match=message):
        open_model(source[how])


FOLDERS = {
    "a LoRA": (lambda f, base: lora_file(f / "pytorch_lora_weights.safetensors"), "holds a LoRA, not a base"),
    "LoRAs": (lambda f, base: lora_file(f / "some.safetensors"), "a LoRA file, not a base"),
    "a checkpoint": (lambda f, base: checkpoint_file(f / "v1.safetensors"), "single-file checkpoint.*from_single_file"),
    "an interface": (lambda f, base: (f / "checkpoints").mkdir(), "holds the models of an interface"),
    "several bases": (lambda f, base: shutil.copytree(base, f / "one"), r"holds pipelines; pass one of them.*one"),
    "nothing": (lambda f, base: None, "pass the folder of a diffusers pipeline"),
}


@pytest.mark.parametrize("what", FOLDERS)
def test_a_folder_without_an_index_is_told_what_it_is(tmp_path, base_folder, what):
    make, message = FOLDERS[what]
    make(tmp_path, base_folder)
    with pytest.raises(MissingModelError, match=rf"has no model_index\.json: .*{message}"):
        open_model(tmp_path)


def test_a_part_of_a_pipeline_and_its_index_say_which_folder_to_pass(base_folder):
    with pytest.raises(MissingModelError, match=f"one part of a pipeline; pass {re.escape(str(base_folder))}"):
        open_model(base_folder / "unet")
    with pytest.raises(InputError, match=f"the index of a pipeline; pass its folder, {re.escape(str(base_folder))}"):
        open_model(base_folder / "model_index.json")


def test_a_model_s_folder_in_the_cache_says_what_to_pass(base_folder, cache):
    snapshot = cached(base_folder, cache)
    with pytest.raises(MissingModelError, match=r"a hub model in the cache; pass some/one or "):
        open_model(snapshot.parent.parent)


@pytest.mark.parametrize("name", ["models\\dreamy", "C:\\models\\dreamy", "some\\one/two", "models/gone.ckpt"])
def test_a_path_is_no_hub_name(name):
    with pytest.raises(MissingModelError, match="is no folder"):
        open_model(name)


def names_of(base):
    return {"name": open_model(base).name, "revision": open_model(base).revision}


@pytest.mark.parametrize("written", ["tiny", "tiny/", "./tiny", "../bases/tiny", ".", "tiny/../tiny", "linked"])
def test_a_folder_is_called_by_the_last_part_of_its_path(base_folder, tmp_path, monkeypatch, written):
    (tmp_path / "bases" / "tiny").parent.mkdir()
    (tmp_path / "bases" / "tiny").symlink_to(base_folder)
    (tmp_path / "bases" / "linked").symlink_to(base_folder)
    monkeypatch.chdir(tmp_path / "bases" / ("tiny" if written == "." else "."))
    expected = "linked" if written == "linked" else "tiny"
    assert open_model(written).name == expected


def test_a_snapshot_of_the_hub_is_called_by_the_hub_s_name_with_its_revision(base_folder, cache):
    from diffusers import StableDiffusionPipeline

    snapshot = cached(base_folder, cache)
    found = {"name": "some/one", "revision": snapshot.name}
    assert names_of("some/one") == names_of(snapshot) == names_of(f"{snapshot}/") == found
    assert names_of(StableDiffusionPipeline.from_pretrained(snapshot)) == found


@pytest.mark.parametrize(
    ("origin", "name"),
    [
        ("/home/me/models/dreamy", "dreamy"), ("/home/me/models/dreamy/", "dreamy"), ("C:\\models\\dreamy", "dreamy"),
        ("C:\\models\\dreamy\\", "dreamy"), ("\\\\server\\share\\dreamy v2", "dreamy v2"), ("models\\dreamy", "dreamy"),
        ("./dreamy", "dreamy"), ("../dreamy", "dreamy"), ("a/b/dreamy", "dreamy"), ("me/dreamy", "me/dreamy"),
        ("dreamy", "dreamy"), ("/", "base"), ("C:\\", "C"), ("", "base"),
    ],
)  # fmt: skip
def test_what_a_base_is_called_is_never_a_path(origin, name):
    assert base_name(origin) == (name, None)


@pytest.mark.parametrize("how", ["folder", "live", "live, moved", "live, Windows"])
def test_no_path_of_the_machine_ends_in_what_is_written(base_copy, tmp_path, how):
    base, secret = base_copy, str(tmp_path)
    if how != "folder":
        from diffusers import StableDiffusionPipeline

        base = StableDiffusionPipeline.from_pretrained(base_copy)
    if how == "live, moved":
        base_copy.rename(tmp_path / "elsewhere")
    if how == "live, Windows":
        base.register_to_config(_name_or_path="C:\\Users\\me\\tiny")
        secret = "Users"
    outcome = erase(TWEMOJI, base, brief("uce"), out=tmp_path / "out", n=0)
    assert outcome.adapter.base["name"] == "tiny"
    written = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert len(written) >= 4
    for path in written:
        assert os.fsencode(secret) not in path.read_bytes(), path.name


def test_an_adapter_of_a_folder_says_that_the_folder_has_to_be_passed(expected, base_folder, tmp_path):
    assert source_of({"name": "embedded"}) is None
    assert source_of({}) is None
    assert source_of({"name": "some/one"}) == "some/one"
    with pytest.raises(MissingModelError, match="made from a folder or pipeline called 'tiny'; pass it as the model"):
        source_of(expected["uce"].base)


@pytest.mark.parametrize("command", ["score", "interference"])
def test_commands_on_an_adapter_of_a_folder_ask_for_it(expected, tmp_path, command, monkeypatch):
    from typer.testing import CliRunner

    from concept_erase.cli import app

    file = str(expected["uce"].save(tmp_path / "adapter")[0])
    (tmp_path / "tiny").mkdir()  # something of the same name here is not the base
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConceptEraseError, match="called 'tiny'"):
        CliRunner().invoke(app, [command, file], catch_exceptions=False, standalone_mode=False)
