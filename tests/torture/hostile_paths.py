"""Odd files for every door (FIFO, device, link in a circle, folder), archives that lead elsewhere, odd runs,
and what steers a terminal."""

from __future__ import annotations

import io
import json
import os
import socket
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import samples as s
import small_net
import whole_weights as w
from hostile import GIGA, OK, RED, REFUSED, case, cli, of, some_pictures
from hostile_weights import DEEP, own_with, safetensors_with, torch_with

# ---------------------------------------------------------------------------------------- files of a run


def run_with(change: Callable[[Path], None]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        s.make_run(folder)
        change(folder / "run")
        return folder / "run"

    return make


def config_with(**settings: Any) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps({**config, **settings}))

    return change


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        for path in run.glob(name):
            path.unlink()
            make(path)

    return change


ODD_FILES: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to /dev/random": lambda path: path.symlink_to("/dev/random"),
    "a folder": Path.mkdir,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "an empty file": Path.touch,
    "a file of 5 GB of zeros": lambda path: (path.touch(), os.truncate(path, 3073 * 1_700_000)),
    "a socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)[-100:]),
}
for told, odd in ODD_FILES.items():
    # A missing or empty one, as after a power failure, is in the checkpoint, too, which a warning says.
    fine = OK if told in ("a link to nowhere", "an empty file") else REFUSED
    case(f"config.json is {told}", run_with(replaced("config.json", odd)), s.read_run, named=False, fine=fine)
    case(f"both checkpoints are {told}", run_with(replaced("checkpoint-*", odd)), s.read_run, named=False)
for told, settings in {
    "a width of a thousand million": {"variant": {"width": GIGA}},
    "a huge size": {"size": 10**6},
    "a model of another kind": {"model": RED},
    "pictures elsewhere": {"data": "/dev/zero"},
    "a rate that is a list": {"optimizer": {"name": "adam", "lr": [1]}},
    "a freeze of numbers": {"freeze": [1]},
    "a thousand million epochs": {"epochs": 10**9},
    "a normalisation of texts": {"normalize": {"mean": "x", "std": "y"}},
    "start_from elsewhere": {"start_from": "/dev/zero"},
    "a device of another kind": {"device": "cuda:99999999999999999999"},
}.items():
    case(
        f"config.json with {told}",
        run_with(config_with(**settings)),
        cli("train", "--resume", "PATH"),
        named=False,
    )
case(
    "config.json 100,000 deep",
    run_with(lambda run: (run / "config.json").write_text("[" * 100_000 + "]" * 100_000) and None),
    s.read_run,
    named=False,
)
case(
    "config.json 100,000 deep, of dicts",
    run_with(lambda run: (run / "config.json").write_bytes(DEEP) and None),
    s.read_run,
    named=False,
)


# -------------------------------------------------------------------------------- odd files for every door


def at(name: str, make: Callable[[Path], object]) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        make(folder / name)
        return folder / name

    return made


for told, odd in ODD_FILES.items():
    for name, door in {
        "x.pth": w.read_torch,
        "x.safetensors": w.read_torch,
        "x.h5": w.read_keras,
        "x.keras": w.read_keras,
        "x.weights.h5": w.read_keras,
        "model.safetensors": s.read_model,
        "x.png": s.read_picture,
        "x.zip": s.read_set_of_any_size,
        "x.tar": s.read_set_of_any_size,
        "x.tar.gz": s.read_set_of_any_size,
        "set/train_signs.h5": s.read_set,
    }.items():
        case(f"{name} is {told}", at(name, odd), door)


def beside_pictures(name: str, make: Callable[[Path], object]) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        small_net.pictures(folder / "set", count=4, side=8)
        make(folder / "set" / name)
        return folder / "set"

    return made


for told, odd in ODD_FILES.items():
    fine = OK if told == "a folder" else ("refused",)
    case(
        f"a picture in a folder is {told}",
        beside_pictures("cat/x.png", odd),
        s.read_set_of_any_size,
        fine=fine,
    )
case(
    "a folder of pictures that holds itself",
    beside_pictures("cat/loop", lambda p: p.symlink_to("..")),
    s.read_set_of_any_size,
)
case(
    "a folder of pictures that holds itself in a class",
    beside_pictures("cat/loop", lambda p: p.symlink_to(".")),
    s.read_set_of_any_size,
)
case(
    "folders 500 deep",
    beside_pictures("cat/" + "a/" * 500, lambda p: p.mkdir(parents=True)),
    s.read_set_of_any_size,
    fine=OK,
)
case(
    "a name that is no UTF-8",
    beside_pictures("cat/\udcff.png", lambda p: p.write_bytes(b"x")),
    s.read_set_of_any_size,
)
case(
    "CIFAR-10 of a FIFO",
    lambda f: (
        s.make_cifar(f),
        replaced("data_batch_3.bin", os.mkfifo)(f / "set"),
        f / "set" / "data_batch_3.bin",
    )[2],
    s.read_set,
)
case(
    "CIFAR-10 of 5 GB of zeros",
    lambda f: (
        s.make_cifar(f),
        replaced("data_batch_3.bin", ODD_FILES["a file of 5 GB of zeros"])(f / "set"),
        f / "set" / "data_batch_3.bin",
    )[2],
    s.read_set,
)


