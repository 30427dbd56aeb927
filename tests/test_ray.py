"""A Ray cluster of several nodes on this machine: nodes and workers die, and nothing is lost or done twice."""

import filecmp
import importlib.util
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from batches import files_of, job_of, listed, temporaries
from conftest import SOON
from deeds import Step, act, calls, running, setup_in, steps, stuck_in_the_second_file, until

from concept_erase.batch import cluster, engines, runner
from concept_erase.errors import InputError, OutputError, ResourceError

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="NO RAY, so batches on several machines are NOT TESTED: pip install 'concept-erase[ray]'",
)
PAINTERS = ("Van Gogh", "Monet", "Klimt", "Hokusai", "Turner", "Dali", "Picasso", "Banksy")
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@contextmanager
def nothing_left():
    """Ray's files in a folder with a short name; afterwards none of its processes runs, and all is as before."""
    import ray

    before, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    here = Path(__file__).parent
    # nodes must find the package and the tests' own modules; no token is left in the home of whoever runs the tests
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": folder, "PYTHONPATH": f"{here.parent}:{here}"}
    others = {p.pid for p in psutil.Process().children(recursive=True)}
    try:
        yield
        ray.shutdown()
        mine = [p.pid for p in psutil.Process().children(recursive=True) if p.pid not in others]
        until(lambda: not any(map(running, mine)), 10)
    finally:
        ray.shutdown()
        left = [p for p in psutil.Process().children(recursive=True) if p.pid not in others]
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5)
        signal.signal(signal.SIGTERM, handler)
        os.environ.clear()
        os.environ |= before
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def nodes():
    """A head that does no work, and two nodes with a CPU each."""
    import ray
    from ray.cluster_utils import Cluster

    with nothing_left():
        made = Cluster()
        made.connection = None
        try:
            made.add_node(**{**NODE, "num_cpus": 0})
            made.add_node(**NODE)
            made.add_node(**NODE)
            yield made
        finally:
            if made.connection:
                made.connection.close()
            ray.shutdown()
            made.shutdown()


@pytest.fixture
def joined(nodes, monkeypatch):
    """An engine on the cluster that does the tests' own tasks; the connection stays, and the workers with it."""
    import ray

    if not ray.is_initialized():
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        nodes.connection = cluster.Cluster("auto")
    engine = cluster.Cluster(do=act)
    yield engine
    engine.close()
    assert ray.is_initialized()  # it was not this engine's


# -- work ----------------------------------------------------------------------------------------------------------


@needs_ray
def test_tasks_are_done_once_each_on_all_nodes_and_killed_workers_are_replaced(joined, tmp_path, caplog, capfd):
    killed = Step("killed", "die once")
    tasks = [*steps(*"abc"), Step("meet", "meet"), killed, Step("meet you", "meet"), *steps(*"defghi")]
    done = list(joined.run(setup_in(tmp_path), tasks))
    assert Counter(task.title for task, _ in done) == Counter(task.title for task in tasks)
    assert all(result["title"] == task.title for task, result in done)
    assert len(calls(tmp_path, "killed")) == 2
    until(lambda: "Ray: " in caplog.text, 10)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.glob(".work/.*")) == []
    assert list(joined.run(setup_in(tmp_path), [])) == []


@needs_ray
def test_errors_of_tasks_come_back_as_they_are_and_are_not_tried_again(joined, tmp_path):
    with pytest.raises(InputError) as failed:
        list(joined.run(setup_in(tmp_path), [Step("wrong", "fail"), *steps("later")]))
    assert type(failed.value) is InputError
    assert (str(failed.value), failed.value.exit_code) == ("wrong cannot be done.", 2)
    with pytest.raises(ZeroDivisionError, match="odd") as broken:
        list(joined.run(setup_in(tmp_path), [Step("odd", "break")]))
    assert "in act" in str(broken.value.__cause__)  # the way to it on the node
    assert len(calls(tmp_path, "wrong")) == len(calls(tmp_path, "odd")) == 1
    assert len(list(joined.run(setup_in(tmp_path), steps("after")))) == 1  # the engine goes on


