"""The captured step, with a stand-in for CuPy: replayed, it does what a step launched anew does."""

from __future__ import annotations

import cuda_emulator
import fake_cupy
import numpy as np
import pytest
from train.small_run import CONFIG, small_model, small_splits

from minires import backend, nn, optim
from minires.errors import MiniresError
from minires.ops.cross_entropy import cross_entropy
from minires.optim import SGD, Adam
from minires.tensor import Tensor
from minires.train import Config, Trainer, captured

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(cuda_emulator.compiler() is None, reason="there is no g++ here"),
]


@pytest.fixture(params=fake_cupy.WAYS)
def gpu(request, monkeypatch):
    fake_cupy.take(request.param, monkeypatch)
    return request.param


def _network():
    rng = np.random.default_rng(0)
    return nn.Sequential(
        conv1=nn.Conv2d(3, 4, 3, padding="same", rng=rng),
        bn1=nn.BatchNorm2d(4, momentum=0.9, relu=True),
        pool=nn.MaxPool2d(2),
        conv2=nn.Conv2d(4, 8, 1, rng=rng),
        bn2=nn.BatchNorm2d(8, momentum=0.9, relu=True),
        mean=nn.GlobalAvgPool2d(),
        fc=nn.Linear(8, 3, rng=rng),
    )


def _batches(count, size=4, precision="fp32"):
    rng = np.random.default_rng(1)
    for _ in range(count):
        x = rng.standard_normal((size, 6, 6, 3)).astype(backend.activations(precision))
        yield x, rng.integers(0, 3, size)


