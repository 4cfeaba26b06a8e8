"""What the files beside weights say of them: what Hugging Face and timm write there.

    config.json of transformers    layer_type, downsample_in_bottleneck, hidden_act, id2label, ...
    config.json of timm            architecture, model_args, label_names, pretrained_cfg (mean, std); older
                                   ones have what is in pretrained_cfg beside architecture itself
    preprocessor_config.json       image_mean, image_std, rescale_factor, size, crop_size, ...

They belong to the file that is called as those programs call theirs. A file with a name of its own may lie in
a folder of downloads, beside what belongs to anything: there they are believed where no file has the usual
name and the config.json says the same network; else a note says that they were left aside. So it does beside
any file if the config.json says a network of no family known here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minires.data import Normalize
from minires.errors import CheckpointError, MiniresError
from minires.weights.classes import KEYS, contradiction, names_in
from minires.weights.sources import known_as, of_a_family

# With a variant, as fp16, perhaps, and the number of a part.
CALLED = re.compile(r"(pytorch_)?model(\.\w+)?(-\d{5}-of-\d{5})?\.(safetensors|bin)(\.index(\.\w+)?\.json)?")
LONGEST = 10_000_000  # bytes
ODD = ("rescale_offset", "offset", "do_grayscale", "do_flip_channel_order")
LARGEST = 4096  # pixels of a side
BRIGHTEST = 2.0  # a mean or a deviation of pixels in 0..1 is below it, one of pixels in 0..255 above
# What a network of timm's may be made with and still be the one of its name, or shows in its tensors ...
HARMLESS = {
    "num_classes", "drop_rate", "drop_path_rate", "drop_block_rate", "drop_connect_rate", "pretrained",
    "pretrained_cfg", "checkpoint_path", "cache_dir", "exportable", "scriptable", "no_jit", "img_size",
    "input_size", "stem_width", "base_width", "cardinality", "layers", "channels", "bn_momentum",
}  # fmt: skip
# ... or with such a value only.
USUAL = {
    "in_chans": ("3",), "global_pool": ("avg",), "act_layer": ("relu",), "norm_layer": ("batchnorm2d",),
    "output_stride": ("32",), "zero_init_last": ("true", "false"), "features_only": ("false",),
    "down_kernel_size": ("1",), "bn_eps": ("1e-05",),
}  # fmt: skip
# Those that may stand outside of model_args as well, beside much that is not an argument.
ARGUMENTS = {
    *USUAL, "aa_layer", "avg_down", "block_args", "stem_type", "replace_stem_pool", "se_layer", "attn_layer",
}  # fmt: skip


@dataclass(frozen=True)
class Beside:
    """``named`` are architectures with where they stand; ``options`` those of our model that follow.

    ``outputs`` is the number of classes, ``side`` that of the pixels of a picture with where it stands, and
    ``contradiction`` says what is wrong in the names of classes. ``refused`` says why the whole network can
    be none of ours though its layers are, and ``unlike`` where the preparation of pictures is stated in two
    ways. ``notes`` are sentences on what was used and what was not.
    """

    named: tuple[tuple[str, str], ...] = ()
    classes: tuple[str, ...] | None = None
    normalize: Normalize | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    outputs: int | None = None
    side: tuple[str, int] | None = None
    contradiction: str = ""
    refused: str = ""
    unlike: str = ""
    notes: tuple[str, ...] = ()


def read(path: Path, tensors: Collection[str] = (), model: str | None = None) -> Beside:
    """What stands beside the file of weights at ``path``, which has these ``tensors`` by their names and is
    to be our ``model``.

    Raises: CheckpointError if it says that the network is one that our models cannot be.
    """
    if not CALLED.fullmatch(path.name) and (left_aside := _of_others(path, tensors, model)) is not None:
        return left_aside
    config = _json(path.with_name("config.json"))
    if unknown := _unknown(config):
        return Beside(notes=(f"left aside: {path.with_name('config.json')}, which says {unknown}",))
    processor = _json(path.with_name("preprocessor_config.json"))
    where, beside = (str(path.with_name(name)) for name in ("config.json", "preprocessor_config.json"))
    named: list[tuple[str, str]] = []
    nested = pretrained = _mapping(config.get("pretrained_cfg"))
    if isinstance(config.get("architecture"), str):
        named.append((f"{where}: architecture", config["architecture"]))
        pretrained = config if config.get("pretrained_cfg") is None else nested
        _check_timm(config, pretrained, where)
    options = _huggingface(config, where) if config.get("model_type") == "resnet" else {}
    labels = [
        (f"{where}: {before}{key}", names)
        for before, place in (("", config), ("pretrained_cfg.", nested))
        for key in KEYS
        if (names := names_in(place.get(key)))
    ]
    scalings = [
        (beside, _processed(processor, beside) if processor else None),
        (where, _normalize(pretrained.get("mean"), pretrained.get("std"), f"{where}: mean, std")),
    ]
    sides = [(beside, _side(processor)), (where, _square(pretrained.get("input_size"), channels=3))]
    stated = [(at, one) for at, one in scalings if one]
    normalize = stated[0][1] if stated else None
    counts = [one.get("num_classes") for one in (_mapping(config.get("model_args")), config, pretrained)]
    stated_outputs = next((count for count in counts if count is not None), None)
    return Beside(
        tuple(named),
        tuple(labels[0][1]) if labels else None,
        normalize,
        options,
        _count(stated_outputs),
        next(((at, side) for at, side in sides if side), None),
        contradiction(labels),
        _other_head(config, where),
        _unlike(scalings, sides),
        tuple(f"pixels are scaled with {_words(one)}, as {at} states" for at, one in stated[:1]),
    )


def _of_others(path: Path, tensors: Collection[str], model: str | None) -> Beside | None:
    """What is left aside beside a file with a name of its own, in words; None if it belongs to that file."""
    at = path.with_name("config.json")
    try:
        config = _json(at)
    except CheckpointError as error:
        return Beside(notes=(f"left aside: {error}",))
    says, fits = "", False
    if isinstance(theirs := config.get("architecture"), str):
        if model is None:  # it is not known which of ours the network is called
            return Beside()
        says, fits = repr(theirs), known_as(theirs) == model
    elif config.get("model_type") == "resnet":
        says = f"a ResNet of transformers with depths {config.get('depths', [3, 4, 6, 3])}"
        found = [re.match(r"(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.", name) for name in tensors]
        blocks = {(int(one[1]), int(one[2])) for one in found if one}
        depths = [sum(stage == one for one, _ in blocks) for stage in sorted({one for one, _ in blocks})]
        fits = bool(depths) and config.get("depths", [3, 4, 6, 3]) == depths
    else:
        says = _unknown(config)
    near = path.parent.glob("*model*")
    usual = sorted(one.name for one in near if CALLED.fullmatch(one.name) and one.is_file())
    if fits and not usual:
        return None
    if says:
        why = f"belongs to {usual[0]}" if usual else f"says {says}, and not what this file is to be"
        return Beside(notes=(f"left aside: {at}, which {why}",))
    alone = path.with_name("preprocessor_config.json")
    if alone.is_file():
        return Beside(notes=(f"left aside: {alone}, as no config.json says that it belongs to {path.name}",))
    return Beside()


def _unknown(config: Mapping[str, Any]) -> str:
    """What a config.json says of a network that no name here is like, in words; "" if it says none such."""
    theirs, kind = config.get("architecture"), config.get("model_type", "resnet")
    if isinstance(theirs, str):
        return repr(theirs) if known_as(theirs) == "" and not of_a_family(theirs) else ""
    return "" if kind == "resnet" else f"model_type {kind!r}"


def _count(value: Any) -> int | None:
    """A number of classes as JSON may have it, 3, 3.0 or "3"; None if it is none.

    >>> [_count(one) for one in (3, 3.0, "3", 0, True, "three", [3])]
    [3, 3, 3, None, None, None, None]
    """
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() and number > 0 else None


def _other_head(config: Mapping[str, Any], where: str) -> str:
    """Why what transformers does with the outputs is no softmax over classes; "" if it is."""
    problem = config.get("problem_type")
    if problem not in (None, "single_label_classification"):
        says = f"problem_type is {problem!r}"
    elif "model_type" in config and 1 in (len(_mapping(config.get("id2label"))), config.get("num_labels")):
        says = "there is one label"
    else:
        return ""
    return (
        f"{where}: {says}, of which transformers takes no softmax; the models here end in one. "
        "load_pretrained(..., head=False) in Python takes all but the last layer"
    )


def _unlike(scalings: Sequence[tuple[str, Normalize | None]], sides: Sequence[tuple[str, int | None]]) -> str:
    """Where two files state how pictures are prepared and do not state the same; "" where they do."""
    (one, scaled), (other, also) = scalings
    if scaled and also:
        pairs = zip((*scaled.mean, *scaled.std), (*also.mean, *also.std), strict=True)
        if not all(math.isclose(*pair, abs_tol=2e-3) for pair in pairs):
            return f"{one} states {_words(scaled)}, and {other} {_words(also)}"
    sizes = [side for _, side in sides if side]
    if len({*sizes}) > 1:
        return f"{one} states pictures of {sizes[0]}x{sizes[0]}, and {other} of {sizes[1]}x{sizes[1]}"
    return ""


def _words(one: Normalize) -> str:
    """
    >>> _words(Normalize((0.5, 0.5, 0.5), (0.25, 0.5, 1)))
    'mean 0.5, 0.5, 0.5 and deviation 0.25, 0.5, 1'
    """
    mean, std = (", ".join(f"{number:.4g}" for number in which) for which in (one.mean, one.std))
    return f"mean {mean} and deviation {std}"


def _json(path: Path) -> Mapping[str, Any]:
    try:
        if not path.is_file():
            return {}
        if (size := path.stat().st_size) > LONGEST:
            raise ValueError(f"it has {size:,} bytes, and may have {LONGEST:,}")
        return _mapping(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}, which belongs to the weights beside it, cannot be read: {error}"
        ) from error


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _check_timm(config: Mapping[str, Any], pretrained: Mapping[str, Any], where: str) -> None:
    arguments = _mapping(config.get("model_args"))
    also = ARGUMENTS - arguments.keys()
    around = [(key, one[key]) for one in (pretrained, config) for key in also & one.keys()]
    for name, value in [*around, *arguments.items()]:
        usual = USUAL.get(name)
        none = value is None or (not usual and value in (False, "", {}, []))
        if none or name in HARMLESS or (usual and str(value).lower() in usual):
            continue
        raise CheckpointError(f"{where}: the network was made with {name}={value!r}, which none here is")
    if offset := pretrained.get("label_offset"):
        raise CheckpointError(f"{where}: label_offset is {offset!r}: timm leaves out the first outputs then")


def _huggingface(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options of a ResNet of transformers', which no name and no shape shows."""
    for key, wanted in {"downsample_in_first_stage": False, "hidden_act": "relu", "num_channels": 3}.items():
        if config.get(key, wanted) != wanted:
            raise CheckpointError(f"{where}: {key} is {config[key]!r}; the models here have {wanted!r}")
    if config.get("layer_type", "bottleneck") == "basic":
        return {}
    return {"stride_on": "1x1" if config.get("downsample_in_bottleneck", False) else "3x3"}


