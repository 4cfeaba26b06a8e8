"""Training: schedules, recipes, checkpoints, and the Trainer that runs it all."""

from minires.interrupt import Interrupted
from minires.train import recipes, schedules
from minires.train.config import Config
from minires.train.ema import EMA
from minires.train.evaluation import Evaluation, evaluate, predict, recalibrate
from minires.train.finetune import freeze, start_from
from minires.train.model_file import Trained, load_model, save_model
from minires.train.multicrop import evaluate_crops
from minires.train.observers import Observer
from minires.train.schedules import Schedule
from minires.train.tensorboard import TensorBoard
from minires.train.trainer import Trainer
from minires.train.watch_file import LayerFigures, layer_figures

__all__ = [
    "EMA", "Config", "Evaluation", "Interrupted", "LayerFigures", "Observer", "Schedule", "TensorBoard",
    "Trained", "Trainer", "evaluate", "evaluate_crops", "freeze", "layer_figures", "load_model", "predict",
    "recalibrate", "recipes", "save_model", "schedules", "start_from",
]  # fmt: skip
