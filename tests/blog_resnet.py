"""The ResNet-50 of the exercise on SIGNS, and of the blogs around it, written in Keras as they write it."""

from __future__ import annotations

STAGES = ((64, "abc"), (128, "abcd"), (256, "abcdef"), (512, "abc"))


def blog_resnet50(keras, *, size, classes, signs):
    """ResNet-50 with the layers res2a_branch2a, ...; that of the SIGNS exercise, or that of old Keras."""
    layers = keras.layers

    def conv_bn(x, name, filters, kernel, stride=1, relu=True):
        conv = layers.Conv2D(filters, kernel, stride, "same" if kernel == 3 else "valid", name=f"res{name}")
        x = layers.BatchNormalization(name=f"bn{name}")(conv(x))
        return layers.ReLU()(x) if relu else x

    inputs = keras.Input((size, size, 3))
    x = layers.Conv2D(64, 7, 2, name="conv1")(layers.ZeroPadding2D(3)(inputs))
    x = layers.ReLU()(layers.BatchNormalization(name="bn_conv1")(x))
    x = layers.MaxPooling2D(3, 2)(x if signs else layers.ZeroPadding2D(1)(x))
    for stage, (width, blocks) in enumerate(STAGES, 2):
        for block in blocks:
            name, stride = f"{stage}{block}_branch", 2 if stage > 2 and block == "a" else 1
            y = conv_bn(x, f"{name}2a", width, 1, stride)
            y = conv_bn(y, f"{name}2b", width, 3)
            y = conv_bn(y, f"{name}2c", 4 * width, 1, relu=False)
            short = conv_bn(x, f"{name}1", 4 * width, 1, stride, relu=False) if block == "a" else x
            x = layers.ReLU()(layers.Add()([y, short]))
    if signs:
        x = layers.Flatten()(layers.AveragePooling2D(2, padding="same")(x))
    else:
        x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(classes, name=f"fc{classes}")(x))
