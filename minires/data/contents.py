"""What a file is that is called a picture and cannot be read as one, in words; told by its first bytes.

What is not a matter of pictures, :mod:`minires.beginnings` knows.
"""

from __future__ import annotations

from minires import beginnings

# The bytes with which a file begins, and what to say of it.
BEGINNINGS = (
    (b"%PDF", "a PDF document; save its pictures as JPEG or PNG"),
    (b"8BPS", "a Photoshop document; save it as JPEG or PNG"),
    (b"\xff\x0a", "a JPEG XL picture, which cannot be read; save it as JPEG or PNG"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture, which cannot be read; save it as JPEG or PNG"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture, which is not read; save it as JPEG or PNG"),
    (b"\0\0\x01\0", "an icon; save it as PNG"),
    (b"PK\x03\x04", "a zip archive; give its path by itself, or unpack it"),
    (
        b"\x89HDF\r\n",
        "an HDF5 file: `minires train` and `minires evaluate` read one of labelled pictures by its path, "
        "with --data; to predict or to play, save its pictures as JPEG or PNG",
    ),
    (b"PAR1", "a Parquet file; save its pictures as JPEG or PNG, in a folder for each class"),
    (b"\x1aE\xdf\xa3", "a film; save its pictures as JPEG or PNG"),
)
# Of the ISO base media format the kind stands in bytes 8 to 12.
BRANDS = {
    "an AVIF picture, which this Pillow cannot read; `pip install -U pillow` brings one that can": (
        b"avif", b"avis",
    ),
    "a HEIC picture, as phones take them, which cannot be read; save it as JPEG": (
        b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1",
    ),
}  # fmt: skip


def describe(content: bytes) -> str:
    """What ``content`` is, or "" if its first bytes say nothing; "" for a picture in a format that is read.

    >>> describe(b"<!DOCTYPE html><title>404</title>")
    'a web page, not the file itself; was the download refused?'
    """
    for beginning, words in BEGINNINGS:
        if content.startswith(beginning):
            return words
    if content[4:8] == b"ftyp":
        for words, brands in BRANDS.items():
            if content[8:12] in brands:
                return words
        return "a film; save its pictures as JPEG or PNG"
    if known := beginnings.words(content[:1000]):
        return known
    text = content[:1000].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<svg", b"<?xml")):
        return "an SVG drawing; save it as PNG" if b"svg" in text else "XML, not a picture"
    if text.startswith((b"{", b"[")):
        return "text, not a picture"
    return "only zeros; the file was never written whole" if not content.strip(b"\0") else ""
