"""Fine-tuning: start from trained weights, with a new last layer where the classes are others, and keep some
layers as they are.

A layer that is frozen gets no gradient, and its batch norms use their running statistics in training too and
leave them alone. Without the second, a "frozen" network still changes with every batch that it sees.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Sequence
from typing import Any

from minires.errors import CheckpointError, ConfigError, nearest
from minires.nn.layers import BatchNorm2d, Conv2d, Linear
from minires.nn.module import Module
from minires.train.model_file import load_model
from minires.train.starters import path_of


def start_from(
    model: Module, path: str | os.PathLike[str], *, classes: Sequence[str] | None = None
) -> list[str]:
    """Copy the weights of a trained model (a ``model.safetensors``, a run folder, or the name of a starter,
    see :mod:`minires.train.starters`) into ``model``.

    ``classes`` are the names of the classes that ``model`` is to tell apart, in the order of its outputs. If
    the trained model knows the same ones, its last layer is taken over, its outputs put into this order; if
    it knows others, as many or not, the last layer keeps its new weights. Without ``classes`` only their
    number counts. Returns the names of what was not copied.

    Raises: CheckpointError if the file cannot be read, its run is not finished (what it would be started from
    would change meanwhile), or its model is another one; nothing is changed then.
    ConfigError for what is no path, or if ``classes`` are not as many as the outputs.
    """
    trained = load_model(path_of(path), finished=True)
    state, own = trained.model.state_dict(), model.state_dict()
    layers = list(model.named_modules())
    heads = [name for name, part in layers if isinstance(part, Linear)][-1:]
    heads = heads or [  # a 1x1 convolution, and a mean over all places
        name for name, part in layers
        if isinstance(part, Conv2d) and part.weight.shape[-1] in (len(trained.classes), len(classes or ()))
    ][-1:]  # fmt: skip
    head = [name for name in own if any(name.startswith(f"{layer}.") for layer in heads)]
    new: Sequence[str] = [name for name in head if name in state and state[name].shape != own[name].shape]
    if classes is not None and not new:
        new = _put_in_order(state, head, trained.classes, tuple(classes))
    if new:  # a head is new as a whole
        state |= {name: own[name] for name in head}
    try:
        model.load_state_dict(state)
    except CheckpointError as error:
        raise CheckpointError(f"{path} holds a {trained.name}: {error}") from error
    return sorted(head) if new else []


def _put_in_order(
    state: dict[str, Any], head: Sequence[str], there: Sequence[str], here: Sequence[str]
) -> Sequence[str]:
    """Put the outputs of the last layer into the order of ``here``; what must be new if that cannot be."""
    outputs = {state[name].shape[-1] for name in head if name in state}
    if outputs and outputs != {len(here)}:
        raise ConfigError(f"{len(here)} classes for a last layer with {max(outputs)} outputs")
    if sorted(there) != sorted(here) or len(set(here)) < len(here):
        return head
    order = [there.index(name) for name in here]
    state |= {name: state[name][..., order] for name in head if name in state}
    return []


def all_but(model: Module, names: Iterable[str]) -> list[str]:
    """The parts to :func:`freeze` so that only the parameters with these names go on learning, such as those
    that :func:`start_from` gives: as few parts as that takes.

    >>> from minires.models import build
    >>> all_but(build("resnet20_cifar"), ["fc.weight", "fc.bias"])[:3]
    ['conv1', 'bn_conv1', 'res2a']
    """
    names = set(names)
    learn = {id(parameter) for name, parameter in model.named_parameters() if name in names}
    parts: list[str] = []
    covered: set[int] = set()
    for path, module in model.named_modules():  # blocks before their layers
        own = {id(parameter) for parameter in module.parameters()}
        if not own <= covered and not own & learn:
            parts.append(path)
            covered |= own
    return parts


def freeze(model: Module, parts: Iterable[str]) -> int:
    """Keep parts of a model as they are in training: give no gradient to their parameters, and have their
    batch norms use and keep their running statistics. Returns how many numbers are frozen.

    A part is the path of a module, ``res2a``, or a pattern, ``bn*`` or ``res[23]*``; what is inside a module
    is frozen with it.

    Raises: ConfigError, with the nearest path, if a part names no module with parameters; nothing is changed
    then.

    >>> from minires.models import build
    >>> model = build("resnet20_cifar")
    >>> freeze(model, ["conv1", "bn_conv1"])  # 3x3x3x16 and two times 16
    464
    >>> model.conv1.weight.requires_grad, model.fc.weight.requires_grad
    (False, True)
    """
    if isinstance(parts, str) or not isinstance(parts, Iterable):
        raise ConfigError(f'what to freeze is a list of parts, ["conv1", "res2*"], not {parts!r}')
    modules, parts = dict(model.named_modules()), list(parts)
    chosen: dict[int, Module] = {}
    for part in parts:
        if not isinstance(part, str):
            raise ConfigError(f"a part to freeze is the path of a module as text, not {part!r}")
        matched = [module for path, module in modules.items() if fnmatch.fnmatchcase(path, part)]
        matched = [module for module in matched if next(module.parameters(), None) is not None]
        if not matched:
            raise ConfigError(f"there is no part {part!r} to freeze; {nearest(part, modules)}")
        chosen |= {id(module): module for module in matched}
    parameters = {id(one): one for module in chosen.values() for one in module.parameters()}
    for module in chosen.values():
        for inner in (module, *(one for _, one in module.named_modules())):
            if isinstance(inner, BatchNorm2d):
                inner.frozen = True
    for parameter in parameters.values():
        parameter.requires_grad = False
    return sum(parameter.size for parameter in parameters.values())
