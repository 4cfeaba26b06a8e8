"""Our weights as a ``.weights.h5`` file, which Keras 3 loads into its own model.

    model.load_weights("signs.weights.h5")

Keras finds the layers of such a file by their number among the layers of their kind, in the order in which
the model lists them; names play no part. That order is known for the applications
(:mod:`minires.weights.keras.applications`): for keras.applications, and for the exercise's model as the
notebooks write it, ``Add()([X, X_shortcut])``.

In an attribute of our own the file says what Keras's files of weights do not: model, classes, size and
scaling of the pictures. :mod:`minires.weights.keras.pretrained` reads it, so that export and import meet.
"""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from pathlib import Path

import h5py
import numpy as np

from minires import models
from minires.errors import CheckpointError, ConfigError
from minires.files import atomic_write
from minires.train import Trained
from minires.weights.keras import names
from minires.weights.keras.applications import APPLICATIONS, Application
from minires.weights.keras.files import NOTES, group_of, numbered_name
from minires.weights.keras.graph import in_order, matched
from minires.weights.keras.ours import graph_of

ENDING = ".weights.h5"  # Keras loads no other
GROUPS = {"convolution": "Conv2D", "batch norm": "BatchNormalization", "dense": "Dense"}
LEAVES = (
    "weight",
    "bias",
    "gamma",
    "beta",
    "running_mean",
    "running_var",
)  # in the order of Keras's variables
LONGEST = 60_000  # bytes of an attribute; HDF5 takes 64 kB


def export_keras(trained: Trained, path: str | os.PathLike[str]) -> str:
    """Write all parameters and running statistics; returns which model of Keras's it is, and what
    pictures it wants.

    The first kernel takes blue first where Keras's application does, if pictures are scaled as it does it;
    else red first, as ours.

    Raises: ConfigError if the path does not end in ``.weights.h5``, or Keras has no such network, or not with
    these options (it names the layer); MiniresError if the file cannot be written.
    """
    if not Path(path).name.endswith(ENDING):
        raise ConfigError(f"{os.fspath(path)}: Keras reads weights from files whose names end in {ENDING}")
    kinds = {application.model: kind for kind, application in APPLICATIONS.items()}
    if trained.name not in kinds:
        raise ConfigError(
            f"Keras has no network that is our {trained.name}; it has {', '.join(kinds)}. "
            "--onnx writes any model"
        )
    kind = kinds[trained.name]
    application = APPLICATIONS[kind]
    scores = graph_of(trained.model, trained.size)
    _check(trained, application, kind)
    blue_first = application.blue_first and _close(trained, application)
    order = (2, 1, 0) if blue_first else (0, 1, 2)

    state, content = trained.model.state_dict(), io.BytesIO()
    with h5py.File(content, "w") as file:
        file.create_group("vars").attrs["name"] = trained.name
        counts: Counter[str] = Counter()
        for node in in_order(scores, shortcut_first=application.shortcut_first):
            if not node.has_weights:
                continue
            group = group_of(GROUPS[node.kind])
            variables = file.create_group(f"layers/{numbered_name(group, counts[group])}/vars")
            counts[group] += 1
            is_last = node is scores
            variables.attrs["name"] = (
                _last(kind) if is_last else names.CONVENTIONS[application.convention](node.layer)
            )
            arrays = [state[name] for leaf in LEAVES if (name := f"{node.layer}.{leaf}") in state]
            if node.kind == "convolution" and sum(counts.values()) == 1:
                arrays[0] = arrays[0][:, :, list(order)]
            for number, array in enumerate(arrays):
                variables[str(number)] = np.ascontiguousarray(array)
        notes = json.dumps({
            "model": trained.name, "options": trained.variant, "classes": list(trained.classes),
            "size": trained.size[0], "channels": order,
            "normalize": {"mean": trained.normalize.mean, "std": trained.normalize.std},
        })  # fmt: skip
        if len(notes) <= LONGEST:
            file.attrs[NOTES] = notes
    with atomic_write(path) as out:
        out.write(content.getvalue())
    colours = "blue, green, red" if blue_first else "red, green, blue"
    of_pixels = f"(pixel / 255 - {_three(trained.normalize.mean)}) / {_three(trained.normalize.std)}"
    return f"its {kind}, for pictures scaled as {of_pixels}, with the channels {colours}"


def _check(trained: Trained, application: Application, kind: str) -> None:
    """Raise ConfigError unless the model is the network that Keras has."""
    entry = models.entry(trained.name)
    options = {**entry.fitted(trained.size[0]), **application.options}
    keeps_zeros = {"initializer": "zeros"} if "initializer" in entry.options else {}
    theirs = models.build(trained.name, classes=len(trained.classes), **{**keeps_zeros, **options})
    try:
        matched(graph_of(trained.model, trained.size), graph_of(theirs, trained.size))
    except CheckpointError as error:
        text = str(error).replace("ours ", "Keras's ").replace("our model", "Keras's model")
        raise ConfigError(
            f"Keras's {kind} is another network than this {trained.name}: {text}. --onnx writes any model"
        ) from error


def _close(trained: Trained, application: Application) -> bool:
    """Whether pictures are scaled as the application does it."""
    ours, theirs = trained.normalize, application.normalize
    return bool(np.allclose([ours.mean, ours.std], [theirs.mean, theirs.std], rtol=1e-5, atol=0))


def _last(kind: str) -> str:
    """What the last dense layer is called."""
    return {"ResNet50-signs": "fc6", "ResNet50-fc1000": "fc1000"}.get(kind, "predictions")


def _three(numbers: tuple[float, ...]) -> str:
    texts = [f"{number:.5g}" for number in numbers]
    return texts[0] if len(set(texts)) == 1 else f"({', '.join(texts)})"
