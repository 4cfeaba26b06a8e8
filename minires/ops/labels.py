"""What the losses ask of labels: class numbers or probabilities, class weights, rows that are ignored.

Scores are (N, ..., K), and each of their rows (N, ...) has a label. Both losses are sums over the classes,

    loss[n] = -sum over k of u[n, k] * log p[n, k]

with u[n, k] = weight[k] * t[n, k], where t is the label as probabilities, and u = 0 in rows that are ignored;
and both bring the losses of all rows together in the same way (see :func:`reduced`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array
from minires.errors import ConfigError, DataError, ShapeError, as_whole, one_of
from minires.ops import checks
from minires.ops.forms import Values
from minires.tensor import Tensor, as_array

REDUCTIONS = ("mean", "sum", "none")


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of a loss, checked, with the options that say how they count.

    Shapes: array (N, ...) class numbers or (N, ..., K) probabilities, on any device; weight (K,), on that of
    the scores and of their dtype.
    """

    array: Array
    classes: int
    are_numbers: bool
    weight: Array | None
    ignore_index: int | None
    smoothing: float
    reduction: str

    def options(self) -> dict[str, Any]:
        """What the loss was called with; weight and ignore_index where they were given."""
        given = {"weight": self.weight, "ignore_index": self.ignore_index}
        return {"labels": self.array, "label_smoothing": self.smoothing, "reduction": self.reduction} | {
            name: value for name, value in given.items() if value is not None
        }

    def on(self, like: Array) -> Array:
        """The labels on the device of ``like``."""
        return backend.to_device(self.array, backend.device_of(like))

    def kept(self, like: Array) -> Array | None:
        """Which rows are not ignored, on the device of ``like``; None where no label is ever ignored."""
        return None if self.ignore_index is None else self.on(like) != self.ignore_index


def labels_of(
    op: str,
    scores: Tensor,
    labels: Any,
    *,
    weight: Any = None,
    ignore_index: int | None = None,
    smoothing: float = 0.0,
    reduction: str = "mean",
    numbers_only: bool = False,
) -> Labels:
    """Check the labels of a loss and its options.

    Labels on a GPU are not looked at, since that would stop it.

    Raises: ShapeError if shapes do not fit; DataError that names a label out of range and its place;
    ConfigError for an option that makes no sense.
    """
    one_of(f"{op}: reduction", reduction, REDUCTIONS)
    smoothing = checks.number(op, "label_smoothing", smoothing, nan=True)
    if not 0 <= smoothing < 1:
        raise ConfigError(f"{op}: label_smoothing must be from 0 to below 1, not {smoothing}")
    given, labels = labels, as_array(labels)
    labels = backend.own(labels, backend.device_of(labels))
    rows, classes = scores.shape[:-1], scores.shape[-1]
    are_numbers = labels.shape == rows and labels.dtype.kind in "iu"
    if not are_numbers and (numbers_only or labels.shape != scores.shape):
        or_else = "" if numbers_only else f" or probabilities {scores.shape}"
        raise ShapeError(
            f"{op}: labels must be whole class numbers {rows}{or_else}, "
            f"not {labels.dtype} of shape {labels.shape}{_mended(given, labels, rows)}"
        )
    weight, ignored = _weight(op, weight, scores), _ignore_index(op, ignore_index, are_numbers)
    found = Labels(labels, classes, are_numbers, weight, ignored, smoothing, reduction)
    if backend.device_of(labels) == "cpu":
        _look(op, found)
    return found


def _mended(given: Any, labels: Array, rows: tuple[int, ...]) -> str:
    """What makes class numbers of labels that nearly are; nothing where that is not to be seen."""
    calls = "[..., 0]" if labels.shape == (*rows, 1) else ""
    if labels.shape not in (rows, (*rows, 1)):
        return ""
    if labels.dtype.kind not in "iu":
        calls += '.astype("int64")'
    if given is not labels:
        calls = (".numpy()" if isinstance(given, Tensor) else "") + calls
    start = "labels" if hasattr(given, "dtype") else "np.array(labels)"
    return f"; give {start}{calls}"


def _ignore_index(op: str, value: Any, are_numbers: bool) -> int | None:
    if value is None:
        return None
    number = as_whole(value)
    if number is None or not -(2**31) <= number < 2**31:
        raise ConfigError(f"{op}: ignore_index must be a whole number of 32 bits, or None, not {value!r}")
    if not are_numbers:
        raise ConfigError(
            f"{op}: ignore_index={number} is for class numbers, but the labels are probabilities. "
            "Leave their rows out, or give them as class numbers"
        )
    return number


def _weight(op: str, weight: Any, scores: Tensor) -> Array | None:
    if weight is None:
        return None
    weight = as_array(weight)
    if weight.shape != scores.shape[-1:] or not (backend.is_float(weight.dtype) or weight.dtype.kind in "iu"):
        raise ShapeError(
            f"{op}: weight must be a number for each of the {scores.shape[-1]} classes, "
            f"not {weight.dtype} of shape {weight.shape}"
        )
    if backend.device_of(weight) == "cpu":
        bad = ~(np.isfinite(weight) & (weight >= 0))
        if bad.any():
            at = int(bad.argmax())
            raise ConfigError(
                f"{op}: weight[{at}] is {weight[at]}, but the weight of a class is finite and not negative"
            )
    return backend.to_device(weight, scores.device).astype(scores.dtype)


def _make_sense(labels: Labels, array: Array) -> Array:
    """Which rows (N, ...) have a label that is a class or is ignored, or probabilities that are some."""
    if labels.are_numbers:
        good = (array >= 0) & (array < labels.classes)
        return good if labels.ignore_index is None else good | (array == labels.ignore_index)
    return (array >= 0).all(axis=-1) & (abs(backend.total(array, -1, dtype=np.float64) - 1) < 1e-3)


