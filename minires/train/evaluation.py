"""Using a model: probabilities of pictures, loss and accuracy on a set, running statistics measured anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from minires import backend
from minires.data import Dataset, Normalize, Stream
from minires.data.streaming import Pixels, batches
from minires.distributed import Communicator, Solo, bounds
from minires.errors import ShapeError, whole
from minires.nn.layers import BatchNorm2d
from minires.nn.module import Module
from minires.nn.restored import modes
from minires.plan import Plan, planned
from minires.tensor import Tensor, no_grad

_SOLO = Solo()
Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Mean cross-entropy, share of pictures that are right, and the probabilities (N, classes); of a set that
    several processes share, all of them on rank 0, and on the others those of its own pictures."""

    loss: float
    accuracy: float
    probabilities: NDArray[np.float64] = field(repr=False)


def predict(
    model: Module | Plan, images: Pixels | Stream, normalize: Normalize, *, batch_size: int = 64
) -> NDArray[np.float64]:
    """Give the probability of each class for each picture. Of many pictures the model is planned first
    (``minires.compile``), as far as it can be; a ready ``Plan`` may be given, and says itself how many at a
    time.

    Shapes: images (N, H, W, 3) uint8 of the size the model was trained on -> (N, classes).
    Raises: ShapeError if the pictures are not uint8 of that shape.
    """
    logs = _log_probabilities(model, images, normalize, batch_size)
    return np.exp(logs, out=logs)


def evaluate(
    model: Module, dataset: Dataset, normalize: Normalize, *, batch_size: int = 64, comm: Communicator = _SOLO
) -> Evaluation:
    """Test a model on a data set, batch norm and dropout in inference mode.

    A picture whose scores are NaN counts as wrong, and makes the loss NaN. The ranks of ``comm``, which have
    the same model and the same set, test a share each.

    Raises: ShapeError if the pictures do not fit the model.
    """
    with comm.patiently(), comm.together("evaluation"):
        logs = np.zeros((0, len(dataset.classes)))
        if (own := share_of(dataset, comm)) is not None:
            logs = _log_probabilities(model, own.images, normalize, batch_size)
    logs, loss, accuracy = judged(logs, dataset, comm)
    return Evaluation(loss, accuracy, np.exp(logs, out=logs))


def judged(
    own: Scores, dataset: Dataset, comm: Communicator, *, log: Callable[[Scores], Scores] = lambda logs: logs
) -> tuple[Scores, float, float]:
    """The scores of all pictures, of which this rank has its ``own``, as :class:`Evaluation` has them; mean
    cross-entropy and share of pictures that are right, on all ranks. ``log`` makes logarithms of scores."""
    scores, told = comm.rows(own, "evaluation"), [0.0, 0.0]
    if comm.is_first:
        right = (scores.argmax(axis=1) == dataset.labels) & ~np.isnan(scores).any(axis=1)
        of_truth = log(scores[np.arange(len(dataset)), dataset.labels])
        told = [float(-of_truth.mean()), float(right.mean())]
    loss, accuracy = comm.exchange(told, "evaluation")[0]
    return scores, loss, accuracy


def share_of(dataset: Dataset, comm: Communicator) -> Dataset | None:
    """The pictures of a set that this rank tests; None where there are fewer than ranks, and it has none."""
    start, stop = bounds(len(dataset), comm.rank, comm.size)
    if comm.size == 1:
        return dataset
    return dataset.take(np.arange(start, stop)) if start < stop else None


def recalibrate(
    model: Module, images: Pixels | Stream, normalize: Normalize, *, batch_size: int = 64,
    comm: Communicator = _SOLO,
) -> None:  # fmt: skip
    """Replace batch norm's running statistics by averages over ``images`` with the weights as they are now.

    The running statistics of training lag behind the weights; after a short run, or for averaged weights,
    they are far off. Each batch counts by its share of the pictures, and a last batch of one picture is
    joined to the one before it; dropout is off; frozen layers keep what they have, and every layer its mode.
    The ranks of ``comm``, which have the same model and the same pictures, go through a share of the batches
    each.

    Raises: ShapeError if the pictures do not fit the model.
    Source: "precise BN", Wu & Johnson arXiv:2105.07576, section 3.
    """
    _check(images)
    norms = [part for part in model.modules() if isinstance(part, BatchNorm2d) and not part.frozen]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    # Data sets come sorted by class; a batch of one class would have the wrong variance.
    order = np.random.default_rng(0).permutation(len(images))
    images = images.take(order) if isinstance(images, Stream) else images[order]
    with modes(model, training=False), no_grad():
        for norm in norms:
            norm.training = True
            for statistic in (norm.running_mean, norm.running_var):
                statistic[~backend.array_module(statistic).isfinite(statistic)] = 0  # 0 times NaN stays NaN
        try:
            seen = 0
            with comm.patiently(), comm.together("recalibration"):
                for x in _batches(model, images, normalize, batch_size, least=2, comm=comm):
                    seen += len(x)
                    share = len(x) / seen
                    for norm in norms:
                        norm.momentum = share if norm.convention == "torch" else 1.0 - share
                    model(x)
            if comm.size > 1:
                _mean_of_ranks(norms, seen / len(images), comm)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


