import os
import pickle
import socket
import zipfile
from pathlib import Path

import pytest

from concept_erase.errors import InputError
from concept_erase.lists import intake
from concept_erase.lists.intake import decode, read_bytes


def refused(path):
    with pytest.raises(InputError) as caught:
        decode(read_bytes(path), str(path), windows=True)
    assert caught.value.exit_code == 2
    return str(caught.value)


# -- files ---------------------------------------------------------------------------------------------------------


def test_a_regular_file_is_read(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"cat\r\ndog\r")
    assert decode(read_bytes(tmp_path / "list.txt"), "list.txt", windows=False) == ("cat\ndog\n", None)


@pytest.mark.parametrize(
    "url",
    ["https://example.org/list.csv", "http://127.0.0.1:9/x", "file:///etc/passwd", "s3://bucket/x.csv", "FTP://x/y",
     "data:text/csv,cat"],
)  # fmt: skip
@pytest.mark.parametrize("form", [str, Path])
def test_an_address_is_refused_and_nothing_is_fetched(url, form, monkeypatch):
    monkeypatch.setattr(socket, "socket", None)
    monkeypatch.setattr(os, "open", None)
    assert "nothing is fetched" in refused(form(url))


def test_a_windows_path_is_no_address(tmp_path):
    assert "could not be read" in refused("C:/lists/artists.csv")


def test_a_link_is_refused_even_to_a_good_list(tmp_path):
    (tmp_path / "list.csv").write_text("target\ncat\n")
    (tmp_path / "link.csv").symlink_to(tmp_path / "list.csv")
    (tmp_path / "broken.csv").symlink_to(tmp_path / "nowhere.csv")
    assert "is a symbolic link; pass the file" in refused(tmp_path / "link.csv")
    assert "is a symbolic link; pass the file" in refused(tmp_path / "broken.csv")


def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    assert "no regular file" in refused(tmp_path / "pipe.csv")


def test_folders_devices_and_missing_files_are_refused(tmp_path):
    assert "is a folder" in refused(tmp_path)
    assert "no regular file" in refused("/dev/null")
    assert "No such file" in refused(tmp_path / "missing.csv")
    assert "no file name" in refused("a\0b.csv")
    assert "could not be read" in refused("x" * 5000)


@pytest.mark.parametrize(
    ("name", "told"),
    [("a.pt", "a pickle"), ("a.BIN", "a pickle"), ("a.pkl", "a pickle"), ("a.ckpt", "a pickle"),
     ("a.zip", "an archive"), ("a.csv.gz", "an archive"), ("a.xls", "a spreadsheet's own format"),
     ("a.ods", "a spreadsheet"), ("a.numbers", "a spreadsheet"), ("a.XLSM", "a spreadsheet"),
     ("a.safetensors", "weights")],
)  # fmt: skip
def test_a_suffix_can_be_enough_to_refuse(name, told, tmp_path):
    (tmp_path / name).write_text("target\ncat\n")
    assert told in refused(tmp_path / name)


def test_what_is_no_text_is_refused_whatever_it_is_called(tmp_path):
    path = tmp_path / "list.csv"
    for protocol in (2, 3, 4, 5):
        path.write_bytes(pickle.dumps(["cat"], protocol))
        assert "a pickle" in refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("list.csv", "target\ncat\n")
    assert "an archive" in refused(path)
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    assert "a picture" in refused(path)
    path.write_bytes(b"cat\0dog")
    assert "binary" in refused(path)
    path.write_bytes(bytes(range(1, 32)) * 4)
    assert "binary" in refused(path)


def test_a_list_that_is_too_large_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "list.txt"
    path.write_bytes(b"cat\n")
    os.truncate(path, intake.LARGEST + 1)
    assert "larger than 16 MiB; split" in refused(path)
    monkeypatch.setattr(intake, "LARGEST", 4)
    path.write_bytes(b"cat\n")
    assert decode(read_bytes(path), "x", windows=True)[0] == "cat\n"


@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xef\xbb\xbf", b"\xff\xfe"])
def test_an_empty_list_is_refused(content, tmp_path):
    (tmp_path / "list.csv").write_bytes(content)
    assert "is empty" in refused(tmp_path / "list.csv")


# -- encodings -----------------------------------------------------------------------------------------------------

NAMES = "Paul Cézanne\n北斎\nفان جوخ\n🐱\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_is_read_with_and_without_its_mark(encoding):
    assert decode(NAMES.encode(encoding), "x", windows=False) == (NAMES, None)


def test_both_byte_orders_are_read():
    assert decode(b"\xfe\xff" + NAMES.encode("utf-16-be"), "x", windows=False) == (NAMES, None)


def test_utf16_without_its_mark_is_named():
    with pytest.raises(InputError, match="UTF-16 without a byte order mark"):
        decode("cat\n".encode("utf-16-le"), "x", windows=True)


def test_half_a_character_of_utf16_is_an_error():
    with pytest.raises(InputError, match="not valid UTF-16"):
        decode("cat\n".encode("utf-16")[:-1], "x", windows=True)


def test_windows_1252_is_the_last_resort_and_said_so():
    text, notice = decode("Paul Cézanne\r\nEdvard Munch’s “Scream”\r\n".encode("cp1252"), "old.csv", windows=True)
    assert text == "Paul Cézanne\nEdvard Munch’s “Scream”\n"
    assert notice.startswith("old.csv is not UTF-8 and was read as Windows-1252")


@pytest.mark.parametrize(
    "data",
    [
        "target\nВан Гог\n".encode("cp1251"),  # letters to Windows-1252, but not names
        "target\n北京市\n".encode("gbk"),
        "target\n葛飾北斎\n".encode("shift-jis"),
        "target\nPaul Cézanne\nMünch".encode() + b"\xe9",  # damaged UTF-8
        b"target\nPaul C\x81zanne\n",  # no such character
    ],
)
def test_other_encodings_are_not_guessed_at(data):
    with pytest.raises(InputError, match=r"not valid UTF-8 \(byte 0x.., line \d\); save it as UTF-8"):
        decode(data, "old.csv", windows=True)


def test_formats_that_are_always_utf8_are_not_read_as_windows_1252():
    with pytest.raises(InputError, match="byte 0xe9, line 2"):
        decode(b'[\n"C\xe9zanne"]', "a.json", windows=False)
