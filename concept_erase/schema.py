"""What a list holds and how it is erased: one schema for files, the command line and the demo. No torch here.

The description of each field is the help text of its option and the label of its control.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from concept_erase.concepts import Concept, Kind
from concept_erase.errors import InputError
from concept_erase.methods import require
from concept_erase.names import normalise

LONGEST_NAME = 400  # characters; no text encoder in use reads a longer name, and a page cannot show it
LONGEST_TAG = 64
MOST_NAMES = 1000  # preserved concepts of one entry
MOST_TAGS = 32
JOINT_OF_ALL = "all"  # the tag under which the adapter of the whole list is filed


class Entry(BaseModel):
    """One concept to erase, as a row of a list states it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str = Field(description="What to forget, as it is written in prompts.")
    kind: Kind = Field(Kind.STYLE, description="What sort of thing it is; picks prompts and default anchors.")
    anchor: str | None = Field(None, description="What it becomes; chosen, and said which, if not given.")
    preserve: tuple[str, ...] = Field((), description="Concepts of the same kind that must stay; chosen if not given.")
    method: str | None = Field(None, description="How to erase it; the method of the whole list if not given.")
    tags: tuple[str, ...] = Field((), description="Groups it belongs to; each gets a joint adapter.")

    # Every check is Concept's own, made field by field: a row shows all its problems at once, each at its field.

    @field_validator("target", mode="before")
    @classmethod
    def _target(cls, value: Any) -> str:
        return Concept(_short(value, "target")).target

    @field_validator("kind", mode="before")
    @classmethod
    def _kind(cls, value: Any) -> Kind:
        wanted: Any = value.strip().casefold() if isinstance(value, str) else value
        return Concept("any", wanted).kind

    @field_validator("anchor", mode="before")
    @classmethod
    def _anchor(cls, value: Any, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        anchor = normalise(_short(value, "anchor"), "anchor")
        return Concept(info.data["target"], anchor=anchor).anchor if "target" in info.data else anchor

    @field_validator("preserve", mode="before")
    @classmethod
    def _preserve(cls, value: Any, info: ValidationInfo) -> tuple[str, ...]:
        names = tuple(normalise(_short(name, "preserve"), "preserve") for name in _several(value, "preserve"))
        if len(names) > MOST_NAMES:
            raise InputError(f"preserve has {len(names):,} names; give at most {MOST_NAMES:,}.")
        return Concept(info.data["target"], preserve=names).preserve if "target" in info.data else names

    @field_validator("method", mode="before")
    @classmethod
    def _method(cls, value: Any) -> str | None:
        return None if value is None else _known(value)

    @field_validator("tags", mode="before")
    @classmethod
    def _tags(cls, value: Any) -> tuple[str, ...]:
        tags: dict[str, str] = {}
        for part in _several(value, "tags"):
            tag = _tag(part)
            tags.setdefault(tag.casefold(), tag)
        if len(tags) > MOST_TAGS:
            raise InputError(f"tags has {len(tags)} names; give at most {MOST_TAGS}.")
        return tuple(tags.values())

    @property
    def concept(self) -> Concept:
        return Concept(self.target, self.kind, self.anchor, self.preserve)


class Job(BaseModel):
    """How a list is erased."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = Field(None, description="Folder or hub name of a base; the embedded generator if not given.")
    method: str = Field("uce", description="How to erase; see 'concept-erase methods'.")
    settings: dict[str, Any] = Field({}, description="Settings of the method, by name.")
    pictures: int = Field(
        24, ge=0, le=100_000, description="Pictures to score on, of each concept and group; 0 does not score."
    )
    scorer: str | None = Field(
        None,
        description="Who looks at the pictures: 'base', the base itself; an open_clip model, NAME:TAG, NAME:FILE or a "
        "local folder; or both, as base+NAME:TAG. The embedded one if not given.",
    )
    steps: int = Field(25, ge=1, le=1000, description="Denoising steps of every picture.")
    guidance: float | None = Field(
        None, ge=0, le=1000, allow_inf_nan=False, description="Classifier-free guidance; the base's usual one if unset."
    )
    half: bool = Field(False, description="Store the adapters in float16: half the size.")
    joint: bool = Field(True, description="Make one adapter per tag and one for the whole list as well.")
    force: bool = Field(False, description="Erase also what the base does not seem to know.")
    strict: bool = Field(False, description="Stop when any row has a problem, and refuse what would be a warning.")

    @field_validator("model", "scorer", mode="before")
    @classmethod
    def _given(cls, value: Any) -> Any:
        return None if isinstance(value, str) and not value.strip() else value

    @field_validator("method", mode="before")
    @classmethod
    def _method(cls, value: Any) -> str:
        return _known(value)


Schema = TypeVar("Schema", bound=BaseModel)


def build(schema: type[Schema], values: Mapping[str, Any]) -> Schema:
    """An `Entry` or a `Job` from plain values.

    Raises:
        InputError: values that do not fit; every one of them is named, with the remedy.
    """
    try:
        return schema.model_validate(dict(values))
    except ValidationError as error:
        raise InputError(" ".join(message for _, message in explain(schema, error))) from error


def explain(schema: type[BaseModel], error: ValidationError) -> list[tuple[str, str]]:
    """(field, message) of everything that does not fit; each message names the field and the value received."""
    found = []
    for item in error.errors(include_url=False):
        field = str(item["loc"][0]) if item["loc"] else "entry"
        own = item.get("ctx", {}).get("error")
        if isinstance(own, InputError):
            message = str(own)
        elif item["type"] == "extra_forbidden":
            message = f"there is no field {field!r}; use {', '.join(schema.model_fields)}."
        elif item["type"] == "missing":
            message = f"{field} is missing; name a concept."
        else:
            message = f"{field} is {_shown(item['input'])}: {_lower(item['msg'])}."
        found.append((field, message))
    return found


def _short(name: Any, field: str, most: int = LONGEST_NAME) -> Any:
    """The value as it came; a text only if a name can be that long, so that no error repeats a whole book."""
    if isinstance(name, str) and len(name.strip()) > most:
        long = f"{len(name.strip()):,} characters ({name.strip()[:40]!r}...)"
        raise InputError(f"{field} has {long}; use a name of at most {most}.")
    return name


def _several(value: Any, field: str) -> list[Any]:
    """The items of a list, or of a text that separates them by ';', '|' or line breaks."""
    if value is None:
        return []
    if isinstance(value, str):
        return [part for part in re.split(r"[;|\n]", value) if part.strip()]
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return list(value)
    raise InputError(f"{field} must be a list, or a text with ';' between names, got {_shown(value)}.")


def _known(value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"method must be text, got {_shown(value)}; see 'concept-erase methods'.")
    return require(value.strip().casefold())


def _tag(value: Any) -> str:
    """A tag becomes the name of a folder, so it is short and has something that a folder can be called."""
    tag = normalise(_short(value, "tags", LONGEST_TAG), "tags")
    if tag.casefold() == JOINT_OF_ALL:
        raise InputError(f"tags holds {tag!r}, which stands for the whole list; use another word.")
    if re.search(r'[/\\:*?"<>]', tag) or tag.startswith(".") or not any(c.isalnum() for c in tag):
        raise InputError(f"tags holds {tag!r}; use words of letters, digits, spaces and dashes.")
    return tag


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
