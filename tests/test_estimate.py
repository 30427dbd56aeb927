import json
import shutil

import pytest
from batches import ROWS, SETTINGS, job_of, listed
from conftest import python

from concept_erase import erase_list, knowledge, scores
from concept_erase.batch.estimate import OVERHEAD, START, estimate
from concept_erase.errors import InputError
from concept_erase.model import open_model
from concept_erase.schema import Job

TRAINED = {"method": "encoder", "settings": {"steps": 2, "contexts": 2, "preserve_prompts": 20, "rank": 4}}
GROUPS = [{"target": f"artist {i}", "anchor": "art", "tags": ("odd", "even")[i % 2]} for i in range(10)]
JOBS = {
    "closed": (ROWS, {}),
    "rank 1": (GROUPS, {"settings": {**SETTINGS, "rank": 1}}),
    "rank as text": (ROWS, {"settings": {**SETTINGS, "rank": "3"}}),
    "all of the rank": (ROWS, {"settings": {**SETTINGS, "rank": None}}),
    "half": (GROUPS, {"half": True}),
    "without joint": (ROWS, {"joint": False}),
    "trained": (ROWS, TRAINED),
    "mixed": ([ROWS[0], {**ROWS[1], "method": "uce"}], TRAINED),
}


@pytest.mark.parametrize("case", JOBS)
def test_the_disk_is_what_the_batch_takes(base_folder, tmp_path, case):
    rows, changes = JOBS[case]
    job = job_of(base_folder, **changes)
    found = estimate(listed(*rows), job, tmp_path, 1)
    index = erase_list(listed(*rows), job, tmp_path)
    for entry in (e for e in index["entries"] if e["method"] == job.method):
        assert abs(entry["bytes"] - found.adapter) < OVERHEAD
    assert (found.concepts, found.joints) == (len(index["entries"]), len(index["joint"]))
    taken = sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())
    assert found.disk == pytest.approx(taken, rel=0.15)
    assert found.free > 0


def test_the_embedded_generator_is_known(tmp_path):
    model = open_model()
    found = estimate(listed("Twemoji"), Job(pictures=0), tmp_path, 1)
    shapes = [model.weight(path).shape for path in model.stream_layers()]
    assert found.adapter == sum(4 * 8 * sum(shape) for shape in shapes)
    named = estimate(listed("Twemoji"), Job(pictures=0, model="embedded"), tmp_path, 1)
    assert (named.adapter, named.disk) == (found.adapter, found.disk)


def seconds(base_folder, tmp_path, rows=ROWS, workers=1, **changes) -> float:
    return estimate(listed(*rows), job_of(base_folder, **changes), tmp_path, workers).seconds