def _processed(processor: Mapping[str, Any], where: str) -> Normalize | None:
    """How pixels 0..255 are scaled: times a factor, then less a mean and through a deviation, each if wanted.
    None if it does not say.
    """
    rescaled, factor = processor.get("do_rescale", True), processor.get("rescale_factor", 1 / 255)
    if any(map(processor.get, ODD)):
        raise CheckpointError(
            f"{where}: pixels are shifted before they are scaled, grey, or blue first, which is not done here"
        )
    number = isinstance(factor, int | float) and not isinstance(factor, bool)
    if rescaled and not (number and math.isfinite(factor) and factor > 0):
        raise CheckpointError(f"{where}: rescale_factor is {factor!r}, which is no positive number")
    times = 255 * float(factor) if rescaled else 255.0
    times = 1.0 if math.isclose(times, 1, rel_tol=1e-3) else times
    if not processor.get("do_normalize", True):
        return Normalize((0.0,) * 3, (1 / times,) * 3)
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if mean is None and std is None and times != 1:
        raise CheckpointError(f"{where}: pixels are scaled by {factor}, and then by an image_mean not stated")
    return _normalize(mean, std, f"{where}: image_mean", times)


def _side(processor: Mapping[str, Any]) -> int | None:
    """The side of the pictures that a processor of Hugging Face makes, if it is said and they are square."""
    crop = processor.get("crop_size") if processor.get("do_center_crop", True) else None
    size = processor.get("size") if processor.get("do_resize", True) else None
    return _square(crop if crop is not None else size)


