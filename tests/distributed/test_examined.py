"""What is found out of the MPI of a machine: programs that pretend stand in for its parts."""

from __future__ import annotations

import importlib.metadata
import sys

import pytest

from minires.distributed import examined, launcher


@pytest.fixture
def pretend(monkeypatch, tmp_path):
    """Make a launcher that says ``version``, and for all else ``said``; mpi4py is of the MPI ``library``."""

    def make(
        *, version="mpirun (Open MPI) 5.0.11", said="sum 3 2\nsum 3 2", library="Open MPI|5|0|11", status=0
    ):
        script = tmp_path / "mpirun"
        lines = ['if [ "$1" = --version ]', f'then echo "{version}"', f'else echo "{said}"', f"exit {status}"]
        script.write_text("\n".join(["#!/bin/sh", *lines, "fi", ""]))
        script.chmod(0o755)
        monkeypatch.setattr(launcher, "beside", lambda path: str(script))
        monkeypatch.setattr(importlib.metadata, "version", lambda name: "4.1.2")
        text = f"print({library!r})" if library else "raise RuntimeError('cannot load MPI library')"
        monkeypatch.setattr(examined, "_LIBRARY", text)
        return str(script)

    return make


@pytest.mark.skipif(sys.platform == "win32", reason="the launcher that pretends is a shell script")
class TestPretended:
    def test_two_processes_that_find_each_other(self, pretend):
        path = pretend()
        found = examined.examine()
        assert found == examined.Examined("4.1.2", "Open MPI 5.0.11", path, "Open MPI", works=True)
        assert found.text == f"mpi4py 4.1.2, Open MPI 5.0.11, {path}, 2 processes find each other"

    @pytest.mark.parametrize(("made", "trouble"), [
        ({"library": ""}, "mpi4py finds no MPI: RuntimeError: cannot load MPI library"),
        ({"version": "HYDRA build details:"}, "belongs to MPICH, but mpi4py uses Open MPI 5.0.11"),
        ({"said": "sum 1 1", "status": 0}, "do not find each other: sum 1 1"),
        ({"said": "no slots", "status": 1}, "do not find each other: no slots"),
        ({"said": "", "status": 3}, "do not find each other: it ended with status 3"),
    ])  # fmt: skip
    def test_what_is_wrong_is_said(self, pretend, made, trouble):
        pretend(**made)
        found = examined.examine()
        assert trouble in found.trouble and not found.works
        assert trouble in found.text

    def test_a_launcher_that_hangs_is_ended(self, pretend, monkeypatch):
        script = pretend()
        with open(script, "w") as file:
            file.write('#!/bin/sh\nif [ "$1" = --version ]; then echo hydra; else exec sleep 60; fi\n')
        monkeypatch.setattr(examined, "_LIBRARY", "print('MPICH|5')")
        monkeypatch.setattr(examined, "SECONDS", 0.5)
        assert "it did not end within 0.5 s" in examined.examine().trouble

    def test_no_launcher_at_all(self, pretend, monkeypatch):
        pretend()
        monkeypatch.setattr(launcher, "beside", lambda path: None)
        assert "there is no mpirun" in examined.examine().trouble


def test_without_mpi4py_nothing_is_tried(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert examined.examine() == examined.Examined()
