"""Erasures in the weights of a live pipeline: for the length of a block, or until they are taken out again.

An erasure is added to the weights themselves, so nothing that is done with other LoRAs can switch it off. A ledger on
each edited component (unet, text encoder) holds what was added and what was there before; a pipeline that erasures were
loaded into compares its weights with it before every picture.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from concept_erase.adapter import Adapter
from concept_erase.errors import BaseMismatchError, ErasureLostError, InputError, NumericalError
from concept_erase.families import Family
from concept_erase.identity import Identity, identity, sketch_of
from concept_erase.layers import Kept, canonical_to_live, matching, unwrapped
from concept_erase.lowrank import LowRank, concatenate

TOLERANCE = 0.25  # of an edit: half precision loses up to 5% of it, a layer without it 100%
_LEDGER = "_concept_erase_ledger"  # on a component
_PROMISED = "_concept_erase_promised"  # on a pipeline
_PLAIN = "_concept_erase_plain"  # on the class of a guarded pipeline: the class it was
# Layers that diffusers makes of others (`fuse_qkv_projections`), row under row, and reads in their place.
_FUSED = {
    "to_kv": ("to_k", "to_v"),
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}


@dataclass(frozen=True, eq=False)
class _Entry:
    """One erasure in a component: its changes, by layer path, and what they are multiplied by."""

    digest: str
    scale: float
    changes: dict[str, LowRank]


@dataclass(eq=False)
class _Ledger:
    """What was added to a component.

    Attributes:
        entries: By the erasure's name; by an object without one for the length of a block.
        originals: Layer path -> the weight beneath.
        expected: Layer path -> input directions (d_in, k), what the weight makes of them, and how far the edit moves
            that.
    """

    entries: dict[Any, _Entry] = field(default_factory=dict)
    originals: dict[str, Tensor] = field(default_factory=dict)
    expected: dict[str, tuple[Tensor, Tensor, float]] = field(default_factory=dict)


# -- for a block ------------------------------------------------------------------------------------------------------


@contextmanager
def attached(
    pipe: Any, adapters: Adapter | Sequence[Adapter], scale: float = 1.0, *, check: bool = True
) -> Iterator[Any]:
    """The pipeline with `scale` times the edit added to its weights; leaving takes it out again.

    Every bit is restored where nothing else changed the weights in the block; elsewhere the edit is subtracted.

    Args:
        pipe: A live pipeline; it is changed in place and yielded.
        adapters: One erasure, or several at once.
        check: Compare the recorded base with the pipeline first.
    Raises:
        BaseMismatchError: the adapter is for another base; nothing was changed.
        InputError: the weights cannot be edited; nothing was changed.
    """
    listed = [adapters] if isinstance(adapters, Adapter) else list(adapters)
    for adapter in listed:
        check_base(pipe, adapter, shapes_only=not check)
    added = {object(): _Entry(adapter.digest, scale, adapter.changes) for adapter in listed}
    modules = _components(pipe, (path for entry in added.values() for path in entry.changes))
    _change(modules, add=added)
    try:
        yield pipe
    finally:
        _change(modules, remove=added)


@contextmanager
def detached(pipe: Any) -> Iterator[Any]:
    """The pipeline without any erasure in its weights, for the length of a block; afterwards all are back.

    Raises:
        ErasureLostError: the weights were changed by others, so that an erasure cannot be told apart.
    """
    held = [(name, module, dict(_ledger(module).entries)) for name, module in _all_components(pipe).items()]
    out: list[tuple[dict[str, nn.Module], dict[Any, _Entry]]] = []
    try:
        for name, module, entries in held:
            if entries:
                _change({name: module}, remove=entries)
                out.append(({name: module}, entries))
        yield pipe
    finally:
        for modules, entries in out:
            _change(modules, add=entries)


# -- to stay ----------------------------------------------------------------------------------------------------------


def load_erasure(
    pipe: Any, path: Path | str, *, name: str | None = None, scale: float = 1.0, check: bool = True
) -> str:
    """Put an erasure into a pipeline's weights, verified, to stay whatever is done with other LoRAs.

    Any pipeline will do that has the layers: image to image, inpainting, ControlNet. It is all done or nothing. Every
    later call of the pipeline first verifies that the weights it will read hold the erasure, and refuses otherwise.
    Pipelines that share components with this one draw erased too, but verify only if the same file is loaded into them
    as well, which changes nothing else. A ControlNet reads the text with weights of its own; those stay as they are.

    Args:
        path: Either form of the file, or a folder with one.
        name: What to call it; derived from the concepts when None.
        scale: Strength, positive.
        check: Compare the recorded base with the pipeline first.
    Returns:
        The name, for `unload_erasure`.
    Raises:
        BaseMismatchError: the adapter is for another base, or in the weights already.
        InputError: the name or the erasure is there already, or the weights cannot be edited.
        NumericalError: the weights are of a precision that cannot hold the change.
        ErasureLostError: an erasure that was loaded before is not in place any more.
    """
    if not isinstance(scale, (int, float)) or isinstance(scale, bool) or not 0 < scale < math.inf:
        raise InputError(f"the scale is {scale!r}; it must be a positive number.")
    if hasattr(pipe, "load_erasures"):
        raise InputError(f"{type(pipe).__name__} keeps erasures of its own; call pipe.load_erasures([...]).")
    adapter = Adapter.load(path)
    changes = {p: c for p, c in adapter.changes.items() if c.up.any() and c.down.any()}
    if not changes:
        raise InputError(f"{path} changes nothing; erase the concept again.")
    check_base(pipe, adapter, shapes_only=True)
    modules = _components(pipe, changes)
    name = adapter.slug if name is None else name
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"the name is {name!r}; pass some text.")
    entry = _Entry(adapter.digest, float(scale), changes)
    promised = _promised(pipe)
    twin = next((n for n, e in _entries(pipe) if e.digest == entry.digest), None)
    if twin is not None:
        shared = twin not in promised and name in (twin, adapter.slug) and erasures(pipe)[twin] == scale
        if not shared:
            raise InputError(f"this erasure is in the pipeline already, as {twin!r}; unload_erasure(pipe, {twin!r}).")
        name = twin  # a pipeline that shares the weights loaded it; they stay, and this one verifies them as well
    else:
        if name in promised or name in erasures(pipe) or name in _lora_names(pipe):
            raise InputError(f"{name!r} is loaded already; pass another name, or unload it first.")
        if promised:
            check_erasures(pipe)
        if check:
            check_base(pipe, adapter)
        _change(modules, add={name: entry}, verify=True)
    try:
        _promise(pipe, {**promised, name: dict.fromkeys(modules, entry.digest)})
        check_erasures(pipe)
    except BaseException:
        _promise(pipe, promised)
        if twin is None:
            _change(modules, remove=[name])
        raise
    return name


def unload_erasure(pipe: Any, name: str | None = None) -> None:
    """Take an erasure out of the weights again; all of them when `name` is None.

    Every bit is as before where nothing else changed the weights since; elsewhere the change is subtracted.

    Raises:
        InputError: no erasure has that name.
        ErasureLostError: the weights were changed by others, so that it cannot be told apart; nothing was changed.
    """
    known = {**erasures(pipe), **_promised(pipe)}
    if name is not None and name not in known:
        listed = ", ".join(repr(n) for n in known) or "none is loaded"
        raise InputError(f"no erasure is named {name!r}; loaded: {listed}.")
    names = list(known) if name is None else [name]
    modules = {c: m for c, m in _all_components(pipe).items() if any(n in _ledger(m).entries for n in names)}
    _change(modules, remove=names)
    _promise(pipe, {n: parts for n, parts in _promised(pipe).items() if n not in names})


def erasures(pipe: Any) -> dict[str, float]:
    """Names and strengths of the erasures in a pipeline's weights, also of those that another pipeline put there."""
    return {name: entry.scale for name, entry in _entries(pipe)}


