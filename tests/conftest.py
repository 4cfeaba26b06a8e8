"""What all tests need."""

import signal

import pytest


@pytest.fixture(autouse=True, scope="session")
def ctrl_c_as_in_a_terminal():
    """A shell starts jobs in the background with Ctrl-C ignored, and whatever these start ignores it too."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
