"""What the tests of limits have read in a process of its own."""

import os
import time

import numpy as np

from minires.errors import DataError


def numbers(path, times=1):
    print("a library that prints")
    arrays = {
        "bytes": np.frombuffer(open(path, "rb").read(), np.uint8),
        "none": np.zeros((0, 3), np.float32),
        "one": np.array(times * 0.5),
    }
    return arrays, {"n": [times]}


def refused(path):
    raise DataError(f"{path}: not like this")


def looping(path):
    while True:
        time.sleep(0.01)


def crashing(path):
    os.kill(os.getpid(), 11)


def hungry(path):
    return {"zeros": np.ones(2**30, np.uint8)}, None


def larger_than_allowed(path):
    return {"zeros": np.zeros(2**28 + 2**10, np.uint8)}, None


def not_numbers(path):
    return {"text": np.array(["a"])}, None


def mistaken(path):
    return {}[path]
