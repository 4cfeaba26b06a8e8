"""How far minires and PyTorch are apart: resnet50_signs, logits and the gradient of every parameter.

    python benchmarks/agreement.py

Relative errors (Euclidean norms) of a training step with the same weights and pictures, in float64 and in
float32, at the weights where the recipes start (``last_gamma=0.25``) and where the blog's model does (1.0).
For float32 the distance of each from the truth (float64) stands beside their distance from each other.
Biases that feed a batch norm have the true gradient zero: for them the largest absolute value is given, as
a share of the largest gradient of all. The figures go to ``benchmarks/results/agreement.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe
from torch_peer import twin

import minires
from minires.models import build
from minires.ops.cross_entropy import cross_entropy
from minires.tensor import Tensor

BATCH = 32
Result = tuple[np.ndarray[Any, Any], dict[str, np.ndarray[Any, Any]]]


def both(
    dtype: type, last_gamma: float, *, batch: int = BATCH, training: bool = True
) -> tuple[Result, Result]:
    """Logits and gradients of one batch, ours and PyTorch's; outside training with fitting statistics."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, 64, 64, 3)).astype(np.float32)
    labels = rng.integers(0, 6, batch)
    model = build("resnet50_signs", seed=0, last_gamma=last_gamma, bn_momentum=0.1)
    if not training:
        with minires.no_grad():
            model(Tensor(x))
    x = x.astype(dtype)
    model.astype(dtype).train(training)
    peer = twin(model).to(getattr(torch, np.dtype(dtype).name)).load_ours(model.state_dict())
    peer.train(training)
    logits = model(Tensor(x))
    cross_entropy(logits, labels).backward()
    theirs = peer(torch.tensor(x).permute(0, 3, 1, 2))
    torch.nn.functional.cross_entropy(theirs, torch.tensor(labels)).backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    return (logits.data, ours), (theirs.detach().numpy(), peer.gradients())


def distance(a: Result, b: Result, *, training: bool = True) -> dict[str, Any]:
    """How far ``a`` is from ``b``."""
    largest = max(np.abs(gradient).max() for gradient in b[1].values())
    errors: dict[str, float] = {}
    zero = 0.0
    for name, gradient in b[1].items():
        if training and name.endswith(".bias") and not name.startswith("fc"):
            zero = max(zero, float(np.abs(a[1][name]).max() / largest))
            continue
        errors[name] = float(np.linalg.norm(a[1][name] - gradient) / np.linalg.norm(gradient))
    where = max(errors, key=lambda name: errors[name])
    logits = float(np.linalg.norm(a[0] - b[0]) / np.linalg.norm(b[0]))
    return {
        "logits": logits, "median_gradient": float(np.median(list(errors.values()))),
        "worst_gradient": errors[where], "of": where, "zero_gradients": zero,
    }  # fmt: skip


def main() -> None:
    report: dict[str, Any] = {
        "what": f"resnet50_signs against PyTorch, one training step, batch {BATCH}",
        "machine": describe(),
    }
    for last_gamma in (0.25, 1.0):
        truth, torch64 = both(np.float64, last_gamma)
        ours, theirs = both(np.float32, last_gamma)
        report[f"last_gamma {last_gamma}"] = {
            "float64: minires against torch": distance(truth, torch64),
            "float32: minires against torch": distance(ours, theirs),
            "minires float32 against float64": distance(ours, truth),
            "torch float32 against float64": distance(theirs, torch64),
        }
    text = json.dumps(report, indent=1)
    print(text)
    (Path(__file__).parent / "results" / "agreement.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
