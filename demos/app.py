"""The demo: `concept-erase demo`, `python demos/app.py` or `python -m demos.app`.

A page on this computer, for people who have never seen a command line. Nothing is fetched from anywhere; work is done
in a queue of processes that survives a restart.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if __package__ in (None, ""):  # run as a file: be the package `demos` of the checkout around it
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    __package__ = "demos"
    import demos  # noqa: F401

from concept_erase.errors import ConceptEraseError, InputError

if TYPE_CHECKING:
    import gradio as gr

    from .studio import Studio

PORT = 7860
LOCAL = ("127.0.0.1", "localhost", "::1")
AUTH_VARIABLE = "CONCEPT_ERASE_DEMO_AUTH"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, serve until interrupted; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="demos/app.py", description="Make a generator forget a concept, in the browser."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on; any but this computer's needs --auth")
    parser.add_argument("--port", type=int, default=None, help=f"port; {PORT} or the next free one if not given")
    parser.add_argument("--auth", default=None, help=f"USER:PASSWORD; better in the variable {AUTH_VARIABLE}")
    parser.add_argument("--auth-file", type=Path, default=None, help="file with one line USER:PASSWORD")
    parser.add_argument("--folder", type=Path, default=None, help="where results and the queue are kept")
    parser.add_argument(
        "--model", default=None, help="folder or hub name of a base; the embedded generator if not given"
    )
    parser.add_argument("--pictures", type=int, default=60, help="pictures to score on, unless the page says otherwise")
    parser.add_argument("--steps", type=int, default=25, help="denoising steps, unless the page says otherwise")
    a = parser.parse_args(argv)
    try:
        serve(
            a.host,
            a.port,
            auth=a.auth,
            auth_file=a.auth_file,
            folder=a.folder,
            model=a.model,
            pictures=a.pictures,
            steps=a.steps,
        )
    except ConceptEraseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 74
    return 0


def serve(
    host: str = "127.0.0.1",
    port: int | None = None,
    *,
    auth: str | None = None,
    auth_file: Path | None = None,
    folder: Path | None = None,
    model: str | None = None,
    pictures: int = 60,
    steps: int = 25,
) -> None:
    """Serve until interrupted; see `launch`."""
    page, address = launch(
        host, port, auth=auth_of(auth, auth_file), folder=folder, model=model, pictures=pictures, steps=steps
    )
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        print(f"The demo is at {address}  (Ctrl-C stops it; work goes on at the next start)", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        page.studio.close()  # type: ignore[attr-defined]
        page.close(verbose=False)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def launch(
    host: str = "127.0.0.1",
    port: int | None = None,
    *,
    auth: tuple[str, str] | None = None,
    folder: Path | str | None = None,
    model: str | None = None,
    pictures: int = 60,
    steps: int = 25,
) -> tuple[gr.Blocks, str]:
    """Start the demo in the background.

    Args:
        host: Any other than this computer's own requires `auth`.
        port: None for 7860 or the next free one.
        auth: User and password.
        folder: The demo's own folder; `concept_erase_studio` in the working directory if None.
        model: Generator to begin with.
    Returns:
        The page (its `studio` attribute does the work; close both), and its address.
    Raises:
        InputError: a host that others can reach, without `auth`.
        BusyError: another demo works in the folder.
    """
    local = host in LOCAL
    if not local and auth is None:
        raise InputError(
            f"{host} can be reached by others and no password is set; pass --auth USER:PASSWORD (or {AUTH_VARIABLE}, "
            "or --auth-file), or leave --host away."
        )
    root = Path(folder or "concept_erase_studio").expanduser().resolve()
    _quiet_gradio(root)
    from .models import check_source
    from .studio import Defaults, Studio

    studio = Studio(root, local=local, defaults=Defaults(pictures, steps, check_source(model, local=local)))
    try:
        page = build(studio)
        address = _serve(page, studio, host, port or free_port(host), auth)
    except BaseException:
        studio.close()
        raise
    return page, address


def _quiet_gradio(root: Path) -> None:
    """Settings that Gradio reads when it is imported or launched: nothing leaves this computer."""
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]  # such as GRADIO_ALLOWED_PATHS, which opens folders when none are given here
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(root / "uploads")
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("NO_PROXY", "no_proxy"):  # Gradio asks its own address at start, never through a proxy
        known = [part for part in os.environ.get(name, "").split(",") if part]
        os.environ[name] = ",".join(dict.fromkeys([*known, "127.0.0.1", "localhost", "::1"]))


def build(studio: Studio) -> gr.Blocks:
    """The page."""
    from .page import compose

    page = compose(studio)
    page.studio = studio  # type: ignore[attr-defined]
    return page


def _serve(page: gr.Blocks, studio: Studio, host: str, port: int, auth: tuple[str, str] | None) -> str:
    from starlette.middleware import Middleware

    from . import theme
    from .guard import LOCAL_HOSTS, Guard
    from .places import Renamed
    from .uploads import FILE_LIMIT, room

    hosts = LOCAL_HOSTS if studio.local else None
    page.queue(default_concurrency_limit=4, max_size=200)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        auth=auth,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        inbrowser=False,
        show_error=False,
        theme=theme.Quiet(),
        css=theme.style(),
        head=theme.head(),
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        max_file_size=FILE_LIMIT,
        allowed_paths=[],
        blocked_paths=[str(studio.root / name) for name in ("erasures", "batches", "jobs")],
        app_kwargs={
            "middleware": [
                Middleware(Guard, hosts=hosts, room=lambda: room(studio.uploads)),
                Middleware(Renamed, root=studio.root),
            ],
            "docs_url": None,
            "redoc_url": None,
        },
    )
    return address


def auth_of(text: str | None, file: Path | None) -> tuple[str, str] | None:
    """User and password from an option, a file or the environment.

    Raises:
        InputError: not of the form USER:PASSWORD, or the file cannot be read; the text itself is never shown.
    """
    if text is None and file is not None:
        try:
            text = file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise InputError(f"the password file {file} cannot be read; write one line USER:PASSWORD.") from error
    text = text if text is not None else os.environ.get(AUTH_VARIABLE) or None
    if text is None:
        return None
    user, found, password = text.partition(":")
    if not (found and user and password):
        raise InputError("the password is not of the form USER:PASSWORD; write both, with a colon between.")
    return user, password


def free_port(host: str) -> int:
    """7860, or the next port that nobody listens on.

    Raises:
        OSError: a hundred are taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in range(PORT, PORT + 100):
        with socket.socket(family) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise OSError(f"ports {PORT} to {PORT + 99} are all taken; pass --port.")


if __name__ == "__main__":
    sys.exit(main())
