"""How archives, HDF5 files and pictures are damaged in what their formats are made of; see mutations.py."""

from __future__ import annotations

import gzip
import io
import json
import re
import struct
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from mutations import SPECIAL, Change, Mutate, Rng, dumped, odd_json, some_bytes

# -------------------------------------------------------------------------------------------------- zip

ZIP_FIELDS = {  # of each kind of record: place and width of its fields
    b"PK\3\4": [(4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)],
    b"PK\1\2": [
        (6, 2),
        (8, 2),
        (10, 2),
        (16, 4),
        (20, 4),
        (24, 4),
        (28, 2),
        (30, 2),
        (32, 2),
        (34, 2),
        (38, 4),
        (42, 4),
    ],
    b"PK\5\6": [(4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)],
}
NAMES = [
    "../../escaped",
    "/tmp/escaped",
    "..\\..\\escaped",
    "C:escaped",
    "\x1b[31mx.png",
    "a/" * 40 + "x.png",
    ".hidden/x.png",
    "",
    "x",
    "cat",
    "cat/",
    "con.png",
    "cat/\u202egnp.exe",
    "cat/x\n.png",
    "train/cat/x.png",
]


def in_zip_fields(rng: Rng, data: bytes) -> Change:
    """A number in a header of a zip: sizes, method, flags, offsets, counts."""
    kind = rng.choice(list(ZIP_FIELDS))
    records = [match.start() for match in re.finditer(re.escape(kind), data)]
    if not records:
        return some_bytes(rng, data)
    at, width = rng.choice(ZIP_FIELDS[kind])
    at += rng.choice(records)
    old = int.from_bytes(data[at : at + width], "little")
    new = rng.choice([*SPECIAL, old + 1, old - 1, old * 2, old ^ 1, old | 1, 12, 14]) % 256**width
    changed = data[:at] + new.to_bytes(width, "little") + data[at + width :]
    return Change(changed, f"{kind!r} at {at}: {old} became {new}")


