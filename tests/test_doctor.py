"""What doctor finds: each fault is made here, and its advice with the mending command must appear."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import types
from collections import namedtuple
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minires
from minires import backend, cli, doctor
from minires.backend import arrays, cublas, cuda, thread_pool
from minires.distributed import examined

INSTALL = f"{sys.executable} -m pip install "


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which nothing holds anything back, an empty folder, and no package that is called minires
    but for those in its subfolder site."""
    for name in doctor.PINS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(thread_pool, "_pool", None)  # so that MINIRES_THREADS is read anew
    real, site = importlib.metadata.distributions, [str(tmp_path / "site")]

    def distributions(**wanted: Any) -> Any:
        return real(**wanted, path=site) if wanted.get("name") == "minires" else real(**wanted)

    monkeypatch.setattr(importlib.metadata, "distributions", distributions)
    monkeypatch.setattr(examined, "examine", examined.Examined)  # two processes, each time


def advice(about: str) -> dict[str, str]:
    """The one advice that speaks of something."""
    found = [one for one in doctor.examine()["advice"] if about in one["what"]]
    assert len(found) == 1, found
    return found[0]


def pretend_versions(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name not in versions:
            return real(name)
        if versions[name] is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return str(versions[name])

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_a_sound_machine_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"minires {minires.__version__}"
    assert out.splitlines()[-1] == "minires can run"
    assert "error: " not in out
    for word in (np.__version__, "threads", "BLAS", "GPU", "signs", "hands", "cifar10", "free disk"):
        assert word in out


def test_json_holds_what_a_program_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True and report["minires"] == minires.__version__
    assert report["packages"]["numpy"]["version"] == np.__version__
    required = {"numpy", "pillow", "h5py", "safetensors", "tqdm", "matplotlib", "threadpoolctl"}
    assert set(report["packages"]) == required
    assert report["numba"]["works"] is backend.HAS_NUMBA
    assert report["threads"] == report["cores"]["usable"] >= 1
    assert all(library["num_threads"] >= 1 for library in report["blas"])
    assert report["data"]["signs"] is None and report["data"]["hands"] == "made when used"


def test_nothing_on_the_machine_is_changed(tmp_path: Path) -> None:
    doctor.examine()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("version", "said"), [(None, "h5py is missing"), ("2.9", "h5py 2.9 is too old, 3.10 is needed")]
)
def test_a_required_package_that_is_missing_or_old_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], version: str | None, said: str
) -> None:
    pretend_versions(monkeypatch, h5py=version)
    one = advice("h5py")
    assert one == {"level": "error", "what": said, "command": f"{INSTALL}'h5py>=3.10'"}
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert f"error: {said}\n    {one['command']}\n" in out
    assert out.splitlines()[-1] == "minires cannot run as it is"


def test_versions_are_compared_as_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_versions(monkeypatch, h5py="3.9.1", tqdm="4.100rc1")  # 3.9 < 3.10, 4.100 > 4.66
    found = [one["what"] for one in doctor.examine()["advice"] if one["level"] == "error"]
    assert found == ["h5py 3.9.1 is too old, 3.10 is needed"]


def test_a_package_that_cannot_be_imported_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def import_module(name: str, *rest: Any) -> Any:
        if name == "h5py":
            raise OSError("libhdf5.so: wrong version")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", import_module)
    one = advice("h5py")
    assert one["level"] == "error" and "libhdf5.so: wrong version" in one["what"]
    assert one["command"].endswith("--force-reinstall")


def test_a_missing_numba_is_a_warning_that_says_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "HAS_NUMBA", False)
    pretend_versions(monkeypatch, numba=None)
    one = advice("Numba")
    assert one["level"] == "warning" and "slower" in one["what"]
    assert one["command"] == f"{INSTALL}'numba>=0.60'"
    report = doctor.examine()
    assert report["ok"] and not report["numba"]["works"] and "missing" in doctor.describe(report)


@pytest.mark.skipif(not backend.HAS_NUMBA, reason="Numba is not installed")
def test_a_numba_that_does_not_work_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.examine()["numba"]["text"].endswith(", compiles")

    def fail(x: Any) -> Any:
        raise ImportError("Numba needs NumPy 2.3 or less.\nGot NumPy 2.4.")

    monkeypatch.setattr(doctor, "_twice", fail)
    one = advice("Numba")
    assert one["level"] == "error" and one["what"].endswith("Numba needs NumPy 2.3 or less.")
    assert one["command"] == f"{INSTALL}'numba>=0.60' --upgrade"
    monkeypatch.setattr(doctor, "_twice", lambda x: x)
    assert "wrong results" in advice("Numba")["what"]


