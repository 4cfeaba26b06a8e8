"""Pictures in a folder, a zip, a tar, or one file: what is found, left out, and refused in words."""

import bz2
import gzip
import io
import lzma
import os
import socket
import stat
import tarfile
import tracemalloc
import zipfile
from functools import partial

import pytest
from packing import write, zipped
from PIL import Image

import minires.data as data
from minires.data import archives
from minires.errors import DataError


def png(value=0, side=4):
    file = io.BytesIO()
    Image.new("RGB", (side, side), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()

alone = partial(lzma.compress, format=lzma.FORMAT_ALONE)
FILES = {"b/2.png": png(2), "a/deep/er/1.png": png(1), "0.png": png(0)}
SYSTEM = {
    ".DS_Store": b"x", "__MACOSX/a/._1.png": b"x", "a/Thumbs.db": b"x", "b/@eaDir/2.png/S.jpg": b"x",
    "readme.txt": b"x", "LICENSE": b"x", "b/desktop.ini": b"x", ".Trashes/x.png": b"x",
    "lost+found/x.png": b"x",
}  # fmt: skip


def tarred(path, files, mode="w", **options):
    with tarfile.open(path, mode, **options) as archive:
        for name, content in files.items():
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def member(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def read_all(path):
    return {picture.name: picture.read() for picture in data.pictures_at(path)}


@pytest.mark.parametrize("form", ["folder", "zip", "w", "w:gz", "w:bz2", "w:xz", "lzma", "pax", "gnu", "v7"])
def test_pictures_are_found_in_every_form_whatever_its_name(tmp_path, form):
    files = FILES | SYSTEM
    if form == "folder":
        path = write(tmp_path / "set", files)
    elif form == "zip":
        path = zipped(tmp_path / "set.dat", files)
    elif form == "v7":  # without the word "ustar"
        path = tarred(tmp_path / "set.dat", files, format=tarfile.USTAR_FORMAT)
        content = bytearray(path.read_bytes())
        place = 0
        while content[place]:
            size = int(content[place + 124 : place + 135], 8)
            content[place + 257 : place + 512] = bytes(255)
            content[place + 148 : place + 156] = b" " * 8
            content[place + 148 : place + 156] = b"%06o\0 " % sum(content[place : place + 512])
            place += 512 + (size + 511) // 512 * 512
        path.write_bytes(content)
    elif form in ("pax", "gnu"):
        kind = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT}[form]
        long = {"x" * 150 + "/é.png": png(9)}
        path = tarred(tmp_path / "set", files | long, format=kind)
        assert read_all(path) == FILES | long
        return
    elif form == "lzma":
        path = tarred(tmp_path / "set.dat", files)
        path.write_bytes(alone(path.read_bytes()))
    else:
        path = tarred(tmp_path / "set.dat", {"./" + name: content for name, content in files.items()}, form)
    assert [picture.name for picture in data.pictures_at(path)] == sorted(FILES)
    assert read_all(path) == FILES


def test_one_picture_is_a_list_of_one(tmp_path):
    (tmp_path / "me.jpg").write_bytes(png(7))
    assert read_all(tmp_path / "me.jpg") == {"me.jpg": png(7)}


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: path, "no such file or folder"),
        (os.mkfifo, "this is a pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "this is a device"),
        (lambda path: path.symlink_to("gone"), "no such file"),
        (lambda path: path.mkdir(), "no picture found"),
        (lambda path: path.write_bytes(b"7z\xbc\xaf\x27\x1c"), "7-Zip archive; unpack it, or pack it as zip"),
        (lambda path: path.write_bytes(b"\x1f\x9d\x90"), "packed with compress; unpack it"),
        (lambda path: path.write_bytes(b"LZIP\1"), "packed with lzip; unpack it"),
        (lambda path: path.write_bytes(b"MSCF\0"), "a Windows cabinet; unpack it"),
        (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(99)), "cannot read this zip: it is cut off"),
        (lambda path: path.write_bytes(gzip.compress(b"no tar")), "compressed, but no tar inside"),
        (lambda path: path.with_suffix(".tar").write_bytes(b"<html>"), "no such file"),
    ],
)  # fmt: skip
def test_what_holds_no_pictures_is_said(tmp_path, make, message):
    make(tmp_path / "x.jpg")
    with pytest.raises(DataError, match=message):
        data.pictures_at(tmp_path / "x.jpg")


