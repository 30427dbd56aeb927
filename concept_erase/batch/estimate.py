"""What a batch will take, before it is started: disk exactly enough, time roughly. No torch: a dry run is quick."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import shutil
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from operator import or_
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from concept_erase import embedded, nonsense, typed
from concept_erase.batch.units import pictures_of
from concept_erase.errors import InputError
from concept_erase.families import family_of
from concept_erase.lists import Listing
from concept_erase.methods import Description, describe
from concept_erase.schema import Job

OVERHEAD = 11_000  # bytes of a folder beside the tensors: headers, card, report
MEMBER = 1_500  # bytes of each further concept of a joint adapter: named in its headers, card and report
ROW = 3_000  # bytes of a row of the index, in both forms
PAGE = 150_000  # bytes of an empty index and of the drawn interference
PICTURE = 90_000  # bytes of a before/after picture
TRIED = 4 * 16  # pictures of candidates for an anchor, or at strengths, where the first ones do not pass
Shape = tuple[int, int]  # (d_out, d_in) of a layer
_PLAIN: dict[str, Any] = {"int": int, "float": float, "bool": bool, "None": None}  # others are checked by the run
JUDGED = 60  # passes of the denoiser in which it judges a picture of about 10 styles and 20 things, as other bases have
START = 6.0  # seconds until a worker has imported what it needs and opened a base


@dataclass(frozen=True)
class Estimate:
    """Of a whole batch.

    Attributes:
        concepts, joints: How many adapters of each.
        adapter: Bytes of one adapter, 0 if the base's layout is not on disk.
        disk: Bytes of all that is left in the end.
        free: Bytes that are free there.
        pictures: How many are drawn at most: where it is not clear whether the base knows a concept, it looks closely.
        seconds: With all workers; None if nothing is known of the base.
        basis: Where the time comes from, in words.
    """

    concepts: int
    joints: int
    adapter: int
    disk: int
    free: int
    pictures: int
    seconds: float | None
    basis: str


def estimate(listing: Listing, job: Job, out: Path, workers: int) -> Estimate:
    """Disk from the shapes of the layers that the method changes; time from earlier runs in this folder, or roughly
    from the arithmetic that encoding and drawing take and a moment's measurement of this machine.

    Raises:
        InputError: a setting that does not fit, or a folder of a base that cannot be read.
    """
    folder = embedded.folder() / "base" if job.model in (None, embedded.NAME) else Path(str(job.model)).expanduser()
    concepts = len(listing.entries)
    groups = [g for g in _groups(listing, job) if job.joint]
    plans = {name: _Plan.of(name, job.settings if name == job.method else {}) for name in _methods(listing, job)}
    place = next(p for p in (out, *out.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(place).free
    pictures = _pictures(listing, job, groups)
    if not folder.is_dir():
        return Estimate(concepts, len(groups), 0, 0, free, pictures, None, f"{job.model} is not on this disk")
    try:
        layers = {name: _layers(folder, plan) for name, plan in plans.items()}
        count = Counter(entry.method or job.method for entry in listing.entries)
        work = sum(n * _encoding(folder, plans[name]) for name, n in count.items())
        work += pictures * _drawing(folder, job)
    except InputError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise InputError(
            f"{folder} cannot be read as a base ({type(error).__name__}: {error}); pass the folder of a diffusers "
            "pipeline, or fetch it again."
        ) from error
    size = 2 if job.half else 4
    picture = PICTURE if job.pictures else 0
    disk = PAGE + concepts * ROW
    for members in [*(Counter({entry.method or job.method: 1}) for entry in listing.entries), *groups]:
        number = sum(members.values())
        disk += _bytes(members, plans, layers, size) + OVERHEAD + MEMBER * (number - 1) + picture
    known = _measured(out)
    if known:
        seconds, basis = START + concepts * known / workers, "earlier units in this folder"
    else:
        seconds = START + work / _speed() * max(1.0, (os.cpu_count() or 1) / workers)
        basis = "a rough count of operations"
    adapter = size * plans[job.method].rank(1, layers[job.method]) * sum(map(sum, layers[job.method]))
    return Estimate(concepts, len(groups), adapter, disk, free, pictures, seconds, basis)


@dataclass(frozen=True)
class _Plan:
    """A method as its source describes it, with its settings, defaults filled in."""

    description: Description
    settings: dict[str, Any]

    @staticmethod
    def of(name: str, given: dict[str, Any]) -> _Plan:
        """Settings are checked as far as that goes without importing the method.

        Raises:
            InputError: an unknown setting, or a value that does not fit.
        """
        described = describe(name)
        types = {setting: annotation for setting, annotation, _, _ in described.settings}
        settings = {n: None if default == "None" else default for n, _, default, _ in described.settings}
        for key, value in given.items():
            if key not in types:
                raise InputError(f"method {name} has no setting {key!r}; it has {', '.join(types)}.")
            wanted: Any = reduce(or_, (_PLAIN.get(part.strip(), Any) for part in types[key].split("|")))
            try:
                settings[key] = TypeAdapter(wanted).validate_python(value)
            except ValidationError as error:
                raise InputError(f"setting {key} of {name} is {value!r}: {error.errors()[0]['msg']}.") from error
        return _Plan(described, settings)

    @property
    def trained(self) -> bool:
        return bool(self.settings.get("steps"))

    def rank(self, members: int, layers: Sequence[Shape]) -> int:
        """Of an adapter for so many concepts: solved jointly no higher than the stream is wide, composed the sum."""
        width = max((shape[1] for shape in layers), default=1)
        one = int(self.settings.get("rank") or width)
        return members * one if self.trained else min(members * one, width)


def _methods(listing: Listing, job: Job) -> list[str]:
    return sorted({job.method, *(entry.method or job.method for entry in listing.entries)})


def _groups(listing: Listing, job: Job) -> list[Counter[str]]:
    """For each joint adapter, how many of its concepts are erased by which method; all concepts first."""
    groups: dict[str | None, Counter[str]] = {None: Counter()}
    for entry in listing.entries:
        for tag in (None, *(tag.casefold() for tag in entry.tags)):
            groups.setdefault(tag, Counter())[entry.method or job.method] += 1
    return list(groups.values())


def _bytes(members: Counter[str], plans: dict[str, _Plan], layers: dict[str, list[Shape]], size: int) -> int:
    """Of the tensors of one adapter, and of its operator on the text stream; all layers have the largest rank."""
    rank = max(plans[name].rank(n, layers[name]) for name, n in members.items())
    total = size * rank * sum(sum(shape) for name in members for shape in layers[name])
    (first, *others) = members
    if not others and not plans[first].trained and plans[first].description.edits == "denoiser":
        total += 4 * rank * 2 * max(shape[1] for shape in layers[first])
    return total


def _layers(folder: Path, plan: _Plan) -> list[Shape]:
    """Shapes of all layers that a method changes."""
    index = json.loads((folder / "model_index.json").read_text())
    family = family_of(str(index["_class_name"]), [name for name in index if (folder / name).is_dir()])
    found = []
    for site in family.encoder if plan.description.edits == "text encoder" else family.streams:
        for name, shape in _shapes(folder / site.component):
            if name.endswith(".weight") and re.search(site.pattern, name.removesuffix(".weight")):
                found.append(shape)
    return found


def _shapes(component: Path) -> Iterator[tuple[str, Shape]]:
    """Names and shapes from the headers of a component's safetensors files; full precision before variants."""
    seen: set[str] = set()
    for file in sorted(component.glob("*.safetensors"), key=lambda p: len(p.name.split("."))):
        with file.open("rb") as stream:
            length = struct.unpack("<Q", stream.read(8))[0]
            if length > file.stat().st_size:
                raise ValueError(f"{file.name} is cut short")
            header = json.loads(stream.read(length))
        for name, tensor in header.items():
            if name not in seen and name != "__metadata__" and len(tensor["shape"]) == 2:
                seen.add(name)
                yield name, (int(tensor["shape"][0]), int(tensor["shape"][1]))


def _pictures(listing: Listing, job: Job, groups: Sequence[Counter[str]]) -> int:
    """How many are drawn at most, over all concepts and joint adapters.

    Each concept: four groups of its scores, candidates for its anchor, strengths, and what the first look takes beyond
    the scores.
    Each shape of names: nonsense, which concepts of one kind share.
    """
    if not job.pictures:
        return 0
    own, null = _closest_look()
    each = 4 * job.pictures + max(0, own - job.pictures)
    tried = TRIED * sum(1 + (entry.anchor is None) for entry in listing.entries)
    shapes = {(entry.kind, nonsense.shape(entry.target)) for entry in listing.entries}
    joint = sum(4 * pictures_of(job, sum(members.values())) for members in groups)
    return len(listing.entries) * each + tried + len(shapes) * null + joint


@cache
def _closest_look() -> tuple[int, int]:
    """Pictures of a concept, and of nonsense names, that are looked at where it is least clear whether it is known.

    Read from the sources: to import them would load torch.
    """
    found: dict[str, Any] = {"__builtins__": {}}
    for module in ("scores", "knowledge"):
        source = (Path(__file__).parent.parent / f"{module}.py").read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("NULL", "CLOSE"):
                found[ast.unparse(node.targets[0])] = eval(ast.unparse(node.value), found)
    own, blocks = found["CLOSE"]
    return own, blocks * found["NULL"]


def _encoding(folder: Path, plan: _Plan) -> float:
    """Floating-point operations for one concept's edit: prompts through the text encoder, and the solve."""
    text = json.loads((folder / "text_encoder" / "config.json").read_text())
    width, deep, inner = text["hidden_size"], text["num_hidden_layers"], text["intermediate_size"]
    positions = text["max_position_embeddings"]
    one_prompt = 2.0 * deep * (4 * width**2 + 2 * width * inner) * positions
    settings = plan.settings
    prompts = 1.0 if str(settings.get("bare")).lower() == "true" else 1 + 5 * float(settings.get("contexts") or 24)
    if plan.trained:  # forward and backward over two batches
        batch = float(settings.get("forget_batch") or 8) + float(settings.get("retain_batch") or 8)
        return 3 * float(settings["steps"]) * batch * one_prompt
    return (1 if settings.get("strength") else 2) * prompts * one_prompt + 20 * 8.0 * width**3


def _drawing(folder: Path, job: Job) -> float:
    """Floating-point operations for one picture through the denoiser, also where that judges it."""
    unet = json.loads((folder / "unet" / "config.json").read_text())
    sizes = sum(p.stat().st_size for p in (folder / "unet").glob("*.safetensors"))
    weights = sizes / (2 if folder == embedded.folder() / "base" else 4)
    judged = JUDGED if typed.scorer(job.scorer)[0] else 0
    return 2.0 * weights * unet["sample_size"] ** 2 / 10 * (2 * job.steps + judged)


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
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None
