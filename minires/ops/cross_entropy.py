"""Cross entropy of a softmax: how surprised the network is by the true labels.

    p = softmax(logits)
    t = labels as probabilities: one-hot, or with label smoothing s: (1 - s) * one-hot + s / K
    u = weight * t, zero in rows that are ignored
    loss[n] = -sum over k of u[n, k] * log p[n, k]
    loss = sum over n of loss[n] / sum over n of count[n]
    dlogits = dloss / sum of counts * (p * sum over k of u - u)

A row with a class number counts the weight of that class, one with probabilities counts 1, and one that is
ignored nothing. Without weights that is the mean over the rows, and dlogits = dloss / N * (p - t).

log p is computed without p (log_softmax), so logits of any size are safe; and the losses from its half, which
is finite where log p is too large for the dtype: they are infinite only where they are too large themselves.
All sums are added up in float64 and rounded once.

Shapes: logits (N, K), labels (N,) class numbers or (N, K) probabilities -> loss, a single value. There may be
more axes between N and K, for example those of a picture whose pixels have a class each.
Source: label smoothing: Szegedy et al. 2016, Rethinking the Inception architecture for computer vision; the
weighted mean is PyTorch's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array, cuda
from minires.errors import ShapeError
from minires.ops import checks
from minires.ops.forms import AllBut, Formula
from minires.ops.labels import (
    REDUCED,
    Labels,
    divisor,
    facts_of_labels,
    labels_of,
    reduced,
    row_losses,
    share,
    spread_out,
    values_of_labels,
)
from minires.ops.loss_cases import LABELS, REDUCTIONS, WEIGHT
from minires.ops.mixed_precision import astype
from minires.ops.registry import Case, Shape, Words, operation
from minires.ops.softmax import ROW_CODE, doubled, half_of_log, row_grid
from minires.tensor import Tensor, record

# ------------------------------------------------------------------------------ reference implementation


def _forward(xp: Any, logits: Array, labels: Labels) -> tuple[Array, Array, Array, Any]:
    """The loss; and for the way back log p, u, and what the sum was divided by."""
    half, kept = half_of_log(xp, logits), labels.kept(logits)
    if kept is not None:  # nobody asks for those of ignored rows; so what is not finite there does no harm
        half = xp.where(kept[..., None], half, xp.zeros((), half.dtype))
    u, counts = spread_out(xp, labels, logits)
    losses = row_losses(xp, half, u)
    by = divisor(xp, counts, losses.size, labels.reduction)
    return reduced(losses, by, labels.reduction, times=2.0), doubled(half), u, by


def _backward(xp: Any, dloss: Array, log_p: Array, u: Array, by: Any, reduction: str) -> Array:
    return (xp.exp(log_p) * backend.total(u, -1, keepdims=True) - u) * share(dloss, by, reduction)


# ------------------------------------------------------------------------------------------- fast, on GPU
# Class numbers stay as they are, an int for each row; the kernels know which target is meant by one. A block
# for each row, as for the softmax.

_CUDA = cuda.Source(
    ROW_CODE
    + r"""
#define NOT_A_NUMBER T(__int_as_float(0x7fffffff))

// What there is to know of the labels. One of labels and given is null; weights may be. A row whose label is
// ``ignored`` does not count, if ``ignores``.
#define LABELS const int* labels /* blocks */, const T* given /* blocks * classes */, \
    const T* weights /* classes */, T times, T plus, int ignores, int ignored

// Whether a row's label is one of the classes, or its probabilities are none negative and sum to 1.
__device__ bool makes_sense(int label, const T* given, int classes) {
    if (!given) return 0 <= label && label < classes;
    double mine = 0;
    EACH_IN_BLOCK(k, classes) mine += given[k] < 0 ? NOT_A_NUMBER : given[k];
    return fabs(over_block<SUM>(mine) - 1) < 1e-3;
}

// What log p of class k is multiplied by: the label, or the probability, times 1 - s, plus s / K; weighted.
__device__ T factor(int k, int label, const T* given, const T* weights, T times, T plus) {
    T target = times * (given ? given[k] : T(k == label)) + plus;
    return weights ? weights[k] * target : target;
}

