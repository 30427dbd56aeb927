"""The command line. Heavy imports happen inside the commands, so that help and errors come at once."""

from __future__ import annotations

import gc
import os
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from concept_erase import __version__
from concept_erase.cli import batch, demo, erase, gates, interference
from concept_erase.cli.common import console, errors, fail
from concept_erase.errors import ConceptEraseError

# Threads that wait for each other by spinning take a busy machine's time for nothing: with two threads, many small
# products took 5 times the CPU seconds of one, and 1.5 times where they sleep. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    name="concept-erase",
    help="Make text-to-image generators forget a concept: a style, an object, a person, violent content.",
    epilog="Exit codes: 0 done, 1 some rows of a list failed, 2 bad input, 74 cannot write, 75 folder in use, "
    "130 interrupted.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"concept-erase {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


app.command()(erase.erase)
app.command()(batch.batch)
app.command()(interference.interference)
app.command()(demo.demo)
app.command()(erase.generate)
app.command()(erase.score)
app.command()(erase.info)
app.command()(gates.gates)
app.command("methods")(erase.list_methods)


def run() -> None:
    """Entry point: errors on purpose end with one message and their exit code, never with a traceback."""
    for number in (signal.SIGINT, signal.SIGTERM):  # asked to end by either: the same clean stop
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        app()
    except ConceptEraseError as error:
        sys.exit(fail(str(error), error.exit_code))
    except KeyboardInterrupt:
        _leave()
    except SystemExit as done:
        if done.code == 130:  # typer has caught the interrupt
            _leave()
        raise
    except OSError as error:
        sys.exit(fail(str(error), 74))
    finally:
        gc.freeze()  # the process ends: looking for cycles in all that torch and transformers hold takes long


def _interrupt(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        # An interrupt inside an import is swallowed or turned into something else there; nothing is begun yet.
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _leave()
        frame = frame.f_back
    raise KeyboardInterrupt


def _leave() -> NoReturn:
    """End at once: taking torch down in good order takes seconds, and every file is whole already."""
    errors.show_cursor()  # which a bar may have hidden
    code = fail("interrupted; nothing half-written was left behind.", 130)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
