"""One whole file, or a few, of every kind that minires reads, and the door through which a user reads it.

A door gets the folder and the file that was changed, and tells the content as text by name, so that two
contents can be compared. It runs in a process of its own.
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import formats
import mutations as m
import numpy as np
import small_net
import whole_weights as w
from PIL import Image
from whole_weights import Content, arrays, digest

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
        make=w.make_torch,
        door=w.read_torch,
        target="weights.pth",
        checked="all",
        changes=(m.some_bytes, m.some_bytes, formats.in_zip_fields, formats.zip_of(m.some_bytes)),
    ),
    "legacy pth": Kind(
        make=lambda folder: w.make_torch(folder, zipped=False),
        door=w.read_torch,
        target="weights.pth",
        changes=BYTES,
    ),
    "safetensors": Kind(
        make=w.make_safetensors,
        door=w.read_torch,
        target="weights.safetensors",
        changes=(m.some_bytes, m.in_safetensors, m.in_tensors),
    ),
    "shards": Kind(make=w.make_shards, door=w.read_shards, target="model*", changes=(m.some_bytes,)),
    "index of shards": Kind(
        make=w.make_shards,
        door=w.read_shards,
        target="*.json",
        changes=(m.some_bytes, m.in_json, m.in_json),
    ),
    "keras .h5": Kind(
        make=w.make_keras_legacy,
        door=w.read_keras,
        target="*.h5",
        changes=(m.some_bytes, formats.near_marks, formats.near_marks, formats.in_hdf5),
    ),
    "keras .weights.h5": Kind(
        make=w.make_keras_weights,
        door=w.read_keras,
        target="*.h5",
        changes=(m.some_bytes, formats.near_marks, formats.near_marks, formats.in_hdf5),
    ),
    "keras .keras": Kind(
        make=w.make_keras,
        door=w.read_keras,
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
