"""What tests of plans share."""

import pytest

from minires.ops.conv2d import choose


@pytest.fixture(params=[False, True], ids=["indirect", "Winograd where it fits"])
def ways(request, monkeypatch):
    """Small pictures take Winograd's way only where they are made to."""
    monkeypatch.setattr(choose, "_is_worth", lambda *given: request.param)
