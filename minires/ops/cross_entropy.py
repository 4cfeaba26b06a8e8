"""Cross entropy of a softmax: how surprised the network is by the true labels.

    p = softmax(logits)
    t = labels as probabilities: one-hot, or with label smoothing s: (1 - s) * one-hot + s / K
    loss = -(1 / N) * sum over n, k of t[n, k] * log p[n, k]
    dlogits = dloss * (p - t) / N

log p is computed without p (log_softmax), so logits of any size are safe.

Shapes: logits (N, K), labels (N,) class numbers or (N, K) probabilities -> loss, a single value.
Source: label smoothing: Szegedy et al. 2016, Rethinking the Inception architecture for computer vision.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array, cuda
from minires.errors import ConfigError, DataError, ShapeError
from minires.ops import checks
from minires.ops.mixed_precision import astype
from minires.ops.registry import Case, Shape, Words, operation
from minires.ops.softmax import ROW_CODE, _forward_log, row_grid
from minires.tensor import Tensor, record

# ------------------------------------------------------------------------------ reference implementation


def _forward(xp: Any, logits: Array, target: Array) -> tuple[Array, Array]:
    """The loss, and log p for the way back."""
    log_p = _forward_log(xp, logits)
    return -xp.sum(target * log_p) / len(logits), log_p


def _backward(xp: Any, dloss: Array, log_p: Array, target: Array) -> Array:
    return (xp.exp(log_p) - target) * (dloss / len(target))


def _check_shape(labels: Array, shape: tuple[int, ...]) -> None:
    """Labels are class numbers (N,), or probabilities (N, K). Raises: ShapeError if they are neither."""
    n, k = shape
    if labels.shape != (n, k) and not (labels.shape == (n,) and labels.dtype.kind in "iu"):
        raise ShapeError(
            f"cross_entropy: labels must be whole class numbers ({n},) or probabilities ({n}, {k}) "
            f"to fit logits {shape}, not {labels.dtype} of shape {labels.shape}"
        )


def _check(labels: Array, k: int) -> None:
    """Look at the labels where they are: on the CPU this costs a GPU no wait. Raises: DataError."""
    if labels.ndim == 1:
        outside = (labels < 0) | (labels >= k)
        if outside.any():
            at = int(outside.argmax())
            raise DataError(
                f"cross_entropy: labels[{at}] is {int(labels[at])}, but there are {k} classes, "
                f"0 to {k - 1}. Check the labels, or build the model with more classes"
            )
    else:
        bad = (labels < 0).any(axis=1) | ~(abs(labels.sum(axis=1) - 1) < 1e-3)
        if bad.any():
            at = int(bad.argmax())
            raise DataError(
                f"cross_entropy: labels[{at}] must be probabilities of the {k} classes, none negative "
                f"and summing to 1, but it is {labels[at].tolist()}"
            )


def _target(labels: Array, k: int, dtype: Any, device: str, smoothing: float) -> Array:
    """Labels as an array (N, K) of probabilities."""
    if labels.ndim == 1:
        xp = np if device == "cpu" else backend.cupy()
        target = xp.zeros((len(labels), k), dtype)
        target[xp.arange(len(labels)), backend.to_device(labels, device)] = 1
    else:
        target = backend.to_device(labels, device).astype(dtype)
    return target if smoothing == 0 else (1 - smoothing) * target + smoothing / k


# ------------------------------------------------------------------------------------------- fast, on GPU
# Class numbers stay as they are, an int for each row; the kernels know which target is meant by one. A block
# for each row, as for the softmax.

_CUDA = cuda.Source(
    ROW_CODE
    + r"""
#define NOT_A_NUMBER T(__int_as_float(0x7fffffff))

// Whether a row's label is one of the classes, or its probabilities are none negative and sum to 1.
__device__ bool makes_sense(int label, const T* given, int classes) {
    if (!given) return 0 <= label && label < classes;
    T mine = 0;
    EACH_IN_BLOCK(k, classes) mine += given[k] < 0 ? NOT_A_NUMBER : given[k];
    return fabs(over_block<SUM>(mine) - 1) < T(1e-3);
}

