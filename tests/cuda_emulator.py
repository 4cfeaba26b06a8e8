"""Runs CUDA kernels without a GPU: their own source, compiled by g++ with cuda_on_cpu.h.

With ``emulate(monkeypatch)`` every operation takes its way through CUDA on NumPy arrays. Around each array
that a kernel gets lies a margin of NaN: what it writes there is found, and what it reads there shows in the
result. Each array must be of the type that the kernel declares for it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import os
import pkgutil
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import minires
from minires import backend
from minires.backend import cuda
from minires.ops.registry import described

HEADER = Path(__file__).with_name("cuda_on_cpu.h")
MARGIN = 64  # numbers before and behind an array
KEPT = 5 * 24 * 3600.0  # seconds
_until_the_end = tempfile.TemporaryDirectory(prefix="minires-emulated-")
_folder = Path(_until_the_end.name)


def keep_in(folder: Path) -> None:
    """Keep there what is compiled from here on, for other processes and for the next time, if anything can be
    written there; what nobody has asked for in days is removed."""
    global _folder
    if not os.access(folder, os.W_OK):
        return
    _folder = folder
    for path in folder.iterdir():
        with suppress(OSError):
            if path.is_file() and time.time() - path.stat().st_mtime > KEPT:
                path.unlink()


def compiler() -> str | None:
    return shutil.which("g++")


def sources() -> dict[str, cuda.Source]:
    """Every source in the package, by its module."""
    found = {}
    for info in pkgutil.walk_packages(minires.__path__, "minires."):
        if not info.name.endswith("__main__"):
            for name, value in vars(importlib.import_module(info.name)).items():
                if isinstance(value, cuda.Source):
                    found.setdefault(value, f"{info.name}.{name}")
    return {place: source for source, place in found.items()}


def of_operations() -> dict[str, list[str]]:
    """The sources in the rooms of operations, by place, with the names of the operations of that room."""
    rooms: dict[str, list[str]] = {}
    for known in described():
        room = getattr(known.function, "__module__", "")
        rooms.setdefault(room, []).append(known.name)
    found = {}
    for place in sources():
        module = place.rpartition(".")[0]
        room = module if module in rooms else module.rpartition(".")[0]  # conv2d/cuda_columns.py
        if room in rooms:
            found[place] = rooms[room]
    return found


@functools.cache
def knows_bfloat16(code: str) -> bool:
    """Whether a source compiles for it: what does arithmetic in T does not."""
    try:
        library(cuda.Source(code.removeprefix(cuda.PRELUDE)).text("bfloat16"))
    except AssertionError:
        return False
    return True


def kernels(code: str) -> list[str]:
    """The names of the kernels in a source."""
    return re.findall(r'extern "C" __global__ void (?:__launch_bounds__\(\w+\) )?(\w+)\(', code)


# Fibers jump from stack to stack, which a check that some compilers put in takes for an error.
_GXX = [compiler() or "g++", "-O1", "-std=c++17", "-fPIC", "-U_FORTIFY_SOURCE"]


def _made(name: str, make: Callable[[Path], None]) -> Path:
    """The file of this name in the folder, made if it is not there; it stands there whole or not at all."""
    target = _folder / name
    if target.exists():
        os.utime(target)
    else:
        with tempfile.TemporaryDirectory(dir=_folder) as work:
            make(Path(work) / name)
            os.replace(Path(work) / name, target)
    return target


def _compiled(source: Path, target: Path, *options: str) -> None:
    command = [*_GXX, *options, source, "-o", target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@functools.cache
def _header() -> Path:
    """A copy of the header beside which it stands read by the compiler already: half of the work."""
    header = _made(f"{_stem('')}.h", lambda target: shutil.copy(HEADER, target))
    _made(f"{header.name}.gch", lambda target: _compiled(header, target, "-x", "c++-header"))
    return header


def _stem(code: str) -> str:
    """A name for what is compiled from this code, here, with the header as it is."""
    what = [code, HEADER.read_text(), *_GXX, platform.platform()]
    return hashlib.sha256("\n".join(what).encode()).hexdigest()[:16]


@functools.cache
def library(code: str) -> ctypes.CDLL:
    """A source compiled for the CPU, with a function launch_<name> for each kernel."""
    launches = "\n".join(
        f'extern "C" int launch_{name}(int blocks, int threads, int waiting, void** arguments, int count) '
        f"{{ return emulated::launch({name}, blocks, threads, waiting, arguments, count); }}"
        for name in kernels(code)
    )

    text = f'#include "{_header()}"\n{code}\n{launches}\n'

    def make(target: Path) -> None:
        source = target.with_suffix(".cpp")
        source.write_text(text)
        _compiled(source, target, "-shared")

    return ctypes.CDLL(str(_made(f"{_stem(text)}.so", make)))


class Emulator:
    """Takes the place of ``cuda._launch``, and counts the launches by kernel and by dtype."""

    def __init__(self) -> None:
        self.launches: dict[str, int] = {}
        self.of_dtype: dict[str, set[str]] = {}

    def launch(self, source: Any, name: str, dtype: Any, grid: tuple[int, int], arguments: list[Any]) -> None:
        assert min(grid) > 0, f"{name}: a GPU refuses a launch of {grid[0]} blocks of {grid[1]} threads"
        self.launches[name] = self.launches.get(name, 0) + 1
        self.of_dtype.setdefault(str(dtype), set()).add(name)
        inner = [_with_margins(a) if isinstance(a, np.ndarray) else np.array(a) for a in arguments]
        places = [
            ctypes.c_void_p(whole.ctypes.data + (MARGIN * whole.itemsize if isinstance(a, np.ndarray) else 0))
            for a, whole in zip(arguments, inner, strict=True)
        ]
        # An array is given as a pointer to its pointer, a number as a pointer to it.
        given = (ctypes.c_void_p * len(places))(
            *(
                ctypes.addressof(place) if isinstance(a, np.ndarray) else place.value
                for a, place in zip(arguments, places, strict=True)
            )
        )
        waiting = "__sync" in source.code or "__shfl" in source.code
        code = library(source.text(str(dtype)))
        wanted = getattr(code, f"launch_{name}")(*grid, int(waiting), given, len(places))
        assert wanted == -1, f"{name} takes {wanted} arguments, but got {len(places)}"
        for a, whole in zip(arguments, inner, strict=True):
            if isinstance(a, np.ndarray):
                margins = np.concatenate([whole[:MARGIN], whole[-MARGIN:]])
                assert (margins == _margin(a.dtype)).all() or np.isnan(margins).all(), f"{name} wrote outside"
                if a.tobytes() != whole[MARGIN:-MARGIN].tobytes():
                    assert a.flags.writeable, f"{name} wrote to what it may only read"
                    a.reshape(-1)[...] = whole[MARGIN:-MARGIN]


def _margin(dtype: Any) -> Any:
    return np.nan if backend.is_float(dtype) else np.array(77, dtype)


def _with_margins(array: np.ndarray) -> np.ndarray:
    whole = np.full(array.size + 2 * MARGIN, _margin(array.dtype), array.dtype)
    whole[MARGIN:-MARGIN] = array.reshape(-1)
    return whole


def emulate(monkeypatch: Any) -> Emulator:
    """From here on NumPy arrays go through the CUDA kernels, until the test ends."""
    emulator = Emulator()
    monkeypatch.setattr(cuda, "usable", lambda *arrays: not backend.is_reference())
    monkeypatch.setattr(cuda, "_launch", emulator.launch)
    return emulator
