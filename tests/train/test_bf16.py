"""Training with ``precision="bf16"``: its dtypes, its accuracy, and going on after a stop."""

from __future__ import annotations

import json

import cuda_emulator
import fake_cupy
import numpy as np
import pytest
from train.small_run import CONFIG, small_model, small_splits

from minires import backend, models
from minires.errors import MiniresError
from minires.nn import recompute
from minires.ops.cross_entropy import cross_entropy
from minires.tensor import Tensor
from minires.train import Config, Trainer, checkpoint
from minires.train.diagnose import first_not_finite

BFLOAT16 = backend.bfloat16()

pytestmark = pytest.mark.usefixtures("no_figures")


def trainer(out, *, say=lambda line: None, resume=False, kind=Trainer, **changes):
    config = Config.from_dict({**CONFIG.to_dict(), "precision": "bf16", **changes})
    options = {"splits": small_splits(), "model": small_model(), "progress": False}
    return kind(config, out, say=say, resume=resume, **options)


def test_it_learns_as_well_as_in_float32(tmp_path):
    """The medians of three seeds, of 24 pictures; the losses differ, as the roundings do."""
    adam, cosine = {"name": "adam", "lr": 0.01}, {"name": "cosine"}
    found = {"fp32": [], "bf16": []}
    for precision, summaries in found.items():
        for seed in (3, 4, 5):
            changes = {"epochs": 12, "optimizer": adam, "schedule": cosine, "seed": seed}
            run = trainer(tmp_path / f"{precision}-{seed}", precision=precision, **changes)
            summaries.append(run.run())
    medians = {p: float(np.median([s["test_accuracy"] for s in runs])) for p, runs in found.items()}
    assert medians["bf16"] >= 0.9 and abs(medians["bf16"] - medians["fp32"]) <= 2 / 24, medians
    losses = {p: np.array([s["train_loss"] for s in runs]) for p, runs in found.items()}
    assert (losses["bf16"] != losses["fp32"]).all()
    assert np.abs(losses["bf16"] / losses["fp32"] - 1).max() < 0.1, losses


class _Watched(Trainer):
    """Notes the dtypes of the logits, of the loss and of the gradients in the first step."""

    def _make_steps(self):
        super()._make_steps()
        self._steps.loss = self._noting

    def _noting(self, logits, y):
        loss = self._loss(logits, y)
        self.seen = {"logits": str(logits.dtype), "loss": str(loss.dtype)}
        step = self.optimizer.step

        def watched(**options):
            self.seen["gradients"] = {str(p.grad.dtype) for p in self.optimizer.parameters}
            step(**options)

        self.optimizer.step = watched
        return loss


def test_activations_alone_are_bfloat16(tmp_path):
    said = []
    run = trainer(tmp_path / "run", say=said.append, kind=_Watched, epochs=1)
    assert said == [
        "precision 'bf16' is slower than 'fp32' on the CPU, and only for checking its accuracy there"
    ]
    run.run()
    assert run.seen == {"logits": "bfloat16", "loss": "float32", "gradients": {"float32"}}
    arrays, info = checkpoint.read(checkpoint.Checkpoints(tmp_path / "run").paths()[-1])
    weights, _ = checkpoint.read(tmp_path / "run" / "model.safetensors")
    assert {str(array.dtype) for array in weights.values()} == {"float32"}
    assert {str(array.dtype) for array in arrays.values()} == {"float32", "float64", "int64"}
    wide = {name for name, array in arrays.items() if array.dtype == np.float64}
    assert wide == {"optimizer/lr"} and info["config"]["precision"] == "bf16"


class _Stopped(Exception):
    pass


class _StopsAt17(Trainer):
    def _step(self, x, y):
        if self.progress.step == 17:
            raise _Stopped
        super()._step(x, y)


def test_a_run_that_goes_on_gives_the_same_bits(tmp_path):
    trainer(tmp_path / "whole").run()
    with pytest.raises(_Stopped):
        trainer(tmp_path / "stopped", kind=_StopsAt17).run()
    resumed = trainer(tmp_path / "stopped", resume=True)
    assert resumed.progress.step == 15  # the checkpoint before
    resumed.run()
    states = []
    for name in ("whole", "stopped"):
        out = tmp_path / name
        state, info = checkpoint.read(checkpoint.Checkpoints(out).paths()[-1])
        state |= checkpoint.read(out / "model.safetensors")[0]
        states.append(state)
        assert json.loads((out / "config.json").read_text())["precision"] == "bf16"
    assert states[0].keys() == states[1].keys()
    for name, array in states[0].items():
        assert np.array_equal(array, states[1][name]), name


