"""The command that opens the demo: demo."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from concept_erase.cli.common import ModelOption
from concept_erase.errors import InputError


def demo(
    host: Annotated[
        str, typer.Option(help="Address to serve on; any but this computer's own needs a password.")
    ] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="7860 or the next free one if not given.")] = None,
    auth: Annotated[
        str | None,
        typer.Option(envvar="CONCEPT_ERASE_DEMO_AUTH", help="USER:PASSWORD; better given in the variable."),
    ] = None,
    auth_file: Annotated[Path | None, typer.Option(help="File with one line USER:PASSWORD.")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where results and the queue are kept; concept_erase_studio if not given.")
    ] = None,
    model: ModelOption = None,
    n: Annotated[
        int, typer.Option("--pictures", "-n", min=0, help="Pictures to score on, unless the page says otherwise.")
    ] = 60,
    steps: Annotated[int, typer.Option(min=1, max=200, help="Denoising steps, unless the page says otherwise.")] = 25,
) -> None:
    """Open the demo: a page in the browser that erases, compares, composes, and works through lists."""
    _module().serve(host, port, auth=auth, auth_file=auth_file, folder=folder, model=model, pictures=n, steps=steps)


def _module() -> ModuleType:
    """The demo: inside the installed package, or at the root of a checkout.

    Raises:
        InputError: neither is there, or gradio is not installed.
    """
    package = Path(__file__).resolve().parent.parent
    if (package / "demos").is_dir():
        name = "concept_erase.demos.app"
    elif (package.parent / "demos" / "app.py").is_file():
        name = "demos.app"
        if str(package.parent) not in sys.path:
            sys.path.insert(0, str(package.parent))
    else:
        raise InputError(f"the demo is not in {package}; install the package again or use a checkout.")
    if importlib.util.find_spec("gradio") is None:
        raise InputError("the demo needs gradio 6.31 or later, which is not installed; pip install 'gradio>=6.31'.")
    return importlib.import_module(name)
