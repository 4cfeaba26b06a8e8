"""Ctrl-C: a wish to stop soon, and never lost."""

import os
import signal

import pytest

from minires.interrupt import StopWish, noticed


class _PressesInItsDestructor:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):  # Python acts on a signal between two steps of a program
            pass


@pytest.fixture
def forgotten(monkeypatch):
    """What Python forgot: exceptions raised in destructors."""
    found = []
    monkeypatch.setattr("sys.unraisablehook", lambda what: found.append(what.exc_type))
    return found


def test_what_python_forgets_is_raised_when_the_run_begins(forgotten):
    with noticed():
        _PressesInItsDestructor()
        assert forgotten == [KeyboardInterrupt]
        with pytest.raises(KeyboardInterrupt), StopWish():
            pass
    with StopWish() as stop:  # it was told once
        assert not stop.wanted
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_is_raised_at_once_where_python_can():
    with pytest.raises(KeyboardInterrupt), noticed():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_somebody_else_is_left_alone():
    def theirs(number, frame):
        pass

    before = signal.signal(signal.SIGINT, theirs)
    try:
        with noticed():
            assert signal.getsignal(signal.SIGINT) is theirs
    finally:
        signal.signal(signal.SIGINT, before)


def test_inside_a_stop_wish_the_first_one_only_sets_a_flag(capfd):
    with noticed(), StopWish() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.wanted
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert "Stopping after this step" in capfd.readouterr().err
