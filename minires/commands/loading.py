"""What several subcommands share: printing, and loading what the user named."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from minires.errors import ConfigError

if TYPE_CHECKING:
    from minires.train import Trained

FAILED = 1


def variant_of(options: argparse.Namespace) -> dict[str, Any]:
    """The options of the model from ``--variant NAME=VALUE``."""
    from minires.models import option

    return dict(option(text) for text in options.variant or [])


def load_trained(options: argparse.Namespace) -> tuple[Trained, int]:
    """A trained model on its device, and the side of the square pictures it learnt from."""
    from minires import backend

    trained, side = load_square(options.model)
    trained.model.to(backend.choose_device(options.device))
    return trained, side


def load_square(model: str) -> tuple[Trained, int]:
    from minires import train

    trained = train.load_model(model)
    high, wide = trained.size
    if high != wide:
        raise ConfigError(
            f"{model} learnt from pictures {high} high and {wide} wide; the command line prepares "
            "square ones only: use minires.train.predict, evaluate or start_from from Python"
        )
    return trained, high


def data_of_run(model: str) -> str:
    """The data set that a model was trained on, as the configuration beside it says."""
    from minires.train import run_folder

    folder = Path(model) if Path(model).is_dir() else Path(model).parent
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"on which pictures? {folder} has no config.json that says so; use --data NAME or PATH"
        )
    return run_folder.read_json(folder / "config.json")["data"]


def searched() -> list[Path]:
    from minires.data.search_path import roots

    return [root.absolute() for root in roots()]


def speaker(stream: TextIO) -> Callable[[str], None]:
    return lambda line: print(line, file=stream, flush=True)


def print_json(content: dict[str, Any]) -> None:
    print(json.dumps(_finite(content), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: such a figure becomes null."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
