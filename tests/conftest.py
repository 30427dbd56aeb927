"""What several tests share: a tiny random generator of the SD 1 layout, edits of it by every method, some tools."""

import contextlib
import copy
import errno
import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# No test may reach for the network; huggingface_hub reads its variable when it is imported.
os.environ |= {"HF_HUB_OFFLINE": "1", "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
if "PYTEST_XDIST_WORKER" in os.environ:  # a core for each worker: threads of several would only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from concept_erase import methods
from concept_erase.concepts import Concept

ROOT = Path(__file__).parent.parent
SOON = 60.0  # seconds; "at once" on a machine that others keep busy, where what must not be waited for takes minutes
TOKENIZER = ROOT / "weights" / "base" / "tokenizer"
TWEMOJI = Concept("twemoji", anchor="fluent", preserve=("noto", "openmoji", "blob", "pixel art"))
# Settings that keep any method quick on the tiny generator; each is used where a method has a setting of that name.
# All of the padding: random text encoders do not come to rest behind a prompt, as trained ones do.
QUICK = {"steps": 60, "contexts": 8, "preserve_prompts": 60, "padding": 77}

# Files that take the longest, which begin first, so that at the end no worker waits for another. Those of the demo come
# before all others: its browser and its process live as long as one of its tests is next.
LONGEST = (
    "browser/test_library.py", "browser/test_erase.py", "browser/test_screenshots.py", "browser/test_style.py",
    "browser/test_restart.py", "test_batch_kill.py", "test_embedded.py", "test_batch_signals.py", "test_readme.py",
    "test_ray.py", "test_demo_app.py",
)  # fmt: skip

settings.register_profile("suite", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("suite")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so a shell starts what it runs in the background; our commands
    signal.signal(signal.SIGINT, signal.default_int_handler)  # would inherit it, and never hear of the Ctrl-C of a test


def pytest_collection_modifyitems(items) -> None:
    places = {ROOT / "tests" / name: number for number, name in enumerate(LONGEST)}
    browser = ROOT / "tests" / "browser"
    items.sort(key=lambda item: (browser not in item.path.parents, places.get(item.path, len(places))))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    # Each worker has a folder of its own in that of the run: the pictures of the bases are drawn once for all of them.
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONCEPT_ERASE_CACHE", str(shared / "cache"))
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))
        yield


# -- the tiny generator --------------------------------------------------------------------------------------------


def build_pipeline(seed: int = 0, width: int = 32):
    """A random pipeline of the SD 1 layout: 16 x 16 pictures, two text layers, cross-attention in every block."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    end = tokenizer.eos_token_id
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=tokenizer.model_max_length, projection_dim=width,
        bos_token_id=end - 1, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = CLIPTextModel(config)
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
            cross_attention_dim=width, attention_head_dim=2,
        )  # fmt: skip
        for name, layer in unet.named_modules():
            if name.endswith("attn2.to_v"):  # a random denoiser hardly listens: let the text be heard
                layer.weight.data *= 8
        vae = AutoencoderKL(
            block_out_channels=(16, 16), latent_channels=4, sample_size=16, norm_num_groups=8,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=vae.eval(), text_encoder=encoder.eval(), tokenizer=tokenizer, unet=unet.eval(),
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def pristine():
    """The tiny pipeline that nothing may change; take `pipe` for a copy."""
    return build_pipeline()


@pytest.fixture
def pipe(pristine):
    return copy.deepcopy(pristine)


@pytest.fixture(scope="session")
def base_folder(pristine, tmp_path_factory) -> Path:
    """The tiny pipeline on disk, full precision, one file per component."""
    folder = tmp_path_factory.mktemp("bases") / "tiny"
    pristine.save_pretrained(folder)
    return folder


@pytest.fixture
def base_copy(base_folder, tmp_path) -> Path:
    """A copy on disk that a test may damage."""
    return Path(shutil.copytree(base_folder, tmp_path / "tiny"))


@pytest.fixture(scope="session")
def model(base_folder):
    """The tiny generator as methods see it; read only."""
    from concept_erase.model import open_model

    return open_model(base_folder)


@pytest.fixture(scope="session")
def scorer_folder(tmp_path_factory) -> Path:
    """A tiny random CLIP in open_clip's form, with the embedded tokenizer."""
    import torch
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    shape = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {
            "context_length": 24, "vocab_size": 3000, "width": 32, "heads": 2, "layers": 1, "hf_tokenizer_name": "any",
        },
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = CLIP(**shape)
    folder = tmp_path_factory.mktemp("scorer")
    shutil.copytree(TOKENIZER, folder, dirs_exist_ok=True)
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": shape, "preprocess_cfg": {}}))
    return folder


# -- edits by every method -----------------------------------------------------------------------------------------


def quick(name: str, **settings):
    """A method with settings that suit the tiny generator, and those given."""
    known = {setting for setting, *_ in methods.describe(name).settings}
    return methods.make(name, {k: v for k, v in QUICK.items() if k in known} | settings)


