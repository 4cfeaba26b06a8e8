"""Cases for the fuzzer's own test, in a file that a new process finds by its name."""

import os
import time


def dies(number):
    """Case 3 ends the process without a word, as a fault in compiled code does."""
    if number == 3:
        os._exit(11)
    return "right", ""


def sleeps(number):
    """Case 2 never answers."""
    if number == 2:
        time.sleep(1000)
    return "refused", ""
