"""One whole file, or a few, of every kind that minires reads, and the door through which a user reads it.

A door gets the folder and the file that was changed, and tells the content as text by name, so that two
contents can be compared. It runs in a process of its own.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import formats
import mutations as m
import numpy as np
import small_net
from PIL import Image

Content = dict[str, str]
Door = Callable[[Path, Path], Content]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Files that ``make`` writes into an empty folder, ``door`` reads, and ways to change one of ``target``.

    ``checked`` is what of the content a checksum of the format covers: "all", "pictures" (each is one of
    those that were there), or nothing. ``all_at_once`` changes all of ``target``. ``named`` says that a
    refusal must name the file.
    """

    make: Callable[[Path], None]
    door: Door
    target: str
    changes: tuple[m.Mutate, ...]
    checked: str = ""
    all_at_once: bool = False
    named: bool = True


def digest(array: Any) -> str:
    array = np.ascontiguousarray(array)
    return f"{array.dtype} {array.shape} {hashlib.sha1(array.tobytes()).hexdigest()[:16]}"


def arrays(state: Mapping[str, Any]) -> Content:
    return {f"array {name}": digest(array) for name, array in state.items()}


def quiet(*_: object) -> None:
    """Says nothing."""


# ----------------------------------------------------------------------------------------- our own files


def read_model(folder: Path, path: Path) -> Content:
    from minires import train
    from minires.errors import MiniresError

    trained = train.load_model(path)
    content = arrays(trained.model.state_dict())
    content |= {
        name: repr(getattr(trained, name))
        for name in ("name", "variant", "classes", "normalize", "size", "dataset")
    }
    try:
        pictures = np.zeros((1, small_net.SIDE, small_net.SIDE, 3), np.uint8)
        content["guess"] = digest(train.predict(trained.model, pictures, trained.normalize))
    except MiniresError as error:
        content["guess"] = str(error)
    return content


def make_model(folder: Path) -> None:
    from minires import data, models, train

    model = models.build("torture_net", classes=3, seed=1)
    train.save_model(
        folder / "model.safetensors",
        train.Trained(
            model,
            "torture_net",
            {"width": 8},
            small_net.CLASSES,
            data.Normalize.imagenet(),
            (16, 16),
            "pets",
        ),
    )


def make_run(folder: Path) -> None:
    """A run that was stopped in its second epoch, and its pictures."""
    from minires.train import Config, Trainer

    small_net.pictures(folder / "pictures", count=4, side=8)
    config = Config.of("torture", data=str(folder / "pictures"), size=8, batch_size=2, variant={"width": 8})

    def stop(line: str) -> None:
        if line.startswith("epoch 2/"):
            raise KeyboardInterrupt

    try:
        Trainer(config, folder / "run", say=stop, progress=False).run()
    except KeyboardInterrupt:
        return


def read_run(folder: Path, path: Path) -> Content:
    """Go on with a run, as far as its first step; if that is refused, it must be so a second time, too."""
    from minires.errors import MiniresError
    from minires.train import Trainer

    def resumed() -> Content:
        # The run was made in another folder: its pictures are where they were.
        trainer = Trainer(None, folder / "run", resume=True, say=quiet, progress=False)
        return {**arrays(trainer.model.state_dict()), "step": str(trainer.progress.step)}

    try:
        return resumed()
    except MiniresError as first:
        try:
            return {"began anew after it was refused": str(resumed()["step"])}
        except MiniresError:
            raise first from None


def read_config(folder: Path, path: Path) -> Content:
    from minires.train import Config
    from minires.train.run_folder import read_json

    return {"config": json.dumps(Config.from_dict(read_json(path)).to_dict(), sort_keys=True)}


def make_config(folder: Path) -> None:
    from minires.train import Config

    settings = {**Config.of("torture").to_dict(), "start_from": "runs/a", "freeze": ["conv1"], "size": 16}
    (folder / "config.json").write_text(json.dumps(settings, indent=2))


# ------------------------------------------------------------------------------------ weights of others

RESNET = {"repeats": [1, 1, 1], "widths": [4, 4, 8]}  # of resnet20_cifar, as small as it goes