def check_erasures(pipe: Any) -> None:
    """Compare what a pipeline will read with what its erasures made of it; every call of the pipeline does so first.

    Raises:
        ErasureLostError: a component was replaced, weights were written over or fused from others, or an attention
            processor reads others.
    """
    for name, components in _promised(pipe).items():
        for component, digest in components.items():
            entry = _ledger(_all_components(pipe).get(component)).entries.get(name)
            if entry is None or entry.digest != digest:
                raise ErasureLostError(
                    f"the erasure {name!r} is not in this {component}: it was replaced, or another pipeline unloaded "
                    f"it. Load the erasure again after unload_erasure(pipe, {name!r}), or put the component back."
                )
    for component, module in _all_components(pipe).items():
        ledger = _ledger(module)
        lost = [path for path in ledger.expected if _error(path, _read(module, path), ledger) > TOLERANCE]
        if lost:
            raise ErasureLostError(
                f"{len(lost)} of {len(ledger.expected)} erased layers of the {component} no longer hold their change, "
                f"{lost[0]} first: the weights were changed by others. Open the base again and load the erasures; fuse "
                "LoRAs with pipe.fuse_lora."
            )
        for path in ledger.expected:
            if bypass := _bypass(module, path):
                raise ErasureLostError(bypass)
            for fused, rows in _fused(module, path):
                if _reads_fused(module, path) and _error(path, fused.read()[rows], ledger) > TOLERANCE:
                    raise ErasureLostError(
                        f"the projections around {path} were fused from other weights than the erased ones; call "
                        "pipe.unfuse_qkv_projections() and fuse them again."
                    )


