"""The demo's queue: it survives, it never does the same twice, and it stops when told."""

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from conftest import ROOT, SOON, python

from concept_erase.errors import BusyError, InputError
from demos import jobs
from demos.jobs import CANCELLED, DONE, FAILED, QUEUED, RUNNING, Queue

# A command that tells its progress as `concept-erase` does and leaves a file; what it does is told by its arguments.
COMMAND = """
import json, os, pathlib, signal, sys, time
kind, out = sys.argv[1], pathlib.Path(sys.argv[2])
def tell(**what): print(json.dumps(what), file=sys.stderr, flush=True)
if kind == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
out.mkdir(parents=True, exist_ok=True)
with (out / "runs").open("a") as runs: runs.write(f"{os.getpid()}\\n")
tell(event="progress", what="pictures before", done=3, total=10, left_s=4.5)
print("a warning that is no JSON", file=sys.stderr)
if kind in ("slow", "deaf"):
    time.sleep(60)
if kind == "wrong":
    tell(event="error", message="no such concept; name another.", exit_code=2)
    sys.exit(2)
if kind == "silent":
    sys.exit(3)
(out / "report.json").write_text("{}")
tell(event="done", folder=str(out))
"""


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Jobs run a small script instead of `concept-erase`; everything around it is the real thing."""
    script = tmp_path / "command.py"
    script.write_text(COMMAND)

    def start(arguments, **streams):
        return subprocess.Popen(
            [sys.executable, str(script), *arguments], start_new_session=True, text=True, stdin=subprocess.PIPE,
            **({"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE} | streams),
        )  # fmt: skip

    monkeypatch.setattr(jobs, "start", start)
    return script


@pytest.fixture
def opened(tmp_path, commands):
    """Queues on one folder; closed at the end."""
    queues = []

    def open_queue():
        queues.append(
            Queue(
                tmp_path / "studio",
                lambda job: [job.arguments["kind"], str(tmp_path / "studio" / job.folder)],
                lambda job: (tmp_path / "studio" / job.folder / "report.json").is_file(),
            )
        )
        return queues[-1]

    yield open_queue
    for queue in queues:
        queue.close()


def submit(queue, kind, n=0):
    return queue.submit("erase", {"kind": kind, "n": n}, f"{kind} {n}", f"erasures/{kind}-{n}")


def runs(tmp_path, job):
    file = tmp_path / "studio" / job.folder / "runs"
    return file.read_text().split() if file.is_file() else []


def until(condition, seconds=15):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.02)


def test_a_job_runs_and_is_kept_on_disk(opened, tmp_path):
    queue = opened()
    job = queue.wait(submit(queue, "quick").id, SOON)
    assert (job.state, job.exit_code, job.message) == (DONE, 0, "")
    stored = json.loads((tmp_path / "studio" / "jobs" / job.id / "job.json").read_text())
    assert (stored["state"], stored["arguments"]) == (DONE, {"kind": "quick", "n": 0})
    seen = queue.progress(job.id)
    assert (seen.what, seen.done, seen.total, seen.left) == ("pictures before", 3, 10, 4.5)


def test_the_same_request_is_never_done_twice(opened, tmp_path):
    queue = opened()
    first = queue.wait(submit(queue, "quick").id, SOON)
    again = submit(queue, "quick")
    assert (again.id, again.state) == (first.id, DONE)
    assert len(runs(tmp_path, first)) == 1
    other = queue.wait(submit(queue, "quick", 1).id, SOON)
    assert other.id != first.id


def test_a_result_that_is_gone_is_made_again(opened, tmp_path):
    queue = opened()
    job = queue.wait(submit(queue, "quick").id, SOON)
    (tmp_path / "studio" / job.folder / "report.json").unlink()
    queue.wait(submit(queue, "quick").id, SOON)
    until(lambda: queue.get(job.id).state == DONE)
    assert len(runs(tmp_path, job)) == 2


@pytest.mark.parametrize("kind", ["slow", "deaf"])
def test_cancel_ends_the_process_at_once(opened, tmp_path, kind):
    queue = opened()
    job = submit(queue, kind)
    until(lambda: runs(tmp_path, job))
    (pid,) = runs(tmp_path, job)
    start = time.monotonic()
    assert queue.cancel(job.id).state == CANCELLED
    assert time.monotonic() - start < SOON
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
    follower = queue.wait(submit(queue, "quick").id, SOON)
    assert follower.state == DONE


def test_a_waiting_job_is_cancelled_before_it_begins(opened, tmp_path):
    queue = opened()
    first, second = submit(queue, "slow"), submit(queue, "quick")
    assert queue.cancel(second.id).state == CANCELLED
    queue.cancel(first.id)
    time.sleep(0.3)
    assert runs(tmp_path, second) == []
    assert queue.wait(submit(queue, "quick").id, SOON).state == DONE, "a cancelled request can be made again"


def test_failure_says_why(opened):
    queue = opened()
    wrong = queue.wait(submit(queue, "wrong").id, SOON)
    assert (wrong.state, wrong.exit_code, wrong.message) == (FAILED, 2, "no such concept; name another.")
    silent = queue.wait(submit(queue, "silent").id, SOON)
    assert silent.state == FAILED
    assert "warning that is no JSON" in silent.message


def test_jobs_run_in_the_order_they_came(opened, tmp_path):
    queue = opened()
    made = [submit(queue, "quick", n) for n in range(4)]
    done = [queue.wait(job.id, SOON) for job in made]
    assert [job.order for job in done] == sorted(job.order for job in done)
    assert all(a.finished <= b.started for a, b in itertools.pairwise(done))


def test_what_ran_or_waited_goes_on_after_a_restart(opened, tmp_path):
    queue = opened()
    done = queue.wait(submit(queue, "quick").id, SOON)
    running, waiting = submit(queue, "slow"), submit(queue, "quick", 1)
    until(lambda: runs(tmp_path, running))
    queue.close()
    stored = json.loads((tmp_path / "studio" / "jobs" / running.id / "job.json").read_text())
    assert stored["state"] == QUEUED
    again = opened()
    until(lambda: len(runs(tmp_path, running)) == 2)
    assert again.get(running.id).state == RUNNING
    again.cancel(running.id)
    assert again.wait(waiting.id, SOON).state == DONE
    assert len(runs(tmp_path, done)) == 1, "finished work is not done again"


def test_a_record_left_running_by_a_dead_demo_is_taken_up(opened, tmp_path):
    queue = opened()
    job = queue.wait(submit(queue, "quick").id, SOON)
    queue.close()
    record = tmp_path / "studio" / "jobs" / job.id / "job.json"
    stored = json.loads(record.read_text())
    record.write_text(json.dumps({**stored, "state": RUNNING}))
    assert opened().wait(job.id, SOON).state == DONE
    assert len(runs(tmp_path, job)) == 1, "its result was complete, so nothing is run"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"id": "../../x"}', '{"id": 1, "what": "erase"}'])
def test_damaged_records_are_left_aside(opened, tmp_path, content):
    place = tmp_path / "studio" / "jobs" / "0123456789abcdef"
    place.mkdir(parents=True)
    (place / "job.json").write_text(content)
    queue = opened()
    assert queue.jobs() == []
    assert queue.wait(submit(queue, "quick").id, SOON).state == DONE


def test_one_demo_to_a_folder(opened):
    opened()
    with pytest.raises(BusyError, match="another demo works"):
        opened()


@pytest.mark.parametrize("key", ["", "..", "../jobs", "0" * 16, None, 7, ["a"]])
def test_unknown_ids_are_refused(opened, key):
    with pytest.raises(InputError, match="no such job"):
        opened().get(key)


def test_too_many_jobs_are_refused(opened, monkeypatch):
    monkeypatch.setattr(jobs, "WAITING", 2)
    queue = opened()
    first = submit(queue, "slow")
    until(lambda: queue.get(first.id).state == RUNNING)
    submit(queue, "quick", 1)
    submit(queue, "quick", 2)
    with pytest.raises(InputError, match="waiting already"):
        submit(queue, "quick", 3)
    assert queue.cancel(first.id).state == CANCELLED


def test_a_folder_still_held_by_the_last_command_is_waited_for(opened, tmp_path, monkeypatch):
    queue = opened()
    codes = iter([(75, "busy"), (75, "busy"), (0, "")])

    def attempt(job):
        code = next(codes)
        if code[0] == 0:
            place = tmp_path / "studio" / job.folder
            place.mkdir(parents=True)
            (place / "report.json").write_text("{}")
        return code

    monkeypatch.setattr(queue, "_attempt", attempt)
    assert queue.wait(submit(queue, "quick").id, SOON).state == DONE


# -- the real command ----------------------------------------------------------------------------------------------


def test_the_command_dies_with_whoever_started_it(tmp_path):
    """`start` runs concept-erase; when its parent is killed without a word, it ends as well."""
    parent = textwrap.dedent(
        f"""
        import os, sys, time
        sys.path.insert(0, {str(ROOT)!r})
        from demos.jobs import start
        child = start(["erase", "twemoji", "--out", {str(tmp_path / "out")!r}, "--progress=json"])
        print(child.pid, flush=True)
        time.sleep(60)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    os.kill(pid, 0)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: not _alive(pid), seconds=10)


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123  a zombie has ended
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_command_reports_in_json(tmp_path):
    child = jobs.start(["erase", "--out", str(tmp_path / "out"), "--progress=json", "--", "\u202e"])
    told = child.stderr.read()
    child.wait(timeout=60)
    events = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    assert child.returncode == 2
    assert events[-1]["event"] == "error"
    assert "U+202E" in events[-1]["message"]


def test_the_child_script_needs_no_gradio():
    code = "import demos.child, demos.jobs, sys; print({'gradio', 'torch'} & set(sys.modules))"
    done = python("-c", code, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stderr
