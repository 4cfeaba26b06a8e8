"""The answers to the exercises of lesson 13: a right one, and wrong ones that a reader might well give."""


# %% exercise 1, right
def your_places(block, thread, blocks, threads, n):
    return list(range(block * threads + thread, n, blocks * threads))


# %% exercise 1, wrong: one place for each thread
def your_places(block, thread, blocks, threads, n):
    i = block * threads + thread
    return [i] if i < n else []


# %% exercise 1, wrong: goes on by the threads of one block
def your_places(block, thread, blocks, threads, n):
    return list(range(block * threads + thread, n, threads))


# %% exercise 1, wrong: gives each thread a run of places, so neighbours are far apart
def your_places(block, thread, blocks, threads, n):
    share = -(-n // (blocks * threads))
    first = (block * threads + thread) * share
    return list(range(first, min(first + share, n)))


# %% exercise 2, right
def your_bias_thread(i, x, b, y):
    y[i] = x[i] + b[i % len(b)]


# %% exercise 2, wrong: the number of the pixel, not that of the channel
def your_bias_thread(i, x, b, y):
    y[i] = x[i] + b[i // len(b)]


# %% exercise 2, wrong: as if the channels came first
def your_bias_thread(i, x, b, y):
    y[i] = x[i] + b[i // (len(x) // len(b))]


# %% exercise 2, wrong: adds to what lies there, which nobody has set
def your_bias_thread(i, x, b, y):
    y[i] += x[i] + b[i % len(b)]


# %% exercise 3, right
def your_next_batch(fixed, batch):
    fixed[...] = batch


# %% exercise 3, wrong: only gives the old name to the batch
def your_next_batch(fixed, batch):
    fixed = batch
    return fixed


# %% exercise 3, wrong: changes the batch, not what the step reads
def your_next_batch(fixed, batch):
    batch[...] = fixed


# %% exercise 3, wrong: adds to the batch before
def your_next_batch(fixed, batch):
    fixed += batch