# -- which base -------------------------------------------------------------------------------------------------------


def check_base(pipe: Any, adapter: Adapter, *, shapes_only: bool = False) -> None:
    """Compare an adapter with the live pipeline.

    Raises:
        BaseMismatchError: a layer is missing or of another shape, or the recorded base is another one.
    """
    for path, change in adapter.changes.items():
        component = path.partition(".")[0]
        module = getattr(pipe, component, None)
        if not isinstance(module, nn.Module):
            raise BaseMismatchError(f"the pipeline has no {component}, which the adapter changes; load it with one.")
        shape = _kept(unwrapped(module), path).shape
        if shape != change.shape:
            raise BaseMismatchError(
                f"{path} is {shape} in this pipeline, the adapter changes {change.shape}: another base."
            )
    if shapes_only or not adapter.base.get("hash"):
        return
    layers = dict(_streams(pipe, adapter.family))
    if not layers:
        raise BaseMismatchError(f"the pipeline has no layers that read the text as {adapter.family.name} has them.")
    reason = _base(pipe, layers).difference(adapter.base, sketch_of(adapter.changes, layers))
    if reason:
        merged = sorted({n for m in _all_components(pipe).values() for n in _merged(m)})
        fused = f" Fused here: {', '.join(map(repr, merged))}; pipe.unfuse_lora() first." if merged else ""
        raise BaseMismatchError(
            f"the adapter was made for {adapter.base.get('name')!r}, and here {reason}.{fused} Erase the concept from "
            "this base, or pass check=False to use it all the same."
        )


def _streams(pipe: Any, family: Family) -> Iterator[tuple[str, Kept]]:
    """The layers that read the text, sorted as their hash wants them; underneath LoRA wrappers."""
    for site in family.streams:
        module = _all_components(pipe).get(site.component)
        if module is None:
            continue
        for path in matching(site.component, module, site.pattern):
            yield path, _kept(module, path)


def _base(pipe: Any, layers: Mapping[str, Kept]) -> Identity:
    """What the weights are beneath the erasures that are in them."""
    originals = {p: w for module in _all_components(pipe).values() for p, w in _ledger(module).originals.items()}
    return identity({path: originals.get(path, kept.read()) for path, kept in layers.items()})


def _merged(module: nn.Module) -> Iterator[str]:
    """Names of the LoRAs that are fused into a component."""
    for layer in module.modules():
        yield from getattr(layer, "merged_adapters", None) or ()


# -- the ledger -------------------------------------------------------------------------------------------------------


def _all_components(pipe: Any) -> dict[str, nn.Module]:
    found = {name: getattr(pipe, name, None) for name in ("unet", "text_encoder")}
    return {name: unwrapped(module) for name, module in found.items() if isinstance(module, nn.Module)}


def _components(pipe: Any, paths: Iterable[str]) -> dict[str, nn.Module]:
    wanted = {path.partition(".")[0] for path in paths}
    return {name: module for name, module in _all_components(pipe).items() if name in wanted}