def torch_state() -> dict[str, Any]:
    """The state of a small ResNet of akamaster's, as arrays with the names and the layout of PyTorch's."""
    rng, state = np.random.default_rng(0), {}

    def conv(name: str, inputs: int, outputs: int) -> None:
        state[f"{name}.weight"] = rng.normal(0, 0.3, (outputs, inputs, 3, 3))

    def norm(name: str, channels: int) -> None:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{leaf}"] = rng.uniform(0.5, 1.5, channels)

    conv("conv1", 3, 4)
    norm("bn1", 4)
    for stage, (inputs, outputs) in enumerate([(4, 4), (4, 4), (4, 8)], 1):
        for part in (1, 2):
            conv(f"layer{stage}.0.conv{part}", inputs if part == 1 else outputs, outputs)
            norm(f"layer{stage}.0.bn{part}", outputs)
    state["linear.weight"], state["linear.bias"] = rng.normal(0, 0.3, (10, 8)), rng.normal(0, 0.3, 10)
    return {name: array.astype(np.float32) for name, array in state.items()}


def read_torch(folder: Path, path: Path) -> Content:
    """Import weights, and read what was written."""
    from minires import train, weights

    out = folder / "imported.safetensors"
    weights.import_weights(path, "resnet20_cifar", out, variant=RESNET)
    return arrays(train.load_model(out).model.state_dict())


def make_torch(folder: Path, *, zipped: bool = True) -> None:
    import torch

    state = {name: torch.from_numpy(array) for name, array in torch_state().items()}
    content = {"state_dict": state, "epoch": 3, "best_prec1": 91.2}
    torch.save(content, folder / "weights.pth", _use_new_zipfile_serialization=zipped)


def make_safetensors(folder: Path) -> None:
    from safetensors.numpy import save_file

    save_file(torch_state(), folder / "weights.safetensors", {"format": "pt"})


def make_shards(folder: Path) -> None:
    from safetensors.numpy import save_file

    state, index = torch_state(), {}
    for number, part in enumerate((list(state)[::2], list(state)[1::2]), 1):
        name = f"model-{number:05d}-of-00002.safetensors"
        save_file({key: state[key] for key in part}, folder / name, {"format": "pt"})
        index |= dict.fromkeys(part, name)
    size = sum(array.nbytes for array in state.values())
    content = {"metadata": {"total_size": size}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2))


def read_shards(folder: Path, path: Path) -> Content:
    return read_torch(folder, folder / "model.safetensors.index.json")


LAYERS: list[
    tuple[str, str, dict[str, Any], list[tuple[str, tuple[int, ...]]]]
] = [  # of torture_net, in Keras
    ("InputLayer", "input_layer", {"batch_shape": [None, 16, 16, 3], "sparse": False}, []),
    (
        "Conv2D",
        "conv1",
        {
            "filters": 4,
            "kernel_size": [3, 3],
            "strides": [1, 1],
            "padding": "same",
            "groups": 1,
            "data_format": "channels_last",
            "dilation_rate": [1, 1],
            "activation": "linear",
            "use_bias": True,
        },
        [("kernel", (3, 3, 3, 4)), ("bias", (4,))],
    ),
    (
        "BatchNormalization",
        "bn_conv1",
        {"axis": -1, "momentum": 0.9, "epsilon": 1e-5, "center": True, "scale": True},
        [(leaf, (4,)) for leaf in ("gamma", "beta", "moving_mean", "moving_variance")],
    ),
    ("ReLU", "relu", {"max_value": None, "negative_slope": 0.0, "threshold": 0.0}, []),
    ("Dropout", "drop", {"rate": 0.2, "seed": None, "noise_shape": None}, []),
    ("GlobalAveragePooling2D", "pool", {"data_format": "channels_last", "keepdims": False}, []),
    (
        "Dense",
        "fc1",
        {"units": 8, "activation": "linear", "use_bias": True},
        [("kernel", (4, 8)), ("bias", (8,))],
    ),
    (
        "Dense",
        "fc",
        {"units": 3, "activation": "softmax", "use_bias": True},
        [("kernel", (8, 3)), ("bias", (3,))],
    ),
]
GROUPS = (
    "input_layer",
    "conv2d",
    "batch_normalization",
    "re_lu",
    "dropout",
    "global_average_pooling2d",
    "dense",
    "dense_1",
)


