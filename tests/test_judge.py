import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from concept_erase import perceptual
from concept_erase.judge import Judge, to_tensor


@pytest.fixture(scope="module")
def judge():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Judge(["noto", "blob"], ["cat", "dog", "sun"], channels=(8, 8, 8, 8)).eval()


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)) for _ in range(6)]


def test_pixels_become_numbers_from_minus_one_to_one():
    halves = Image.new("RGB", (64, 64), "white")
    halves.paste("black", (0, 0, 64, 32))
    x = to_tensor([halves, halves.convert("L"), halves.resize((128, 128), Image.Resampling.NEAREST)])
    assert x.shape == (3, 3, 64, 64)
    assert (x.min(), x.max()) == (-1, 1)
    assert torch.equal(x[0, :, :32], -torch.ones(3, 32, 64))
    assert torch.equal(x[0], x[1])
    assert torch.allclose(x[0], x[2], atol=0.5)


def test_names_are_those_of_the_largest_logits_whatever_the_batch(judge, images):
    with torch.no_grad():
        styles, objects = judge(to_tensor(images))
    expected = [judge.styles[i] for i in styles.argmax(1)], [judge.objects[i] for i in objects.argmax(1)]
    assert judge.name(images) == expected == judge.name(images, batch=4)
    assert judge.name([]) == ([], [])


def test_a_saved_judge_judges_the_same(judge, images, tmp_path):
    save_file(judge.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(judge.config()))
    loaded = Judge.load(tmp_path)
    assert loaded.config() == judge.config()
    assert not loaded.training
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(loaded(to_tensor(images)), judge(to_tensor(images)), strict=True))


# -- perceptual distance -------------------------------------------------------------------------------------------


def test_equal_pictures_have_no_distance_and_it_is_symmetric(judge, images):
    a, b = images[:3], images[3:]
    assert perceptual.distances(judge, a, a) == pytest.approx([0, 0, 0], abs=1e-6)
    assert perceptual.distances(judge, a, b) == pytest.approx(perceptual.distances(judge, b, a))
    assert min(perceptual.distances(judge, a, b)) > 0


def test_the_distance_is_that_of_unit_features_summed_over_stages(judge, images):
    stages = []
    layers = [getattr(judge.body, f"layer{i}") for i in range(1, 5)]
    hooks = [layer.register_forward_hook(lambda module, x, features: stages.append(features)) for layer in layers]
    with torch.no_grad():
        judge(to_tensor(images[:2]))
    for hook in hooks:
        hook.remove()
    expected = 0
    for features in stages:
        a, b = features / features.norm(dim=1, keepdim=True).clamp_min(1e-12)
        expected += (a - b).square().sum(0).mean().item()
    assert perceptual.distances(judge, images[:1], images[1:2]) == pytest.approx([expected], rel=1e-4)


def test_a_small_change_is_a_small_distance(judge, images):
    def blended(share):
        return [Image.blend(a, b, share) for a, b in zip(images[:3], images[3:], strict=True)]

    near, far = (perceptual.distances(judge, images[:3], blended(share)) for share in (0.1, 0.9))
    assert all(n < f for n, f in zip(near, far, strict=True))


def test_many_pictures_are_measured_in_pieces(judge, images):
    many = images[:1] * 70
    assert perceptual.distances(judge, many, images[1:2] * 70) == pytest.approx(
        perceptual.distances(judge, images[:1], images[1:2]) * 70, rel=1e-4
    )


def test_without_a_backbone_there_is_no_distance(images):
    assert perceptual.distances(None, images[:1], images[1:2]) is None
