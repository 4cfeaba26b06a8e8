"""The ResNet-50 of the exercise on SIGNS, and of the blogs around it, written in Keras as they write it."""

from __future__ import annotations

STAGES = ((64, "abc"), (128, "abcd"), (256, "abcdef"), (512, "abc"))


def blog_resnet50(
    keras, *, size, classes, signs, named=True, shortcut_first=False, made_first=False, softmax=False, **norm
):
    """ResNet-50 with the layers res2a_branch2a, ...; that of the SIGNS exercise, or that of old Keras.

    ``named`` is False for layers without names, as notebooks have them now. ``shortcut_first`` adds the
    branch to the shortcut instead of the other way round; ``made_first`` makes the shortcut's layers before
    the branch's. ``norm``: options of batch norm.
    """
    layers = keras.layers

    def name(text):
        return {"name": text} if named else {}

    def conv_bn(x, place, filters, kernel, stride=1, relu=True):
        conv = layers.Conv2D(
            filters, kernel, stride, "same" if kernel == 3 else "valid", **name(f"res{place}")
        )
        x = layers.BatchNormalization(**name(f"bn{place}"), **norm)(conv(x))
        return layers.Activation("relu")(x) if relu else x

    inputs = keras.Input((size, size, 3))
    x = layers.Conv2D(64, 7, 2, **name("conv1"))(layers.ZeroPadding2D(3)(inputs))
    x = layers.ReLU()(layers.BatchNormalization(**name("bn_conv1"), **norm)(x))
    x = layers.MaxPooling2D(3, 2)(x if signs else layers.ZeroPadding2D(1)(x))
    for stage, (width, blocks) in enumerate(STAGES, 2):
        for block in blocks:
            place, stride = f"{stage}{block}_branch", 2 if stage > 2 and block == "a" else 1

            def shortcut(x, place=place, width=width, stride=stride, block=block):
                return conv_bn(x, f"{place}1", 4 * width, 1, stride, relu=False) if block == "a" else x

            short = shortcut(x) if made_first else None
            y = conv_bn(x, f"{place}2a", width, 1, stride)
            y = conv_bn(y, f"{place}2b", width, 3)
            y = conv_bn(y, f"{place}2c", 4 * width, 1, relu=False)
            short = shortcut(x) if short is None else short
            x = layers.ReLU()(layers.Add()([short, y] if shortcut_first else [y, short]))
    if signs:
        x = layers.Flatten()(layers.AveragePooling2D(2, padding="same")(x))
    else:
        x = layers.GlobalAveragePooling2D()(x)
    last = layers.Dense(classes, activation="softmax" if softmax else None, **name(f"fc{classes}"))
    return keras.Model(inputs, last(x))
