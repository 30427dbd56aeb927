"""Generators in the demo's own process: opened once, drawn from one at a time."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from concept_erase import embedded, typed
from concept_erase.concepts import Kind, fill
from concept_erase.errors import InputError, OutputError
from concept_erase.files import atomic_write
from concept_erase.names import holds

if TYPE_CHECKING:
    from PIL import Image

    from concept_erase.adapter import Adapter
    from concept_erase.model import Model
    from concept_erase.recognise import Album, Recognition

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
LONGEST_SOURCE = 1000
WARM_AFTER = 2.0  # seconds
SHOWN = 8  # pictures of the style that is nearest to own ones
TILE_OBJECTS = (
    "cat", "rocket", "pizza", "house", "tulip", "guitar", "car", "penguin", "umbrella", "crown", "mushroom", "ghost",
)  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """The same prompt and seed from the original and the erased generator, and what the judge takes each for."""

    original: Image.Image
    erased: Image.Image
    original_seen: str
    erased_seen: str


def check_source(source: object, *, local: bool) -> str:
    """A generator as the user names it: "" for the embedded one, a folder, or a hub name.

    Args:
        local: Whether the demo is reached from this computer alone; only then may a folder be named.
    Raises:
        InputError: an address, a folder from afar, or nothing of the kind.
    """
    if source is None or source == "":
        return ""
    if not isinstance(source, str) or len(source) > LONGEST_SOURCE:
        raise InputError("the generator must be a short text: a folder, or a hub name like name/model.")
    text = source.strip()
    if text in ("", embedded.NAME):
        return ""
    if "://" in text or "\0" in text:
        raise InputError("an address is not fetched; name a folder on this computer, or a hub name like name/model.")
    folder = Path(text).expanduser()
    if folder.exists():
        if not local:
            raise InputError("folders can be named only when the demo runs on 127.0.0.1; use a hub name.")
        if not (folder / "model_index.json").is_file():
            raise InputError(f"{text} has no model_index.json; name the folder of a diffusers pipeline.")
        return str(folder.resolve())
    if HUB_NAME.fullmatch(text):
        return text
    raise InputError(f"{text[:200]!r} is neither a folder on this computer nor a hub name like name/model.")


def sensitive_names() -> frozenset[str]:
    """Concepts whose pictures are blurred until clicked."""
    return frozenset(name.casefold() for name in embedded.objects(violent=True))


def is_sensitive(*texts: str) -> bool:
    """Whether a prompt or a name speaks of something whose picture is blurred."""
    words = " ".join(texts).casefold()
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", words) or holds(words, name) for name in sensitive_names())


class Generators:
    """At most two open generators; all drawing goes through one lock, because erasing changes weights in place."""

    def __init__(self, folder: Path, steps: int = 25) -> None:
        """
        Args:
            folder: Where pictures of what it knows are kept.
            steps: Denoising steps, unless a call says otherwise.
        """
        self.folder, self.steps = folder, steps
        self._lock = threading.RLock()
        self._open: OrderedDict[str, Model] = OrderedDict()
        self._warming: threading.Timer | None = None
        self._albums: dict[tuple[str, str, int], Album] = {}

    def open(self, source: str) -> Model:
        """The generator of a checked source.

        Raises:
            MissingModelError: it cannot be reached or is incomplete.
        """
        from concept_erase.model import open_model

        with self._lock:
            if source not in self._open:
                model = open_model(source or None)
                if len(self._open) >= 2:
                    self._open.popitem(last=False)
                self._open[source] = model
            self._open.move_to_end(source)
            return self._open[source]

    def warm_soon(self) -> None:
        """Load what the first picture needs, a moment after the first page was opened, so that the page comes first."""
        if self._warming is None:
            self._warming = threading.Timer(WARM_AFTER, self._warm)
            self._warming.daemon = True
            self._warming.start()

    def _warm(self) -> None:
        try:
            with self._lock, _loading:
                _ = self.open("").pipe
        except Exception as error:  # said again, to whoever asks for a picture
            print(f"the generator could not be loaded: {error}", file=sys.stderr)

    def draw(
        self,
        source: str,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int | None = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> list[Image.Image]:
        """Pictures of the unedited generator."""
        from concept_erase.generate import Sampling, generate

        with self._lock:
            sampling = Sampling(steps or self.steps)
            return generate(self.open(source), prompts, seeds, sampling=sampling, progress=progress)

    def compare(
        self, source: str, prompt: str, seed: int, adapters: Sequence[Adapter], scale: float, steps: int | None = None
    ) -> Drawn:
        """One prompt and seed, drawn with and without erasures.

        Raises:
            InputError: the prompt does not fit the text encoder, or an adapter is for another base.
        """
        from concept_erase.attach import attached
        from concept_erase.generate import Sampling, generate

        sampling = Sampling(steps or self.steps)
        plain = len(adapters) == 1 and scale == 1.0
        variant = adapters[0].digest if plain else "+".join(a.digest for a in adapters) + f"@{scale}"
        with self._lock:
            model = self.open(source)
            model.token_ids(prompt)
            (original,) = generate(model, [prompt], [seed], sampling=sampling)
            with attached(model.pipe, adapters, scale):
                (erased,) = generate(model, [prompt], [seed], sampling=sampling, variant=variant)
        return Drawn(original, erased, *self.seen(source, [original, erased]))

    def on(self, source: str, act: Callable[[Model], Any]) -> Any:
        """Something done with a generator while nobody else uses it."""
        with self._lock:
            return act(self.open(source))

    def recognise(
        self,
        paths: Sequence[Path],
        source: str,
        scorer: str | None,
        progress: Callable[[int, int, str], None],
        stopped: Callable[[], bool],
    ) -> tuple[Recognition, list[Image.Image]]:
        """Whether the generator knows the style of some pictures, and what it draws in the nearest one.

        Args:
            progress: Done, in all (0: not counted), and what, from the first moment on.
            stopped: Asked at every denoising step, and while another drawing is waited for.
        Raises:
            StoppedError: it said so; the generators are free again.
        """
        from PIL import Image

        from concept_erase.generate import Sampling
        from concept_erase.recognise import album, drawings, recognise

        sampling = Sampling(self.steps, batch=4)
        key = (source, scorer or "", self.steps)
        with self._turn(progress, stopped):
            progress(0, 0, "Opening the generator")
            model = self.open(source)
            pictures = []
            for path in paths:
                with Image.open(path) as image:
                    pictures.append(image.convert("RGB"))
            with stoppable(model, stopped):
                fitted = model.is_embedded and typed.scorer(scorer)[1] is None
                if not fitted and key not in self._albums:
                    self._albums[key] = album(model, scorer=scorer, sampling=sampling, progress=progress)
                progress(0, 0, "Looking at your pictures")
                book = self._albums.get(key)
                found = recognise(pictures, model, scorer=scorer, known=book)
                if book:
                    return found, book.images[book.styles.index(found.nearest)]
                return found, drawings(model, found.nearest, SHOWN, sampling=sampling, progress=progress)

    @contextlib.contextmanager
    def _turn(self, progress: Callable[[int, int, str], None], stopped: Callable[[], bool]) -> Iterator[None]:
        """The lock, waited for in words."""
        if not self._lock.acquire(timeout=0.2):
            progress(0, 0, "Waiting for the generator, which is busy")
            while not self._lock.acquire(timeout=0.2):
                if stopped():
                    raise StoppedError
        try:
            if stopped():
                raise StoppedError
            yield
        finally:
            self._lock.release()

    def seen(self, source: str, images: Sequence[Image.Image]) -> list[str]:
        """What the embedded judge takes pictures for, in words; "" on other generators, which have no judge."""
        if source:
            return [""] * len(images)
        styles, objects = judged(images)
        return [f"{o}, {s}" for s, o in zip(styles, objects, strict=True)]

    def tiles(self, kind: Kind) -> list[tuple[str, Image.Image]]:
        """What the embedded generator knows of a kind, with a picture of each; for people there is nothing."""
        names, prompts = tile_prompts(kind)
        known = self.tiles_at_hand(kind)
        if len(known) < len(names):
            known = list(zip(names, self.draw("", prompts, [7] * len(prompts), steps=25), strict=True))
            for name, image in known:
                save(image, self._tile(name))
        return known

    def tiles_at_hand(self, kind: Kind) -> list[tuple[str, Image.Image]]:
        """Those that were drawn before, without waking the generator."""
        from PIL import Image

        found = []
        for name in tile_prompts(kind)[0]:
            try:
                with Image.open(self._tile(name)) as image:
                    found.append((name, image.convert("RGB")))
            except OSError:
                continue
        return found

    def _tile(self, name: str) -> Path:
        weights = embedded.sha256(embedded.folder() / "manifest.json")[:12]
        return self.folder / f"{weights}-{name.replace(' ', '-')}.png"


class StoppedError(Exception):
    """Somebody no longer wants what was being drawn."""


@contextlib.contextmanager
def stoppable(model: Model, stopped: Callable[[], bool]) -> Iterator[None]:
    """Drawing ends with `StoppedError` before the next denoising step once `stopped` says so."""

    def ask(*_: object) -> None:
        if stopped():
            raise StoppedError

    pipe: Any = model.pipe
    hook = pipe.unet.register_forward_pre_hook(ask)
    try:
        yield
    finally:
        hook.remove()


def save(image: Image.Image, path: Path) -> None:
    """As PNG, whole or not at all; a picture that cannot be kept is drawn again."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    with contextlib.suppress(OutputError):
        atomic_write(path, buffer.getvalue())


def tile_prompts(kind: Kind) -> tuple[list[str], list[str]]:
    """Names and prompts of the tiles of a kind."""
    if kind is Kind.STYLE:
        names = list(embedded.styles())
        return names, [fill("a {context} in {target} style", name, "cat") for name in names]
    if kind is Kind.IDENTITY:
        return [], []
    known = embedded.objects(violent=True) if kind is Kind.VIOLENCE else TILE_OBJECTS
    names = [name for name in known if name in embedded.objects()]
    return names, [fill("an icon of a {target} in {context} style", name, "twemoji") for name in names]


def judged(images: Sequence[Image.Image]) -> tuple[list[str], list[str]]:
    """The styles and the objects that the embedded judge takes pictures for."""
    styles, objects = _judge().name(list(images))
    return list(styles), list(objects)


_loaded: dict[str, Any] = {}
_loading = threading.RLock()  # two threads that import the large packages at once break each other's imports


def _judge() -> Any:
    with _loading:
        if "judge" not in _loaded:
            from concept_erase.judge import Judge

            _loaded["judge"] = Judge.load(embedded.judge())
        return _loaded["judge"]