OPTIMIZERS = {
    "adam": lambda p: Adam(p, 1e-2, weight_decay=1e-3),
    "clipped": lambda p: SGD(p, 0.1, momentum=0.9, nesterov=True, clip_norm=0.5),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_where_its_model_is_moved_to(gpu, name):
    states = []
    for move in (False, True):
        model = _network().train()
        weight = model.conv1.weight
        for conv in (model.conv1, model.conv2):  # before a batch norm its gradient is rounding, and no more
            conv.bias.requires_grad = False
        optimizer = OPTIMIZERS[name](model.named_parameters())
        for number, (x, y) in enumerate(_batches(4)):
            device = "cuda" if move and number in (1, 2) else "cpu"
            assert model.to(device).conv1.weight is weight and weight.device.startswith(device)
            assert model.bn1.running_mean.dtype == np.float32
            loss = cross_entropy(model(Tensor(backend.to_device(x, device))), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            state = [array for slot in optimizer._state.values() for array in slot if array is not None]
            assert state and all(backend.device_of(array).startswith(device) for array in state)
        states.append({**model.state_dict(), **optimizer.state_dict()})
    assert all(np.allclose(array, states[1][key], rtol=1e-4, atol=1e-6) for key, array in states[0].items())


@pytest.mark.parametrize(
    ("name", "precision"), [("adam", "fp32"), ("clipped", "fp32"), ("adam", "bf16")], ids=str
)
def test_a_replayed_step_is_a_step_launched_anew(gpu, name, precision):
    figures, states, count = {}, {}, 12 if gpu == "emulated" else 100
    for way in ("anew", "captured"):
        model = _network().to("cuda").train()
        optimizer = OPTIMIZERS[name](model.named_parameters())
        step, slots, figures[way] = None, [], []
        for number, (x, y) in enumerate(_batches(count, precision=precision)):
            optimizer.lr = 1e-2 / (1 + number)  # must not be frozen
            if way == "captured" and number >= 2:
                step = step or captured.CapturedStep(model, optimizer, cross_entropy, x, y)
                slots.append(step(x, y))
                figures[way] += [slot.read() for slot in slots[-2:-1]]  # a step later
                continue
            logits = model(Tensor(backend.to_device(x, "cuda")))
            loss = cross_entropy(logits, y)
            optimizer.zero_grad()
            loss.backward()
            norm = optimizer.gradient_norm()
            optimizer.step(norm=norm)
            right = int((logits.numpy().argmax(axis=1) == y).sum())
            figures[way].append(captured.Figures(float(loss.item()), right, norm))
        figures[way] += [slot.read() for slot in slots[-1:]]
        states[way] = {**model.state_dict(), **optimizer.state_dict()}
    assert figures["anew"] == figures["captured"]
    for key, array in states["anew"].items():
        assert np.array_equal(array, states["captured"][key]), key


def test_the_learning_rate_of_a_replay_is_that_of_its_own_step(gpu):
    """The test above would not see a frozen one if rates made no difference: here they do."""
    model = _network().to("cuda").train()
    optimizer = SGD(model.named_parameters(), 0.0)
    batches = list(_batches(4))
    _anew(model, optimizer, *batches[0])
    step = captured.CapturedStep(model, optimizer, cross_entropy, *batches[1])
    before = model.state_dict()
    step(*batches[1])
    assert np.array_equal(model.state_dict()["fc.weight"], before["fc.weight"])
    optimizer.lr = 1.0
    step(*batches[2])
    assert not np.array_equal(model.state_dict()["fc.weight"], before["fc.weight"])


def _anew(model, optimizer, x, y):
    optimizer.zero_grad()
    cross_entropy(model(Tensor(backend.to_device(x, "cuda"))), y).backward()
    optimizer.step()


def test_a_step_that_is_not_finite_changes_no_weight(gpu):
    model = _network().to("cuda").train()
    optimizer = Adam(model.named_parameters())
    (x, y), *_ = _batches(1)
    _anew(model, optimizer, x, y)
    step = captured.CapturedStep(model, optimizer, cross_entropy, x, y)
    before = {name: p.numpy().copy() for name, p in model.named_parameters()}
    figures = step(np.full_like(x, np.nan), y).read()
    assert np.isnan(figures.loss) and np.isnan(figures.norm)
    for name, parameter in model.named_parameters():
        assert np.array_equal(parameter.numpy(), before[name]), name


CALM = {**CONFIG.to_dict(), "epochs": 2, "device": "cuda", "precision": "fp32"}


def _without_dropout():
    model = small_model()
    model.drop.rate = 0.0
    return model


def _trained(out, say, **changes):
    config = Config.from_dict({**CALM, **changes})
    trainer = Trainer(
        config, out, splits=small_splits(), model=_without_dropout(), progress=False, say=say, figures=False
    )
    trainer.run()
    return trainer


@pytest.mark.parametrize(("precision", "balance"), [("fp32", "none"), ("bf16", "none"), ("fp32", "weights")])
def test_a_captured_run_is_a_run(gpu, tmp_path, monkeypatch, precision, balance):
    """With a last batch that is smaller, checkpoints in the middle, a moving average and clipping."""
    said = []
    runs = {}
    for way in ("captured", "anew"):
        if way == "anew":
            monkeypatch.setattr(captured, "WARM_UP", 10**6)
        runs[way] = _trained(tmp_path / way, said.append, precision=precision, balance=balance)
    assert runs["captured"]._steps.capture.step and not runs["anew"]._steps.capture.step
    metrics = {way: (tmp_path / way / "metrics.csv").read_text().splitlines() for way in runs}
    header = metrics["anew"][0].split(",")
    timed = {header.index(name) for name in header if "second" in name or "per_s" in name}
    assert len(metrics["anew"]) == 3
    for one, other in zip(metrics["captured"], metrics["anew"], strict=True):
        pairs = zip(one.split(","), other.split(","), strict=True)
        assert not [(header[i], a, b) for i, (a, b) in enumerate(pairs) if a != b and i not in timed]
    states = [{**run.model.state_dict(), **run.optimizer.state_dict()} for run in runs.values()]
    assert all(np.array_equal(array, states[1][key]) for key, array in states[0].items())
    assert not [line for line in said if "captured into" in line]
    assert all(run.activations == backend.activations(precision) for run in runs.values())
    assert {str(array.dtype) for array in states[0].values()} == {"float32", "float64", "int64"}


def test_a_step_in_parts_is_launched_anew(gpu, tmp_path):
    said = []
    trainer = _trained(tmp_path / "run", said.append, epochs=1, accumulate=2)
    assert trainer.progress.step == 12 and trainer._steps.capture is None
    assert "the step is not captured into a CUDA graph: its batch goes through the model in parts" in said
    on_cpu = _trained(tmp_path / "cpu", said.append, epochs=1, accumulate=2, device="cpu")
    assert trainer.history[0]["train_loss"] == pytest.approx(on_cpu.history[0]["train_loss"], rel=1e-3)


def test_what_cannot_be_captured_is_launched_anew(gpu, tmp_path, monkeypatch):
    said = []

    def refuse(*arguments):
        raise RuntimeError("no graphs today")

    monkeypatch.setattr(captured.CapturedStep, "_capture", refuse)
    trainer = _trained(tmp_path / "run", said.append, epochs=1)
    assert trainer.progress.step == 12
    lines = [line for line in said if "captured into" in line]
    assert lines == [
        "the step could not be captured into a CUDA graph (no graphs today): it is launched anew"
    ]


def test_what_draws_and_an_optimizer_without_a_kernel_are_obstacles():
    class Noise(nn.Module):
        """A layer that a user wrote."""

        def __init__(self):
            super().__init__()
            self.generator = np.random.default_rng(0)

    class Plain(optim.Optimizer):
        """An optimiser that a user wrote."""

        @staticmethod
        def plain(w, g, lr):
            w -= lr * g

    with_dropout, without = small_model(), _without_dropout()
    assert captured.obstacle(without, SGD(without.parameters(), 0.1)) is None
    why = captured.obstacle(with_dropout, SGD(with_dropout.parameters(), 0.1))
    assert why == "drop.rng draws in each step, and a graph would repeat the first draw"
    own = nn.Sequential(noise=Noise(), fc=nn.Linear(3, 3, rng=np.random.default_rng(0)))
    assert captured.obstacle(own, SGD(own.parameters(), 0.1)).startswith("noise.generator draws in each step")
    assert captured.obstacle(without, Plain(without.parameters(), 0.1)) == "Plain has no CUDA kernel"


def test_a_loss_that_is_not_finite_stops_a_captured_run(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(captured._Slot, "read", lambda self: captured.Figures(float("nan"), 0, 1.0))
    with pytest.raises(MiniresError, match=r"the loss is nan at step 3 \(epoch 1, batch 3\)"):
        _trained(tmp_path / "run", lambda line: None)
