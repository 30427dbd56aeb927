"""Runs one command of concept_erase and ends with the demo that started it.

The demo holds the other end of standard input open and never writes to it. When the demo dies, however it dies, reading
ends, and this process group is asked to stop and then killed: no work goes on unseen. A script, run by `jobs.py`.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

GRACE = 0.8  # seconds between asking and killing


def _stop(how: int) -> None:
    if hasattr(os, "killpg"):
        os.killpg(os.getpgrp(), how)
    else:
        os._exit(130)


def _watch() -> None:
    while os.read(0, 1):  # nobody writes; an empty answer means that the demo is gone
        pass
    _stop(signal.SIGTERM)
    time.sleep(GRACE)
    _stop(getattr(signal, "SIGKILL", signal.SIGTERM))


def main() -> None:
    """Watch standard input, then be `python -m concept_erase` with the remaining arguments."""
    if hasattr(os, "setpgid") and os.getpgrp() != os.getpid():
        os.setpgid(0, 0)  # killing the group must never reach whoever started us
    threading.Thread(target=_watch, daemon=True).start()
    sys.argv = ["concept-erase", *sys.argv[1:]]
    runpy.run_module("concept_erase", run_name="__main__")


if __name__ == "__main__":
    main()
