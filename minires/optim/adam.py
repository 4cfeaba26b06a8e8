"""Adam and AdamW: steps scaled by running averages of the gradient and of its square.

With ``w`` a parameter, ``g`` its gradient, ``lr`` the learning rate and ``t = 1, 2, ...`` the step:

    m <- m + (1 - beta1)(g - m)
    v <- beta2 v + (1 - beta2) g^2
    torch    w <- w - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
    keras    w <- w - lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps)

The first is Algorithm 1 of the paper, and PyTorch's; the second is the faster order at the end of its
section 2, which Keras and TensorFlow have. They differ in eps alone: there it is added before v is corrected,
and so it counts 1 / sqrt(1 - beta2^t) times as much, 32 times in the first step. Each is that of its library
to the last rounding in float64. AdamW is the same with decoupled weight decay.

Sources: Adam, Kingma & Ba arXiv:1412.6980; AdamW, Loshchilov & Hutter arXiv:1711.05101.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array, cuda
from minires.errors import number, one_of, several
from minires.optim.optimizer import CLIPPED, Optimizer


def _adam(
    w: Array, g: Array, m: Array, v: Array,
    rate: float, new1: float, beta2: float, new2: float, correction: float, eps: float,
) -> None:  # fmt: skip
    """The reference: ``rate`` is ``lr / (1 - beta1^t)``, ``correction`` is ``sqrt(1 - beta2^t)``. By Keras's
    convention that is in ``rate``, and ``correction`` is 1."""
    xp = backend.array_module(w)
    m += new1 * (g - m)
    v *= beta2
    v += new2 * (g * g)
    w -= rate * (m / (xp.sqrt(v) / correction + eps))


# The whole update in one pass over the arrays. ``scale`` clips the gradient, ``decay`` is the coupled weight
# decay, ``keep`` the decoupled one.


@backend.kernel(w="out flat (n)", g="flat (n)", m="out flat (n)", v="out flat (n)")
def _adam_numba(
    w: Array, g: Array, m: Array, v: Array, scale: float, decay: float, keep: float,
    rate: float, new1: float, beta2: float, new2: float, correction: float, eps: float,
) -> None:  # fmt: skip
    for i in range(w.size):
        wi = keep * w[i]
        gi = scale * g[i] + decay * wi
        mi = m[i] + new1 * (gi - m[i])
        vi = beta2 * v[i] + new2 * (gi * gi)
        m[i] = mi
        v[i] = vi
        w[i] = wi - rate * (mi / (np.sqrt(vi) / correction + eps))


_CUDA = cuda.Source(
    CLIPPED
    + r"""
extern "C" __global__ void adam(
    const int* chunks /* 3 * blocks */, const unsigned long long* addresses /* 4 * arrays */,
    const T* numbers /* 9 * arrays */, int arrays, const double* norm /* 1 */, T clip
) {
    const int* chunk = chunks + 3 * blockIdx.x;
    const unsigned long long* address = addresses + 4 * chunk[0];
    T *w = (T*)address[0], *g = (T*)address[1], *m = (T*)address[2], *v = (T*)address[3];
    if (!w) return;
    const T* number = numbers + 9 * chunk[0];
    T scale = number[0], decay = number[1], keep = number[2];
    T rate = number[3], new1 = number[4], beta2 = number[5], new2 = number[6];
    T correction = number[7], eps = number[8];
    if (!clipped(norm, clip, &scale)) return;
    for (int i = chunk[1] + threadIdx.x; i < chunk[2]; i += blockDim.x) {
        T wi = keep * w[i];
        T gi = scale * g[i] + decay * wi;
        T mi = m[i] + new1 * (gi - m[i]);
        T vi = beta2 * v[i] + new2 * (gi * gi);
        m[i] = mi;
        v[i] = vi;
        w[i] = wi - rate * (mi / (sqrt(vi) / correction + eps));
    }
}
"""
)


# Where eps is added, see the head of this file, and what it is if left out.
CONVENTIONS = {"torch": {"eps": 1e-8}, "keras": {"eps": 1e-7}}


class Adam(Optimizer):
    """Adam: steps scaled by running averages of the gradient and of its square.

    ``betas`` are what the two averages keep in a step. ``convention`` is "torch" or "keras": where ``eps`` is
    added, and what it is if left out. Options that all have: see :class:`~minires.optim.optimizer.Optimizer`.

    Math: m <- m + (1 - beta1)(g - m);  v <- beta2 v + (1 - beta2) g^2;
    w <- w - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps); by the convention "keras"
    w <- w - lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps).
    Shapes: ``parameters`` is an iterable of parameters or of ``(path, parameter)`` pairs.
    Raises: ConfigError for a number out of range, an unknown convention, or no parameters.
    Source: arXiv:1412.6980.
    Differs: Keras's ``weight_decay`` is always decoupled, and of all parameters: ``decoupled=True,
    decay_vectors=True`` here. Its ``global_clipnorm`` is our ``clip_norm`` without the 1e-6 that PyTorch adds
    to the norm; its ``clipnorm`` clips each parameter by itself, and is not here.

    >>> from minires import Tensor
    >>> w = Tensor([1.0], requires_grad=True)
    >>> optimizer = Adam([w], lr=0.25)
    >>> (w * w).sum().backward()
    >>> optimizer.step()
    >>> w.numpy()
    array([0.75], dtype=float32)
    """

    slots = ("average", "square")
    plain = staticmethod(_adam)
    fused = staticmethod(_adam_numba)
    source = _CUDA
    kernel = "adam"

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float | None = None,
        convention: str = "torch",
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
        self.betas = several("betas", betas, count=2, least=0, below=1)
        one_of("convention", convention, tuple(CONVENTIONS))
        self.convention = convention
        self.eps = number("eps", CONVENTIONS[convention]["eps"] if eps is None else eps, least=0)

    def numbers(self, step: int) -> tuple[float, ...]:
        beta1, beta2 = self.betas
        rate, correction = self.lr / (1.0 - beta1**step), math.sqrt(1.0 - beta2**step)
        if self.convention == "keras":
            rate, correction = rate * correction, 1.0
        return rate, 1.0 - beta1, beta2, 1.0 - beta2, correction, self.eps


def AdamW(
    parameters: Iterable[Any],
    lr: float = 1e-3,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float | None = None,
    convention: str = "torch",
    weight_decay: float = 0.01,
    decay_vectors: bool = False,
    clip_norm: float | None = None,
) -> Adam:
    """Make an Adam whose weight decay is decoupled.

    Shapes: ``parameters`` is an iterable of parameters or of ``(path, parameter)`` pairs.
    Raises: ConfigError as :class:`Adam`.
    Source: arXiv:1711.05101.
    Differs: Keras's ``weight_decay`` is 0.004 if left out, and of all parameters: ``decay_vectors=True``.
    """
    return Adam(
        parameters, lr, betas=betas, eps=eps, convention=convention, weight_decay=weight_decay,
        decoupled=True, decay_vectors=decay_vectors, clip_norm=clip_norm,
    )  # fmt: skip
