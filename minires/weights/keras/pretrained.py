"""Weights that others trained with Keras, in our models.

A file that has a configuration states the network, and our model must be that one: layer by layer, option by
option (:mod:`minires.weights.keras.graph`). Names do not matter then. Without a configuration layers are
found by their names, or, where they have none, by their order; what such a file does not state is assumed,
and said.

Ours always see red first. Where Keras's see blue first (:mod:`minires.weights.keras.applications`), the first
kernel's input channels are turned round instead, which gives the same outputs.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from minires import models
from minires.data import Normalize
from minires.errors import CheckpointError, ConfigError, MiniresError
from minires.models import Entry
from minires.nn.layers import Conv2d
from minires.nn.module import Module
from minires.train import Trained, save_model
from minires.weights.classes import COMMAS, distinct, said_twice, several
from minires.weights.keras import files, names
from minires.weights.keras.applications import APPLICATIONS, Application
from minires.weights.keras.config import LARGEST, Network
from minires.weights.keras.files import Arrays
from minires.weights.keras.fitting import (
    SIDES,
    File,
    by_graph,
    by_names_or_order,
    normalization,
    norms,
    unlike_named,
)
from minires.weights.keras.graph import layers_of
from minires.weights.keras.scaling import normalize_of
from minires.weights.report import Report

CHOICES = {"stride_on": ("1x1", "3x3"), "bias": (False, True)}  # options that a file decides
OPTIONS = ("size", "initializer", "last_gamma", "dropout", "bn_momentum")  # that do not make another network
_KINDS = {application.model: kind for kind, application in APPLICATIONS.items()}


def load(model: Module, path: str | os.PathLike[str], *, head: bool = True) -> Report:
    """Set the weights of ``model`` from a file of Keras's, whatever its name; without ``head`` all but the
    last dense layer.

    Raises: CheckpointError as :func:`minires.weights.load_pretrained`.
    """
    file, notes = File.read(path), []
    try:
        if found := file.network(SIDES[0]):
            state = by_graph(file.arrays, found, model, head=head)
            notes = list(found.notes)
            if found.scaling:
                notes.append("the file scales pictures itself; this model takes them scaled")
        else:
            convention = names.best(file.arrays, model)
            state, notes = by_names_or_order(file, model, convention, head=head)
            notes = [*notes, *unlike_named(model, convention)]
    except CheckpointError as error:
        raise _of(file, error) from error
    left_out = [name for name in names.shapes_of(model) if name not in state]
    loaded = list(state.values())
    model.load_state_dict({**{name: model.state_dict()[name] for name in left_out}, **state})
    return Report(
        file.path, "Keras", len(loaded), sum(array.size for array in loaded), tuple(left_out), tuple(notes)
    )


def import_model(
    src: str | os.PathLike[str],
    name: str,
    out: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    variant: Mapping[str, Any] | None = None,
) -> Report:
    """Write the model ``name`` with the weights of a file of Keras's as our own ``model.safetensors``.

    What the file states is an option of the model, in its place ``variant`` is. By default ``classes`` are
    "0", "1", ..., as many as the file's last layer has.

    Raises: ConfigError if Keras has no such network; else as :func:`minires.weights.import_weights`.
    """
    if name not in _KINDS:
        raise ConfigError(f"Keras has no network that is our {name}; it has {', '.join(_KINDS)}")
    file = File.read(src)
    wish = _Wish(
        file, name, _KINDS[name], dict(variant or {}), list(classes) if classes is not None else None
    )
    try:
        fit = wish.by_config() or wish.by_notes() or wish.by_names()
    except CheckpointError as error:
        raise _of(file, error, wish.advice()) from error
    fit.model.load_state_dict(fit.state)
    _take_red_first(fit.model, fit.channels)
    trained = Trained(
        fit.model, name, fit.options, tuple(fit.classes), fit.normalize, (fit.side, fit.side), "imagenet"
    )
    save_model(out, trained)
    numbers = sum(array.size for array in fit.state.values())
    return Report(
        file.path, f"Keras's {_KINDS[name]}", len(fit.state), numbers,
        notes=(*fit.notes, *said_twice(classes or ())),
        classes=tuple(fit.classes),
    )  # fmt: skip


# -------------------------------------------------------------------------------------------- in detail


@dataclass
class _Fit:
    """A model, and the state that a file has for it."""

    model: Module
    options: dict[str, Any]
    state: Arrays
    classes: list[str]
    normalize: Normalize
    side: int
    channels: tuple[int, ...] = (0, 1, 2)  # of the picture, as the first kernel takes them
    notes: list[str] = field(default_factory=list)


@dataclass
class _Wish:
    """Our model ``name``, which is the application ``kind`` of Keras, is to be made from ``file``."""

    file: File
    name: str
    kind: str
    variant: dict[str, Any]
    classes: list[str] | None

    @property
    def application(self) -> Application:
        return APPLICATIONS[self.kind]

    @property
    def entry(self) -> Entry:
        return models.entry(self.name)

    @property
    def side(self) -> int:
        side: int = self.variant.get("size", self.entry.size)
        return side

    def by_config(self, *, advise: bool = True) -> _Fit | None:
        """By what the configuration states."""
        found = self.file.network(self.side)
        if found is None:
            return None
        side, wide = found.size
        if side != wide:
            raise CheckpointError(f"it takes pictures {side} high and {wide} wide; ours are square")
        if self.variant.get("size", side) != side:
            raise CheckpointError(
                f"it takes pictures of {side}x{side}, and size={self.variant['size']} is asked for"
            )
        if found.scores.kind != "dense":
            raise CheckpointError(f"it ends in {found.scores}, and not in a dense layer of as many classes")
        classes = self.named(found.scores.options["channels"])
        options = {**self.application.options, **self.entry.fitted(side), **self.variant}
        options |= self.stated(found, options, len(classes))
        model, state = self.chosen(found, options, len(classes))
        normalize, channels, notes = self.application.normalize, self.channels(), list(found.notes)
        if found.scaling:
            normalize, channels, note = normalize_of(found.scaling)
            notes.append(note)
        else:
            notes.append(f"pictures are scaled as for Keras's {self.kind}: the file does not say")
        convention = names.recognised(self.file.arrays)
        if advise and convention not in (None, self.application.convention):
            notes.append(self.advice())
        if len({node.keeps for node in layers_of(found.scores) if node.keeps is not None}) > 1:
            notes.append(
                "its batch norms keep different shares of their statistics; ours keep one, for training"
            )
        return _Fit(
            model, options, state, classes, normalize, side, channels, [note for note in notes if note]
        )

    def by_notes(self) -> _Fit | None:
        """By what we wrote into it ourselves."""
        notes = self.file.notes
        if notes is None:
            return None
        try:
            name, classes, side = str(notes["model"]), list(map(str, notes["classes"])), int(notes["size"])
            normalize, options = Normalize(**notes["normalize"]), dict(notes["options"])
            if not 1 <= side <= LARGEST or options.get("size", side) != side:
                raise ValueError(f"pictures of {side}x{side}")
            channels = tuple(map(int, notes["channels"]))
            if sorted(channels) != [0, 1, 2]:
                raise ValueError(f"the channels {channels}")
        except (KeyError, TypeError, ValueError, MiniresError) as error:
            raise CheckpointError(f"its attribute {files.NOTES} is damaged: {error!r:.200}") from error
        if name != self.name:
            raise CheckpointError(f"it was written from our {name}: --model {name}")
        # The network is the application's, as export has seen to; more is not believed.
        options = {key: value for key, value in options.items() if key in OPTIONS}
        options = {**self.application.options, **options, **self.variant}
        classes = self.named(len(classes), classes)
        model = models.build(name, classes=len(classes), **{**_zeros(self.entry), **options})
        state = names.to_state(self.file.arrays, model, convention=self.application.convention)
        return _Fit(model, options, state, classes, normalize, side, channels)

    def by_names(self) -> _Fit:
        """By names or order; the options are those of the application."""
        arrays = self.file.arrays
        convention = names.recognised(arrays)
        if convention not in (None, self.application.convention):
            raise CheckpointError(f"its layers have not the names of Keras's {self.kind}")
        if self.file.classes is None:
            raise CheckpointError("it has no dense layer, so it gives no classes")
        classes, side = self.named(self.file.classes), self.side
        options = {**self.application.options, **self.variant}
        model = models.build(self.name, classes=len(classes), **{**_zeros(self.entry), **options})
        state, notes = by_names_or_order(self.file, model, self.application.convention, side=side)
        epsilon = next((part.eps for part in norms(model)), None)
        norm = f"batch norm's epsilon ({epsilon:g}), " if epsilon is not None else ""
        normalize, channels, how = self.application.normalize, self.channels(), " and their scaling"
        if (scaling := normalization(arrays)) is not None:
            normalize, channels, note = normalize_of(scaling)
            how = f"; {note}"
        notes.append(
            f"assumed as in Keras's {self.kind}, as no options are read from this file: {norm}strides, "
            f"padding, pooling, pictures of {side}x{side}{how}"
        )
        return _Fit(model, options, state, classes, normalize, side, channels, notes)

    def channels(self) -> tuple[int, ...]:
        return (2, 1, 0) if self.application.blue_first else (0, 1, 2)

    def named(self, count: int, known: list[str] | None = None) -> list[str]:
        """The names of the classes: those given, those in the file, or numbers."""
        several(count, self.file.path)
        if self.classes is None:
            return known or [str(number) for number in range(count)]
        if len(self.classes) != count:
            raise CheckpointError(
                f"its last layer gives {count} classes, and {len(self.classes)} are asked for. {COMMAS}"
            )
        return list(distinct(self.classes, "classes"))

    def stated(self, found: Network, options: dict[str, Any], classes: int) -> dict[str, Any]:
        """The options of batch norm with which our model has what the file states."""
        norm = next(
            norms(models.build(self.name, classes=classes, **{**_zeros(self.entry), **options})), None
        )
        there = [node for node in layers_of(found.scores) if node.kind == "batch norm"]
        epsilons = {float(node.options["epsilon"]) for node in there}
        keeps = {node.keeps for node in there if node.keeps is not None}
        result: dict[str, Any] = {}
        if norm is None:
            return result
        if len(epsilons) == 1 and "bn_eps" not in self.variant and epsilons != {norm.eps}:
            result["bn_eps"] = epsilons.pop()
        if len(keeps) == 1 and "bn_momentum" not in self.variant:
            kept = keeps.pop()
            momentum = kept if norm.convention == "keras" else float(f"{1 - kept:.12g}")
            if momentum != norm.momentum:
                result["bn_momentum"] = momentum
        return result

    def chosen(self, found: Network, options: dict[str, Any], classes: int) -> tuple[Module, Arrays]:
        """The model whose layers are the file's, of those that the options of CHOICES make.

        ``options`` get what was chosen. Raises: CheckpointError as with the options that were given.
        """
        free = [name for name in CHOICES if name in self.entry.options and name not in self.variant]
        failed: CheckpointError | None = None
        for values in [None, *itertools.product(*(CHOICES[name] for name in free))]:
            tried = dict(options) if values is None else {**options, **dict(zip(free, values, strict=True))}
            model = models.build(self.name, classes=classes, **{**_zeros(self.entry), **tried})
            try:
                state = by_graph(self.file.arrays, found, model)
            except CheckpointError as error:
                failed = failed or error
                continue
            options.update(tried)
            return model, state
        assert failed is not None
        raise failed

    def advice(self) -> str:
        """Which of our models the file is, where it is another than this one."""
        fitting = list(_candidates(self.file))
        if self.file.network(self.side):
            fitting = [name for name in fitting if name != self.name and self.could_be(name)]
        elif self.name in fitting:
            return ""
        ways = " or ".join(f"--model {name}" for name in fitting)
        return f"its layers are those of {ways}" if fitting else ""

    def could_be(self, name: str) -> bool:
        """Whether the configuration is that of our model ``name``."""
        try:
            found = replace(self, name=name, kind=_KINDS[name], variant={}, classes=None).by_config(
                advise=False
            )
        except MiniresError:
            return False
        return found is not None


def _candidates(file: File) -> Iterator[str]:
    """Our models that have arrays of the shapes of the file's, but for the last layer, and such names."""
    convention = names.recognised(file.arrays)
    there = Counter(a.shape for name, a in file.arrays.items() if not names.dense_layer(name, file.arrays))
    for application in APPLICATIONS.values():
        if convention in (None, application.convention):
            entry = models.entry(application.model)
            small = {"hidden": 1} if "hidden" in entry.options else {}
            model = models.build(application.model, **{**_zeros(entry), **small, **application.options})
            shapes = names.shapes_of(model)
            dense = {
                n.rpartition(".")[0]
                for n, shape in shapes.items()
                if n.endswith("weight") and len(shape) == 2
            }
            if there == Counter(s for n, s in shapes.items() if n.rpartition(".")[0] not in dense):
                yield application.model


def _zeros(entry: Entry) -> dict[str, Any]:
    """All weights come from the file, so none need to be drawn."""
    return {"initializer": "zeros"} if "initializer" in entry.options else {}


def _take_red_first(model: Module, channels: Sequence[int]) -> None:
    """Let the first kernel take red, green, blue instead of ``channels``."""
    first = next(part for _, part in model.named_modules() if isinstance(part, Conv2d))
    before = first.weight.data.copy()
    first.weight.data[:, :, list(channels)] = before


def _of(file: File, error: CheckpointError, advice: str = "") -> CheckpointError:
    text = str(error)
    text = text if text.startswith(file.path) else f"{file.path}: {text}"
    return CheckpointError(f"{text}; {advice}" if advice else text)
