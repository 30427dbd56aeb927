"""The rows of a YAML list. The file is parsed, measured and read as text; nothing is ever constructed from it."""

from __future__ import annotations

import re
from typing import Any

import yaml

from concept_erase.errors import InputError
from concept_erase.lists.rows import MOST_ROWS, Rows, defaults_of, no_list, pairs, quoted

DEEPEST = 10  # nested lists and mappings; a list of concepts needs four
MOST_NODES = 2_000_000  # with all aliases written out


class _Names(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Every scalar is the text as written ("No", "1984"); only an empty one, `~` and `null` are nothing."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"))] for first in ("~", "n", "N", "")
    }


def read_yaml(text: str) -> Rows:
    """A list of names or mappings, or a mapping with `concepts` and `defaults`; nothing is ever constructed from tags.

    Raises:
        InputError: no YAML, tags, nested too deeply, too large with its aliases written out, or of another form.
    """
    try:
        _check_events(text)
        root = yaml.compose(text, Loader=_Names)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        told = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        if mark and "nesting depth" in str(told):  # a limit of newer parsers, which they reach before the first event
            raise _too_deep(mark.line + 1) from error
        raise InputError(f"the list is no YAML ({where}{told}); correct it or use another format.") from error
    _check_size(root)
    found = Rows()
    if isinstance(root, yaml.MappingNode):
        data = _fields(root)
        if "concepts" not in data:
            raise InputError(f"the list has {quoted(list(data))} but no 'concepts'; put the names there.")
        found.defaults = defaults_of({k: None if k == "concepts" else _value(n) for k, n in data.items()})
        root = data["concepts"]
    if not isinstance(root, yaml.SequenceNode):
        return no_list("concepts", "a single text" if isinstance(root, yaml.ScalarNode) else "nothing")
    for node in root.value:
        row = node.start_mark.line + 1
        try:
            values = _value(node)
        except InputError as error:
            found.fail(row, str(error))
        else:
            found.add(row, values)
    return found


def _check_events(text: str) -> None:
    """Tags, depth and length, before any tree is built; the parser is lazy, so a bomb costs only its first bytes."""
    depth = aliases = 0
    events: Any = yaml.parse(text, Loader=_Names)  # the stubs know neither marks nor tags of events
    for count, event in enumerate(events):
        line = event.start_mark.line + 1
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        aliases += isinstance(event, yaml.AliasEvent)
        if getattr(event, "tag", None):
            raise InputError(f"the list holds the YAML tag {event.tag!r} (line {line}); tags are refused, remove it.")
        if depth > DEEPEST:
            raise _too_deep(line)
        if aliases > MOST_ROWS or count > MOST_NODES:
            raise InputError(f"the list has more than {MOST_NODES:,} items or {MOST_ROWS:,} aliases; split it.")


def _too_deep(line: int) -> InputError:
    return InputError(f"the list is nested more than {DEEPEST} deep (line {line}); write a list of concepts.")


def _check_size(root: yaml.Node | None) -> None:
    """How large and deep the tree is once each alias is written out; an alias is the very node that it repeats."""
    known: dict[int, tuple[int, int]] = {}

    def measure(node: yaml.Node, inside: frozenset[int]) -> tuple[int, int]:
        # What an alias repeats stands before it and is known by then: the recursion is as deep as the file is.
        if id(node) in inside:
            raise InputError("the list holds a YAML alias inside of what it refers to; write the names out.")
        if id(node) not in known:
            children = node.value if isinstance(node, yaml.CollectionNode) else []
            if isinstance(node, yaml.MappingNode):
                children = [part for pair in children for part in pair]
            parts = [measure(child, inside | {id(node)}) for child in children]
            known[id(node)] = (1 + sum(n for n, _ in parts), 1 + max((d for _, d in parts), default=0))
        return known[id(node)]

    nodes, depth = measure(root, frozenset()) if root is not None else (0, 0)
    if nodes > MOST_NODES or depth > DEEPEST + 1:
        raise InputError(
            f"the list has more than {MOST_NODES:,} items, or is nested more than {DEEPEST} deep, once its aliases are "
            "written out; write the names out."
        )


def _fields(node: yaml.MappingNode) -> dict[str, Any]:
    if any(not isinstance(key, yaml.ScalarNode) for key, _ in node.value):
        raise InputError("a field has a list or mapping as its name; use a word.")
    return pairs([(key.value, value) for key, value in node.value])


def _value(node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return {name: _value(child) for name, child in _fields(node).items()}
    if isinstance(node, yaml.SequenceNode):
        return [_value(child) for child in node.value]
    return None if node.tag.endswith(":null") else node.value
