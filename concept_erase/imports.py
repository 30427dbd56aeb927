"""Heavy imports, made lighter."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unswept() -> Iterator[None]:
    """Without garbage collection meanwhile: an import makes objects by the hundred thousand, and all of them stay.

    Looking through them again and again is a good part of the time that torch and transformers take.
    """
    swept = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if swept:
            gc.enable()
