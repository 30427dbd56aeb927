"""Erasure methods: one paper, one file.

A method is a frozen dataclass in a module of this folder. Its fields are its configuration (and with it the
command-line options, the demo's controls and the adapter's metadata); `edit` returns the change of every layer.
Modules are found by name, so a new file is a new method and nothing else needs to know.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, get_type_hints, runtime_checkable

from concept_erase.concepts import Concept
from concept_erase.errors import InputError

if TYPE_CHECKING:  # methods can be listed and checked without importing torch
    from torch import Tensor

    from concept_erase.lowrank import LowRank
    from concept_erase.model import Model
    from concept_erase.statistics import Estimate


@dataclasses.dataclass(frozen=True)
class Edit:
    """What a method returns: the change of each layer, and what it decided on the way.

    Attributes:
        changes: Layer path -> low-rank change of its weight.
        notes: Choices made for the user with their reasons, and warnings; shown and kept in the report.
        measures: Closed-form quantities of the edit, by name.
        operator: Of closed forms on the text stream, the one D (d, d) that every change is folded from.
    """

    changes: dict[str, LowRank]
    notes: tuple[str, ...] = ()
    measures: dict[str, float] = dataclasses.field(default_factory=dict)
    operator: LowRank | None = None


Progress = Callable[[int, int, str], None]  # (done, total, what)


@dataclasses.dataclass(frozen=True)
class Run:
    """How an edit is carried out.

    Attributes:
        progress: Told how far the work is.
        checkpoint: Where a trained method keeps its state, so that an interrupted run goes on.
        still: Draws pictures of the targets under the changes of an edit: how many are still taken for them, in per
            cent; None where that failed. Not there where nothing can be drawn or judged. A choice that was not made by
            the user may hang on it.
    """

    progress: Progress | None = None
    checkpoint: Path | None = None
    still: Callable[[dict[str, LowRank]], Estimate | None] | None = None


class Method(Protocol):
    """An eraser. Concepts come with their anchors chosen."""

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    edits: ClassVar[str]  # "denoiser" (the layers that read the text) or "text encoder"

    def edit(self, model: Model, concepts: Sequence[Concept], run: Run = Run()) -> Edit: ...


@runtime_checkable
class Additive(Protocol):
    """A method that solves concepts jointly from a sum: `edit` is `finish` on the sum of `gather` over concepts.

    What is gathered adds up with `+`, in the memory of one concept, and has `tensors()` for a file.
    """

    def gather(self, model: Model, concept: Concept) -> Any: ...

    def regathered(self, tensors: dict[str, Tensor]) -> Any: ...

    def finish(self, model: Model, concepts: Sequence[Concept], gathered: Any, run: Run = Run()) -> Edit: ...


@runtime_checkable
class Foresighted(Protocol):
    """A method that needs so little of a concept that several are encoded in one call."""

    def ahead(self, model: Model, concepts: Sequence[Concept]) -> dict[tuple[int, ...], Tensor]:
        """Token ids -> states, for `Model.serving` while these concepts are gathered; empty where it would not pay."""


def available() -> tuple[str, ...]:
    """Names of all methods, sorted; nothing heavy is imported."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))


def require(name: str) -> str:
    """The name, if there is such a method.

    Raises:
        InputError: there is not.
    """
    if name not in available():
        raise InputError(f"there is no method {name!r}; choose one of {', '.join(available())}.")
    return name


def method_class(name: str) -> type[Any]:
    """The dataclass of a method."""
    module = importlib.import_module(f"{__name__}.{require(name)}")
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__ == module.__name__ and getattr(value, "name", None) == name:
            return value
    raise TypeError(f"methods/{name}.py defines no dataclass with name = {name!r}")


@dataclasses.dataclass(frozen=True)
class Description:
    """A method as its source states it: class attributes, and per setting its type, default and meaning."""

    name: str
    summary: str
    paper: str
    edits: str
    settings: tuple[tuple[str, str, str, str], ...]


def describe(name: str) -> Description:
    """What a method says of itself, read from its source so that nothing heavy is imported."""
    source = Path(str(next(iter(__path__))), f"{require(name)}.py").read_text()
    for node in ast.parse(source).body:
        fields = [f for f in getattr(node, "body", []) if isinstance(f, ast.AnnAssign) and f.value is not None]
        constants = {ast.unparse(f.target): f.value.value for f in fields if isinstance(f.value, ast.Constant)}
        if not isinstance(node, ast.ClassDef) or constants.get("name") != name:
            continue
        settings = []
        for field, after in zip(node.body, node.body[1:], strict=False):
            if not isinstance(field, ast.AnnAssign) or "ClassVar" in ast.unparse(field.annotation):
                continue
            told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            meaning = str(after.value.value) if told else ""  # type: ignore[attr-defined]
            default = ast.unparse(field.value).rpartition(".")[2].lower() if field.value else ""
            if isinstance(field.value, ast.Constant):
                default = str(field.value.value)
            settings.append((ast.unparse(field.target), ast.unparse(field.annotation), default, meaning))
        summary, paper, edits = (str(constants[attribute]) for attribute in ("summary", "paper", "edits"))
        return Description(name, summary, paper, edits, tuple(settings))
    raise TypeError(f"methods/{name}.py defines no class with name = {name!r}")


def make(name: str, settings: dict[str, Any] | None = None) -> Method:
    """A method with some of its fields set; texts are converted to the field's type.

    Raises:
        InputError: an unknown method or field, or a value that does not fit.
    """
    from pydantic import TypeAdapter, ValidationError

    cls = method_class(name)
    hints = get_type_hints(cls)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    values = {}
    for key, value in (settings or {}).items():
        if key not in fields:
            raise InputError(f"method {name} has no setting {key!r}; it has {', '.join(fields)}.")
        try:
            values[key] = TypeAdapter(fields[key]).validate_python(value, strict=False)
        except ValidationError as error:
            raise InputError(f"setting {key} of {name} is {value!r}: {error.errors()[0]['msg']}.") from error
    try:
        return cls(**values)
    except ValueError as error:
        raise InputError(f"method {name}: {error}") from error


def settings_of(method: Method) -> dict[str, Any]:
    """The configuration of a method as plain values, for metadata and reports."""
    values = dataclasses.asdict(method)  # type: ignore[call-overload]
    return {k: str(v) if isinstance(v, str) else v for k, v in values.items()}
