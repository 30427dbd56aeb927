"""The demo as a process of its own, with every way out of the machine watched."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]
APP = ROOT / "demos" / "app.py"
# Whether the screenshots of the repository are made: then the demo's own defaults hold.
FOR_SHOW = os.environ.get("CONCEPT_ERASE_SCREENSHOTS") == "1"
# Small enough for a test, large enough that the judge is sure: of what is drawn in 6 steps it names as much as in 10.
SIZE = () if FOR_SHOW else ("--pictures", "8", "--steps", "6")
PATIENCE = 300.0  # seconds until a fresh demo answers, on a busy machine


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Trap:
    """A proxy that lets nothing through and remembers who wanted out: request lines, in order."""

    def __init__(self) -> None:
        self._calls: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(5)
            line = connection.recv(65536).split(b"\r\n", 1)[0].decode(errors="replace")
            self._calls.append(line)
            connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    def take(self) -> list[str]:
        """The request lines seen since the last time this was asked."""
        calls, self._calls = self._calls, []
        return calls

    def close(self) -> None:
        self._listener.close()


def environment(trap: Trap) -> dict[str, str]:
    """Ours, but the only proxy is the trap and nothing says that the hub is off-line: what a stranger's shell has."""
    ours = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and k != "HF_HUB_OFFLINE"}
    ours |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), trap.url)
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return ours | {"PYTHONPATH": os.pathsep.join(places), "PYTHONUNBUFFERED": "1"}


class Demo:
    """`python demos/app.py` on a folder and a free port.

    Args:
        folder: Where the demo keeps its jobs and adapters.
        trap: What it has for a proxy.
        options: Further options of the command line.
    """

    def __init__(self, folder: Path, trap: Trap, *options: str) -> None:
        self.folder, self.trap, self.options = folder, trap, options
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder.parent / f"{folder.name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Demo":
        """Start it, or start it again on the same folder and port; returns when it answers."""
        command = [sys.executable, str(APP), "--port", str(self.port), "--folder", str(self.folder), *SIZE]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *self.options], stdout=log, stderr=log, env=environment(self.trap), cwd=self.folder.parent,
                start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise AssertionError(f"the demo ended with {self._process.returncode}:\n{self.tail()}")
            with contextlib.suppress(OSError):
                # 401 and redirects are answers too: a demo with a login.
                with contextlib.suppress(urllib.error.HTTPError):
                    opener().open(self.url, timeout=5).close()
                return self
            time.sleep(0.1)
        self.kill()
        raise AssertionError(f"the demo did not answer within {PATIENCE:.0f} s:\n{self.tail()}")

    def stop(self) -> int | None:
        """Ask it to end, as Ctrl-C does; returns its exit code."""
        if self._process is None:
            return None
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(20)
        finally:
            self.kill()
        return self._process.returncode

    def kill(self) -> None:
        """kill -9 for it and all that it started: nothing gets to tidy up."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def workers(self) -> list[int]:
        """Ids of the processes that work for this folder, other than the demo itself."""
        mine = str(self.folder).encode()
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended while we looked
                known = (place / "cmdline").read_bytes()
                if mine in known and b"app.py" not in known:
                    found.append(int(place.name))
        return found

    def finished(self) -> dict[Path, int]:
        """The report of each finished erasure, and when it was written."""
        return {p: p.stat().st_mtime_ns for p in self.folder.glob("[eb]*/**/report.json")}

    def tail(self, lines: int = 60) -> str:
        """The end of what it printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""


def opener() -> urllib.request.OpenerDirector:
    """Requests of our own, past every proxy."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))
