"""The command line. Heavy imports happen inside the commands, so that help and errors come at once."""

from __future__ import annotations

import signal
import sys
from typing import Annotated, Any, NoReturn

import typer

from concept_erase import __version__
from concept_erase.cli import batch, erase, interference
from concept_erase.cli.common import console, fail
from concept_erase.errors import ConceptEraseError

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
app.command()(erase.generate)
app.command()(erase.score)
app.command()(erase.info)
app.command("methods")(erase.list_methods)


def run() -> None:
    """Entry point: errors on purpose end with one message and their exit code, never with a traceback."""
    signal.signal(signal.SIGTERM, _interrupt)  # asked to end: the same clean stop as Ctrl-C
    try:
        app()
    except ConceptEraseError as error:
        sys.exit(fail(str(error), error.exit_code))
    except KeyboardInterrupt:
        sys.exit(fail("interrupted; nothing half-written was left behind.", 130))
    except OSError as error:
        sys.exit(fail(str(error), 74))


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt
