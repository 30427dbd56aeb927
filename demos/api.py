"""The calls for programs (`gradio_client`); documented in README.md. Every argument is taken as hostile.

The signatures are what a client sees, so they are loose; the checks are those of the studio.
"""

from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
from gradio_client import utils as client_utils

from concept_erase.errors import ConceptEraseError, InputError

from . import batches, shelf
from .jobs import DONE, Job, unknown
from .library import Item, zipped
from .places import unplaced, without_places
from .studio import Studio
from .tabs.common import sentence


def add(studio: Studio) -> None:
    """Register every call."""
    for call in calls(studio):
        drawing = call.__name__ in ("compare", "recognise", "compose", "interference")
        gr.api(
            _told(call),
            api_name=call.__name__,
            api_description=" ".join(str(call.__doc__).split()),
            concurrency_limit=1 if drawing else 4,
            concurrency_id="draw" if drawing else None,
        )


def calls(studio: Studio) -> list[Any]:
    """The functions, bound to a studio."""

    def erase(
        targets: list[str],
        kind: str = "style",
        preserve: list[str] = [],  # noqa: B006  read only
        anchor: str = "",
        method: str = "uce",
        settings: dict = {},  # noqa: B006
        pictures: float = -1,
        steps: float = -1,
        model: str = "",
        scorer: str = "",
        half: bool = False,
        force: bool = False,
    ) -> dict:
        """Queue an erasure; returns its job. The same request returns the same job. -1 is the demo's default.

        A job whose concept the generator does not seem to know fails and is `refused`, unless `force` is true.
        """
        numbers = (_given(pictures), _given(steps))
        job = studio.erase(targets, kind, preserve, anchor, method, settings, *numbers, model, scorer, half, force)
        return job_dict(studio, job)

    def job(id: str) -> dict:
        """State and progress of a job; once done, its adapter or batch."""
        return job_dict(studio, studio.queue.get(id))

    def cancel(id: str) -> dict:
        """Stop a job; returns it within two seconds."""
        return job_dict(studio, studio.queue.cancel(id))

    def download(id: str) -> dict:
        """A zip of an adapter of the library, or of a finished batch by the id of its job."""
        known = {job.id: job for job in studio.queue.jobs() if job.what == "batch"}
        if isinstance(id, str) and id in known and known[id].state == DONE:
            folder = studio.root / known[id].folder
            return _file(zipped([folder], studio.uploads / "downloads" / id / f"{folder.name}.zip"))
        return _file(shelf.export(studio, [id]))

    def compare(
        prompt: str, adapters: list[str], seed: float = 0, scale: float = 1.0, model: str = "", steps: float = -1
    ) -> dict:
        """Draw a prompt with the original and the erased generator: two PNG files, and what the judge sees."""
        drawn = studio.compare(prompt, seed, adapters, scale, model, _given(steps))
        place = studio.uploads / "downloads" / "compare"
        place.mkdir(parents=True, exist_ok=True)
        files = {}
        for side, image in (("original", drawn.original), ("erased", drawn.erased)):
            path = place / f"{side}-{hash((image.tobytes(), side)) & 0xFFFFFFFFFFFF:012x}.png"
            image.save(path)
            files[side] = _file(path)
        return {**files, "original_seen": drawn.original_seen, "erased_seen": drawn.erased_seen}

    def recognise(pictures: list[dict], model: str = "", scorer: str = "") -> dict:
        """Whether the generator knows the style of uploaded pictures (`handle_file`)."""
        found = studio.recognise(_paths(pictures), model, scorer)
        r = found.recognition
        return {
            "verdict": r.verdict.value,
            "nearest": r.nearest,
            "closeness": r.closeness,
            "knows_from": r.knows_from,
            "own": list(r.own),
            "foreign": list(r.foreign),
            "ranking": [list(pair) for pair in r.ranking],
            "refused": found.refused,
        }

    def check_list(
        file: dict,
        method: str = "uce",
        settings: dict = {},  # noqa: B006
        pictures: float = -1,
        steps: float = -1,
        model: str = "",
    ) -> dict:
        """Check an uploaded list (`handle_file`): entries, problems, time and disk, and its name for `batch`."""
        how = {"method": method, "settings": settings, "pictures": _given(pictures), "steps": _given(steps)}
        checked = batches.check(studio, _paths([file])[0], **how, model=model)
        plan = checked.estimate
        return {
            "list": checked.name,
            "entries": [e.model_dump(mode="json") for e in checked.listing.entries],
            "rows": list(checked.listing.rows),
            "problems": [{"row": p.row, "field": p.field, "message": p.message} for p in checked.listing.problems],
            "notices": list(checked.listing.notices),
            "plan": {"seconds": plan.seconds, "bytes": plan.disk, "joint": plan.joints} if plan else None,
        }

    def batch(
        list: str,
        title: str = "",
        method: str = "uce",
        settings: dict = {},  # noqa: B006
        pictures: float = -1,
        steps: float = -1,
        model: str = "",
        scorer: str = "",
        half: bool = False,
        force: bool = False,
    ) -> dict:
        """Queue a checked list; returns its job. Rows that the generator does not know fail unless `force` is true."""
        how = {"method": method, "settings": settings, "pictures": _given(pictures), "steps": _given(steps)}
        made = batches.submit(studio, list, title, force=force, **how, model=model, scorer=scorer, half=half)
        return job_dict(studio, made)

    def library() -> list[dict]:
        """All adapters, the newest first."""
        return [item_dict(item) for item in studio.library.items()]

    def compose(ids: list[str]) -> dict:
        """Several adapters as a new one."""
        return item_dict(shelf.compose(studio, ids))

    def interference(ids: list[str], model: str = "") -> dict:
        """How several adapters move each other's concepts."""
        return shelf.measure(studio, ids, model).summary()

    def delete(id: str) -> dict:
        """Delete an adapter of the library."""
        return item_dict(shelf.delete(studio, id))

    return [
        erase, job, cancel, download, compare, recognise, check_list, batch, library, compose, interference, delete,
    ]  # fmt: skip


