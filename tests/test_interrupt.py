"""Signals end the program quietly with the shell's status at any moment, and a run only after it is saved."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest

from minires import interrupt, quiet_start
from minires.interrupt import Interrupted, Stopped, StopWish, as_exceptions
from minires.train.telling import Listener

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are of POSIX")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("number", SIGNALS)
def test_at_any_moment_of_the_start_it_is_quiet(number, tmp_path):
    """From the first line of the package on; before it Python itself starts."""
    moments = random.Random(int(number))
    begin = "import sys; sys.argv = ['minires']; print(flush=True); from minires.cli import main; main()"
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", begin.replace("main()", "main(['gradcheck'])")], cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "\n"
        time.sleep(0.03 + moments.uniform(0, 0.8))
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert err == f"minires: {quiet_start.said(number)}\n", (out, err)
    assert not list(tmp_path.iterdir())


def test_only_the_program_takes_the_signals():
    code = "import signal, minires; print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "True\n"


@pytest.mark.parametrize(
    ("argv", "started", "yes"),
    [
        (["/usr/bin/minires", "train"], ["python", "/usr/bin/minires", "train"], True),
        (["minires.exe"], ["python", "minires.exe"], True),
        (["-m", "train"], ["python", "-X", "dev", "-m", "minires", "train"], True),
        (["-m", "minires"], ["python", "-m", "pytest", "minires"], False),
        (["-m"], ["python", "-mminires"], True),
        (["-m"], ["python", "-Bm", "minires"], True),
        (["-m"], ["python", "-uIm", "minires", "train"], True),
        (["-m"], ["python", "-um", "minires.__main__"], True),
        (["-m"], ["python", "-Wignore", "-W", "error", "-Xdev", "-OOm", "minires"], True),
        (["-m"], ["python", "--check-hash-based-pycs", "always", "-mminires"], True),
        (["-m"], ["python", "-mmypack.tool", "minires"], False),
        (["-m"], ["python", "-mminires.tool"], False),
        (["-m"], ["python", "-m"], False),
        (["-m"], ["python"], False),
        (["-m"], [], False),
        (["-m"], ["python", "tool.py", "-m", "minires"], False),
        (["/home/me/minires.tool.py"], ["python", "/home/me/minires.tool.py"], False),
        (["tests/test_minires.py"], ["python", "tests/test_minires.py"], False),
        (["-c"], ["python", "-c", "import minires"], False),
        ([], [], False),
    ],
)
def test_the_program_is_told_from_others_that_import_the_package(argv, started, yes, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", started)
    assert quiet_start.is_the_program() == yes


def test_a_signal_is_an_exception_with_its_status_inside_the_block_alone():
    before = [signal.getsignal(number) for number in SIGNALS]
    for number, status in zip(SIGNALS, (130, 143, 129), strict=True):
        with pytest.raises(Stopped) as stopped, as_exceptions() as came:
            signal.raise_signal(number)
        assert interrupt.status(stopped.value) == status and came == [number]
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert interrupt.status(KeyboardInterrupt()) == 130
    assert interrupt.status(Interrupted("saved", signal.SIGHUP)) == 129


def test_ctrl_c_as_a_wish_says_what_another_one_does(capfd):
    with StopWish():
        signal.raise_signal(signal.SIGINT)
    said = "\nStopping after this step; press Ctrl-C again to stop at once without saving.\n"
    assert capfd.readouterr().err == said


def test_the_first_signal_is_a_wish_and_only_another_ctrl_c_acts(capfd):
    with pytest.raises(Stopped), as_exceptions(), StopWish() as stop:
        assert not stop.wanted
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
            signal.raise_signal(number)
        assert stop.wanted == signal.SIGHUP
        signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == "\nStopping after this step, stopped by SIGHUP.\n"


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with as_exceptions() as came, StopWish() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert not came and not stop.wanted and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_program_of_the_same_name_keeps_its_own_handlers(tmp_path):
    (tmp_path / "minires").write_text(
        "import signal\nown = lambda *_: None\nsignal.signal(signal.SIGTERM, own)\nimport minires\n"
        "print(signal.getsignal(signal.SIGTERM) is own, signal.getsignal(signal.SIGINT).__name__)"
    )
    run = subprocess.run([sys.executable, tmp_path / "minires"], capture_output=True, text=True)
    assert run.stdout == "True _end\n", run.stderr


def full_pipe():
    """Both ends of a pipe into which nothing more goes."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    for size in (65536, 1):
        try:
            while True:
                os.write(write, bytes(size))
        except BlockingIOError:
            pass
    os.set_blocking(write, True)
    return read, write


