"""Synchronised batch norm: the statistics are those of the batches of all ranks together.

Each rank has M_r of the M values of a channel, with mean_r and var_r of its own. One sum over the ranks, in
float64, gives those of all, forward, and one the two sums of the backward. With d_r = mean_r - shift, for a
shift that all ranks share (the running mean, which is near the mean and keeps the digits of the variance):

    M = sum(M_r)      d = sum(M_r d_r) / M      mean = shift + d
    var = sum(M_r (var_r + d_r^2)) / M - d^2

    dbeta = sum(dbeta_r)      dgamma = sum(dgamma_r)      in dx alone: each rank gives the gradients of gamma
                                                          and beta of its own pictures, as of all parameters

Source: Peng et al. 2017, MegDet, arXiv:1711.07240, section 3.3 (cross-GPU batch normalisation).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array

KIND = "batch norm"


def statistics(
    ranks: Any, mean: Array, var: Array, count: int, running_mean: Array | None
) -> tuple[Array, Array, int]:
    """Mean and biased variance (C,) over all ranks, of those of this one, and how many values that are."""
    own, spread = _on_host(mean), _on_host(var)
    shift = np.zeros(len(own)) if running_mean is None else _on_host(running_mean)
    apart = own - shift
    sums = np.concatenate([count * apart, count * (spread + apart * apart), [count]])
    *both, total = np.split(ranks.allreduce(sums, KIND), [len(own), 2 * len(own)])
    together, squares = (one / total for one in both)
    found = shift + together, np.maximum(squares - together * together, 0)
    return *(_like(one, mean) for one in found), int(total[0])


def sums(ranks: Any, dgamma: Array, dbeta: Array) -> tuple[Array, Array]:
    """dgamma and dbeta (C,) of all ranks."""
    both = np.concatenate([_on_host(dgamma), _on_host(dbeta)])
    of_all = np.split(ranks.allreduce(both, KIND), 2)
    return _like(of_all[0], dgamma), _like(of_all[1], dbeta)


def slope(
    ranks: Any, count: int, x: Array, gamma: Array, mean: Array, inv: Array, dgamma: Array, dbeta: Array
) -> Array:
    """What dx is less by than with constant statistics, as moving one x moves those of all ``count`` = M."""
    products, total = sums(ranks, dgamma, dbeta)
    return gamma * inv * (total + (x - mean) * inv * products) / count


def _on_host(array: Array) -> Any:
    return np.asarray(backend.to_device(array, "cpu"), np.float64)


def _like(found: Any, array: Array) -> Array:
    return backend.to_device(found.astype(array.dtype), backend.device_of(array))