def test_an_archive_by_name_alone_is_refused_with_what_it_is(tmp_path):
    for content, what in (
        (b"", "empty"),
        (b"<!DOCTYPE html>", "web page"),
        (b"version https://git-lfs", "LFS"),
    ):
        for name in ("a.zip", "a.tar.gz"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(DataError, match=f"cannot read this (zip|gz): .*{what}"):
                data.pictures_at(tmp_path / name)


def test_files_that_are_none_are_named_when_read_and_never_opened(tmp_path):
    root = write(tmp_path / "set", FILES)
    os.mkfifo(root / "pipe.jpg")
    (root / "gone.jpg").symlink_to("nowhere.jpg")
    (root / "self.jpg").symlink_to("self.jpg")
    (root / "zero.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "s.jpg"))
    said = {
        "pipe.jpg": "this is a pipe", "gone.jpg": "a link to nowhere.jpg, which is not there",
        "self.jpg": "a link to self.jpg", "zero.jpg": "this is a device", "s.jpg": "this is a socket",
    }  # fmt: skip
    for picture in data.pictures_at(root):
        if picture.name in FILES:
            assert picture.read() == FILES[picture.name]
        else:
            with pytest.raises(DataError, match=f"^{root}/{picture.name}: {said.pop(picture.name)}"):
                picture.read()
    assert not said


def test_archives_inside_are_named_in_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="archives inside are not opened, unpack them first: a/more.zip"):
        assert read_all(write(tmp_path, FILES | {"a/more.zip": b"PK"})) == FILES


def test_backslashes_of_windows_are_separators_in_a_zip(tmp_path):
    assert read_all(zipped(tmp_path / "a.zip", {"cat\\": b"", "cat\\1.png": png()})) == {"cat/1.png": png()}


def test_all_names_of_a_zip_have_one_encoding(tmp_path):
    names = ["石头/1.png", "剪刀/1.png", "布/1.png"]
    raws = [name.encode("gbk") for name in names]
    assert raws[0].decode("utf-8") == "ʯͷ/1.png"  # the bytes of the first alone could be UTF-8
    zipped(tmp_path / "a.zip", {str(n) * len(raw): png(n) for n, raw in enumerate(raws)})
    content = (tmp_path / "a.zip").read_bytes()
    for n, raw in enumerate(raws):
        content = content.replace(str(n).encode() * len(raw), raw)
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.warns(UserWarning, match="names in this zip are read as Chinese"):
        assert sorted(read_all(tmp_path / "a.zip")) == sorted(names)


def test_names_without_the_mark_of_utf8_are_read(tmp_path):
    for encoding in ("utf-8", "gbk"):
        raw = "训练集/猫/1.png".encode(encoding)
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("x" * len(raw), png())
        content = (tmp_path / "a.zip").read_bytes().replace(b"x" * len(raw), raw)
        (tmp_path / "a.zip").write_bytes(content)
        assert list(read_all(tmp_path / "a.zip")) == ["训练集/猫/1.png"]
    content = content.replace(raw, "Ä/".encode("cp437") + b"y" * (len(raw) - 2))
    (tmp_path / "a.zip").write_bytes(content)
    assert list(read_all(tmp_path / "a.zip"))[0].startswith("Ä/y")


def test_a_name_that_is_no_utf8_can_be_shown_and_read(tmp_path):
    try:
        (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(png())
    except OSError:
        pytest.skip("this file system takes no such name")
    assert read_all(tmp_path) == {"\\xff.png": png()}
    raw = tarred(tmp_path / "a.tar", {os.fsdecode(b"\xfe.png"): png()}, format=tarfile.GNU_FORMAT)
    assert read_all(raw) == {"\\xfe.png": png()}
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("éx.png", png())
    content = (tmp_path / "a.zip").read_bytes().replace("é".encode(), b"\xff\xff")
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DataError, match="marked as UTF-8 and is none"):
        data.pictures_at(tmp_path / "a.zip")


def test_of_two_files_of_one_name_the_last_counts_and_this_is_said(tmp_path):
    for path in (tmp_path / "a.zip", tmp_path / "a.tar"):
        pack = zipped if path.suffix == ".zip" else tarred
        pack(path, {"a/1.png": png(1), "b/1.png": png(3)})
        if path.suffix == ".zip":
            with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr("a/1.png", png(2))
        else:
            tarred(path, {"a/1.png": png(2)}, "a")
        with pytest.warns(UserWarning, match="1 files under a name that another file has, too.*: a/1.png"):
            assert read_all(path) == {"a/1.png": png(2), "b/1.png": png(3)}


def test_links_and_devices_in_archives_are_left_out_in_words_and_second_names_read(tmp_path):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("a/1.png")
        info.size = len(png())
        archive.addfile(info, io.BytesIO(png()))
        archive.addfile(member("a/2.png", tarfile.LNKTYPE, "a/1.png"))
        archive.addfile(member("a/3.png", tarfile.SYMTYPE, "/etc/passwd"))
        archive.addfile(member("a/4.png", tarfile.CHRTYPE))
        archive.addfile(member("a/5.png", tarfile.FIFOTYPE))
        archive.addfile(member("a/6.png", tarfile.LNKTYPE, "b/none.png"))
    with pytest.warns(
        UserWarning, match="4 links, devices or sparse files, .*left out: a/3.png, a/4.png, a/5.png"
    ):
        assert read_all(path) == {"a/1.png": png(), "a/2.png": png()}
    link = zipfile.ZipInfo("a/2.png")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    zipped(tmp_path / "a.zip", {"a/1.png": png(), link: b"/etc/passwd"})
    with pytest.warns(UserWarning, match="1 links"):
        assert read_all(tmp_path / "a.zip") == {"a/1.png": png()}


@pytest.mark.parametrize("name", ["/a/x.png", "../x.png", "a/../../x.png", "C:/x.png"])
def test_a_path_that_leads_out_of_a_tar_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="leads outside the archive"):
        data.pictures_at(tarred(tmp_path / "a.tar", {name: png()}))


