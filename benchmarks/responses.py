"""How long a person waits for an answer: help, errors, dry runs, a run that finds all done, and a stop.

python benchmarks/responses.py [--runs 5] [--json FILE]

Each is a fresh process, timed from its start to its end, beside the bare interpreter in the same run; a stop is timed
from the signal to the end of the process. Run it on a machine that does nothing else.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIST = "target,kind,tags\ntwemoji,style,flat\nbomb,violence,\nguitar,object,flat\n"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "concept_erase", *arguments]


def seconds(line: list[str], codes: tuple[int, ...] = (0,)) -> float:
    started = time.perf_counter()
    code = subprocess.run(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode
    taken = time.perf_counter() - started
    assert code in codes, f"{line} ended with {code}"
    return taken


def stopped(line: list[str], number: int) -> float:
    """From the signal to the end; it is sent when the command tells of its first picture."""
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        for told in process.stderr:
            if '"pictures' in told:
                break
        started = time.perf_counter()
        process.send_signal(number)
        process.wait()
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = {}

    def row(name: str, measure) -> None:
        values = [measure() for _ in range(options.runs)]
        rows[name] = {"median_s": round(statistics.median(values), 3), "worst_s": round(max(values), 3)}
        ratio = rows[name]["median_s"] / rows["bare interpreter"]["median_s"]
        print(f"{name:<34}{rows[name]['median_s']:>8.3f} s   worst {rows[name]['worst_s']:.3f} s   {ratio:5.1f} x bare")

    with tempfile.TemporaryDirectory() as place:
        listed, out = Path(place) / "list.csv", Path(place) / "out"
        listed.write_text(LIST)
        row("bare interpreter", lambda: seconds([sys.executable, "-c", ""]))
        row("--help", lambda: seconds(command("--help")))
        row("erase --help", lambda: seconds(command("erase", "--help")))
        row("methods", lambda: seconds(command("methods")))
        row("error: a blank concept", lambda: seconds(command("erase", " "), (2,)))
        row("error: no such method", lambda: seconds(command("erase", "twemoji", "--method", "magic"), (2,)))
        row("batch --dry-run", lambda: seconds(command("batch", str(listed), "--out", str(out), "--dry-run")))
        again = command("batch", str(listed), "--out", str(out), "-n", "0", "--workers", "1", "--progress", "none")
        seconds(again)
        row("batch that finds all done", lambda: seconds(again))
        for number in (signal.SIGINT, signal.SIGTERM):
            drawing = command("erase", "twemoji", "-n", "400", "--out", str(Path(place) / "e"), "--progress", "json")
            row(f"{number.name} while drawing", lambda line=drawing, number=number: stopped(line, number))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
