"""What the tests of the backend share."""

import pytest

from minires import backend


@pytest.fixture
def three_threads():
    before = backend.threads()
    backend.set_threads(3)
    yield
    backend.set_threads(before)