@needs_ray
def test_a_task_that_kills_its_workers_is_given_up(joined, tmp_path):
    with pytest.raises(ResourceError, match=r"'deadly'.*died 4 times.*fewer --workers"):
        list(joined.run(setup_in(tmp_path), [Step("deadly", "die")]))
    assert len(calls(tmp_path, "deadly")) == 4


@needs_ray
def test_what_runs_is_stopped_at_once_when_the_engine_closes(joined, tmp_path):
    run = joined.run(setup_in(tmp_path), [Step("quick"), Step("long", "wait"), *steps(*"abcdef")])
    next(run)
    until(lambda: calls(tmp_path, "long"))
    started = time.monotonic()
    joined.close()
    until(lambda: not running(calls(tmp_path, "long")[0]), SOON)
    assert time.monotonic() - started < SOON


@needs_ray
def test_a_node_that_does_not_see_the_folder_is_named(joined, tmp_path, monkeypatch):
    real = cluster._token

    @contextmanager
    def elsewhere(setup):
        with real(setup) as card:
            yield replace(card, token=card.token.with_name("not here"))

    monkeypatch.setattr(cluster, "_token", elsewhere)
    with pytest.raises(InputError, match=f"node {socket.gethostname()} does not see the files in {tmp_path}"):
        list(joined.run(setup_in(tmp_path), steps("a")))
    assert calls(tmp_path, "a") == []


@needs_ray
def test_a_cluster_without_any_node_to_work_is_given_up(joined, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_cpus", lambda _: 0)
    monkeypatch.setattr(cluster, "PATIENCE", 0.5)
    with pytest.raises(ResourceError, match=r"no node .* has a CPU.*What is done is kept"):
        list(joined.run(setup_in(tmp_path), steps("a")))


class Noted(cluster.Cluster):
    """Counts how often each task is done, and shows how many are."""

    def run(self, setup, tasks):
        self.done = getattr(self, "done", Counter())
        for task, result in super().run(setup, tasks):
            self.done[type(task).__name__, task.title] += 1
            yield task, result


@needs_ray
def test_a_node_dies_in_the_middle_of_a_batch(nodes, joined, base_folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(runner, "CHUNK", 1)  # a task for each concept
    listing, job = listed(*PAINTERS), job_of(base_folder, settings={"contexts": 6, "preserve_prompts": 60})
    monkeypatch.chdir(tmp_path)  # folders may be given relative to it
    engine = Noted(do=stuck_in_the_second_file)
    mark = tmp_path / "ray" / "stuck"
    killed = []

    def kill():
        until(lambda: mark.exists() and mark.read_text() and engine.done, 200)
        key = mark.read_text().split()[0]
        node = next(node for node in nodes.worker_nodes if node.node_id == key)
        nodes.remove_node(node, allow_graceful=False)
        killed.append(key)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        index = runner.erase_list(listing, job, "ray", engine=engine)
    finally:
        thread.join()
    assert len(killed) == 1
    until(lambda: engine._room() and "is gone; what it had begun is done elsewhere" in caplog.text)
    # nothing lost, nothing twice
    expected = {("Chunk", name) for name in PAINTERS} | {("Solve", "joint adapter 'all'")}
    expected |= {("Joint", "joint adapter 'all'"), ("Matrix", "interference")}
    assert engine.done == Counter(expected)
    assert [(entry["target"], entry["state"]) for entry in index["entries"]] == [(name, "done") for name in PAINTERS]
    folders = [entry["folder"] for entry in index["entries"]]
    assert sorted(p.name for p in Path("ray/concepts").iterdir()) == sorted(Path(folder).name for folder in folders)
    # the same files as without Ray
    assert runner.erase_list(listing, job, "here", engine=engines.Here()) == index
    mark.unlink()
    names = [[p.relative_to(folder) for p in files_of(Path(folder))] for folder in ("here", "ray")]
    assert names[0] == names[1]
    assert filecmp.cmpfiles("here", "ray", names[0], shallow=False)[1:] == ([], [])
    assert temporaries(Path("ray")) == []


# -- a cluster of this machine alone -------------------------------------------------------------------------------


@needs_ray
def test_without_an_address_a_cluster_is_started_and_ctrl_c_ends_it_quickly(tmp_path):
    import ray

    handler = signal.getsignal(signal.SIGTERM)
    with nothing_left():
        ray.shutdown()  # the connection of other tests
        engine = engines.ray_cluster(None, 1)
        engine._do = act
        assert signal.getsignal(signal.SIGTERM) is handler
        assert ray.cluster_resources()["CPU"] == 1
        place = Path(engine._place)
        here = [p for p in psutil.Process().children(recursive=True) if running(p.pid)]
        processes = [p.pid for p in here if str(place) in " ".join(p.cmdline())]
        assert len(processes) > 2
        interrupted: list[float] = []

        def interrupt():
            until(lambda: calls(tmp_path, "long"))
            interrupted.append(time.monotonic())
            signal.raise_signal(signal.SIGINT)

        try:
            run = engine.run(setup_in(tmp_path), [Step("quick"), Step("long", "wait")])
            next(run)
            threading.Thread(target=interrupt).start()
            with pytest.raises(KeyboardInterrupt):
                next(run)
        finally:
            engine.close()
        assert time.monotonic() - interrupted[0] < SOON
        assert not ray.is_initialized()
        assert not place.exists()
        until(lambda: not any(map(running, [*calls(tmp_path, "long"), *processes])), SOON)


# -- what a node has to show ---------------------------------------------------------------------------------------


@pytest.fixture
def card(tmp_path):
    with cluster._token(setup_in(tmp_path)) as card:
        yield card


def test_a_node_that_shares_everything_may_work(card):
    assert cluster._check(card) is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"token": Path("/nowhere/token")}, r"does not see the files in .*; all nodes must share this folder"),
        ({"reads": (Path("/nowhere/base"),)}, r"does not see /nowhere/base; all nodes must share it"),
        ({"versions": "concept_erase 0.0+1 and torch 1"}, r"has concept_erase .* started with concept_erase 0\.0\+1"),
    ],
)
def test_a_node_that_lacks_something_may_not(card, change, told):
    with pytest.raises(InputError, match=told) as failed:
        cluster._check(replace(card, **change))
    assert failed.value.exit_code == 2