def _ledger(module: Any) -> _Ledger:
    """What was added to a component; an empty one where nothing was."""
    return getattr(module, _LEDGER, None) or _Ledger()


def _entries(pipe: Any) -> Iterator[tuple[str, _Entry]]:
    for module in _all_components(pipe).values():
        yield from ((n, e) for n, e in _ledger(module).entries.items() if isinstance(n, str))


def _total(entries: Iterable[_Entry], path: str) -> LowRank | None:
    """The sum of what several erasures change in a layer."""
    parts = [e.changes[path].to(torch.float32).scaled(e.scale) for e in entries if path in e.changes]
    return concatenate(parts) if parts else None


def _summed(original: Tensor, change: LowRank | None) -> Tensor:
    """float32; always by the same steps, so that the same sum has the same bits."""
    total = original.to(torch.float32)
    return total if change is None else total + change.delta().to(total.device)


def _change(
    modules: Mapping[str, nn.Module],
    *,
    add: Mapping[Any, _Entry] | None = None,
    remove: Iterable[Any] = (),
    verify: bool = False,
) -> None:
    """Add erasures to components or take them out: all of it, or nothing.

    Args:
        verify: Refuse where the weights' precision cannot hold the change.
    """
    written: list[tuple[Kept, Tensor]] = []
    ledgers = {}
    try:
        for component, module in modules.items():
            old = _ledger(module)
            going = [old.entries[key] for key in remove if key in old.entries]
            coming = {k: _part(e, component) for k, e in (add or {}).items()}
            coming = {k: e for k, e in coming.items() if e.changes}
            if not going and not coming:
                continue
            _refuse_group_offloading(component, module)
            new = _Ledger(dict(old.entries), dict(old.originals), dict(old.expected))
            for key in [k for k in old.entries if k in set(remove)]:
                del new.entries[key]
            new.entries |= coming
            for path in sorted({p for e in (*going, *coming.values()) for p in e.changes}):
                written += _rewritten(module, path, old, new)
                if verify and path in new.expected and _error(path, _read(module, path), new) > TOLERANCE:
                    raise NumericalError(
                        f"{path} is stored as {_read(module, path).dtype}, too coarse to hold this change; load the "
                        "erasure into finer weights."
                    )
            ledgers[module] = new
    except BaseException:
        for kept, before in reversed(written):
            kept.write(before)
        raise
    for module, ledger in ledgers.items():
        if ledger.entries:
            setattr(module, _LEDGER, ledger)
        else:
            delattr(module, _LEDGER)


def _part(entry: _Entry, component: str) -> _Entry:
    return _Entry(entry.digest, entry.scale, {p: c for p, c in entry.changes.items() if p.startswith(f"{component}.")})


def _rewritten(module: nn.Module, path: str, old: _Ledger, new: _Ledger) -> list[tuple[Kept, Tensor]]:
    """Write one layer, and what was fused from it, as the new ledger wants it; returns what was there, to go back."""
    kept = _kept(module, path)
    weight = kept.read()
    before, after = _total(old.entries.values(), path), _total(new.entries.values(), path)
    if after is not None and (bypass := _bypass(module, path)):
        raise InputError(bypass)
    fused = [(f, rows) for f, rows in _fused(module, path) if _equal(f.read()[rows], weight)]
    if after is not None and _reads_fused(module, path) and len(fused) < len(_fused(module, path)):
        raise InputError(
            f"the projections around {path} were fused from other weights; call pipe.unfuse_qkv_projections() and fuse "
            "them again."
        )
    original = _beneath(path, weight, old, before)
    value = original if after is None else _summed(original, after).to(weight.dtype)
    if not value.to(torch.float32).isfinite().all():
        raise NumericalError(f"{path} overflows in {weight.dtype} with this change; load the base in float32.")
    new.originals.pop(path, None)
    new.expected.pop(path, None)
    if after is not None:
        new.originals[path] = original
        directions = nn.functional.normalize(after.balanced().down[:4].to(torch.float32), dim=1).T
        size = float((after.up @ (after.down @ directions)).norm())
        if size > 0:
            total = _summed(original, after)
            new.expected[path] = (directions, (total @ directions.to(total.device)).cpu(), size)
    done = [(kept, weight)]
    kept.write(value)  # a new tensor: files that are mapped into memory are never written to
    for layer, rows in fused:
        whole = layer.read()
        done.append((layer, whole))
        copy = whole.clone()
        copy[rows] = value.to(copy)
        layer.write(copy)
    return done


