"""Adapter files that nobody vouches for."""

import json
import math
import re
import struct
import zipfile

import pytest
import torch
from conftest import bits, raw_safetensors, split_safetensors
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, load_file, save_file

from concept_erase.adapter import PEFT_NAME, Adapter
from concept_erase.attach import load_erasure
from concept_erase.errors import AdapterFileError, BaseMismatchError
from concept_erase.formats import read_safetensors

FLOATS = struct.pack("<4f", 1, 2, 3, 4)


def entry(start=0, stop=16, shape=(2, 2), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def nest(depth):
    return "[" * depth + "]" * depth


MALFORMED = {
    "empty": (None, b""),
    "seven bytes": (None, b"1234567"),
    "header longer than the file": (None, struct.pack("<Q", 1000) + b"{}"),
    "header longer than memory": (None, struct.pack("<Q", 2**63) + b"{}"),
    "no json": ("{", b""),
    "no object": ("[1]", b""),
    "deeply nested": (f'{{"a": {nest(100_000)}}}', b""),
    "not utf-8": (None, struct.pack("<Q", 2) + b"\xff\xfe"),
    "body too short": ({"a": entry()}, FLOATS[:-1]),
    "body too long": ({"a": entry()}, FLOATS + b"\0"),
    "gap": ({"a": entry(4, 20)}, b"\0" * 4 + FLOATS),
    "gap between": ({"a": entry(), "b": entry(20, 36)}, FLOATS + b"\0" * 4 + FLOATS),
    "overlap": ({"a": entry(), "b": entry(8, 24)}, FLOATS + FLOATS[:8]),
    "backwards": ({"a": entry(16, 0)}, FLOATS),
    "duplicate key": (f'{{"a": {json.dumps(entry())}, "a": {json.dumps(entry())}}}', FLOATS),
    "shape larger than its bytes": ({"a": entry(shape=(2, 3))}, FLOATS),
    "shape with a negative": ({"a": entry(shape=(-1, 2))}, FLOATS),
    "shape of text": ({"a": entry(shape=("2", "2"))}, FLOATS),
    "unknown type": ({"a": entry(dtype="I64", shape=(2,))}, FLOATS),
    "eight bits": ({"a": entry(dtype="F8_E4M3", shape=(16,))}, FLOATS),
    "empty with a shape": ({"a": entry(0, 0, ())}, b""),
    "NaN in bfloat16": ({"a": entry(0, 4, (2,), "BF16")}, b"\x80\x3f\xc0\x7f"),
    "beyond single precision": ({"a": entry(0, 8, (1,), "F64")}, struct.pack("<d", 1e300)),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2, 2]}}, FLOATS),
    "entry of text": ({"a": "F32"}, FLOATS),
    "path upwards": ({"../../etc/passwd": entry()}, FLOATS),
    "path with slash": ({"a/b": entry()}, FLOATS),
    "path with backslash": ({"a\\b": entry()}, FLOATS),
    "dots": ({"a..b": entry()}, FLOATS),
    "control characters": ({"a\u0000b": entry()}, FLOATS),
    "empty name": ({"": entry()}, FLOATS),
    "very long name": ({"a" * 301: entry()}, FLOATS),
    "NaN": ({"a": entry()}, struct.pack("<4f", 1, math.nan, 3, 4)),
    "Inf": ({"a": entry()}, struct.pack("<4f", 1, 2, -math.inf, 4)),
    "NaN in half precision": ({"a": entry(0, 4, (2,), "F16")}, struct.pack("<2e", 1, math.nan)),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_a_malformed_file_is_refused(tmp_path, fault):
    header, body = MALFORMED[fault]
    path = tmp_path / "file.safetensors"
    if header is None:
        path.write_bytes(body)
    else:
        raw_safetensors(path, header, body)
    with pytest.raises(AdapterFileError, match=re.escape(str(path))) as refused:
        read_safetensors(path)
    assert refused.value.exit_code == 2


def test_a_well_formed_file_is_read(tmp_path):
    header = {"b.x": entry(16, 32, (4,)), "a": entry(), "__metadata__": {"k": "v"}}
    tensors, metadata = read_safetensors(raw_safetensors(tmp_path / "file.safetensors", header, FLOATS + FLOATS))
    assert torch.equal(tensors["a"], torch.tensor([[1.0, 2], [3, 4]]))
    assert torch.equal(tensors["b.x"], torch.tensor([1.0, 2, 3, 4]))
    assert metadata == {"k": "v"}


