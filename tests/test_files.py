"""Files that cannot be written: which, why, and what to do, and the old file stays."""

from __future__ import annotations

import errno
import os

import pytest

from minires.errors import MiniresError
from minires.files import atomic_write, remove_leftovers


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("ENOSPC", "Free some space"), ("EDQUOT", "quota"), ("EROFS", "mounted read-only"),
        ("EACCES", "change the permissions"), ("EPERM", "change the permissions"),
        ("ENAMETOOLONG", "a shorter name"), ("EMFILE", "too many files open"),
        ("ENFILE", "The whole machine"), ("EIO", "disk or its connection"),
        ("ENOENT", "not there, or was removed"), ("ENOTDIR", "is a file, and not a folder"),
    ],
)  # fmt: skip
def test_each_cause_has_its_own_words(name, way, tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"old")
    number = getattr(errno, name)

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("minires.files.os.replace", refuse)
    with pytest.raises(MiniresError) as refused, atomic_write(tmp_path / "x") as file:
        file.write(b"new")
    monkeypatch.undo()
    text = str(refused.value)
    assert text.startswith(f"cannot write {tmp_path / 'x'}: {os.strerror(number)}; nothing was changed. ")
    assert way in text and ("Free some space" in text) == (name == "ENOSPC")
    assert (tmp_path / "x").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_real_refusals_have_their_words(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for path, way in [
        (tmp_path / ("n" * 300), "Choose a shorter name"),
        (tmp_path / "gone" / "x", "not there, or was removed"),
        (tmp_path / "file" / "x", "is a file, and not a folder"),
        (tmp_path / "folder", "There is a folder of that name"),
    ]:
        with pytest.raises(MiniresError, match=f"nothing was changed. .*{way}"), atomic_write(path):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_an_error_of_the_writer_leaves_the_old_file_and_no_other(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    for error in (KeyboardInterrupt, ZeroDivisionError):
        with pytest.raises(error), atomic_write(tmp_path / "x") as file:
            file.write(b"new")
            raise error
    assert (tmp_path / "x").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_flushed_is_no_failure_once_the_file_is_there(tmp_path, monkeypatch):
    fsync, flushed = os.fsync, []

    def first_only(descriptor):
        flushed.append(descriptor)
        if len(flushed) > 1:
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr("minires.files.os.fsync", first_only)
    with atomic_write(tmp_path / "x") as file:
        file.write(b"new")
    assert (tmp_path / "x").read_bytes() == b"new" and len(flushed) == (2 if os.name == "posix" else 1)


def test_only_the_leftovers_of_the_named_files_go(tmp_path):
    for name in (".a.txt.abcd_123.tmp", ".b.txt.abcdefgh.tmp", ".a.txt.long_and_mine.tmp", "a.txt"):
        (tmp_path / name).write_text("x")
    remove_leftovers(tmp_path, "a.*")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {".b.txt.abcdefgh.tmp", ".a.txt.long_and_mine.tmp", "a.txt"}
