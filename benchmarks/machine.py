"""What a measurement was made on: machine, libraries, commit. Part of every result file."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

PINS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # hold OpenBLAS to an older processor than the one at hand


def without_pins() -> dict[str, str]:
    """This environment without the variables that hold OpenBLAS back."""
    return {name: value for name, value in os.environ.items() if name not in PINS}


def describe() -> dict[str, Any]:
    """The machine, the versions and the commit, as plain data."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("numpy", "numba", "torch", "onnxruntime")},
        "pins_removed": [name for name in PINS if name in os.environ],
        "commit": _commit(),
    }


def short_name(processor: str) -> str:
    """Maker, family and model of a processor, from its description: "amd_25_17". A folder of its results."""
    maker = next((name for name in ("amd", "intel") if name in processor.lower()), "other")
    return "_".join([maker, *re.findall(r"\b(?:family|model) (\d+)", processor)])


def _processor() -> str:
    """The model and the widest vector instructions, from the system where it says."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or "unknown"
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    values = {name.strip(): value.strip() for name, value in fields.items()}
    vectors = "AVX-512" if "avx512f" in values.get("flags", "") else "AVX2" if "avx2" in text else "no AVX2"
    family = f"family {values.get('cpu family')}, model {values.get('model')}"
    return f"{values.get('model name', 'unknown')} ({family}, {vectors})"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "../minires")
    return git("rev-parse", "--short=10", "HEAD") + (" with changes" if changed else "")
