"""Training: optimisers, schedules, checkpoints, and the Trainer that runs a recipe."""

from minires.train.ema import EMA
from minires.train.optim import SGD, Adam, AdamW
from minires.train.schedules import Schedule

__all__ = ["EMA", "SGD", "Adam", "AdamW", "Schedule"]
