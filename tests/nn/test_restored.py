"""Who needs a model in another mode leaves each module in its own, whatever happens; ``nn.modes`` does it."""

from __future__ import annotations

import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from train.small_run import CONFIG, small_model, small_splits, stripes

import minires
from minires import nn
from minires.data import Normalize
from minires.debug.cam import activation_maps
from minires.debug.trace_page import trace
from minires.errors import MiniresError
from minires.inspect import diff, plot, summarize
from minires.nn import modes
from minires.nn.fuse import fuse
from minires.ops.cross_entropy import cross_entropy
from minires.tensor import Tensor
from minires.train import Config, Trainer, evaluate, predict, recalibrate
from minires.weights.onnx import export_onnx

PICTURES, NONE = stripes(12, 0), Normalize.none()
X = NONE(PICTURES.images)
SIZE = (12, 12, 3)


class Trips(nn.Module):
    """Passes x on until ``left`` calls are over, then raises."""

    def __init__(self):
        super().__init__()
        self.left = 10**9

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise MiniresError("tripped")
        return x


def mixed_model(training):
    """A model in one mode, of which a batch norm and the dropout are in the other; and one norm is frozen."""
    model = small_model()
    model.relu2 = Trips()
    model.train(training)
    model.bn1.train(not training)
    model.drop.train(not training)
    model.bn2.frozen = True
    return model


def modes_of(model):
    return [module.training for module in model.modules()]


def train_one_epoch(model, folder):
    config = Config.from_dict({**CONFIG.to_dict(), "epochs": 1, "recalibrate": True})
    run = Trainer(
        config, folder / "run", splits=small_splits(), model=model, progress=False, say=lambda line: None
    )
    return run.run()


CALLERS = {
    "predict": lambda model, folder: predict(model, PICTURES.images, NONE, batch_size=5),
    "evaluate": lambda model, folder: evaluate(model, PICTURES, NONE, batch_size=5),
    "recalibrate": lambda model, folder: recalibrate(model, PICTURES.images, NONE, batch_size=5),
    "Trainer": train_one_epoch,
    "activation_maps": lambda model, folder: activation_maps(model, X[0]),
    "summarize": lambda model, folder: summarize(model, SIZE),
    "summarize memory": lambda model, folder: summarize(model, SIZE, memory=True),
    "plot": lambda model, folder: plot(model, SIZE, folder / "plot.svg"),
    "diff": lambda model, folder: diff(model, small_model(), SIZE),
    "step": lambda model, folder: minires.step(model, X[:4], [0, 1, 2, 0]),
    "trace": lambda model, folder: trace(model, X[:1], 0, out=folder / "trace.html"),
    "fuse": lambda model, folder: fuse(model, SIZE),
    "export_onnx": lambda model, folder: export_onnx(model, folder / "model.onnx", SIZE),
    "recompute": lambda model, folder: cross_entropy(
        minires.recompute(model, Tensor(X, requires_grad=True)), PICTURES.labels
    ).backward(),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", CALLERS)
def test_each_module_has_its_own_mode_again(name, training, tmp_path):
    if name == "export_onnx":
        pytest.importorskip("onnx")
    model = mixed_model(training)
    before = modes_of(model)
    assert len(set(before)) == 2
    CALLERS[name](model, tmp_path)
    assert modes_of(model) == before


@pytest.mark.parametrize("name", CALLERS)
def test_each_module_has_its_own_mode_again_after_an_error(name, tmp_path):
    if name == "export_onnx":
        pytest.importorskip("onnx")
    model = mixed_model(True)
    model.relu2.left = 1 if name in ("Trainer", "predict", "evaluate", "recalibrate") else 0
    before = modes_of(model)
    with pytest.raises(MiniresError, match="tripped"):
        CALLERS[name](model, tmp_path)
    assert modes_of(model) == before


def test_the_modes_of_a_block_are_those_that_were_asked_for():
    model = mixed_model(True)
    before = modes_of(model)
    for training in (True, False):
        with modes(model, training=training):
            assert set(modes_of(model)) == {training}
        assert modes_of(model) == before
    with modes(model):
        assert modes_of(model) == before
        model.eval()
    assert modes_of(model) == before
    with pytest.raises(ZeroDivisionError), modes(model, training=False):
        raise ZeroDivisionError
    assert modes_of(model) == before


def test_recalibration_leaves_frozen_layers_alone_and_mends_what_is_not_finite():
    model = small_model()
    model.bn1.frozen = True
    frozen = [array.copy() for array in (model.bn1.running_mean, model.bn1.running_var)]
    model.bn2.running_mean[...], model.bn2.running_var[...] = np.nan, np.inf
    recalibrate(model, PICTURES.images, NONE)
    assert all(map(np.array_equal, frozen, (model.bn1.running_mean, model.bn1.running_var)))
    model.bn2.training = False
    inner = model.eval().conv2(model.relu1(model.bn1(model.conv1(Tensor(X))))).numpy()
    np.testing.assert_allclose(model.bn2.running_mean, inner.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)


def test_a_model_that_is_one_batch_norm_is_recalibrated():
    norm = nn.BatchNorm2d(3)
    recalibrate(norm, PICTURES.images, NONE)
    np.testing.assert_allclose(norm.running_mean, X.mean((0, 1, 2)), rtol=1e-5)


def test_recalibration_joins_a_last_picture_that_is_alone_to_the_batch_before_it():
    """A batch norm behind the pool has one value per channel and picture: one picture has no variance."""
    rng = np.random.default_rng(0)
    make = lambda: nn.Sequential(  # noqa: E731
        nn.Conv2d(3, 4, 3, rng=np.random.default_rng(1)), nn.GlobalAvgPool2d(), nn.BatchNorm2d(4)
    )
    images = rng.integers(0, 256, (9, 6, 6, 3), np.uint8)
    for batch_size in (4, 8, 1):  # 4 + 5, 9, and 2 + 2 + 2 + 3
        model = make()
        recalibrate(model, images, NONE, batch_size=batch_size)
        inner = model[1](model[0](Tensor(NONE(images)))).numpy()
        np.testing.assert_allclose(model[2].running_mean, inner.mean(0), rtol=1e-4)


# ------------------------------------------------------------------------------------- at once, in any order


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0), (0, 2, 1), (2, 0, 1)])
def test_blocks_of_one_model_end_in_any_order(order):
    model = mixed_model(True)
    before = modes_of(model)
    blocks = [modes(model, training=False) for _ in range(3)]
    for block in blocks:
        block.__enter__()
    for place in order:
        assert not any(modes_of(model))
        blocks[place].__exit__(None, None, None)
    assert modes_of(model) == before


def test_several_threads_predict_with_a_model_that_is_in_training():
    model = small_model().train()
    before, state = modes_of(model), model.state_dict()
    images = stripes(12, 0).images
    right = predict(model, images, NONE)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: predict(model, images, NONE), range(60)))
    for one in found:
        np.testing.assert_array_equal(one, right)
    assert modes_of(model) == before
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, state[name])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_has_nothing_to_do_with_the_blocks_of_other_threads():
    model = mixed_model(True)
    before, inside, end = modes_of(model), threading.Event(), threading.Event()

    def work():
        with modes(model, training=False):
            inside.set()
            end.wait()

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        child = os.fork()
    if not child:
        with modes(model, training=False):
            ended = not any(modes_of(model))
        os._exit(0 if ended and modes_of(model) == before else 1)
    end.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert modes_of(model) == before