def job_dict(studio: Studio, job: Job) -> dict:
    """What a client learns of a job."""
    seen = studio.queue.progress(job.id)
    item = studio.item_of(job) if job.what == "erase" and job.state == DONE else None
    running = job.state == "running"
    return {
        "id": job.id,
        "what": job.what,
        "title": job.title,
        "state": job.state,
        "message": job.message,
        "refused": unknown(job) is not None,
        "progress": {"what": seen.what, "done": seen.done, "total": seen.total, "left_s": seen.whole}
        if running
        else None,
        "adapter": item_dict(item) if item else None,
    }


def item_dict(item: Item) -> dict:
    """What a client learns of an adapter: no paths."""
    return {
        "id": item.id,
        "title": item.title,
        "concepts": item.report["concepts"],
        "origin": item.origin,
        "method": item.method,
        "base": item.report.get("base"),
        "scores": item.scores,
        "notes": item.report.get("notes"),
    }


def _told(call: Any) -> Any:
    """Errors on purpose reach the client in full, others without their insides."""

    @wraps(call)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return without_places(call(*args, **kwargs))
        except ConceptEraseError as error:
            raise gr.Error(unplaced(sentence(error)), print_exception=False) from None
        except Exception as error:
            raise gr.Error(unplaced(sentence(error))) from error

    return wrapped


def _given(number: object) -> object:
    return None if number == -1 else number


def _paths(files: object) -> list[Any]:
    """Paths of uploaded files as a client passes them; whether they are uploads at all is checked when they are read.

    Raises:
        InputError: not a list of files.
    """
    if not isinstance(files, list) or len(files) > 1000:
        raise InputError("upload files, and pass them as a list.")
    return [file.get("path") if isinstance(file, dict) else file for file in files]


def _file(path: Path) -> dict:
    """A file that the client fetches."""
    url = f"/gradio_api/file={client_utils.encode_file_path(str(path))}"
    return {"path": str(path), "url": url, "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}
