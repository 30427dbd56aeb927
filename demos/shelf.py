"""What is done with several adapters of the library: put together, compared, deleted, packed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from concept_erase import embedded
from concept_erase.errors import InputError, OutputError
from concept_erase.names import distinct, file_name, folded

from .library import Item
from .models import HUB_NAME, check_source
from .studio import Studio

if TYPE_CHECKING:
    from concept_erase.adapter import Adapter
    from concept_erase.interference import Interference
    from concept_erase.model import Model

MOST_DRAWN = 16  # pictures of each group that a composed adapter is scored on


def compose(studio: Studio, keys: object) -> Item:
    """Several adapters as one, by concatenating ranks; made once for the same choice, and scored on a few pictures.

    Raises:
        InputError: they are for different generators, or two of them erase the same concept.
    """
    chosen = sorted(studio.library.some(keys, least=2), key=lambda item: item.id)
    adapters = [item.adapter() for item in chosen]
    if not _of_one_base(adapters):
        listed = "; ".join(f"{item.title}: {item.base}" for item in chosen)
        raise InputError(f"these adapters are for different generators ({listed}); choose those of one.")
    targets = [name for item in chosen for name in item.targets]
    count = Counter(folded(name) for name in targets)
    if twice := [name for name in distinct(targets) if count[folded(name)] > 1]:
        raise InputError(
            f"{', '.join(twice)} would be erased twice over; choose adapters that erase different concepts."
        )
    folder = studio.root / "erasures" / file_name(targets, also=[a.digest for a in adapters])
    if not (folder / "report.json").is_file():
        titles = [item.title for item in chosen]
        if any(item.base == embedded.NAME for item in chosen):
            studio.generators.on("", lambda model: _written(studio, model, folder, adapters, titles))
        else:
            _written(studio, None, folder, adapters, titles)
    item = studio.library.of_folder(folder)
    if item is None:
        raise OutputError(f"the composed adapter could not be written to {folder}; free space.")
    return item


def _of_one_base(adapters: Sequence[Adapter]) -> bool:
    """Whether all are for one generator, within rounding, as it is when they are loaded."""
    from concept_erase.identity import alike

    first = adapters[0]
    return all(a.family.name == first.family.name and alike(first.base, a.base) for a in adapters)


def _written(
    studio: Studio, model: Model | None, folder: Path, adapters: Sequence[Adapter], titles: Sequence[str]
) -> None:
    from concept_erase.adapter import Adapter
    from concept_erase.concepts import check_together
    from concept_erase.erasure import Erasure, locked, write
    from concept_erase.generate import Sampling
    from concept_erase.lowrank import compose as added
    from concept_erase.scores import score

    merged, notes = check_together([c for a in adapters for c in a.concepts])
    made_of = [{"title": t, "method": a.method, "digest": a.digest} for t, a in zip(titles, adapters, strict=True)]
    adapter = Adapter(
        added([a.changes for a in adapters]), adapters[0].family, merged,
        "+".join(sorted({a.method for a in adapters})), {"composed_of": made_of}, adapters[0].base,
    )  # fmt: skip
    notes = [f"composed of {len(adapters)} adapters by concatenating ranks: {'; '.join(titles)}.", *notes]
    n = min(MOST_DRAWN, studio.defaults.pictures)
    scores, unscored = None, "composed adapters of other generators are not scored by themselves"
    if model is not None and n > 0:
        scores = score(model, adapter, n=n, sampling=Sampling(studio.defaults.steps))
    erasure = Erasure(adapter, scores, None if scores else unscored, tuple(notes), {}, {})
    with locked(folder):
        write(erasure, folder)


def measure(studio: Studio, keys: object, model: object = "") -> Interference:
    """How the adapters of several ids move each other's concepts.

    Args:
        model: The chosen generator, for adapters of one that was a folder: they know its name, not its place.
    Raises:
        InputError: too few, or for different generators.
    """
    from concept_erase.interference import interference

    items = studio.library.some(keys, least=2)
    adapters = [item.adapter() for item in items]

    def act(model: Any) -> Interference:
        return interference(model, adapters)

    return studio.generators.on(source_of(items, model, local=studio.local), act)


def delete(studio: Studio, key: object) -> Item:
    """Remove an adapter; the request that made it is forgotten, so that it can be made again."""
    item = studio.library.delete(key)
    for job in studio.queue.jobs():
        if studio.root / job.folder == item.folder:
            studio.queue.forget(job.id)
    return item


def export(studio: Studio, keys: object) -> Path:
    """A zip of adapters with all that belongs to them, where the server may hand it out."""
    return studio.library.export(keys, studio.uploads / "downloads" / "library")


def source_of(items: Sequence[Item], chosen: object, *, local: bool) -> str:
    """The generator that all adapters are for.

    Raises:
        InputError: they are for different ones.
    """
    names = {item.base for item in items}
    if len(names) != 1 and not _of_one_base([item.adapter() for item in items]):
        raise InputError(f"these adapters are for different generators ({', '.join(sorted(names))}).")
    name = embedded.NAME if embedded.NAME in names else min(names)
    return check_source(name if name == embedded.NAME or HUB_NAME.fullmatch(name) else chosen, local=local)