def keras_config() -> dict[str, Any]:
    layers, before = [], None
    policy = {
        "module": "keras",
        "class_name": "DTypePolicy",
        "config": {"name": "float32"},
        "registered_name": None,
    }
    for kind, name, options, _ in LAYERS:
        config = {"name": name, "trainable": True, "dtype": policy, **options}
        history = {
            "class_name": "__keras_tensor__",
            "config": {"shape": [None], "dtype": "float32", "keras_history": [before, 0, 0]},
        }
        inbound = [{"args": [history], "kwargs": {}}] if before else []
        layers.append(
            {
                "module": "keras.layers",
                "class_name": kind,
                "config": config,
                "registered_name": None,
                "name": name,
                "inbound_nodes": inbound,
            }
        )
        before = name
    config = {
        "name": "small",
        "trainable": True,
        "layers": layers,
        "input_layers": ["input_layer", 0, 0],
        "output_layers": ["fc", 0, 0],
    }
    return {
        "module": "keras.src.models.functional",
        "class_name": "Functional",
        "config": config,
        "registered_name": "Functional",
        "build_config": {"input_shape": None},
    }


def keras_arrays() -> dict[str, list[tuple[str, Any]]]:
    rng = np.random.default_rng(0)
    return {
        name: [(leaf, rng.uniform(0.1, 1, shape).astype(np.float32)) for leaf, shape in leaves]
        for _, name, _, leaves in LAYERS
    }


def make_keras_legacy(folder: Path) -> None:
    import h5py

    with h5py.File(folder / "weights.h5", "w") as file:
        file.attrs["keras_version"], file.attrs["backend"] = "3.15.1", "torch"
        file.attrs["model_config"] = json.dumps(keras_config())
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = list(keras_arrays())
        for name, leaves in keras_arrays().items():
            layer = group.create_group(name)
            layer.attrs["weight_names"] = [f"{name}/{leaf}" for leaf, _ in leaves]
            for leaf, array in leaves:
                layer[f"{name}/{leaf}"] = array


def write_keras_weights(file: Any) -> None:
    for group, (name, leaves) in zip(GROUPS, keras_arrays().items(), strict=True):
        variables = file.create_group(f"layers/{group}/vars")
        variables.attrs["name"] = name
        for number, (_, array) in enumerate(leaves):
            variables[str(number)] = array


def make_keras_weights(folder: Path) -> None:
    import h5py

    with h5py.File(folder / "small.weights.h5", "w") as file:
        write_keras_weights(file)


def make_keras(folder: Path) -> None:
    import h5py

    made = io.BytesIO()
    with h5py.File(made, "w") as file:
        write_keras_weights(file)
    with zipfile.ZipFile(folder / "small.keras", "w") as archive:
        archive.writestr(
            "metadata.json", json.dumps({"keras_version": "3.15.1", "date_saved": "2026-01-01@00:00:00"})
        )
        archive.writestr("config.json", json.dumps(keras_config()))
        archive.writestr("model.weights.h5", made.getvalue())


def read_keras(folder: Path, path: Path) -> Content:
    from minires import models, weights

    model = models.build("torture_net", classes=3)
    weights.load_pretrained(model, path)
    return arrays(model.state_dict())


# --------------------------------------------------------------------------------------------- pictures


def content_of(splits: Any) -> Content:
    content = {}
    for part in ("train", "val", "test"):
        one = getattr(splits, part)
        content |= {f"picture {digest(image)}": "" for image in one.images}
        content[part] = f"{digest(one.images)} {digest(one.labels)} {one.classes}"
    return content


def read_set(folder: Path, path: Path) -> Content:
    from minires import data

    return content_of(data.load(folder / "set"))