def _mean_of_ranks(norms: list[BatchNorm2d], share: float, comm: Communicator) -> None:
    """Give batch norms the mean over the ranks of their running statistics, this one counting so much."""
    statistics = [one for norm in norms for one in (norm.running_mean, norm.running_var)]
    flat = np.concatenate([np.asarray(backend.to_device(one, "cpu"), np.float64) for one in statistics])
    flat = comm.allreduce(share * flat, "recalibration")
    ends = np.cumsum([one.size for one in statistics])
    for one, mean in zip(statistics, np.split(flat, ends[:-1]), strict=True):
        one[...] = backend.to_device(mean.astype(one.dtype), backend.device_of(one))


@contextmanager
def recalibrated(
    model: Module, images: Pixels | Stream, normalize: Normalize, comm: Communicator = _SOLO
) -> Iterator[None]:
    """Inside this block the model has the running statistics that ``recalibrate`` gives it, of at most
    ``ENOUGH`` of the pictures; behind it those that it had.

    While few steps are done, or a small set is trained on, what the model says in inference without this is
    far from what it has learnt.
    """
    norms = [part for part in model.modules() if isinstance(part, BatchNorm2d) and not part.frozen]
    before = [(statistic, statistic.copy()) for norm in norms
              for statistic in (norm.running_mean, norm.running_var)]  # fmt: skip
    if len(images) > ENOUGH:
        some = np.sort(np.random.default_rng(0).choice(len(images), ENOUGH, replace=False))
        images = images.take(some) if isinstance(images, Stream) else images[some]
    try:
        recalibrate(model, images, normalize, comm=comm)
        yield
    finally:
        for statistic, was in before:
            statistic[...] = was


def _check(images: Pixels | Stream) -> None:
    if not isinstance(images, np.ndarray | Stream):
        raise ShapeError(f"pictures must be a NumPy array, uint8 (N, H, W, 3), not a {type(images).__name__}")
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or len(images) == 0:
        raise ShapeError(
            f"pictures must be uint8 of shape (N, H, W, 3), at least one; got {images.dtype} {images.shape}"
        )


ENOUGH = 1024  # pictures that tell the statistics of all well enough
_PLANNED = 8  # batches, from which on a plan takes less time than it saves


def _log_probabilities(
    model: Module | Plan, images: Pixels | Stream, normalize: Normalize, batch_size: int
) -> NDArray[np.float64]:
    _check(images)
    batch_size = len(model) if isinstance(model, Plan) else whole("batch_size", batch_size)
    if isinstance(model, Module) and len(images) >= _PLANNED * batch_size:
        model = planned(model, normalize(images[:batch_size]).shape)
    if isinstance(model, Plan):
        cuts = (slice(cut, cut + batch_size) for cut in range(0, len(images), batch_size))
        found = [model(normalize(batch)) for batch in batches(images, cuts)]
    else:
        with modes(model, training=False), no_grad():
            found = [model(x).numpy() for x in _batches(model, images, normalize, batch_size)]
    logits: NDArray[np.float64] = np.concatenate(found).astype(np.float64)
    del found  # of many classes and pictures these are large
    logits -= logits.max(axis=1, keepdims=True)  # exp() of large logits would overflow
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits


def _batches(
    model: Module,
    images: Pixels | Stream,
    normalize: Callable[..., NDArray[np.float32]],
    batch_size: int,
    *,
    least: int = 1,
    comm: Communicator = _SOLO,
) -> Iterator[Tensor]:
    """The pictures in batches, those of this rank; a last one of fewer than ``least`` is joined to the one
    before it."""
    batch_size = whole("batch_size", batch_size)
    device = next((parameter.device for parameter in model.parameters()), "cpu")
    starts = range(0, max(1, len(images) - least + 1), max(least, batch_size))
    cuts = [slice(*ends) for ends in zip(starts, [*starts[1:], len(images)], strict=True)]
    cuts = cuts[slice(*bounds(len(cuts), comm.rank, comm.size))]
    for batch in batches(images, cuts):
        yield Tensor(backend.to_device(normalize(batch), device))
