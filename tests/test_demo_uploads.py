"""Files from outside: only plain pictures and lists come in, and nothing of them but what is needed."""

import io
import os
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageStat

from concept_erase.errors import InputError
from demos.uploads import MOST_PICTURES, PICTURE_BYTES, keep_picture, open_picture, own_file, some_pictures, take_list


@pytest.fixture
def folder(tmp_path):
    """Where the server puts uploads."""
    place = tmp_path / "uploads" / "abc"
    place.mkdir(parents=True)
    return place


def picture(path, size=(40, 30), form=None, mode="RGB", **options):
    Image.new(mode, size, (200, 30, 40) if mode == "RGB" else 0).save(path, form, **options)
    return path


def png_claiming(width, height):
    """A PNG whose header claims a size that its few bytes do not have."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("name", "form"), [("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.webp", "WEBP"), ("a.dat", "PNG")])
def test_pictures_are_known_by_their_bytes(folder, name, form):
    image = open_picture(picture(folder / name, form=form))
    assert (image.mode, image.size) == ("RGB", (40, 30))


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "ICO", "PPM"])
def test_other_formats_are_refused_whatever_they_are_called(folder, form):
    with pytest.raises(InputError, match="not a PNG, JPEG or WebP"):
        open_picture(picture(folder / "a.png", form=form))


@pytest.mark.parametrize(
    "content", [b"\x80\x04\x95cos\nsystem\n", b"PK\x03\x04zip", b"<svg onload='x'/>", b"GIF89a", b"\0" * 64]
)
@pytest.mark.parametrize("name", ["a.png", "a.pt", "a.bin"])
def test_pickles_archives_and_scripts_are_refused(folder, content, name):
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=r"not a picture|not a PNG"):
        open_picture(folder / name)


@pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 2**31 - 1), (17_000, 10_001), (40_000, 1_001)])
def test_too_many_pixels_are_refused_before_decoding(folder, size, monkeypatch):
    (folder / "bomb.png").write_bytes(png_claiming(*size))
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(InputError, match=r"pixels|damaged"):
        open_picture(folder / "bomb.png")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_truncated_pictures_are_refused(folder, form):
    file = picture(folder / "a", (300, 300), form)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="damaged or cut short"):
        open_picture(file)


@given(
    st.binary(max_size=400),
    st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\x10\0\0\0WEBPVP8 ", b""]),
)
def test_any_bytes_give_a_picture_or_a_clear_error(tmp_path_factory, data, start):
    file = tmp_path_factory.mktemp("fuzz") / "a.png"
    file.write_bytes(start + data)
    try:
        image = open_picture(file)
    except InputError:
        return
    assert image.mode == "RGB"


def test_metadata_is_dropped_and_orientation_kept(folder, tmp_path):
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "a secret place", 6  # ImageDescription, Orientation: a quarter turn
    picture(folder / "a.jpg", (40, 20), exif=exif, comment=b"another secret")
    kept = keep_picture(open_picture(folder / "a.jpg"), tmp_path / "kept")
    with Image.open(kept) as image:
        assert image.size == (20, 40)
        assert not dict(image.getexif())
        assert set(image.info) == set()
    assert b"secret" not in kept.read_bytes()


def test_transparent_pictures_lie_on_white(folder):
    image = open_picture(picture(folder / "a.png", mode="RGBA"))
    assert image.getpixel((0, 0)) == (255, 255, 255)


def test_large_pictures_are_made_smaller(folder):
    assert max(open_picture(picture(folder / "a.png", (3000, 1500))).size) == 768


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "I;16"])
def test_strips_give_what_the_whole_gives(folder, mode):
    """A picture reduced in strips is the picture, whatever its pixels are made of."""
    ramp = Image.linear_gradient("L").resize((4000, 3100)).rotate(180)
    (ramp if mode == "I;16" else ramp.convert(mode)).convert(mode).save(folder / "a.png")
    with Image.open(folder / "a.png") as whole:
        expected = whole.convert("RGB").resize((768, 595), Image.Resampling.BOX)
    found = open_picture(folder / "a.png")
    assert found.size == expected.size
    apart = ImageStat.Stat(ImageChops.difference(found, expected)).mean
    assert max(apart) < (8 if mode == "1" else 2)  # of 255; dots of one bit are blurred differently


@pytest.mark.parametrize(
    ("name", "options"), [("scan.png", {"compress_level": 1}), ("scan.jpg", {}), ("scan.jpg", {"progressive": True})]
)
def test_scans_of_80_million_pixels_are_scaled(folder, name, options):
    picture(folder / name, (10_000, 8_000), **options)
    image = open_picture(folder / name)
    assert image.size[0] == 768
    assert max(abs(a - b) for a, b in zip(image.getpixel((300, 300)), (200, 30, 40), strict=True)) <= 2


def test_large_scans_keep_the_orientation_that_the_camera_meant(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(folder / "a.png", (4000, 3200), exif=exif)
    assert open_picture(folder / "a.png").size == (614, 768)


@pytest.mark.parametrize(("name", "options"), [("a.jpg", {"progressive": True}), ("a.webp", {})])
def test_what_takes_more_memory_is_bounded_sooner(folder, name, options, monkeypatch):
    """The bound is in bytes of memory: the same size passes as a plain PNG."""
    monkeypatch.setattr("demos.uploads.PICTURE_MEMORY", 4 * 40 * 30)
    assert open_picture(picture(folder / "a.png"))
    with pytest.raises(InputError, match="make it smaller or save it as PNG"):
        open_picture(picture(folder / name, **options))


@pytest.mark.parametrize("paths", [None, [], "a.png", 7, ["x"] * (MOST_PICTURES + 1)])
def test_none_and_too_many_are_refused(paths):
    with pytest.raises(InputError, match=r"no picture|too many"):
        some_pictures(paths)


# -- which files at all --------------------------------------------------------------------------------------------


def test_only_uploaded_files_are_read(folder, tmp_path):
    outside = picture(tmp_path / "outside.png")
    link = folder / "link.png"
    link.symlink_to(outside)
    (folder / "inner").symlink_to(tmp_path)
    for path in (outside, "/etc/passwd", link, folder / "inner" / "outside.png", folder / ".." / ".." / "outside.png"):
        with pytest.raises(InputError, match=r"not uploaded here|can be used"):
            own_file(str(path), folder, PICTURE_BYTES)


@pytest.mark.parametrize("path", [None, 7, b"\0", {"path": "a"}, ["a"]])
def test_what_is_no_path_is_refused(folder, path):
    with pytest.raises(InputError):
        own_file(path, folder, PICTURE_BYTES)


def test_folders_empty_and_huge_files_are_refused(folder):
    (folder / "empty").write_bytes(b"")
    with (folder / "huge").open("wb") as file:
        file.truncate(PICTURE_BYTES + 1)
    os.mkfifo(folder / "pipe")
    for name, told in (
        ("empty", "is empty"),
        ("huge", "at most 200 MiB"),
        ("pipe", "not a file"),
        (".", "not a file"),
        ("nothing", "not a file"),
    ):
        with pytest.raises(InputError, match=told):
            own_file(folder / name, folder, PICTURE_BYTES)


# -- lists ---------------------------------------------------------------------------------------------------------


def test_a_list_is_taken(folder):
    (folder / "a.CSV").write_text("target\nnoto\n")
    assert take_list(str(folder / "a.CSV"), folder) == folder / "a.CSV"


def test_an_excel_table_is_taken_although_it_is_an_archive(folder):
    (folder / "a.xlsx").write_bytes(b"PK\x03\x04")
    assert take_list(str(folder / "a.xlsx"), folder) == folder / "a.xlsx"


@pytest.mark.parametrize("name", ["a.pt", "a.zip", "a.exe", "a", "a.html", "a.csv.pkl"])
def test_other_kinds_of_list_are_refused(folder, name):
    (folder / name).write_text("target\nnoto\n")
    with pytest.raises(InputError, match="is no list"):
        take_list(str(folder / name), folder)


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x80\x02", b"\x1f\x8b"])
def test_archives_in_disguise_are_refused(folder, start):
    (folder / "a.csv").write_bytes(start + b"target\nnoto\n")
    with pytest.raises(InputError, match="archive or pickle"):
        take_list(str(folder / "a.csv"), folder)


def test_a_huge_list_is_refused(folder):
    (folder / "a.csv").write_bytes(b"target\n" + b"x\n" * 2**20)
    with pytest.raises(InputError, match="at most 1 MiB"):
        take_list(str(folder / "a.csv"), folder)


def test_the_same_pixels_are_kept_once(folder, tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(buffer, "PNG")
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(buffer.getvalue())
    kept = {keep_picture(open_picture(folder / name), tmp_path / "kept") for name in ("a.png", "b.png")}
    assert len(kept) == 1