// The target of class k, in a row with a label or with probabilities: times 1 - s, plus s / K.
__device__ T target(int k, int label, const T* given, T times, T plus) {
    return times * (given ? given[k] : T(k == label)) + plus;
}

// One of labels and given is null.
extern "C" __global__ void cross_entropy(const T* logits, const int* labels, const T* given, T* log_p,
                                         T* losses, T times, T plus, int classes) {
    int row = blockIdx.x * classes, label = labels ? labels[blockIdx.x] : 0;
    logits += row; log_p += row; given = given ? given + row : nullptr;
    T shift = largest(logits, classes);
    T log_sum = log_of_sum(logits, shift, classes);
    if (!makes_sense(label, given, classes)) log_sum = NOT_A_NUMBER;
    T mine = 0;
    EACH_IN_BLOCK(k, classes) {
        log_p[k] = logits[k] - shift - log_sum;
        mine -= target(k, label, given, times, plus) * log_p[k];
    }
    T loss = over_block<SUM>(mine);
    if (threadIdx.x == 0) losses[blockIdx.x] = loss;
}

// One block, over rows instead of classes.
extern "C" __global__ void cross_entropy_mean(const T* losses, T* loss, int rows) {
    T mine = 0;
    EACH_IN_BLOCK(row, rows) mine += losses[row];
    T sum = over_block<SUM>(mine);
    if (threadIdx.x == 0) *loss = sum / rows;
}

