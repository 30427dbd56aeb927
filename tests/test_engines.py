"""Worker processes: whatever dies, nothing is lost and nobody stays behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SOON
from deeds import Step, act, calls, running, setup_in, steps, until

from concept_erase.batch.engines import Processes
from concept_erase.errors import InputError, ResourceError

HERE = Path(__file__).parent


@pytest.fixture
def two():
    engine = Processes(2, act)
    yield engine
    engine.close()


def titles(done) -> list[str]:
    return sorted(task.title for task, _ in done)


def test_every_task_comes_back_once_with_its_own_result(two, tmp_path):
    tasks = steps(*"abcdefghij")
    done = list(two.run(setup_in(tmp_path), tasks))
    assert titles(done) == [*"abcdefghij"]
    assert all(result["title"] == task.title for task, result in done)
    assert all(len(calls(tmp_path, task.title)) == 1 for task in tasks)
    assert os.getpid() not in {result["pid"] for _, result in done}


def test_the_same_workers_do_the_next_tasks(two, tmp_path):
    first = {result["pid"] for _, result in two.run(setup_in(tmp_path), steps(*"abcdef"))}
    second = {result["pid"] for _, result in two.run(setup_in(tmp_path), steps(*"ghijkl"))}
    assert len(first | second) <= 2
    assert list(two.run(setup_in(tmp_path), [])) == []


def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost(two, tmp_path):
    tasks = [*steps(*"abc"), Step("killed", "die once"), *steps(*"defg")]
    done = list(two.run(setup_in(tmp_path), tasks))
    assert titles(done) == sorted(task.title for task in tasks)
    assert len(calls(tmp_path, "killed")) == 2
    started = time.monotonic()
    two.close()  # hung for ever when workers shared a lock with the one that was killed
    assert time.monotonic() - started < SOON


def test_a_worker_that_dies_while_idle_is_replaced(two, tmp_path):
    for _, result in two.run(setup_in(tmp_path), steps("first")):
        os.kill(result["pid"], signal.SIGKILL)
    until(lambda: not running(result["pid"]))
    assert titles(two.run(setup_in(tmp_path), steps("second", "third"))) == ["second", "third"]


def test_a_task_that_kills_its_workers_ends_the_run_after_three(tmp_path):
    engine = Processes(1, act)
    with pytest.raises(ResourceError, match=r"died 3 times in a row before 'deadly'.*fewer --workers"):
        list(engine.run(setup_in(tmp_path), [Step("deadly", "die")]))
    engine.close()
    assert len(calls(tmp_path, "deadly")) == 3


def test_an_error_of_a_task_comes_back_as_it_is_and_is_not_tried_again(tmp_path):
    engine = Processes(1, act)
    with pytest.raises(InputError) as failed:
        list(engine.run(setup_in(tmp_path), [Step("wrong", "fail"), *steps("later")]))
    engine.close()
    assert type(failed.value) is InputError
    assert (str(failed.value), failed.value.exit_code) == ("wrong cannot be done.", 2)
    assert len(calls(tmp_path, "wrong")) == 1


def test_close_ends_workers_in_the_middle_of_their_work(tmp_path):
    engine = Processes(2, act)
    run = engine.run(setup_in(tmp_path), [Step("quick"), Step("long", "wait"), Step("longer", "wait")])
    next(run)
    until(lambda: calls(tmp_path, "long") and calls(tmp_path, "longer"))
    pids = calls(tmp_path, "long") + calls(tmp_path, "longer")
    assert all(map(running, pids))
    engine.close()
    assert until(lambda: not any(map(running, pids)), 2) < 2


def test_workers_end_when_their_parent_is_killed(tmp_path):
    text = f"""
import sys
sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]
from pathlib import Path
from deeds import Step, act, setup_in
from concept_erase.batch.engines import Processes
if __name__ == "__main__":
    list(Processes(2, act).run(setup_in(Path({str(tmp_path)!r})), [Step("long", "wait"), Step("longer", "wait")]))
"""
    script = tmp_path / "parent.py"
    script.write_text(text)
    parent = subprocess.Popen([sys.executable, str(script)])
    try:
        until(lambda: calls(tmp_path, "long") and calls(tmp_path, "longer"))
        pids = calls(tmp_path, "long") + calls(tmp_path, "longer")
        assert parent.pid not in pids
        assert all(map(running, pids))
    finally:
        parent.kill()
        parent.wait()
    assert until(lambda: not any(map(running, pids)), 2) < 2
