"""A real list through `concept-erase batch`, one command: seconds, memory of all its processes, disk, and what failed.

    python benchmarks/lists.py LIST                       # on the embedded generator
    python benchmarks/lists.py LIST --layout sd14 --work DIR --set bare=true --anchor art

The second run of the same command, which finds everything done, is timed as well. With `--layout sd14` the base is
Stable Diffusion 1.4 in layout and size with random weights: what a closed form costs depends on shapes alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from closed_form import MIB, write_layout


def timed(command: list[str]) -> tuple[float, float, float, int]:
    """Wall seconds, CPU seconds and the largest memory in MiB of all processes together, and the exit code.

    Memory is the proportional set size: pages that processes share, such as mapped weights, count once.
    """
    started, peak, before = time.monotonic(), 0, os.times()
    with subprocess.Popen(command) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            total = 0
            for one in [watched, *_children(watched)]:
                try:
                    total += one.memory_full_info().pss
                except psutil.Error:
                    continue
            peak = max(peak, total)
            time.sleep(1.0)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.monotonic() - started, cpu, peak / MIB, process.returncode


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def size_of(folder: Path) -> float:
    """MiB of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / MIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("list", type=Path)
    parser.add_argument("--layout", choices=("embedded", "sd14"), default="embedded")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="NAME=VALUE")
    parser.add_argument("--anchor", help="what rows that name none become; chosen for each if not given")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--pictures", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where model and results go; a temporary folder if not given")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        out = work / f"{options.list.stem}-{options.layout}"
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-m", "concept_erase", "batch", str(options.list), "--out", str(out)]
        command += ["--pictures", str(options.pictures), "--workers", str(options.workers)]
        command += ["--anchor", options.anchor] if options.anchor else []
        command += [part for setting in options.settings for part in ("--set", setting)]
        if options.layout == "sd14":
            folder = work / "sd14"
            if not folder.is_dir():
                write_layout(folder, "full")
            command += ["--model", str(folder), "--half"]
        seconds, cpu, peak, code = timed(command)
        index = json.loads((out / "index.json").read_text())
        whole = next((joint for joint in index["joint"] if joint["tag"] == "all"), None)
        again, *_ = timed(command)
        states = [entry["state"] for entry in index["entries"]]
        adapters = [entry["bytes"] for entry in index["entries"] if entry["state"] == "done"]
        result = {
            "list": options.list.name,
            "base": options.layout,
            "settings": options.settings,
            "anchor": options.anchor,
            "pictures": options.pictures,
            "workers": options.workers,
            "exit_code": code,
            "concepts": len(states),
            "done": states.count("done"),
            "failed": states.count("failed"),
            "seconds": round(seconds, 1),
            "cpu_seconds": round(cpu, 1),
            "peak_mib": round(peak),
            "disk_mib": round(size_of(out), 1),
            "adapter_kib": round(sum(adapters) / max(1, len(adapters)) / 1024, 1),
            "joint_rank": whole and whole["rank"],
            "joint_mib": whole and round(whole["bytes"] / MIB, 1),
            "second_run_seconds": round(again, 1),
            "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        }
    print(json.dumps(result, indent=1))
    if options.json:
        known = json.loads(options.json.read_text()) if options.json.is_file() else []
        same = ("list", "base", "settings")
        kept = [r for r in known if any(r[key] != result[key] for key in same)]
        options.json.write_text(json.dumps([*kept, result], indent=1) + "\n")


if __name__ == "__main__":
    main()
