import re

import pytest

from concept_erase.errors import InputError
from concept_erase.families import FAMILIES, SD1, family_of


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_a_row_is_complete(family):
    assert FAMILIES[family.name] is family
    assert family.sites == family.streams + family.encoder
    assert {site.component for site in family.sites} <= set(family.kohya)
    assert len(set(family.kohya.values())) == len(family.kohya)
    for site in family.sites:
        assert site.pattern.endswith("$")
        re.compile(site.pattern)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_layers_that_readers_require_are_editable(family):
    for name in family.encoder_required:
        assert any(re.search(site.pattern, f"encoder.layers.0.{name}") for site in family.encoder)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_every_pipeline_class_finds_its_family_and_exists(family):
    import diffusers

    for name in family.pipelines:
        assert family_of(name) is family
        assert hasattr(diffusers, name)


def test_sd1_is_named_as_readers_expect_it_to_the_letter():
    assert (SD1.architecture, SD1.base_version, SD1.v2) == ("stable-diffusion-v1/lora", "sd_v1", False)
    assert SD1.kohya == {"unet": "lora_unet", "text_encoder": "lora_te"}


def test_sd1_patterns_find_exactly_the_layers_of_a_real_pipeline(pristine):
    import torch

    def linears(component):
        modules = getattr(pristine, component).named_modules()
        return [name for name, module in modules if isinstance(module, torch.nn.Linear)]

    (stream,) = SD1.streams
    matched = [name for name in linears("unet") if re.search(stream.pattern, name)]
    reads_text = [name for name in linears("unet") if "attn2" in name and name.endswith((".to_k", ".to_v"))]
    assert matched == reads_text
    assert len(matched) == 2 * sum("attn2" in name and name.endswith("to_q") for name in linears("unet"))
    encoder = [n for n in linears("text_encoder") if any(re.search(site.pattern, n) for site in SD1.encoder)]
    assert encoder == linears("text_encoder")


def test_an_unknown_pipeline_class_lists_the_supported_ones():
    with pytest.raises(InputError, match=r"'FluxPipeline'.*StableDiffusionPipeline"):
        family_of("FluxPipeline")
