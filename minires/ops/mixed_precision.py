"""Mixed precision: activations in bfloat16, everything else in float32.

A bfloat16 is a float32 without the lower half of its bits: the same range, but 8 significant bits instead of
24, so that rounding to it changes a number by up to 1/256 of itself. Arrays take half the memory, and a GPU
multiplies it many times as fast. What is summed up over many steps or many numbers would suffer, and stays
float32:

    bfloat16    activations and their gradients; the factors of matrix products
    float32     parameters (the "master weights"), their gradients, batch and running statistics, the state of
                the optimiser, the loss; all sums, and all arithmetic on the way from input to result

So an operation reads bfloat16, computes in float32, and rounds its result once. Where there are CUDA kernels
that do so, they are used (a convolution rounds once more there: see conv2d/cuda_columns.py). Everywhere
else, on the CPU always, it is done as it is written here: the inputs become float32, the operation is the one
for float32, and its result becomes bfloat16. These are steps of their own on the tape ("astype",
"round"). It saves no time, and it is what the kernels must agree with.

A network computes in bfloat16 if it is given bfloat16: ``model(x.astype("bfloat16"))``.

Source: Micikevicius et al. 2017, Mixed precision training, arXiv:1710.03740 (master weights); Kalamkar et
al. 2019, A study of bfloat16 for deep learning training, arXiv:1905.12322 (the loss need not be scaled, since
the range is that of float32).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec

import numpy as np

from minires import backend
from minires.backend import cuda
from minires.errors import ShapeError
from minires.ops import checks
from minires.ops.forms import Formula
from minires.ops.registry import Description, Words, declare, operation
from minires.tensor import Tensor, record

P = ParamSpec("P")


@operation(
    math="y = x, rounded to the dtype",
    backward="dx = dy in the dtype of x",
    arithmetic=Formula("y = x\ndx = dy"),
    english=Words(
        "Type",
        "The same numbers in another floating-point type, rounded to it.",
        "The gradient in the type from before.",
    ),
    chinese=Words("类型", "同样的数，换一种浮点类型（舍入）。", "梯度恢复原来的类型。"),
    role="silent",
    unchecked="rounding goes in steps, so that finite differences say nothing",
)
def astype(x: Tensor, dtype: Any) -> Tensor:
    """The numbers of ``x`` as another dtype of floats, "bfloat16" too; ``x`` itself if it has it already.

    Shapes: any.
    Raises: ShapeError if either dtype is not one of floats; ConfigError for what is no dtype, and for
    "bfloat16" without ml_dtypes.

    >>> astype(Tensor([0.1]), "float64").item()
    0.10000000149011612
    """
    x = checks.as_tensor(x)
    before = x.dtype
    after = backend.dtype_of(dtype)
    for one in (before, after):
        if not backend.is_float(one):
            raise ShapeError(f"astype: floats become floats; {one} is no dtype of floats")
    if before == after:
        return x
    return record(
        "astype",
        x.data.astype(after),
        inputs={"x": x},
        options={"dtype": after.name},
        backward=lambda dy: (dy.astype(before),),
    )


ROUND = declare(
    Description(
        name="round",
        math="y = x, rounded to bfloat16",
        backward="dx = dy",
        arithmetic=Formula("y = x\ndx = dy"),
        english=Words(
            "Rounding",
            "The weights rounded to 16 bits, for the product.",
            "The gradient passes through as it is.",
        ),
        chinese=Words("舍入", "权重为乘积舍入到 16 位。", "梯度原样通过。"),
        role="silent",
        unchecked="rounding goes in steps, so that finite differences say nothing",
    )
).name


def _rounded(w: Tensor, stored: Any) -> Tensor:
    """``w`` with its numbers rounded to bfloat16, stored so or as float32. Its gradient stays as it is."""
    data = w.data.astype(backend.bfloat16()).astype(stored, copy=False)
    return record(ROUND, data, inputs={"x": w}, backward=lambda dy: (dy,))


def mixed(
    *, kernels: bool = False, parameters: tuple[str, ...] = (), factors: tuple[str, ...] = ()
) -> Callable[[Callable[P, Tensor]], Callable[P, Tensor]]:
    """Let an operation for float32 take bfloat16 too.

    ``kernels`` says that on a GPU it takes bfloat16 as it is. Its arguments named in ``parameters`` stay
    float32. Those named in ``factors`` are parameters too, rounded to bfloat16 for the matrix products.

    Raises (the operation): ShapeError if some of its other inputs are bfloat16 and some are not, or if a
    parameter is not float32 beside them.
    """
    parameters += factors

    def decorate(op: Callable[P, Tensor]) -> Callable[P, Tensor]:
        signature = inspect.signature(op)

        @functools.wraps(op)
        def call(*args: P.args, **options: P.kwargs) -> Tensor:
            if not any(map(_is_bfloat16, (*args, *options.values()))):
                return op(*args, **options)
            given = signature.bind(*args, **options)
            tensors = {
                name: checks.as_tensor(x)
                for name, x in given.arguments.items()
                if isinstance(x, Tensor) or _is_bfloat16(x)
            }
            checks.same_floats(op.__name__.removeprefix("_"), parameters=parameters, **tensors)
            has_kernels = kernels and cuda.usable(*(x.data for x in tensors.values()))
            stored = backend.bfloat16() if has_kernels else np.dtype(np.float32)
            for name, x in tensors.items():
                if name in factors:
                    given.arguments[name] = _rounded(x, stored)
                elif name not in parameters:
                    given.arguments[name] = astype(x, stored)
            return astype(op(*given.args, **given.kwargs), "bfloat16")

        return call

    return decorate


def _is_bfloat16(x: Any) -> bool:
    """Whether this is a tensor or an array of bfloat16."""
    return isinstance(x, Tensor | np.ndarray) and backend.is_bfloat16(x.dtype)
