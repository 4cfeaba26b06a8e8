"""How a file of Keras's scales its pictures, as our Normalize."""

from __future__ import annotations

from collections.abc import Sequence

from minires.data import Normalize
from minires.errors import CheckpointError
from minires.weights.keras.config import Channel

WIDEST = 256.0  # what a scaled pixel is never above, in size; that of 0..255 less a mean is below


def normalize_of(scaling: Sequence[Channel]) -> tuple[Normalize, tuple[int, ...], str]:
    """Our scaling; for each channel that the network takes, which one of red, green, blue it is; a note.

    A file does not say whether its pixels are 0..255, as files of pictures have them, or 0..1. They are
    0..255 unless that makes pixels above 256, as it does where Normalization was fitted to pixels of 0..1.

    Units: ours scales pixels to 0..1 first.
    Raises: CheckpointError if a channel is multiplied by zero or less.

    >>> normalize_of([(0, 1 / 127.5, -1.0), (1, 1 / 127.5, -1.0), (2, 1 / 127.5, -1.0)])[0]
    Normalize(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    """
    if any(scale <= 0 for _, scale, _ in scaling):
        raise CheckpointError(
            f"pictures are multiplied by {min(scale for _, scale, _ in scaling):g}, no scale"
        )
    top = 255.0 if all(abs(scale * 255 + offset) <= WIDEST for _, scale, offset in scaling) else 1.0
    mean, std = [0.0] * 3, [1.0] * 3
    for source, scale, offset in scaling:
        std[source] = _short(1 / (scale * top))
        mean[source] = _short(-offset / (scale * top))
    note = f"pictures are scaled as the file does it, from pixels of 0..{top:.0f}"
    return (
        Normalize((mean[0], mean[1], mean[2]), (std[0], std[1], std[2])),
        tuple(c[0] for c in scaling),
        note,
    )


def _short(number: float) -> float:
    """Without the last digits, which are rounding: the file has float32."""
    return float(f"{number:.12g}") + 0.0
