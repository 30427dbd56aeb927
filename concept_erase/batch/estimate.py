"""What a batch will take, before it is started: disk exactly enough, time roughly. No torch: a dry run is quick."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from concept_erase import embedded
from concept_erase.families import family_of
from concept_erase.lists import Listing
from concept_erase.methods import describe
from concept_erase.schema import Job

OVERHEAD = 9_000  # bytes beside the tensors: header, card, report
PICTURE = 90_000  # bytes of a before/after picture
START = 6.0  # seconds until a worker has imported what it needs and opened a base


@dataclass(frozen=True)
class Estimate:
    """Of a whole batch.

    Attributes:
        concepts, joints: How many adapters of each.
        adapter: Bytes of one adapter, 0 if the base's layout is not on disk.
        disk: Bytes of all that is left in the end.
        free: Bytes that are free there.
        seconds: With all workers; None if nothing is known of the base.
        basis: Where the time comes from, in words.
    """

    concepts: int
    joints: int
    adapter: int
    disk: int
    free: int
    seconds: float | None
    basis: str


def estimate(listing: Listing, job: Job, out: Path, workers: int) -> Estimate:
    """Disk from the shapes of the layers that the method changes; time from earlier runs in this folder, or roughly
    from the arithmetic that encoding and drawing take and a moment's measurement of this machine.

    Raises:
        InputError: the base's folder has an unknown layout.
    """
    folder = embedded.folder() / "base" if job.model in (None, embedded.NAME) else Path(str(job.model)).expanduser()
    concepts = len(listing.entries)
    joints = len({tag.casefold() for entry in listing.entries for tag in entry.tags}) + 1 if job.joint else 0
    place = next(p for p in (out, *out.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(place).free
    if not folder.is_dir():
        return Estimate(concepts, joints, 0, 0, free, None, f"{job.model} is not on this disk")
    adapter = _adapter_bytes(folder, job)
    disk = concepts * (adapter + OVERHEAD + (PICTURE if job.pictures else 0)) + joints * 8 * adapter
    known = _measured(out)
    if known:
        seconds, basis = START + concepts * known / workers, "earlier units in this folder"
    else:
        work = concepts * _operations(folder, job)
        seconds = START + work / _speed() * max(1.0, (os.cpu_count() or 1) / workers)
        basis = "a rough count of operations"
    return Estimate(concepts, joints, adapter, disk, free, seconds, basis)


def _adapter_bytes(folder: Path, job: Job) -> int:
    family = family_of(json.loads((folder / "model_index.json").read_text())["_class_name"])
    settings = _settings(job)
    sites = family.encoder if describe(job.method).edits == "text encoder" else family.streams
    rank = int(settings.get("rank") or 0)
    total = 0
    for site in sites:
        for name, shape in _shapes(folder / site.component):
            if re.search(site.pattern, name.removesuffix(".weight")) and name.endswith(".weight"):
                total += sum(shape) * min(rank or min(shape), *shape)
    return total * (2 if job.half else 4)


def _shapes(component: Path) -> Iterator[tuple[str, list[int]]]:
    """Names and shapes from the headers of a component's safetensors files; full precision before variants."""
    seen: set[str] = set()
    for file in sorted(component.glob("*.safetensors"), key=lambda p: len(p.name.split("."))):
        with file.open("rb") as stream:
            header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
        for name, tensor in header.items():
            if name not in seen and name != "__metadata__" and len(tensor["shape"]) == 2:
                seen.add(name)
                yield name, tensor["shape"]


def _settings(job: Job) -> dict[str, Any]:
    """The method's settings with their defaults, as texts or values."""
    defaults = {name: None if default == "None" else default for name, _, default, _ in describe(job.method).settings}
    return {**defaults, **job.settings}


def _operations(folder: Path, job: Job) -> float:
    """Floating-point operations for one concept: prompts through the text encoder, pictures through the denoiser."""
    text = json.loads((folder / "text_encoder" / "config.json").read_text())
    width, deep, inner = text["hidden_size"], text["num_hidden_layers"], text["intermediate_size"]
    positions = text["max_position_embeddings"]
    one_prompt = 2.0 * deep * (4 * width**2 + 2 * width * inner) * positions
    settings = _settings(job)
    prompts = 1.0 if str(settings.get("bare")).lower() == "true" else 1 + 5 * float(settings.get("contexts") or 24)
    if settings.get("steps"):  # trained: forward and backward over two batches
        batch = float(settings.get("forget_batch") or 8) + float(settings.get("retain_batch") or 8)
        encoding = 3 * float(settings["steps"]) * batch * one_prompt
    else:
        encoding = (1 if settings.get("strength") else 2) * prompts * one_prompt + 20 * 8.0 * width**3
    unet = json.loads((folder / "unet" / "config.json").read_text())
    sizes = sum(p.stat().st_size for p in (folder / "unet").glob("*.safetensors"))
    weights = sizes / (2 if folder == embedded.folder() / "base" else 4)
    one_picture = 2.0 * weights * unet["sample_size"] ** 2 / 10 * 2 * job.steps
    return encoding + (4 * job.pictures + (16 if job.pictures else 0)) * one_picture


def _speed() -> float:
    """Floating-point operations a second that this machine's cores do together on such work, roughly."""
    import numpy as np

    a = np.ones((768, 768), dtype=np.float32)
    best = math.inf
    for _ in range(4):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 0.35 * 2 * 768**3 / best  # attention, convolutions and small products reach about a third of it


def _measured(out: Path) -> float | None:
    """Seconds of one worker per concept, over the units that were done in this folder before."""
    try:
        lines = (out / ".work" / "times.jsonl").read_text().splitlines()
        times = [json.loads(line) for line in lines]
        return sum(t["seconds"] for t in times) / sum(t["concepts"] for t in times)
    except (OSError, ValueError, KeyError, ZeroDivisionError):
        return None