def test_threads_asked_for_are_compared_with_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = doctor.examine()["cores"]["usable"]
    monkeypatch.setattr(thread_pool, "_pool", None)
    monkeypatch.setenv("MINIRES_THREADS", str(cores + 1))
    one = advice("MINIRES_THREADS")
    assert f"={cores + 1}, but {cores} cores" in one["what"] and one["command"] == "unset MINIRES_THREADS"
    monkeypatch.setattr(thread_pool, "_pool", None)
    monkeypatch.setenv("MINIRES_THREADS", "many")
    report = doctor.examine()
    assert not report["ok"] and report["threads"] is None and "'many'" in str(report["advice"])


@pytest.mark.parametrize("pin", doctor.THREAD_PINS)
def test_a_pin_of_the_threads_is_pointed_out(monkeypatch: pytest.MonkeyPatch, pin: str) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.setenv(pin, "4")
    assert not [one for one in doctor.examine()["advice"] if pin in one["what"]]
    monkeypatch.setenv(pin, "1")
    assert advice(pin) == {
        "level": "warning", "what": f"{pin}=1 holds BLAS to 1 of 4 cores", "command": f"unset {pin}",
    }  # fmt: skip
    assert doctor.examine()["environment"] == {pin: "1"}


def test_a_pin_of_the_kernels_is_pointed_out_where_it_changes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {library["architecture"] for library in doctor.examine()["blas"]}
    if not held or None in held:
        pytest.skip("this BLAS does not tell its architecture")
    free = doctor._architectures_without("OPENBLAS_CORETYPE")  # this process may have been started with a pin
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")
    assert doctor._architectures_without("OPENBLAS_CORETYPE") == free != {"Prescott"}
    monkeypatch.setattr(doctor, "_architectures_without", lambda _: held)
    assert not [one for one in doctor.examine()["advice"] if "CORETYPE" in one["what"]]
    monkeypatch.setattr(doctor, "_architectures_without", lambda _: {"Zen9"})
    one = advice("CORETYPE")
    assert "OPENBLAS_CORETYPE=Prescott holds OpenBLAS to" in one["what"] and "choose Zen9" in one["what"]
    assert one["command"] == "unset OPENBLAS_CORETYPE"


def pretend_nvidia(monkeypatch: pytest.MonkeyPatch, folder: Path, answer: str) -> None:
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{answer}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)


@pytest.mark.skipif(os.name != "posix", reason="the stand-in for nvidia-smi is a shell script")
@pytest.mark.parametrize(
    ("driver", "package"), [("550.54.15", "cupy-cuda12x[ctk]>=14"), ("580.65", "cupy-cuda13x[ctk]>=14")]
)
def test_a_gpu_without_cupy_gets_the_package_of_its_driver(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, driver: str, package: str
) -> None:
    if doctor.importlib.util.find_spec("cupy") is not None:
        pytest.skip("CuPy is installed")
    pretend_nvidia(monkeypatch, tmp_path, f"echo 'NVIDIA H200, {driver}'")
    one = advice("CuPy")
    assert one["level"] == "hint" and one["what"].startswith("NVIDIA H200 is here")
    assert one["command"] == f"{INSTALL}'{package}'"
    assert doctor.examine()["ok"]


@pytest.mark.skipif(os.name != "posix", reason="the stand-in for nvidia-smi is a shell script")
def test_a_driver_that_does_not_answer_is_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend_nvidia(monkeypatch, tmp_path, "echo 'NVIDIA-SMI has failed'; exit 9")
    assert doctor.examine()["gpu"]["cards"] == []


def fake_cupy(devices: int = 1) -> types.SimpleNamespace:
    """CuPy as far as doctor asks it; kernels are not run, the test says what they give."""
    runtime = types.SimpleNamespace(
        getDeviceCount=lambda: devices, runtimeGetVersion=lambda: 12090, memGetInfo=lambda: (70e9, 80e9)
    )
    return types.SimpleNamespace(
        __version__="14.0", arange=np.arange, empty=np.zeros, asnumpy=np.asarray,
        cuda=types.SimpleNamespace(
            runtime=runtime, Device=lambda _: nullcontext(),
            nvrtc=types.SimpleNamespace(getVersion=lambda: (12, 9)),
            nccl=types.SimpleNamespace(get_version=lambda: 22703, available=True),
        ),
    )  # fmt: skip


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(doctor, "_nvidia", lambda: (["NVIDIA H200"], 580))
    for home in (backend, arrays):
        monkeypatch.setattr(home, "cupy", fake_cupy)
    monkeypatch.setattr(cublas, "library", lambda: "found")
    monkeypatch.setattr(cuda, "_launch", lambda source, name, dtype, grid, a: np.multiply(a[0], 2, out=a[1]))
    pretend_versions(monkeypatch, **{"cupy": None, "cupy-cuda12x": None, "cupy-cuda13x": "14.0"})