def test_an_encrypted_zip_and_one_packed_strangely_are_refused_in_words(tmp_path):
    good = zipped(tmp_path / "a.zip", {"a/1.png": png()}).read_bytes()
    at = good.index(b"PK\x01\x02")
    for offset, value, message in (
        (8, 1, "encrypted .a/1.png needs a password.; unpack it"),
        (10, 9, "method 9"),
    ):
        bad = bytearray(good)
        bad[at + offset] = value
        (tmp_path / "a.zip").write_bytes(bad)
        with pytest.raises(DataError, match=message):
            data.pictures_at(tmp_path / "a.zip")


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress, alone])
def test_a_tar_that_is_cut_off_is_refused(tmp_path, pack):
    plain = tarred(tmp_path / "a.tar", {f"a/{i}.png": os.urandom(2000) for i in range(9)}).read_bytes()
    for cut in (
        pack(plain[:1000]),
        pack(plain[: 2560 * 4]),
        pack(plain[: 2560 * 4 + 100]),
        pack(plain)[:8000],
    ):
        (tmp_path / "a.tar").write_bytes(cut)
        with pytest.raises(DataError, match="cannot read this tar: .*cut off or damaged"):
            data.pictures_at(tmp_path / "a.tar")


def test_what_unfolds_to_far_more_than_pictures_do_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "UNFOLDED", 100_000)
    bomb = {f"a/{i}.png": bytes(100_000) for i in range(20)}
    tarred(tmp_path / "a.tar.gz", bomb, "w:gz")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in bomb.items():
            archive.writestr(name, content)
    for name in ("a.tar.gz", "a.zip"):
        with pytest.raises(DataError, match=r"bytes unfold to more than 100 times as many.*refused"):
            data.pictures_at(tmp_path / name)
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    for path in (zipped(tmp_path / "b.zip", FILES), tarred(tmp_path / "b.tar", FILES)):
        with pytest.raises(DataError, match="more than 2 files"):
            data.pictures_at(path)


