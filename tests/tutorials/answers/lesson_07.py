"""The answers to the exercises of lesson 07: a right one, and wrong ones that a reader might well give."""


# %% exercise 1, right
def your_normalize(pictures, mean, std):
    return ((pictures / 255 - np.array(mean)) / np.array(std)).astype(np.float32)


# %% exercise 1, wrong: mean and deviation are those of pixels from 0 to 1
def your_normalize(pictures, mean, std):
    return ((pictures - np.array(mean)) / np.array(std)).astype(np.float32)


# %% exercise 1, wrong: scales the pictures by their own numbers
def your_normalize(pictures, mean, std):
    y = pictures.astype(np.float32) / 255
    return (y - y.mean(axis=(0, 1, 2))) / y.std(axis=(0, 1, 2))


# %% exercise 1, wrong: leaves float64 behind
def your_normalize(pictures, mean, std):
    return (pictures / 255 - np.array(mean)) / np.array(std)


# %% exercise 1, wrong: works in the pictures themselves
def your_normalize(pictures, mean, std):
    y = ((pictures / 255 - np.array(mean)) / np.array(std)).astype(np.float32)
    pictures[...] = 0
    return y


# %% exercise 2, right
def your_sides(size):
    conv1 = (size + 6 - 7) // 2 + 1
    pool1 = (conv1 - 3) // 2 + 1
    stage3 = (pool1 - 1) // 2 + 1
    stage4 = (stage3 - 1) // 2 + 1
    return [conv1, pool1, pool1, stage3, stage4, (stage4 - 1) // 2 + 1]


# %% exercise 2, wrong: pads the max pool
def your_sides(size):
    conv1 = (size + 6 - 7) // 2 + 1
    pool1 = (conv1 + 2 - 3) // 2 + 1
    stage3 = (pool1 - 1) // 2 + 1
    stage4 = (stage3 - 1) // 2 + 1
    return [conv1, pool1, pool1, stage3, stage4, (stage4 - 1) // 2 + 1]


# %% exercise 2, wrong: rounds down where a window begins on the last place
def your_sides(size):
    conv1 = (size + 6 - 7) // 2 + 1
    pool1 = (conv1 - 3) // 2 + 1
    return [conv1, pool1, pool1, pool1 // 2, pool1 // 4, pool1 // 8]


# %% exercise 3, right
def your_share(momentum, steps):
    return momentum**steps


your_steps = 459


# %% exercise 3, wrong: takes the same amount away at each step
def your_share(momentum, steps):
    return max(0, 1 - (1 - momentum) * steps)


your_steps = 100


# %% exercise 3, wrong: what has been replaced, not what is left
def your_share(momentum, steps):
    return 1 - momentum**steps


your_steps = 459


# %% exercise 3, wrong: one step too few
def your_share(momentum, steps):
    return momentum**steps


your_steps = 458
