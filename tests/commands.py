"""The command line as a program of its own, watched by the progress it tells."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from conftest import ROOT


class Command:
    """`python -m concept_erase ... --progress json`, started in a process group of its own.

    Attributes:
        events: What it told on standard error so far, one object a line.
        stderr: The lines that were no such object.
    """

    def __init__(self, *arguments) -> None:
        places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "COLUMNS": "200"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "concept_erase", *map(str, arguments), "--progress", "json"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
        )  # fmt: skip
        self.pid = self._process.pid
        self.events: list[dict] = []
        self.stderr: list[str] = []
        self._output: list[str] = []
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._hear, self._read)]
        for reader in self._readers:
            reader.start()

    def _hear(self) -> None:
        for line in self._process.stderr:
            try:
                event = json.loads(line)
                self.events.append({"at": time.monotonic(), **event})
            except (ValueError, TypeError):
                self.stderr.append(line)

    def _read(self) -> None:
        for line in self._process.stdout:
            self._output.append(line)

    @property
    def stdout(self) -> str:
        return "".join(self._output)

    def until(self, what: str, done: int = 0, patience: float = 600) -> None:
        """Wait until it tells of a step, `what` being how its name begins."""
        deadline = time.monotonic() + patience
        while not any(e.get("what", "").startswith(what) and e["done"] >= done for e in self.events):
            assert self._process.poll() is None, f"ended with {self._process.returncode}: {self.events} {self.stderr}"
            assert time.monotonic() < deadline, f"no {what!r} in {patience} s: {self.events} {self.stderr}"
            time.sleep(0.005)

    def until_output(self, text: str, patience: float = 600) -> None:
        """Wait until it prints something."""
        deadline = time.monotonic() + patience
        while text not in self.stdout:
            assert self._process.poll() is None, f"ended with {self._process.returncode}: {self.events} {self.stderr}"
            assert time.monotonic() < deadline, f"no {text!r} in {patience} s"
            time.sleep(0.005)

    def wait(self, patience: float = 600) -> int:
        """Its exit code; everything it told is there then."""
        try:
            code = self._process.wait(patience)
        finally:
            with contextlib.suppress(ProcessLookupError):
                if self._process.poll() is None:
                    self._process.kill()
        for reader in self._readers:
            reader.join(10)
        return code


def list_file(folder: Path, *rows) -> Path:
    """A list of these rows, as JSON."""
    file = folder / "list.json"
    file.write_text(json.dumps(rows))
    return file