def archive_with(
    name: str, *, kind: bytes = tarfile.REGTYPE, link: str = "", ending: str = "tar"
) -> Callable[[Path], Path]:
    """Pictures, and a member of that name."""

    def make(folder: Path) -> Path:
        path = folder / f"x.{ending}"
        content = next(iter(some_pictures().values()))
        if ending == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                for other, picture in some_pictures().items():
                    archive.writestr(other, picture)
                info = zipfile.ZipInfo(name)
                if link:
                    info.external_attr = 0o120777 << 16
                archive.writestr(info, link or content)
            return path
        with tarfile.open(path, "w") as tar:
            for other, picture in some_pictures().items():
                info2 = tarfile.TarInfo(other)
                info2.size = len(picture)
                tar.addfile(info2, io.BytesIO(picture))
            odd = tarfile.TarInfo(name)
            odd.type, odd.linkname, odd.size = kind, link, len(content) if kind == tarfile.REGTYPE else 0
            odd.devmajor, odd.devminor = 1, 5
            tar.addfile(odd, io.BytesIO(content))
        return path

    return make


for name in ("../../escaped", "/tmp/escaped", "..\\..\\escaped", "cat/../../../escaped.png"):
    for ending in ("zip", "tar"):
        fine = OK if (ending, name[0]) == ("zip", "/") else REFUSED  # as unzip, it takes it for tmp/escaped
        made = archive_with(name, ending=ending)
        case(f"a {ending} with the name {name}", made, s.read_set_of_any_size, fine=fine)
case(
    "a zip with a link to /etc/passwd",
    archive_with("cat/x.png", link="/etc/passwd", ending="zip"),
    s.read_set_of_any_size,
    fine=OK,  # it is left out, with a warning
)
for told, kind in {
    "a link": tarfile.SYMTYPE,
    "a hard link": tarfile.LNKTYPE,
    "a device": tarfile.CHRTYPE,
    "a FIFO": tarfile.FIFOTYPE,
}.items():
    case(
        f"a tar with {told}",
        archive_with("cat/x.png", kind=kind, link="/etc/passwd"),
        s.read_set_of_any_size,
        fine=OK,
    )


@of(s.read_set_of_any_size)
def claims(folder: Path) -> Path:
    """a zip that claims 2^40 bytes for a picture"""
    path = archive_with("cat/x.png", ending="zip")(folder)
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\1\2")
    content[place + 24 : place + 28] = b"\xfe\xff\xff\xff"
    path.write_bytes(content)
    return path


@of(s.read_set_of_any_size)
def encrypted(folder: Path) -> Path:
    """a zip that says it is encrypted"""
    path = archive_with("cat/x.png", ending="zip")(folder)
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.rindex(mark) + place] |= 1
    path.write_bytes(content)
    return path


# ----------------------------------------------------------------------------------- what a terminal is shown


def class_named(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        small_net.pictures(folder / "set", count=5, side=8)
        (folder / "set" / "cat").rename(folder / "set" / name)
        return folder / "set"

    return make


def named(name: str) -> Callable[[Path], Path]:
    return at(name, lambda path: s.noise(side=16).save(path, "PNG"))


for told, make, door in [
    ("data, a class", class_named(RED), cli("data", "PATH", "--size", "8")),
    (
        "data, a picture that is none",
        beside_pictures(f"cat/{RED}.png", lambda p: p.write_bytes(b"x")),
        cli("data", "PATH", "--size", "8"),
    ),
    (
        "data, a name with a line in it",
        beside_pictures("cat/a\nb\r.png", lambda p: p.write_bytes(b"x")),
        cli("data", "PATH", "--size", "8"),
    ),
    (
        "data, a member of a zip",
        archive_with(f"cat/{RED}.png", link=RED, ending="zip"),
        cli("data", "PATH", "--size", "8"),
    ),
    ("data, a path", at(f"{RED}.zip", Path.touch), cli("data", "PATH")),
    ("predict, a picture", named(f"{RED}.png"), cli("predict", "MODEL", "PATH")),
    ("predict, a picture that is none", at(f"{RED}.png", Path.touch), cli("predict", "MODEL", "PATH")),
    (
        "predict, the classes of a model",
        own_with(lambda a, i: i.update(classes=[RED, "b", "c"])),
        cli("predict", "PATH", "PICTURE"),
    ),
    (
        "evaluate, the data of a model",
        own_with(lambda a, i: i.update(dataset=RED)),
        cli("evaluate", "PATH", "--data", "nowhere"),
    ),
    (
        "predict, the name of a model",
        own_with(lambda a, i: i.update(model=RED)),
        cli("predict", "PATH", "PICTURE"),
    ),
    (
        "import-weights, a tensor",
        torch_with("weights.pth", lambda state, torch: {**state, RED: torch.ones(1)}),
        cli("import-weights", "PATH", "--model", "resnet20_cifar", "--out", "OUT"),
    ),
    (
        "import-weights, names of safetensors",
        safetensors_with("weights.safetensors", lambda h: {RED + k: v for k, v in h.items()}),
        cli("import-weights", "PATH", "--model", "resnet20_cifar", "--out", "OUT"),
    ),
    ("train --resume, a model", run_with(config_with(model=RED)), cli("train", "--resume", "PATH")),
    ("train --resume, a setting", run_with(config_with(**{RED: 1})), cli("train", "--resume", "PATH")),
    ("train --resume, a data set", run_with(config_with(data=RED)), cli("train", "--resume", "PATH")),
]:
    case(f"shown by {told}: escape bytes", make, door, fine=OK, named=False)
