"""Dropout: in training, each number is set to zero with probability ``rate``.

    y = x * mask        mask is 0 with probability rate, else 1 / (1 - rate)
    dx = dy * mask

The numbers that stay are scaled up (inverted dropout), so the expected value is that of x and inference needs
no change: there y = x.

Shapes: any; y has the shape of x.
Source: Srivastava et al. 2014, Dropout: a simple way to prevent neural networks from overfitting;
Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3 (the generator on the GPU).
Differs: the paper scales the weights down at inference instead. On a GPU one state of ``rng`` gives another
mask than on the CPU, the same one each time: see :func:`dropout`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array, cuda
from minires.errors import ConfigError, as_number
from minires.modes import share
from minires.ops import checks
from minires.ops.forms import Formula
from minires.ops.mixed_precision import mixed
from minires.ops.registry import Case, Words, operation
from minires.tensor import Tensor, record

# ------------------------------------------------------------------------------ reference implementation


def _mask(xp: Any, shape: tuple[int, ...], dtype: Any, rate: float, rng: np.random.Generator) -> Array:
    # Drawn on the CPU and in float32 always: as plain code, one seed gives one mask on every device and in
    # every dtype. Of a batch that several processes share each draws the whole, and uses its part.
    first, drawn = _place(shape)
    size = math.prod(shape)
    if drawn is None:
        rng, drawn = np.random.default_rng(rng.integers(2**63)), size
    kept = rng.random(drawn, dtype=np.float32)[first : first + size].reshape(shape) >= rate
    return xp.asarray(kept).astype(dtype) / (1 - rate)


def _place(shape: tuple[int, ...]) -> tuple[int, int | None]:
    """Where the numbers of x begin in those of the whole batch, and how many these are.

    x that has not a row for each picture has all of them. Where it has several rows for each, or so it seems,
    None: what is drawn must not be more for one process than for another, so that all go on alike.
    """
    size, part = math.prod(shape), share()
    rows, own = (shape[0], part[1] - part[0]) if part and shape else (1, 2)
    if part and rows == own:
        return size // own * part[0], size // own * part[2]
    return 0, None if rows % own == 0 else size


# ------------------------------------------------------------------------------------------- fast, on GPU
# The mask is drawn where it is needed and kept nowhere. A counter-based generator makes random bits from a
# key and the place of a number, so each thread can draw those of its own numbers, and the backward draws the
# same bits as the forward from the same key.

_CUDA = cuda.Source(r"""
// Philox 4x32 with ten rounds: the four words of a counter become four random words. A round multiplies two
// of them by constants, and mixes the upper halves of the products with the other two words and the key.
__device__ void philox(unsigned word[4], unsigned key0, unsigned key1) {
    for (int round = 0; round < 10; round++) {
        unsigned upper0 = __umulhi(0xD2511F53, word[0]), lower0 = 0xD2511F53 * word[0];
        unsigned upper1 = __umulhi(0xCD9E8D57, word[2]), lower1 = 0xCD9E8D57 * word[2];
        word[0] = upper1 ^ word[1] ^ key0;
        word[1] = lower1;
        word[2] = upper0 ^ word[3] ^ key1;
        word[3] = lower0;
        key0 += 0x9E3779B9;
        key1 += 0xBB67AE85;
    }
}