def test_the_first_thing_not_finite_is_named():
    model = small_model()
    x = Tensor(np.ones((2, 12, 12, 3), np.float32)).astype("bfloat16")
    model.fc.weight.data[:, 0] = 3e38
    said = first_not_finite(model, x, lambda logits: cross_entropy(logits, np.array([0, 1])))
    assert said == "the output of fc (Linear) (2, 3): 0 NaN and 2 infinite of 6 values"
    x.data[0, 0, 0, 0] = np.nan
    said = first_not_finite(model, x, lambda logits: cross_entropy(logits, np.array([0, 1])))
    assert said.startswith("the input: 1 NaN and 0 infinite of 864 values in the pictures [0]")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    run = trainer(tmp_path / "run")
    run.model.fc.weight.data[0, 0] = np.inf
    with pytest.raises(MiniresError, match="the loss is nan at step 0 .* the parameter fc.weight"):
        run.run()


# One of each family, and what is particular to it: shortcut A; additions of their own; a shared buffer; gates
# that are broadcast; groups; branches and pools.
FAMILIES = {
    "resnet20_cifar": {},
    "preresnet110_cifar": {"repeats": (2, 2, 2)},
    "densenet40_k12_cifar": {},
    "se_resnet56_cifar": {"repeats": (2, 2, 2)},
    "resnext29_32x4d_cifar": {},
    "bn_inception": {},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains_in_it(name):
    size = 64 if name == "bn_inception" else 16
    model = models.build(name, classes=5, **FAMILIES[name]).train()
    x = np.random.default_rng(0).standard_normal((4, size, size, 3)).astype(np.float32)
    logits = model(Tensor(x).astype("bfloat16"))
    loss = cross_entropy(logits, np.arange(4))
    loss.backward()
    assert logits.dtype == BFLOAT16 and loss.dtype == np.float32
    for path, parameter in model.named_parameters():
        assert parameter.grad.dtype == np.float32 and np.isfinite(parameter.grad).all(), path
        assert parameter.grad.any() or path.endswith("bias"), path
    assert all(buffer.dtype == np.float32 for _, buffer in model.named_buffers())


@pytest.mark.emulated
@pytest.mark.skipif(cuda_emulator.compiler() is None, reason="there is no g++ here")
@pytest.mark.parametrize("name", ["preresnet110_cifar", "se_resnet56_cifar", "resnext29_32x4d_cifar"])
def test_nothing_is_asked_of_cupy_that_it_cannot_do_in_it(name, monkeypatch):
    """And it gives what the CPU gives, up to the roundings that kernels do elsewhere."""
    x = np.random.default_rng(0).standard_normal((4, 8, 8, 3)).astype(BFLOAT16)

    def loss_on(device):
        model = models.build(name, classes=3, repeats=(1, 1, 1)).to(device).train()
        loss = cross_entropy(model(Tensor(backend.to_device(x, device))), np.array([0, 1, 2, 0]))
        loss.backward()
        assert all(p.grad.dtype == np.float32 and bool(np.isfinite(p.grad).all()) for p in model.parameters())
        return loss.item()

    expected = loss_on("cpu")
    fake_cupy.pretend(monkeypatch)
    assert loss_on("cuda") == pytest.approx(expected, rel=0.02)


def test_the_gradient_points_where_that_of_float32_does():
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((8, 32, 32, 3)).astype(np.float32), np.arange(8) % 6
    gradients = []
    for dtype in ("float32", "bfloat16"):
        model = models.build("resnet20_cifar", classes=6).train()
        cross_entropy(model(Tensor(x).astype(dtype)), labels).backward()
        gradients.append(np.concatenate([p.grad.ravel() for p in model.parameters()]))
    wide, narrow = gradients
    cosine = float(wide @ narrow / np.linalg.norm(wide) / np.linalg.norm(narrow))
    assert 0.95 < cosine < 0.99999, cosine  # measured 0.98 on four pictures


def test_recomputed_activations_give_the_same_bits():
    x = Tensor(np.random.default_rng(0).standard_normal((2, 12, 12, 3)).astype(BFLOAT16))
    results = []
    for run in (lambda model: model(x), lambda model: recompute.recompute(model, x)):
        model = small_model()
        y = run(model)
        y.backward(np.ones(y.shape, y.dtype))
        results.append([y.numpy(), *(p.grad for p in model.parameters())])
    for plain, again in zip(*results, strict=True):
        assert plain.dtype == again.dtype and np.array_equal(plain, again)
