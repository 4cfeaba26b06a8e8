"""What minires finds on this machine, what is missing or held back, and the one command that mends it."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import minires
from minires import backend, tensor
from minires.backend import cublas, cuda
from minires.distributed import examined
from minires.errors import MiniresError
from minires.version import DISTRIBUTION, __version__

# Packages that are imported under another name.
MODULES = {"pillow": "PIL"}
THREAD_PINS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
PINS = (
    "MINIRES_DATA", "MINIRES_THREADS", "MINIRES_WAIT", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", *THREAD_PINS
)  # fmt: skip
# CuPy's packages, newest CUDA first, and the oldest driver for it (on Linux; NVIDIA, CUDA Compatibility).
CUPY_DRIVERS = {"cupy-cuda13x": 580, "cupy-cuda12x": 525}
LOW_DISK = 2e9  # bytes; a run of resnet50_signs needs up to three checkpoints of 283 MB at once
_ARCHITECTURE = (
    "import numpy, threadpoolctl\n"
    "for library in threadpoolctl.threadpool_info():\n"
    "    if library['user_api'] == 'blas': print(library.get('architecture', ''))\n"
)
_REQUIREMENT = re.compile(r"""([\w.-]+)(?:\[\w+\])?>=([\d.]+)(?:\s*;\s*extra\s*==\s*["'](\w+)["'])?$""")
Report = dict[str, Any]


def examine() -> Report:
    """Look at everything that minires uses; nothing on the machine is changed.

    The report is plain data for JSON. ``advice`` lists what could be better, each with a ``level``, what it
    is and the command that mends it; ``ok`` is False if an advice has the level "error": minires cannot run.
    """
    advice: list[dict[str, str]] = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    report: Report = {
        "minires": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "packages": _packages(advice),
        "numba": _numba(advice),
        "cores": {"usable": cores, "all": os.cpu_count()},
        "threads": _threads(cores, advice),
        "blas": _blas(cores, advice),
        "gpu": _gpu(advice),
        "mpi": _mpi(advice),
        "environment": {name: os.environ[name] for name in PINS if name in os.environ},
        "data": _data(advice),
        "disk": _disk(advice),
        "advice": advice,
    }
    _namesakes(advice)
    report["ok"] = not any(one["level"] == "error" for one in advice)
    return report


def describe(report: Mapping[str, Any]) -> str:
    """Give a report as text: a table, then the advice with its commands."""
    versions = {name: entry["version"] or "missing" for name, entry in report["packages"].items()}
    sections: dict[str, dict[str, str]] = {
        f"minires {report['minires']}": {
            "Python": f"{report['python']} ({report['executable']})",
            "system": report["platform"],
        },
        "packages": {**versions, "numba": report["numba"]["text"]},
        "computing": {
            "cores": f"{report['cores']['usable']} of {report['cores']['all']}",
            "threads": f"{report['threads'] or 'none: see below'}",
            "BLAS": "; ".join(map(_blas_text, report["blas"])) or "none that threadpoolctl knows",
            "GPU": report["gpu"]["text"],
            "MPI": report["mpi"]["text"],
        },
        "environment": report["environment"],
        "data sets": {name: where or "not found" for name, where in report["data"].items()},
        "free disk": {where: f"{free / 1e9:.1f} GB" for where, free in report["disk"].items()},
    }
    lines = []
    for title, entries in sections.items():
        if entries:
            width = max(map(len, entries))
            lines += [title, *(f"  {name:<{width}}  {value}" for name, value in entries.items()), ""]
    for one in report["advice"]:
        lines.append(f"{one['level']}: {one['what']}")
        if one["command"]:
            lines.append(f"    {one['command']}")
    if report["advice"]:
        lines.append("")
    return "\n".join([*lines, "minires can run" if report["ok"] else "minires cannot run as it is"])


def _advise(advice: list[dict[str, str]], level: str, what: str, command: str = "") -> None:
    advice.append({"level": level, "what": what, "command": command})


def _install(requirement: str) -> str:
    """The command that installs a package for the Python that runs now."""
    return shlex.join([sys.executable, "-m", "pip", "install", *requirement.split()])


def _requirements() -> dict[str, tuple[str, str]]:
    """The packages that minires names, by name: their least version, and the extra they belong to."""
    try:
        wanted = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        wanted = []
    found = {}
    for line in wanted:
        if match := _REQUIREMENT.match(line):
            found[match[1].lower()] = (match[2], match[3] or "")
    return found


def _namesakes(advice: list[dict[str, str]]) -> None:
    """Whether a package that pip calls "minires" is here: on PyPI that is another project's.

    Both have a file ``minires/__init__.py``; in one folder, that of the one installed last is left.
    """
    here = Path(__file__).resolve().parent
    ours_is_imported = getattr(minires, "Tensor", None) is tensor.Tensor
    for other in importlib.metadata.distributions(name="minires"):
        if other.read_text("RECORD") is None:  # what a build left in the source folder; nothing is installed
            continue
        earlier = any(point.value == "minires.cli:main" for point in other.entry_points)
        whose = "an earlier installation of this project" if earlier else "another project's"
        level = "warning"
        what = f"pip's package minires {other.version} ({other.metadata['Summary']}) is {whose}"
        command = shlex.join([sys.executable, "-m", "pip", "uninstall", "-y", "minires"])
        if Path(str(other.locate_file("minires"))).resolve() != here:
            what += f"; Python may import it in the place of the minires in {here}"
        else:
            part = "would go" if ours_is_imported else "is overwritten"
            level = "warning" if ours_is_imported else "error"
            what += f", in the same folder, {here}, whose __init__.py {part}; in the folder of the source run"
            command += f" && {_install('--force-reinstall --no-deps .')}"
        _advise(advice, level, what, command)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages(advice: list[dict[str, str]]) -> dict[str, dict[str, str | None]]:
    """The packages without which minires does not run, each imported to see that it works."""
    requirements = _requirements()
    if not requirements:
        what = "minires is not installed, so what it requires is not known; in its folder run"
        _advise(advice, "warning", what, _install("-e .[fast]"))
    found = {}
    for package, (least, extra) in requirements.items():
        if extra:
            continue
        version, install = _version(package), _install(f"{package}>={least}")
        found[package] = {"version": version, "least": least}
        if version is None:
            _advise(advice, "error", f"{package} is missing", install)
        elif _numbers(version) < _numbers(least):
            _advise(advice, "error", f"{package} {version} is too old, {least} is needed", install)
        else:
            try:
                importlib.import_module(MODULES.get(package, package))
            except Exception as error:  # a broken binary raises nearly any kind of exception
                what = f"{package} {version} cannot be imported: {error}"
                _advise(advice, "error", what, f"{install} --force-reinstall")
    return found


def _numbers(version: str) -> list[int]:
    """The leading numbers of a version: 2.4.0rc1 -> [2, 4, 0]."""
    return [int(part) for part in re.findall(r"\d+", re.match(r"[\d.]*", version)[0])]  # type: ignore[index]


@backend.kernel(x="(n)")
def _twice(x: Any) -> Any:
    return x + x


def _numba(advice: list[dict[str, str]]) -> dict[str, Any]:
    """Whether Numba is there and really compiles."""
    version = _version("numba")
    least = _requirements().get("numba", ("", ""))[0]
    install = _install(f"numba>={least}" if least else "numba")
    cost = "batch norm, ReLU, pooling and optimisers run as plain NumPy code: the same results, but slower"
    if not backend.HAS_NUMBA:
        _advise(advice, "warning", f"Numba is not installed, so {cost}", install)
        return {"version": None, "works": False, "text": f"missing: {cost}"}
    try:
        works = bool((_twice(np.arange(3.0)) == [0.0, 2.0, 4.0]).all())
        problem = "" if works else "its compiled code gives wrong results"
    except Exception as error:  # for example a NumPy that this Numba does not know
        works, problem = False, (str(error).strip() or repr(error)).splitlines()[0]
    if problem:
        what = f"Numba {version} is installed but does not work: {problem}"
        _advise(advice, "error", what, f"{install} --upgrade")
    return {"version": version, "works": works, "text": f"{version}, {problem or 'compiles'}"}


def _threads(cores: int, advice: list[dict[str, str]]) -> int | None:
    try:
        count = backend.threads()
    except MiniresError as error:
        _advise(advice, "error", str(error), "unset MINIRES_THREADS")
        return None
    if count != cores and "MINIRES_THREADS" in os.environ:
        what = f"MINIRES_THREADS={count}, but {cores} cores are usable; one thread per core is fastest"
        _advise(advice, "warning", what, "unset MINIRES_THREADS")
    return count


def _blas(cores: int, advice: list[dict[str, str]]) -> list[dict[str, Any]]:
    """The BLAS libraries that NumPy loaded, and which environment variables hold them back."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return []
    keys = ("internal_api", "version", "architecture", "num_threads", "filepath")
    found = [
        {key: library.get(key) for key in keys}
        for library in threadpool_info()
        if library["user_api"] == "blas"
    ]
    if coretype := os.environ.get("OPENBLAS_CORETYPE"):
        held = {library["architecture"] for library in found}
        free = _architectures_without("OPENBLAS_CORETYPE") - held
        if free:
            what = f"OPENBLAS_CORETYPE={coretype} holds OpenBLAS to {', '.join(map(str, held))} kernels; "
            what += f"by itself it would choose {', '.join(sorted(free))} for this processor"
            _advise(advice, "warning", what, "unset OPENBLAS_CORETYPE")
    for pin in THREAD_PINS:
        value = os.environ.get(pin, "")
        if value.isdigit() and 0 < int(value) < cores:
            what = f"{pin}={value} holds BLAS to {value} of {cores} cores"
            _advise(advice, "warning", what, f"unset {pin}")
    return found


def _architectures_without(variable: str) -> set[str]:
    """The kernels that BLAS chooses in a process without an environment variable."""
    environment = {name: value for name, value in os.environ.items() if name != variable}
    done = subprocess.run(
        [sys.executable, "-c", _ARCHITECTURE], env=environment, capture_output=True, text=True, check=False
    )
    return set(done.stdout.split())


def _blas_text(library: Mapping[str, Any]) -> str:
    kernels = f", {library['architecture']} kernels" if library["architecture"] else ""
    version = f" {library['version']}" if library["version"] else ""
    count = library["num_threads"]
    return f"{library['internal_api']}{version}{kernels}, {count} thread{'s' * (count != 1)}"


def _gpu(advice: list[dict[str, str]]) -> dict[str, Any]:
    """The NVIDIA GPUs that the driver names, and whether CuPy can compile for them and use them."""
    cards, driver = _nvidia()
    report: dict[str, Any] = {"cards": cards, "driver": driver or None, "usable": 0, "cupy": None}
    package = next((name for name, oldest in CUPY_DRIVERS.items() if driver >= oldest), "cupy-cuda12x")
    least = _requirements().get(package, ("", ""))[0]
    install = _install(f"{package}[ctk]>={least}" if least else f"{package}[ctk]")
    if cards and driver < min(CUPY_DRIVERS.values()):
        what = f"the NVIDIA driver {driver} is too old: CUDA 12 needs {min(CUPY_DRIVERS.values())} or newer"
        _advise(advice, "warning", f"{what}. Install a newer driver (nvidia.com/drivers)")
    wheels = [name for name in (*CUPY_DRIVERS, "cupy") if _version(name)]
    remove = shlex.join([sys.executable, "-m", "pip", "uninstall", "-y", *wheels])
    if len(wheels) > 1:
        what = f"{' and '.join(wheels)} are installed together; each spoils the files of the other"
        _advise(advice, "warning", what, f"{remove} && {install}")
    elif wheels and cards and driver < CUPY_DRIVERS.get(wheels[0], 0):
        what = f"{wheels[0]} needs an NVIDIA driver {CUPY_DRIVERS[wheels[0]]} or newer, and this is {driver}"
        _advise(advice, "warning", what, f"{remove} && {install}")
    if importlib.util.find_spec("cupy") is None:
        if not cards:
            return {**report, "text": "none found; training runs on the CPU"}
        what = f"{', '.join(cards)} is here (driver {driver}), but CuPy is not installed"
        _advise(advice, "hint", what, install)
        return {**report, "text": what}
    if not cards:
        text = "CuPy is installed, but nvidia-smi names no GPU; training runs on the CPU"
        return {**report, "text": text}
    try:
        report |= _used(backend.cupy())
    except Exception as error:  # CuPy raises its own types, and a missing library an ImportError
        why = (str(error).strip() or repr(error)).splitlines()[0].removesuffix("; use device='cpu'")
        text = f"CuPy is installed but cannot be used: {why}"
        _advise(advice, "warning", text, install)
        return {**report, "text": text}
    if not report["cublas"]:
        what = "cuBLAS was not found, so products take CuPy's way, which is slower"
        _advise(advice, "warning", what, install)
    free = ", ".join(f"{left / 1e9:.0f} of {total / 1e9:.0f} GB free" for left, total in report["memory"])
    versions = f"driver {driver}, CUDA {report['runtime']}, NVRTC {report['nvrtc']}, CuPy {report['cupy']}"
    versions += f", NCCL {report['nccl']}" if report["nccl"] else ", no NCCL"
    return {**report, "text": f"{', '.join(cards)} ({free}; {versions})"}


_TWICE = cuda.Source(r"""
extern "C" __global__ void twice(const T* x /* n */, T* y /* n */, int n) {
    EACH(i, n) y[i] = 2 * x[i];
}
""")


def _used(cupy: Any) -> dict[str, Any]:
    """What CuPy says of the GPUs, after it has compiled a kernel and run it. Raises: anything."""
    runtime = cupy.cuda.runtime
    x = cupy.arange(4, dtype="float32")
    y = cupy.empty(4, "float32")
    _TWICE("twice", cuda.over(4), x, y, 4)
    if cupy.asnumpy(y).tolist() != [0, 2, 4, 6]:
        raise RuntimeError("a kernel on the GPU gives wrong results")
    usable, memory = runtime.getDeviceCount(), []
    for device in range(usable):
        with cupy.cuda.Device(device):
            memory.append(tuple(map(int, runtime.memGetInfo())))
    number = runtime.runtimeGetVersion()  # 12040 for CUDA 12.4
    return {
        "usable": usable,
        "cupy": cupy.__version__,
        "runtime": f"{number // 1000}.{number % 1000 // 10}",
        "nvrtc": ".".join(map(str, cupy.cuda.nvrtc.getVersion())),
        "cublas": cublas.library() is not None,
        "memory": memory,  # free and all bytes of each GPU
        "nccl": _nccl(cupy),
    }


def _nccl(cupy: Any) -> str | None:
    """The version of NCCL, over which GPUs sum their gradients; None if CuPy has none."""
    with suppress(Exception):  # an ImportError where its library is missing
        number = int(cupy.cuda.nccl.get_version())  # 22703 for 2.27.3
        if cupy.cuda.nccl.available:
            return f"{number // 10000}.{number % 10000 // 100}.{number % 100}"
    return None


def _nvidia() -> tuple[list[str], int]:
    """The names of the cards and the driver's main version, as nvidia-smi tells them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return [], 0
    query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return [], 0
    rows = [line.rsplit(", ", 1) for line in answer.splitlines() if ", " in line]
    return [name for name, _ in rows], next(iter(_numbers(rows[0][1])), 0) if rows else 0


def _mpi(advice: list[dict[str, str]]) -> dict[str, Any]:
    """Whether several processes can do a run together."""
    found = examined.examine()
    if found.trouble:
        _advise(advice, "warning", found.trouble, found.way)
    return {**dataclasses.asdict(found), "text": found.text}


def _data(advice: list[dict[str, str]]) -> dict[str, str | None]:
    """Where each data set is; one that needs no files says so."""
    try:
        from minires import data
    except ImportError:  # a package is missing, and named above
        return {}
    try:
        found = {name: data.find(name) for name in data.names()}
    except MiniresError as error:
        _advise(advice, "error", str(error), "unset MINIRES_DATA")
        return {}
    places = {}
    for name, place in found.items():
        entry = data.entry(name)
        if place is None and entry.stand_in:
            what = f"{name} was not found, so `minires train` trains on its stand-in {entry.stand_in}"
            _advise(advice, "hint", what, f"minires data {name} --download" if entry.download else "")
        made = None if entry.locate else "made when used"
        places[name] = made if place is None else str(place)
    return places


def _disk(advice: list[dict[str, str]]) -> dict[str, int]:
    """Free bytes where runs are kept: in the present folder."""
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    if free < LOW_DISK:
        what = f"only {free / 1e9:.1f} GB are free in {here}; a run of ResNet-50 needs up to 1 GB"
        _advise(advice, "warning", what, "minires train --out FOLDER-ON-ANOTHER-DISK")
    if not os.access(here, os.W_OK):
        _advise(advice, "warning", f"{here} cannot be written to", "minires train --out ANOTHER-FOLDER")
    return {str(here): free}
