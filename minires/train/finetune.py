"""Fine-tuning: start from trained weights, with a new last layer where the classes are others, and keep some
layers as they are.

A layer that is frozen gets no gradient, and its batch norms use their running statistics in training too and
leave them alone. Without the second, a "frozen" network still changes with every batch that it sees.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable

from minires.errors import CheckpointError, ConfigError, nearest
from minires.nn.layers import BatchNorm2d, Linear
from minires.nn.module import Module, Parameter
from minires.train.model_file import load_model


def start_from(model: Module, path: str | os.PathLike[str]) -> list[str]:
    """Copy the weights of a trained model (a ``model.safetensors`` or a run folder) into ``model``.

    The last dense layer keeps its new weights where it has another number of classes. Returns the names of
    what was not copied.

    Raises: CheckpointError if the file cannot be read or its model is another one; nothing is changed then.
    ConfigError for what is no path.
    """
    trained = load_model(path)
    state, own = trained.model.state_dict(), model.state_dict()
    heads = [name for name, part in model.named_modules() if isinstance(part, Linear)][-1:]
    head = {name for name in own if any(name.startswith(f"{layer}.") for layer in heads)}
    new = sorted(name for name in head if name in state and state[name].shape != own[name].shape)
    if new:  # a head is new as a whole
        new = sorted(head)
        state |= {name: own[name] for name in head}
    try:
        model.load_state_dict(state)
    except CheckpointError as error:
        raise CheckpointError(f"{path} holds a {trained.name}: {error}") from error
    return new


def freeze(model: Module, parts: Iterable[str]) -> int:
    """Keep parts of a model as they are in training: give no gradient to their parameters, and have their
    batch norms use and keep their running statistics. Returns how many numbers are frozen.

    A part is the path of a module, ``res2a``, or a pattern, ``bn*`` or ``res[23]*``; what is inside a module
    is frozen with it.

    Raises: ConfigError, with the nearest path, if a part names no module with parameters.

    >>> from minires.models import build
    >>> model = build("resnet20_cifar")
    >>> freeze(model, ["conv1", "bn_conv1"])  # 3x3x3x16 and two times 16
    464
    >>> model.conv1.weight.requires_grad, model.fc.weight.requires_grad
    (False, True)
    """
    if isinstance(parts, str) or not isinstance(parts, Iterable):
        raise ConfigError(f"what to freeze is a list of parts, [\"conv1\", \"res2*\"], not {parts!r}")
    modules = dict(model.named_modules())
    chosen: dict[int, Module] = {}
    for part in parts:
        if not isinstance(part, str):
            raise ConfigError(f"a part to freeze is the path of a module as text, not {part!r}")
        matched = [module for path, module in modules.items() if fnmatch.fnmatchcase(path, part)]
        matched = [module for module in matched if next(module.parameters(), None) is not None]
        if not matched:
            raise ConfigError(f"there is no part {part!r} to freeze; {nearest(part, modules)}")
        chosen |= {id(module): module for module in matched}
    parameters: dict[int, Parameter] = {}
    for module in chosen.values():
        for inner in (module, *(one for _, one in module.named_modules())):
            if isinstance(inner, BatchNorm2d):
                inner.frozen = True
        parameters |= {id(parameter): parameter for parameter in module.parameters()}
    for parameter in parameters.values():
        parameter.requires_grad = False
    return sum(parameter.size for parameter in parameters.values())
