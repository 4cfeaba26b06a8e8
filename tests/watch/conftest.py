"""What the tests of `minires watch` share: a run that was watched, and one that was stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
from train.small_run import CONFIG, small_model, small_splits

from minires.train import Config, Observer, Trainer, watched


class Ends(Observer):
    """Ends the run after some steps, as a signal does."""

    def stepped(self, run):
        if run.progress.step == 16:
            raise SystemExit


def _run(out: Path, **options) -> Path:
    config = Config.from_dict({**CONFIG.to_dict(), "normalize": "none"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watched, "SHARE", 1e9)
        patch.setattr(watched, "PAUSE", 0.0)
        run = Trainer(
            config, out, splits=small_splits(), model=small_model(), progress=False,
            say=lambda line: None, **options,
        )  # fmt: skip
        try:
            run.run()
        except SystemExit:
            pass
        run._lock.release()
    return out


@pytest.fixture(scope="package")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _run(tmp_path_factory.mktemp("watch") / "finished")


@pytest.fixture(scope="package")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _run(tmp_path_factory.mktemp("watch") / "stopped", observers=[Ends()])
