"""The answers to the exercises of lesson 09: a right one, and wrong ones that a reader might well give."""


# %% exercise 1, right
def your_unit(x, norm1, conv1, norm2, conv2):
    return x + conv2(norm2(conv1(norm1(x))))


# %% exercise 1, wrong: the shortcut begins after the activation
def your_unit(x, norm1, conv1, norm2, conv2):
    active = norm1(x)
    return active + conv2(norm2(conv1(active)))


# %% exercise 1, wrong: the order of the layers of V1
def your_unit(x, norm1, conv1, norm2, conv2):
    return x + norm2(conv2(norm1(conv1(x))))


# %% exercise 2, right
your_scale = 0.5 ** (1 / 54)

# %% exercise 2, wrong: half at every unit
your_scale = 0.5

# %% exercise 2, wrong: takes away the 54th part of a half each time
your_scale = 1 - 0.5 / 54

# %% exercise 3, right
your_order = "relu_before_add"

# %% exercise 3, wrong: the ReLU is after the addition there, the branch may be negative
your_order = "original"

# %% exercise 3, wrong: has its ReLU at the start of the branch
your_order = "relu_only"