def test_a_node_that_may_not_write_says_so(card, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="may not write to"):
        cluster._check(card)


def test_local_models_and_scorers_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("base", "scorer"):
        Path(name).mkdir()
    job = job_of("base", scorer="ViT:scorer")
    with cluster._token(replace(setup_in(tmp_path), job=job)) as card:
        assert card.reads == (tmp_path / "base", tmp_path / "scorer")
    job = job_of("some/hub-name", scorer="base+ViT:scorer")
    with cluster._token(replace(setup_in(tmp_path), job=job)) as card:
        assert card.reads == (tmp_path / "scorer",), "the base itself is no folder, whatever lies there"
    with cluster._token(replace(setup_in(tmp_path), job=job_of("some/hub-name", scorer="ViT:laion"))) as card:
        assert card.reads == ()


# -- joining -------------------------------------------------------------------------------------------------------


def test_without_ray_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'concept-erase\[ray\]'") as failed:
        engines.ray_cluster(None)
    assert failed.value.exit_code == 2


@needs_ray
@pytest.mark.parametrize("auto", [False, True])
def test_a_cluster_that_does_not_answer_is_an_error_at_once(monkeypatch, auto):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"  # bound, but nobody listens
        if auto:
            monkeypatch.setenv("RAY_ADDRESS", address)
        started = time.monotonic()
        with pytest.raises(InputError, match=r"no Ray cluster answers at .*ray start --head") as failed:
            engines.ray_cluster("auto" if auto else address)
    assert failed.value.exit_code == 2
    assert time.monotonic() - started < SOON  # Ray itself tries for two minutes


@needs_ray
@pytest.mark.parametrize("address", ["somewhere", "ray://127.0.0.1:10001", "127.0.0.1:", ":6379", "127.0.0.1:many"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(InputError, match="is not HOST:PORT"):
        engines.ray_cluster(address)


@needs_ray
def test_auto_without_a_cluster_says_how_to_start_one(monkeypatch, tmp_path):
    from ray._private import services

    monkeypatch.setattr(services, "find_gcs_addresses", set)  # those of other tests, and of the developer
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(InputError, match=r"finds no Ray cluster on this machine; join it with `ray start"):
        engines.ray_cluster("auto")