def _square(size: Any, channels: int | None = None) -> int | None:
    if isinstance(size, Mapping):
        size = [size[key] for key in ("height", "width", "shortest_edge") if size.get(key) is not None]
    sides = list(size) if isinstance(size, Sequence) and not isinstance(size, str) else [size]
    if channels is not None:
        sides = sides[1:]
    if not sides or any(not isinstance(one, int) or isinstance(one, bool) for one in sides):
        return None
    return sides[0] if len({*sides}) == 1 and 1 <= sides[0] <= LARGEST else None


def _normalize(mean: Any, std: Any, where: str, times: float = 1.0) -> Normalize | None:
    """Mean and deviation of pixels in 0..1 from those of pixels in 0..``times``; None if neither is stated.

    Raises: CheckpointError if they cannot be used, or are of other pixels.
    """
    if mean is None and std is None:
        return None
    mean, std = ([one] * 3 if isinstance(one, int | float) else one for one in (mean, std))
    try:
        found = Normalize(
            tuple(float(one) / times for one in mean),  # type: ignore[arg-type]
            tuple(float(one) / times for one in std),  # type: ignore[arg-type]
        )
    except (TypeError, ValueError, MiniresError) as error:
        raise CheckpointError(
            f"{where}: means {mean!r} and deviations {std!r} are not three numbers each, the latter positive"
        ) from error
    if max(map(abs, (*found.mean, *found.std))) > BRIGHTEST:
        raise CheckpointError(
            f"{where}: means {mean!r} and deviations {std!r} are of pixels 0..255, it seems, and must be of "
            f"0..{times:g} there"
        )
    return found
