"""Modules, layers, initialisers and residual blocks."""

from minires.nn.blocks import ResidualBlock, convolutional_block, identity_block
from minires.nn.containers import ModuleDict, ModuleList
from minires.nn.layers import (
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    CrossEntropyLoss,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Identity,
    LeakyReLU,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    Pad2d,
    ReLU,
    Sequential,
    Sigmoid,
    Softmax,
)
from minires.nn.module import Module, Parameter
from minires.nn.of_operation import layer_of
from minires.nn.restored import modes
from minires.nn.squeeze_excitation import SqueezeExcitation

__all__ = [
    "AvgPool2d",
    "BatchNorm2d",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "Flatten",
    "GlobalAvgPool2d",
    "Identity",
    "LeakyReLU",
    "Linear",
    "LocalResponseNorm",
    "MaxPool2d",
    "Module",
    "ModuleDict",
    "ModuleList",
    "Pad2d",
    "Parameter",
    "ReLU",
    "ResidualBlock",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "SqueezeExcitation",
    "convolutional_block",
    "identity_block",
    "layer_of",
    "modes",
]
