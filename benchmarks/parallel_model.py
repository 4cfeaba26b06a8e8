"""What a step on several machines should take, on paper: the alpha-beta model of a ring allreduce.

A ring of N machines sums an array in 2(N-1) messages of each machine, one after the other, each of 1/N of the
array; a message of n bytes takes alpha + n / beta, with the latency alpha and the bytes beta of a second:

    seconds = 2(N-1) * (alpha + bytes / N / beta)

Without overlap a step is its arithmetic and then the sum. With overlap the sum goes on behind the backward
pass, which is two thirds of a step's arithmetic; what it takes longer is waited for. Each machine has as many
pictures as one by itself, so efficiency is the arithmetic's share of the step.

That is the best that can be hoped for: one sum of all gradients, complete from the first moment of the
backward pass on, no other traffic, machines that are equally fast.

Source: Thakur et al. 2005, Int. J. High Perform. Comput. Appl. 19(1) (the cost of a message); Patarasuk and
Yuan 2009, J. Parallel Distrib. Comput. 69(2) (the ring).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BACKWARD = 2 / 3  # of the arithmetic of a step
RESNET50 = 102e6  # bytes of gradients in float32
NODES = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Network:
    """What carries the messages: ``alpha`` seconds for each, and ``beta`` bytes a second."""

    alpha: float
    beta: float


NETWORKS = {
    "25 Gb/s": Network(30e-6, 25e9 / 8),
    "100 Gb/s": Network(10e-6, 100e9 / 8),
    "400 Gb/s": Network(5e-6, 400e9 / 8),
}
# The seconds of a step's arithmetic on one node: its pictures by those of a second.
CASES = {
    "CPU node of 60 pictures/s, 64 a node": 64 / 60,
    "H100 of 2,500 pictures/s, 256 a GPU": 256 / 2500,
    "H100 of 2,500 pictures/s, 64 a GPU": 64 / 2500,
}


def ring(size: float, nodes: int, network: Network) -> float:
    """The seconds in which a ring of ``nodes`` sums an array of ``size`` bytes.

    >>> round(ring(102e6, 64, NETWORKS["25 Gb/s"]), 4)
    0.068
    >>> ring(102e6, 1, NETWORKS["25 Gb/s"])
    0.0
    """
    return 2 * (nodes - 1) * (network.alpha + size / nodes / network.beta)


def waited(step: float, summing: float, *, overlap: bool) -> float:
    """The seconds of a sum that are waited for, beside ``step`` seconds of arithmetic.

    >>> waited(9, 7, overlap=False), waited(9, 7, overlap=True), waited(9, 5, overlap=True)
    (7, 1.0, 0.0)
    """
    return max(0.0, summing - BACKWARD * step) if overlap else summing


def efficiency(step: float, summing: float, *, overlap: bool) -> float:
    """The arithmetic's share of a step.

    >>> efficiency(3, 1, overlap=False), efficiency(3, 1, overlap=True)
    (0.75, 1.0)
    """
    return step / (step + waited(step, summing, overlap=overlap))


def hidden(step: float, summing: float) -> float:
    """The share of a sum that goes on behind the backward pass.

    >>> hidden(3, 1), hidden(3, 4)
    (1.0, 0.5)
    """
    return 1 - waited(step, summing, overlap=True) / summing


def fitted(sizes: Sequence[float], seconds: Sequence[float], nodes: int) -> Network:
    """The network of which a ring of ``nodes`` comes nearest to measured ``seconds`` for arrays of these
    ``sizes`` in bytes: least squares of the relative errors, so that small arrays count as much as large.

    >>> sizes = [4, 1e3, 1e6]
    >>> found = fitted(sizes, [ring(size, 4, Network(2e-6, 5e9)) for size in sizes], 4)
    >>> f"{found.alpha:.1e}, {found.beta:.1e}"
    '2.0e-06, 5.0e+09'
    """
    # seconds = messages * alpha + messages * size / nodes * (1 / beta), each divided by the measured seconds
    messages, weight = 2 * (nodes - 1), 1 / np.asarray(seconds, np.float64)
    rows = np.stack([messages * weight, messages * np.asarray(sizes) / nodes * weight], axis=1)
    scale = rows.max(axis=0)
    alpha, slowness = np.linalg.lstsq(rows / scale, np.ones(len(rows)), rcond=None)[0] / scale
    return Network(float(alpha), float(1 / slowness))


def predictions(nodes: Iterable[int] = NODES) -> list[dict[str, Any]]:
    """ResNet-50 on each of the :data:`CASES` and :data:`NETWORKS`: efficiency without and with overlap.

    >>> predictions([64])[0] == {
    ...     "what": "CPU node of 60 pictures/s, 64 a node", "network": "25 Gb/s", "nodes": 64,
    ...     "sum_seconds": 0.068, "without_overlap": 0.94, "with_overlap": 1.0,
    ... }
    True
    """
    rows = []
    for what, step in CASES.items():
        for name, network in NETWORKS.items():
            for count in nodes:
                summing = ring(RESNET50, count, network)
                rows.append({
                    "what": what, "network": name, "nodes": count, "sum_seconds": round(summing, 4),
                    "without_overlap": round(efficiency(step, summing, overlap=False), 3),
                    "with_overlap": round(efficiency(step, summing, overlap=True), 3),
                })  # fmt: skip
    return rows
