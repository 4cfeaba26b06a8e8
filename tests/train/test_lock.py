"""One run folder, one process: who comes second is told who holds it, and a lock goes with its process."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from train.small_run import CONFIG, small_model, small_splits

from minires.errors import ConfigError, MiniresError
from minires.files import atomic_write
from minires.train import Config, Trainer, lock
from minires.train.lock import Held, Lock, Lost

HOLD = """
import sys, time
from minires.train.lock import Lock
held = Lock(sys.argv[1])
held.busy = True
print("held", flush=True)
time.sleep(60)
"""


def trainer(out, *, resume=False):
    return Trainer(
        Config.from_dict({**CONFIG.to_dict(), "epochs": 1}), out, splits=small_splits(),
        model=small_model(), resume=resume, progress=False, say=lambda line: None,
    )  # fmt: skip


def without_locks(monkeypatch):
    """A disk that knows no locks, as some on networks."""
    fcntl = pytest.importorskip("fcntl")

    def unknown(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unknown)


@pytest.fixture
def holding(tmp_path):
    """Another process that trains in the folder ``run``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_process_is_told_who_holds_the_folder_until_that_is_killed(tmp_path, holding):
    who = f"process {holding.pid} on {socket.gethostname()}, since 20"
    for _ in range(2):
        with pytest.raises(Held, match=f"run is being trained by {who}.*wait for its end, or stop it"):
            Lock(tmp_path / "run")
    assert lock.holder(tmp_path / "run").startswith(who)
    holding.send_signal(signal.SIGKILL)
    holding.wait()
    assert (tmp_path / "run" / lock.NAME).exists() and lock.holder(tmp_path / "run") is None
    Lock(tmp_path / "run").release()
    assert not list((tmp_path / "run").iterdir())


def test_of_two_trainers_of_a_process_one_that_does_not_run_is_replaced(tmp_path):
    def make(resume=False):
        return trainer(tmp_path / "run", resume=resume)

    first = make()
    second, tried = make(resume=True), []

    def step(x, y):
        with pytest.raises(Held, match="is being trained by this process"):
            make(resume=True)
        tried.append(1)
        type(second)._step(second, x, y)

    second._step = step
    with pytest.raises(MiniresError, match="no longer holds .*another Trainer has taken it over"):
        first.run()
    assert second.run()["steps"] == len(tried) == 12
    assert second.run()["steps"] == 12  # once more: it is tested again
    with pytest.raises(MiniresError, match="no longer holds .*somebody else has trained there meanwhile"):
        first.run()


