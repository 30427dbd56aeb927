"""kill -9 at any moment of a batch, and the next run completes it: the same files, nothing left over, nothing twice.

Two kinds of kills: at random moments of the clock, and at every single call that changes what is on disk.
"""

import os
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from batches import ROWS, SETTINGS, hashes, job_of, listed, stamps, temporaries
from commands import Command, list_file
from forked import DONE, KILLED, Server, delays, orphans

from concept_erase import erase_list

ENCODER = {"steps": 8, "contexts": 2, "preserve_prompts": 20, "forget_batch": 4, "retain_batch": 4}
CLOSED = {"method": "uce", "settings": SETTINGS, "pictures": 0}
TRAINED = {"method": "encoder", "settings": ENCODER, "pictures": 0}
counts: dict[str, int] = {}


@dataclass
class Killer:
    """Runs batches of one list in folders of their own, and kills them.

    Attributes:
        expected: Name -> SHA-256 of every file of a run that nothing interrupted, made with nothing in memory.
        seconds: How long such a run takes in a child that has everything in memory.
        calls: The calls of such a run that change what is on disk.
    """

    server: Server
    request: dict
    root: Path
    expected: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    calls: tuple[str, ...] = ()
    runs: int = 0

    def __post_init__(self):
        answer = self.run(self.fresh(), here=True)
        assert (answer["state"], answer["done"]) == (DONE, len(self.request["rows"]))
        self.expected = hashes(self.folder)
        assert temporaries(self.folder) == []
        answer = self.run(self.fresh())
        assert hashes(self.folder) == self.expected
        self.seconds, self.calls = answer["seconds"], tuple(answer["calls"])

    def fresh(self) -> Path:
        """A new folder, with a picture cache of its own beside it."""
        self.runs += 1
        self.folder = self.root / f"{self.runs:03d}"
        return self.folder

    def run(self, folder: Path, **how) -> dict:
        return self.server.ask(out=folder, cache=f"{folder}-cache", **self.request, **how)

    def finished(self) -> dict:
        """Reports that are there, and so the units that must not be done again."""
        return {name: stamp for name, stamp in stamps(self.folder).items() if name.endswith("report.json")}

    def complete(self, done: dict) -> None:
        """Everything is as if nothing had happened, and what was finished before a kill is still the same file."""
        assert hashes(self.folder) == self.expected
        assert temporaries(self.folder) == []
        assert stamps(self.folder).items() >= done.items()

    def count(self, kind: str) -> None:
        """One more kill, and how far the batch had come."""
        concepts = len(list(self.folder.glob("concepts/*/report.json")))
        step = "concepts" if concepts < len(self.request["rows"]) else "joint adapters or interference"
        step = "the index" if (self.folder / "interference.json").is_file() else step
        for name in (kind, f"{kind}, during {step}"):
            counts[name] = counts.get(name, 0) + 1

    def at_random(self, kills: int, seed: int, **how) -> None:
        """That many kills at random moments: of fresh runs, and of those that go on with what a kill has left."""
        done: dict = {}
        self.fresh()
        for _ in range(20):  # a run that was quicker than its kill does not count; few are
            for delay in delays(kills, self.seconds, seed):
                answer = self.run(self.folder, delay=delay, **how)
                assert answer["orphans"] is not None, "workers end when nobody is left to work for"
                if answer["state"] == KILLED:
                    done |= self.finished()
                    self.count("at random")
                    kills -= 1
                else:
                    self.complete(done)
                    done = {}
                    self.fresh()
                if kills == 0:
                    assert self.run(self.folder)["state"] == DONE
                    self.complete(done)
                    return
            seed += 1
        pytest.fail(f"{kills} kills always came too late")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    found = Server(tmp_path_factory.mktemp("server") / "log.txt")
    yield found
    found.close()


@pytest.fixture(scope="module", autouse=True)
def told(request):
    """The counts, whatever pytest captures."""
    yield
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print("\nkills:", *(f"{n} {what};" for what, n in counts.items()))


def killer(server, base_folder, root, rows, job, **request) -> Killer:
    return Killer(server, {"rows": rows, "job": {"model": str(base_folder), **job}, **request}, root)


@pytest.fixture(scope="module")
def closed(server, base_folder, tmp_path_factory):
    return killer(server, base_folder, tmp_path_factory.mktemp("closed"), ROWS, CLOSED)


def test_at_random_moments(closed):
    closed.at_random(26, seed=1)


def test_at_random_moments_with_workers(closed):
    closed.at_random(5, seed=2, workers=2, group=True)
    closed.at_random(5, seed=3, workers=2, group=False)  # the workers are left behind, and end by themselves


def test_at_every_change_of_the_disk(server, base_folder, tmp_path):
    rows = [{**row, "tags": ""} for row in (ROWS[0], ROWS[3])]
    short = killer(server, base_folder, tmp_path, rows, CLOSED)
    assert {"created", "written", "synced", "replaced", "removed", "to be cleared", "cleared"} == set(short.calls)
    for at, name in enumerate(short.calls, 1):
        short.fresh()
        assert short.run(short.folder, at=at)["state"] == KILLED, (at, name)
        counts[f"when a file was {name}"] = counts.get(f"when a file was {name}", 0) + 1
        done = short.finished()
        assert short.run(short.folder, here=True)["state"] == DONE  # what is not killed needs no process of its own
        short.complete(done)


def test_at_random_moments_of_a_training(server, base_folder, tmp_path):
    rows = [ROWS[0], {**ROWS[1], "method": "uce"}, {**ROWS[3], "tags": ""}]
    killer(server, base_folder, tmp_path, rows, TRAINED, chunk=1).at_random(7, seed=4)


def test_at_random_moments_of_scoring(server, base_folder, scorer_folder, tmp_path):
    job = {**CLOSED, "pictures": 2, "steps": 1, "scorer": str(scorer_folder), "force": True}
    rows = [{**row, "tags": ""} for row in ROWS[:2]]
    scored = killer(server, base_folder, tmp_path, rows, job, chunk=1)
    assert sum(name.endswith("before_after.png") for name in scored.expected) == 3
    scored.at_random(5, seed=5)
    scored.at_random(2, seed=6, workers=2, group=True)


def test_at_random_moments_of_the_command(base_folder, tmp_path):
    """The whole program, killed with SIGKILL while it begins, while it works, and near its end."""
    options = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    line = ["batch", list_file(tmp_path, *ROWS), "-m", base_folder, "-n", 0, *options]
    settings = {name: str(value) for name, value in SETTINGS.items()}  # as a command line gives them
    erase_list(listed(*ROWS), job_of(base_folder, settings=settings), tmp_path / "whole")
    rng, out, done = random.Random(7), tmp_path / "killed", {}
    for workers, what in ((2, "concepts"), (1, "joint adapters"), (1, "interference")):
        command = Command(*line, "--workers", workers, "--out", out)
        command.until(what)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(command.pid, signal.SIGKILL)
        assert command.wait() == -signal.SIGKILL
        assert orphans(command.pid) is not None, "workers end when nobody is left to work for"
        reports = {name: stamp for name, stamp in stamps(out).items() if name.endswith("report.json")}
        assert reports.items() >= done.items()
        done = reports
        counts["of the command"] = counts.get("of the command", 0) + 1
    last = Command(*line, "--workers", 1, "--out", out)
    assert last.wait() == 0, last.stderr
    assert hashes(out) == hashes(tmp_path / "whole")
    assert temporaries(out) == []
    assert stamps(out).items() >= done.items()