@given(st.data())
def test_a_damaged_file_is_refused_or_read_as_the_library_reads_it(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "file.safetensors"
    raw_safetensors(path, {"a": entry(), "b": entry(16, 20, (1,)), "__metadata__": {"k": "v"}}, FLOATS + FLOATS[:4])
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.sampled_from(b'0123459":,[]{}ab \x00\x7f'))
    path.write_bytes(content[: data.draw(st.integers(len(content) - 6, len(content)))])
    try:
        tensors, _ = read_safetensors(path)
    except AdapterFileError:
        return
    expected = load(path.read_bytes())
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", ["adapter.pt", "adapter.bin", "adapter.ckpt", "adapter.zip", "adapter.safetensors.pt"])
def test_pickles_and_archives_are_never_read(tmp_path, name):
    path = tmp_path / name
    if name.endswith("zip"):
        zipfile.ZipFile(path, "w").close()
    else:
        torch.save({"x": torch.zeros(1)}, path)
    with pytest.raises(AdapterFileError, match=r"no \.safetensors file"):
        Adapter.load(path)
    disguised = path.rename(tmp_path / "disguised.safetensors")
    with pytest.raises(AdapterFileError, match="disguised"):
        Adapter.load(disguised)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(AdapterFileError, match="does not exist; give"):
        Adapter.load(tmp_path / "none.safetensors")
    with pytest.raises(AdapterFileError, match=PEFT_NAME):
        Adapter.load(tmp_path)


def rewrite_header(path, change):
    """The same file with `change(ours)` made to its concept_erase header."""
    header, body = split_safetensors(path)
    ours = json.loads(header["__metadata__"]["concept_erase"])
    change(ours)
    header["__metadata__"]["concept_erase"] = json.dumps(ours)
    return raw_safetensors(path, header, body)


@pytest.mark.parametrize("missing", ["concepts", "family", "method", "settings", "base"])
def test_a_header_that_lacks_a_part_is_refused(unet_edit, tmp_path, missing):
    path = rewrite_header(unet_edit.save(tmp_path)[1], lambda ours: ours.pop(missing))
    with pytest.raises(AdapterFileError, match="concept_erase header"):
        Adapter.load(path)


@pytest.mark.parametrize(
    "wrong",
    [{"family": "sd9"}, {"concepts": [{"target": "a"}]}, {"concepts": "x"}, {"base": "tiny"}, {"settings": 3}],
    ids=str,
)
def test_a_header_with_wrong_values_is_refused(unet_edit, tmp_path, wrong):
    path = rewrite_header(unet_edit.save(tmp_path)[1], lambda ours: ours.update(wrong))
    with pytest.raises(AdapterFileError, match="concept_erase header"):
        Adapter.load(path)


def test_a_foreign_lora_is_refused(tmp_path):
    path = raw_safetensors(tmp_path / "x.safetensors", {"unet.a.lora_A.weight": entry()}, FLOATS)
    with pytest.raises(AdapterFileError, match="was not written by this tool"):
        Adapter.load(path)


BROKEN = {
    "no partner": lambda tensors, up: {key: t for key, t in tensors.items() if key != up},
    "no factors": lambda tensors, up: {},
    "misshapen": lambda tensors, up: tensors | {up: torch.zeros(3, 7)},
    "one dimension": lambda tensors, up: tensors | {up: torch.zeros(2)},
    "foreign component": lambda tensors, up: {key.replace("unet", "evil"): t for key, t in tensors.items()},
}
BROKEN_ALPHA = {
    "vector alpha": lambda tensors, up: tensors | {up.replace("lora_up.weight", "alpha"): torch.ones(2)},
    "rank zero": lambda tensors, up: (
        tensors | {up: torch.zeros(32, 0), up.replace("lora_up", "lora_down"): torch.zeros(0, 32)}
    ),
}


@pytest.mark.parametrize(
    ("form", "fault"), [(f, name) for f in (0, 1) for name in BROKEN] + [(0, name) for name in BROKEN_ALPHA]
)
def test_incomplete_or_misshapen_factors_are_refused(unet_edit, pipe, tmp_path, form, fault):
    path = unet_edit.save(tmp_path)[form]
    metadata, tensors = split_safetensors(path)[0]["__metadata__"], load_file(path)
    up = next(key for key in tensors if "lora_up" in key or "lora_B" in key)
    save_file({**BROKEN, **BROKEN_ALPHA}[fault](tensors, up), path, metadata)
    before = bits(pipe)
    with pytest.raises((AdapterFileError, BaseMismatchError)):
        load_erasure(pipe, path)
    assert bits(pipe) == before


# -- our own file, resaved by another tool -------------------------------------------------------------------------


def without_alpha(tensors):
    return {key: t for key, t in tensors.items() if not key.endswith(".alpha")}


def renamed(pattern, replacement):
    return lambda tensors: {re.sub(pattern, replacement, key): t for key, t in tensors.items()}


def old_attention(tensors):
    """As diffusers up to 0.20 wrote attention: ...attn2.processor.to_k_lora.up.weight."""
    renames = {"lora_A": "down", "lora_B": "up"}
    pattern = r"(unet\..*attn2)\.(to_[kv])\.(lora_[AB])\.weight"
    return {
        re.sub(pattern, lambda m: f"{m[1]}.processor.{m[2]}_lora.{renames[m[3]]}.weight", key): t
        for key, t in tensors.items()
    }


