"""Files from outside: checked before anything opens them, and kept only as plain pixels."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageFile

from concept_erase.errors import InputError

MOST_PICTURES = 64
PICTURE_BYTES = 200 * 2**20  # a scan of 80 million pixels as PNG has up to 190 MiB
PICTURE_PIXELS = 170_000_000  # below 179 million, where Pillow refuses by itself
PICTURE_MEMORY = 800 * 2**20  # bytes that decoding one picture may take; one is decoded at a time
LIST_BYTES = 2**20
SIDE = 768  # pixels that are kept
MOST_KEPT = 4 * 2**30  # bytes in the upload folder
FILE_LIMIT = "200mb"  # what the server takes at all, per file

# Bytes of memory for each pixel while the whole of a picture is decoded: Pillow's own four, and those of the decoders.
# A JPEG is decoded line by line at a fraction of its size, unless it is progressive.
_DECODED = {"PNG": 4, "WEBP": 17, "JPEG": 1, "progressive JPEG": 8}
_DEFLATE = 1100  # no compressed byte of a PNG unfolds to more
_one_at_a_time = threading.Lock()

_PICTURES = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "WEBP": (b"RIFF",),
}
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")


def room(folder: Path) -> bool:
    """Whether the upload folder may take more: it holds less than `MOST_KEPT` bytes."""
    kept = 0
    for path in folder.rglob("*"):
        try:
            kept += path.lstat().st_size
        except OSError:
            continue  # removed meanwhile
    return kept < MOST_KEPT


def emptied(folder: Path) -> None:
    """Remove what earlier runs left: uploads and copies for download are made anew when they are wanted."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def own_file(path: object, folder: Path, most: int) -> Path:
    """A file that really was uploaded: a plain file in the upload folder, not a link, of a bearable size.

    Args:
        folder: Where the server puts uploads.
        most: Bytes.
    Raises:
        InputError: anything else.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError("a file is missing; upload it again.")
    file = Path(path)
    name = file.name[:80]
    if "\0" in str(file) or ".." in file.parts:
        raise InputError(f"{name!r} is not a file name that can be used; rename the file.")
    if file.is_symlink() or not file.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{name!r} was not uploaded here; choose it with the upload field.")
    if not file.is_file():
        raise InputError(f"{name!r} is not a file; upload files, not links or folders.")
    size = file.stat().st_size
    if size == 0:
        raise InputError(f"{name!r} is empty; choose another file.")
    if size > most:
        raise InputError(f"{name!r} has {size / 2**20:.1f} MiB; at most {most / 2**20:.0f} MiB are read.")
    return file


def open_picture(file: Path) -> Image.Image:
    """The pixels of an uploaded picture, and nothing else of it.

    The format is told by the first bytes and the size by the header, before anything is decoded.

    Returns:
        An RGB picture of at most `SIDE` pixels a side; EXIF, profiles and comments are gone.
    Raises:
        InputError: not a PNG, JPEG or WebP picture, too many pixels, truncated or corrupt.
    """
    name = file.name[:80]
    with file.open("rb") as opened:
        start = opened.read(16)
    if file.suffix.lower() in _PICKLES or start[:2] == b"\x80\x02" or start[:4] == b"PK\x03\x04":
        raise InputError(f"{name!r} is not a picture but a weights or archive file; such files are never opened.")
    kind = next((k for k, marks in _PICTURES.items() if start.startswith(marks)), None)
    if kind is None or (kind == "WEBP" and start[8:12] != b"WEBP"):
        raise InputError(f"{name!r} is not a PNG, JPEG or WebP picture; save it as one of these.")
    try:
        with _one_at_a_time, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own bounds are told below
            with Image.open(file, formats=[kind]) as image:
                _check_size(image, file)
                image.draft("RGB", (2 * SIDE, 2 * SIDE))
                image.load()
                return _plain(_reduced(image))
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(f"{name!r} has far too many pixels; {_MAKE_SMALLER}") from None
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, OverflowError) as error:
        raise InputError(f"{name!r} is damaged or cut short ({error}); save it again.") from error


_MAKE_SMALLER = f"at most {PICTURE_PIXELS // 10**6} million are read, make it smaller."


def _check_size(image: Image.Image, file: Path) -> None:
    """Refuse what is too small or too large, by the header alone.

    Raises:
        InputError: it is; or a PNG's few bytes cannot hold what its header promises.
    """
    (width, height), name = image.size, file.name[:80]
    if width < 8 or height < 8:
        raise InputError(f"{name!r} has {width} x {height} pixels; at least 8 x 8 are needed.")
    if width * height > PICTURE_PIXELS:
        raise InputError(f"{name!r} has {width:,} x {height:,} pixels; {_MAKE_SMALLER}")
    kind = str(image.format)
    if image.info.get("progressive"):
        kind = "progressive JPEG"
    most = PICTURE_MEMORY // _DECODED[kind]
    if width * height > most:
        raise InputError(
            f"{name!r} has {width:,} x {height:,} pixels; of a {kind} at most {most // 10**6} million are read, make "
            "it smaller or save it as PNG."
        )
    if kind == "PNG" and width * height // 8 > _DEFLATE * file.stat().st_size:
        raise InputError(f"{name!r} is damaged: its header promises more pixels than its bytes hold; save it again.")


def _reduced(image: Image.Image) -> Image.Image:
    """A picture of less than 4 `SIDE` pixels a side, averaged strip by strip, so that no second whole copy is made."""
    factor = max(image.size) // (2 * SIDE)
    if factor < 2:
        return image
    width, height = image.size
    small = Image.new("RGBA", (-(-width // factor), -(-height // factor)))
    strip = 64 * factor
    for top in range(0, height, strip):
        part = image.crop((0, top, width, min(height, top + strip))).convert("RGBA")
        small.paste(part.reduce(factor), (0, top // factor))
    orientation = image.getexif().get(_ORIENTATION)
    if orientation:
        small.getexif()[_ORIENTATION] = orientation
    return small


_ORIENTATION = 0x0112


def _plain(image: Image.Image) -> Image.Image:
    """Pixels on white, small enough, in the orientation that the camera meant."""
    from PIL import ImageOps

    turned = ImageOps.exif_transpose(image)
    turned.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    clear = turned.convert("RGBA")
    paper = Image.new("RGB", clear.size, "white")
    paper.paste(clear, mask=clear.getchannel("A"))
    return paper


def some_pictures(paths: object) -> list[object]:
    """What an upload field of pictures gave, as a list of a bearable length; nothing is read yet.

    Raises:
        InputError: none or too many were given.
    """
    if not isinstance(paths, Sequence) or isinstance(paths, str) or not paths:
        raise InputError("no picture was uploaded; choose a handful of your own.")
    if len(paths) > MOST_PICTURES:
        raise InputError(f"{len(paths)} pictures are too many; upload at most {MOST_PICTURES}.")
    return list(paths)


def keep_picture(image: Image.Image, keep: Path) -> Path:
    """A checked picture as a PNG file of pixels alone, named by content.

    Args:
        keep: The folder.
    """
    from concept_erase.files import atomic_write

    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    file = keep / f"{hashlib.sha256(buffer.getvalue()).hexdigest()[:32]}.png"
    if not file.is_file():
        atomic_write(file, buffer.getvalue())
    return file


def take_list(path: object, folder: Path) -> Path:
    """An uploaded list of concepts, as a path that `lists.read_list` may read.

    Raises:
        InputError: not an upload, too large, an archive or pickle, or of an unknown kind.
    """
    file = own_file(path, folder, LIST_BYTES)
    known = (".csv", ".xlsx", ".tsv", ".txt", ".yaml", ".yml", ".jsonl", ".ndjson")
    if file.suffix.lower() not in known:
        raise InputError(f"{file.name[:80]!r} is no list; upload one of {', '.join(known)}.")
    with file.open("rb") as opened:
        start = opened.read(4)
    packed = start == b"PK\x03\x04" and file.suffix.lower() != ".xlsx"  # the reader looks into an Excel table itself
    if start[:2] == b"\x80\x02" or packed or start[:2] == b"\x1f\x8b":
        raise InputError(f"{file.name[:80]!r} is an archive or pickle, not a list; export it as CSV.")
    return file


ImageFile.LOAD_TRUNCATED_IMAGES = False  # a cut-off picture is refused, whatever other packages have set