@pytest.fixture(scope="session", params=methods.available())
def erased(request, base_folder, tmp_path_factory):
    """The outcome of `erase` on the tiny generator with files and without scores, for each method."""
    from concept_erase import erase

    return erase(TWEMOJI, base_folder, quick(request.param), out=tmp_path_factory.mktemp(request.param), n=0)


def random_changes(model, paths=None, *, rank: int = 2, seed: int = 0, size: float = 0.1):
    """A random low-rank change of layers; of all that read the text stream if none are named."""
    import torch

    from concept_erase.lowrank import LowRank

    rng = torch.Generator().manual_seed(seed)
    changes = {}
    for path in paths or model.stream_layers():
        d_out, d_in = model.weight(path).shape
        up, down = torch.randn(d_out, rank, generator=rng), torch.randn(rank, d_in, generator=rng)
        changes[path] = LowRank(size * up.double(), down.double())
    return changes


def encoder_paths(model) -> list[str]:
    """Paths of all editable layers of the text encoder."""
    return [path for site in model.family.encoder for path in model.layers(site)]


def adapter_of(changes, model=None, concept: Concept = TWEMOJI):
    """An adapter around changes; with a model it records that as its base."""
    from concept_erase.adapter import Adapter
    from concept_erase.families import SD1

    base = {"name": model.name, "revision": None, "hash": model.fingerprint} if model else {}
    return Adapter(changes, SD1, (concept,), "uce", {}, base)


@pytest.fixture
def unet_edit(model):
    return adapter_of(random_changes(model, seed=1), model)


@pytest.fixture
def mixed_edit(model):
    """Layers of the UNet and a few of the text encoder, with different ranks."""
    attention = [p for p in encoder_paths(model) if p.endswith(("layers.0.self_attn.q_proj", "layers.1.mlp.fc1"))]
    changes = random_changes(model, rank=3, seed=2) | random_changes(model, attention, rank=1, seed=3)
    return adapter_of(changes, model)


# -- looking at a live pipeline ------------------------------------------------------------------------------------


def layer_at(pipe, path: str):
    """The linear layer of a path, found without the package's help."""
    component, _, name = path.partition(".")
    module = getattr(pipe, component)
    try:
        return module.get_submodule(name)
    except AttributeError:
        return module.get_submodule(name.removeprefix("text_model."))


def edit_directly(pipe, changes, scale: float = 1.0) -> None:
    """Add the dense changes to the weights, in float64."""
    for path, change in changes.items():
        weight = layer_at(pipe, path).weight
        delta = scale * change.up.double() @ change.down.double()
        weight.data = (weight.data.double() + delta).to(weight.dtype)


def bits(pipe) -> str:
    """SHA-256 over the names and bytes of everything in the UNet and the text encoder."""
    import torch

    digest = hashlib.sha256()
    for module in (pipe.unet, pipe.text_encoder):
        for name, tensor in sorted(module.state_dict().items()):
            plain = tensor.clone(memory_format=torch.contiguous_format).flatten()
            digest.update(name.encode() + plain.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def outputs(pipe, prompt: str = "a cat in twemoji style"):
    """What an edit may change: hidden states of the text encoder, one denoiser output, and a picture of two steps."""
    import torch

    rng = torch.Generator().manual_seed(0)
    ids = pipe.tokenizer(prompt, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        states = pipe.text_encoder(ids).last_hidden_state
        noise = torch.randn(1, 4, 8, 8, generator=rng)
        denoised = pipe.unet(noise, torch.tensor(500), states).sample
        picture = pipe(
            prompt, num_inference_steps=2, height=16, width=16, generator=torch.Generator().manual_seed(1),
            output_type="pt",
        ).images  # fmt: skip
    return states, denoised, picture


CLOSE = 2e-5  # float32 rounding after a whole forward pass


def farthest(a, b) -> list[float]:
    """The largest difference in each of the outputs of two pipelines."""
    return [(x - y).abs().max().item() for x, y in zip(a, b, strict=True)]


# -- files and processes -------------------------------------------------------------------------------------------


def raw_safetensors(path: Path, header: dict | str, body: bytes = b"") -> Path:
    """A file in the safetensors layout, however wrong its content."""
    head = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + body)
    return path


def split_safetensors(path: Path) -> tuple[dict, bytes]:
    """Header and body of a file, read by hand."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Run a fresh interpreter on this checkout."""
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=cwd, timeout=300, check=False
    )


def names_in(folder: Path) -> list[str]:
    """Names of everything in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())


def no_space(*_, **__):
    """Stands in for a system call when the disk is full."""
    raise OSError(errno.ENOSPC, "No space left on device")


@contextlib.contextmanager
def untouched(folder: Path) -> Iterator[None]:
    """What is in a folder must be the same afterwards, byte for byte, and nothing new beside it."""
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    yield
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
