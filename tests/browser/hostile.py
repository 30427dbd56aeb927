"""Files that nobody should send us."""

import io
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

from PIL import Image

SCRIPT = "<script>alert('concept')</script><img src=x onerror=alert(1)>"
BIDI = "cat\u202egnp.exe"
ZERO_WIDTH = "\u200b\u200d\ufeff"
FORMULA = '=HYPERLINK("http://example.com","cat")'

YAML_BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML_TAG = "- target: !!python/object/apply:os.system ['touch hacked']\n"


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb_png(side: int = 60_000) -> bytes:
    """A small file whose header promises `side` squared pixels; its lines are really there, all zero, compressed."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    lines = zlib.compress(bytes(2**22), 9)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", lines) + _chunk(b"IEND", b"")


def picture(side: int = 64, colour: tuple[int, int, int] = (40, 90, 200)) -> Image.Image:
    """A harmless picture."""
    return Image.new("RGB", (side, side), colour)


def truncated_png() -> bytes:
    """The first half of a picture."""
    data = _encoded(Image.effect_noise((256, 256), 80), "PNG")
    return data[: len(data) // 2]


def jpeg_with_place() -> bytes:
    """A JPEG that says where and with what it was taken."""
    exif = Image.Exif()
    exif[0x010F] = "SecretCamera"
    exif.get_ifd(0x8825).update({1: "N", 2: (47.0, 22.0, 11.0)})
    buffer = io.BytesIO()
    picture(128).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def _encoded(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


class _Touch:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def pickled(canary: Path) -> bytes:
    """A `.pt` whose opening creates `canary`."""
    return pickle.dumps(_Touch(canary))


def zipped(name: str = "../../escaped.txt") -> bytes:
    """A zip that wants out of its folder."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "out")
    return buffer.getvalue()
