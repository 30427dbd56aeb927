"""What is editable in each family of generators: data. A new family is a new row."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from concept_erase.errors import InputError


@dataclass(frozen=True)
class Site:
    """One kind of editable linear layer.

    Attributes:
        component: Attribute of the pipeline that holds it: "unet", "text_encoder", ...
        pattern: Regular expression that its module path inside the component ends with.
        stream: Name of the embeddings it reads.
    """

    component: str
    pattern: str
    stream: str


@dataclass(frozen=True)
class Family:
    """A layout of generators and how its adapters are named.

    Attributes:
        pipelines: `_class_name` values in `model_index.json` that belong to it.
        kohya: Component -> prefix of its keys in the kohya form.
        architecture: `modelspec.architecture` of an adapter, as readers expect it to the letter.
        base_version: `ss_base_model_version` of an adapter.
        streams: Layers that read the text embeddings: where closed-form edits are folded in.
        encoder: Layers of the text encoder that trained edits change.
        encoder_required: Every edited encoder layer must carry all of these, zeros allowed, or readers drop it.
    """

    name: str
    pipelines: tuple[str, ...]
    kohya: dict[str, str]
    architecture: str
    base_version: str
    v2: bool
    streams: tuple[Site, ...]
    encoder: tuple[Site, ...]
    encoder_required: tuple[str, ...]

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.streams + self.encoder


SD1 = Family(
    name="sd1",
    pipelines=("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
    kohya={"unet": "lora_unet", "text_encoder": "lora_te"},
    architecture="stable-diffusion-v1/lora",
    base_version="sd_v1",
    v2=False,
    streams=(Site("unet", r"attn2\.to_[kv]$", "text"),),
    encoder=(
        Site("text_encoder", r"self_attn\.(q_proj|k_proj|v_proj|out_proj)$", "hidden"),
        Site("text_encoder", r"mlp\.fc[12]$", "hidden"),
    ),
    encoder_required=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
)

FAMILIES: dict[str, Family] = {family.name: family for family in (SD1,)}


def family_of(pipeline_class: str, parts: Collection[str] = ()) -> Family:
    """The family whose pipelines include `pipeline_class`; of any other, the one whose parts it has.

    Args:
        parts: Names of the pipeline's components. That they are of the family's layout is for `check_layout` to say.
    Raises:
        InputError: no family knows it.
    """
    for family in FAMILIES.values():
        if pipeline_class in family.pipelines:
            return family
    for family in FAMILIES.values():
        if {site.component for site in family.sites} <= set(parts):
            return family
    known = sorted(name for family in FAMILIES.values() for name in family.pipelines)
    raise InputError(
        f"no family knows the pipeline {pipeline_class!r} or its parts; supported: {', '.join(known)}, and others with "
        "the same tokenizer, text encoder and unet."
    )


def check_layout(name: str, unet: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    """Refuse what has the class names of Stable Diffusion 1 but another layout.

    Args:
        unet, text: Configurations of denoiser and text encoder, as far as they are known.
    Raises:
        InputError: they are of another family, or do not belong together.
    """
    kind = text.get("model_type", "clip_text_model")
    if kind != "clip_text_model":
        raise InputError(
            f"the text encoder of {name} is of the kind {kind!r}; Stable Diffusion 1 models have a CLIPTextModel: "
            "pass one of those."
        )
    wide, stream = text.get("hidden_size"), unet.get("cross_attention_dim")
    if unet.get("addition_embed_type") is not None or stream == 2048:
        other = f"an SDXL layout (the denoiser reads a text stream of width {stream} and more beside it)"
    elif 1024 in (wide, stream) or (text.get("hidden_act") == "gelu" and text.get("num_hidden_layers") == 23):
        other = f"a Stable Diffusion 2 layout (text width {wide or stream})"
    elif isinstance(wide, int) and isinstance(stream, int) and wide != stream:
        raise InputError(
            f"the text encoder of {name} gives embeddings of width {wide}, its denoiser reads {stream}: they do not "
            "belong together; pass a pipeline whose parts fit."
        )
    else:
        return
    raise InputError(f"{name} has {other}; Stable Diffusion 1 layouts are supported so far, pass one of those.")


def beside_text(name: str, unet: Mapping[str, Any], vae: Mapping[str, Any], kind: str | None = None) -> str | None:
    """Why a base does not draw from a text alone, with the remedy; None where nothing speaks against it.

    Args:
        unet, vae: Configurations, as far as they are known.
        kind: Class of the denoiser; None where nobody says.
    """
    if kind not in (None, "UNet2DConditionModel"):
        return (
            f"the denoiser of {name} is a {kind}, a text alone is drawn with a UNet2DConditionModel. Concepts can be "
            "erased from it, but pictures cannot be drawn here; draw with diffusers' pipeline for it."
        )
    channels, latent = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if channels == latent:
        return None
    wants = {latent + 1: "a depth map", 2 * latent: "a picture to edit", 2 * latent + 1: "a picture and its mask"}
    return (
        f"the denoiser of {name} has {channels} input channels, a text alone fills {latent}: it takes "
        f"{wants.get(channels, 'something')} beside the text. Concepts can be erased from it, but pictures cannot be "
        "drawn here; draw with diffusers' pipeline for it."
    )


def unet_streams(config: Mapping[str, Any]) -> Iterator[str]:
    """Paths of the cross-attention keys and values that a `UNet2DConditionModel` of this configuration has.

    None at all where it holds blocks that this does not know.
    """
    down, up = config.get("down_block_types") or (), config.get("up_block_types") or ()
    middle = config.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    plain = {"DownBlock2D", "UpBlock2D", "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"}
    if {*down, *up} - plain or middle not in (None, "UNetMidBlock2DCrossAttn") or config.get("dual_cross_attention"):
        return
    layers = _each(config.get("layers_per_block", 2), len(down))
    depths = _each(config.get("transformer_layers_per_block", 1), len(down))
    backwards = config.get("reverse_transformer_layers_per_block") or depths[::-1]
    blocks = [(f"down_blocks.{i}", n, d) for i, (n, d) in enumerate(zip(layers, depths, strict=True))]
    blocks += [(f"up_blocks.{i}", n + 1, d) for i, (n, d) in enumerate(zip(layers[::-1], backwards, strict=False))]
    blocks = [block for block, kind in zip(blocks, (*down, *up), strict=False) if kind.startswith("CrossAttn")]
    if middle and down:
        blocks.append(("mid_block", 1, depths[-1]))
    for block, attentions, depth in blocks:
        for i in range(attentions):
            for k in range(depth if isinstance(depth, int) else depth[i]):
                for kind in "kv":
                    yield f"{block}.attentions.{i}.transformer_blocks.{k}.attn2.to_{kind}"


def _each(value: Any, blocks: int) -> list[Any]:
    return [value] * blocks if isinstance(value, int) else list(value)
