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

from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array
from minires.errors import ConfigError, DataError, ShapeError
from minires.ops import checks
from minires.ops.softmax import _forward_log
from minires.tensor import Tensor, record


def _forward(xp: Any, logits: Array, target: Array) -> tuple[Array, Array]:
    """The loss, and log p for the way back."""
    log_p = _forward_log(xp, logits)
    return -xp.sum(target * log_p) / len(logits), log_p


def _backward(xp: Any, dloss: Array, log_p: Array, target: Array) -> Array:
    return (xp.exp(log_p) - target) * (dloss / len(target))


def _target(labels: Array, shape: tuple[int, ...], dtype: Any, device: str, smoothing: float) -> Array:
    """Labels as an array (N, K) of probabilities. Raises: DataError, ShapeError if they make no sense.

    They are checked where they are, so labels on the CPU cost a GPU no wait.
    """
    n, k = shape
    xp = np if device == "cpu" else backend.cupy()
    if labels.shape == (n,) and labels.dtype.kind in "iu":
        outside = (labels < 0) | (labels >= k)
        if outside.any():
            at = int(outside.argmax())
            raise DataError(
                f"cross_entropy: labels[{at}] is {int(labels[at])}, but there are {k} classes, "
                f"0 to {k - 1}. Check the labels, or build the model with more classes"
            )
        target = xp.zeros(shape, dtype)
        target[xp.arange(n), backend.to_device(labels, device)] = 1
    elif labels.shape == (n, k):
        bad = (labels < 0).any(axis=1) | ~(abs(labels.sum(axis=1) - 1) < 1e-3)
        if bad.any():
            at = int(bad.argmax())
            raise DataError(
                f"cross_entropy: labels[{at}] must be probabilities of the {k} classes, none negative "
                f"and summing to 1, but it is {labels[at].tolist()}"
            )
        target = backend.to_device(labels, device).astype(dtype)
    else:
        raise ShapeError(
            f"cross_entropy: labels must be whole class numbers ({n},) or probabilities ({n}, {k}) "
            f"to fit logits {shape}, not {labels.dtype} of shape {labels.shape}"
        )
    return target if smoothing == 0 else (1 - smoothing) * target + smoothing / k


def cross_entropy(logits: Tensor, labels: Any, *, label_smoothing: float = 0.0) -> Tensor:
    """The mean over the batch of the cross entropy between ``labels`` and ``softmax(logits)``.

    ``labels`` are class numbers (N,), or one-hot or other probabilities (N, K); they get no gradient.
    Units: nats per picture. Math, Shapes, Backward, Source: see the head of this file.
    Raises: DataError that names a label out of range and its place; ShapeError if shapes or dtypes do not
    fit; ConfigError if ``label_smoothing`` is not in [0, 1).
    """
    logits = checks.as_tensor(logits)
    checks.rank("cross_entropy", "logits", logits, "(N, K)")
    checks.same_floats("cross_entropy", logits=logits)
    if logits.size == 0:
        raise ShapeError(f"cross_entropy: logits {logits.shape} are empty; there is no mean over nothing")
    smoothing = float(label_smoothing)
    if not 0 <= smoothing < 1:
        raise ConfigError(f"cross_entropy: label_smoothing must be from 0 to below 1, not {smoothing}")
    labels = labels.data if isinstance(labels, Tensor) else labels
    labels = labels if hasattr(labels, "dtype") else np.asarray(labels)
    xp = backend.array_module(logits.data)
    target = _target(labels, logits.shape, logits.dtype, logits.device, smoothing)
    loss, log_p = _forward(xp, logits.data, target)
    return record("cross_entropy", loss, (logits,), lambda dy: (_backward(xp, dy, log_p, target),))
