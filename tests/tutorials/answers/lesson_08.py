"""The answers to the exercises of lesson 08: a right one, and wrong ones that a reader might well give."""


# %% exercise 1, right
def your_bottleneck_weights(channels, width):
    return channels * width + 9 * width * width + width * channels


# %% exercise 1, wrong: forgets that the 3x3 has nine places
def your_bottleneck_weights(channels, width):
    return channels * width + width * width + width * channels


# %% exercise 1, wrong: takes the width for a quarter of the channels always
def your_bottleneck_weights(channels, width):
    return 2 * channels * (channels // 4) + 9 * (channels // 4) ** 2


# %% exercise 2, right
def your_shortcut_a(x, channels, stride):
    taken = x[:, ::stride, ::stride]
    return np.pad(taken, [(0, 0), (0, 0), (0, 0), (0, channels - x.shape[-1])])


# %% exercise 2, wrong: the zeros before the channels
def your_shortcut_a(x, channels, stride):
    taken = x[:, ::stride, ::stride]
    return np.pad(taken, [(0, 0), (0, 0), (0, 0), (channels - x.shape[-1], 0)])


# %% exercise 2, wrong: half of the zeros on each side
def your_shortcut_a(x, channels, stride):
    taken = x[:, ::stride, ::stride]
    new = channels - x.shape[-1]
    return np.pad(taken, [(0, 0), (0, 0), (0, 0), (new // 2, new - new // 2)])


# %% exercise 2, wrong: rounds an odd height down
def your_shortcut_a(x, channels, stride):
    n, h, w, c = x.shape
    y = np.zeros((n, h // stride, w // stride, channels), x.dtype)
    y[..., :c] = x[:, : h // stride * stride : stride, : w // stride * stride : stride]
    return y


# %% exercise 3, right
your_width = 66

# %% exercise 3, wrong: the paper's width, which leaves some room
your_width = 64

# %% exercise 3, wrong: forgets the second 1x1
your_width = 77