def read_set_of_any_size(folder: Path, path: Path) -> Content:
    from minires import data

    return content_of(data.load(path if path.parent == folder else folder / "set", size=8))


def make_signs(folder: Path) -> None:
    import h5py

    rng = np.random.default_rng(0)
    (folder / "set").mkdir()
    for part, count in (("train", 30), ("test", 12)):
        with h5py.File(folder / "set" / f"{part}_signs.h5", "w") as file:
            file["list_classes"] = np.arange(6)
            file[f"{part}_set_x"] = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
            file[f"{part}_set_y"] = np.arange(count) % 6


def make_cifar(folder: Path) -> None:
    rng = np.random.default_rng(0)
    (folder / "set").mkdir()
    for name in (
        "data_batch_1",
        "data_batch_2",
        "data_batch_3",
        "data_batch_4",
        "data_batch_5",
        "test_batch",
    ):
        records = rng.integers(0, 256, (4, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        (folder / "set" / f"{name}.bin").write_bytes(records.tobytes())


def noise(mode: str = "RGB", side: int = 12) -> Image.Image:
    channels = {"RGB": 3, "RGBA": 4, "L": 1, "CMYK": 4}[mode]
    values = np.random.default_rng(0).integers(0, 256, (side, side + 2, channels), dtype=np.uint8)
    return Image.fromarray(values.squeeze(), mode)


def make_png(folder: Path) -> None:
    noise().save(folder / "rgb.png")
    noise("RGBA").save(folder / "alpha.png")
    noise().quantize(7).save(folder / "palette.png", transparency=1)
    Image.fromarray(np.arange(144, dtype=np.uint16).reshape(12, 12) * 400).save(folder / "grey16.png")
    noise("L").convert("1").save(folder / "bits.png")


def make_jpg(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise().save(folder / "turned.jpg", exif=exif)
    noise().save(folder / "progressive.jpg", progressive=True)
    noise("CMYK").save(folder / "cmyk.jpg")
    noise("L").save(folder / "grey.jpg")


def make_other_pictures(folder: Path) -> None:
    noise().save(folder / "one.gif")
    noise().save(folder / "two.gif", save_all=True, append_images=[noise("L", 10)], loop=0)
    noise().save(folder / "lossy.webp")
    noise("RGBA").save(folder / "lossless.webp", lossless=True)
    noise().save(folder / "rgb.bmp")
    noise().quantize(7).save(folder / "palette.bmp")
    noise().save(folder / "raw.tiff")
    noise().save(folder / "lzw.tiff", compression="tiff_lzw")
    noise("CMYK").save(folder / "jpeg.tiff", compression="tiff_deflate")
    noise().save(folder / "rgb.ppm")
    noise("L").save(folder / "grey.pgm")


def read_picture(folder: Path, path: Path) -> Content:
    from minires import data

    return {"picture": digest(data.decode(path))}


def make_folder(folder: Path) -> None:
    small_net.pictures(folder / "set", count=5, side=8)
    Image.open(folder / "set" / "cat" / "00.png").save(folder / "set" / "cat" / "jpeg.jpg")


def packed_pictures(folder: Path) -> list[tuple[str, bytes]]:
    small_net.pictures(folder / "pets", count=5, side=8)
    files = sorted(path for path in (folder / "pets").rglob("*") if path.is_file())
    found = [(path.relative_to(folder).as_posix(), path.read_bytes()) for path in files]
    import shutil

    shutil.rmtree(folder / "pets")
    return found


def make_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "pets.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in packed_pictures(folder):
            archive.writestr(zipfile.ZipInfo(name), content)


def make_tar(folder: Path, *, ending: str = "tar") -> None:
    with tarfile.open(folder / f"pets.{ending}", "w:gz" if ending == "tar.gz" else "w") as archive:
        for name, content in packed_pictures(folder):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


BYTES = (m.some_bytes,)
KINDS: dict[str, Kind] = {
    "own model": Kind(
        make=make_model,
        door=read_model,
        target="model.safetensors",
        checked="all",
        changes=(m.some_bytes, m.in_safetensors, m.in_own, m.in_own),
    ),
    "checkpoint": Kind(
        make=make_run,
        door=read_run,
        target="run/checkpoint-*6.safetensors",
        checked="all",
        named=False,
        changes=(m.some_bytes, m.in_safetensors, m.in_own, m.in_own),
    ),
    "all checkpoints": Kind(
        make=make_run,
        door=read_run,
        target="run/checkpoint-*",
        checked="all",
        all_at_once=True,
        named=False,
        changes=(m.some_bytes, m.in_safetensors),
    ),
    "config": Kind(
        make=make_config,
        door=read_config,
        target="config.json",
        named=False,
        changes=(m.some_bytes, m.in_json, m.in_json, m.in_json),
    ),
    "config of a run": Kind(
        make=make_run,
        door=read_run,
        target="run/config.json",
        named=False,
        changes=(m.some_bytes, m.in_json, m.in_json),
    ),
    "pth": Kind(
        make=make_torch,
        door=read_torch,
        target="weights.pth",
        checked="all",
        changes=(m.some_bytes, m.some_bytes, formats.in_zip_fields, formats.zip_of(m.some_bytes)),
    ),
    "legacy pth": Kind(
        make=lambda folder: make_torch(folder, zipped=False),
        door=read_torch,
        target="weights.pth",
        changes=BYTES,
    ),
    "safetensors": Kind(
        make=make_safetensors,
        door=read_torch,
        target="weights.safetensors",
        changes=(m.some_bytes, m.in_safetensors, m.in_tensors),
    ),
    "shards": Kind(make=make_shards, door=read_shards, target="model*", changes=(m.some_bytes,)),
    "index of shards": Kind(
        make=make_shards, door=read_shards, target="*.json", changes=(m.some_bytes, m.in_json, m.in_json)
    ),
    "keras .h5": Kind(
        make=make_keras_legacy,
        door=read_keras,
        target="*.h5",
        changes=(m.some_bytes, formats.near_marks, formats.near_marks, formats.in_hdf5),
    ),
    "keras .weights.h5": Kind(
        make=make_keras_weights,
        door=read_keras,
        target="*.h5",
        changes=(m.some_bytes, formats.near_marks, formats.near_marks, formats.in_hdf5),
    ),
    "keras .keras": Kind(
        make=make_keras,
        door=read_keras,
        target="*.keras",
        checked="all",
        changes=(
            m.some_bytes,
            formats.in_zip_fields,
            formats.zip_of(formats.near_marks),
            formats.zip_of(m.some_bytes),
        ),
    ),
    "signs": Kind(
        make=make_signs,
        door=read_set,
        target="set/*.h5",
        changes=(m.some_bytes, formats.near_marks, formats.near_marks, formats.in_hdf5),
    ),
    "cifar": Kind(make=make_cifar, door=read_set, target="set/*.bin", changes=BYTES),
    "png": Kind(
        make=make_png,
        door=read_picture,
        target="*",
        checked="all",
        changes=(m.some_bytes, formats.in_png, formats.in_png),
    ),
    "jpg": Kind(make=make_jpg, door=read_picture, target="*", changes=(m.some_bytes, formats.in_jpeg)),
    "other pictures": Kind(make=make_other_pictures, door=read_picture, target="*", changes=BYTES),
    "picture folder": Kind(make=make_folder, door=read_set_of_any_size, target="set/*/*", changes=BYTES),
    "zip": Kind(
        make=make_zip,
        door=read_set_of_any_size,
        target="*.zip",
        checked="pictures",
        changes=(m.some_bytes, formats.in_zip_fields, formats.in_zip_fields, formats.zip_of(m.some_bytes)),
    ),
    "tar": Kind(
        make=make_tar, door=read_set_of_any_size, target="*.tar", changes=(m.some_bytes, formats.in_tar)
    ),
    "tar.gz": Kind(
        make=lambda folder: make_tar(folder, ending="tar.gz"),
        door=read_set_of_any_size,
        target="*.tar.gz",
        checked="pictures",
        changes=(m.some_bytes, formats.in_gzip, formats.in_tar),
    ),
}
