"""Tasks that workers of any engine can do without a generator: they answer, fail, wait or die. Quick to import."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from concept_erase.batch.units import Setup, perform
from concept_erase.errors import InputError
from concept_erase.schema import Job


@dataclass(frozen=True)
class Step:
    """A task that does one of the deeds below."""

    title: str
    deed: str = "answer"


def steps(*titles: str) -> list[Step]:
    return [Step(title) for title in titles]


def setup_in(folder: Path) -> Setup:
    return Setup(folder, Job())


def act(setup: Setup, step: Step) -> dict:
    """What an engine calls in place of `perform`; each call is noted."""
    earlier = len(calls(setup.out, step.title))
    with (setup.out / f"{step.title}.calls").open("a") as file:
        file.write(f"{os.getpid()}\n")
    match step.deed:
        case "fail":
            raise InputError(f"{step.title} cannot be done.")
        case "break":
            raise ZeroDivisionError(step.title)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "die once" if not earlier:
            os.kill(os.getpid(), signal.SIGKILL)
        case "meet":  # another process that does the same
            until(
                lambda: len({pid for file in setup.out.glob("meet*.calls") for pid in calls(setup.out, file.stem)}) > 1
            )
        case "wait":
            time.sleep(300)
    return {"title": step.title, "pid": os.getpid()}


def calls(folder: Path, title: str) -> list[int]:
    """Process ids of the calls for a step, one for each."""
    file = folder / f"{title}.calls"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def stuck_in_the_second_file(setup: Setup, chunk) -> dict:
    """`perform`, but the first try for Klimt never ends: its second file is written and has not got its name yet."""
    import ray

    mark = setup.out / "stuck"
    if chunk.title == "Klimt" and not mark.exists():
        names, real = [], os.replace

        def replace(source, target):
            names.append(target)
            if len(names) == 2:
                mark.write_text(f"{ray.get_runtime_context().get_node_id()} {source}")
                time.sleep(300)
            real(source, target)

        os.replace = replace
    return perform(setup, chunk)


def running(pid: int) -> bool:
    """Whether a process does anything; one that only waits to be collected does not."""
    import psutil

    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def until(true, seconds: float = 300) -> float:
    """Seconds until something is true; fails when it does not come true."""
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < seconds, "it never came true"
        time.sleep(0.02)
    return time.monotonic() - started
