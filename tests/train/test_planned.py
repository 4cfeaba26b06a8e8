"""A run that trains by a plan: the bits of one that does not, and after it was interrupted, too."""

import dataclasses

import numpy as np
import pytest
from train.small_run import CONFIG, small_model, small_splits

from minires import backend, nn, ops
from minires.plan import TrainingPlan
from minires.tensor import Tensor
from minires.train import Trainer, planned

pytestmark = [
    pytest.mark.skipif(not backend.HAS_NUMBA, reason="a plan needs Numba"),
    pytest.mark.usefixtures("no_figures"),
]


class Dying(Trainer):
    def _step(self, x, y):
        if self.progress.step == 17:
            raise RuntimeError("the power fails")
        super()._step(x, y)


def trained(out, kind=Trainer, **options):
    data, model = small_splits(), small_model()
    run = kind(CONFIG, out, splits=data, model=model, progress=False, say=lambda line: None, **options)
    run.run()
    return run


def test_it_gives_the_bits_of_the_model_and_of_a_run_that_was_interrupted(tmp_path, monkeypatch):
    expected = trained(tmp_path / "unplanned")
    assert expected._forward.plan is None  # it is too short for one
    monkeypatch.setattr(planned, "WORTH", 1)
    whole = trained(tmp_path / "planned")
    assert isinstance(whole._forward.plan, TrainingPlan)
    with pytest.raises(RuntimeError, match="the power fails"):
        trained(tmp_path / "died", Dying)
    resumed = trained(tmp_path / "died", resume=True)
    for run in (whole, resumed):
        for name, array in expected.model.state_dict().items():
            assert np.array_equal(array, run.model.state_dict()[name]), name
        assert [row["train_loss"] for row in run.history] == [row["train_loss"] for row in expected.history]


def test_it_says_so_and_can_be_left(tmp_path, monkeypatch):
    monkeypatch.setattr(planned, "WORTH", 1)
    for plan in True, False:
        said, config = [], dataclasses.replace(CONFIG, plan=plan)
        run = Trainer(
            config, tmp_path / str(plan), splits=small_splits(), model=small_model(), progress=False,
            say=said.append,
        )  # fmt: skip
        run.run()
        assert plan == any("each step goes by a plan of the model (minires.compile)" in line for line in said)
        assert plan == (run._forward.plan is not None)


class Chosen(nn.Module):
    """Of an operation that does not say what chooses."""

    def forward(self, x):
        return ops.where(True, x, x + 1.0)


def test_a_model_that_is_changed_in_each_step_goes_by_itself():
    model, x = (
        nn.Sequential(nn.GlobalAvgPool2d(), nn.Dropout(0.5, seed=1), nn.Linear(3, 2)),
        np.ones((2, 4, 4, 3)),
    )
    said, forward = [], planned.Forward(model, planned.WORTH, 2)
    forward.say = said.append
    for step in range(20):
        model[1].rate = 0.5 - step / 100
        forward(Tensor(x.astype(np.float32)))
    assert forward.plan is None and forward.made < 10 and len(said) == 1


@pytest.mark.parametrize(
    ("steps", "batch", "model"),
    [
        (planned.WORTH - 1, 2, nn.Sequential(nn.GlobalAvgPool2d(), nn.Linear(3, 2))),  # too short
        (planned.WORTH, 3, nn.Sequential(nn.GlobalAvgPool2d(), nn.Linear(3, 2))),  # the last, smaller batch
        (planned.WORTH, 2, nn.Sequential(nn.GlobalAvgPool2d(), Chosen(), nn.Linear(3, 2))),  # no plan
        (planned.WORTH, 2, nn.Sequential(nn.GlobalAvgPool2d(), nn.Linear(3, 2), nn.LeakyReLU())),  # it calls
    ],
)
def test_all_else_goes_through_the_model(steps, batch, model):
    forward = planned.Forward(model, steps, batch)
    x = Tensor(np.ones((2, 4, 4, 3), np.float32))
    assert np.array_equal(forward(x).data, model(x).data) and forward.plan is None