def test_a_gpu_that_works_is_described(with_gpu: None) -> None:
    report = doctor.examine()
    text = "NVIDIA H200 (70 of 80 GB free; driver 580, CUDA 12.9, NVRTC 12.9, CuPy 14.0, NCCL 2.27.3)"
    assert report["gpu"]["text"] == text and report["gpu"]["usable"] == 1
    assert not [one for one in report["advice"] if "GPU" in one["what"] or "CuPy" in one["what"]]
    json.dumps(report)


def test_a_gpu_that_computes_wrongly_is_not_used(with_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_launch", lambda *arguments: None)
    one = advice("CuPy")
    assert one["what"] == "CuPy is installed but cannot be used: a kernel on the GPU gives wrong results"
    assert doctor.examine()["gpu"]["usable"] == 0


def test_what_cupy_says_of_its_fault_is_told(with_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*arguments: Any) -> None:
        raise RuntimeError("libnvrtc.so.13: cannot open shared object file\nand more")

    monkeypatch.setattr(cuda, "_launch", no_compiler)
    one = advice("CuPy")
    assert one["what"].endswith("cannot be used: libnvrtc.so.13: cannot open shared object file")
    assert one["command"] == f"{INSTALL}'cupy-cuda13x[ctk]>=14'"

    def no_driver() -> Any:
        raise minires.ConfigError("CUDA does not answer")

    monkeypatch.setattr(backend, "cupy", no_driver)
    report = doctor.examine()
    assert report["ok"] and report["gpu"]["usable"] == 0 and "CUDA does not answer" in report["gpu"]["text"]


def test_two_cupys_together_are_replaced_by_one(with_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_versions(monkeypatch, **{"cupy": None, "cupy-cuda12x": "13.6", "cupy-cuda13x": "14.0"})
    one = advice("installed together")
    assert one["what"].startswith("cupy-cuda13x and cupy-cuda12x are")
    uninstall = f"{sys.executable} -m pip uninstall -y cupy-cuda13x cupy-cuda12x"
    assert one["command"] == f"{uninstall} && {INSTALL}'cupy-cuda13x[ctk]>=14'"


def test_a_driver_that_is_too_old_is_told(with_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_nvidia", lambda: (["NVIDIA A100"], 550))
    one = advice("cupy-cuda13x needs an NVIDIA driver 580 or newer, and this is 550")
    uninstall = f"{sys.executable} -m pip uninstall -y cupy-cuda13x"
    assert one["command"] == f"{uninstall} && {INSTALL}'cupy-cuda12x[ctk]>=14'"
    monkeypatch.setattr(doctor, "_nvidia", lambda: (["NVIDIA V100"], 470))
    assert "CUDA 12 needs 525 or newer" in advice("driver 470 is too old")["what"]


def test_cupy_without_a_gpu_trains_on_the_cpu(with_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_nvidia", lambda: ([], 0))
    report = doctor.examine()
    assert "nvidia-smi names no GPU" in report["gpu"]["text"] and report["gpu"]["usable"] == 0


def test_cublas_that_is_missing_is_told(with_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cublas, "library", lambda: None)
    assert advice("cuBLAS was not found")["command"] == f"{INSTALL}'cupy-cuda13x[ctk]>=14'"


def test_data_sets_are_found_or_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one = advice("signs")
    assert one["level"] == "hint" and one["command"] == "minires data signs --download"
    place = tmp_path / "sets" / "signs"
    (place / "train_signs").mkdir(parents=True)
    (place / "test_signs").mkdir()
    monkeypatch.setenv("MINIRES_DATA", str(tmp_path / "sets"))
    report = doctor.examine()
    assert report["data"]["signs"] == str(place) and not [a for a in report["advice"] if "signs" in a["what"]]
    monkeypatch.setenv("MINIRES_DATA", str(tmp_path / "gone"))
    one = advice("MINIRES_DATA")
    assert one["level"] == "error" and one["command"] == "unset MINIRES_DATA"


def test_a_full_or_read_only_place_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, int(1.5e9)))
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "only 1.5 GB are free" in advice("free in")["what"]
    assert advice("cannot be written to")["command"] == "minires train --out ANOTHER-FOLDER"


def test_a_copy_that_was_not_installed_is_examined_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(_: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError("minires")

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    one = advice("not installed, so what it requires")
    assert one["command"] == f"{INSTALL}-e '.[fast]'"
    assert doctor.describe(doctor.examine()).endswith("minires can run")


def namesake(site: Path, *, ours: bool = False) -> None:
    """What pip writes down of a package that is called minires."""
    folder = site / "minires-0.3.2.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Name: minires\nVersion: 0.3.2\nSummary: Oil fields\n")
    (folder / "RECORD").write_text("minires/__init__.py,,\nminires-0.3.2.dist-info/RECORD,,\n")
    if ours:
        (folder / "entry_points.txt").write_text("[console_scripts]\nminires = minires.cli:main\n")


UNINSTALL = f"{sys.executable} -m pip uninstall -y minires"


def test_a_stranger_with_our_name_elsewhere_is_pointed_out(tmp_path: Path) -> None:
    assert not [one for one in doctor.examine()["advice"] if "pip's package minires" in one["what"]]
    namesake(tmp_path / "site")
    one = advice("minires 0.3.2 (Oil fields) is another project's")
    assert one["level"] == "warning" and "Python may import it" in one["what"]
    assert one["command"] == UNINSTALL


def test_a_stranger_in_the_same_folder_is_uninstalled_and_ours_laid_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    namesake(tmp_path / "site")
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "site" / "minires" / "doctor.py"))
    one = advice("minires 0.3.2 (Oil fields) is another project's")
    assert one["level"] == "warning" and "whose __init__.py would go" in one["what"]
    assert one["command"] == f"{UNINSTALL} && {INSTALL}--force-reinstall --no-deps ."


