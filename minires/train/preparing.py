"""The pictures and the network of a run, as its configuration says them: which pictures, and how they come in
batches; built or given, started from trained weights, frozen in parts, on its device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minires import backend, data, models
from minires.errors import ConfigError
from minires.nn.module import Module
from minires.train import checks, finetune, state
from minires.train.config import Config


@dataclass(frozen=True)
class Pictures:
    """The pictures of a run: all, those that it learns from, those that it validates with, if any; and what
    gives them in batches."""

    splits: data.Splits
    train_set: data.Dataset
    val_set: data.Dataset | None
    loader: data.Loader


def pictures(
    config: Config, splits: data.Splits | None, *, size: int | None, held: Mapping[str, Any],
    share: Callable[[int], Sequence[slice]] | None,
) -> Pictures:  # fmt: skip
    """The pictures ``splits``, or those that the configuration names, at this size; ``held`` is what the last
    checkpoint of the run says, and ``share`` which pictures of a batch are this process's, None: all.

    Raises: ConfigError for what does not fit; DataError if they cannot be read.
    """
    augment = data.build(config.augment)
    splits = splits or state.pictures(config, size=size, streamed=state.streamed(held))
    train_set = state.trained_on(config, splits)
    normalize = state.normalization(
        config.normalize, train_set, seed=config.seed, held=state.measured(held)
    )
    loader = data.Loader(
        train_set, config.batch_size, seed=config.seed, normalize=normalize, augment=augment,
        drop_last=config.drop_last, balanced=config.balance == "sampler", share=share,
    )  # fmt: skip
    return Pictures(splits, train_set, splits.val if config.train_on == "train" else None, loader)


def network(
    config: Config, model: Module | None, *, device: str, classes: Sequence[str], size: int | None,
    begun: bool, say: Callable[[str], None],
) -> tuple[Module, dict[str, Any]]:  # fmt: skip
    """The ``model``, or the one that the configuration names, for pictures of these classes and this size, on
    its device, and the variant that it is of; of a run that has ``begun`` without the weights that it started
    from.

    Raises: ConfigError for what does not fit; CheckpointError if there is nothing to start from.
    """
    variant = dict(config.variant)
    if model is None:
        if size is not None:
            variant = {**models.entry(config.model).fitted(size), **variant}
        model = models.build(config.model, classes=len(classes), seed=config.seed, **variant)
    new: list[str] = []
    if config.start_from and not begun:
        new = finetune.start_from(model, config.start_from, classes=classes)
        say(f"starting from {config.start_from}; new: {', '.join(new) or 'nothing'}")
    finetune.freeze(model, config.freeze)
    checks.something_learns(model, config.freeze)
    for line in checks.never_learns(model, new):
        say(f"warning: {line}")
    if config.precision == "tf32" and device == "cpu":
        raise ConfigError("precision='tf32' is for GPUs; on the CPU leave it at precision='fp32'")
    if config.precision == "bf16" and device == "cpu":
        say(
            "precision 'bf16' is slower than 'fp32' on the CPU, and only for checking its accuracy there"
        )
    backend.make_current(device)
    return model.to(device), variant
