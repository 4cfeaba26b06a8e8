"""The labs that come with minires, a file each: P1 to P16."""

from __future__ import annotations

from minires.lab.lab import Lab
from minires.lab.papers import (
    p01_degradation,
    p02_responses,
    p03_shortcuts,
    p04_orders,
    p05_shortcut_kinds,
    p06_warm_up,
    p07_crowd,
    p08_cardinality,
    p09_densenet,
    p10_squeeze_excitation,
    p11_vgg_depth,
    p12_batch_norm,
    p13_shattered,
    p14_sigmoid,
    p15_weight_decay,
    p16_blog,
)
from minires.registry import Registry

_ALL: tuple[type[Lab], ...] = (
    p01_degradation.Degradation,
    p02_responses.Responses,
    p03_shortcuts.Shortcuts,
    p04_orders.Orders,
    p05_shortcut_kinds.ShortcutKinds,
    p06_warm_up.WarmUp,
    p07_crowd.Crowd,
    p08_cardinality.Cardinality,
    p09_densenet.Dense,
    p10_squeeze_excitation.Gates,
    p11_vgg_depth.VGGDepth,
    p12_batch_norm.BatchNorm,
    p13_shattered.Shattered,
    p14_sigmoid.Sigmoid,
    p15_weight_decay.WeightDecay,
    p16_blog.Blog,
)

LABS: Registry[Lab] = Registry("lab", {one.name: one() for one in _ALL}, listed="`minires lab`")
