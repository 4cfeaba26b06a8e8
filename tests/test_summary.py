"""The layer table: figures against the published ones and against sums made another way."""

from __future__ import annotations

import json

import numpy as np
import pytest

from minires import ShapeError, Tensor, models, nn, no_grad
from minires.inspect import summarize

RNG = np.random.default_rng(0)


class Small(nn.Module):
    """Two convolutions, the second used twice, groups, pools, and one branch that is fused."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, (3, 5), padding="same", rng=RNG)
        self.body = nn.Sequential(
            conv=nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False, rng=RNG), norm=nn.BatchNorm2d(4)
        )
        self.again = nn.Conv2d(4, 4, 1, rng=RNG)
        self.pool = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4 * 3 * 4, 7, rng=RNG)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.again(self.body(self.first(x))))
        return self.fc(self.drop(self.flatten(self.pool(x))))


@pytest.fixture(scope="module")
def signs() -> nn.Module:
    return models.build("resnet50_signs", classes=6, seed=0)


def test_the_figures_of_the_signs_resnet50(signs: nn.Module) -> None:
    summary = summarize(signs, (64, 64, 3), name="resnet50_signs")
    assert summary.params_total == 23_600_006
    assert summary.params_trainable == 23_546_886
    assert summary.madds == 308_178_944
    assert summary.params_total == sum(array.size for array in signs.state_dict().values())
    assert sum(layer.params for layer in summary.layers) == 23_600_006
    assert sum(layer.params_trainable for layer in summary.layers) == 23_546_886
    by_name = {layer.name: layer for layer in summary.layers}
    assert (
        len(by_name) == len(summary.layers) == 53 + 53 + 4
    )  # convolutions, batch norms, pools, flatten, fc6
    assert by_name["conv1"].output == (32, 32, 64) and by_name["conv1"].madds == 32 * 32 * 49 * 3 * 64
    assert by_name["res3a_branch1"].kind == "conv 1x1 /2"
    assert by_name["bn2a_branch2c"].kind == "batch norm + shortcut, ReLU"
    assert by_name["bn2a_branch1"].kind == "batch norm"
    assert by_name["fc6"].output == (6,) and by_name["fc6"].params == 6 * 2048 + 6


def test_stages_are_those_of_the_papers_table(signs: nn.Module) -> None:
    stages = dict(summarize(signs, (64, 64, 3)).stages())
    assert list(stages) == [(32, 32), (15, 15), (8, 8), (4, 4), (2, 2), (1, 1), ()]
    blocks = {size: list(dict.fromkeys(layer.block for layer in group)) for size, group in stages.items()}
    assert blocks[15, 15] == ["pool1", "res2a", "res2b", "res2c"]
    assert blocks[4, 4] == [f"res4{letter}" for letter in "abcdef"]


def test_the_output_of_a_block_is_what_it_hands_on_and_not_that_of_its_last_layer() -> None:
    summary = summarize(models.build("densenet_bc100_k12_cifar", initializer="zeros"), (32, 32, 3))
    assert [summary.outputs[f"block{i}"] for i in (1, 2, 3)] == [(32, 32, 216), (16, 16, 300), (8, 8, 342)]
    assert list(dict(summary.stages())) == [(32, 32), (16, 16), (8, 8), ()]
    assert any(line.split() == ["block1", "32x32x216"] for line in str(summary).splitlines())


def test_every_output_is_what_the_layer_gave() -> None:
    model = Small()
    layers = summarize(model, (6, 8, 3)).layers
    assert [layer.name for layer in layers] == [
        "first", "body.conv", "body.norm", "again", "again", "pool", "flatten", "drop", "fc",
    ]  # fmt: skip
    assert [layer.output for layer in layers] == [(6, 8, 4)] * 5 + [(3, 4, 4), (48,), (48,), (7,)]
    assert [layer.params for layer in layers] == [184, 72, 16, 20, 0, 0, 0, 0, 48 * 7 + 7]
    assert [layer.params_trainable for layer in layers][2] == 8  # not the running statistics
    places = 6 * 8
    assert [layer.madds for layer in layers] == [
        places * 15 * 3 * 4, places * 9 * 2 * 4, 0, places * 16, places * 16, 0, 0, 0, 48 * 7,
    ]  # fmt: skip
    assert layers[1].kind == "conv 3x3, 2 groups" and layers[5].kind == "max pool 2x2 /2"


def test_the_model_is_left_as_it_was() -> None:
    model = Small()
    model.body.norm.training = False  # a part in another mode than the whole
    before = model.state_dict()
    x = Tensor(RNG.normal(size=(2, 6, 8, 3)).astype(np.float32))
    summarize(model, (6, 8, 3))
    assert model.training and model.fc.training and not model.body.norm.training
    assert all(np.array_equal(before[name], array) for name, array in model.state_dict().items())
    assert all("forward" not in vars(module) for _, module in model.named_modules())
    with no_grad():
        model(x)


def test_a_frozen_parameter_is_not_trainable() -> None:
    model = Small()
    model.first.weight.requires_grad = False
    summary, whole = summarize(model, (6, 8, 3)), summarize(Small(), (6, 8, 3))
    assert whole.params_trainable - summary.params_trainable == 180
    assert whole.params_total == summary.params_total


def test_a_picture_that_does_not_fit_names_the_layer_and_leaves_the_model_whole(signs: nn.Module) -> None:
    with pytest.raises(ShapeError, match="conv1"):
        summarize(signs, (64, 64, 4))
    assert signs.training
    assert all("forward" not in vars(module) for _, module in signs.named_modules())


def test_the_table_is_aligned_and_holds_every_figure() -> None:
    summary = summarize(Small(), (6, 8, 3), name="small")
    lines = str(summary).splitlines()
    assert lines[0] == "small, input 6x8x3"
    head = lines[2]
    for layer in summary.layers:
        line = next(one for one in lines if one.split()[:1] == [layer.name] and layer.kind in one)
        assert line.index("x".join(map(str, layer.output))) == head.index("output")
        if layer.madds:
            assert line.endswith(f"{layer.madds:,}") and len(line) == len(head)
    assert f"{summary.params_total:,}" in lines[-4] and f"{summary.madds:,}" in lines[-1]


def test_the_dict_can_be_written_as_json() -> None:
    summary = summarize(Small(), (6, 8, 3), name="small")
    content = json.loads(json.dumps(summary.to_dict()))
    assert content["params_total"] == summary.params_total and content["madds"] == summary.madds
    assert content["layers"][0]["output"] == [6, 8, 4]
