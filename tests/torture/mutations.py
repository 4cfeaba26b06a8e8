"""How a file is damaged: any bytes of it, or what its format is made of.

Each function takes a generator and the bytes of a file, and gives a :class:`Change`. ``sealed`` says that the
checksums in it were made anew, so that it is a whole file with other contents: these may then be read.
"""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Rng = random.Random
SPECIAL = [
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    16,
    127,
    128,
    255,
    256,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**60,
    2**63 - 1,
    2**63,
    2**64 - 1,
]
DEEP = "\0deep\0"  # stands in JSON for something that is nested too deep for json.dumps
ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    7,
    2**31,
    2**63,
    2**64,
    10**30,
    0.5,
    -0.0,
    1e308,
    math.nan,
    math.inf,
    -math.inf,
    "",
    "x",
    "0",
    "nan",
    "../../escaped",
    "/etc/passwd",
    "\x1b[31mred",
    "\u202egnp.exe",
    "a" * 5000,
    "\ud800",
    "ä" * 40,
    [],
    {},
    [[]],
    [1],
    ["lr"],
    {"a": 1},
    {"name": "x"},
    [None],
    [{}],
    [0] * 1000,
    {"": {}},
    DEEP,
]


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
    how = rng.choice(
        [
            "bit",
            "bit",
            "bits",
            "byte",
            "bytes",
            "number",
            "number",
            "cut",
            "cut",
            "longer",
            "zeros",
            "twice",
            "swapped",
            "gone",
            "random",
        ]
    )
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
