import numpy as np
import pytest
import torch
from conftest import adapter_of, random_changes
from PIL import Image

from concept_erase.attach import attached
from concept_erase.errors import ConceptEraseError, InputError
from concept_erase.generate import Sampling, cache_folder, generate
from concept_erase.model import open_model

PROMPTS = ["a cat in noto style", "twemoji", "a dog", "pixel art", "a cat in noto style"]
SEEDS = [1, 2, 3, 4, 5]
TWO = Sampling(steps=2)


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CONCEPT_ERASE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def live(pipe):
    """A live pipeline: nothing is cached, since nobody knows its weights."""
    return open_model(pipe)


@pytest.fixture
def calls(monkeypatch, pristine):
    """How many prompts each call of a pipeline got; set `limit` to let larger ones run out of memory."""

    class Calls(list):
        limit, error = 1000, torch.OutOfMemoryError

    seen, cls = Calls(), type(pristine)
    honest = cls.__call__

    def watched(self, prompts, **kwargs):
        seen.append(len(prompts))
        if len(prompts) > seen.limit:
            raise seen.error("out of memory")
        return honest(self, prompts, **kwargs)

    monkeypatch.setattr(cls, "__call__", watched)
    return seen


def difference(a, b) -> int:
    """The largest difference of any pixel in two lists of pictures."""
    pairs = zip(a, b, strict=True)
    return max(int(np.abs(np.asarray(x, dtype=int) - np.asarray(y, dtype=int)).max()) for x, y in pairs)


# -- the same for the same seed ------------------------------------------------------------------------------------


def test_pictures_depend_on_prompt_and_seed_alone(live):
    images = generate(live, PROMPTS, SEEDS, sampling=TWO)
    assert all(image.size == (16, 16) and image.mode == "RGB" for image in images)
    assert difference(images, generate(live, PROMPTS, SEEDS, sampling=TWO)) == 0
    assert difference(images[::-1], generate(live, PROMPTS[::-1], SEEDS[::-1], sampling=TWO)) <= 2
    assert difference(images[:1], images[4:]) > 10, "another seed is another picture"
    assert difference(images, generate(live, PROMPTS[1:] + PROMPTS[:1], SEEDS, sampling=TWO)) > 10


