"""What a file of weights is: told from its first bytes and the names in its archive, never from its ending.

    keras          HDF5, or a zip with a model.weights.h5
    torch          what torch.save wrote: a zip with a data.pkl, or (before PyTorch 1.6) a pickle
    safetensors    names and numbers
    npz            numpy.savez
    index          the list of a model that is cut into several files

Everything else is refused with what it is, as far as that can be seen.
"""

from __future__ import annotations

import json
import os
import re
import struct
import zipfile
import zlib
from pathlib import Path

from minires import beginnings
from minires.errors import CheckpointError
from minires.limits import LONGEST_HEAD, regular_file

READ = "a file of torch.save, .safetensors, .npz, or a .keras, .weights.h5 or .h5 of Keras"
# The first number that torch.save pickled, 0x1950a86a20f9469cfc6c, before there was a zip.
TORCH_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")
# What zipfile raises where a zip is not what it should be.
DAMAGED_ZIP = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, LookupError, RuntimeError,
    OverflowError,
)  # fmt: skip
HDF5 = b"\x89HDF\r\n\x1a\n"
_SHOWN = 5  # names of an archive in a message

_STARTS = {  # other kinds, by their first bytes
    b"GGUF": "a GGUF file of llama.cpp",
    b"\x93NUMPY": "one array of NumPy's without a name; write all with numpy.savez, by the names of the "
    "state dict",
    b"MATLAB 5": "a file of MATLAB; write the arrays with numpy.savez, by the names of the state dict",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"PK\x05\x06": "an empty zip",
    b"#!": "a program",
}  # fmt: skip


def kind_of(path: str | os.PathLike[str]) -> str:
    """Which of the kinds above a file is.

    Raises: CheckpointError that says what is there, if it is no file or of none of these kinds.
    """
    path = Path(path)
    size = regular_file(path, CheckpointError)
    if not size:
        raise CheckpointError(f"{path} is empty: 0 bytes; download it again")
    try:
        with open(path, "rb") as file:
            start = file.read(4096)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if start.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    if _is_hdf5(path, start):
        return "keras"
    if 2 <= int.from_bytes(start[:8], "little") <= size - 8 and start[8:9] == b"{":
        return "safetensors"
    if re.match(rb"\x80[\x02-\x05]", start):
        if TORCH_MAGIC in start[:64]:
            return "torch"
        raise CheckpointError(
            f"{path} is a pickle, and not one of torch.save's; unpickling can run any code, so it is not "
            "opened. Write the arrays with numpy.savez, by the names of the state dict"
        )
    if _is_index(path, start, size):
        return "index"
    raise CheckpointError(f"{path} is {_words(start, size)}. To be read it must be {READ}")


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except DAMAGED_ZIP as error:
        raise CheckpointError(
            f"{path} is damaged: it begins as a zip, and its list of contents cannot be read ({error}); "
            "is the download complete?"
        ) from error
    folders = {part for name in names for part in name.split("/")[:-1]}
    leaves = {name.rpartition("/")[2] for name in names}
    if "model.weights.h5" in leaves:
        return "keras"
    if "constants.pkl" in leaves and ("code" in folders or "data.pkl" in leaves):
        what = "a program of TorchScript; load it with torch.jit.load and save its state_dict()"
    elif {"serialized_exported_program.json", "archive_format"} & leaves or "archive_version" in leaves:
        what = "a program of torch.export; load it with torch.export.load and save its state_dict"
    elif "data.pkl" in leaves:
        return "torch"
    elif names and all(name.endswith(".npy") for name in names):
        return "npz"
    else:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        held = ", ".join(names[:_SHOWN]) + more
        what = f"a zip of {held or 'nothing'}; unpack it, and give the file of weights"
    raise CheckpointError(f"{path} is {what}")


def _is_hdf5(path: Path, start: bytes) -> bool:
    """HDF5 begins at the first byte, or at 512, 1024, 2048, ..."""
    return any(start[place : place + 8] == HDF5 for place in (0, 512, 1024, 2048))


def _is_index(path: Path, start: bytes, size: int) -> bool:
    if not start.lstrip().startswith(b"{") or size > LONGEST_HEAD:
        return False
    try:
        return isinstance(json.loads(path.read_bytes())["weight_map"], dict)
    except (ValueError, LookupError, TypeError, RecursionError, OSError):
        return False


def _words(start: bytes, size: int) -> str:
    """What begins so, for a message."""
    if known := beginnings.words(start):
        return known
    for signs, words in _STARTS.items():
        if start.startswith(signs):
            return words
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<"):
        return "XML or a page of the web, not the file itself; open it in a browser to see what it says"
    if start[257:262] == b"ustar":
        return (
            "a tar archive; unpack it, and give the file of weights (PyTorch before 0.2 wrote such files: "
            "save it again with a newer one)"
        )
    if start[4:8] == b"TFL3":
        return "a file of TensorFlow Lite"
    if re.match(rb"\x08[\x01-\x14][\x12\x1a\x22\x3a]", start):
        return "a file of ONNX or TensorFlow, a program with its weights; save a state_dict() instead"
    if re.match(rb"\n.?.?[\n\x12]", start, re.DOTALL) and b"\x00" not in start[:2]:
        return "a file of TensorFlow or Caffe; save the model as .keras, or its weights as .safetensors"
    if text.startswith((b"{", b"[")):
        return "JSON, which holds no weights"
    shown = start[:256].decode("utf-8", "ignore")
    readable = all(one.isprintable() or one.isspace() for one in shown)
    if readable and len(shown.encode()) > len(start[:256]) - 4:
        return f"text ({' '.join(shown.split())[:30]!r}...), which holds no weights"
    return f"{size:,} bytes of no kind known here (the first are {start[:8].hex(' ')}), or damaged"
