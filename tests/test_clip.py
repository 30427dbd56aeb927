import pytest
import torch
from PIL import Image

from concept_erase.clip import Scorer, load_scorer
from concept_erase.errors import MissingModelError

COLOURS = ("red", "blue", "yellow", "black", "white")


@pytest.fixture(scope="module")
def scorer(scorer_folder):
    return load_scorer(str(scorer_folder))


@pytest.fixture(scope="module")
def images():
    return [Image.new("RGB", (40 + i, 30), colour) for i, colour in enumerate(COLOURS)]


def test_embeddings_are_unit_vectors_whatever_the_batch(scorer, images):
    vectors = scorer.embed_images(images)
    assert vectors.shape == (5, 16)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(5), atol=1e-5)
    assert torch.allclose(scorer.embed_images(images, batch=2), vectors, atol=1e-5)
    assert torch.allclose(scorer.embed_texts(["a cat", "a dog"]).norm(dim=1), torch.ones(2), atol=1e-5)


def test_similarity_is_a_hundred_times_the_cosine_with_its_own_text(scorer, images):
    vectors = scorer.embed_images(images)
    texts = ["a cat", "a dog", "a cat", "sun", "a dog"]
    expected = [100 * (v @ scorer.embed_texts([t])[0]).item() for v, t in zip(vectors, texts, strict=True)]
    assert scorer.similarity(vectors, texts) == pytest.approx(expected, abs=1e-3)


def test_zero_shot_takes_the_nearest_average_of_the_templates(scorer, images):
    vectors = scorer.embed_images(images)
    names, templates = ["cat", "dog {}", "sun"], ("a {}", "an icon of a {}")
    means = torch.stack([scorer.embed_texts([t.format(n) for t in templates]).mean(0) for n in names])
    nearest = (vectors @ torch.nn.functional.normalize(means, dim=1).T).argmax(1)
    assert scorer.classify(vectors, names, templates) == [names[i] for i in nearest]


def test_a_scorer_is_loaded_once(scorer, scorer_folder):
    assert load_scorer(str(scorer_folder)) is scorer


@pytest.mark.parametrize("name", ["no-such-model", "ViT-B-32:no_such_tag", "ViT-B-32:laion2b_s34b_b79k", "/no/folder"])
def test_a_scorer_that_cannot_be_had_is_named_with_the_remedy(name):
    with pytest.raises(MissingModelError, match=f"the scorer '{name}' cannot be had .*local open_clip folder"):
        Scorer(name)


def test_a_folder_without_a_scorer_is_refused(tmp_path):
    with pytest.raises(MissingModelError, match="cannot be had"):
        Scorer(str(tmp_path))