extern "C" __global__ void cross_entropy_gradient(const T* dloss, const T* log_p, const int* labels,
                                                  const T* given, T* dlogits, T times, T plus, int classes) {
    int row = blockIdx.x * classes, label = labels ? labels[blockIdx.x] : 0;
    log_p += row; dlogits += row; given = given ? given + row : nullptr;
    T share = *dloss / gridDim.x;
    EACH_IN_BLOCK(k, classes) dlogits[k] = (exp(log_p[k]) - target(k, label, given, times, plus)) * share;
}
"""
)


def _labels_cuda(xp: Any, labels: Array, dtype: Any, device: str) -> tuple[Array | None, Array | None]:
    """Labels as the kernels want them: class numbers and None, or None and probabilities."""
    kind = np.int32 if labels.ndim == 1 else dtype
    placed = xp.ascontiguousarray(backend.to_device(labels.astype(kind, copy=False), device))
    return (placed, None) if labels.ndim == 1 else (None, placed)


def _forward_cuda(
    xp: Any, logits: Array, labels: Array | None, given: Array | None, smoothing: float
) -> tuple[Array, Array]:
    n, k = logits.shape
    log_p, losses, loss = (xp.empty(shape, logits.dtype) for shape in ((n, k), n, ()))
    inputs = xp.ascontiguousarray(logits), labels, given
    _CUDA("cross_entropy", row_grid(n, k), *inputs, log_p, losses, 1 - smoothing, smoothing / k, k)
    _CUDA("cross_entropy_mean", row_grid(1, n), losses, loss, n)
    return loss, log_p


def _backward_cuda(
    xp: Any, dloss: Array, log_p: Array, labels: Array | None, given: Array | None, smoothing: float
) -> Array:
    n, k = log_p.shape
    dlogits = xp.empty((n, k), log_p.dtype)
    inputs = xp.ascontiguousarray(dloss), log_p, labels, given
    _CUDA("cross_entropy_gradient", row_grid(n, k), *inputs, dlogits, 1 - smoothing, smoothing / k, k)
    return dlogits


# ----------------------------------------------------------------------------------------------- public


def _cases() -> Iterator[Case]:
    table: list[tuple[str, Shape, Array]] = [
        ("labels", (4, 3), np.array([0, 2, 1, 2])),
        ("one picture", (1, 5), np.array([3])),
        ("probabilities", (2, 3), np.array([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])),
        ("one-hot integers", (2, 3), np.eye(3, dtype=np.int64)[[2, 0]]),
    ]
    for smoothing in (0.0, 0.1):
        smooth = f", smoothing {smoothing}" if smoothing else ""
        for name, x, labels in table:
            yield Case(name + smooth, {"logits": x}, {"labels": labels, "label_smoothing": smoothing})


@operation(
    math="loss = -mean over the pictures of sum t * log p, with p = softmax(logits), t the labels as "
    "probabilities",
    backward="dlogits = dloss * (p - t) / N",
    result="loss",
    english=Words(
        "Softmax and loss",
        "Scores become probabilities (softmax). The loss is minus the logarithm of the label's probability: "
        "small where the network is sure and right.",
        "The gradient of each score is its probability minus what it should be: 1 for the label, 0 for "
        "others.",
    ),
    chinese=Words(
        "Softmax 与损失",
        "得分变成概率（softmax）；损失是标签概率的负对数：网络既确定又正确时很小。",
        "每个得分的梯度是它的概率减去应有的值：标签为 1，其余为 0。",
    ),
    cases=_cases,
)
def cross_entropy(logits: Tensor, labels: Any, *, label_smoothing: float = 0.0) -> Tensor:
    """The mean over the batch of the cross entropy between ``labels`` and ``softmax(logits)``.

    ``labels`` are class numbers (N,), or one-hot or other probabilities (N, K); they get no gradient. Of
    logits in bfloat16 the loss is float32.
    Units: nats per picture. Shapes, Source: see the head of this file.
    Raises: DataError that names a label out of range and its place; ShapeError if shapes or dtypes do not
    fit; ConfigError if ``label_smoothing`` is not in [0, 1).

    Labels that lie on a GPU are not looked at from here, since that would stop the GPU: the loss is NaN, and
    so is the gradient of the row, where a class number (read as int32) is out of range or the probabilities
    are none. They are kept as they are until the backward, so they must not be overwritten before it.
    """
    logits = checks.as_tensor(logits)
    checks.rank("cross_entropy", "logits", logits, "(N, K)")
    checks.same_floats("cross_entropy", logits=logits)
    logits = astype(logits, backend.accumulator(logits.dtype))
    if logits.size == 0:
        raise ShapeError(f"cross_entropy: logits {logits.shape} are empty; there is no mean over nothing")
    smoothing = float(label_smoothing)
    if not 0 <= smoothing < 1:
        raise ConfigError(f"cross_entropy: label_smoothing must be from 0 to below 1, not {smoothing}")
    labels = labels.data if isinstance(labels, Tensor) else labels
    labels = labels if hasattr(labels, "dtype") else np.asarray(labels)
    xp = backend.array_module(logits.data)
    _check_shape(labels, logits.shape)
    is_fast, k = cuda.usable(logits.data), logits.shape[1]
    if not is_fast or backend.device_of(labels) == "cpu":
        _check(labels, k)
    if is_fast:
        placed = _labels_cuda(xp, labels, logits.dtype, logits.device)
        loss, log_p = _forward_cuda(xp, logits.data, *placed, smoothing)

        def backward(dy: Array) -> tuple[Array]:
            return (_backward_cuda(xp, dy, log_p, *placed, smoothing),)

        saved = {"log_p": log_p, "labels": placed[0], "probabilities": placed[1]}
    else:
        target = _target(labels, k, logits.dtype, logits.device, smoothing)
        loss, log_p = _forward(xp, logits.data, target)
        saved = {"log_p": log_p, "target": target}

        def backward(dy: Array) -> tuple[Array]:
            return (_backward(xp, dy, log_p, target),)

    return record(
        "cross_entropy",
        loss,
        inputs={"logits": logits},
        options={"labels": labels, "label_smoothing": smoothing},
        saved=saved,
        backward=backward,
    )