// counts may be null: then each row counts 1. What is written to losses is half of them, times ``scale``.
extern "C" __global__ void cross_entropy(
    const T* logits /* blocks * classes */, LABELS, T* log_p /* blocks * classes */, T* losses /* blocks */,
    T* counts /* blocks */, T scale, int classes
) {
    int row = blockIdx.x * classes, label = labels ? labels[blockIdx.x] : 0;
    logits += row; log_p += row; given = given ? given + row : nullptr;
    T shift = largest(logits, classes);
    T half_log_sum = half_of_log_sum(logits, shift, classes);
    bool kept = !ignores || label != ignored, good = makes_sense(label, given, classes);
    if (!good) half_log_sum = NOT_A_NUMBER;
    double mine = 0;
    EACH_IN_BLOCK(k, classes) {
        T half = kept ? half_of_difference(logits[k], shift) - half_log_sum : T(0);
        log_p[k] = 2 * half;
        T u = factor(k, label, given, weights, times, plus);
        if (u != 0) mine -= u * half;  // minus infinity does no harm where it does not count
    }
    T loss = over_block<SUM>(mine) * scale;
    if (threadIdx.x == 0) {
        losses[blockIdx.x] = !kept ? T(0) : good ? loss : NOT_A_NUMBER;
        if (counts) counts[blockIdx.x] = !kept ? T(0) : weights && good ? weights[label] : T(1);
    }
}

// One block, over rows instead of classes: the sum of the losses, given as their halves, over that of the
// counts, if ``is_mean``; over 1 if not, or where nothing counts.
extern "C" __global__ void cross_entropy_sum(
    const T* losses /* rows */, const T* counts /* rows */, T* loss /* 1 */, T* by /* 1 */,
    int rows, int is_mean
) {
    double mine = 0;
    if (is_mean) {
        EACH_IN_BLOCK(row, rows) mine += counts ? counts[row] : T(1);
    }
    double count = over_block<SUM>(mine);
    if (count == 0) count = 1;
    mine = 0;
    EACH_IN_BLOCK(row, rows) mine += losses[row] / count;  // their sum may be too large, the mean is not
    double sum = over_block<SUM>(mine);
    if (threadIdx.x == 0) {
        *loss = 2 * sum;
        *by = count;
    }
}

