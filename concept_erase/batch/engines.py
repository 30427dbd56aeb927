"""Who does the tasks: this process, several processes of this machine, or a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any, Protocol

from concept_erase.batch.units import Setup, Task, perform
from concept_erase.errors import ResourceError

Result = dict[str, Any]
QUIET = "ignore:resource_tracker:UserWarning"  # this pool ends by being killed; what it leaves is taken away in silence
TRIES = 3  # deaths of workers without a single task done between them


class Engine(Protocol):
    """Does tasks that do not depend on each other, in any order."""

    def run(self, setup: Setup, tasks: Sequence[Task]) -> Iterator[tuple[Task, Result]]:
        """Each task with its result, as they are done. An error of a task ends the run."""
        ...

    def close(self) -> None:
        """Let all workers go, at once."""
        ...


class Here:
    """One task after the other, in this process."""

    def run(self, setup: Setup, tasks: Sequence[Task]) -> Iterator[tuple[Task, Result]]:
        for task in tasks:
            yield task, perform(setup, task)

    def close(self) -> None:
        pass


class Processes:
    """Worker processes on this machine; a task whose worker dies is given to another.

    Args:
        workers: How many.
        do: What is done with a task.
    """

    def __init__(self, workers: int, do: Callable[[Setup, Task], Result] = perform) -> None:
        self._workers, self._do = workers, do
        self._context = multiprocessing.get_context("spawn")  # a forked torch may hang
        # Only this process holds the writing end: the workers see its end and ours. A lock or event would be shared
        # with them, and hang for good once a worker is killed with it in its hands.
        self._alive, self._life = self._context.Pipe(duplex=False)
        self._pool: ProcessPoolExecutor | None = None

    def run(self, setup: Setup, tasks: Sequence[Task]) -> Iterator[tuple[Task, Result]]:
        left, deaths = list(tasks), 0
        while left:
            pool = self._opened()
            pending: dict[Future[Result], Task] = {}
            try:
                for task in left:
                    pending[pool.submit(self._do, setup, task)] = task
                while pending:
                    done, _ = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        task = pending.pop(future)
                        result = future.result()
                        left.remove(task)
                        deaths = 0
                        yield task, result
            except BrokenProcessPool as error:
                self._pool = None
                deaths += 1
                if deaths == TRIES:
                    raise ResourceError(
                        f"a worker died {TRIES} times in a row before {left[0].title!r} was done, most likely for want "
                        "of memory; use fewer --workers. What is done is kept."
                    ) from error

    def _opened(self) -> ProcessPoolExecutor:
        if self._pool is None:
            if QUIET not in sys.warnoptions:  # which the tracker of semaphores is started with
                sys.warnoptions.append(QUIET)
            self._pool = ProcessPoolExecutor(self._workers, self._context, _start, (self._alive,))
        return self._pool

    def close(self) -> None:
        self._life.close()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _start(alive: Connection) -> None:
    """In a new worker: Ctrl-C is the parent's business, and when the parent ends, however it ends, so does this."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def watch() -> None:
        alive.poll(None)  # nothing is ever sent: it returns when the other end is closed
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def ray_cluster(address: str | None, workers: int | None = None) -> Engine:
    """The tasks on a Ray cluster; see `batch.cluster.Cluster`.

    Raises:
        InputError: Ray is not installed, or the cluster cannot be joined.
    """
    from concept_erase.batch.cluster import Cluster

    return Cluster(address, workers)