def _beneath(path: str, weight: Tensor, ledger: _Ledger, change: LowRank | None) -> Tensor:
    """A layer's weight without the erasures in it, in its precision and place.

    Raises:
        ErasureLostError: it holds neither their change nor what was there before.
    """
    if change is None or path not in ledger.originals:
        return weight
    original = ledger.originals[path]
    made = _summed(original, change).to(original.dtype)
    if _equal(made.to(weight), weight):
        return original.to(weight)
    if path not in ledger.expected:
        return weight
    if _error(path, weight, ledger) <= TOLERANCE:
        return (weight.to(torch.float32) - change.delta().to(weight.device)).to(weight.dtype)
    directions = ledger.expected[path][0]
    if _error(path, weight.to(torch.float32) + change.delta().to(weight.device), ledger) <= TOLERANCE:
        return weight  # someone wrote the base over it
    raise ErasureLostError(
        f"{path} was changed by others along the {directions.shape[1]} directions that the erasure moves most, so that "
        "it cannot be taken out alone; open the base again."
    )


def _error(path: str, weight: Tensor, ledger: _Ledger) -> float:
    """How far a weight is from what it must be, where the edit moves it most; relative to that move."""
    directions, expected, size = ledger.expected[path]
    now = weight.to(torch.float32) @ directions.to(weight.device)
    error = float((now - expected.to(weight.device)).norm()) / size
    return error if math.isfinite(error) else math.inf


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.to(torch.float32), b.to(a.device, torch.float32))


# -- layers, and what is read in their place --------------------------------------------------------------------------


def _kept(module: nn.Module, path: str) -> Kept:
    """The linear layer at a path, underneath LoRA wrappers.

    Raises:
        BaseMismatchError: there is none.
    """
    name = canonical_to_live(module, path.partition(".")[2])
    try:
        layer: Any = module.get_submodule(name)
    except AttributeError:
        layer = None
    while hasattr(layer, "base_layer"):
        layer = layer.base_layer
    if not isinstance(layer, nn.Linear):
        raise BaseMismatchError(f"the pipeline has no layer {path}; the adapter is for another base.")
    return Kept(path, layer)


def _read(module: nn.Module, path: str) -> Tensor:
    return _kept(module, path).read()


def _around(module: nn.Module, path: str) -> nn.Module:
    """The attention that a projection belongs to."""
    return module.get_submodule(canonical_to_live(module, path.partition(".")[2]).rpartition(".")[0])


def _fused(module: nn.Module, path: str) -> list[tuple[Kept, slice]]:
    """Layers that were made of a projection and others, each with the rows that came from it."""
    attention, leaf = _around(module, path), path.rpartition(".")[2]
    found = []
    for name, parts in _FUSED.items():
        layer = getattr(attention, name, None)
        if isinstance(layer, nn.Linear) and leaf in parts:
            sizes = [getattr(attention, part).out_features for part in parts]
            start = sum(sizes[: parts.index(leaf)])
            found.append(
                (Kept(f"{path.rpartition('.')[0]}.{name}", layer), slice(start, start + sizes[parts.index(leaf)]))
            )
    return found


def _reads_fused(module: nn.Module, path: str) -> bool:
    """Whether the attention around a projection reads fused layers, or may: a processor of somebody else."""
    kind = type(getattr(_around(module, path), "processor", None))
    return "Fused" in kind.__name__ or not kind.__module__.startswith(("diffusers.", "builtins"))


def _bypass(module: nn.Module, path: str) -> str | None:
    """What is wrong where an attention processor brings keys and values of its own for the text."""
    processor = getattr(_around(module, path), "processor", None)
    if isinstance(processor, nn.Module):
        own = [name for name, _ in processor.named_parameters() if "_ip" not in name]  # those of an image prompt may
    else:
        own = [n for n, value in getattr(processor, "__dict__", {}).items() if isinstance(value, (Tensor, nn.Module))]
    if not own:
        return None
    return (
        f"the attention processor {type(processor).__name__} around {path} reads weights of its own ({own[0]}), which "
        "hold no erasure; use pipe.unet.set_default_attn_processor() first."
    )


