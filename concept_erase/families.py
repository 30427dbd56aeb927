"""What is editable in each family of generators: data, no branches. A new family is a new row."""

from dataclasses import dataclass

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


def family_of(pipeline_class: str) -> Family:
    """The family whose pipelines include `pipeline_class`.

    Raises:
        InputError: no family knows it.
    """
    for family in FAMILIES.values():
        if pipeline_class in family.pipelines:
            return family
    known = sorted(name for family in FAMILIES.values() for name in family.pipelines)
    raise InputError(f"no family knows the pipeline {pipeline_class!r}; supported: {', '.join(known)}.")