def test_a_full_disk_is_not_taken_for_a_damaged_tar(tmp_path, monkeypatch):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    path = tarred(tmp_path / "a.tar.gz", FILES, "w:gz")
    monkeypatch.setattr(archives.tempfile, "TemporaryFile", lambda: open("/dev/full", "r+b", buffering=0))
    with pytest.raises(DataError, match="cannot keep the pictures .*No space left on device; set TMPDIR"):
        data.pictures_at(path)


def test_a_large_member_is_refused_when_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 1000)
    for mode in ("w", "w:gz"):
        found = data.pictures_at(tarred(tmp_path / "a.tar", {"huge.png": bytes(1001), "ok.png": png()}, mode))
        assert found[1].read() == png()
        with pytest.raises(DataError, match="huge.png: 1,001 bytes, the limit is 1,000"):
            found[0].read()


def test_a_zip_of_more_than_65535_files_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i in range(65_600):
            archive.writestr(f"{i}.txt", b"")
        archive.writestr("a.png", png())
    assert read_all(tmp_path / "a.zip") == {"a.png": png()}


def test_folders_may_be_deep_and_links_in_a_circle_are_refused(tmp_path):
    deep = write(tmp_path / "set", {"/".join("abcdefghijkl") + "/1.png": png()})
    assert len(read_all(deep)) == 1
    (deep / "a" / "back").symlink_to(deep)
    with pytest.raises(DataError, match="a/back: this link leads in a circle"):
        data.pictures_at(deep)


def test_a_member_that_tells_a_small_size_is_not_unfolded_further(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/1.png", bytes(200 * 2**20))
    content = (tmp_path / "a.zip").read_bytes()
    told = (200 * 2**20).to_bytes(4, "little")
    assert content.count(told) == 2
    (tmp_path / "a.zip").write_bytes(content.replace(told, (100).to_bytes(4, "little")))
    entry = next(one for one in archives.in_zip(tmp_path / "a.zip") if one.read)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="cat/1.png: damaged in the zip: Bad CRC-32"):
            entry.read()
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["..\\..\\1.png", "cat\\..\\..\\1.png", "\\1.png", "C:\\1.png"])
@pytest.mark.parametrize("pack", ["zip", "tar"])
def test_backslashes_lead_out_of_no_archive(tmp_path, name, pack):
    make = zipped if pack == "zip" else tarred
    with pytest.raises(DataError, match="has a path that leads outside the archive"):
        read_all(make(tmp_path / f"a.{pack}", {name: png()}))


def test_slashes_before_a_name_in_a_zip_are_nothing_and_a_colon_is_no_drive(tmp_path):
    names = {"/cat/1.png": png(), "//dog/1.png": png(1)} | ({} if os.name == "nt" else {"a:b/1.png": png(2)})
    found = read_all(zipped(tmp_path / "a.zip", names))
    assert found == {name.lstrip("/"): content for name, content in names.items()}


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_the_checksum_behind_a_compressed_tar_is_checked(tmp_path, mode):
    path = tarred(tmp_path / "a.tar", {"a/1.png": png(), "b/1.png": png(1)}, mode)
    content = bytearray(path.read_bytes())
    content[-{"w:gz": 6, "w:bz2": 2, "w:xz": 30}[mode]] ^= 4
    assert read_all(path)
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot read this tar: it is cut off or damaged"):
        read_all(path)


@pytest.mark.parametrize("packed", [False, True])
def test_a_member_of_a_tar_of_negative_size_is_refused(tmp_path, packed):
    head = bytearray(member("a/1.png", tarfile.REGTYPE).tobuf())
    head[124:136] = b"\xff" * 11 + b"\x00"  # a number of GNU tar's below zero
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    content = bytes(head) + bytes(1024)
    (tmp_path / "a.tar").write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match="damaged"):
        read_all(tmp_path / "a.tar")


def test_a_file_in_a_folder_that_cannot_be_read_is_named_as_given_with_what_to_do(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "gone.jpg").symlink_to("/nowhere")
    (picture,) = data.pictures_at(tmp_path)
    words = f"^{tmp_path}/a/gone.jpg: a link to /nowhere, which is not there; remove it$"
    with pytest.raises(DataError, match=words):
        picture.read()