// Of a mean or sum dloss is one number, divided by ``by``; where by is null, there is one for each row.
extern "C" __global__ void cross_entropy_gradient(
    const T* dloss /* 1 */, const T* log_p /* blocks * classes */, LABELS, const T* by /* 1 */,
    T* dlogits /* blocks * classes */, int classes
) {
    int row = blockIdx.x * classes, label = labels ? labels[blockIdx.x] : 0;
    log_p += row; dlogits += row; given = given ? given + row : nullptr;
    T share = by ? *dloss / *by : dloss[blockIdx.x];
    if (ignores && label == ignored) share = 0;
    double mine = 0;
    EACH_IN_BLOCK(k, classes) mine += factor(k, label, given, weights, times, plus);
    T sum = over_block<SUM>(mine);
    EACH_IN_BLOCK(k, classes) {
        dlogits[k] = (exp(log_p[k]) * sum - factor(k, label, given, weights, times, plus)) * share;
    }
}
"""
)


def _labels_cuda(xp: Any, labels: Labels, like: Array) -> tuple[Any, ...]:
    """What the kernels call LABELS: class numbers and null, or null and probabilities, and the options."""
    kind = np.int32 if labels.are_numbers else like.dtype
    array = backend.to_device(labels.array.astype(kind, copy=False), backend.device_of(like))
    placed = xp.ascontiguousarray(array)
    weight = None if labels.weight is None else xp.ascontiguousarray(labels.weight)
    smoothing, ignored = labels.smoothing, labels.ignore_index
    return (
        *((placed, None) if labels.are_numbers else (None, placed)),
        weight, 1 - smoothing, smoothing / labels.classes, ignored is not None, ignored or 0,
    )  # fmt: skip


def _forward_cuda(xp: Any, logits: Array, labels: Labels, placed: tuple[Any, ...]) -> tuple[Array, ...]:
    """The loss, log p, and what the sum was divided by; the latter None for "none"."""
    rows, k = math.prod(logits.shape[:-1]), logits.shape[-1]
    log_p, losses = xp.empty(logits.shape, logits.dtype), xp.empty(logits.shape[:-1], logits.dtype)
    are_ones = labels.ignore_index is None and (labels.weight is None or not labels.are_numbers)
    counts = None if are_ones else xp.empty(losses.shape, losses.dtype)
    scale = 2.0 if labels.reduction == "none" else 1.0
    outputs = log_p, losses, counts, scale
    _CUDA("cross_entropy", row_grid(rows, k), xp.ascontiguousarray(logits), *placed, *outputs, k)
    if labels.reduction == "none":
        return losses, log_p, None
    loss, by = xp.empty((), losses.dtype), xp.empty((), losses.dtype)
    _CUDA("cross_entropy_sum", row_grid(1, rows), losses, counts, loss, by, rows, labels.reduction == "mean")
    return loss, log_p, by


def _backward_cuda(xp: Any, dloss: Array, log_p: Array, placed: tuple[Any, ...], by: Array | None) -> Array:
    rows, k = math.prod(log_p.shape[:-1]), log_p.shape[-1]
    dlogits = xp.empty(log_p.shape, log_p.dtype)
    dloss = xp.ascontiguousarray(dloss)
    _CUDA("cross_entropy_gradient", row_grid(rows, k), dloss, log_p, *placed, by, dlogits, k)
    return dlogits


# ----------------------------------------------------------------------------------------------- public


def _cases() -> Iterator[Case]:
    soft = np.array([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    plain: list[tuple[str, Shape, Array]] = [
        ("labels", (4, 3), np.array([0, 2, 1, 2])),
        ("one picture", (1, 5), np.array([3])),
        ("probabilities", (2, 3), soft),
        ("one-hot integers", (2, 3), np.eye(3, dtype=np.int64)[[2, 0]]),
    ]
    for smoothing in (0.0, 0.1):
        smooth = f", smoothing {smoothing}" if smoothing else ""
        for name, x, labels in plain:
            yield Case(name + smooth, {"logits": x}, {"labels": labels, "label_smoothing": smoothing})
    pictures = np.random.default_rng(3).dirichlet([1, 1, 1], (2, 2))
    table = [
        *LABELS,
        ("probabilities, weights", (2, 3), {"labels": soft, "weight": WEIGHT}),
        ("rows and columns of probabilities", (2, 2, 3), {"labels": pictures, "weight": WEIGHT}),
    ]
    for reduction in REDUCTIONS:
        for name, x, options in table:
            more = {"reduction": reduction, "label_smoothing": 0.1 if "weights" in name else 0.0}
            yield Case(f"{name}, {reduction}", {"logits": x}, {**options, **more})


@operation(
    math="""
        p = softmax(logits), t = {numbers?1 for the label, else 0|labels|the labels as probabilities}
        {label_smoothing?t = (1 - label_smoothing) * t + label_smoothing / K||}
        losses = -sum over k of {weight?weight[k] * }t[k] * log p[k]
        """
    + REDUCED,
    backward="""
        {weight?dlogits = (p * sum over k of u - u) * dloss\
|dlogits = (p - t) * dloss|dlogits = (p * sum over k of u - u) * dloss}\
{reduction == "mean"? / {numbers and weight?sum of weight[label]|{ignore_index != none?count|N}}|| / count}
        {weight?with u = weight * t||with u = weight * t; without weights dlogits = (p - t) * dloss / N}
        {ignore_index != none?and 0 in the rows that are ignored}
    """,
    facts=facts_of_labels("logits"),
    result="loss",
    arithmetic=Formula(
        """
        shifted = logits - max(logits, classes)
        log_p = shifted - log(sum(exp(shifted), classes))
        p = exp(log_p)
        losses = -sum(target * log_p if target != 0 else 0, classes)
        loss = losses if reduction == "none" else sum(losses, rows) / count
        dlogits = (p * sum(target, classes) - target) * dloss / count
        """,
        axes={"classes": -1, "rows": AllBut(-1)},
        values=values_of_labels("logits"),
        also={"n": 0, "k": -1},
    ),
    english=Words(
        "Softmax and loss",
        "Scores become probabilities (softmax). The loss is minus the logarithm of the label's probability: "
        "small where the network is sure and right.{label_smoothing? A share of the label is spread evenly "
        "over all classes.}{weight? Each class counts by its weight.}",
        "The gradient of each score is its probability minus what it should be{numbers and not "
        "label_smoothing?: 1 for the label, 0 for others|, the share of its class in the label}"
        "{weight?, each class by its weight}.",
    ),
    chinese=Words(
        "Softmax 与损失",
        "得分变成概率（softmax）；损失是标签概率的负对数：网络既确定又正确时很小。"
        "{label_smoothing?标签的一部分平均分给所有类别。}{weight?各类别按权重计入。}",
        "每个得分的梯度是它的概率减去应有的值"
        "{numbers and not label_smoothing?：标签为 1，其余为 0|（标签中该类别所占的份额）}"
        "{weight?，按类别权重计}。",
    ),
    cases=_cases,
)
def cross_entropy(
    logits: Tensor,
    labels: Any,
    *,
    weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """The cross entropy between ``labels`` and ``softmax(logits)``: their mean over the batch, or else.

    labels: class numbers, or one-hot or other probabilities; they get no gradient.
    weight: a number for each class, by which its part of the loss is multiplied: more for rare classes.
    ignore_index: rows with this class number do not count; it need not be one of the classes.
    label_smoothing: so much of each label is spread evenly over all classes.
    reduction: "mean", over the weights of the labels if there are weights; "sum"; or "none", the loss of
        each row.

    The weighted mean is sum of loss[n] / sum of weight[label of n]; of labels that are probabilities it is
    over the rows. Where all rows are ignored, or all their weights are 0, it is 0. A batch without rows has a
    sum, 0, and no mean. Logits may have any size, and some may be minus infinity: the loss is infinite where
    that is a label's, or where it is too large for the dtype. A row of nothing else, or with a NaN or plus
    infinity, makes it NaN, as in PyTorch.
    Rounding: losses are added up in float64 and rounded once.
    Units: nats per row. Of logits in bfloat16 the loss is float32.
    Shapes: logits (N, ..., K), labels (N, ...) class numbers or (N, ..., K), weight (K,) -> a single value;
    with reduction="none" (N, ...).
    Raises: DataError that names a label out of range and its place; ShapeError if shapes or dtypes do not
    fit, or there is nothing to average; ConfigError for an option that makes no sense, or ignore_index with
    probabilities.
    Source: Szegedy et al. 2016 (label smoothing). Differs: where all rows are ignored PyTorch's mean is NaN;
    there -100 is ignored by default, here nothing is. Keras's categorical_crossentropy of probabilities clips
    them to [1e-7, 1 - 1e-7], so that its loss is at most 16.1 and its gradient beyond is 0; here the loss is
    of scores, and nothing is clipped.

    Labels that lie on a GPU are not looked at from here, since that would stop the GPU: the loss is NaN, and
    so is the gradient of the row, where a class number (read as int32) is out of range or the probabilities
    are none. They are kept as they are until the backward, so they must not be overwritten before it.

    >>> logits = Tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> print(f"{cross_entropy(logits, [0, 2]).item():.4f}")
    0.8955
    >>> print(cross_entropy(logits, [0, -1], ignore_index=-1, reduction="none").numpy().round(4))
    [0.2395 0.    ]
    """
    logits = checks.as_tensor(logits)
    if logits.ndim < 2:
        raise ShapeError(f"cross_entropy: logits must be (N, ..., K), two axes or more, not {logits.shape}")
    checks.same_floats("cross_entropy", logits=logits)
    logits = astype(logits, backend.accumulator(logits.dtype))
    is_mean = isinstance(reduction, str) and reduction == "mean"
    if logits.shape[-1] == 0 or (logits.size == 0 and is_mean):
        raise ShapeError(f"cross_entropy: logits {logits.shape} are empty; there is nothing to compare")
    found = labels_of(
        "cross_entropy", logits, labels, weight=weight, ignore_index=ignore_index, smoothing=label_smoothing,
        reduction=reduction,
    )  # fmt: skip
    xp = backend.array_module(logits.data)
    if logits.size and cuda.usable(logits.data):  # no row is no work for a kernel
        placed = _labels_cuda(xp, found, logits.data)
        loss, log_p, divided = _forward_cuda(xp, logits.data, found, placed)
        saved = {"log_p": log_p, "labels": placed[0], "probabilities": placed[1], "weight": placed[2]}

        def backward(dy: Array) -> tuple[Array]:
            return (_backward_cuda(xp, dy, log_p, placed, divided),)

    else:
        loss, log_p, u, by = _forward(xp, logits.data, found)
        saved = {"log_p": log_p, "target": u}

        def backward(dy: Array) -> tuple[Array]:
            return (_backward(xp, dy, log_p, u, by, reduction),)

    return record(
        "cross_entropy",
        loss,
        inputs={"logits": logits},
        options=found.options(),
        saved=saved,
        backward=backward,
    )
