"""Testing a model by several views of each picture, whose probabilities are averaged.

    crops=1         the shorter side resized to the scale, the square in the middle
    crops=10        the four corners and the middle, and these mirrored
    crops="full"    the whole picture and its mirror image: the network as a convolution over all of it, whose
                    answers its global average pool averages; pictures may have any shape

With several scales the views of all of them count alike. A picture is resized from what its file holds where
the set streams, and else from what is in memory.

Source: ten crops, Krizhevsky et al. 2012, section 4.1; He et al. arXiv:1512.03385, section 3.4 for the
scales 224, 256, 384, 480, 640 in the fully convolutional form (from Simonyan & Zisserman arXiv:1409.1556).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from minires import backend
from minires.data import Dataset, Normalize, Stream
from minires.distributed import Communicator, Solo
from minires.errors import ConfigError, ShapeError, one_of, whole
from minires.nn.module import Module
from minires.nn.restored import modes
from minires.ops.softmax import softmax
from minires.tensor import Tensor, no_grad
from minires.train.evaluation import Evaluation, judged, share_of

CROPS = (1, 10, "full")
Pixels = NDArray[np.uint8]


def usual_scale(side: int) -> int:
    """The shorter side from which crops of this side are cut: as 256 is to 224.

    >>> usual_scale(224), usual_scale(32)
    (256, 37)
    """
    return round(side * 256 / 224)


def evaluate_crops(
    model: Module,
    dataset: Dataset,
    normalize: Normalize,
    *,
    side: int,
    crops: int | str = 10,
    scales: Sequence[int] = (),
    batch_size: int = 64,
    comm: Communicator | None = None,
) -> Evaluation:
    """Test a model as ``evaluate`` does, with the mean of the probabilities of several views of each picture.

    ``side`` is that of the squares that the model gets; ``scales`` are shorter sides that the pictures are
    resized to, :func:`usual_scale` without any. The loss is that of the averaged probabilities. The ranks of
    ``comm`` test a share of the pictures each.

    Raises: ConfigError for crops that are none of those above, or a scale below ``side`` of which squares
    cannot be cut; ShapeError if the model takes pictures of one size only and ``crops`` is "full".
    """
    one_of("crops", crops, CROPS)
    side = whole("side", side)
    taken = tuple(whole("a scale", scale) for scale in scales) or (usual_scale(side),)
    if crops != "full" and (small := [scale for scale in taken if scale < side]):
        raise ConfigError(
            f"scales={small[0]}: squares of {side} cannot be cut out of pictures whose shorter side is "
            f"{small[0]}; give scales of {side} and more, or crops='full'"
        )
    comm = comm or Solo()
    with comm.patiently(), comm.together("evaluation"):
        own = np.zeros((0, len(dataset.classes)))
        if (share := share_of(dataset, comm)) is not None:
            own = _averaged(model, share, normalize, side, crops, taken, batch_size)
    probabilities, loss, accuracy = judged(own, dataset, comm, log=_log)
    return Evaluation(loss, accuracy, probabilities)


def _log(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logarithms; of 0 a very small one, and NaN stays as it is."""
    found: NDArray[np.float64] = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    return found


def _averaged(
    model: Module, dataset: Dataset, normalize: Normalize, side: int, crops: int | str,
    taken: Sequence[int], batch_size: int,
) -> NDArray[np.float64]:  # fmt: skip
    """The mean of the probabilities over the views of each picture (N, classes)."""
    device = next((parameter.device for parameter in model.parameters()), "cpu")
    at_once = 1 if crops == "full" else max(1, batch_size // (int(crops) * len(taken)))
    found = []
    with modes(model, training=False), no_grad():
        for start in range(0, len(dataset), at_once):
            pictures = [original(dataset, place, max(taken)) for place in
                        range(start, min(start + at_once, len(dataset)))]  # fmt: skip
            total = np.zeros((len(pictures), len(dataset.classes)))
            for scale in taken:
                views = np.concatenate([cut(picture, scale, side, crops) for picture in pictures])
                try:
                    logits = model(Tensor(backend.to_device(normalize(views), device)))
                except ShapeError as error:
                    if crops != "full":
                        raise
                    raise ShapeError(
                        f"the model takes pictures of {side}x{side} only, and not the whole of one of "
                        f"{views.shape[1]}x{views.shape[2]} ({error}); use crops=10"
                    ) from error
                each = softmax(logits).numpy().astype(np.float64)  # (pictures * views, classes)
                total += each.reshape(len(pictures), -1, each.shape[1]).mean(axis=1)
            found.append(total / len(taken))
    return np.concatenate(found)


def original(dataset: Dataset, place: int, least: int) -> Image.Image:
    """A picture as its file holds it where that is known, and else as it is in memory."""
    if isinstance(dataset.images, Stream):
        return dataset.images.picture(place, least=least)
    return Image.fromarray(dataset.images[place])


def cut(picture: Image.Image, scale: int, side: int, crops: int | str) -> Pixels:
    """The views of a picture at one scale.

    Shapes: -> (crops, side, side, 3); of "full" (2, H, W, 3), the shorter of H and W the scale.
    Differs: torchvision's TenCrop mirrors the picture and then cuts; where the middle lies between two
    columns, its mirrored middle is one column beside the mirror image of the other.

    >>> picture = Image.new("RGB", (60, 40))
    >>> cut(picture, 36, 32, 10).shape, cut(picture, 36, 32, "full").shape
    ((10, 32, 32, 3), (2, 36, 54, 3))
    """
    wide, high = (scale * length // min(picture.size) for length in picture.size)
    pixels = np.asarray(picture.resize((wide, high), Image.Resampling.BILINEAR))  # (high, wide, 3)
    if crops == "full":
        return np.stack([pixels, pixels[:, ::-1]])
    down, right = round((high - side) / 2), round((wide - side) / 2)
    places = [(down, right)]
    if crops == 10:
        places += [(top, left) for top in (0, high - side) for left in (0, wide - side)]
    views = [pixels[top : top + side, left : left + side] for top, left in places]
    return np.stack([*views, *(view[:, ::-1] for view in views)] if crops == 10 else views)
