"""What is looked at before a run, after each epoch and at its end: facts in words, each with its numbers.

What makes a run impossible is an error before the first step. What makes its result doubtful is a warning: it
is printed, and stands in ``summary.json``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minires import backend
from minires.backend import Array
from minires.data import Loader, Normalize
from minires.errors import ConfigError, ShapeError, counted
from minires.nn.module import Module
from minires.nn.restored import left_as_it_is
from minires.tensor import Tensor, no_grad
from minires.train.steps import parts

SHOWN = 5  # names in a warning
FAR, DIVERGED = 3, 10  # times the loss of chance: too high, and lost
GENTLER = "a lower learning rate, more warm-up or clip_norm"
LOST = "the run diverged: "


def something_learns(model: Module, frozen: Sequence[str]) -> None:
    """Raises: ConfigError if nothing of a model with parameters is to change, ``frozen`` as it is."""
    parameters = list(model.parameters())
    if parameters and not any(one.requires_grad for one in parameters):
        what = f"with {', '.join(map(repr, frozen))} frozen" if frozen else "with this model"
        raise ConfigError(
            f"{what} nothing is left that could learn; leave a part out of freeze, such as the last layer"
        )


def never_learns(model: Module, new: Sequence[str]) -> list[str]:
    """Warn if a layer is ``new``, by the names of its parameters, and frozen."""
    learn = dict(model.named_parameters())
    still = [name for name in new if name in learn and not learn[name].requires_grad]
    return [f"{', '.join(still)}: new, and frozen, so it stays as chance has drawn it"] if still else []


def ranks(loader: Loader, parts: Callable[[int], Sequence[int]], size: int) -> None:
    """Check that each of the ranks has a picture of each part of each batch.

    Raises: ConfigError that says which batch has too few, and what to do.
    """
    if size == 1:
        return
    of = {"a batch": loader.pictures(0), "the last batch of an epoch": loader.pictures(len(loader) - 1)}
    for what, count in of.items():
        least = min(parts(count))
        if least < size:
            part = "" if least == count else f", and a part of it {counted(least, 'picture')},"
            raise ConfigError(
                f"{what} has {counted(count, 'picture')}{part} for {size} ranks; "
                + ("set drop_last=True or another batch_size" if what != "a batch" else
                   "use a larger batch_size, or fewer processes" + (" or parts" if part else ""))
            )  # fmt: skip


def batches_of_one(
    model: Module, loader: Loader, *, activations: Any = np.float32, accumulate: int = 1, ranks: int = 1
) -> None:
    """Try a batch of one picture where there will be one, so that it does not stop a run after an epoch.

    A batch norm with one value per channel has no variance: behind a global pool, or where the maps are 1x1.
    With ``accumulate`` it sees parts of batches, and on each of several ``ranks`` a share of these.

    Raises: ConfigError that says where, and what to do, if the model can be trained on two pictures but not
    on one.
    """
    count, size = len(loader.dataset), loader.batch_size
    batches = [size] if loader.drop_last else [min(size, count), count % size or size]

    def with_ones(accumulate: int) -> list[int]:
        """The batches that have a part of one picture."""
        return [
            pictures for pictures in batches
            if 1 in (part // ranks for part in parts(pictures, size, accumulate))
        ]  # fmt: skip

    if not with_ones(accumulate):
        return
    pictures = loader.normalize(loader.dataset.images[:1]).astype(activations, copy=False)
    device = next(model.parameters()).device

    def trouble(batch: int) -> ShapeError | None:
        try:
            model(Tensor(backend.to_device(np.repeat(pictures, batch, axis=0), device)))
        except ShapeError as error:
            return error
        return None

    with left_as_it_is(model), no_grad():
        model.train()
        error = trouble(1)
        if error is None or trouble(2) is not None:  # what fails with two as well has another cause
            return
    if ranks > 1:
        what = f"a batch of {with_ones(accumulate)[0]} pictures gives one of {ranks} ranks a single picture"
        way = "Use batch_norm='sync', larger batches or fewer processes; drop_last=True for a last one"
    elif not with_ones(1):
        fewer = next(fewer for fewer in range(accumulate - 1, 0, -1) if not with_ones(fewer))
        what = f"accumulate is {accumulate}: a batch of {with_ones(accumulate)[0]} has parts of one picture"
        way = f"Use accumulate={fewer}, or larger batches"
    elif count == 1:
        what, way = "there is one training picture", "Train on at least two pictures"
    elif size == 1:
        what, way = "batch_size is 1", "Use a batch size of at least 2"
    else:
        other = next(other for other in range(size + 1, 2 * size + 2) if count % other != 1)
        what = f"the last batch of each epoch has one picture ({count} = {count // size} x {size} + 1)"
        way = f"Leave it out with drop_last=True, or use another batch size, such as {other}"
    why = str(error).partition(". ")[0]  # what it goes on to advise is for a loop of one's own
    raise ConfigError(f"{what}, and this model cannot be trained on one: {why}. {way}") from error


def constant_channels(normalize: Normalize) -> list[str]:
    """A warning if a channel of the pictures that ``normalize`` was measured on never changes."""
    # Such a channel has 1 in the place of its deviation, and no other can: pixels go from 0 to 1.
    constant = [name for name, std in zip(("red", "green", "blue"), normalize.std, strict=True) if std == 1.0]
    if not constant:
        return []
    where = ", ".join(constant)
    return [f"all pixels of all training pictures are equal in {where}, so there is nothing to learn from it"]


def numbers(model: Module) -> dict[str, Array]:
    """All that a model learns and measures, by path."""
    parameters = {path: parameter.data for path, parameter in model.named_parameters()}
    return {**parameters, **dict(model.named_buffers())}


def not_finite(when: str, arrays: Mapping[str, Array]) -> list[str]:
    """A warning if a number in these arrays, which have names, is NaN or infinite."""
    bad = [
        f"{name} ({wrong} of {array.size})" for name, array in arrays.items() if (wrong := _wrong(array))
    ]
    if not bad:
        return []
    more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    return [
        f"{when} these have numbers that are NaN or infinite: {', '.join(bad[:SHOWN])}{more}. What the model "
        "says in inference is not to be trusted. Look at the pictures and their normalisation, or lower the "
        "learning rate; running statistics alone are measured anew by minires.train.recalibrate"
    ]


def diverged(loss: float, classes: int) -> bool:
    """Whether a loss is so far above that of guessing that no training has got it there."""
    return not loss <= DIVERGED * math.log(max(2, classes))


def outcome(
    loss: float,
    accuracy: float,
    labels: NDArray[np.int64] | None,
    classes: Sequence[str],
    **others: float | None,
) -> list[str]:
    """Warnings if training ended no better than guessing, or one of ``others``, losses, is far worse than it
    or not finite. ``labels`` are those of an epoch, None where accuracy is not what was trained for."""
    chance = math.log(len(classes))
    found = []
    if not loss <= chance:
        lost = diverged(loss, len(classes))
        times = f"{loss / chance:.3g} times" if lost and chance else "above"
        found.append(
            f"{LOST if lost else ''}the training loss of the last epoch is {loss:.6g}, {times} chance level, "
            f"ln {len(classes)} = {chance:.4f}, that of holding all classes for equally likely"
            + (f"; try {GENTLER}" if loss > FAR * chance else "")
        )
    most = 1.0 if labels is None else np.bincount(labels).max() / len(labels)
    if most < 1 and not accuracy > most:
        found.append(
            f"the training accuracy of the last epoch is {100 * accuracy:.2f}%, not above {100 * most:.2f}%, "
            "that of always guessing the most frequent class"
        )
    for name, value in others.items():
        if value is not None and not math.isfinite(value):
            found.append(f"the {name} loss is {value}")
        elif chance and value is not None and value > FAR * chance >= FAR * loss:
            found.append(
                f"the {name} loss is {value:.6g}, {value / chance:.3g} times chance level, and that of "
                f"training {loss:.6g}. After few steps the running statistics of batch norm lag behind the "
                "weights: train for more epochs, or with recalibrate=True (--recalibrate). Else the "
                "pictures differ from those of the training"
            )
    return found


def _wrong(array: Array) -> int:
    """How many numbers are NaN or infinite."""
    return int((~backend.array_module(array).isfinite(array)).sum())