def test_the_global_randomness_has_no_part(live):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = generate(live, PROMPTS, SEEDS, sampling=TWO)
        torch.manual_seed(2)
        assert difference(first, generate(live, PROMPTS, SEEDS, sampling=TWO)) == 0


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_the_batch_size_does_not_change_pictures(live, calls, batch):
    whole = generate(live, PROMPTS, SEEDS, sampling=Sampling(2, batch=5))
    parts = generate(live, PROMPTS, SEEDS, sampling=Sampling(2, batch=batch))
    assert difference(whole, parts) <= 2
    assert calls == [5] + [batch] * (5 // batch) + [1] * bool(5 % batch)


def test_guidance_and_steps_reach_the_pipeline(live):
    images = [generate(live, PROMPTS[:1], [1], sampling=s) for s in (TWO, Sampling(2, 1.0), Sampling(3))]
    assert difference(images[0], generate(live, PROMPTS[:1], [1], sampling=Sampling(2, 7.5))) == 0
    assert difference(images[0], images[1]) > 0
    assert difference(images[0], images[2]) > 0


def test_progress_counts_up_to_all(live):
    told = []
    generate(live, PROMPTS, SEEDS, sampling=Sampling(1, batch=2), progress=lambda *step: told.append(step), what="x")
    assert told == [(0, 5, "x"), (2, 5, "x"), (4, 5, "x"), (5, 5, "x")]


def test_a_prompt_beyond_the_limit_is_refused_and_not_cut(live, calls):
    with pytest.raises(InputError, match="holds 24; shorten it"):
        generate(live, ["a cat", "a " * 30], [1, 2], sampling=TWO)
    assert calls == []


# -- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_out_of_memory_halves_the_batch_and_the_pictures_are_the_same(live, calls, error):
    whole = generate(live, PROMPTS, SEEDS, sampling=Sampling(2, batch=8))
    calls.clear()
    calls.limit, calls.error = 2, error
    assert difference(whole, generate(live, PROMPTS, SEEDS, sampling=Sampling(2, batch=8))) <= 2
    assert sum(size for size in calls if size <= 2) == 5
    assert max(calls[1:]) <= 3, "what did not fit is halved"


def test_out_of_memory_for_a_single_picture_ends_with_a_clear_error(live, calls):
    calls.limit = 0
    with pytest.raises(ConceptEraseError, match="memory"):
        generate(live, PROMPTS, SEEDS, sampling=TWO)
    assert calls[-1] == 1


# -- never made twice ----------------------------------------------------------------------------------------------


def test_a_cached_batch_is_the_same_and_needs_no_pipeline(base_folder, calls):
    first = generate(open_model(base_folder), PROMPTS, SEEDS, sampling=TWO)
    assert sum(calls) == 5
    again = open_model(base_folder)
    assert difference(first, generate(again, PROMPTS, SEEDS, sampling=TWO)) == 0
    assert sum(calls) == 5
    assert "pipe" not in vars(again)
    assert generate(again, PROMPTS[:2], [2, 1], sampling=TWO)
    assert sum(calls) == 7, "other seeds are drawn"


def test_what_is_kept_does_not_change_which_pictures_are_drawn_together(base_folder, calls):
    model, pairs = open_model(base_folder), Sampling(2, batch=2)
    generate(model, PROMPTS[:2], SEEDS[:2], sampling=pairs)
    generate(model, PROMPTS, SEEDS, sampling=pairs)
    assert calls == [2, 2, 1], "the first pair was kept, and the rest is drawn as it would have been"
    generate(model, PROMPTS[:1], SEEDS[:1], sampling=pairs)
    assert calls[3:] == [1], "alone its last bits might differ: it is not taken from a pair"


@pytest.mark.parametrize("other", [Sampling(3), Sampling(2, 1.0)])
def test_other_sampling_is_drawn_anew(base_folder, calls, other):
    model = open_model(base_folder)
    generate(model, PROMPTS[:1], [1], sampling=TWO)
    generate(model, PROMPTS[:1], [1], sampling=other)
    assert len(calls) == 2


def test_pictures_of_an_edit_are_kept_apart(base_folder, calls):
    model = open_model(base_folder)
    adapter = adapter_of(random_changes(model))
    before = generate(model, PROMPTS[:1], [1], sampling=TWO)
    with attached(model.pipe, adapter):
        after = generate(model, PROMPTS[:1], [1], sampling=TWO, variant=adapter.digest)
    assert difference(before, after) > 10
    assert difference(before, generate(model, PROMPTS[:1], [1], sampling=TWO)) == 0
    assert difference(after, generate(model, PROMPTS[:1], [1], sampling=TWO, variant=adapter.digest)) == 0
    assert len(calls) == 2


@pytest.mark.parametrize("how", ["live pipeline", "unknown weights"])
def test_unknown_weights_are_never_cached(base_folder, live, calls, how):
    model, variant = (live, "") if how == "live pipeline" else (open_model(base_folder), None)
    for _ in range(2):
        generate(model, PROMPTS[:1], [1], sampling=TWO, variant=variant)
    assert len(calls) == 2
    assert not cache_folder().exists()


def test_a_base_that_changed_is_drawn_anew(base_copy, calls):
    first = generate(open_model(base_copy), PROMPTS[:1], [1], sampling=TWO)
    index = base_copy / "scheduler" / "scheduler_config.json"
    index.write_text(index.read_text().replace('"epsilon"', '"v_prediction"'))
    assert difference(first, generate(open_model(base_copy), PROMPTS[:1], [1], sampling=TWO)) > 0
    assert len(calls) == 2


def test_a_damaged_picture_is_drawn_again(base_folder, calls):
    model = open_model(base_folder)
    first = generate(model, PROMPTS[:1], [1], sampling=TWO)
    (kept,) = cache_folder().rglob("*.png")
    kept.write_bytes(kept.read_bytes()[:50])
    assert difference(first, generate(model, PROMPTS[:1], [1], sampling=TWO)) == 0
    assert len(calls) == 2
    assert Image.open(kept).size == (16, 16)


def test_a_cache_that_cannot_be_written_costs_time_only(base_folder, calls, tmp_path):
    (tmp_path / "cache").write_text("a file in the way")
    model = open_model(base_folder)
    first, second = (generate(model, PROMPTS[:1], [1], sampling=TWO) for _ in range(2))
    assert difference(first, second) == 0
    assert len(calls) == 2


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("CONCEPT_ERASE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "concept_erase"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "concept_erase"
