"""Modules, layers, initialisers and residual blocks."""

from minires.nn.blocks import ResidualBlock, convolutional_block, identity_block
from minires.nn.layers import (
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    ReLU,
    Sequential,
)
from minires.nn.module import Module, Parameter
from minires.nn.squeeze_excitation import SqueezeExcitation

__all__ = [
    "AvgPool2d",
    "BatchNorm2d",
    "Conv2d",
    "Dropout",
    "Flatten",
    "GlobalAvgPool2d",
    "Linear",
    "LocalResponseNorm",
    "MaxPool2d",
    "Module",
    "Parameter",
    "ReLU",
    "ResidualBlock",
    "Sequential",
    "SqueezeExcitation",
    "convolutional_block",
    "identity_block",
]
