"""A Ray cluster as engine: the same units as tasks with retries, on one machine or on several.

All nodes share the batch's folder under one path and have the same versions installed; each is asked before it is given
work, and again with each task, because nodes may join later.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import signal
import socket
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from concept_erase import typed
from concept_erase.batch.units import WORK, Setup, Task, code_version, perform
from concept_erase.errors import InputError, OutputError, ResourceError

RETRIES = 3  # of a task whose worker or node died
PATIENCE = 30.0  # seconds until a cluster without any node that could work is given up
STORE = 128 * 2**20  # bytes of a local cluster's object store: tasks and results are small, pictures go to the disk
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pass:
    """What a node has to show before it works.

    Attributes:
        out: Folder of the batch.
        token: A file in it, written by this process: whoever does not see it would write elsewhere.
        reads: Local files and folders that the work reads.
        versions: Of this package's code and of torch; other ones would not give the same bytes.
        folder: Working directory, for relative paths.
        cache: Where pictures are cached, if the user said so: nodes that share it need not draw what others drew.
    """

    out: Path
    token: Path
    reads: tuple[Path, ...]
    versions: str
    folder: Path
    cache: str | None


class Cluster:
    """Tasks on the CPUs of a Ray cluster, one CPU each.

    A task whose worker or node dies is given to another, up to `RETRIES` times. After a network partition two copies of
    a task may run for a while. That is harmless: both write the same bytes, each file as a whole, and `atomic_write`
    writes again when the other copy took its temporary for one that was left behind.

    Args:
        address: HOST:PORT of a cluster, "auto" for the one this machine is in, None to start one on this machine alone.
            A cluster that this process is connected to already is used as it is, and is not left by `close`.
        workers: Tasks at once; as many as there are CPUs if None.
        do: What is done with a task.
    Raises:
        InputError: Ray is not installed, or the cluster cannot be joined.
    """

    def __init__(
        self,
        address: str | None = None,
        workers: int | None = None,
        do: Callable[[Setup, Task], dict[str, Any]] = perform,
    ) -> None:
        self._ray = _imported()
        self._workers, self._do = workers, do
        self._pending: dict[Any, Task] = {}
        self._nodes: dict[str, dict[str, Any]] = {}
        self._looked = self._worked = time.monotonic()
        self._place: str | None = None  # of a local cluster's sockets and logs
        self._unquiet: Callable[[], None] | None = None
        self._ours = not self._ray.is_initialized()
        if self._ours:
            self._connect(address)

    def _connect(self, address: str | None) -> None:
        settings: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "include_dashboard": False}
        if address:
            what = f"the Ray cluster at {address} cannot be joined"
            settings |= {"address": _reachable(address)}
        else:
            what = "Ray does not start on this machine"
            self._place = tempfile.mkdtemp(prefix="ray-")  # Ray's usual one belongs to whichever user came first
            settings |= {"address": "local", "_temp_dir": self._place}
            settings |= {"num_cpus": self._workers, "object_store_memory": STORE}
        self._unquiet = _quiet()
        try:
            with _own_signals():
                self._ray.init(**settings)
                if not address:
                    _end_autoscaler()
        except Exception as error:
            self.close()
            raise InputError(
                f"{what}: {error} Install the same versions of Python and Ray on all machines, look at `ray status`, "
                "or leave out --engine ray."
            ) from error
        except BaseException:
            self.close()
            raise

    def run(self, setup: Setup, tasks: Sequence[Task]) -> Iterator[tuple[Task, dict[str, Any]]]:
        """See `engines.Engine`.

        Raises:
            InputError: a node does not share the folder or has other versions.
            ResourceError: a task's workers died again and again, or no node is left.
        """
        if not tasks:
            return
        setup = replace(setup, out=setup.out.absolute())  # a node has a working directory of its own
        # max_retries is for workers and nodes that die; an error of the task itself would only come again
        remote = self._ray.remote(num_cpus=1, max_retries=RETRIES, retry_exceptions=False)(_work)
        waiting = deque(tasks)
        with _token(setup) as card:
            self._ask(card)
            try:
                while waiting or self._pending:
                    room = self._room() - len(self._pending)
                    while waiting and room > 0:
                        task, room = waiting.popleft(), room - 1
                        self._pending[remote.remote(card, self._do, setup, task)] = task
                    for ref in self._finished():
                        task = self._pending.pop(ref)
                        yield task, self._result(ref, task.title)
            finally:
                self._cancel()

    def _finished(self) -> Sequence[Any]:
        """Waits for the next task, but not for long, so that nodes that come and go are noticed."""
        if not self._pending:  # nobody is there to work
            time.sleep(0.2)
            return ()
        return self._ray.wait(list(self._pending), num_returns=1, timeout=1.0)[0]

    def close(self) -> None:
        """Stop what runs, at once, and leave the cluster; one that was started here ends."""
        if self._ray.is_initialized():
            self._cancel()
        if self._ours:
            self._ours = False
            self._ray.shutdown()
        if self._unquiet:
            self._unquiet()
            self._unquiet = None
        if self._place:
            shutil.rmtree(self._place, ignore_errors=True)
            self._place = None

    def _cancel(self) -> None:
        for ref in self._pending:
            self._ray.cancel(ref, force=True)
        self._pending.clear()

    def _result(self, ref: Any, title: str) -> Any:
        """What a task returned; its error as it was raised."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(ref)
        except errors.RayTaskError as error:
            if "No module named 'concept_erase'" in str(error):
                raise InputError(
                    "a node of the Ray cluster has no concept_erase; install the same version on all nodes."
                ) from error
            raise error.cause from error
        except errors.RayError as error:
            raise ResourceError(
                f"{title!r} could not be done: its worker died {RETRIES + 1} times, most likely for want of memory; "
                f"use fewer --workers or larger nodes. What is done is kept. ({error})"
            ) from error

    def _room(self) -> int:
        """How many tasks may be on their way: one that runs and one that waits for each CPU."""
        now = time.monotonic()
        if not self._nodes or now - self._looked > 1:
            self._looked = now
            alive = {node["NodeID"]: node for node in self._ray.nodes() if node["Alive"]}
            for key in self._nodes.keys() - alive.keys():
                log.warning("node %s is gone; what it had begun is done elsewhere", _name(self._nodes[key]))
            self._nodes = alive
        cpus = sum(int(_cpus(node)) for node in self._nodes.values())
        if cpus:
            self._worked = now
        elif now - self._worked > PATIENCE:
            raise ResourceError(
                "no node of the Ray cluster has a CPU to work with; start nodes with `ray start --address=...` and run "
                "the same command again. What is done is kept."
            )
        return min(self._workers or 2 * cpus, 2 * cpus)

    def _ask(self, card: Pass) -> None:
        """Have each node that can work show that it may; one that does not answer is asked with its first task."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._room()
        remote = self._ray.remote(num_cpus=0, max_retries=0)(_check)
        asked = {}
        for key, node in self._nodes.items():
            if _cpus(node):
                there = NodeAffinitySchedulingStrategy(key, soft=False)
                asked[remote.options(scheduling_strategy=there).remote(card)] = node
        left, until = list(asked), time.monotonic() + PATIENCE
        while left and (seconds := until - time.monotonic()) > 0:
            answers, left = self._ray.wait(left, num_returns=1, timeout=seconds)
            for ref in answers:
                with suppress(ResourceError):  # it died meanwhile
                    self._result(ref, _name(asked[ref]))


# -- on the nodes --------------------------------------------------------------------------------------------------


def _work(card: Pass, do: Callable[[Setup, Task], Any], setup: Setup, task: Task) -> Any:
    _check(card)
    if card.folder.is_dir():
        os.chdir(card.folder)
    if card.cache:
        os.environ["CONCEPT_ERASE_CACHE"] = card.cache
    return do(setup, task)


def _check(card: Pass) -> None:
    node = platform.node()
    if not card.token.is_file():
        raise InputError(
            f"node {node} does not see the files in {card.out}; all nodes must share this folder under the same path."
        )
    if not os.access(card.out, os.W_OK):
        raise OutputError(f"node {node} may not write to {card.out}; give its user the right to.")
    for path in card.reads:
        if not path.exists():
            raise InputError(f"node {node} does not see {path}; all nodes must share it under the same path.")
    if (mine := _versions()) != card.versions:
        raise InputError(
            f"node {node} has {mine}, but the batch was started with {card.versions}; install the same versions on all "
            "nodes, or the files would differ."
        )


def _versions() -> str:
    return f"concept_erase {code_version()} and torch {version('torch')}"


# -- before work ---------------------------------------------------------------------------------------------------


@contextmanager
def _token(setup: Setup) -> Iterator[Pass]:
    """A file that only shows where the folder is shared; a name that was never looked up is in no cache of NFS."""
    folder = setup.out / WORK
    token = folder / f".{uuid.uuid4().hex}.tmp"  # the next run removes such names, if this one is killed
    job = setup.job
    _, clip = typed.scorer(job.scorer)
    named = [job.model, clip, (clip or "").partition(":")[2]]
    reads = [path for text in named if text and (path := Path(text).expanduser().absolute()).exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        token.touch()
        yield Pass(setup.out, token, tuple(reads), _versions(), Path.cwd(), os.environ.get("CONCEPT_ERASE_CACHE"))
    finally:
        token.unlink(missing_ok=True)


def _imported() -> Any:
    try:
        import ray
    except ImportError as error:
        raise InputError(
            f"--engine ray needs Ray, which cannot be imported ({error}); pip install 'concept-erase[ray]'."
        ) from error
    return ray


def _reachable(address: str, seconds: float = 5.0) -> str:
    """HOST:PORT where somebody listens; Ray itself tries for two minutes.

    Raises:
        InputError: it is no such address, or nobody does.
    """
    from ray._private.services import canonicalize_bootstrap_address

    wanted = address
    if address == "auto":
        try:
            wanted = canonicalize_bootstrap_address("auto") or ""
        except ConnectionError as error:
            raise InputError(
                "--address auto finds no Ray cluster on this machine; join it with `ray start --address=HOST:6379`, or "
                "start one with `ray start --head`, or leave out --address for a cluster of this machine alone."
            ) from error
    host, _, port = wanted.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise InputError(
            f"--address {wanted} is not HOST:PORT; run the command on a machine of the cluster with --address auto."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), seconds).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"no Ray cluster answers at {wanted} ({error}); start it with `ray start --head`, see where it is with "
            "`ray status`, and open its port in the firewall."
        ) from error
    return wanted


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray puts its handler of SIGTERM in place of ours; here it is put back."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:  # from that handler
        raise KeyboardInterrupt from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _quiet() -> Callable[[], None]:
    """Ray prints what dies to standard output, whatever it is told; here it goes to our log. Returns the way back."""
    from ray._private import worker

    logger = logging.getLogger("ray")
    level, printed = logger.level, getattr(worker, "print_to_stdstream", None)

    def tell(data: dict[str, Any], *_: Any, **__: Any) -> None:
        for line in data.get("lines", ()):
            log.warning("Ray: %s", " ".join(line.split())[:300])

    def back() -> None:
        logger.setLevel(level)
        vars(worker)["print_to_stdstream"] = printed

    logger.setLevel(logging.CRITICAL)  # every error comes as an exception as well
    vars(worker)["print_to_stdstream"] = tell
    return back


def _end_autoscaler() -> None:
    """It has nothing to do for a cluster of one machine, and would not let go of it for a second in the end."""
    from ray._private import worker

    node: Any = worker._global_node
    with suppress(AttributeError):
        node.kill_monitor(check_alive=False)


def _cpus(node: dict[str, Any]) -> float:
    return node["Resources"].get("CPU", 0)


def _name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})"
