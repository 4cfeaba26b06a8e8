"""What a file is by its first bytes, in words, for the errors of all that read a user's files.

Only kinds that a picture, an archive and a file of weights can be taken for alike; what one reader alone can
meet stands there.
"""

from __future__ import annotations

PACKED = {
    b"\x1f\x8b": "gzip", b"\x1f\x9d": "compress", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"]\0\0": "lzma",
    b"LZIP": "lzip", b"\x28\xb5\x2f\xfd": "Zstandard",
}  # fmt: skip
ARCHIVES = {
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive", b"Rar!\x1a\x07": "a RAR archive", b"MSCF": "a Windows cabinet",
    b"!<arch>\n": "an ar archive", b"xar!": "a xar archive",
}  # fmt: skip
PAGES = (b"<!doctype html", b"<html", b"<head", b"<script")


def packed(start: bytes) -> str:
    """How a file is packed that begins with ``start``, and what to do; or "".

    >>> packed(b"7z\\xbc\\xaf\\x27\\x1c")
    'a 7-Zip archive; unpack it'
    """
    how = next((name for magic, name in PACKED.items() if start.startswith(magic)), "")
    what = next((name for magic, name in ARCHIVES.items() if start.startswith(magic)), "")
    return f"{what or f'packed with {how}'}; unpack it" if what or how else ""


def words(start: bytes) -> str:
    """What a file is that begins with ``start``, and what to do; or "" if nothing of this is known.

    >>> words(b"<!DOCTYPE html><title>404</title>")
    'a web page, not the file itself; was the download refused?'
    """
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
    if start.startswith(b"%PDF"):
        return "a PDF document"
    if start.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(PAGES):
        return "a web page, not the file itself; was the download refused?"
    return packed(start)
