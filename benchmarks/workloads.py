"""What compare.py times: a model, and the weights and pictures that every peer gets."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minires import models


@dataclass(frozen=True)
class Job:
    """A workload: square pictures of ``size``, as many as ``batch``, through a registered model."""

    model: str = "resnet50_signs"
    batch: int = 32
    size: int = 64
    threads: int = 2

    @property
    def name(self) -> str:
        """What its result is called; two threads are not mentioned."""
        threads = {1: "_1thread", 2: ""}.get(self.threads, f"_{self.threads}threads")
        return f"{self.model}_b{self.batch}{threads}"

    def build(self, **options: Any) -> Any:
        """The model; residual branches start at a quarter, as in the recipes, where the model can do so."""
        entry = models.entry(self.model)
        if "last_gamma" in entry.options:
            options["last_gamma"] = 0.25
        return models.build(self.model, **entry.fitted(self.size), **options)


WORKLOADS = (
    Job(),
    Job(threads=1),
    Job(batch=1),
    Job(batch=8),
    Job(batch=128),
    Job("resnet50", 1, 224),
    Job("resnet50", 8, 224),
    Job("resnet20_cifar", 1, 32),
    Job("resnet20_cifar", 128, 32),
    Job("densenet_bc100_k12_cifar", 64, 32),
    Job("se_resnext50_32x4d", 8, 224),
    Job("vgg16", 4, 224),
)


def prepare(folder: Path, job: Job) -> None:
    """Write the weights and the inputs that every peer gets; running statistics are not those of a start."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((job.batch, job.size, job.size, 3)).astype(np.float32)
    labels = rng.integers(0, models.entry(job.model).classes, job.batch)
    state = job.build(seed=0).state_dict()
    for name, array in state.items():
        if name.endswith("running_mean"):
            array[...] = rng.normal(0, 0.1, array.shape)
        elif name.endswith("running_var"):
            array[...] = rng.uniform(0.5, 1.5, array.shape)
    np.savez(folder / "inputs.npz", x=x, labels=labels)
    np.savez(folder / "weights.npz", **state)
    (folder / "job.json").write_text(json.dumps(asdict(job)))
