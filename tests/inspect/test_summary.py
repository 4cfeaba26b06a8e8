"""The layer table: figures against the published ones and against sums made another way."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minires import ShapeError, Tensor, models, nn, no_grad, ops, recompute
from minires.debug.step import step
from minires.inspect import plot, summarize
from minires.inspect.summary import _bytes
from minires.tensor import record

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
    assert summary.macs == 308_178_944
    assert summary.params_total == sum(array.size for array in signs.state_dict().values())
    assert sum(layer.params for layer in summary.layers) == 23_600_006
    assert sum(layer.params_trainable for layer in summary.layers) == 23_546_886
    by_name = {layer.name: layer for layer in summary.layers}
    assert (
        len(by_name) == len(summary.layers) == 53 + 53 + 4
    )  # convolutions, batch norms, pools, flatten, fc6
    assert by_name["conv1"].output == (32, 32, 64) and by_name["conv1"].macs == 32 * 32 * 49 * 3 * 64
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
    assert any(line.split() == ["block1", "32x32x216"] for line in summary.table(full=True).splitlines())


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
    assert [layer.macs for layer in layers] == [
        places * 15 * 3 * 4, places * 9 * 2 * 4, 0, places * 16, places * 16, 0, 0, 0, 48 * 7,
    ]  # fmt: skip
    assert layers[1].kind == "conv 3x3, 2 groups" and layers[5].kind == "max pool 2x2 /2"


def test_a_dilation_is_told() -> None:
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, dilation=2, padding=2),
        nn.MaxPool2d(2, stride=1, dilation=(1, 2)),
        nn.AvgPool2d(2, dilation=3, padding=2),
        nn.Pad2d(1),
    )
    kinds = [layer.kind for layer in summarize(layers, (16, 16, 3)).layers]
    assert kinds == [
        "conv 3x3 /2, dilated 2", "max pool 2x2, dilated 1x2", "average pool 2x2 /2, dilated 3", "padding",
    ]  # fmt: skip


def test_the_model_is_left_as_it_was() -> None:
    model = Small()
    model.body.norm.training = False  # a part in another mode than the whole
    before = model.state_dict()
    x = Tensor(RNG.normal(size=(2, 6, 8, 3)).astype(np.float32))
    generator = model.drop.rng.bit_generator.state
    summarize(model, (6, 8, 3), memory=True)
    assert model.drop.rng.bit_generator.state == generator
    assert all(parameter.grad is None for parameter in model.parameters())
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


def test_the_full_table_is_aligned_and_holds_every_figure() -> None:
    summary = summarize(Small(), (6, 8, 3), name="small")
    lines = summary.table(full=True).splitlines()
    assert lines[0] == "small, input 6x8x3"
    head = lines[2]
    assert head.split() == ["layer", "what", "output", "size", "parameters", "MACs"]
    for layer in summary.layers:
        name = layer.name.removeprefix("body.")
        line = next(one for one in lines if one.split()[:1] == [name] and layer.kind in one)
        assert line.index("x".join(map(str, layer.output))) == head.index("output")
        if layer.macs:
            assert line.endswith(f"{layer.macs:,}") and len(line) == len(head)
    figures = {
        name.strip(): figure for name, figure in ((one[:13], one[13:28].strip()) for one in lines[-6:])
    }
    assert figures == {
        "parameters": f"{summary.params_total:,}", "in torch": f"{summary.parameters:,}",
        "trainable": f"{summary.params_trainable:,}", "not trained": "8",
        "MACs": f"{summary.macs:,}", "output bytes": f"{summary.output_bytes:,}",
    }  # fmt: skip


def test_the_dict_can_be_written_as_json() -> None:
    summary = summarize(Small(), (6, 8, 3), name="small")
    content = json.loads(json.dumps(summary.to_dict()))
    assert content["params_total"] == summary.params_total and content["macs"] == summary.macs
    assert content["layers"][0]["output"] == [6, 8, 4]
    assert content["layers"][0]["output_bytes"] == 6 * 8 * 4 * 4 and content["layers"][0]["saved"] is None
    content = json.loads(json.dumps(summarize(Small(), (6, 8, 3), memory=True).to_dict()))
    assert content["saved"] == sum(layer["saved"] for layer in content["layers"]) > 0


def test_parameters_in_the_conventions_of_torch_and_keras() -> None:
    """The published counts: torchvision's resnet50, and "Total params" of Keras's ResNet50."""
    model = models.build("resnet50", initializer="zeros")
    assert summarize(model, (32, 32, 3)).parameters == 25_557_032
    for parameter in model.parameters():
        parameter.requires_grad = False
    frozen = summarize(model, (32, 32, 3))
    assert (frozen.parameters, frozen.params_trainable) == (25_557_032, 0)
    keras = summarize(models.build("resnet50_keras", initializer="zeros"), (32, 32, 3))
    assert keras.params_total == 25_636_712


# ------------------------------------------------------------------------------------------ equal blocks


def lines_of(summary: Any) -> dict[str, list[str]]:
    """The lines of the short table, by their first word."""
    return {line.split()[0]: line.split() for line in str(summary).splitlines() if line.strip()}


def test_equal_blocks_are_one_line_with_their_sums() -> None:
    summary = summarize(models.build("resnet50", initializer="zeros"), (224, 224, 3), name="resnet50")
    lines = lines_of(summary)
    assert lines["res2b-res2c"][1:-1] == ["x2", "1x1,", "3x3,", "1x1", "56x56x256", "18M", "142,336"]
    assert lines["res2a"][1:6] == ["1x1,", "3x3,", "1x1,", "1x1", "56x56x256"]
    blocks = [name for name in lines if name.startswith("res")]
    assert blocks == [
        "resnet50,", "res2a", "res2b-res2c", "res3a", "res3b-res3d", "res4a", "res4b-res4f", "res5a",
        "res5b-res5c",
    ]  # fmt: skip
    # Every parameter and multiply-add is in one line of a stage, and in one of a block.
    table = str(summary).split("\n\nparameters")[0].splitlines()
    head, rows = table[2], [line for line in table[4:] if line]
    left, right = head.index("size") + len("size"), head.index("parameters") + len("parameters")
    for of_block in (False, True):
        ours = [line for line in rows if line.startswith(" ") == of_block]
        assert sum(number(line[left:right]) for line in ours) == summary.params_total
        assert sum(number(line[right:]) for line in ours) == summary.macs


def number(cell: str) -> int:
    return int(cell.replace(",", "") if cell.strip() else 0)


def chain(*blocks: nn.Module) -> nn.Module:
    return nn.Sequential(**{f"part{index}": block for index, block in enumerate(blocks)})


def block(channels: int = 4, kernel: int = 3, groups: int = 1) -> nn.Module:
    conv = nn.Conv2d(4, channels, kernel, padding=kernel // 2, groups=groups, rng=RNG)
    return nn.Sequential(conv=conv, norm=nn.BatchNorm2d(channels))


def test_blocks_that_differ_in_anything_are_lines_of_their_own() -> None:
    def first_words(*blocks: nn.Module) -> list[str]:
        summary = summarize(chain(*blocks), (6, 8, 4))
        return [line.split()[0] for line in str(summary).splitlines() if line.startswith(" part")]

    assert first_words(block(), block(), block()) == ["part0-part2"]
    assert first_words(block(), block(), block(kernel=1)) == ["part0-part1", "part2"]
    assert first_words(block(), block(groups=2)) == ["part0", "part1"]  # as many convolutions, fewer weights
    assert first_words(block(), block(channels=8)) == ["part0", "part1"]
    frozen = block()
    next(frozen.parameters()).requires_grad = False
    assert first_words(block(), frozen, block()) == ["part0", "part1", "part2"]


def test_a_repeated_pattern_of_convolutions_is_said_once() -> None:
    summary = summarize(models.build("densenet121", initializer="zeros"), (64, 64, 3))
    lines = lines_of(summary)
    assert lines["block3"][1:5] == ["24", "x", "(1x1,", "3x3)"]


@pytest.mark.parametrize("name", ["resnext101_64x4d", "bn_inception"])
def test_a_table_fits_in_100_columns(name: str) -> None:
    summary = summarize(models.build(name, initializer="zeros"), (224, 224, 3), name=name, memory=True)
    for full in (False, True):
        assert max(map(len, summary.table(full=full).splitlines())) <= 100


def test_bytes_have_few_digits() -> None:
    given = [0, None, 7, 999, 1000, 1024 * 9.9, 1024 * 9.97, 1024 * 999, 1024 * 999.6, 3 << 30]
    assert [_bytes(number) for number in given] == [
        "", "", "7", "999", "1.0K", "9.9K", "10K", "999K", "1.0M", "3.0G",
    ]  # fmt: skip


# --------------------------------------------------------------------------------------- what the tape keeps


class Keeping(nn.Module):
    """An operation that saves what ``keep`` makes of its input."""

    def __init__(self, keep: Callable[[Any], dict[str, Any]]) -> None:
        super().__init__()
        self.keep = keep
        self.gain = nn.Parameter(np.ones(4, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        kept = self.keep(x.data)
        return record(
            "keeping",
            x.data + 0,
            inputs={"x": x, "gain": self.gain},
            saved=kept,
            backward=lambda dy: (dy, kept),
        )


def test_what_the_tape_keeps_for_each_layer() -> None:
    shared = Keeping(lambda x: {"x": x})
    model = chain(
        shared,  # its input: the picture
        Keeping(lambda x: {"part": x[:, 1:], "copy": x.copy(), "nothing": None}),  # a copy, and a view
        Keeping(lambda x: {"once": x, "again": x.reshape(-1)}),  # its input
        shared,  # its input, in a second call
        nn.ReLU(),  # its result
        nn.Flatten(),
        nn.Linear(192, 192, rng=RNG),  # a view of what is kept already; the weights belong to the model
        nn.Dropout(0.5),  # a mask
        nn.Linear(192, 7, rng=RNG),  # its input
    )
    held = [layer.saved for layer in summarize(model, (6, 8, 4), memory=True).layers]
    assert held == [768 * arrays for arrays in (1, 2, 1, 1, 1, 0, 0, 1, 1)]  # 6 * 8 * 4 = 192 numbers each


def test_what_does_not_grow_with_the_pictures_is_not_counted() -> None:
    fixed = np.zeros(100, np.float32)
    model = chain(block(), Keeping(lambda x: {"fixed": fixed.copy()}))
    assert summarize(model, (6, 8, 4), memory=True).layers[-1].saved == 0


@pytest.mark.parametrize("name", ["resnet20_cifar", "se_resnet56_cifar", "densenet_bc100_k12_cifar"])
def test_what_the_tape_keeps_is_the_memory_that_a_forward_pass_leaves(name: str) -> None:
    """Against tracemalloc, which sees every array that NumPy makes."""
    model = models.build(name)

    def left(count: int) -> int:
        x = Tensor(np.random.default_rng(0).standard_normal((count, 32, 32, 3)).astype(np.float32))
        model(x)  # what is made once is there before
        gc.collect()
        tracemalloc.start()
        y = model(x)
        gc.collect()
        bytes_left = tracemalloc.get_traced_memory()[0] - y.data.nbytes
        tracemalloc.stop()
        return bytes_left

    held = summarize(model, (32, 32, 3), memory=True).saved
    picture = 32 * 32 * 3 * 4  # it was there before
    assert held is not None and held - picture == pytest.approx((left(10) - left(2)) / 8, rel=2e-3)


def test_what_is_kept_outside_of_layers_has_its_place() -> None:
    summary = summarize(models.build("se_resnet56_cifar"), (32, 32, 3), memory=True)
    # Behind the gate, addition and ReLU are an operation of the block, which keeps its result.
    assert summary.saved_between["res2b1"] >= 4 * 32 * 32 * 16
    assert summary.saved == sum(layer.saved or 0 for layer in summary.layers) + sum(
        summary.saved_between.values()
    )
    assert str(summary).count("(between layers)") == 0
    assert summary.table(full=True).count("(between layers)") == len(summary.saved_between) == 27


def test_a_recomputed_block_keeps_its_input_only() -> None:
    class Recomputed(nn.Module):
        def __init__(self, inside: nn.Module) -> None:
            super().__init__()
            self.inside = inside

        def forward(self, x: Tensor) -> Tensor:
            return recompute(self.inside, x)

    def inside() -> nn.Module:
        return chain(block(), block(), block())

    picture = 4 * 6 * 8 * 4
    plain = summarize(chain(block(), inside()), (6, 8, 4), memory=True)
    saving = summarize(chain(block(), Recomputed(inside())), (6, 8, 4), memory=True)
    assert plain.saved == (1 + 4 * 2) * picture
    assert saving.saved == 3 * picture  # the picture; and in the first block, input and result of the norm


def test_a_buffer_that_layers_share_is_counted_once() -> None:
    options: dict[str, Any] = {"blocks": (3, 3, 3), "growth": 4, "stem": "cifar"}
    shared, copied = (
        summarize(models.build("densenet121", shared=shared, **options), (16, 16, 3), memory=True).saved or 0
        for shared in (True, False)
    )
    assert 0 < shared < copied


def test_frozen_layers_keep_less() -> None:
    model = models.build("resnet20_cifar")
    whole = summarize(model, (32, 32, 3), memory=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("fc")
    head = summarize(model, (32, 32, 3), memory=True)
    assert whole.saved is not None and whole.saved > 1_000_000
    assert head.saved == 4 * 64  # what the dense layer reads
    for parameter in model.parameters():
        parameter.requires_grad = False
    assert summarize(model, (32, 32, 3), memory=True).saved == 0


def test_it_is_measured_where_one_picture_could_not_train() -> None:
    # The last stage has one place: batch norm needs two values.
    summary = summarize(models.build("resnet18"), (32, 32, 3), memory=True)
    assert summary.outputs["res5b"] == (1, 1, 512) and summary.saved and summary.saved > 0
    with no_grad():
        assert summarize(models.build("resnet18"), (32, 32, 3), memory=True).saved == summary.saved


def test_a_model_summarizes_itself():
    model = models.build("resnet20_cifar")
    assert model.summary((32, 32, 3)).layers == summarize(model, (32, 32, 3)).layers


class Scaled(nn.Module):
    """A parameter of its own, and a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.scale = nn.Parameter(np.ones(3, np.float32))
        self.idle = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.scale


