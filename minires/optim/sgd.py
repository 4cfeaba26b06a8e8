"""Stochastic gradient descent with momentum.

With ``w`` a parameter, ``g`` its gradient, ``lr`` the learning rate:

    b <- momentum b + g
    w <- w - lr b        or with Nesterov        w <- w - lr (g + momentum b)

The formula is PyTorch's, to the last rounding in float64.

Source: Sutskever et al. 2013, On the importance of initialization and momentum in deep learning.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from minires import backend
from minires.backend import Array, cuda
from minires.errors import ConfigError, number, truth
from minires.optim.optimizer import CLIPPED, Optimizer


def _sgd(
    w: Array, g: Array, b: Array, lr: float, momentum: float, of_gradient: float, of_momentum: float
) -> None:
    """The reference implementation."""
    b *= momentum
    b += g
    w -= lr * (of_gradient * g + of_momentum * b)


# The whole update in one pass over the arrays. ``scale`` clips the gradient, ``decay`` is the coupled weight
# decay, ``keep`` the decoupled one.


@backend.kernel(w="out flat (n)", g="flat (n)", b="out flat (n)")
def _sgd_numba(
    w: Array, g: Array, b: Array, scale: float, decay: float, keep: float,
    lr: float, momentum: float, of_gradient: float, of_momentum: float,
) -> None:  # fmt: skip
    for i in range(w.size):
        wi = keep * w[i]
        gi = scale * g[i] + decay * wi
        bi = momentum * b[i] + gi
        b[i] = bi
        w[i] = wi - lr * (of_gradient * gi + of_momentum * bi)


_CUDA = cuda.Source(
    CLIPPED
    + r"""
extern "C" __global__ void sgd(
    const int* chunks /* 3 * blocks */, const unsigned long long* addresses /* 3 * arrays */,
    const T* numbers /* 7 * arrays */, int arrays, const double* norm /* 1 */, T clip
) {
    const int* chunk = chunks + 3 * blockIdx.x;
    const unsigned long long* address = addresses + 3 * chunk[0];
    T *w = (T*)address[0], *g = (T*)address[1], *b = (T*)address[2];
    if (!w) return;
    const T* number = numbers + 7 * chunk[0];
    T scale = number[0], decay = number[1], keep = number[2];
    T lr = number[3], momentum = number[4], of_gradient = number[5], of_momentum = number[6];
    if (!clipped(norm, clip, &scale)) return;
    for (int i = chunk[1] + threadIdx.x; i < chunk[2]; i += blockDim.x) {
        T wi = keep * w[i];
        T gi = scale * g[i] + decay * wi;
        T bi = momentum * b[i] + gi;
        b[i] = bi;
        w[i] = wi - lr * (of_gradient * gi + of_momentum * bi);
    }
}
"""
)


class SGD(Optimizer):
    """Stochastic gradient descent with momentum.

    Options that all have: see :class:`~minires.optim.optimizer.Optimizer`.

    Math: b <- momentum b + g;  w <- w - lr b, with ``nesterov`` w <- w - lr (g + momentum b).
    Shapes: ``parameters`` is an iterable of parameters or of ``(path, parameter)`` pairs.
    Raises: ConfigError for a number out of range, no parameters, or what is no parameter.
    Source: Sutskever et al. 2013.
    Differs: ``decoupled=True`` is not in PyTorch's SGD. Keras has the learning rate inside of the average,
    b <- momentum b - lr g and w <- w + b, which is the same as long as the rate is; its ``weight_decay`` is
    always decoupled, and of all parameters: ``decoupled=True, decay_vectors=True`` here.

    >>> from minires import Tensor
    >>> w = Tensor([1.0], requires_grad=True)
    >>> optimizer = SGD([w], lr=0.25, momentum=0.9)
    >>> (w * w).sum().backward()
    >>> optimizer.step()
    >>> w.numpy()
    array([0.5], dtype=float32)
    """

    slots = ("momentum",)
    plain = staticmethod(_sgd)
    fused = staticmethod(_sgd_numba)
    source = _CUDA
    kernel = "sgd"

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        decay_vectors: bool = False,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(
            parameters,
            lr,
            weight_decay=weight_decay,
            decoupled=decoupled,
            decay_vectors=decay_vectors,
            clip_norm=clip_norm,
        )
        self.momentum = number("momentum", momentum, least=0, below=1)
        self.nesterov = truth("nesterov", nesterov)
        if nesterov and momentum == 0:
            raise ConfigError("nesterov=True needs a momentum above 0")

    def numbers(self, step: int) -> tuple[float, ...]:
        return self.lr, self.momentum, *((1.0, self.momentum) if self.nesterov else (0.0, 1.0))
