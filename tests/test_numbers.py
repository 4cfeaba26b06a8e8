"""NumPy's own numbers are as good as Python's in every option, and a truth value is no number."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minires import Tensor, nn, ops
from minires.data.augment import ColorJitter, Shift
from minires.errors import MiniresError, as_number, as_whole, plain
from minires.nn.squeeze_excitation import SqueezeExcitation
from minires.train.config import Config
from minires.train.schedules import Schedule

X = Tensor(np.random.default_rng(0).standard_normal((2, 6, 6, 4)))
W = Tensor(np.random.default_rng(1).standard_normal((3, 3, 2, 4)))


def _last_rate(schedule: dict[str, Any]) -> float:
    return Schedule(schedule, lr=1.0, total_steps=4).lr(3)


# A whole number that stands for each option.
WHOLE: dict[str, tuple[int, Callable[[Any], Any]]] = {
    "conv2d stride": (2, lambda n: ops.conv2d(X, W, stride=n, groups=2)),
    "conv2d strides": (2, lambda n: ops.conv2d(X, W, stride=(n, 1), groups=2)),
    "conv2d padding": (2, lambda n: ops.conv2d(X, W, padding=n, groups=2)),
    "conv2d four paddings": (2, lambda n: ops.conv2d(X, W, padding=((n, 0), (1, n)), groups=2)),
    "conv2d groups": (2, lambda n: ops.conv2d(X, W, groups=n)),
    "conv2d dilation": (2, lambda n: ops.conv2d(X, W, dilation=n, groups=2)),
    "conv_transpose2d groups": (2, lambda n: ops.conv_transpose2d(X, W, groups=n)),
    "conv_transpose2d stride": (2, lambda n: ops.conv_transpose2d(X, W, groups=2, stride=n)),
    "max_pool2d kernel": (2, lambda n: ops.max_pool2d(X, n)),
    "avg_pool2d stride": (2, lambda n: ops.avg_pool2d(X, 3, stride=n)),
    "pad": (2, lambda n: ops.pad(X, n)),
    "pad_channels": (6, lambda n: ops.pad_channels(X, n)),
    "pad_channels stride": (2, lambda n: ops.pad_channels(X, 6, stride=n)),
    "local_response_norm size": (3, lambda n: ops.local_response_norm(X, n)),
    "sum axis": (2, lambda n: X.sum(n)),
    "mean axes": (2, lambda n: X.mean((0, n))),
    "softmax axis": (2, lambda n: X.softmax(axis=n)),
    "concat axis": (2, lambda n: ops.concat([X, X], axis=n)),
    "split parts": (2, lambda n: X.split(n)[1]),
    "transpose axes": (2, lambda n: X.transpose(n, 0, 1, 3)),
    "repeat count": (2, lambda n: X.repeat(n, 0)),
    "argmax axis": (2, lambda n: X.argmax(n)),
    "Conv2d": (3, lambda n: nn.Conv2d(n, n, n, stride=n, padding=n, rng=np.random.default_rng(0))),
    "Linear": (3, lambda n: nn.Linear(n, n, rng=np.random.default_rng(0))),
    "BatchNorm2d": (3, nn.BatchNorm2d),
    "MaxPool2d": (2, nn.MaxPool2d),
    "SqueezeExcitation": (2, lambda n: SqueezeExcitation(4, reduction=n, rng=np.random.default_rng(0))),
    "Shift": (2, lambda n: Shift(pixels=n)),
    "Config": (3, lambda n: Config(epochs=n, batch_size=n)),
}  # fmt: skip
NUMBERS: dict[str, tuple[float, Callable[[Any], Any]]] = {
    "operand": (0.5, lambda n: X * n + n),
    "exponent": (0.5, lambda n: abs(X) ** n),
    "base": (0.5, lambda n: n**X),
    "clip": (0.5, lambda n: ops.clip(X, -n, n)),
    "var correction": (0.5, lambda n: X.var(correction=n)),
    "dropout rate": (0.5, lambda n: ops.dropout(X, n, rng=np.random.default_rng(0))),
    "pad value": (0.5, lambda n: ops.pad(X, 1, value=n)),
    "local_response_norm k": (0.5, lambda n: ops.local_response_norm(X, k=n, alpha=n, beta=n)),
    "label smoothing": (0.5, lambda n: ops.cross_entropy(X, np.zeros((2, 6, 6), int), label_smoothing=n)),
    "Dropout": (0.5, lambda n: nn.Dropout(n, seed=1)),
    "BatchNorm2d": (0.5, lambda n: nn.BatchNorm2d(2, momentum=n, eps=n)),
    "LocalResponseNorm": (0.5, lambda n: nn.LocalResponseNorm(k=n)),
    "ColorJitter": (0.5, lambda n: ColorJitter(brightness=n)),
    "Config": (0.5, lambda n: Config(ema=n, schedule={"name": "cosine", "final": n})),
    "Schedule": (0.5, lambda n: _last_rate({"name": "step", "at": [n], "factor": n})),
}  # fmt: skip
TRUE_IS_A_NUMBER = {"operand", "base", "exponent"}  # 1, in arithmetic


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and np.array_equal(one.data, other.data)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return one == other if dataclasses.is_dataclass(one) else repr(one) == repr(other)


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers(name: str) -> None:
    number, use = WHOLE[name]
    expected = use(number)
    for kind in (np.int64, np.int8, np.uint16, np.array):
        assert _same(use(kind(number)), expected), kind
    for wrong in (True, np.True_, number + 0.5, float(number), np.float32(number), "two"):
        with pytest.raises(MiniresError):
            use(wrong)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name: str) -> None:
    number, use = NUMBERS[name]
    expected = use(number)
    for kind in (np.float64, np.float32, np.float16):
        assert _same(use(kind(number)), expected), kind
    if name not in TRUE_IS_A_NUMBER:
        with pytest.raises(MiniresError):
            use(True)


def test_what_is_a_number() -> None:
    assert [as_whole(value) for value in (3, np.int8(3), np.array(3))] == [3, 3, 3]
    assert [as_whole(value) for value in (True, np.True_, 3.0, np.float32(3), "3", None, [3])] == [None] * 7
    assert [as_number(value) for value in (3, 0.5, np.float32(0.5), np.int8(3))] == [3.0, 0.5, 0.5, 3.0]
    assert [as_number(value) for value in (True, np.True_, "3", None, [3], 1j)] == [None] * 6
    kept = plain({"a": (np.int64(1), [np.float64(0.5), True]), "b": None, "c": "same"})
    assert repr(kept) == "{'a': (1, [0.5, True]), 'b': None, 'c': 'same'}"
