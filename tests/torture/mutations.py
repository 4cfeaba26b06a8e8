"""How a file is damaged: any bytes of it, or what its format is made of.

Each function takes a generator and the bytes of a file, and gives a :class:`Change`. ``sealed`` says that the
checksums in it were made anew, so that it is a whole file with other contents: these may then be read.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import random
import re
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Rng = random.Random
SPECIAL = [0, 1, 2, 3, 4, 7, 8, 16, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**60,
           2**63 - 1, 2**63, 2**64 - 1]  # fmt: skip
DEEP = "\0deep\0"  # stands in JSON for something that is nested too deep for json.dumps
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2, 7, 2**31, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308, math.nan, math.inf, -math.inf,
    "", "x", "0", "nan", "../../escaped", "/etc/passwd", "\x1b[31mred", "\u202egnp.exe", "a" * 5000, "\ud800", "ä" * 40,
    [], {}, [[]], [1], ["lr"], {"a": 1}, {"name": "x"}, [None], [{}], [0] * 1000, {"": {}}, DEEP,
]  # fmt: skip


@dataclass(frozen=True)
class Change:
    data: bytes
    text: str
    sealed: bool = False


Mutate = Callable[[Rng, bytes], Change]


# ----------------------------------------------------------------------------------------------- any bytes


def place(rng: Rng, size: int) -> int:
    """Where in a file: often near the beginning or the end, where most formats say what they are."""
    where = rng.random()
    if where < 0.35:
        return rng.randrange(min(size, 512))
    if where < 0.5:
        return size - 1 - rng.randrange(min(size, 256))
    return rng.randrange(size)


def some_bytes(rng: Rng, data: bytes) -> Change:
    """Bits, bytes, numbers, blocks, the length."""
    content, size = bytearray(data), len(data)
    how = rng.choice(["bit", "bit", "bits", "byte", "bytes", "number", "number", "cut", "cut", "longer", "zeros",
                      "twice", "swapped", "gone", "random"])  # fmt: skip
    if not size:
        return Change(b"\0" * rng.randint(1, 9), "an empty file got zeros")
    at, length = place(rng, size), min(size, 2 ** rng.randrange(1, 13))
    block = slice(min(at, size - length), min(at, size - length) + length)
    if how in ("bit", "bits"):
        for _ in range(1 if how == "bit" else rng.randint(2, 20)):
            content[at] ^= 1 << rng.randrange(8)
            at = place(rng, size)
    elif how in ("byte", "bytes"):
        for _ in range(1 if how == "byte" else rng.randint(2, 20)):
            content[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
            at = place(rng, size)
    elif how == "number":
        width, order = rng.choice([1, 2, 4, 8]), rng.choice(["little", "big"])
        at = max(0, min(at - at % width * rng.randrange(2), size - width))
        old = int.from_bytes(content[at : at + width], order)
        new = rng.choice([*SPECIAL, old + 1, old - 1, old * 2, old * 256, -old]) % 256**width
        content[at : at + width] = new.to_bytes(width, order)
        return Change(bytes(content), f"{width} bytes at {at}: {old} became {new} ({order} endian)")
    elif how == "cut":
        del content[at:]
        return Change(bytes(content), f"cut to {at} of {size} bytes")
    elif how == "longer":
        content += (
            bytes(rng.choice([1, 7, 512])) if rng.random() < 0.5 else rng.randbytes(rng.randint(1, 900))
        )
    elif how == "zeros":
        content[block] = bytes(length)
    elif how == "random":
        content[block] = rng.randbytes(length)
    elif how == "twice":
        content[block] = bytes(content[block]) * 2
    elif how == "gone":
        del content[block]
    else:
        other = rng.randrange(max(1, size - length))
        content[block], content[other : other + length] = content[other : other + length], content[block]
    return Change(
        bytes(content),
        f"{how} at {at}, {length} bytes" if length and how not in ("bit", "byte") else f"{how} at {at}",
    )


# ------------------------------------------------------------------------------------------------- JSON


def nodes(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all that is in a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, one in inside for deeper in nodes(one, (*path, key)))]


def odd_json(rng: Rng, value: Any) -> tuple[Any, str]:
    """A JSON value with something in it that does not belong there."""
    value = json.loads(json.dumps(value))
    paths = nodes(value)
    shallow = [path for path in paths if len(path) <= 2]
    path = rng.choice(shallow if rng.random() < 0.5 else paths)
    if not path:
        return rng.choice(ODD), "all is another value"
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    key, shown = path[-1], "/".join(map(str, path))
    how = rng.choice(["odd", "odd", "odd", "gone", "renamed", "wrapped", "kind", "times"])
    old = holder[key]
    if how == "gone":
        del holder[key]
    elif how == "renamed" and isinstance(holder, dict):
        holder[rng.choice(["", "x", "\x1b[2J", f"{key}s", f"{key} "])] = holder.pop(key)
    elif how == "wrapped":
        holder[key] = rng.choice([[old], {"value": old}, [[old]]])
    elif how == "kind":
        number = isinstance(old, int | float)
        holder[key] = str(old) if number else len(old) if isinstance(old, str | list | dict) else 3
    elif how == "times" and isinstance(old, int | float) and not isinstance(old, bool):
        holder[key] = rng.choice([-old, old * 1000, old + 1, old / 3, float(old), 2**62])
    elif how == "times" and isinstance(old, list):
        holder[key] = old * rng.choice([0, 2, 100])
    else:
        how, holder[key] = "odd", rng.choice(ODD)
    return value, f"{shown}: {how} ({str(holder.get(key) if isinstance(holder, dict) else '')[:40]!r})"


def dumped(value: Any) -> bytes:
    """As JSON; what stands for too deep a nesting becomes it."""
    text = json.dumps(value).replace(json.dumps(DEEP), "[" * 5000 + "]" * 5000)
    return text.encode("utf-8", "surrogatepass")


def in_json(rng: Rng, data: bytes) -> Change:
    """Values, types, keys and nesting of a JSON file."""
    value, text = odd_json(rng, json.loads(data))
    return Change(dumped(value), text, sealed=True)


# ------------------------------------------------------------------------------------------- safetensors


def opened(data: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def closed(header: bytes, body: bytes) -> bytes:
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + body


def in_safetensors(rng: Rng, data: bytes) -> Change:
    """Names, types, shapes and places in the header of a safetensors file."""
    header, body = opened(data)
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    how = rng.choice(
        ["dtype", "shape", "place", "swap", "gone", "name", "same place", "any", "huge", "metadata"]
    )
    one = header[name]
    if how == "dtype":
        one["dtype"] = rng.choice(
            ["F16", "BF16", "F64", "I8", "U8", "BOOL", "I64", "F8_E4M3", "F8_E5M2", "U64", "C64", "X", "", 3]
        )
    elif how == "shape":
        one["shape"] = rng.choice(
            [
                [],
                [0],
                one["shape"][::-1],
                [*one["shape"], 1],
                [2**31, 2**31],
                [-1],
                [2**64],
                "x",
                one["shape"][:-1],
            ]
        )
    elif how == "place":
        one["data_offsets"] = rng.choice(
            [
                [0, 0],
                [5, 1],
                [0, 2**60],
                [-4, 0],
                [0],
                "x",
                [one["data_offsets"][0] + 4, one["data_offsets"][1] + 4],
            ]
        )
    elif how in ("swap", "same place"):
        other = header[rng.choice(names)]
        old, one["data_offsets"] = one["data_offsets"], other["data_offsets"]
        if how == "swap":
            other["data_offsets"] = old
    elif how == "gone":
        del header[name]
    elif how == "name":
        header[
            rng.choice(["", "x", "../../escaped", "\x1b[2J", name + "\0", name.upper(), "module." + name])
        ] = header.pop(name)
    elif how == "metadata":
        header["__metadata__"] = rng.choice(
            [{}, {"minires": "{}"}, {"minires": 3}, [], "x", {"format": "tf"}, {"minires": "[" * 5000}]
        )
    elif how == "huge":
        size = rng.choice([2**60, 2**63, 2**64 - 1, 10**8 + 1, len(data), 0])
        return Change(size.to_bytes(8, "little") + data[8:], f"a header of {size} bytes")
    else:
        header, text = odd_json(rng, header)
        return Change(closed(dumped(header), body), f"header: {text}")
    return Change(closed(dumped(header), body), f"header: {how} of {name}")


def in_tensors(rng: Rng, data: bytes) -> Change:
    """Other numbers, types and shapes of tensors in a whole safetensors file."""
    from safetensors.numpy import load, save

    arrays = load(data)
    text = odd_arrays(rng, arrays)
    return Change(save(arrays, {"format": "pt"}), text, sealed=True)


def odd_arrays(rng: Rng, arrays: dict[str, Any]) -> str:
    name = rng.choice(list(arrays))
    how = rng.choice(["nan", "inf", "huge", "dtype", "shape", "gone", "more", "name", "empty", "negative"])
    array = arrays[name] = np.array(arrays[name])
    if how in ("nan", "inf", "huge") and array.dtype.kind == "f" and array.size:
        array.reshape(-1)[rng.randrange(array.size)] = {"nan": np.nan, "inf": np.inf, "huge": 1e38}[how]
    elif how == "dtype":
        arrays[name] = array.astype(
            rng.choice(["float64", "float16", "int32", "int8", "bool", "uint8", "int64"])
        )
    elif how == "shape":
        arrays[name] = rng.choice([array.reshape(-1), array[None], array.T.copy(), array[..., :1].copy()])
    elif how == "gone":
        del arrays[name]
    elif how == "more":
        arrays[rng.choice(["x", "../../escaped", "\x1b[2J", "model/x", ""])] = np.zeros(
            rng.choice([0, 1, 1000]), np.float32
        )
    elif how == "name":
        arrays[rng.choice(["x", f"{name}.", f"module.{name}", name.upper()])] = arrays.pop(name)
    elif how == "empty":
        arrays[name] = array[:0].copy() if array.ndim else array
    else:
        arrays[name] = -np.abs(array) if array.dtype.kind == "f" else array
    return f"{name}: {how}"


def in_own(rng: Rng, data: bytes) -> Change:
    """Arrays and information of one of our own files, with a checksum that fits."""
    from minires.train import checkpoint

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "own.safetensors"
        path.write_bytes(data)
        arrays, info = checkpoint.read(path)
        while True:
            new_arrays, new_info = dict(arrays), info
            if rng.random() < 0.7:
                new_info, text = odd_json(rng, info)
            else:
                text = odd_arrays(rng, new_arrays)
            if DEEP in json.dumps(new_info):
                text, new_info = "deep", {**info, rng.choice(list(info)): json.loads("[" * 900 + "]" * 900)}
            try:
                checkpoint.write(path, new_arrays, new_info)
            except Exception:  # it cannot be written like that
                continue
            return Change(path.read_bytes(), f"with its checksum: {text}", sealed=True)


# -------------------------------------------------------------------------------------------------- zip

ZIP_FIELDS = {  # of each kind of record: place and width of its fields
    b"PK\3\4": [(4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)],
    b"PK\1\2": [(6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (34, 2), (38, 4), (42, 4)],
    b"PK\5\6": [(4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)],
}  # fmt: skip
NAMES = ["../../escaped", "/tmp/escaped", "..\\..\\escaped", "C:escaped", "\x1b[31mx.png", "a/" * 40 + "x.png", ".hidden/x.png",
         "", "x", "cat", "cat/", "con.png", "cat/\u202egnp.exe", "cat/x\n.png", "train/cat/x.png"]  # fmt: skip


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
                import warnings

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
            value = rng.choice([b"x", "", 3, 0.5, [], [b"a", b"b"], ["conv1", "conv1"], b"\xff\xfe", ["../../escaped"], b"[" * 9000,
                                np.zeros((2, 2)), h5py.Empty("f"), [b"\x1b[31m"], True])  # fmt: skip
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
        dtype = rng.choice(["f4", "f8", "f2", "i4", "u1", ">f4", "S5", "bool", "c8", h5py.string_dtype(), h5py.ref_dtype,
                            np.dtype([("a", "f4"), ("b", "i4")]), h5py.vlen_dtype("f4"), h5py.enum_dtype({"a": 0})])  # fmt: skip
        file.create_dataset(name, shape, dtype)
        return f"{name}: an array {shape} of {dtype}"
    if how == "group":
        file.create_group(name)
    elif how == "link":
        file[name] = rng.choice([h5py.SoftLink("/nowhere"), h5py.SoftLink(f"/{name}"), h5py.ExternalLink("other.h5", "/x"),
                                 h5py.ExternalLink("/etc/passwd", "/")])  # fmt: skip
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
