"""A server that has everything imported and forks a child for each run of a batch, to kill it: no start-up to wait for.

`python -c "import forked; forked.serve()"` reads one request a line and answers each with one line. It never runs
more than one thread, so its children are whole processes like any other (checked before every fork).
"""

import contextlib
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from conftest import ROOT

KILLED, DONE, BROKEN = "killed", "done", "broken"


class Server:
    """The other end: starts the server and asks it for runs."""

    def __init__(self, log: Path) -> None:
        here = Path(__file__).parent
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(here)]), "TORCH_HOME": str(log.parent / "torch"),
        }  # fmt: skip
        self.log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "import forked; forked.serve()"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment,
            )  # fmt: skip

    def ask(self, **request) -> dict:
        """A run: see `_run` for the fields. With neither `delay` nor `at` it is left alone."""
        self._process.stdin.write(json.dumps(request, default=str) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"state": BROKEN}
        assert answer["state"] != BROKEN, self.log.read_text()[-4000:]
        return answer

    def close(self) -> None:
        self._process.stdin.close()
        assert self._process.wait(60) == 0, self.log.read_text()[-4000:]


def serve() -> None:
    """Answer requests until there are no more. The first of each name runs here: its memory is what later ones find."""
    import torch
    from tqdm import tqdm

    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # no thread that watches progress bars
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints must not answer
    for line in sys.stdin:
        request = json.loads(line)
        with contextlib.ExitStack() as stack:
            answer = _run(request, stack) if request.get("here") else _forked(request)
        print(json.dumps(answer), file=answers, flush=True)


def _forked(request: dict) -> dict:
    threads = [p.read_text().strip() for p in Path("/proc/self/task").glob("*/comm")]
    assert len(threads) == 1, f"a fork would leave threads behind: {threads}, {threading.enumerate()}"
    gc.collect()
    gc.freeze()  # or the first collection of the child would copy all memory
    reading, writing = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.close(reading)
        code = 1
        try:
            with contextlib.ExitStack() as stack:
                os.write(writing, json.dumps(_run(request, stack)).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with contextlib.suppress(OSError):  # it may have ended
        os.setpgid(child, child)
    status = _ended(child, started + request["delay"]) if "delay" in request else None
    if status is None and "delay" in request:
        (os.killpg if request.get("group") else os.kill)(child, signal.SIGKILL)
    if status is None:
        status = os.waitpid(child, 0)[1]
    seconds = time.monotonic() - started
    left = orphans(child) if request.get("workers") else 0.0
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return {"state": KILLED, "seconds": seconds, "orphans": left}
    return {**(json.loads(told) if told else {"state": BROKEN}), "seconds": seconds, "orphans": left}


def _ended(child: int, deadline: float) -> int | None:
    """The status of a child that ends before the deadline, else None."""
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.002)
    return None


def orphans(group: int, patience: float = 10) -> float | None:
    """Seconds until the last process of a group was gone; None, and killed, if one stayed."""
    started = time.monotonic()
    while time.monotonic() - started < patience:
        if not any(_alive(group)):
            return time.monotonic() - started
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    return None


def _alive(group: int) -> Iterator[str]:
    """What is known of each process of a group; the dead that nobody has asked for do not count."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended just now
            state, _, of = file.read_text().rpartition(")")[2].split()[:3]
            if int(of) == group and state not in "ZX":
                yield file.read_text()


def _run(request: dict, stack: contextlib.ExitStack) -> dict:
    """One run of a batch.

    Request: `rows`, `job`, `out`, `cache`: what to erase and where; `workers`: processes, 0 for none; `chunk`: units in
    a chunk; `here`: in this process; `delay`: seconds until it is killed, `group`: together with its workers; `at`: the
    change of the disk that is its last, counted from 1.
    """
    import pytest
    from batches import listed

    from concept_erase import interference, perceptual, training
    from concept_erase.batch import runner
    from concept_erase.schema import Job

    patch = stack.enter_context(pytest.MonkeyPatch.context())
    patch.setenv("CONCEPT_ERASE_CACHE", request["cache"])
    patch.setattr(runner, "CHUNK", request.get("chunk", 2))
    patch.setattr(runner, "SCORED_CHUNK", request.get("chunk", 2))
    patch.setattr(interference, "draw", _sketch)
    patch.setattr(perceptual, "_alexnet_distance", lambda: None)  # it would try to fetch the weights for each unit
    patch.setitem(training.fit.__kwdefaults__, "checkpoint_every", 3)
    calls = _counted(patch, request.get("at", 0), Path(request["out"]))
    engine = _forking(request["workers"]) if request.get("workers") else None
    index = runner.erase_list(listed(*request["rows"]), Job(**request["job"]), request["out"], engine=engine)
    states = [entry["state"] for entry in index["entries"]]
    return {"state": DONE, "done": states.count("done"), "joint": len(index["joint"]), "calls": calls}


def _sketch(found):
    """The matrix as a picture of few pixels: drawing it well takes longer than all the rest of a short list."""
    from PIL import Image

    return Image.fromarray((found.moved * 100).clip(0, 255).astype("uint8"))


def _counted(patch, at: int, out: Path) -> list[str]:
    """Names of the calls that change what is on disk, as they come; the one numbered `at` is the process's last."""
    calls: list[str] = []

    def note(name: str) -> None:
        calls.append(name)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(module, name: str, before: str | None, after: str | None) -> None:
        real = getattr(module, name)

        def call(*arguments, **keywords):
            if before:
                note(before)
            result = real(*arguments, **keywords)
            if after:
                note(after)
            return result

        patch.setattr(module, name, call)

    around(tempfile, "mkstemp", None, "created")
    patch.setattr(os, "fsync", lambda handle: None)  # a kill does not empty the page cache, so why wait for the disk
    around(os, "fsync", "written", None)
    around(os, "replace", "synced", "replaced")
    around(os, "unlink", None, "removed")
    around(shutil, "rmtree", "to be cleared", "cleared")
    return calls


def _forking(workers: int):
    """Worker processes that are forked, since spawned ones import for seconds; else just like the real ones."""
    import multiprocessing

    from concept_erase.batch import engines

    engine = engines.Processes(workers)
    engine._context = multiprocessing.get_context("fork")
    start = engines._start

    def like_spawned(*arguments) -> None:
        """What a spawned process does not inherit: the end that tells that the parent lives, and the lock."""
        engine._life.close()
        for fd in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                if fd.readlink().name == ".lock":
                    os.close(int(fd.name))
        start(*arguments)

    engines._start = like_spawned
    return engine


def delays(count: int, seconds: float, seed: int) -> list[float]:
    """Random moments of a run that takes so long, spread over all of it, in random order."""
    rng = random.Random(seed)
    moments = [(i + rng.random()) / count * seconds for i in range(count)]
    rng.shuffle(moments)
    return moments
