"""What the tests of `minires play` share: one trained run."""

from __future__ import annotations

from pathlib import Path

import pytest
from play.trained import trained_run


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory.mktemp("play") / "run")