def test_the_first_free_number_is_taken_by_one_alone(tmp_path):
    names = [tmp_path / "runs" / f"r-{number}" for number in range(1, 60)]
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom minires.train.lock import Lock\n"
        "while time.time() < float(sys.argv[1]): pass\n"
        "print([Lock(map(Path, sys.argv[2:])).folder.name for _ in range(20)])"
    )
    begin = str(time.time() + 2)
    several = [
        subprocess.Popen([sys.executable, "-c", program, begin, *names], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    taken = [name for one in several for name in eval(one.communicate()[0])]
    assert sorted(taken) == sorted(path.name for path in names[:40])


def test_folders_that_were_made_go_if_they_are_empty_and_others_stay(tmp_path):
    made = Lock(tmp_path / "a" / "b" / "c")
    assert [path.name for path in made.made] == ["a", "b", "c"]
    (tmp_path / "a" / "notes.txt").write_text("x")
    made.remove_folder()
    assert not made.held and [path.name for path in tmp_path.rglob("*")] == ["a", "notes.txt"]
    there = Lock(tmp_path / "a")
    there.remove_folder()
    assert (tmp_path / "a").is_dir()
    with pytest.raises(ConfigError, match="notes.txt is a file; choose a folder"):
        Lock(tmp_path / "a" / "notes.txt")
    with pytest.raises(MiniresError, match="cannot make the folder .*: Not a directory"):
        Lock(tmp_path / "a" / "notes.txt" / "run")
    with pytest.raises(ConfigError, match="must be a path, not 3"):
        Lock(3)


@pytest.mark.parametrize("without", [False, True])
@pytest.mark.parametrize("content", ["", "\x00" * 20, '[7, "a machine", "2026-11-28 10:00:00"]' + " " * 30])
def test_what_stands_in_an_old_file_of_a_run_does_not_matter(tmp_path, content, without, monkeypatch):
    if without:
        without_locks(monkeypatch)
    (tmp_path / lock.NAME).write_text(content)
    assert lock.holder(tmp_path) is None
    held = Lock(tmp_path)
    assert json.loads((tmp_path / lock.NAME).read_text())[0] == os.getpid()
    assert without or lock.holder(tmp_path).startswith("this process, since 20")
    held.release()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("without", [False, True])
@pytest.mark.parametrize(
    "content",
    ["{", "[1]", '["x", 2, 3]', "[" * 900, "[0, 1, 2]", '[0, "a", "b"]', '[true, "a", "b"]', "4711\n",
     "my notes", '[7, "a machine", ""]' + " " * 2000 + "mine"],
)  # fmt: skip
def test_a_file_of_the_users_that_is_called_like_a_lock_stays_as_it_is(
    tmp_path, content, without, monkeypatch
):
    if without:
        without_locks(monkeypatch)
    (tmp_path / lock.NAME).write_text(content)
    assert lock.holder(tmp_path) is None
    with pytest.raises(MiniresError, match="written by something else here, and nothing was changed; move"):
        Lock(tmp_path)
    with pytest.raises(MiniresError, match="written by something else"):
        trainer(tmp_path)
    assert (tmp_path / lock.NAME).read_text() == content and len(list(tmp_path.iterdir())) == 1


def test_a_lock_that_did_not_fit_on_the_disk_is_not_taken_for_the_users(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr("minires.train.lock.os.write", lambda file, content: write(file, content[:5]))
    held = Lock(tmp_path)
    assert held.held and (tmp_path / lock.NAME).read_bytes() == b""


@pytest.mark.skipif(os.name != "posix", reason="flock is of POSIX")
def test_a_lock_that_was_let_go_while_it_was_opened_is_not_held(tmp_path, monkeypatch):
    import fcntl

    flock, tried = fcntl.flock, []

    def late(file, how):
        if not tried:  # who held it removes it, as at the end of a run
            (tmp_path / lock.NAME).unlink()
        tried.append(file)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    held = Lock(tmp_path)
    assert len(tried) == 2 and (tmp_path / lock.NAME).exists()
    assert lock.holder(tmp_path).startswith("this process")
    held.release()


@pytest.mark.skipif(os.name != "posix", reason="Windows removes no file that is open")
def test_what_is_being_written_when_another_run_begins_in_the_folder_is_not_put_into_it(tmp_path):
    held = Lock(tmp_path)
    (tmp_path / "a.txt").write_text("the other run's")
    with pytest.raises(Lost, match="another run has begun in it"), atomic_write(tmp_path / "a.txt") as file:
        file.write(b"ours")
        (tmp_path / lock.NAME).unlink()
        (tmp_path / lock.NAME).write_text("another")
    held.release()
    assert (tmp_path / "a.txt").read_text() == "the other run's"
    assert (tmp_path / lock.NAME).read_text() == "another" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(os.name != "posix", reason="there is no fork")
def test_a_forked_child_takes_nothing_and_lets_nothing_go(tmp_path):
    held = Lock(tmp_path)
    if (child := os.fork()) == 0:
        status = 1
        try:
            Lock(tmp_path)
        except Held:
            held.release()
            status = 0
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with atomic_write(tmp_path / "ours"):
        pass
    assert held.held and lock.holder(tmp_path) is not None
    held.release()
    assert lock.holder(tmp_path) is None


@pytest.mark.skipif(os.name != "posix", reason="flock is of POSIX")
def test_on_a_disk_without_locks_a_living_process_of_this_machine_holds(tmp_path, monkeypatch, holding):
    without_locks(monkeypatch)
    with pytest.raises(Held, match=f"process {holding.pid}"):
        Lock(tmp_path / "run")
    holding.kill()
    holding.wait()
    Lock(tmp_path / "run").release()
    for free in ('[1, "another machine", ""]', json.dumps([999999999, socket.gethostname(), ""])):
        (tmp_path / lock.NAME).write_text(free)
        Lock(tmp_path).release()


def test_a_lock_goes_with_its_trainer(tmp_path):
    held = Lock(itertools.repeat(tmp_path / "new"))
    assert lock.holder(tmp_path / "new") is not None
    del held
    assert lock.holder(tmp_path / "new") is None


@pytest.mark.skipif(os.name != "posix", reason="links and pipes are of POSIX")
@pytest.mark.parametrize("kind", ["link", "dangling", "second name", "pipe", "folder"])
def test_what_stands_in_the_place_of_the_lock_is_neither_followed_nor_changed(kind, tmp_path):
    run, mine = tmp_path / "run", tmp_path / "mine.txt"
    run.mkdir()
    mine.write_text("mine")
    {
        "link": lambda path: path.symlink_to(mine),
        "dangling": lambda path: path.symlink_to(tmp_path / "nothing"),
        "second name": lambda path: path.hardlink_to(mine),
        "pipe": os.mkfifo,
        "folder": os.mkdir,
    }[kind](run / lock.NAME)
    assert lock.holder(run) is None  # and does not wait
    with pytest.raises(MiniresError, match="the file of the lock of a run, is .*nothing was changed; remove"):
        Lock(run)
    assert mine.read_text() == "mine" and not (tmp_path / "nothing").exists()
    assert [path.name for path in run.iterdir()] == [lock.NAME]


@pytest.mark.skipif(os.name != "posix", reason="Windows moves no folder with an open file in it")
@pytest.mark.parametrize("there", ["nothing", "an empty folder", "another run", "the other's lock alone"])
def test_nothing_is_written_into_what_stands_in_the_place_of_the_folder(there, tmp_path):
    held, run = Lock(tmp_path / "run"), tmp_path / "run"
    with atomic_write(run / "a.txt") as file:
        file.write(b"a")
    if there == "the other's lock alone":
        (run / lock.NAME).unlink()
        with atomic_write(run / "b.txt"):  # it is still the folder, and nobody else is in it
            pass
    else:
        run.rename(tmp_path / "moved")
        if there == "an empty folder":
            run.mkdir()
    other = None
    if "other" in there:
        other = subprocess.Popen([sys.executable, "-c", HOLD, run], stdout=subprocess.PIPE, text=True)
        other.stdout.readline()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Lost, match="run is no more the folder in which this run began: .*stopped"):
        atomic_write(run / "a.txt").__enter__()
    assert held.lost
    held.remove_folder()
    assert sorted(tmp_path.rglob("*")) == before
    if other:
        other.kill()
        other.communicate()


@pytest.mark.skipif(os.name != "posix", reason="there is no fork")
def test_the_lock_does_not_outlive_its_process_in_a_forked_one(tmp_path):
    program = (
        "import os, sys, time\nfrom minires.train.lock import Lock\nheld = Lock(sys.argv[1])\n"
        "if os.fork() == 0: time.sleep(60)\nprint('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout.readline() == b"held\n"
        process.kill()
        process.wait()
        Lock(tmp_path).release()
        os.killpg(process.pid, signal.SIGKILL)


def test_a_link_to_nowhere_is_named_with_what_it_points_to(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for path in (tmp_path / "link", tmp_path / "link" / "run"):
        with pytest.raises(ConfigError, match="link is a link to .*nothing, which is not there; make that"):
            Lock(path)
