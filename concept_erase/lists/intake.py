"""A file that a user hands over, as text: only small, regular text files come in, and nothing is fetched."""

from __future__ import annotations

import codecs
import errno
import os
import re
import stat
import unicodedata
from pathlib import Path

from concept_erase.errors import InputError

LARGEST = 16 * 2**20  # bytes; the largest lists in use have tens of kilobytes
REMEDY = "pass a list as CSV, Excel (.xlsx), YAML, JSON lines or plain text"

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/|data:", re.IGNORECASE)  # one slash: Path() joins the two of a URL
_REFUSED = {
    "a pickle, which can run code": (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill"),
    "an archive": (".zip", ".gz", ".tgz", ".tar", ".7z", ".rar", ".xz", ".bz2", ".zst"),
    "a spreadsheet's own format": (".xls", ".xlsm", ".xlsb", ".xltx", ".ods", ".fods", ".numbers"),
    "a file of weights or arrays": (".safetensors", ".npy", ".npz", ".onnx", ".h5", ".gguf"),
}
_MAGIC = {
    b"PK\x03\x04": "an archive or a spreadsheet's own format (an Excel table ends in .xlsx)",
    b"PK\x05\x06": "an archive",
    b"\x1f\x8b": "an archive",
    b"7z\xbc\xaf\x27\x1c": "an archive",
    b"Rar!": "an archive",
    b"BZh": "an archive",
    b"\xfd7zXZ": "an archive",
    b"\x28\xb5\x2f\xfd": "an archive",
    b"\xd0\xcf\x11\xe0": "a spreadsheet's own format",
    b"%PDF": "a PDF",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"\x80\x02": "a pickle, which can run code",
    b"\x80\x03": "a pickle, which can run code",
    b"\x80\x04": "a pickle, which can run code",
    b"\x80\x05": "a pickle, which can run code",
}
_BOMS = (  # the four-byte ones first: UTF-32 begins like UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_bytes(path: Path | str) -> bytes:
    """The content of a regular file.

    Raises:
        InputError: a URL, a symbolic link, a folder or device, a pickle or archive, more than 16 MiB, or unreadable.
    """
    told = str(path)
    if _URL.match(told):
        raise InputError(f"{told!r} is an address, and nothing is fetched; download the list and pass the file.")
    refuse_suffix(told)
    try:
        # Never follow a link in the last place, never wait for a pipe's writer.
        handle = os.open(told, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):  # what O_NOFOLLOW says of a link
            raise InputError(f"{told} is a symbolic link; pass the file that it points to.") from error
        raise InputError(f"{told} could not be read ({error.strerror}); {REMEDY}.") from error
    except ValueError as error:  # a NUL in the name
        raise InputError(f"{told!r} is no file name ({error}); {REMEDY}.") from error
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise InputError(f"{told} is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}; {REMEDY}.")
    with os.fdopen(handle, "rb") as file:
        try:
            return file.read(LARGEST + 1)  # the size that the system tells is not asked: it can be wrong
        except OSError as error:
            raise InputError(f"{told} could not be read ({error.strerror}); {REMEDY}.") from error


def refuse_suffix(name: str) -> None:
    """Raises InputError where the name alone says that this is no list."""
    for what, suffixes in _REFUSED.items():
        if Path(name).suffix.lower() in suffixes:
            raise InputError(f"{name} is {what}, and is not opened; {REMEDY}.")


def decode(data: bytes, name: str, *, windows: bool) -> tuple[str, str | None]:
    """Text of a file, with `\\n` at the end of lines, and a notice where the encoding had to be guessed.

    UTF-8 with or without BOM, UTF-16 and UTF-32 with BOM; Windows-1252 where `windows` allows it and it reads as names.

    Raises:
        InputError: too large, empty, binary, or in an encoding that cannot be told.
    """
    if len(data) > LARGEST:
        raise InputError(f"{name} is larger than {LARGEST // 2**20} MiB; split the list.")
    for magic, what in _MAGIC.items():
        if data.startswith(magic):
            raise InputError(f"{name} is {what}; {REMEDY}.")
    encoding = next((e for bom, e in _BOMS if data.startswith(bom)), None)
    notice = None
    if encoding is None and b"\0" in data:
        raise InputError(f"{name} is binary, or UTF-16 without a byte order mark; {REMEDY}, saved as UTF-8.")
    try:
        text = data.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        text = _windows(data) if windows and encoding is None else ""
        if not text:
            line = 1 + data.count(b"\n", 0, error.start)
            raise InputError(
                f"{name} is not valid {(encoding or 'utf-8').upper().removesuffix('-SIG')} (byte "
                f"0x{data[error.start]:02x}, line {line}); save it as UTF-8."
            ) from error
        notice = f"{name} is not UTF-8 and was read as Windows-1252; check names with accents, or save it as UTF-8."
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    odd = sum(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in text[:100_000])
    if odd > 0.05 * min(len(text), 100_000):
        raise InputError(f"{name} is binary ({odd} control characters); {REMEDY}.")
    if not text.strip("\ufeff \t\n"):
        raise InputError(f"{name} is empty; {REMEDY}.")
    return text, notice


def _windows(data: bytes) -> str:
    """The bytes as Windows-1252 if that gives names in Latin letters, else "".

    Almost any bytes are valid Windows-1252, so it must also look right: no sequence that is valid UTF-8 (that would be
    a damaged UTF-8 file), no signs that names do not have, and mostly plain letters (else it is another code page).
    """
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return ""
    damaged = any(c > "\x7f" and c != "\ufffd" for c in data.decode("utf-8", "replace"))
    special = [c for c in text if c > "\x7f"]
    names = all(c.isalpha() or c in "\xa0‘’‚“”„–—…·´°ºª©®™«»¡¿½" for c in special)
    return text if names and not damaged and len(special) <= 0.3 * sum(c.isalpha() for c in text) else ""