def test_a_signal_waits_for_nobody_who_does_not_read():
    read, write = full_pipe()
    code = (
        "import sys; sys.argv = ['minires']\nfrom minires import cli, interrupt\nimport signal\n"
        "from minires.commands import models\n"
        "def run(options):\n    with interrupt.StopWish() as stop:\n"
        "        signal.raise_signal(signal.SIGTERM)\n    raise interrupt.Interrupted('saved', stop.wanted)\n"
        "object.__setattr__(cli.COMMANDS['models'], 'run', run)\nsys.exit(cli.main(['models']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=write)
    try:
        assert process.wait(timeout=30) == 143
    finally:
        process.kill()
        os.close(read)
        os.close(write)


def test_descriptors_are_given_back():
    def opened():
        return len(os.listdir("/dev/fd"))

    before = opened()
    for _ in range(3):
        interrupt.three_streams()
        with open(os.devnull, "w") as stream:
            interrupt.to_nobody(stream)
    assert opened() == before


@pytest.mark.parametrize(
    ("error", "gone"),
    [
        (OSError(errno.ENOSPC, ""), True),
        (OSError(errno.EIO, ""), True),
        (ValueError("write to closed file"), True),
        (FileNotFoundError(errno.ENOENT, "no such folder"), False),
        (PermissionError(errno.EACCES, "not yours"), False),
        (OSError("my own"), False),
        (ValueError("my own"), False),
    ],
)
def test_a_mistake_of_who_writes_is_told_from_nobody_being_there(error, gone):
    assert interrupt.is_gone(error) == gone
    heard = []

    def say(line):
        heard.append(line)
        raise error

    listener = Listener(say)
    for _ in range(2):
        with nullcontext() if gone else pytest.raises(type(error)):
            listener("line")
    assert len(heard) == (1 if gone else 2)


def test_signals_that_follow_at_once_do_not_disturb_the_cleaning_up():
    cleaned = []
    with pytest.raises(Stopped) as stopped, as_exceptions() as came:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            cleaned.append(True)
    assert cleaned and came == [signal.SIGTERM] and interrupt.status(stopped.value) == 143


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_whose_exception_was_lost_can_be_raised_again():
    class Deaf:
        def __del__(self):
            signal.raise_signal(signal.SIGHUP)

    interrupt.raise_what_came()
    with pytest.raises(Stopped) as stopped, as_exceptions():
        deaf = Deaf()
        del deaf  # Python prints its exception and goes on
        interrupt.raise_what_came()
    assert interrupt.status(stopped.value) == 129
    interrupt.raise_what_came()  # outside the block there is none


class Ringing:
    """Gets a signal while it is taken away, where Python prints what is raised, and forgets it."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


def test_what_python_forgets_is_raised_again_and_not_printed(monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    with pytest.raises(Stopped) as stopped, as_exceptions() as came:
        Ringing()
        for _ in range(500):
            time.sleep(0.01)
        pytest.fail("it went on for seconds")
    assert stopped.value.number == signal.SIGTERM and came == [signal.SIGTERM] * 2 and not printed
    assert sys.unraisablehook == printed.append


def test_what_is_forgotten_at_the_very_end_is_not_lost(monkeypatch):
    monkeypatch.setattr(interrupt, "SOON", 60)
    with as_exceptions():
        Ringing()
        with pytest.raises(Stopped):
            interrupt.raise_what_came()


def test_another_error_that_python_forgets_is_told_as_before(monkeypatch):
    class Failing:
        def __del__(self):
            raise ValueError("mine")

    printed = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: printed.append(str(what.exc_value)))
    with as_exceptions():
        Failing()
    assert printed == ["mine"]
