"""Responses of layers to many pictures: batches are put together as if they were one."""

from __future__ import annotations

import numpy as np
import pytest

from minires import Tensor, nn
from minires.data import Normalize
from minires.errors import ConfigError, ShapeError
from minires.inspect import draw_responses, responses_of
from minires.models import build
from minires.nn.responses import Response

RNG = np.random.default_rng(0)


def small():
    """Convolution, batch norm and ReLU, and a dense layer; statistics that are not trivial."""
    norm = nn.BatchNorm2d(4, relu=True)
    norm.running_mean[...], norm.running_var[...] = [0, 1, -1, 2], [1, 4, 0.25, 1]
    conv = nn.Conv2d(3, 4, 3, rng=RNG)
    return nn.Sequential(conv=conv, norm=norm, flat=nn.Flatten(), fc=nn.Linear(4 * 16, 2, rng=RNG))


def test_they_are_those_of_all_pictures_by_hand_however_they_are_split():
    model = small()
    # Batches of other means: an average of standard deviations would be too small.
    x = (RNG.standard_normal((11, 6, 6, 3)) + np.arange(11).reshape(-1, 1, 1, 1)).astype("float32")
    y = model.conv(Tensor(x)).data
    y = (y - model.norm.running_mean) / np.sqrt(model.norm.running_var + model.norm.eps)
    scores = model.eval()(Tensor(x)).data
    model.train()
    for batch_size in (1, 4, 64):
        conv, fc = responses_of(model, x, batch_size=batch_size)
        assert (conv.path, conv.op, conv.shape) == ("conv", "conv2d", (11, 4, 4, 4))
        assert (fc.path, fc.op, fc.shape) == ("fc", "linear", (11, 2))
        assert conv.mean == pytest.approx(y.mean(), rel=1e-4)
        assert conv.std == pytest.approx(y.std(), rel=1e-4)
        assert (fc.mean, fc.std) == pytest.approx((scores.mean(), scores.std()), rel=1e-4)
    assert model.training and model.norm.training
    assert model.norm.running_mean.tolist() == [0, 1, -1, 2]


def test_pictures_are_normalised_and_may_be_a_tensor():
    model, normalize = small(), Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    pictures = RNG.integers(0, 256, (5, 6, 6, 3)).astype(np.uint8)
    expected = responses_of(model, normalize(pictures))
    assert responses_of(model, pictures, normalize) == expected
    assert responses_of(model, Tensor(normalize(pictures))) == expected
    with pytest.raises(ShapeError, match="pictures of uint8 need the normalize= that the model was trained"):
        responses_of(model, pictures)
    with pytest.raises(ShapeError, match="at least one picture"):
        responses_of(model, pictures[:0], normalize)
    with pytest.raises(ConfigError, match="batch_size"):
        responses_of(model, pictures, normalize, batch_size=0)


def test_each_layer_of_a_residual_network_is_there_in_order():
    model = build("resnet20_cifar", repeats=(1, 1, 1), shortcut="B")
    found = responses_of(model, np.ones((2, 32, 32, 3), np.float32))
    names = ["conv1", "res2a_branch2a", "res2a_branch2b", "res3a_branch2a", "res3a_branch2b", "res3a_branch1"]
    assert [one.path for one in found][:6] == names and found[-1].path == "fc" and len(found) == 10


class Sometimes(nn.Module):
    """Goes through its second layer if a picture is bright."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2, rng=RNG), nn.Linear(2, 2, rng=RNG)

    def forward(self, x):
        y = self.first(x)
        return self.second(y) if x.data.mean() > 0.5 else y


def test_batches_that_go_different_ways_are_refused_in_words():
    x = np.array([[0, 0], [1, 1]], np.float32)
    with pytest.raises(ConfigError, match="batch 2 went through other layers than the first one, 2 and not"):
        responses_of(Sometimes(), x, batch_size=1)


def layers(*stds, shape=(1, 4, 4, 2)):
    return [Response(f"layer{k}", "own", mean=0.0, std=std, shape=shape) for k, std in enumerate(stds)]


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_figure(tmp_path, ending):
    models = {"deep": layers(3.0, 1.0, 2.0), "shallow": layers(1.0, 4.0)}
    for name in ("one", "two"):
        draw_responses(tmp_path / f"{name}.{ending}", models)
    one, two = ((tmp_path / f"{name}.{ending}").read_bytes() for name in ("one", "two"))
    assert one == two and len(one) > 5000
    with pytest.raises(ConfigError, match="out is .*figure.gif, but a figure is written as .png or .svg"):
        draw_responses(tmp_path / "figure.gif", models)


def test_in_the_figure_are_both_panels_with_a_line_for_each_model(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("minires.train.canvas.save_figure", lambda figure, *_, **__: shown.append(figure))
    deep = layers(3.0, 1.0, 2.0) + layers(50.0, shape=(1, 2))
    draw_responses(tmp_path / "figure.png", {"deep": deep, "dense alone": layers(1.0, 4.0, shape=(1, 2))})
    in_order, by_size = shown[0].axes
    assert [line.get_ydata().tolist() for line in in_order.lines] == [[3, 1, 2], [1, 4]]
    assert [line.get_ydata().tolist() for line in by_size.lines] == [[3, 2, 1], [4, 1]]
    assert [line.get_xdata().tolist() for line in in_order.lines] == [[1, 2, 3], [1, 2]]
    assert [text.get_text() for text in shown[0].legends[0].texts] == ["deep", "dense alone"]