def zip_of(inside: Mutate, *, sealed: bool = True) -> Mutate:
    """Members of a zip changed and packed anew: contents, names, missing, twice."""

    def mutate(rng: Rng, data: bytes) -> Change:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info), info.compress_type) for info in archive.infolist()]
        at = rng.randrange(len(members))
        name, content, method = members[at]
        how = rng.choice(["content", "content", "content", "name", "gone", "twice", "method", "link"])
        text = f"{how} of {name}"
        if how == "content":
            change = inside(rng, content)
            members[at], text = (name, change.data, method), f"{name}: {change.text}"
        elif how == "name":
            new = rng.choice(NAMES)
            members[at], text = (new, content, method), f"{name} became {new!r}"
        elif how == "gone":
            del members[at]
        elif how == "twice":
            members.insert(rng.randrange(len(members) + 1), (name, some_bytes(rng, content).data, method))
        elif how == "method":
            method = rng.choice(
                [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
            )
            members[at] = (name, content, method)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, content, method in members:
                info = zipfile.ZipInfo(name or "\0")
                info.compress_type = method
                if how == "link" and name == members[at][0]:
                    info.external_attr, content = 0o120777 << 16, b"/etc/passwd"
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    archive.writestr(info, content)
        return Change(packed.getvalue(), text, sealed=sealed)

    return mutate


# -------------------------------------------------------------------------------------------------- tar


def in_tar(rng: Rng, data: bytes) -> Change:
    """Members of a tar: names, kinds (links, devices), sizes, contents; packed anew, compressed if it was."""
    packed = data[:2] == b"\x1f\x8b"
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = [(info, archive.extractfile(info).read() if info.isfile() else b"") for info in archive]  # type: ignore[union-attr]
    info, content = members[at := rng.randrange(len(members))]
    how = rng.choice(["name", "kind", "content", "gone", "twice", "header"])
    text = f"{how} of {info.name}"
    if how == "name":
        info.name = rng.choice(NAMES)
        text += f", {info.name!r}"
    elif how == "kind":
        info.type = rng.choice(
            [
                tarfile.SYMTYPE,
                tarfile.LNKTYPE,
                tarfile.CHRTYPE,
                tarfile.BLKTYPE,
                tarfile.FIFOTYPE,
                tarfile.DIRTYPE,
                b"Z",
                tarfile.GNUTYPE_SPARSE,
            ]
        )
        info.linkname, info.devmajor, info.devminor = rng.choice(["/etc/passwd", "../../x", info.name]), 1, 5
        text += f", {info.type!r}"
    elif how == "content":
        change = some_bytes(rng, content)
        members[at], text = (info, change.data), f"{info.name}: {change.text}"
    elif how == "gone":
        del members[at]
    elif how == "twice":
        members.append((info, some_bytes(rng, content).data))
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for info, content in members:
            info.size = len(content) if info.isreg() or info.type == b"Z" else 0
            archive.addfile(info, io.BytesIO(content))
    raw = bytearray(made.getvalue())
    if how == "header":  # the octal size, with a checksum that fits
        begin = 512 * rng.randrange(len(raw) // 512)
        raw[begin + 124 : begin + 136] = rng.choice(
            [b"77777777777\0", b"-0000000001\0", b"\xff" * 12, b"xxxxxxxxxxx\0"]
        )
        raw[begin + 148 : begin + 156] = b" " * 8
        raw[begin + 148 : begin + 156] = b"%06o\0 " % sum(raw[begin : begin + 512])
    return Change(gzip.compress(bytes(raw), 1, mtime=0) if packed else bytes(raw), text, sealed=True)


def in_gzip(rng: Rng, data: bytes) -> Change:
    """Bytes of what is compressed, compressed anew."""
    change = some_bytes(rng, gzip.decompress(data))
    return Change(gzip.compress(change.data, 1, mtime=0), change.text, sealed=True)


# ------------------------------------------------------------------------------------------------- HDF5

MARKS = (b"\x89HDF", b"TREE", b"HEAP", b"SNOD", b"OHDR", b"GCOL", b"FRHP", b"BTHD")


def near_marks(rng: Rng, data: bytes) -> Change:
    """A number of one of HDF5's own structures: superblock, B-trees, heaps, symbol tables, object headers."""
    places = [match.start() for mark in MARKS for match in re.finditer(re.escape(mark), data)]
    # Old object headers have no mark: version 1, a zero, a count of messages, one reference.
    places += [match.start() for match in re.finditer(rb"\x01\x00[\x01-\x20]\x00\x01\x00\x00\x00", data)] * 2
    if not places:
        return some_bytes(rng, data)
    width, content = rng.choice([1, 1, 2, 4, 8]), bytearray(data)
    at = min(rng.choice(places) + rng.randrange(0, 256 if rng.random() < 0.5 else 48), len(data) - width)
    old = int.from_bytes(content[at : at + width], "little")
    new = rng.choice([*SPECIAL, old + 1, old - 1, old * 2, old ^ 1 << rng.randrange(8 * width)]) % 256**width
    content[at : at + width] = new.to_bytes(width, "little")
    return Change(bytes(content), f"HDF5 structure at {at}, {width} bytes: {old} became {new}")


def in_hdf5(rng: Rng, data: bytes) -> Change:
    """Groups, arrays and attributes of a whole HDF5 file: gone, of another kind, shape or type; links."""
    import h5py

    with tempfile.NamedTemporaryFile(suffix=".h5") as temporary:
        temporary.write(data)
        temporary.flush()
        with h5py.File(temporary.name, "r+") as file:
            text = _odd_hdf5(rng, file, h5py)
        return Change(Path(temporary.name).read_bytes(), text, sealed=True)


def _odd_hdf5(rng: Rng, file: Any, h5py: Any) -> str:
    names: list[str] = []
    file.visit(names.append)
    name = rng.choice(names)
    with_attributes = [one for one in ["/", *names] if file[one].attrs]
    how = rng.choice(
        ["gone", "array", "group", "attribute", "attribute", "link", "loop", "numbers", "chunks", "json"]
    )
    if how in ("attribute", "json") and with_attributes:
        owner = rng.choice(with_attributes)
        attribute = rng.choice(list(file[owner].attrs))
        if how == "json" and attribute in ("model_config", "training_config"):
            value: Any = dumped(odd_json(rng, json.loads(file[owner].attrs[attribute]))[0])
        else:
            value = rng.choice(
                [
                    b"x",
                    "",
                    3,
                    0.5,
                    [],
                    [b"a", b"b"],
                    ["conv1", "conv1"],
                    b"\xff\xfe",
                    ["../../escaped"],
                    b"[" * 9000,
                    np.zeros((2, 2)),
                    h5py.Empty("f"),
                    [b"\x1b[31m"],
                    True,
                ]
            )
        del file[owner].attrs[attribute]
        if rng.random() < 0.8:
            file[owner].attrs[attribute] = value
        return f"attribute {attribute} of {owner}: {str(value)[:40]!r}"
    old = file[name]
    if how == "numbers" and isinstance(old, h5py.Dataset) and old.size:
        array = old[()]
        array.reshape(-1)[rng.randrange(array.size)] = (
            rng.choice([np.nan, np.inf, 1e38]) if array.dtype.kind == "f" else 200
        )
        old[...] = array
        return f"a number of {name}"
    del file[name]
    if how == "array":
        shape = rng.choice([(), (0,), (3,), (4, 4), (2, 3, 4, 5), (1,) * 20])
        dtype = rng.choice(
            [
                "f4",
                "f8",
                "f2",
                "i4",
                "u1",
                ">f4",
                "S5",
                "bool",
                "c8",
                h5py.string_dtype(),
                h5py.ref_dtype,
                np.dtype([("a", "f4"), ("b", "i4")]),
                h5py.vlen_dtype("f4"),
                h5py.enum_dtype({"a": 0}),
            ]
        )
        file.create_dataset(name, shape, dtype)
        return f"{name}: an array {shape} of {dtype}"
    if how == "group":
        file.create_group(name)
    elif how == "link":
        file[name] = rng.choice(
            [
                h5py.SoftLink("/nowhere"),
                h5py.SoftLink(f"/{name}"),
                h5py.ExternalLink("other.h5", "/x"),
                h5py.ExternalLink("/etc/passwd", "/"),
            ]
        )
    elif how == "loop":
        file[name] = file[name.rpartition("/")[0] or "/"]
    elif how == "chunks":
        file.create_dataset(
            name, (7, 9), "f4", chunks=(2, 2), compression=rng.choice(["gzip", "lzf", None]), fletcher32=True
        )
    return f"{name}: {how}"


# --------------------------------------------------------------------------------------------- pictures


def in_png(rng: Rng, data: bytes) -> Change:
    """Chunks of a PNG, with checksums that fit: contents, kinds, order, missing, twice."""
    chunks, at = [], 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    at = rng.randrange(len(chunks))
    kind, body = chunks[at]
    how = rng.choice(["content", "content", "header", "gone", "twice", "swap", "kind", "bomb"])
    if how == "content":
        chunks[at] = (kind, some_bytes(rng, body).data)
    elif how == "header":
        head = bytearray(chunks[0][1])
        if rng.random() < 0.5:
            struct.pack_into(">I", head, rng.choice([0, 4]), rng.choice(SPECIAL) % 2**32)
        else:
            head[rng.randrange(8, len(head))] = rng.choice([0, 1, 2, 3, 4, 6, 7, 8, 16, 255])
        chunks[0] = (chunks[0][0], bytes(head))
    elif how == "gone":
        del chunks[at]
    elif how == "twice":
        chunks.insert(at, chunks[at])
    elif how == "swap":
        other = rng.randrange(len(chunks))
        chunks[at], chunks[other] = chunks[other], chunks[at]
    elif how == "kind":
        chunks[at] = (
            rng.choice(
                [b"IDAT", b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"acTL", b"fdAT", b"XXXX", b"xxxx", b"\x1b[2J"]
            ),
            body,
        )
    else:
        bomb = zlib.compress(bytes(8_000_000), 9)
        chunks.insert(
            1,
            rng.choice(
                [(b"zTXt", b"a\0\0" + bomb), (b"iCCP", b"a\0\0" + bomb), (b"iTXt", b"a\0\1\0\0\0" + bomb)]
            ),
        )
    packed = b"".join(
        len(b).to_bytes(4, "big") + k + b + zlib.crc32(k + b).to_bytes(4, "big") for k, b in chunks
    )
    return Change(data[:8] + packed, f"{kind!r}: {how}", sealed=True)


def in_jpeg(rng: Rng, data: bytes) -> Change:
    """Segments of a JPEG: lengths, sizes, tables, missing, twice."""
    segments, at = [], 2
    while at < len(data) - 4 and data[at] == 0xFF and data[at + 1] != 0xDA:
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        segments.append(data[at : at + 2 + size])
        at += 2 + size
    rest, at = data[at:], rng.randrange(len(segments))
    how, segment = (
        rng.choice(["content", "content", "length", "gone", "twice", "swap", "marker"]),
        bytearray(segments[at]),
    )
    if how == "content" and len(segment) > 4:
        segment[rng.randrange(4, len(segment))] = rng.choice(
            [0, 1, 2, 3, 4, 0x11, 0x7F, 0xFF, rng.randrange(256)]
        )
    elif how == "length":
        segment[2:4] = (rng.choice(SPECIAL) % 2**16).to_bytes(2, "big")
    elif how == "marker":
        segment[1] = rng.choice([0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xDA, 0xDD, 0xE1, 0xE2, 0xEE, 0xFE, 0x00])
    segments[at] = bytes(segment)
    if how == "gone":
        del segments[at]
    elif how == "twice":
        segments.insert(at, segments[at])
    elif how == "swap":
        other = rng.randrange(len(segments))
        segments[at], segments[other] = segments[other], segments[at]
    return Change(data[:2] + b"".join(segments) + rest, f"segment {at}: {how}", sealed=True)
