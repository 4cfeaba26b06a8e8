"""How strong the layers of a model respond to a set of pictures: figure 7 of the ResNet paper, for any model.

One batch is measured by :func:`minires.nn.responses.responses`. Here batches are put together, exactly: with
n numbers of mean m and standard deviation s in each batch,

    mean = sum of n * m / sum of n
    std  = root of (sum of n * (s^2 + (m - mean)^2) / sum of n)

which is not the average of the batches' standard deviations.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minires import backend
from minires.errors import ConfigError, ShapeError, whole
from minires.files import with_ending
from minires.nn.module import Module
from minires.nn.responses import Response, responses
from minires.nn.restored import modes
from minires.tensor import Tensor

if TYPE_CHECKING:
    from minires.data import Normalize, Stream
    from minires.data.streaming import Pixels


def responses_of(
    model: Module, images: Pixels | Stream | Any, normalize: Normalize | None = None, *, batch_size: int = 64
) -> list[Response]:
    """Measure the response of each layer to all of some pictures, in the order of execution.

    images: pictures (uint8, or a stream of them) with the ``normalize`` that the model was trained with; or
        floats as the model takes them, without it.

    The model is in inference mode meanwhile and is left as it was. Fresh weights have no running statistics
    that fit them: measure these first, :func:`minires.train.recalibrate`.

    Math: mean and standard deviation of all numbers that a layer hands on for all pictures, behind its batch
    norm and before what follows.
    Shapes: images (N, H, W, C); ``shape`` of a response begins with N.
    Raises: ShapeError without pictures, or if they do not fit the model; ConfigError if the model calls other
    layers for other pictures.
    Source: arXiv:1512.03385, section 4.2 and figure 7.

    >>> from minires import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, relu=True))
    >>> x = np.random.default_rng(0).standard_normal((10, 8, 8, 3)).astype("float32")
    >>> several, one = responses_of(model, x, batch_size=3)[0], responses_of(model, x)[0]
    >>> several.shape, bool(np.isclose(several.std, one.std))
    ((10, 6, 6, 4), True)
    """
    batch_size = whole("batch_size", batch_size)
    if not len(images):
        raise ShapeError("responses_of needs at least one picture, and there are none")
    with modes(model, training=False):
        return pooled(responses(model, x) for x in _batches(images, normalize, batch_size))


def _batches(images: Any, normalize: Normalize | None, batch_size: int) -> Iterator[Any]:
    from minires.data.streaming import batches

    if isinstance(images, Tensor):
        images = images.data
    cuts = [slice(start, start + batch_size) for start in range(0, len(images), batch_size)]
    for batch in batches(images, cuts):
        if normalize is None and not backend.is_float(batch.dtype):
            raise ShapeError(
                f"pictures of {batch.dtype} need the normalize= that the model was trained with; without it "
                "they must be floats as the model takes them"
            )
        yield batch if normalize is None else normalize(batch)


def pooled(batches: Iterable[Sequence[Response]]) -> list[Response]:
    """Put the responses to several batches together, as if to all of their pictures at once.

    Raises: ConfigError if other layers were called for one batch than for another.

    >>> one = Response("conv1", "conv2d", mean=1.0, std=0.0, shape=(1, 2))
    >>> pooled([[one], [one._replace(mean=4.0, shape=(2, 2))]])[0]
    Response(path='conv1', op='conv2d', mean=3.0, std=1.4142135623730951, shape=(3, 2))
    """
    found = [list(batch) for batch in batches]
    called = [[(one.path, one.op) for one in batch] for batch in found]
    for number, names in enumerate(called):
        if names != called[0]:
            raise ConfigError(
                f"batch {number + 1} went through other layers than the first one, {len(names)} and not "
                f"{len(called[0])} or in another order: their responses cannot be put together"
            )
    return [_together(layer) for layer in zip(*found, strict=True)]


def _together(layer: Sequence[Response]) -> Response:
    """The response of one layer from those of its batches."""
    sizes = np.array([np.prod(one.shape) for one in layer], float)
    means, stds = np.array([one.mean for one in layer]), np.array([one.std for one in layer])
    mean = sizes @ means / sizes.sum()
    variance = sizes @ (stds**2 + (means - mean) ** 2) / sizes.sum()
    shape = (sum(one.shape[0] for one in layer), *layer[0].shape[1:])
    return layer[0]._replace(mean=float(mean), std=float(np.sqrt(variance)), shape=shape)


def draw_responses(path: str | os.PathLike[str], models: Mapping[str, Sequence[Response]]) -> None:
    """Draw the two panels of the paper's figure 7, as a .png or .svg: the standard deviations of responses in
    the order of the layers, and sorted by size; a line for each of the ``models``, by name.

    The paper's figure has convolutions alone, so dense layers are left out (where there is anything else).

    Raises: ConfigError for another ending; MiniresError if it cannot be written.
    """
    from minires.inspect.runs_drawing import COLOURS, STYLES
    from minires.train.canvas import new_figure, plain_axes, save_figure, short

    ending = with_ending("out", path, (".png", ".svg"), "a figure")
    figure = new_figure(11.0, 4.0 + 0.11 * len(models))
    in_order, by_size = figure.subplots(1, 2, sharey=True)
    lines, most = {}, 0.0
    for number, (name, found) in enumerate(models.items()):
        stds = np.array([one.std for one in drawn(found)])
        style: dict[str, Any] = {
            "color": COLOURS[number % len(COLOURS)], "linewidth": 1.4, "marker": "o",
            "linestyle": STYLES[number // len(COLOURS) % len(STYLES)],
            "markersize": 3 if len(stds) < 60 else 0,
        }  # fmt: skip
        most = max(most, *stds[np.isfinite(stds)], 0.0)
        places = np.arange(1, len(stds) + 1)
        (lines[name],) = in_order.plot(places, stds, **style)
        by_size.plot(places, np.sort(stds)[::-1], **style)
    in_order.set_ylabel("standard deviation", fontsize=9)
    for axes, title in ((in_order, "In the order of the layers"), (by_size, "Sorted by size")):
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("layer", fontsize=9)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylim(0, 1.08 * most or 1)
        plain_axes(axes)
    figure.legend(
        lines.values(), [short(name, 60) for name in lines], loc="outside lower center", ncols=2,
        frameon=False, fontsize=9,
    )  # fmt: skip
    save_figure(figure, path, format=ending[1:], metadata={"Date": None} if ending == ".svg" else None)


def drawn(found: Sequence[Response]) -> list[Response]:
    """The responses that the figure shows: all but those of dense layers, whose numbers have no places in a
    picture, if there are others.

    >>> one = Response("conv1", "conv2d", mean=0.0, std=1.0, shape=(1, 8, 8, 2))
    >>> [one.path for one in drawn([one, one._replace(path="fc", op="linear", shape=(1, 10))])]
    ['conv1']
    """
    return [one for one in found if len(one.shape) > 2] or list(found)