def test_an_earlier_installation_of_ours_is_no_strangers(tmp_path: Path) -> None:
    namesake(tmp_path / "site", ours=True)
    assert "an earlier installation of this project" in advice("minires 0.3.2")["what"]


def test_what_a_build_left_in_the_source_folder_is_no_installation(tmp_path: Path) -> None:
    folder = tmp_path / "site" / "minires.egg-info"
    folder.mkdir(parents=True)
    (folder / "PKG-INFO").write_text("Name: minires\nVersion: 0.1.0\n")
    assert not [one for one in doctor.examine()["advice"] if "pip's package minires" in one["what"]]


def test_doctor_still_runs_where_a_stranger_has_overwritten_our_init(tmp_path: Path) -> None:
    site = tmp_path / "site"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(minires.__file__).parent, site / "minires", ignore=ignored)
    (site / "minires" / "__init__.py").write_text('__version__ = "0.3.2"\n')
    namesake(site)
    command = [sys.executable, "-m", "minires", "doctor", "--json"]
    settings = {**os.environ, "PYTHONPATH": ""}
    run = subprocess.run(command, cwd=site, capture_output=True, text=True, env=settings)
    report = json.loads(run.stdout)
    assert run.returncode == 1 and report["minires"] == minires.__version__ != "0.3.2"
    (one,) = [one for one in report["advice"] if "minires 0.3.2" in one["what"]]
    assert one["level"] == "error" and "__init__.py is overwritten" in one["what"]


def test_what_is_wrong_with_mpi_is_said_with_what_may_mend_it(monkeypatch):
    found = examined.Examined(
        "4.1.2", "MPICH 5.0.2", "/bin/mpirun", "Open MPI", trouble="the wrong one", way="mend"
    )
    monkeypatch.setattr(examined, "examine", lambda: found)
    assert advice("the wrong one") == {"level": "warning", "what": "the wrong one", "command": "mend"}
    report = doctor.examine()
    assert report["mpi"]["library"] == "MPICH 5.0.2" and report["ok"]
    assert "mpi4py 4.1.2, MPICH 5.0.2, /bin/mpirun, the wrong one" in doctor.describe(report)


def test_without_mpi4py_nothing_is_wrong():
    report = doctor.examine()
    assert not [one for one in report["advice"] if "MPI" in one["what"]]
    assert "only runs of several processes need it" in doctor.describe(report)
