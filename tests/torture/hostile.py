"""Files that are made to do harm: to run code, to eat memory or time, to lead elsewhere, to be believed.

Each is made in a folder of its own and read through the door that it is for. Nothing of them is ever unpacked
or run here; what would run code only makes an empty file, whose name stands in ``TORTURE_CANARY``.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import pickle
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import samples as s
import whole_weights as w

GIGA = 10**9
RED = "\x1b[31m\x1b]0;mine\x07red"


@dataclass(frozen=True)
class Hostile:
    """``make`` writes it into a folder and says what to read; ``fine`` is what may come out, else refused."""

    name: str
    make: Callable[[Path], Path]
    door: s.Door
    fine: tuple[str, ...] = ("refused",)
    named: bool = True


FILES: list[Hostile] = []
REFUSED = ("refused",)
OK = ("ok", "refused")


def of(door: s.Door, *, fine: tuple[str, ...] = ("refused",), named: bool = True) -> Callable[[Any], Any]:
    """Adds a function to the list; its docstring is the name of the case."""

    def add(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        FILES.append(Hostile(make.__doc__ or make.__name__, make, door, fine, named))
        return make

    return add


def case(name: str, make: Callable[[Path], Path], door: s.Door, **options: Any) -> None:
    FILES.append(Hostile(name, make, door, **options))


def cli(*arguments: str) -> s.Door:
    """The command line, which shall end with 0, 1 or 2. PATH stands for the file, MODEL for a whole model,
    PICTURE for a whole picture, OUT for a file that is to be written."""

    def door(folder: Path, path: Path) -> w.Content:
        from minires import cli as program
        from minires.errors import DataError

        if "MODEL" in arguments:
            s.make_model(folder)
        if "PICTURE" in arguments:
            s.noise(side=16).save(folder / "whole.png")
        names = {
            "PICTURE": str(folder / "whole.png"),
            "PATH": str(path),
            "MODEL": str(folder / "model.safetensors"),
            "OUT": str(folder / "out"),
        }
        status = program.main([names.get(one, one) for one in arguments])
        sys.stdout.flush()
        if status not in (0, 1, 2):
            raise RuntimeError(f"status {status}")
        if status:
            raise DataError(f"status {status} of {path}")
        return {"status": "0"}

    return door


# ----------------------------------------------------------------------------------------- code in a file


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{os.environ['TORTURE_CANARY']}'",)


def pickled(name: str, *, zipped: bool = False, protocol: int = 2) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        content = pickle.dumps({"state_dict": Runs(), "conv1.weight": Runs()}, protocol)
        path = folder / name
        if zipped:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("archive/data.pkl", content)
                archive.writestr("archive/version", "3\n")
        else:
            path.write_bytes(content)
        return path

    return make


for ending in ("pth", "pt", "bin", "tar", "ckpt", "safetensors", "npz", ""):
    name = f"weights.{ending}".rstrip(".")
    case(f"a pickle that runs code, {name}", pickled(name), w.read_torch)
    case(f"a zip with a pickle that runs code, {name}", pickled(name, zipped=True), w.read_torch)
case("a pickle of protocol 4 that runs code", pickled("weights.pth", protocol=4), w.read_torch)
for ending in ("h5", "weights.h5", "keras"):
    case(f"a pickle that runs code, weights.{ending}", pickled(f"weights.{ending}"), w.read_keras)
case("a pickle that runs code as model.safetensors", pickled("model.safetensors"), s.read_model)
case("a pickle that runs code as a picture", pickled("x.png"), s.read_picture)


@of(s.read_set, named=False)
def cifar_pickles(folder: Path) -> Path:
    """CIFAR-10 as pickles that run code"""
    (folder / "set").mkdir()
    for number in range(1, 6):
        pickled(f"data_batch_{number}")(folder / "set")
    return pickled("test_batch")(folder / "set")


@of(w.read_keras)
def lambda_layer(folder: Path) -> Path:
    """a .keras file with a Lambda layer"""
    return rewritten_keras(folder, lambda config: config["config"]["layers"][3].update(class_name="Lambda"))


def rewritten_keras(folder: Path, change: Callable[[Any], Any], *, text: str = "") -> Path:
    config = w.keras_config()
    change(config)
    w.make_keras(folder)
    path = folder / "small.keras"
    with zipfile.ZipFile(path) as archive:
        hdf5 = archive.read("model.weights.h5")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", text or json.dumps(config))
        archive.writestr("metadata.json", "{}")
        archive.writestr("model.weights.h5", hdf5)
    return path


# -------------------------------------------------------------------------------------------------- bombs


@functools.cache
def zeros(size: int) -> tuple[bytes, int]:
    """So many zeros as a deflate stream, and their CRC; packed once and repeated."""
    part = bytes(16 * 2**20)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(part) + packer.flush(zlib.Z_FULL_FLUSH)
    count, crc = size // len(part), 0
    for _ in range(count):
        crc = zlib.crc32(part, crc)
    return block * count + zlib.compressobj(9, zlib.DEFLATED, -15).flush(), crc


SIZE = 3 * 2**30 // (16 * 2**20) * 16 * 2**20  # of what is unpacked


def bomb_zip(path: Path, name: str, others: dict[str, bytes], *, told: int = SIZE) -> Path:
    """A zip whose member ``name`` is 3 GB of zeros; it tells that it has ``told`` bytes."""
    packed, crc = zeros(SIZE)
    with zipfile.ZipFile(path, "w") as archive:
        for other, content in others.items():
            archive.writestr(other, content)
    content = bytearray(path.read_bytes())
    end = content.rindex(b"PK\5\6")
    directory = int.from_bytes(content[end + 16 : end + 20], "little")
    count = int.from_bytes(content[end + 8 : end + 10], "little") + 1
    encoded = name.encode()
    fields = struct.pack("<HHHHIII", 0, 8, 0, 0x21, crc, len(packed), told)
    local = (
        b"PK\3\4" + struct.pack("<H", 20) + fields + struct.pack("<HH", len(encoded), 0) + encoded + packed
    )
    central = (
        b"PK\1\2"
        + struct.pack("<HH", 20, 20)
        + fields
        + struct.pack("<HHHHHII", len(encoded), 0, 0, 0, 0, 0, directory)
    )
    entries = bytes(content[directory:end]) + central + encoded
    tail = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count, count, len(entries), directory + len(local), 0)
    path.write_bytes(bytes(content[:directory]) + local + entries + tail)
    return path


def some_pictures() -> dict[str, bytes]:
    made = io.BytesIO()
    s.noise().save(made, "PNG")
    return {f"{name}/{i}.png": made.getvalue() for name in ("cat", "dog") for i in range(5)}


case(
    "a zip bomb among pictures",
    lambda f: bomb_zip(f / "x.zip", "cat/9.png", some_pictures()),
    s.read_set_of_any_size,
)
case(
    "a zip bomb that tells a small size",
    lambda f: bomb_zip(f / "x.zip", "cat/9.png", some_pictures(), told=100),
    s.read_set_of_any_size,
)
case(
    "a .keras whose weights are a bomb",
    lambda f: bomb_zip(f / "x.keras", "model.weights.h5", {"config.json": b"{}", "metadata.json": b"{}"}),
    w.read_keras,
)
case(
    "a .keras whose config is a bomb",
    lambda f: bomb_zip(f / "x.keras", "config.json", {"model.weights.h5": b"", "metadata.json": b"{}"}),
    w.read_keras,
)
case(
    "a .keras whose bomb tells a small size",
    lambda f: bomb_zip(f / "x.keras", "model.weights.h5", {"config.json": b"{}"}, told=100),
    w.read_keras,
)
case(
    "a .pth whose pickle is a bomb",
    lambda f: bomb_zip(f / "x.pth", "archive/data.pkl", {"archive/version": b"3\n"}),
    w.read_torch,
)


@of(w.read_torch)
def pth_bomb(folder: Path) -> Path:
    """a .pth whose tensor is a bomb"""
    import torch

    torch.save({"conv1.weight": torch.zeros(1)}, folder / "small.pth")
    with zipfile.ZipFile(folder / "small.pth") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    tensor = next(name for name in members if name.endswith("data/0"))
    del members[tensor]
    pkl = next(name for name in members if name.endswith("data.pkl"))
    # The one element becomes a thousand million: K\x01 is the number 1 of a pickle, J a number of four bytes.
    count = b"J" + struct.pack("<i", SIZE // 4)
    members[pkl] = members[pkl].replace(b"K\x01", count)
    return bomb_zip(folder / "x.pth", tensor, members)


@of(s.read_set_of_any_size)
def gzip_bomb(folder: Path) -> Path:
    """a gzip bomb in a tar of pictures"""
    packed, crc = zeros(SIZE)
    head = io.BytesIO()
    with tarfile.open(fileobj=head, mode="w") as archive:
        for name, content in some_pictures().items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    info = tarfile.TarInfo("cat/9.png")
    info.size = SIZE
    begin = _members(head.getvalue()) + info.tobuf()
    member = b"\x1f\x8b\x08" + bytes(6) + b"\x03" + packed + struct.pack("<II", crc, SIZE % 2**32)
    (folder / "x.tar.gz").write_bytes(gzip.compress(begin) + member + gzip.compress(bytes(1024)))
    return folder / "x.tar.gz"


def _members(content: bytes) -> bytes:
    """A tar without its end, which is all zeros."""
    return content[: -(-len(content.rstrip(b"\0")) // 512) * 512]


def png(width: int, height: int, *, depth: int = 8, colour: int = 2, data: bytes = b"\0") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(data, 9))
        + chunk(b"IEND", b"")
    )


def picture(name: str, content: Callable[[], bytes]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content())
        return folder / name

    return make


def tiff(**tags: int) -> bytes:
    known = {
        "width": 256,
        "height": 257,
        "bits": 258,
        "compression": 259,
        "colour": 262,
        "strip": 273,
        "samples": 277,
        "rows": 278,
        "length": 279,
    }
    values = {
        "width": 4,
        "height": 4,
        "bits": 8,
        "compression": 1,
        "colour": 1,
        "strip": 8,
        "samples": 1,
        "rows": 4,
        "length": 16,
        **tags,
    }
    entries = b"".join(
        struct.pack("<HHII", known[name], 4, 1, value)
        for name, value in sorted(values.items(), key=lambda one: known[one[0]])
    )
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + bytes(4) + bytes(16)


for name, content in {
    "60000.png": lambda: png(60_000, 60_000),
    "60000-1bit.png": lambda: png(60_000, 60_000, depth=1, colour=0),
    "wide.png": lambda: png(2**31 - 1, 1),
    "zero.png": lambda: png(0, 5),
    "bomb.gif": lambda: (
        b"GIF89a"
        + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0)
        + bytes(6)
        + b","
        + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0)
        + b"\x02\x02\x4c\x01\0;"
    ),
    "huge.bmp": lambda: (
        b"BM"
        + struct.pack("<IHHI", 100, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0)
    ),
    "huge.ppm": lambda: b"P6 60000 60000 255\n",
    "long.ppm": lambda: b"P6 " + b"9" * 100_000 + b" 1 255\n",
    "comment.ppm": lambda: b"P6 #" + b"x" * 5_000_000,
    "huge.tiff": lambda: tiff(width=2**31, height=2**31),
    "rows.tiff": lambda: tiff(rows=2**32 - 1, length=2**32 - 1),
    "self.tiff": lambda: tiff(strip=0, length=2**31),
    "samples.tiff": lambda: tiff(samples=2**31),
    "loop.tiff": lambda: tiff()[:118] + struct.pack("<I", 8) + bytes(16),
    "empty.png": lambda: b"",
    "page.png": lambda: b"<!DOCTYPE html><html><body>404</body></html>",
    "pointer.jpg": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n",
    "script.jpg": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
}.items():
    harmless = name in ("rows.tiff", "self.tiff", "loop.tiff")
    case(f"a picture {name}", picture(name, content), s.read_picture, fine=OK if harmless else REFUSED)
case(
    "a picture of 64 million pixels, packed to 200 kB",
    picture("64m.png", lambda: png(8000, 8000, data=bytes(8000 * 24_001))),
    s.read_picture,
    fine=OK,
)


@of(s.read_picture, fine=OK)
def text_bomb(folder: Path) -> Path:
    """a PNG with three texts of 1 GB each"""
    packed = zeros(GIGA // (16 * 2**20) * 16 * 2**20)[0]
    content = png(4, 4, data=bytes(4 * 13))
    body = b"a\0\0\x78\x9c" + packed + bytes(4)
    chunk = len(body).to_bytes(4, "big") + b"zTXt" + body + zlib.crc32(b"zTXt" + body).to_bytes(4, "big")
    (folder / "text.png").write_bytes(content[:33] + 3 * chunk + content[33:])
    return folder / "text.png"
