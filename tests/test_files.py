import errno
import os
import tempfile

import pytest
from conftest import names_in, no_space

from concept_erase.errors import OutputError
from concept_erase.files import atomic_write


@pytest.mark.parametrize("data", ["Émoji 🐱\r\n", b"\x00\xff" * 1000, ""])
def test_what_is_written_is_what_is_read(tmp_path, data):
    path = tmp_path / "new" / "folder" / "file"
    atomic_write(path, data)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert names_in(path.parent) == ["file"]


def test_a_new_file_replaces_the_old_one_and_others_may_read_it(tmp_path):
    path = tmp_path / "file"
    atomic_write(path, "a much longer old text")
    atomic_write(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("step", ["replace", "fsync", "fdopen"])
def test_a_failing_write_keeps_the_old_file_and_leaves_no_temporary(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    atomic_write(path, "old")
    monkeypatch.setattr(os, step, no_space)
    with pytest.raises(OutputError, match=r"No space left.*choose another") as failed:
        atomic_write(path, "new")
    assert failed.value.exit_code == 74
    assert str(path) in str(failed.value)
    assert names_in(tmp_path) == ["file"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_temporary_that_another_worker_removed_is_written_again(tmp_path, monkeypatch, step):
    path, real, removed = tmp_path / "file", getattr(os, step), []

    def cleaned_before(*arguments):
        if not removed:
            (temporary,) = tmp_path.glob(".*.tmp")
            temporary.unlink()
            removed.append(temporary)
        return real(*arguments)

    monkeypatch.setattr(os, step, cleaned_before)
    atomic_write(path, "new")
    assert len(removed) == 1
    assert names_in(tmp_path) == ["file"]
    assert path.read_text() == "new"


def test_an_interruption_in_the_middle_leaves_no_temporary(tmp_path, monkeypatch):
    path = tmp_path / "file"
    atomic_write(path, "old")

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, "new")
    assert names_in(tmp_path) == ["file"]
    assert path.read_text() == "old"


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "mkstemp", read_only)
    with pytest.raises(OutputError, match="Permission denied"):
        atomic_write(tmp_path / "file", "new")
    assert names_in(tmp_path) == []


def test_a_file_in_the_place_of_the_folder_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(OutputError):
        atomic_write(tmp_path / "file" / "below", "new")
    assert (tmp_path / "file").read_text() == "old"
