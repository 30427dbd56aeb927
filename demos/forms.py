"""The settings of a method as form fields, read from its source: nothing heavy is imported, nothing is listed twice."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from concept_erase import methods


@dataclass(frozen=True)
class Field:
    """One setting of a method.

    Attributes:
        name: As the method calls it.
        label: For people.
        meaning: From the source.
        form: "choice", "switch", "number" or "text".
        default: In the type of the form.
        choices: Of a choice.
        optional: Whether it may be left empty, and is then chosen.
    """

    name: str
    label: str
    meaning: str
    form: str
    default: Any
    choices: tuple[str, ...] = ()
    optional: bool = False
    whole: bool = False


@cache
def fields(method: str) -> tuple[Field, ...]:
    """The form of a method."""
    return tuple(_field(method, *setting) for setting in methods.describe(method).settings)


def _field(method: str, name: str, kind: str, default: str, meaning: str) -> Field:
    label = name.replace("_", " ").capitalize()
    meaning = meaning[:1].upper() + meaning[1:]
    parts = {part.strip() for part in kind.split("|")}
    optional = "None" in parts
    parts.discard("None")
    only = next(iter(parts)) if len(parts) == 1 else ""
    if only == "bool":
        return Field(name, label, meaning, "switch", default == "True" or default == "true")
    if only in ("int", "float") and not optional:
        return Field(name, label, meaning, "number", float(default), whole=only == "int")
    choices = _members(method, only) if only.isidentifier() else ()
    if choices:
        return Field(name, label, meaning, "choice", default, choices, optional)
    return Field(name, label, meaning, "text", "" if default == "None" else default, optional=optional)


def _members(method: str, name: str) -> tuple[str, ...]:
    """Values of an enumeration that a method's module defines or imports from this package."""
    folder = Path(methods.__file__ or ".").parent
    tree = ast.parse((folder / f"{method}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("concept_erase."):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    place = folder.parent.joinpath(*str(node.module).split(".")[1:]).with_suffix(".py")
                    return _values(ast.parse(place.read_text(encoding="utf-8")), alias.name) if place.is_file() else ()
    return _values(tree, name)


def _values(tree: ast.Module, name: str) -> tuple[str, ...]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            if not any(isinstance(base, ast.Name) and base.id.endswith("Enum") for base in node.bases):
                return ()
            values = [s.value for s in node.body if isinstance(s, ast.Assign)]
            return tuple(str(v.value) for v in values if isinstance(v, ast.Constant))
    return ()


def changed(method: str, values: dict[str, Any]) -> dict[str, Any]:
    """Only what differs from the defaults, in the types that the method wants; unknown names are left to it."""
    known = {field.name: field for field in fields(method)}
    settings: dict[str, Any] = {}
    for name, value in values.items():
        field = known.get(name)
        if field is None:
            settings[name] = value
            continue
        if field.form == "number" and isinstance(value, int | float) and field.whole and value == int(value):
            value = int(value)
        if value == field.default or (value in ("", None) and field.default in ("", None)):
            continue
        settings[name] = None if value in ("", None) and field.optional else value
    return settings
