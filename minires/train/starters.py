"""Trained models to start from that are part of the package, by name: no network and no download is needed.

    starter    a ResNet-20 one and a half times as wide as the paper's, trained on the 50,000 training
               pictures of CIFAR-10 (32x32; airplane, automobile, bird, cat, deer, dog, frog, horse, ship,
               truck); 605,026 parameters in 0.6 MB. Made by ``python benchmarks/starter.py``.

Its first layers know edges, colours, textures and parts of things, which a few own pictures cannot teach.
"""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

STARTER = "starter"
_FILES = {STARTER: "starter.safetensors"}


def names() -> tuple[str, ...]:
    """The names of the starters.

    >>> names()
    ('starter',)
    """
    return tuple(_FILES)


def path_of(name_or_path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The file of a starter, if it is the name of one; else the path itself. A file or folder that has the
    name of a starter is given as ``./starter``.

    >>> path_of("runs/mine")
    'runs/mine'
    >>> Path(path_of("starter")).name
    'starter.safetensors'
    """
    if isinstance(name_or_path, str) and name_or_path in _FILES:
        return Path(str(resources.files("minires.train") / _FILES[name_or_path]))
    return name_or_path
