"""A queue that outlives the demo: each job is a folder with one JSON file, run as a command in a process of its own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from concept_erase import __version__
from concept_erase.errors import BusyError, InputError, UnknownConceptError
from concept_erase.files import atomic_write

from .pace import Pace, Trail
from .places import unplaced

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
ENDED = (DONE, FAILED, CANCELLED)
GRACE = 0.8  # seconds a cancelled command has before it is killed
WAITING = 200  # jobs that may wait at a time
BUSY = 75  # exit code of a folder that another process holds
_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Job:
    """One piece of work.

    Attributes:
        id: Hash of `what`, `arguments` and the code's version: the same request is the same job.
        what: The command: "erase" or "batch".
        arguments: What was asked for, as plain values.
        title: For people.
        folder: Where the result lies, relative to the demo's folder.
        state: queued, running, done, failed or cancelled.
        order: Position in the queue.
        created, started, finished: Seconds since 1970, or None.
        message: Why it failed, or what there is to say; a plain text.
    """

    id: str
    what: str
    arguments: dict[str, Any]
    title: str
    folder: str
    state: str = QUEUED
    order: int = 0
    created: float = 0.0
    started: float | None = None
    finished: float | None = None
    message: str = ""
    exit_code: int | None = None


@dataclass
class Progress:
    """How far a running job is; in memory only.

    Attributes:
        what, done, total, left: The current stage; seconds left in it, None where unknown.
        trail: All stages so far.
        whole: Seconds left until the job is done, None as long as nothing like it was measured here.
        share: Of the whole way, 0 to 1; it never goes back.
    """

    what: str = "starting"
    done: int = 0
    total: int = 0
    left: float | None = None
    trail: Trail = field(default_factory=lambda: Trail(time.monotonic()))
    whole: float | None = None
    share: float = 0.0


def job_id(what: str, arguments: dict[str, Any]) -> str:
    """The key of a request: 16 hex digits."""
    text = json.dumps([what, arguments, __version__], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def unknown(job: Job) -> str | None:
    """Of a job that was refused because the generator does not know the concept: why; None of any other."""
    told, found, _ = job.message.partition(UnknownConceptError.FORCE)
    return told.strip() if job.state == FAILED and found else None


class Queue:
    """Jobs in the order they came, one at a time, kept on disk.

    Args:
        root: The demo's folder; `jobs/` in it is the queue's.
        command: Job -> arguments of `concept-erase`.
        finished: Job -> whether its result is complete on disk; such a job is never run again.
    Raises:
        BusyError: another demo works in this folder.
    """

    def __init__(self, root: Path, command: Callable[[Job], list[str]], finished: Callable[[Job], bool]) -> None:
        from filelock import FileLock, Timeout

        self.root, self._command, self._finished = root, command, finished
        self.folder = root / "jobs"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock_file = FileLock(root / ".lock", timeout=0)
        try:
            self._lock_file.acquire()
        except Timeout:
            raise BusyError(f"another demo works in {root}; stop it, or choose another --folder.") from None
        self._changed = threading.Condition(threading.RLock())
        self._jobs = self._load()
        self._progress: dict[str, Progress] = {}
        self.pace = Pace(root / "pace.json")
        self._process: subprocess.Popen[str] | None = None
        self._cancelled: set[str] = set()
        self._closing = False
        self._worker = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._worker.start()

    # -- what the demo asks ------------------------------------------------------------------------------------

    def submit(self, what: str, arguments: dict[str, Any], title: str, folder: str) -> Job:
        """Queue a request, or return the job that answers it already.

        Raises:
            InputError: too many jobs wait.
        """
        key = job_id(what, arguments)
        with self._changed:
            known = self._jobs.get(key)
            if known and (known.state in (QUEUED, RUNNING) or (known.state == DONE and self._finished(known))):
                return known
            if sum(job.state == QUEUED for job in self._jobs.values()) >= WAITING:
                raise InputError(f"{WAITING} jobs are waiting already; wait for some, or cancel some.")
            order = 1 + max((job.order for job in self._jobs.values()), default=0)
            job = Job(key, what, arguments, title, folder, order=order, created=time.time())
            self._cancelled.discard(key)
            self._put(job)
            return job

    def get(self, key: str) -> Job:
        """The job of an id.

        Raises:
            InputError: there is none.
        """
        with self._changed:
            if not isinstance(key, str) or key not in self._jobs:
                raise InputError("there is no such job; it may have been removed.")
            return self._jobs[key]

    def jobs(self) -> list[Job]:
        """All jobs, the newest first."""
        with self._changed:
            return sorted(self._jobs.values(), key=lambda job: -job.order)

    def progress(self, key: str) -> Progress:
        """How far a job is."""
        with self._changed:
            seen, job = self._progress.get(key), self._jobs.get(key)
            if seen is None or job is None:
                return Progress(what="waiting")
            now = time.monotonic()
            seen.whole = self.pace.left(job.what, job.arguments, seen.trail, now)
            if seen.whole is not None:
                gone = now - seen.trail.began
                seen.share = max(seen.share, min(0.99, gone / max(1e-6, gone + seen.whole)))
            return replace(seen)

    def cancel(self, key: str) -> Job:
        """Stop a job; returns when it has stopped, within two seconds where the machine is not busy."""
        with self._changed:
            job = self.get(key)
            if job.state == QUEUED:
                self._put(replace(job, state=CANCELLED, finished=time.time(), message="cancelled before it began"))
            elif job.state == RUNNING:
                self._cancelled.add(key)
                self._stop(self._process)
                self._changed.wait_for(lambda: self._jobs[key].state in ENDED, timeout=GRACE + 10)
            return self._jobs[key]

    def forget(self, key: str) -> None:
        """Remove the record of an ended job, so that the same request is worked on anew."""
        with self._changed:
            job = self._jobs.get(key)
            if job is None or job.state not in ENDED:
                return
            del self._jobs[key]
            (self.folder / key / "job.json").unlink(missing_ok=True)

    def wait(self, key: str, timeout: float) -> Job:
        """The job, after it ended or the time (in seconds) is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs[key].state in ENDED, timeout=timeout)
            return self._jobs[key]

    def close(self) -> None:
        """Stop the running command, which stays queued for the next start, and release the folder."""
        with self._changed:
            self._closing = True
            self._stop(self._process)
            self._changed.notify_all()
        self._worker.join(timeout=GRACE + 2)
        self._lock_file.release()

    # -- the work ----------------------------------------------------------------------------------------------

    def _load(self) -> dict[str, Job]:
        found = {}
        for path in sorted(self.folder.glob("*/job.json")):
            try:
                job = Job(**json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                continue  # damaged: its result, if there is one, is still in the library
            if _ID.fullmatch(job.id) and job.id == path.parent.name:
                # What ran when the demo died is taken up again: the commands go on where they were.
                found[job.id] = replace(job, state=QUEUED, started=None) if job.state == RUNNING else job
        return found

    def _put(self, job: Job) -> None:
        atomic_write(self.folder / job.id / "job.json", json.dumps(asdict(job), indent=2, ensure_ascii=False) + "\n")
        with self._changed:
            self._jobs[job.id] = job
            self._changed.notify_all()

    def _next(self) -> Job | None:
        waiting = [job for job in self._jobs.values() if job.state == QUEUED]
        return min(waiting, key=lambda job: job.order) if waiting else None

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._next() is not None)
                if self._closing:
                    return
                job = self._next()
                assert job is not None
                job = replace(job, state=RUNNING, started=time.time(), message="", exit_code=None)
                self._progress[job.id] = Progress()
                self._put(job)
            try:
                self._put(self._run(job))
            except Exception as error:  # a job that cannot even be started must not end the queue
                self._put(replace(job, state=FAILED, finished=time.time(), message=str(error)))

    def _run(self, job: Job) -> Job:
        if self._finished(job):
            return replace(job, state=DONE, finished=time.time(), exit_code=0)
        for attempt in range(10):
            code, message = self._attempt(job)
            if code != BUSY or job.id in self._cancelled or self._closing:
                break
            time.sleep(0.3 * (attempt + 1))  # the last demo's command may still be ending
        if job.id in self._cancelled:
            return replace(job, state=CANCELLED, finished=time.time(), message="cancelled", exit_code=code)
        if self._closing:
            return replace(job, state=QUEUED, started=None)
        state = DONE if self._finished(job) and code in (0, 1) else FAILED
        if state == FAILED and not message:
            message = f"the command ended with exit code {code} and did not say why."
        return replace(job, state=state, finished=time.time(), message=message, exit_code=code)

    def _attempt(self, job: Job) -> tuple[int, str]:
        """Run the command once; its exit code and, if it failed, its message."""
        with self._changed:
            if job.id in self._cancelled or self._closing:
                return 130, ""
            process = start(self._command(job))
            self._process = process
        assert process.stderr is not None
        tail: deque[str] = deque(maxlen=5)
        message = ""
        for line in process.stderr:
            told = _event(line)
            if told is None:
                tail.append(line.strip()[:500])
            elif told["event"] == "progress":
                self._tell(job.id, told)
            elif told["event"] == "error":
                message = unplaced(str(told.get("message", "")))[:2000]
        code = process.wait()
        with self._changed:
            self._process = None
        for stream in (process.stdin, process.stderr):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]
        if code == 0:
            self.pace.learn(job.what, job.arguments, self._progress[job.id].trail, time.monotonic())
        return code, message or (unplaced(" ".join(filter(None, tail)))[:2000] if code not in (0, 1) else "")

    def _tell(self, key: str, told: dict[str, Any]) -> None:
        what = str(told.get("what", ""))[:200]
        with self._changed:
            seen = self._progress[key]
            left = told.get("left_s")
            seen.what, seen.done, seen.total = what, int(told.get("done") or 0), int(told.get("total") or 0)
            seen.trail.tell(what, seen.done, seen.total, time.monotonic())
            seen.left = float(left) if isinstance(left, int | float) else None

    def _stop(self, process: subprocess.Popen[str] | None) -> None:
        """Ask the command to end, and see to it that it has ended after GRACE seconds."""
        if process is None or process.poll() is not None:
            return
        _signal(process, signal.SIGTERM)

        def kill() -> None:
            if process.poll() is None:
                _signal(process, getattr(signal, "SIGKILL", signal.SIGTERM))

        timer = threading.Timer(GRACE, kill)
        timer.daemon = True
        timer.start()


def start(arguments: Sequence[str], **streams: Any) -> subprocess.Popen[str]:
    """Run `concept-erase` in a process group of its own that ends when this process does."""
    package = Path(sys.modules["concept_erase"].__file__ or ".").resolve().parent.parent
    places = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-P", str(Path(__file__).with_name("child.py")), *arguments],
        stdin=subprocess.PIPE,  # held open and never written to: its end tells the child that we are gone
        **({"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE} | streams),
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places), "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )


def _signal(process: subprocess.Popen[str], number: int) -> None:
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
    except (ProcessLookupError, PermissionError):
        pass  # it has ended


def _event(line: str) -> dict[str, Any] | None:
    """A progress line, or None for anything else."""
    try:
        told = json.loads(line)
    except ValueError:
        return None
    return told if isinstance(told, dict) and isinstance(told.get("event"), str) else None