def doubled_scale(tensors):
    """Alpha of half the rank, and factors that make up for it."""
    return {k: t / 2 if k.endswith(".alpha") else t * 2 if "lora_up" in k else t for k, t in tensors.items()}


def mixed(tensors):
    """Half of the modules in the names of older diffusers."""
    some = {key for key in tensors if "layers" in key}
    return {key.replace("lora_A", "lora.down").replace("lora_B", "lora.up") if key in some else key: t
            for key, t in tensors.items()}  # fmt: skip


RESAVED = {
    "bfloat16": (0, lambda tensors: {k: t.bfloat16() for k, t in tensors.items()}),
    "float64": (1, lambda tensors: {k: t.double() for k, t in tensors.items()}),
    "without alpha": (0, without_alpha),
    "with another alpha": (0, doubled_scale),
    "one alpha less": (0, lambda tensors: dict(list(tensors.items())[1:])),
    "lora.down, lora.up": (0, renamed(r"\.lora_(down|up)", r".lora.\1")),
    "diffusers' lora.down": (1, mixed),
    "lora_linear_layer": (
        1,
        lambda tensors: renamed(r"lora_A", "lora_linear_layer.down")(
            renamed(r"lora_B", "lora_linear_layer.up")(tensors)
        ),
    ),
    "processor.to_k_lora": (1, old_attention),
    "lora_A.default": (1, renamed(r"(lora_[AB])\.", r"\1.default.")),
    "base_model.model": (1, renamed(r"^", "base_model.model.")),
    "component of PEFT": (1, renamed(r"^(unet|text_encoder)\.", "base_model.model.")),
    "no text_model": (1, renamed(r"^text_encoder\.text_model\.", "text_encoder.")),
}


@pytest.mark.parametrize("ending", [".safetensors", ".SAFETENSORS"])
@pytest.mark.parametrize("form", RESAVED)
def test_our_file_resaved_is_read(mixed_edit, tmp_path, form, ending):
    which, change = RESAVED[form]
    path = mixed_edit.save(tmp_path)[which]
    metadata, tensors = split_safetensors(path)[0]["__metadata__"], load_file(path)
    resaved = tmp_path / f"resaved{ending}"
    assert change(tensors).keys() != tensors.keys() or any(
        t.dtype != tensors[k].dtype or not torch.equal(t, tensors[k]) for k, t in change(tensors).items()
    )
    save_file({k: t.contiguous() for k, t in change(tensors).items()}, resaved, metadata)
    expected, found = Adapter.load(path).changes, Adapter.load(resaved).changes
    assert found.keys() == expected.keys()
    allowed = 0.01 if form == "bfloat16" else 1e-6
    for name, layer in found.items():
        assert layer.up.dtype == torch.float32
        assert (layer.delta() - expected[name].delta()).norm() <= allowed * expected[name].delta().norm()


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ("unet.a.dora_scale", "DoRA"), ("unet.a.lora_magnitude_vector.weight", "DoRA"),
        ("lora_unet_a.hada_w1_a", "LoHa"), ("lora_unet_a.lokr_w1", "LoKr"), ("lora_unet_a.lora_mid.weight", "LoCon"),
        ("lora_unet_a.diff", "dense"), ("unet.a.lora_B.bias", "biases"), ("step", "neither a factor"),
    ],
)  # fmt: skip
def test_what_is_no_plain_lora_is_named(unet_edit, tmp_path, extra, told):
    path = unet_edit.save(tmp_path)[0]
    metadata, tensors = split_safetensors(path)[0]["__metadata__"], load_file(path)
    save_file(tensors | {extra: torch.ones(1)}, path, metadata)
    with pytest.raises(AdapterFileError, match=f"{re.escape(extra)}.*{told}.*plain LoRA"):
        Adapter.load(path)


def test_one_module_in_two_forms_is_refused(unet_edit, tmp_path):
    kohya, peft = unet_edit.save(tmp_path)
    metadata = split_safetensors(kohya)[0]["__metadata__"]
    save_file(load_file(kohya) | load_file(peft), kohya, metadata)
    with pytest.raises(AdapterFileError, match="twice, in two forms"):
        Adapter.load(kohya)


@pytest.mark.parametrize("form", [0, 1])
def test_transposed_factors_are_refused(unet_edit, pipe, tmp_path, form):
    path = unet_edit.save(tmp_path)[form]
    metadata, tensors = split_safetensors(path)[0]["__metadata__"], load_file(path)
    save_file({k: t.T.contiguous() if t.ndim == 2 else t for k, t in tensors.items()}, path, metadata)
    with pytest.raises((AdapterFileError, BaseMismatchError)):
        load_erasure(pipe, path)