def _refuse_group_offloading(component: str, module: nn.Module) -> None:
    """diffusers keeps copies of the weights there that it puts back at every call."""
    for part in module.modules():
        registry = getattr(part, "_diffusers_hook", None)
        if registry is not None and registry.get_hook("group_offloading") is not None:
            raise InputError(
                f"the {component} is under group offloading, which would put back the weights it keeps; load or unload "
                "erasures before enabling it."
            )


# -- the pipeline -----------------------------------------------------------------------------------------------------


def _promised(pipe: Any) -> dict[str, dict[str, str]]:
    """Name -> component -> digest of every erasure that this pipeline draws with."""
    return vars(pipe).get(_PROMISED, {})


def _promise(pipe: Any, promised: dict[str, dict[str, str]]) -> None:
    """From now on the pipeline verifies these before it draws; one without any is as it was.

    Raises:
        InputError: its class cannot be replaced.
    """
    plain: Any = getattr(type(pipe), _PLAIN, type(pipe))
    if not promised:
        vars(pipe).pop(_PROMISED, None)
        if hasattr(type(pipe), _PLAIN):
            pipe.__class__ = plain
        return
    if callable(pipe):
        try:
            pipe.__class__ = _guarded(plain)
        except TypeError as error:
            raise InputError(
                f"{plain.__name__} cannot be made to verify its erasures ({error}); use attached(pipe, adapter)."
            ) from error
    vars(pipe)[_PROMISED] = promised


def _lora_names(pipe: Any) -> set[str]:
    listed: dict[str, list[str]] = getattr(pipe, "get_list_adapters", dict)()
    return {name for names in listed.values() for name in names}


@cache
def _guarded(plain: Any) -> Any:
    """The same class, but for what it does before a call, and around what fuses LoRAs into the weights.

    A class of its own, because Python looks `__call__` up in the class; an instance cannot bring one.
    """

    def verified(inner: Any) -> Any:
        @wraps(inner)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            check_erasures(self)
            return inner(self, *args, **kwargs)

        return method

    def noted(inner: Any) -> Any:
        @wraps(inner)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            check_erasures(self)
            try:
                return inner(self, *args, **kwargs)
            finally:
                _note_anew(self)

        return method

    def named(inner: Any) -> Any:
        @wraps(inner)
        def method(self: Any, adapter_names: Any, *args: Any, **kwargs: Any) -> Any:
            ours = {adapter_names} if isinstance(adapter_names, str) else set(adapter_names)
            if mine := sorted(ours & set(_promised(self))):
                raise InputError(
                    f"{mine[0]!r} is an erasure in the weights, no LoRA; unload_erasure(pipe, {mine[0]!r})."
                )
            return inner(self, adapter_names, *args, **kwargs)

        return method

    wrappers = {
        "__call__": verified,
        "fuse_lora": noted,
        "unfuse_lora": noted,
        "set_adapters": named,
        "delete_adapters": named,
    }
    members = {name: wrap(getattr(plain, name)) for name, wrap in wrappers.items() if hasattr(plain, name)}
    members |= {
        "__module__": plain.__module__,
        "__qualname__": plain.__qualname__,
        "__doc__": plain.__doc__,
        "__reduce_ex__": lambda self, protocol: (_revived, (plain,), vars(self)),
        _PLAIN: plain,
    }
    return types.new_class(plain.__name__, (plain,), exec_body=lambda body: body.update(members))


def _revived(plain: type) -> Any:
    """A guarded pipeline without its state: what pickle and deepcopy begin with."""
    guarded = _guarded(plain)
    return guarded.__new__(guarded)


def _note_anew(pipe: Any) -> None:
    """The pipeline fused a LoRA into the weights or took it out: what they must be is what they are now."""
    for module in _all_components(pipe).values():
        ledger = _ledger(module)
        for path, (directions, _, size) in ledger.expected.items():
            weight = _read(module, path).to(torch.float32)
            ledger.expected[path] = (directions, (weight @ directions.to(weight.device)).cpu(), size)