def test_what_belongs_to_no_row_has_a_line_so_that_all_adds_up() -> None:
    summary = summarize(Scaled(), (3,))
    assert summary.in_no_row == {"scale": 3, "idle.weight": 6, "idle.bias": 2}
    rows = sum(layer.params for layer in summary.layers)
    assert rows + sum(summary.in_no_row.values()) == summary.params_total == 12 + 11
    assert "  in no row               11  scale, idle.weight, idle.bias: outside" in summary.table()
    assert "in no row" not in summarize(models.build("resnet20_cifar"), (32, 32, 3)).table()


class Returns(nn.Module):
    """Forward gives what it is told to, or the part inside does."""

    def __init__(self, make: Callable[[Tensor], Any], inside: nn.Module | None = None) -> None:
        super().__init__()
        self.fc, self.make = nn.Linear(3, 3), make
        if inside is not None:
            self.part = inside

    def forward(self, x: Tensor) -> Any:
        return self.make(self.part(self.fc(x)) if hasattr(self, "part") else self.fc(x))


@pytest.mark.parametrize(
    ("make", "words"),
    [(lambda x: None, "Returns returned None"), (lambda x: (x, x), "Returns returned a tuple of 2")],
)
def test_a_forward_that_returns_no_tensor_is_named(make: Callable[[Tensor], Any], words: str, tmp_path: Path
) -> None:
    model, x = Returns(make), np.ones((1, 3), np.float32)
    for look in (
        lambda: summarize(model, (3,)),
        lambda: plot(model, (3,), tmp_path / "x.svg"),
        lambda: step(model, x),
    ):
        with pytest.raises(ShapeError, match=words):
            look()


def test_a_part_that_returns_none_is_named_with_its_path() -> None:
    model = Returns(lambda x: x, inside=Returns(lambda x: None))
    with pytest.raises(ShapeError, match=r"part \(Returns\) returned None; does its forward end in return"):
        summarize(model, (3,))


def test_what_is_saved_between_layers_has_a_line_so_that_all_adds_up():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)

        def forward(self, x):
            y = ops.relu(self.conv(x))
            return self.fc((y * y).mean((1, 2)) @ Tensor(np.eye(4, dtype=np.float32)))

    summary = summarize(Net(), (8, 8, 3), memory=True)
    rows = sum(layer.saved for layer in summary.layers)
    lines = [line.split() for line in summary.table().splitlines() if "in no row" in line]
    outside = {int(line[3].replace(",", "")) for line in lines}
    assert outside == {summary.saved - rows, 16}  # bytes, and the MACs of the product
    assert summary.saved > rows
