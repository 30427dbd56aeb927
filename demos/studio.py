"""What the demo can do, without a page: the tabs and the API call this, and everything they pass is checked here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from concept_erase import typed
from concept_erase.concepts import Kind, check_together
from concept_erase.errors import InputError
from concept_erase.names import file_name
from concept_erase.schema import Entry, build
from concept_erase.schema import Job as Settings

from . import forms
from .jobs import Job, Queue, job_id
from .library import Item, Library
from .models import Drawn, Generators, StoppedError, check_source
from .uploads import PICTURE_BYTES, emptied, keep_picture, open_picture, own_file, some_pictures

if TYPE_CHECKING:
    from PIL import Image

    from concept_erase.adapter import Adapter
    from concept_erase.methods import Progress
    from concept_erase.recognise import Recognition

MOST_TARGETS, MOST_PRESERVED, MOST_PICTURES, LONGEST_PROMPT = 40, 200, 2000, 1000
MOST_LOOKED = 1000  # pictures whose kept copies are remembered
MOST_SETTING = 200  # characters of one setting's value
SCORER = "'base' for the generator itself, NAME:TAG of open_clip, or a folder on this computer"
SCORER_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}:[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True)
class Defaults:
    """What the forms start with.

    Attributes:
        pictures: To score on, of each group.
        steps: Denoising steps of every picture.
        model: The generator; "" is the embedded one.
    """

    pictures: int = 60
    steps: int = 25
    model: str = ""


@dataclass(frozen=True, eq=False)
class Found:
    """Whether the generator knows the style of own pictures.

    Attributes:
        recognition: The answer.
        drawn: What the generator draws in the nearest style.
        pictures: The own pictures as they were kept.
        refused: One sentence for each file that was not.
    """

    recognition: Recognition
    drawn: list[Image.Image]
    pictures: list[Path]
    refused: list[str]


class Studio:
    """One folder, its queue, its library and its generators.

    Args:
        root: The demo's folder.
        local: Whether only this computer can reach the demo; folders may be named only then.
        defaults: What the forms start with.
    Raises:
        BusyError: another demo works in the folder.
    """

    def __init__(self, root: Path, *, local: bool = True, defaults: Defaults = Defaults()) -> None:
        self.root, self.local, self.defaults = root.resolve(), local, defaults
        for name in ("erasures", "batches", "uploads", "jobs"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        self.uploads = self.root / "uploads"
        self._looked: dict[tuple[str, int, int], Path] = {}
        self.library = Library(self.root)
        self.generators = Generators(self.root / "tiles", defaults.steps)
        self.queue = Queue(self.root, self.command, self.finished)
        emptied(self.uploads)  # the queue holds the folder now, so nobody else uses it

    def close(self) -> None:
        """Stop the running command; it goes on at the next start."""
        self.queue.close()

    # -- erase -------------------------------------------------------------------------------------------------

    def erase(
        self,
        targets: object,
        kind: object = Kind.STYLE,
        preserve: object = (),
        anchor: object = None,
        method: object = "uce",
        settings: object = None,
        pictures: object = None,
        steps: object = None,
        model: object = "",
        scorer: object = None,
        half: object = False,
        force: object = False,
    ) -> Job:
        """Queue an erasure; the same request returns the same job.

        Args:
            force: Erase also what the generator does not seem to know.

        Raises:
            InputError: anything that cannot be used as given, in words.
        """
        names = texts(targets, "what to forget", MOST_TARGETS)
        if not names:
            raise InputError("nothing to forget was named; pick or type at least one concept.")
        names, _ = typed.names(names, "what to forget:")
        kept, _ = typed.names(texts(preserve, "what must stay", MOST_PRESERVED), "what must stay:")
        anchor = typed.single(anchor, "what it becomes:") if isinstance(anchor, str) else None
        entries = [build(Entry, {"target": n, "kind": kind, "anchor": anchor, "preserve": kept}) for n in names]
        concepts, _ = check_together([entry.concept for entry in entries])
        chosen = self.settings(method, settings, pictures, steps, model, scorer, half)
        arguments = {
            "targets": [c.target for c in concepts],
            "kind": entries[0].kind.value,
            "anchor": concepts[0].anchor,
            "preserve": list(concepts[0].preserve),
            **chosen,
            **({"force": True} if force else {}),
        }
        title = ", ".join(arguments["targets"][:3]) + (" and more" if len(concepts) > 3 else "")
        return self._queued(arguments, f"Erasing {title}")

    def forced(self, key: str) -> Job:
        """A job that was refused because the generator does not know the concept, queued again to go on all the same.

        Raises:
            InputError: there is no such job.
        """
        job = self.queue.get(key)
        arguments = {**job.arguments, "force": True}
        return self._queued(arguments, job.title)

    def _queued(self, arguments: dict[str, Any], title: str) -> Job:
        folder = f"erasures/{file_name(arguments['targets'], also=[job_id('erase', arguments)])}"
        return self.queue.submit("erase", arguments, title, folder)

    def firmer(self, key: object, pictures: object) -> Job:
        """The same erasure as that of a job, tested on more pictures.

        Raises:
            InputError: there is no such job, or it was no erasure.
        """
        job = self.queue.get(key)  # type: ignore[arg-type]
        if job.what != "erase":
            raise InputError("this was no erasure; choose one from your library.")
        asked = {k: v for k, v in job.arguments.items() if k != "content"} | {"pictures": pictures}
        # These were asked about when they were typed.
        asked |= {name: [typed.one(each) for each in asked[name]] for name in ("targets", "preserve")}
        asked["anchor"] = typed.one(asked["anchor"]) if asked["anchor"] else None
        return self.erase(**asked)

    def settings(
        self,
        method: object,
        settings: object,
        pictures: object,
        steps: object,
        model: object,
        scorer: object,
        half: object,
    ) -> dict[str, Any]:
        """How to erase, checked, as plain values."""
        values = settings if isinstance(settings, dict) else {}
        if len(values) > 100 or any(len(str(k)) + len(str(v)) > MOST_SETTING for k, v in values.items()):
            raise InputError("the settings of the method are too many or too long; leave them as they are.")
        made = build(
            Settings,
            {
                "model": check_source(self.defaults.model if model is None else model, local=self.local) or None,
                "method": method or "uce",
                "pictures": self.defaults.pictures if pictures is None else pictures,
                "steps": self.defaults.steps if steps is None else steps,
                "scorer": self.scorer(scorer),
                "half": bool(half),
            },
        )
        if made.pictures > MOST_PICTURES:
            raise InputError(f"pictures is {made.pictures}; at most {MOST_PICTURES} can be asked for here.")
        changed = forms.changed(made.method, values)
        known = {field.name for field in forms.fields(made.method)}
        if unknown := sorted(set(changed) - known):
            raise InputError(f"method {made.method} has no setting {unknown[0]!r}; it has {', '.join(sorted(known))}.")
        plain = made.model_dump(include={"model", "method", "pictures", "steps", "scorer", "half"})
        return {**plain, "settings": changed, "content": content_of(made.model)}

    def scorer(self, scorer: object) -> str | None:
        """A scorer as the user names it: the base itself, an open_clip model, or both.

        Raises:
            InputError: a file or folder is named from afar, or nothing of the kind.
        """
        if scorer is None or scorer == "":
            return None
        if not isinstance(scorer, str) or len(scorer) > 1000 or "\0" in scorer or "://" in scorer:
            raise InputError(f"the scorer must be {SCORER}.")
        by_base, text = typed.scorer(scorer.strip())
        if by_base and not text:
            return typed.BASE
        text = text or ""
        exists = Path(text or " ").exists() or Path(text.partition(":")[2] or " ").exists()
        if (exists and self.local) or (not exists and SCORER_NAME.fullmatch(text)):
            return f"{typed.BASE}+{text}" if by_base else text
        raise InputError(f"the scorer {text[:100]!r} must be {SCORER}.")

    def command(self, job: Job) -> list[str]:
        """The arguments of `concept-erase` for a job; texts of users never stand where an option could."""
        a, out = job.arguments, self.root / job.folder
        shared = [
            f"--out={out}", "--progress=json", f"--method={a['method']}", f"--pictures={a['pictures']}",
            f"--steps={a['steps']}", *(f"--set={k}={'none' if v is None else v}" for k, v in a["settings"].items()),
            *([f"--model={a['model']}"] if a["model"] else []), *([f"--scorer={a['scorer']}"] if a["scorer"] else []),
            *(["--half"] if a["half"] else []), *(["--force"] if a.get("force") else []),
        ]  # fmt: skip
        if job.what == "erase":
            own = [f"--kind={a['kind']}", *([f"--anchor={typed.one(a['anchor'])}"] if a["anchor"] else [])]
            own += [f"--preserve={typed.one(p)}" for p in a["preserve"]]
            return ["erase", *shared, *own, "--", *map(typed.one, a["targets"])]
        return ["batch", *shared, "--", str(self.root / a["list"])]

    def finished(self, job: Job) -> bool:
        """Whether a job's result is complete on disk."""
        name = "report.json" if job.what == "erase" else "index.json"
        return (self.root / job.folder / name).is_file()

    def item_of(self, job: Job) -> Item | None:
        """The adapter that a finished erasure made."""
        return self.library.of_folder(self.root / job.folder)

    # -- own pictures ------------------------------------------------------------------------------------------

    def look(self, path: object) -> Path:
        """One uploaded picture, checked and kept as pixels alone; a second look at the same file costs nothing.

        Raises:
            InputError: it cannot be used.
        """
        file = own_file(path, self.uploads, PICTURE_BYTES)
        status = file.stat()
        key = (str(file), status.st_mtime_ns, status.st_size)
        kept = self._looked.get(key)
        if kept is None or not kept.is_file():
            kept = keep_picture(open_picture(file), self.uploads / "pictures")
            if len(self._looked) >= MOST_LOOKED:
                self._looked.clear()
            self._looked[key] = kept
        return kept

    def recognise(
        self,
        paths: object,
        model: object = "",
        scorer: object = None,
        progress: Progress = lambda *_: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Found:
        """Whether the generator knows the style of uploaded pictures.

        Args:
            progress: Done, in all (0: not counted), and what.
            stopped: Asked again and again; once it says so, all ends within a denoising step.
        Raises:
            InputError: no usable picture among them.
            StoppedError: `stopped` said so.
        """
        kept: dict[Path, None] = {}
        refused = []
        listed = some_pictures(paths)
        for number, path in enumerate(listed):
            if stopped():
                raise StoppedError
            progress(number, len(listed), "Reading your pictures")
            try:
                kept[self.look(path)] = None
            except InputError as error:
                refused.append(str(error))
        if not kept:
            raise InputError(" ".join(refused))
        source = check_source(model, local=self.local)
        recognition, drawn = self.generators.recognise(list(kept), source, self.scorer(scorer), progress, stopped)
        return Found(recognition, drawn, list(kept), refused)

    # -- draw --------------------------------------------------------------------------------------------------

    def compare(
        self,
        prompt: object,
        seed: object = 0,
        adapters: object = (),
        scale: object = 1.0,
        model: object = "",
        steps: object = None,
    ) -> Drawn:
        """One prompt and seed with and without erasures.

        Raises:
            InputError: an empty or over-long prompt, an unknown adapter, or one for another generator.
        """
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError("the prompt is empty; write what shall be drawn.")
        if len(prompt) > LONGEST_PROMPT:
            raise InputError(f"the prompt has {len(prompt):,} characters; at most {LONGEST_PROMPT:,} are read.")
        number = whole(seed, "seed", 0, 2**32 - 1)
        strength = real(scale, "strength", -2.0, 4.0)
        items = self.library.some(adapters) if adapters else []
        if not items:
            raise InputError("no erasure was picked; choose at least one from your library.")
        loaded: list[Adapter] = [item.adapter() for item in items]
        source = check_source(model, local=self.local)
        wanted = whole(self.defaults.steps if steps is None else steps, "steps", 1, 200)
        return self.generators.compare(source, prompt.strip(), number, loaded, strength, wanted)


def texts(values: object, field: str, most: int) -> list[str]:
    """A list of names as a form or a stranger gives it; the names themselves are checked by `Entry`.

    Raises:
        InputError: not a list of texts, or too many.
    """
    if values is None or values == "":
        return []
    listed: Sequence[Any] = [values] if isinstance(values, str) else values if isinstance(values, list | tuple) else [0]
    if len(listed) > most:
        raise InputError(f"{field} has {len(listed)} names; at most {most} are taken here, use a list for more.")
    if not all(isinstance(value, str) for value in listed):
        raise InputError(f"{field} must be a list of names.")
    return [value for value in listed if value.strip()]


def whole(value: object, field: str, low: int, high: int) -> int:
    """A whole number between two bounds.

    Raises:
        InputError: it is not.
    """
    number = real(value, field, low, high)
    if number != int(number):
        raise InputError(f"{field} is {value}; use a whole number.")
    return int(number)


def real(value: object, field: str, low: float, high: float) -> float:
    """A number between two bounds.

    Raises:
        InputError: it is not.
    """
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise InputError(f"{field} must be a number between {low:g} and {high:g}.") from None
    if not low <= number <= high:
        raise InputError(f"{field} is {value}; use a number between {low:g} and {high:g}.")
    return number


def content_of(model: str | None) -> str | None:
    """What tells whether a folder still holds the same generator; None for others."""
    folder = Path(model) if model else None
    if folder is None or not folder.is_dir():
        return None
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    listed = [(p.relative_to(folder).as_posix(), p.stat().st_size, p.stat().st_mtime_ns) for p in files[:5000]]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]