def _look(op: str, labels: Labels) -> None:
    """Raises: DataError for the first label that makes no sense."""
    array, classes = labels.array, labels.classes
    good = _make_sense(labels, array)
    if good.all():
        return
    at = tuple(map(int, np.argwhere(~good)[0]))
    name = f"{op}: labels[{', '.join(map(str, at))}]"
    if labels.are_numbers:
        raise DataError(
            f"{name} is {int(array[at])}, but there are {classes} classes, 0 to {classes - 1}. Check the "
            "labels, build the model with more classes, or leave such labels out with ignore_index"
        )
    raise DataError(
        f"{name} must be probabilities of the {classes} classes, none negative and summing to 1, "
        f"but it is {array[at].tolist()}"
    )


def values_of_labels(scores: str) -> dict[str, Callable[[Values], Any]]:
    """What the formula of a loss needs besides its scores: the target u, and what its sum is divided by."""

    def spread(values: Values) -> tuple[Array, Array | None]:
        like, options = np.asarray(values.input(scores), np.float64), values.options
        array, weight = np.asarray(options["labels"]), options.get("weight")
        found = Labels(
            array, like.shape[-1], array.ndim < like.ndim, weight, options.get("ignore_index"),
            options["label_smoothing"], options["reduction"],
        )  # fmt: skip
        return spread_out(np, found, like)

    def count(values: Values) -> Any:
        rows = np.size(values.input(scores)) // np.shape(values.input(scores))[-1]
        return divisor(np, spread(values)[1], rows, values.options["reduction"])

    return {"target": lambda values: spread(values)[0], "count": count}


def facts_of_labels(scores: str) -> Callable[[Values], dict[str, Any]]:
    """What the text of a loss may ask besides its options: whether the labels are class numbers."""

    def facts(call: Values) -> dict[str, Any]:
        ndim = len(call.shape) if call.options["reduction"] == "none" else None
        given = call.inputs.get(scores)
        ndim = given.ndim - 1 if given is not None else ndim
        labels = np.asarray(call.options["labels"])
        return {"numbers": labels.ndim == ndim or (ndim is None and labels.dtype.kind in "iu")}

    return facts


# The losses of the rows as one number, in a text of a loss.
REDUCED = """
        {ignore_index != none?losses = 0 where the label is ignore_index||}
        {reduction == "mean"?loss = sum of losses / {numbers and weight?sum of weight[label]\
|{ignore_index != none?count|N}}{ignore_index != none? of the rows that are not ignored}\
|loss = {reduction == "sum"?sum of losses|losses}\
|loss = sum of losses / count; count = N, with weights sum of weight[label], with "sum" 1}
    """


# ------------------------------------------------------------------------------ reference implementation


def spread_out(xp: Any, labels: Labels, like: Array) -> tuple[Array, Array | None]:
    """u (N, ..., K), and what each row counts in a mean (N, ...); None stands for one everywhere.

    A class number counts the weight of its class, probabilities one, an ignored row nothing. On a GPU a label
    that makes no sense becomes NaN.
    """
    array, dtype, weight, kept = labels.on(like), like.dtype, labels.weight, labels.kept(like)
    t = (array[..., None] == xp.arange(labels.classes) if labels.are_numbers else array).astype(dtype)
    if backend.device_of(like) != "cpu":
        t = xp.where(_make_sense(labels, array)[..., None], t, xp.asarray(np.nan, dtype))
    u = (1 - labels.smoothing) * t + labels.smoothing / labels.classes if labels.smoothing else t
    counts = None
    if weight is not None:
        u = u * weight
        counts = backend.total(t * weight, -1) if labels.are_numbers else None
    if kept is not None:
        nothing = xp.zeros((), dtype)
        u = xp.where(kept[..., None], u, nothing)
        counts = kept.astype(dtype) if counts is None else xp.where(kept, counts, nothing)
    return u, counts


def row_losses(xp: Any, log_p: Array, u: Array) -> Array:
    """-sum over k of u * log p, (N, ...). Of a class that does not count log p may be minus infinity."""
    return 0 - backend.total(xp.where(u == 0, xp.zeros((), log_p.dtype), log_p) * u, -1)


def divisor(xp: Any, counts: Array | None, rows: int, reduction: str) -> Any:
    """What a mean divides by: the sum of the counts, or 1 where nothing counts, so that the mean is 0."""
    if reduction != "mean":
        return 1.0
    if counts is None:
        return float(rows)
    total = backend.total(counts, dtype=np.float64)
    return xp.where(total == 0, xp.ones((), np.float64), total)


def reduced(losses: Array, by: Any, reduction: str, *, times: float = 1.0) -> Array:
    """The losses of the rows as one number, divided by the :func:`divisor`; as they are for "none". ``times``
    is what the losses are multiplied by, at the end: they may have been given as halves.

    The sum is added up in float64: it may be too large for float32 where the mean is not.
    """
    with np.errstate(over="ignore"):  # a loss that is too large is infinite
        if reduction == "none":
            return losses * losses.dtype.type(times)
        return (backend.total(losses, dtype=np.float64) * times / by).astype(losses.dtype)


def share(dloss: Array, by: Any, reduction: str) -> Array:
    """The adjoint of :func:`reduced`: what of dloss comes to each row, (N, ..., 1), or to all of them."""
    part = (dloss / by).astype(dloss.dtype)
    return part[..., None] if reduction == "none" else part
