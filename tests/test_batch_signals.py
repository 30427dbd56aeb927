"""Ctrl-C and SIGTERM: the command stops at once, tells so, leaves nothing half-written and nobody behind."""

import os
import signal
import time

import pytest
from batches import job_of, listed, temporaries
from commands import Command, list_file
from conftest import SOON, names_in
from forked import orphans

from concept_erase import Concept, erase, erase_list
from concept_erase.adapter import Adapter
from concept_erase.generate import Sampling
from concept_erase.methods import make

QUICKLY = ["--set", "contexts=2", "--set", "preserve_prompts=20"]
SETTINGS = {"contexts": "2", "preserve_prompts": "20"}  # the same, as a command line gives them
MANY = [{"target": f"artist {i}", "anchor": "art", "tags": "odd" if i % 2 else ""} for i in range(40)]
INTERRUPTED = {"event": "error", "message": "interrupted; nothing half-written was left behind.", "exit_code": 130}


def interrupt(command: Command, number: int, group: bool) -> None:
    """Send the signal, to all of its processes as a terminal does, or to the first as a supervisor does."""
    (os.killpg if group else os.kill)(command.pid, number)
    assert command.wait(SOON) == 130, command.stderr
    assert orphans(command.pid) is not None, "nobody is left working"
    assert {k: v for k, v in command.events[-1].items() if k != "at"} == INTERRUPTED
    assert [line for line in command.stderr if line.strip()] == []


@pytest.mark.parametrize(
    ("workers", "number", "group", "done"),
    [(1, signal.SIGTERM, False, 16), (2, signal.SIGINT, True, 16), (2, signal.SIGTERM, False, 0)],
    ids=["alone", "with workers", "with workers that begin"],
)
def test_a_batch_stops_and_the_next_run_completes_it(base_folder, tmp_path, workers, number, group, done):
    out = tmp_path / "out"
    line = ["batch", list_file(tmp_path, *MANY), "-m", base_folder, "-n", 0, *QUICKLY]
    command = Command(*line, "--workers", workers, "--out", out)
    command.until("concepts", done)
    if not done:
        time.sleep(0.3)
    interrupt(command, number, group)
    finished = {p: p.stat().st_mtime_ns for p in out.glob("concepts/*/report.json")}
    assert done <= len(finished) < len(MANY)
    assert not (out / "index.json").exists()
    assert "interrupted" in (out / "log.txt").read_text()
    if workers == 1:
        index = erase_list(listed(*MANY), job_of(base_folder, settings=SETTINGS), out)
        assert [entry["state"] for entry in index["entries"]] == ["done"] * len(MANY)
        assert [len(joint["members"]) for joint in index["joint"]] == [40, 20]
        assert {p: p.stat().st_mtime_ns for p in finished} == finished
        assert temporaries(out) == []


@pytest.mark.parametrize(("number", "delay"), [(signal.SIGINT, 0.4), (signal.SIGTERM, 1.1)], ids=str)
def test_a_batch_that_still_imports_stops_too(base_folder, tmp_path, number, delay):
    line = ["batch", list_file(tmp_path, *MANY), "-m", base_folder, "-n", 0, *QUICKLY]
    command = Command(*line, "--workers", 1, "--out", tmp_path / "out")
    command.until_output("40 concepts")
    time.sleep(delay)
    interrupt(command, number, group=True)
    assert not list((tmp_path / "out").glob("concepts/*"))


def test_a_training_stops_and_goes_on_from_its_checkpoint(base_folder, tmp_path):
    settings = {"steps": 300, "contexts": 2, "preserve_prompts": 20, "forget_batch": 2, "retain_batch": 2}
    given = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    line = ["erase", "twemoji", "--anchor", "fluent", "--method", "encoder", "-m", base_folder, "-n", 0, *given]
    command = Command(*line, "--out", tmp_path / "out")
    command.until("training", 101)
    interrupt(command, signal.SIGINT, group=True)
    (checkpoint,) = [name for name in names_in(tmp_path / "out") if name != ".lock"]
    assert checkpoint.startswith(".training-")
    steps = []
    outcome = erase(
        Concept("twemoji", anchor="fluent"), base_folder, make("encoder", settings), out=tmp_path / "out", n=0,
        progress=lambda done, total, what: steps.append(done),
    )  # fmt: skip
    assert steps[0] > 100
    assert outcome.files["report"].is_file()
    assert checkpoint not in names_in(tmp_path / "out")


def test_drawing_stops_and_the_pictures_that_are_done_are_kept(base_folder, scorer_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CONCEPT_ERASE_CACHE", str(tmp_path / "cache"))
    line = ["erase", "twemoji", "--anchor", "fluent", "-m", base_folder, *QUICKLY, "-n", 70, "--steps", 1]
    command = Command(*line, "--scorer", scorer_folder, "--force", "--out", tmp_path / "out")
    command.until("pictures before", 32)
    interrupt(command, signal.SIGTERM, group=False)
    assert Adapter.load(tmp_path / "out").title, "the adapter is there before it is scored"
    assert "report.json" not in names_in(tmp_path / "out")
    told = []
    outcome = erase(
        Concept("twemoji", anchor="fluent"), base_folder, make("uce", SETTINGS), out=tmp_path / "out", n=70,
        scorer=str(scorer_folder), sampling=Sampling(1), force=True, progress=lambda *progress: told.append(progress),
    )  # fmt: skip
    assert next(done for done, _, what in told if what == "pictures before") >= 32
    assert outcome.files["report"].is_file()
