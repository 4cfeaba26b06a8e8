"""The networks of Keras's that are models of ours, and how they want their pictures.

Keras's applications want pictures in three ways:

    caffe   VGG and ResNet: blue first, 0..255, less the mean of ImageNet
    tf      ResNetV2: red first, from -1 to 1
    torch   DenseNet: red first, 0..1, mean and deviation of ImageNet

Mean and deviation are here those of pixels scaled to 0..1.

Source: keras/src/applications/imagenet_utils.py of Keras 3.15, preprocess_input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minires.data import Normalize
from minires.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Application:
    """Our ``model`` with these ``options``; it wants pictures so scaled, maybe ``blue_first``.

    ``convention`` is that of the layers' names (:mod:`minires.weights.keras.names`), ``shortcut_first``
    whether its additions take the shortcut before the branch, which decides the order of the layers in a
    file.
    """

    model: str
    normalize: Normalize
    convention: str
    blue_first: bool = False
    shortcut_first: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)


_MEANS = Normalize((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255, 1 / 255, 1 / 255))
_CAFFE: dict[str, Any] = {"normalize": _MEANS, "blue_first": True}
_TF: dict[str, Any] = {"normalize": Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))}
_TORCH: dict[str, Any] = {"normalize": Normalize.imagenet()}

APPLICATIONS: Registry[Application] = Registry("application of Keras", {
    **{f"VGG{n}": Application(model=f"vgg{n}", convention="vgg", **_CAFFE) for n in (16, 19)},
    **{
        f"ResNet{n}": Application(model=f"resnet{n}_keras", convention="resnet", **_CAFFE)
        for n in (50, 101, 152)
    },
    **{
        f"ResNet{n}V2": Application(model=f"resnet{n}v2_keras", convention="resnet_v2", **_TF)
        for n in (50, 101, 152)
    },
    **{
        f"DenseNet{n}": Application(
            model=f"densenet{n}", convention="densenet", options={"bn_eps": 1.001e-5}, **_TORCH
        )
        for n in (121, 169, 201)
    },
    # res2a_branch2a, ..., fc1000: keras_applications/resnet50.py as it was last. Its first versions, with the
    # same weights, had no padding before the max pool; no model here has that at 224x224.
    "ResNet50-fc1000": Application(
        model="resnet50", convention="released", shortcut_first=False,
        options={"bias": True, "convention": "keras"}, **_CAFFE,
    ),
    # res2a_branch2a, ..., fc6: the exercise with 64x64 pictures of hands
    "ResNet50-signs": Application(
        model="resnet50_signs", convention="released", shortcut_first=False, normalize=Normalize.none()
    ),
})  # fmt: skip
# What batch norm's epsilon is in the models with such names.
EPSILONS = {"released": 1e-3, "resnet": 1.001e-5, "resnet_v2": 1.001e-5, "densenet": 1.001e-5}


def variant_for(kind: str) -> dict[str, Any]:
    """What ``minires.models.build`` needs to make a Keras application: the model's name and its options.

    ``kind`` is the name of the application in keras.applications, "ResNet50-fc1000" for its ResNet50 of
    Keras 2.2, with layers like res2a_branch2a, or "ResNet50-signs" for the course exercise.

    Raises: ConfigError if the kind is none of these.

    >>> variant_for("DenseNet121")
    {'name': 'densenet121', 'bn_eps': 1.001e-05}
    """
    application = APPLICATIONS.find(kind)
    return {"name": application.model, **application.options}