def test_more_work_takes_longer_and_more_workers_less(base_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("concept_erase.batch.estimate._speed", lambda: 1e9)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    plain = seconds(base_folder, tmp_path)
    assert plain > START
    assert seconds(base_folder, tmp_path, rows=GROUPS) - START == pytest.approx((plain - START) * 10 / 4)
    assert seconds(base_folder, tmp_path, workers=4) - START == pytest.approx((plain - START) / 4)
    assert seconds(base_folder, tmp_path, settings={**SETTINGS, "contexts": 20}) > plain
    assert seconds(base_folder, tmp_path, settings={**SETTINGS, "strength": 1.0}) < plain
    assert seconds(base_folder, tmp_path, method="encoder", settings={"steps": 5000}) > plain
    few, many = (seconds(base_folder, tmp_path, pictures=n) for n in (1, 50))
    assert plain < few < many
    assert many < seconds(base_folder, tmp_path, pictures=50, steps=50)
    assert many < seconds(base_folder, tmp_path, pictures=50, scorer="base"), "judging takes the denoiser too"
    assert many == seconds(base_folder, tmp_path, pictures=50, scorer="ViT-B-32:laion")


def pictures(tmp_path, *rows, **changes) -> int:
    """What is drawn at most for a list; the base need not be there."""
    return estimate(listed(*rows), Job(**{"model": "nobody/nothing", "joint": False, **changes}), tmp_path, 1).pictures


def test_the_first_look_and_its_nonsense_are_counted(tmp_path):
    own, blocks = knowledge.CLOSE
    turner, manet, lonely = ({"target": name, "anchor": "art"} for name in ("Turner", "Walter", "Caspar Friedrich"))
    assert pictures(tmp_path, turner, pictures=0) == 0
    one = pictures(tmp_path, turner, pictures=8)
    tried = 4 * scores.TRIED  # at strengths
    assert one == 4 * 8 + own - 8 + tried + blocks * scores.NULL
    # A name of the same shape and kind shares the nonsense; another shape, or another kind, has its own.
    each = one - blocks * scores.NULL
    assert pictures(tmp_path, turner, manet, pictures=8) == one + each
    assert pictures(tmp_path, turner, lonely, pictures=8) == 2 * one
    assert pictures(tmp_path, turner, {**manet, "kind": "object"}, pictures=8) == 2 * one
    assert pictures(tmp_path, turner, pictures=own + 1) == 4 * (own + 1) + tried + blocks * scores.NULL
    assert pictures(tmp_path, {"target": "Turner"}, pictures=8) > one  # an anchor has to be found
    assert pictures(tmp_path, turner, manet, pictures=8, joint=True) == one + each + 4 * 16


def test_a_batch_draws_no_more_than_was_said(base_folder, scorer_folder, tmp_path, monkeypatch):
    from concept_erase import generate

    drawn, draw = [], generate._drawn
    monkeypatch.setenv("CONCEPT_ERASE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(generate, "_drawn", lambda model, jobs, how: drawn.extend(jobs) or draw(model, jobs, how))
    job = job_of(base_folder, scorer=str(scorer_folder), pictures=2, steps=1, force=True, joint=False)
    rows = listed({"target": "Turner", "anchor": "art"})
    found = estimate(rows, job, tmp_path / "out", 1)
    assert erase_list(rows, job, tmp_path / "out")["entries"][0]["scores"]
    assert 8 + scores.NULL <= len(drawn) <= found.pictures


def test_this_machine_is_measured_in_a_moment(base_folder, tmp_path):
    found = estimate(listed(*ROWS), job_of(base_folder), tmp_path, 1)
    assert START < found.seconds < START + 60
    assert found.basis == "a rough count of operations"


def test_earlier_units_of_the_folder_tell_the_time(base_folder, tmp_path):
    times = tmp_path / ".work" / "times.jsonl"
    times.parent.mkdir()
    times.write_text('{"seconds": 30.0, "concepts": 10}\n{"seconds": 10.0, "concepts": 6}\n')
    found = estimate(listed(*GROUPS), job_of(base_folder), tmp_path, 2)
    assert found.seconds == pytest.approx(START + 10 * 2.5 / 2)
    assert found.basis == "earlier units in this folder"
    for damage in ('{"seconds": 30.0, "con', "", "{}\n", '{"seconds": 0, "concepts": 0}\n', "[]\n", "7\n"):
        times.write_text(damage)
        assert estimate(listed(*ROWS), job_of(base_folder), tmp_path, 2).basis == "a rough count of operations"


def test_a_run_is_the_measure_of_the_next(base_folder, tmp_path):
    erase_list(listed(*ROWS[:2]), job_of(base_folder, joint=False), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / ".work" / "times.jsonl").read_text().splitlines()]
    assert sum(line["concepts"] for line in lines) == 2
    found = estimate(listed(*ROWS), job_of(base_folder), tmp_path, 1)
    assert found.seconds == pytest.approx(START + 2 * sum(line["seconds"] for line in lines))


@pytest.mark.parametrize("name", ["StableDiffusionControlNetPipeline", "MyPipeline", ["my_file", "MyPipeline"]])
def test_a_folder_of_another_pipeline_with_the_same_parts_takes_as_much(base_folder, base_copy, tmp_path, name):
    index = json.loads((base_copy / "model_index.json").read_text())
    (base_copy / "model_index.json").write_text(json.dumps(index | {"_class_name": name}))
    found, usual = (estimate(listed(*ROWS), job_of(base), tmp_path, 1) for base in (base_copy, base_folder))
    assert (found.adapter, found.pictures) == (usual.adapter, usual.pictures)


def test_a_base_that_is_not_on_disk_is_said_so(tmp_path):
    found = estimate(listed(*ROWS), Job(model="nobody/nothing"), tmp_path, 1)
    assert (found.adapter, found.disk, found.seconds) == (0, 0, None)
    assert "nobody/nothing is not on this disk" in found.basis


def test_nothing_is_created_and_a_folder_to_come_is_measured_where_it_will_be(base_folder, tmp_path):
    out = tmp_path / "not" / "yet"
    assert estimate(listed(*ROWS), job_of(base_folder), out, 1).free == pytest.approx(
        shutil.disk_usage(tmp_path).free, rel=0.05
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("model_index.json", None),
        ("model_index.json", "{"),
        ("model_index.json", "[]"),
        ("model_index.json", '{"_class_name": "Nonsense"}'),
        ("unet/config.json", None),
        ("text_encoder/config.json", "{}"),
        ("unet/diffusion_pytorch_model.safetensors", "short"),
    ],
)
def test_a_base_that_cannot_be_read_is_an_input_error(base_copy, tmp_path, file, text):
    if text is None:
        (base_copy / file).unlink()
    else:
        (base_copy / file).write_text(text)
    with pytest.raises(InputError, match=r"tiny|Nonsense"):
        estimate(listed(*ROWS), job_of(base_copy), tmp_path / "out", 1)


@pytest.mark.parametrize("settings", [{"rank": "many"}, {"contexts": "x"}, {"magic": 1}], ids=str)
def test_a_setting_that_does_not_fit_is_an_input_error(base_folder, tmp_path, settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        estimate(listed(*ROWS), job_of(base_folder, settings=settings), tmp_path, 1)


def test_neither_torch_nor_diffusers_is_needed():
    program = "import sys; import concept_erase.batch.estimate; print({'torch', 'diffusers'} & set(sys.modules))"
    assert python("-c", program).stdout.strip() == "set()"