// Forward, and backward with dy for x. dropped is the rate in units of 2^-31.
extern "C" __global__ void dropout(
    const T* x /* n */, T* y /* n */, int key0, int key1, int first, int dropped, A scale, int n
) {
    EACH(i, n) {
        unsigned word[4] = {unsigned(i) + unsigned(first), 0, 0, 0};
        philox(word, key0, key1);
        bool kept = int(word[0] >> 1) >= dropped;
        y[i] = x[i] * (kept ? scale : A(0));  // multiplied, so that NaN stays NaN
    }
}
""")


def _key(rng: np.random.Generator) -> tuple[int, int]:
    """The 64 bits that choose the mask of one call, in two ints."""
    first, second = rng.integers(-(2**31), 2**31, size=2).tolist()
    return first, second


def _masked_cuda(xp: Any, x: Array, rate: float, key: tuple[int, int], first: int) -> Array:
    y = xp.empty(x.shape, x.dtype)
    dropped, scale = int(rate * 2**31), 1 / (1 - rate)
    first = (first + 2**31) % 2**32 - 2**31  # its bits in an int
    _CUDA("dropout", cuda.over(y.size), xp.ascontiguousarray(x), y, *key, first, dropped, scale, y.size)
    return y


# ----------------------------------------------------------------------------------------------- public


def check_rate(rate: object) -> None:
    """Raise ConfigError unless ``rate`` is a number in [0, 1)."""
    number = as_number(rate)
    if number is None or not 0 <= number < 1:
        raise ConfigError(
            f"dropout: rate is the share of numbers set to zero, from 0 to below 1, not {rate!r}"
        )


def _seeded(dropout: Callable[..., Tensor], x: Tensor, *, seed: int, **options: Any) -> Tensor:
    """With a fresh generator in each call, so that each call has the same mask."""
    return dropout(x, rng=np.random.default_rng(seed), **options)


def _cases() -> Iterator[Case]:
    for rate in (0.0, 0.3, 0.9):
        yield Case(f"rate {rate}", {"x": (3, 4)}, {"rate": rate, "seed": 1}, _seeded)
    yield Case("inference", {"x": (3, 4)}, {"rate": 0.5, "seed": 1, "training": False}, _seeded)


@operation(
    math="y = x * mask, where mask is 0 with probability rate, else 1 / (1 - rate)",
    backward="dx = dy * mask",
    arithmetic=Formula("y = x * mask\ndx = dy * mask", saved=["mask"]),
    english=Words(
        "Dropout",
        "In training some numbers are set to zero by chance, the others are scaled up.",
        "The gradient passes where the number was kept, scaled alike.",
    ),
    chinese=Words("Dropout", "训练时随机将一些数置零，其余放大。", "保留的数处梯度通过，并同样放大。"),
    cases=_cases,
)
@mixed(kernels=True)
def dropout(x: Tensor, rate: float, *, rng: np.random.Generator, training: bool = True) -> Tensor:
    """Set numbers to zero with probability ``rate`` and scale the others up; ``x`` itself at inference.

    rng: the generator that says which numbers.

    Where several processes share a batch (``minires.modes.share_of_batch``), each has its part of the mask of
    all of it.

    On a GPU each call draws 64 bits from ``rng``, the key of Philox 4x32-10; number i of x has the mask that
    the generator gives for counter i. So one state of ``rng`` gives one mask, in every dtype and again after
    a run is continued. The key is an argument of the kernel: a step that is captured into a CUDA graph would
    have the same mask in every replay, unless its key lies in the memory of the GPU and is advanced there.

    Shapes: any; y as x.
    Raises: ConfigError if the rate is not in [0, 1); ShapeError if ``x`` is not a float.
    Source: Srivastava et al. 2014. Differs: the paper scales the weights down at inference instead.

    >>> dropout(Tensor(np.ones(6)), 0.5, rng=np.random.default_rng(1)).tolist()
    [0.0, 2.0, 2.0, 2.0, 0.0, 0.0]
    """
    x = checks.as_tensor(x)
    checks.same_floats("dropout", x=x)
    check_rate(rate)
    if not checks.truth("dropout", "training", training) or rate == 0:
        return x
    xp = backend.array_module(x.data)
    if cuda.usable(x.data):
        rate, key, (first, _) = float(rate), _key(rng), _place(x.shape)
        y = _masked_cuda(xp, x.data, rate, key, first)
        return record(
            "dropout",
            y,
            inputs={"x": x},
            options={"rate": rate},
            backward=lambda dy: (_masked_cuda(xp, dy, rate, key, first),),
        )
    mask = _mask(xp, x.shape, x.dtype, rate, rng)
    return record(
        "dropout",
        x.data * mask,
        inputs={"x": x},
        options={"rate": rate},
        saved={"mask": mask},
        backward=lambda dy: (dy * mask,),
    )
