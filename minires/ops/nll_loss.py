"""Negative log-likelihood: what cross entropy is of scores, of log probabilities.

    u[n, k] = weight[k] where k is the label of n, else zero; zero in rows that are ignored
    loss[n] = -sum over k of u[n, k] * log_p[n, k]
    loss = sum over n of loss[n] / sum over n of weight[label of n], without the ignored
    dlog_p = -dloss / sum of weights * u

Shapes: log_p (N, ..., K), labels (N, ...) class numbers -> loss, a single value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minires import backend
from minires.backend import Array
from minires.errors import ShapeError
from minires.ops import checks
from minires.ops.forms import AllBut, Formula
from minires.ops.labels import (
    REDUCED,
    divisor,
    facts_of_labels,
    labels_of,
    reduced,
    row_losses,
    share,
    spread_out,
    values_of_labels,
)
from minires.ops.loss_cases import LABELS, REDUCTIONS
from minires.ops.mixed_precision import astype
from minires.ops.registry import Case, Words, operation
from minires.tensor import Tensor, record


def _cases() -> Iterator[Case]:
    for reduction in REDUCTIONS:
        for name, x, options in LABELS:
            yield Case(f"{name}, {reduction}", {"log_p": x}, {**options, "reduction": reduction})


@operation(
    math="""
        losses[n] = -{weight?weight[label of n] * }log_p[n, label of n]
        """
    + REDUCED,
    backward="""
        dlog_p[n, label of n] = -{weight?weight[label of n] * }dloss\
{reduction == "mean"? / {weight?sum of weight[label]|{ignore_index != none?count|N}}|| / count}, elsewhere 0
        {ignore_index != none?and 0 in the rows that are ignored}
    """,
    facts=facts_of_labels("log_p"),
    result="loss",
    arithmetic=Formula(
        """
        losses = -sum(target * log_p if target != 0 else 0, classes)
        loss = losses if reduction == "none" else sum(losses, rows) / count
        dlog_p = -target * dloss / count
        """,
        axes={"classes": -1, "rows": AllBut(-1)},
        values=values_of_labels("log_p"),
        also={"n": 0, "k": -1},
    ),
    english=Words(
        "Negative log-likelihood",
        "The loss is minus the logarithm of the label's probability{weight?, times the weight of its class}.",
        "Only the label of each row gets a gradient.",
    ),
    chinese=Words(
        "负对数似然",
        "损失是标签概率的负对数{weight?，再乘以类别权重}。",
        "每一行只有标签得到梯度。",
    ),
    label="negative log-likelihood",
    cases=_cases,
)
def nll_loss(
    log_p: Tensor,
    labels: Any,
    *,
    weight: Any = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The negative log-likelihood of ``labels``: minus the log probability that each was given.

    ``nll_loss(log_softmax(x), labels)`` is ``cross_entropy(x, labels)``, which says what the options are.

    Ignored rows are in neither sum. Where nothing counts the mean is 0.
    Shapes: log_p (N, ..., K), labels (N, ...) class numbers, weight (K,) -> a single value; with
    reduction="none" (N, ...). Of log_p in bfloat16 the loss is float32.
    Raises: DataError that names a label out of range and its place; ShapeError if shapes or dtypes do not
    fit; ConfigError for an option that makes no sense.

    >>> p = Tensor([[0.5, 0.25, 0.25]])
    >>> print(f"{nll_loss(p.log(), [1]).item():.4f}")  # of 0.25 it is log 4
    1.3863
    """
    log_p = checks.as_tensor(log_p)
    if log_p.ndim < 2:
        raise ShapeError(f"nll_loss: log_p must be (N, ..., K), two axes or more, not {log_p.shape}")
    checks.same_floats("nll_loss", log_p=log_p)
    log_p = astype(log_p, backend.accumulator(log_p.dtype))
    if log_p.shape[-1] == 0 or (log_p.size == 0 and reduction == "mean"):
        raise ShapeError(f"nll_loss: log_p {log_p.shape} is empty; there is nothing to compare")
    found = labels_of(
        "nll_loss", log_p, labels, weight=weight, ignore_index=ignore_index, reduction=reduction,
        numbers_only=True,
    )  # fmt: skip
    xp = backend.array_module(log_p.data)
    u, counts = spread_out(xp, found, log_p.data)
    losses = row_losses(xp, log_p.data, u)
    by = divisor(xp, counts, losses.size, reduction)

    def backward(dloss: Array) -> tuple[Array]:
        return (0 - u * share(dloss, by, reduction),)

    return record(
        "nll_loss",
        reduced(losses, by, reduction),
        inputs={"log_p": log_p},
        options=found.options(),
        saved={"target": u},
        backward=backward,
    )
