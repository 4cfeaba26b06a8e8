"""The command line: what each command prints, its JSON, and every exit status."""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import call, refused
from PIL import Image
from quick_runs import draw_nothing
from safetensors.numpy import save_file

import minires
from minires import Tensor, backend, cli, data, models, nn
from minires.commands import COMMANDS
from minires.commands.loading import changes_of
from minires.debug.recording import Recording, record_passes
from minires.ops import cases, registry
from minires.train import Trained, evaluate, load_model, predict, recipes, save_model

PICTURES = ("curves.png", "confusion.png", "mistakes.png")
COLOURS = ("blue", "green", "red")


class Tiny(nn.Module):
    """A model that learns colours in a few steps, from pictures of any ``size``."""

    def __init__(self, *, classes: int, rng: np.random.Generator, size: int = 12, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, stride=2, rng=rng)
        self.norm = nn.BatchNorm2d(width, momentum=0.5, relu=True)
        self.pool = nn.GlobalAvgPool2d()
        self.fc = nn.Linear(width, classes, rng=rng)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.norm(self.conv(x))))


def make_pictures(folder: Path, each: int = 10) -> Path:
    """A class of noisy pictures per colour, of various sizes, in ``folder``."""
    rng = np.random.default_rng(0)
    for k, colour in enumerate(COLOURS):
        (folder / colour).mkdir(parents=True)
        for number in range(each):
            picture = rng.integers(0, 120, (36 + number, 40, 3))
            picture[..., 2 - k] += 130
            Image.fromarray(picture.astype(np.uint8)).save(folder / colour / f"{number}.png")
    return folder


def clean_environment(home: Path, **more: str) -> dict[str, str]:
    """The environment without anything that would lead to real data."""
    hidden = ("MINIRES_DATA", "XDG_CACHE_HOME", "MINIRES_THREADS", "PYTHONUNBUFFERED")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, "HOME": str(home), "USERPROFILE": str(home), **more}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, no data set in sight, and the model ``tiny``."""
    monkeypatch.delenv("MINIRES_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(models.MODELS, "tiny", models.Entry(Tiny, size=12, classes=3))
    draw_nothing(monkeypatch)
    return tmp_path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run of the tiny model, and the pictures it learnt from beside it."""
    place = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", models.Entry(Tiny, size=12, classes=3))
        patch.chdir(place)
        make_pictures(place / "colours")
        arguments = [
            "--data",
            "colours",
            "--model",
            "tiny",
            "--batch-size",
            "4",
            "--epochs",
            "8",
            "--lr",
            "0.05",
        ]
        assert cli.main(["train", *arguments, "--keep", "last", "--out", "run"]) == 0
    yield place / "run"


# ------------------------------------------------------------------------------------- the real program


def test_help_starts_without_the_heavy_packages() -> None:
    program = (
        "import sys\nfrom minires.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as leave: assert leave.code == 0\n"
        "heavy = {'numba', 'matplotlib', 'h5py', 'cupy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, command in COMMANDS.items():
        assert f"    {name}" in done.stdout and command.help[:20] in done.stdout


def test_without_options_it_says_first_that_it_falls_back_to_hands_and_can_be_stopped(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "minires", "train"], cwd=tmp_path, env=clean_environment(tmp_path),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as program:  # fmt: skip
        assert program.stdout is not None
        first = program.stdout.readline()
        program.send_signal(signal.SIGINT)  # it is drawing the pictures now: there is nothing to save
        _, err = program.communicate(timeout=60)
    assert program.returncode == 130
    assert err.strip().splitlines()[-1] == "minires: interrupted" and "Traceback" not in err
    looked = [tmp_path / "data" / "signs", tmp_path / ".cache" / "minires" / "signs"]
    assert first.startswith(f"signs was not found in {looked[0]}, {looked[1]}: training on ")
    assert "`hands`" in first
    assert not (tmp_path / "runs").exists()


def test_resnet50_is_trained_interrupted_resumed_tested_and_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pictures(tmp_path / "colours", 12)
    environment = clean_environment(tmp_path)
    minires_ = [sys.executable, "-m", "minires"]
    start = ["train", "--data", "colours", "--recipe", "default", "--size", "36", "--epochs", "2"]
    with subprocess.Popen(
        [*minires_, *start], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as program:  # fmt: skip
        assert program.stdout is not None
        lines = (line for line in program.stdout if not line.startswith("compiling the kernels"))
        first, second, left_out, third = (next(lines) for _ in range(4))
        program.send_signal(signal.SIGINT)  # the first epoch is done, the second has begun
        _, err = program.communicate(timeout=120)
    try:
        assert first == "Training on colours, as asked for with --data\n"
        assert second.startswith("resnet50_signs on colours (") and third.startswith("epoch 1/2 ")
        assert left_out.startswith("each epoch leaves out 7 of the 23 training pictures")
        assert program.returncode == 130, err
        run = tmp_path / "runs" / "colours-default-1"
        stopped = err.strip().splitlines()[-1]
        assert stopped.startswith("minires: stopped after step")
        assert stopped.endswith(f"Go on with: minires train --resume {run.relative_to(tmp_path)}")
        assert not (run / "summary.json").exists()

        # From another folder: the configuration must not depend on where the run was started.
        done = subprocess.run(
            [*minires_, "train", "--resume", run, "--json"], cwd=tmp_path.parent, env=environment,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        summary = json.loads(done.stdout)
        assert summary["steps"] == 2 * (23 // 16) and summary["epochs"] == 2
        assert json.loads((run / "summary.json").read_text()) == {
            key: value for key, value in summary.items() if key != "out"
        }
        assert all((run / name).is_file() for name in PICTURES)
        tested = json.loads(call(capsys, "evaluate", run, "--json")[1])
        assert tested["total"] == 7 and tested["accuracy"] == summary["test_accuracy"]
        assert tested["loss"] == pytest.approx(summary["test_loss"], rel=1e-5)
        picture = tmp_path / "colours" / "red" / "3.png"
        guess = json.loads(call(capsys, "predict", run, picture, "--top", "2", "--json")[1])["predictions"][0]
        assert guess["label"] in COLOURS and len(guess["top"]) == 2
    finally:
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)  # 94 MB


# ----------------------------------------------------------------------------------------------- train


def test_a_run_says_what_it_did_and_what_to_do_next(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_pictures(place / "my colours")
    arguments = ("train", "--data", "my colours", "--model", "tiny", "--batch-size", "4", "--epochs", "1")
    status, out, err = call(capsys, *arguments)
    lines = out.splitlines()
    assert status == 0 and lines[0] == "Training on my colours, as asked for with --data"
    assert lines[1].startswith("24 training pictures of 3 classes, 8 of each, shorter side about 40 pixels: ")
    assert lines[2].startswith("6 steps of 4 pictures, 1 epoch") and "(--epochs, --batch-size" in lines[2]
    assert lines[3].startswith("each picture changed at random: crop, flip, jitter; running statistics")
    assert "warning: few pictures: 24 to train 3 classes" in err
    assert lines[4].startswith("tiny on my colours (") and "recipe auto, 1 epoch, seed 0" in lines[4]
    folder = Path("runs/my-colours-auto-1")
    assert any(line.startswith("test accuracy ") for line in lines)
    look = next(line for line in lines if line.startswith("Look at "))
    assert all(name in look for name in PICTURES)
    following = "".join(lines[lines.index(look) + 1 :])
    for command in ("predict {} PICTURE...", "evaluate {} ", "trace {} ", "play {} "):
        assert f"minires {command.format(folder)}" in following
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["dataset"] == "my colours" and summary["model"] == "tiny"
    # A second run gets a folder of its own.
    assert call(capsys, *arguments)[0] == 0
    assert Path("runs/my-colours-auto-2/summary.json").is_file()


@pytest.mark.parametrize("given", [[], ["--drop-last"]])
def test_a_last_batch_that_is_smaller_can_be_left_out(
    place: Path, capsys: pytest.CaptureFixture[str], given: list[str]
) -> None:
    make_pictures(place / "colours")
    status, out, _ = call(
        capsys, "train", "--data", "colours", "--model", "tiny", "--recipe", "cifar", "--epochs", "1",
        "--batch-size", "5", *given, "--out", "run", "--json",
    )  # fmt: skip
    summary = json.loads(out)
    assert status == 0 and summary["train_pictures"] % 5 and isinstance(summary["warnings"], list)
    assert summary["steps"] == summary["train_pictures"] // 5 + (not given)


def test_options_change_the_recipe(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_pictures(place / "colours")
    status, out, err = call(
        capsys, "train", "--data", "colours", "--model", "tiny", "--recipe", "two-epoch", "--epochs", "1",
        "--batch-size", "3", "--lr", "0.25", "--seed", "7", "--size", "16", "--train-on", "train",
        "--variant", "width=5", "--out", "somewhere/new", "--json",
    )  # fmt: skip
    assert status == 0
    summary = json.loads(out)
    assert summary["out"] == "somewhere/new" and summary["seed"] == 7 and summary["val_accuracy"] is not None
    assert err.startswith("Training on colours, as asked for with --data\n")
    config = json.loads(Path("somewhere/new/config.json").read_text())
    wanted = {"recipe": "two-epoch", "epochs": 1, "batch_size": 3, "seed": 7, "size": 16, "train_on": "train"}
    assert wanted.items() <= config.items()
    assert config["optimizer"]["lr"] == 0.25 and config["optimizer"]["name"] == "adam"
    assert config["variant"] == {"width": 5}
    trained = load_model("somewhere/new")
    assert trained.model.conv.weight.shape == (3, 3, 3, 5) and trained.size == (16, 16)
    assert config["schedule"]["name"] == "linear"  # what is not named is the recipe's
    assert config["data"] == str(place / "colours")


@pytest.fixture
def quick_hands(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in without drawing it: noise under its name and source line."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 12, 12, 3), dtype=np.uint8)
    names = tuple(f"hands-{i}" for i in range(24))
    part = data.Dataset(noise, np.arange(24) % 6, tuple("012345"), names, "hands")
    splits = data.Splits(part, part, part, "hands (rendered, seed 0)")
    monkeypatch.setitem(data.SETS, "hands", data.Entry(read=lambda **_: splits))


@pytest.mark.usefixtures("quick_hands")
def test_the_summary_says_why_hands_was_used(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "train", "--model", "tiny", "--epochs", "1")
    assert status == 0
    first = out.splitlines()[0]
    assert first.startswith(f"signs was not found in {place}/data/signs, {place}/cache/minires/signs: ")
    summary = json.loads(Path("runs/hands-default-1/summary.json").read_text())
    assert summary["dataset"] == "hands"
    assert summary["source"].startswith("hands (rendered, seed 0)") and first in summary["source"]
    # Where hands is asked for, there is nothing to explain.
    assert call(capsys, "train", "--model", "tiny", "--epochs", "1", "--data", "hands")[0] == 0
    summary = json.loads(Path("runs/hands-default-2/summary.json").read_text())
    assert summary["source"] == "hands (rendered, seed 0)"


def test_signs_is_chosen_where_it_is_found(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = place / "sets" / "signs" / "64x64_SIGNS"
    rng = np.random.default_rng(0)
    for part in ("train", "val", "test"):
        (found / f"{part}_signs").mkdir(parents=True)
        for k in range(12):
            picture = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
            picture.save(found / f"{part}_signs" / f"{k % 6}_IMG_{k}.jpg")
    monkeypatch.setenv("MINIRES_DATA", str(place / "sets"))
    arguments = ("train", "--model", "tiny", "--epochs", "1", "--batch-size", "4", "--size", "12")
    status, out, _ = call(capsys, *arguments)
    assert status == 0 and out.splitlines()[0] == f"signs was found in {found}: training on it"
    assert json.loads(Path("runs/signs-default-1/summary.json").read_text())["dataset"] == "signs"


def test_a_recipe_may_name_its_data_set(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "train", "--model", "tiny", "--recipe", "cifar")
    assert out == "Training on cifar10, the data set of the recipe cifar\n"
    assert status == 1 and "'cifar10' not found" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "resnet50_sings"], "the nearest are resnet50_signs"),
        (["--recipe", "two-epochs"], "Did you mean 'two-epoch'?"),
        (["--data", "sings"], "Did you mean 'signs'?"),
        (["--epochs", "0"], "epochs is 0; it must be at least 1"),
        (["--batch-size", "-3"], "--batch-size is -3"),
        (["--train-on", "trian"], "Did you mean 'train'?"),
        (["--resume"], "which run?"),
    ],
)
def test_a_wrong_value_is_wrong_use(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert said in refused(capsys, 2, "train", *arguments)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--lr", "-1"], "lr"),
        (["--lr", "nan"], "lr"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--precision", "tf32"], "--precision tf32 is for GPUs; on the CPU leave it at --precision fp32"),
        (["--device", "cuda"], "a GPU was asked for, but"),
        (["--epochs", "0"], "error: --epochs is 0; it must be at least 1"),
        (["--train-on", "test"], "unknown value of --train-on 'test'"),
        (["--variant", "classes=3"], "--variant cannot set classes; leave it out"),
        (["--variant", "name=x"], "'name=x' is no option of a model"),
        (["--variant", "seed=3"], "--variant cannot set seed; use --seed"),
        (["--batch-size", "99", "--drop-last"], "Use --batch-size 12, or --no-drop-last"),
        (["--precision", "fp8"], "unknown precision 'fp8'"),
        (["--out", "run.txt"], "run.txt is a file"),
    ],
)
def test_a_wrong_value_is_found_before_anything_is_written(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    make_pictures(place / "colours")
    (place / "run.txt").write_text("mine")
    base = ["train", "--data", "colours", "--model", "tiny", "--batch-size", "4"]
    assert said in refused(capsys, 2, *base, *arguments)
    assert (place / "run.txt").read_text() == "mine" and not (place / "runs").exists()


def test_options_of_the_other_commands_are_refused_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("summary", "plot"):
        wide = refused(capsys, 2, command, "resnet20_cifar", "--input", str(10**11))
        assert "--input is 100000000000; it must be at least 1, and 65536 at most" in wide
    out = refused(capsys, 2, "diff", "resnet20_cifar", "resnet20_cifar classes=3")
    assert "classes is no option of a model, but given beside both" in out


def test_what_the_user_gave_stays_as_it_is(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "lr=0.1").mkdir()
    (place / "lr=0.1" / "config.json").write_text("{}")
    assert "error: lr=0.1 holds a run" in refused(capsys, 2, "train", "--data", "hands", "--out", "lr=0.1")
    assert "error: device=cpu does not exist" in refused(capsys, 1, "evaluate", "device=cpu")
    out = refused(capsys, 1, "train", "--out", "seed=3/nothing", "--resume")
    assert "seed=3/nothing" in out and "--seed" not in out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("there is no GPU; use device='cpu'", "there is no GPU; use --device cpu"),
        ("it goes to device=cuda:1.", "it goes to --device cuda:1."),
        ("give a size, such as size=64, to all", "give a size, such as --size 64, to all"),
        ("resnet18: size must be at least 32", "resnet18: --size must be at least 32"),
        ("leave it out: Loader(drop_last=True)", "leave it out: Loader(drop_last=True)"),
        ("Config.of('default', device='cuda')", "Config.of('default', device='cuda')"),
        ("the size is 3, batch_size=2", "the size is 3, batch_size=2"),
        ("give drop_last=True", "give --drop-last"),
        ("or drop_last=False.", "or --no-drop-last."),
        ("try size=0.5, or size=-1e-3.", "try --size 0.5, or --size -1e-3."),
        ("source is 3", "--from is 3"),
        ("try resume=False, or size=None", "try resume=False, or size=None"),
        ("give place=3", "give place=3"),
        ("two of them; say which: source='encoder_q'", "two of them; say which: --from encoder_q"),
        ("say which:\n  source='my net'\nor the other", "say which:\n  --from 'my net'\nor the other"),
        ('say which: source="it\'s"', """say which: --from 'it'"'"'s'"""),
        ("cannot write runs/net-size=3/x.onnx", "cannot write runs/net-size=3/x.onnx"),
        ("cannot read size=3.png", "cannot read size=3.png"),
        ("size=3/x does not exist", "size=3/x does not exist"),
        ("'size=3' is no folder", "'size=3' is no folder"),
    ],
)
def test_a_message_has_the_options_of_the_command(text: str, said: str) -> None:
    own = {"size": ["--size"], "device": ["--device"], "drop_last": ["--drop-last", "--no-drop-last"],
           "source": ["-f", "--from"], "resume": ["--resume"], "place": []}  # fmt: skip
    assert cli.in_options(text, own) == said


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="there is CuPy")
@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "play"])
@pytest.mark.usefixtures("place")
def test_where_there_is_no_gpu_each_command_says_how_to_do_without(
    command: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"train": ["--data", "hands"], "predict": [run, "picture.png"]}.get(command, [run])
    assert refused(capsys, 2, command, *more, "--device", "cuda").endswith("or use --device cpu")


def test_two_models_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "diff", "resnet20_cifar shortcut=A", "resnet20_cifar shortcut=B")
    assert status == 0 and "shortcut A -> B: 2 (res3a, res4a)" in out
    found = json.loads(call(capsys, "diff", "resnet20_cifar", "resnet20_cifar", "--json")[1])
    assert found["equal"] is True
    assert "write the name first" in refused(capsys, 2, "diff", "shortcut=A", "resnet34")


def test_a_summary_has_a_line_for_each_block_or_for_each_layer(capsys: pytest.CaptureFixture[str]) -> None:
    short, full = (call(capsys, "summary", "resnet20_cifar", *more)[1] for more in ((), ("--full",)))
    assert "res2a-res2c  x3" in short and "branch2b" not in short
    assert "branch2b" in full and len(full.splitlines()) > 40


def test_weights_go_out_under_other_names_and_come_in_again(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = models.build("resnet20_cifar", pad="both", seed=3)
    names = tuple(map(str, range(10)))
    normalize = data.Normalize.none()
    mine = Trained(model, "resnet20_cifar", {"pad": "both"}, names, normalize, (32, 32), "none")
    save_model("mine.safetensors", mine)
    arguments = ("export", "mine.safetensors", "--torch", "theirs.safetensors", "--names", "akamaster")
    status, out, _ = call(capsys, *arguments)
    assert status == 0 and out == "theirs.safetensors: mine.safetensors for PyTorch\n"
    status, out, _ = call(
        capsys, "import-weights", "theirs.safetensors", "--model", "resnet20_cifar", "--json"
    )
    assert status == 0 and json.loads(out) == {
        "model": "resnet20_cifar", "source": "akamaster", "tensors": 97, "numbers": 271_098,
        "out": "resnet20_cifar.safetensors", "notes": [],
    }  # fmt: skip
    trained = load_model("resnet20_cifar.safetensors")
    assert trained.variant == {"pad": "both"} and trained.classes[:2] == ("airplane", "automobile")
    state = trained.model.state_dict()
    assert all(np.array_equal(array, state[name]) for name, array in model.state_dict().items())
    wrong = ("import-weights", "theirs.safetensors", "--model", "resnet32_cifar", "--out", "no.safetensors")
    status, _, said = call(capsys, *wrong)
    assert status == 1 and "does not fit the model; nothing was loaded" in said
    assert not Path("no.safetensors").exists()
    assert "export to what?" in refused(capsys, 2, "export", "mine.safetensors")
    line = refused(capsys, 2, "export", "mine.safetensors", "--torch", "other.safetensors")
    assert "akamaster has it (--names akamaster); --onnx writes any model" in line and "vgg" not in line
    save_model("mine.safetensors", replace(mine, model=models.build("resnet20_cifar", seed=3), variant={}))
    line = refused(capsys, 2, "export", "mine.safetensors", "--torch", "other.safetensors")
    assert "(--names akamaster), but with pad=both (a shortcut adds zeros on both sides" in line
    line = refused(capsys, 2, "export", "mine.safetensors", "--keras", "theirs.weights.h5")
    assert line.endswith("--onnx writes any model")


@pytest.mark.parametrize("out", [(), ("--out", "resnet18.safetensors"), ("--out", "link.safetensors")])
def test_weights_are_not_imported_over_their_own_file(
    out: tuple[str, ...], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("resnet18.safetensors").write_bytes(b"theirs")
    Path("link.safetensors").symlink_to("resnet18.safetensors")
    for source in ("resnet18.safetensors", "link.safetensors", place / "resnet18.safetensors"):
        line = refused(capsys, 2, "import-weights", source, "--model", "resnet18", *out)
        name = out[1] if out else "resnet18.safetensors"
        assert line.endswith(f"{name} is the file that is imported; choose another --out")
    assert Path("resnet18.safetensors").read_bytes() == b"theirs"


@pytest.mark.usefixtures("place")
def test_imported_weights_take_the_place_of_no_file_that_was_not_named(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"fc.bias": np.zeros(3, np.float32)}, "theirs.safetensors")
    Path("resnet18.safetensors").write_bytes(b"mine")
    line = refused(capsys, 2, "import-weights", "theirs.safetensors", "--model", "resnet18")
    assert line.endswith("resnet18.safetensors is there already; choose another --out")
    model = (run / "model.safetensors").read_bytes()
    command = ("import-weights", "theirs.safetensors", "--model", "resnet18", "--out")
    assert "model.safetensors is there already" in refused(capsys, 2, *command, run / "model.safetensors")
    line = refused(capsys, 2, *command, run / "checkpoint-00000001.safetensors")
    assert f"00000001.safetensors is a file of the run in {run}: --out must be another file" in line
    assert (run / "model.safetensors").read_bytes() == model


@pytest.mark.parametrize("ours", [False, True])
def test_a_trained_model_is_not_replaced_by_what_is_exported_from_it(
    ours: bool, run: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(run, place / "copy"))
    shutil.copy(run / "model.safetensors", "alone.safetensors")
    Path("link.safetensors").symlink_to(copy / "model.safetensors")
    Path("other.safetensors").symlink_to(next(copy.glob("checkpoint-*")))
    before = {path: path.read_bytes() for path in [*copy.iterdir(), Path("alone.safetensors")]}
    model = "copy" if ours else "alone.safetensors"
    targets = ["copy/model.safetensors", next(copy.glob("checkpoint-*"))]
    targets += ["link.safetensors", "other.safetensors"] if ours else [place / "alone.safetensors"]
    for target in targets:
        line = refused(capsys, 2, "export", model, "--onnx", "new.onnx", "--torch", target)
        assert line.endswith("--torch must be another file"), line
    for name, option in (("a.onnx", "--onnx"), ("a.weights.h5", "--keras"), ("a.pth", "--torch")):
        shutil.copy("alone.safetensors", name)
        line = refused(capsys, 2, "export", f"./{name}", option, name)
        assert f"{name} is the model that is exported, or a file of its run: {option} must be" in line
    assert all(path.read_bytes() == content for path, content in before.items())
    assert Path("link.safetensors").is_symlink() and not Path("new.onnx").exists()


@pytest.mark.usefixtures("place")
def test_a_page_is_not_written_over_what_it_is_made_of(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(run.parent / "colours/red/0.png", "red.html")
    shutil.copy(run / "model.safetensors", "model.html")
    for options in ((run, "--image", "red.html", "--html", "./red.html"),
                    ("model.html", "--html", "model.html")):  # fmt: skip
        assert "is read for the page: --html must be another file" in refused(capsys, 2, "trace", *options)


def test_fine_tuning_takes_over_the_model_and_makes_a_new_head(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = make_pictures(place / "two")
    shutil.rmtree(pictures / "blue")
    base = ("train", "--data", "two", "--start-from", run, "--epochs", "1", "--batch-size", "4")
    status, out, _ = call(capsys, *base, "--freeze", "conv", "--freeze", "n*", "--out", "tuned")
    assert status == 0 and f"starting from {run}; new: fc.bias, fc.weight" in out
    before, after = load_model(run), load_model("tuned")
    assert after.classes == ("green", "red") and after.normalize == before.normalize
    old, new = before.model.state_dict(), after.model.state_dict()
    kept = [name for name in old if np.array_equal(old[name], new[name])]
    assert kept == [name for name in old if not name.startswith("fc.")]
    assert call(capsys, "evaluate", "tuned", "--data", "two")[0] == 0
    assert "there is no part 'cnov' to freeze; the nearest is conv" in refused(
        capsys, 2, *base, "--freeze", "cnov"
    )
    assert "is a tiny, but --model is resnet50; leave --model out" in refused(
        capsys, 2, *base, "--model", "resnet50"
    )
    assert "gone does not exist" in refused(capsys, 1, "train", "--start-from", "gone")


def test_a_run_folder_that_exists_is_left_alone(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    base = ["train", "--data", run.parent / "colours", "--model", "tiny"]
    line = refused(capsys, 2, *base, "--out", run)
    assert "holds a run already" in line and line.endswith("it is finished; choose another folder")
    assert {path.name: path.stat().st_mtime_ns for path in run.iterdir()} == before


def test_continuing_keeps_the_settings_of_the_run(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, 2, "train", "--resume", run, "--epochs", "9", "--batch-size", "2")
    assert "leave out --epochs, --batch-size" in line
    done = shutil.copytree(run, place / "done", ignore=shutil.ignore_patterns("checkpoint-*"))
    status, out, _ = call(capsys, "train", "--resume", done)
    assert status == 0 and out.startswith(f"The run in {done} is finished: there is nothing to go on with; ")
    status, out, err = call(capsys, "train", "--resume", done, "--json")
    assert status == 0 and json.loads(out)["test_accuracy"] == 1 and "is finished" in err
    line = refused(capsys, 1, "train", "--resume", place / "none")
    assert line.endswith("none holds no run to continue; start one without --resume")
    copy = shutil.copytree(run, place / "copy")
    for arguments in (["--resume", copy], ["--resume", "--out", copy, "--device", "cpu"]):
        (copy / "summary.json").unlink()  # as if its end had not been reached
        status, out, _ = call(capsys, "train", *arguments)
        assert status == 0 and out.startswith(f"Continuing the run in {copy}\n")
        finished = json.loads((copy / "summary.json").read_text())
        assert finished["test_accuracy"] == json.loads((run / "summary.json").read_text())["test_accuracy"]


def test_a_checkpoint_of_another_run_or_model_is_refused(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(run, place / "copy", ignore=shutil.ignore_patterns("summary.json"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "variant": {"width": 5}}))
    assert "belongs to another run" in refused(capsys, 1, "train", "--resume", copy)
    # The file names the model tiny, and here tiny is wider.
    monkeypatch.setitem(models.MODELS, "tiny", models.Entry(partial(Tiny, width=6), size=12, classes=3))
    got, _, err = call(capsys, "evaluate", run)
    assert got == 1 and "model.safetensors holds a tiny" in err and "conv.weight" in err


def test_a_damaged_checkpoint_is_a_warning_in_one_line(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, place / "copy", ignore=shutil.ignore_patterns("summary.json"))
    newest = sorted(copy.glob("checkpoint-*.safetensors"))[-1]
    newest.write_bytes(newest.read_bytes()[:-9])
    status, _, err = call(capsys, "train", "--resume", copy)
    warned = [line for line in err.splitlines() if line.startswith("minires: warning: ")]
    assert status == 0 and len(warned) == 1
    assert newest.name in warned[0] and "using the checkpoint before it" in warned[0]


def test_an_unexpected_signal_while_training_is_130(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pictures(place / "colours")
    step = minires.train.Trainer._step

    def step_and_stop(self: Any, *arguments: Any) -> None:
        step(self, *arguments)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(minires.train.Trainer, "_step", step_and_stop)
    base = ("train", "--data", "colours", "--model", "tiny", "--batch-size", "4", "--epochs", "2")
    status, _, err = call(capsys, *base, "--out", "run")
    assert status == 130
    assert err.strip().splitlines()[-1].startswith("minires: stopped after step 1; everything is saved in ")
    assert list(Path("run").glob("checkpoint-*.safetensors"))


# ------------------------------------------------------------------------------------ evaluate, predict


def test_evaluate_counts_what_is_right(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out, _ = call(capsys, "evaluate", run, "--json")
    got, summary = json.loads(out), json.loads((run / "summary.json").read_text())
    assert status == 0 and got["split"] == "test" and got["total"] == summary["test_pictures"] == 6
    assert got["accuracy"] == got["correct"] / got["total"] == summary["test_accuracy"]
    assert got["loss"] == pytest.approx(summary["test_loss"])
    status, text, _ = call(capsys, "evaluate", run / "model.safetensors")
    assert status == 0 and f"{got['correct']} of 6 right, accuracy {100 * got['accuracy']:.2f}%" in text
    pictures = run.parent / "colours"
    train = json.loads(call(capsys, "evaluate", run, "--data", pictures, "--split", "train", "--json")[1])
    assert train["total"] == 19 and summary["train_pictures"] == 19 + 5 and train["accuracy"] > 0.8


def test_a_changed_model_is_evaluated_asked_and_traced_and_the_changes_are_said(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = load_model(run)
    test = data.load(run.parent / "colours", size=12).test
    with minires.intervene(trained.model, {"norm[0:2]": 0, "fc": 0.5}):
        right = evaluate(trained.model, test, trained.normalize)
        best = float(predict(trained.model, test.images[:1], trained.normalize).max())
    said = ["norm[0:2]: 0 x channels 0:2 of its output", "fc: 0.5 x its output"]
    change = ["--change", "norm[0:2]=0", "--change", "fc=0.5"]
    got = json.loads(call(capsys, "evaluate", run, *change, "--json")[1])
    plain = json.loads(call(capsys, "evaluate", run, "--json")[1])
    assert got["loss"] == pytest.approx(right.loss) != plain["loss"]
    assert got["changes"] == said and plain["changes"] == []
    picture = run.parent / "colours/red/0.png"
    for command, more in (("evaluate", ()), ("predict", (picture,)), ("trace", ("--html", "a.html"))):
        status, text, _ = call(capsys, command, run, *more, *change)
        assert status == 0 and all(f"changed: {one}\n" in text for one in said), command
        assert "changed" not in call(capsys, command, run, *more)[1]
    assert json.loads(call(capsys, "predict", run, picture, *change, "--json")[1])["changes"] == said
    got = json.loads(call(capsys, "trace", run, "--html", "a.html", *change, "--json")[1])
    assert got["changes"] == said and got["probability"] == pytest.approx(best)
    assert "unknown change 'of'" in refused(capsys, 2, "evaluate", run, "--change", "fc=of")
    assert "no module 'fd'" in refused(capsys, 2, "predict", run, picture, "--change", "fd=drop")
    assert "say what becomes of what" in refused(capsys, 2, "trace", run, "--change", "fc")
    assert "given twice" in refused(capsys, 2, "evaluate", run, "--change", "fc=1", "--change", "fc=2")
    assert "in the place of" in refused(capsys, 1, "evaluate", run, "--change", "swap=conv,pool")
    assert "cannot be dropped" in refused(capsys, 1, "evaluate", run, "--change", "pool=drop")
    asked = argparse.Namespace(change=["swap=a,b", "swap=c,d", "order=e,f", "g=drop", "h[1]=-2"])
    assert changes_of(asked) == {
        "swap": [["a", "b"], ["c", "d"]], "order": ["e", "f"], "g": "drop", "h[1]": -2.0
    }  # fmt: skip


def test_evaluate_by_several_views_of_each_picture(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = json.loads(call(capsys, "evaluate", run, "--json")[1])
    for crops, scales in (("1", [28]), ("10", [28, 36]), ("full", [28, 36]), ("10", [])):
        options = ["--crops", crops, *(["--scales", ",".join(map(str, scales))] if scales else [])]
        status, out, err = call(capsys, "evaluate", run, *options, "--json")
        assert status == 0, err
        got = json.loads(out)
        assert got["total"] == plain["total"] and got["loss"] != plain["loss"], options
        assert got["crops"] == crops and got["scales"] == scales
    assert ", ten crops:" in call(capsys, "evaluate", run, "--crops", "10")[1]
    assert "--scales is for --crops" in refused(capsys, 2, "evaluate", run, "--scales", "40")
    assert "whole numbers" in refused(capsys, 2, "evaluate", run, "--crops", "10", "--scales", "4x")
    assert "cannot be cut" in refused(capsys, 2, "evaluate", run, "--crops", "10", "--scales", "2")


def test_evaluate_refuses_what_does_not_fit(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pictures(place / "colours")
    (place / "colours" / "red").rename(place / "colours" / "crimson")
    line = refused(capsys, 1, "evaluate", run, "--data", place / "colours")
    assert "knows the classes blue, green, red" in line and "has blue, crimson, green" in line
    alone = Path(shutil.copy(run / "model.safetensors", place / "alone.safetensors"))
    assert "use --data" in refused(capsys, 2, "evaluate", alone)
    assert "does not exist" in refused(capsys, 1, "evaluate", place / "nothing")
    assert "is a checkpoint of a run" in refused(capsys, 1, "evaluate", next(run.glob("checkpoint-*")))
    assert "no such file" in refused(capsys, 1, "evaluate", run, "--data", place / "x" / "y")


def test_predict_names_pictures_of_any_size_and_mode(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, colour in enumerate(COLOURS):
        size = (300, 20 + 300 * number)
        Image.new("RGBA", size, {"blue": "#3030c8", "green": "#30c830", "red": "#c83030"}[colour]).save(
            f"{colour}.png"
        )
    files = [f"{colour}.png" for colour in COLOURS]
    status, out, _ = call(capsys, "predict", run, *files, "--json")
    got = json.loads(out)
    assert status == 0 and got["classes"] == list(COLOURS)
    assert [one["label"] for one in got["predictions"]] == list(COLOURS)
    assert [one["picture"] for one in got["predictions"]] == files
    for one in got["predictions"]:
        assert sum(guess["probability"] for guess in one["top"]) == pytest.approx(1)
        assert one["probability"] == max(guess["probability"] for guess in one["top"]) > 0.5
    status, out, _ = call(capsys, "predict", run, *files, "--top", "1")
    assert status == 0
    for line, one in zip(out.splitlines(), got["predictions"], strict=True):
        assert line.split() == [one["picture"], one["label"], f"{100 * one['probability']:.1f}%"]


def test_evaluate_takes_any_pictures_with_labels(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of them, whatever the order of the classes, where one is missing; or the part that is there."""
    make_pictures(place / "more", each=4)
    (place / "more" / "red").rename(place / "more" / "Red")
    shutil.rmtree(place / "more" / "blue")
    with tarfile.open("more.tar.gz", "w:gz") as archive:
        archive.add("more")
    shutil.make_archive("zipped", "zip", "more")
    for path in ("more", "more.tar.gz", "zipped.zip"):
        status, out, err = call(capsys, "evaluate", run, "--data", path, "--json")
        got = json.loads(out)
        assert status == 0 and (got["total"], got["split"]) == (8, "all") and got["accuracy"] > 0.8, path
    Path("parts/Test_Set").mkdir(parents=True)
    for name in ("Red", "green"):
        shutil.copytree(f"more/{name}", f"parts/Test_Set/{name}")
    got = json.loads(call(capsys, "evaluate", run, "--data", "parts", "--json")[1])
    assert (got["total"], got["split"]) == (8, "test")
    shutil.copytree("more", "parts/val")
    shutil.copytree("more", "parts/train")
    os.remove("parts/train/Red/0.png")
    for split, total in (("test", 8), ("val", 8), ("train", 7), ("all", 23)):
        got = json.loads(call(capsys, "evaluate", run, "--data", "parts", "--split", split, "--json")[1])
        assert (got["total"], got["split"]) == (total, split)
    shutil.rmtree("parts/Test_Set")
    line = refused(capsys, 1, "evaluate", run, "--data", "parts")
    assert "which part? There are train and val with labels: try --split val" in line
    line = refused(capsys, 1, "evaluate", run, "--data", "more/Red")
    assert "the pictures have no labels" in line and "`minires predict` says what is on pictures" in line
    pictures = run.parent / "colours"
    status, out, err = call(capsys, "evaluate", run, "--data", pictures)
    assert "of 30 right" in out and "was trained on 24 of these 30 pictures" in err
    status, out, err = call(capsys, "evaluate", run)
    assert "of 6 right" in out and "was trained on" not in err


def test_predict_takes_folders_and_archives_and_writes_a_table(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pictures(place / "more", each=2)
    os.rename("more/blue", "more/unknown")
    shutil.copy("more/red/0.png", "more/red/=1+1.png")
    status, out, _ = call(capsys, "predict", run, "more", "--csv", "t.csv")
    assert status == 0 and out.splitlines()[-1] == "5 of 5 right, by the folders that they stand in"
    assert [line.split()[:2] for line in out.splitlines()[:2]] == [
        ["more/green/0.png", "green"], ["more/green/1.png", "green"],
    ]  # fmt: skip
    with open("t.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["picture", "label", "true", "probability", "blue", "green", "red"]
    assert [row["true"] for row in rows] == ["green"] * 2 + ["red"] * 3 + [""] * 2
    assert rows[4]["picture"] == "more/red/=1+1.png" and rows[5]["label"] == "blue"
    for row in rows:
        assert sum(float(row[label]) for label in COLOURS) == pytest.approx(1, abs=1e-5)
        assert row["probability"] == row[row["label"]] == max(row[label] for label in COLOURS)
    shutil.make_archive("flat", "gztar", "more/red")
    (place / "=here").mkdir()
    shutil.copy("more/red/0.png", "=here/0.png")
    files = ("flat.tar.gz", "=here", "more/red/1.png")
    found = json.loads(call(capsys, "predict", run, *files, "--json", "--csv", "t.csv")[1])["predictions"]
    assert [one["picture"] for one in found] == [
        "flat.tar.gz/0.png", "flat.tar.gz/1.png", "flat.tar.gz/=1+1.png", "=here/0.png", "more/red/1.png",
    ]  # fmt: skip
    assert "true" not in found[0]
    table = Path("t.csv").read_text("utf-8-sig").splitlines()
    assert table[0] == "picture,label,probability,blue,green,red" and table[4].startswith("'=here/0.png,red,")


def test_pictures_that_a_run_was_trained_on_are_known_wherever_they_lie(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy of all, in another folder or an archive; of its test pictures alone nothing is said."""
    shutil.copytree(run.parent / "colours", place / "copied")
    shutil.make_archive("packed", "zip", "copied")
    for command in (("evaluate", run, "--data", "copied"), ("evaluate", run, "--data", "packed.zip"),
                    ("predict", run, "copied")):  # fmt: skip
        status, _, err = call(capsys, *command)
        assert status == 0 and f"warning: {run} was trained on 24 of these 30 pictures" in err, command
    splits = data.load("copied", size=12)
    for part in (splits.train, splits.val):
        for name in part.names:
            os.remove(place / "copied" / name)
    for command in (("evaluate", run, "--data", "copied"), ("predict", run, "copied")):
        status, out, err = call(capsys, *command)
        assert status == 0 and "of 6 right" in out and "was trained on" not in err
    alone = Path(shutil.copy(run / "model.safetensors", place / "alone.safetensors"))
    status, out, err = call(capsys, "evaluate", alone, "--data", "packed.zip")
    assert status == 0 and "of 30 right" in out and "was trained on" not in err  # nobody knows


def test_pictures_of_a_run_that_streamed_are_known_by_their_files(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pictures(place / "colours")
    options = ("--data", "colours", "--model", "tiny", "--epochs", "2", "--out", "run", "--stream")
    status, out, err = call(capsys, "train", *options)
    assert status == 0 and "the pictures are decoded while they are needed (stream)" in out
    assert json.loads(Path("run/config.json").read_text())["stream"] is True
    shutil.copytree("colours", "copied")
    shutil.make_archive("packed", "zip", "copied")
    for command in (("evaluate", "run", "--data", "copied"), ("evaluate", "run", "--data", "packed.zip"),
                    ("predict", "run", "copied")):  # fmt: skip
        status, out, err = call(capsys, *command)
        assert status == 0 and "warning: run was trained on 24 of these 30 pictures" in err, command
    monkeypatch.setattr("minires.commands.pictures.ASKED", 10)
    for command in ("evaluate", "run", "--data", "copied"), ("predict", "run", "copied"):
        assert "of these 10 pictures" in call(capsys, *command)[2], command
    status, out, err = call(capsys, "evaluate", "run")
    assert status == 0 and "of 6 right" in out and "was trained on" not in err
    status, out, err = call(capsys, "evaluate", "run", "--data", "signs")
    assert "was trained on" not in err


def test_every_picture_is_decoded_once_by_data_check(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pictures(place / "colours")
    status, out, err = call(capsys, "data", "colours", "--check")
    assert status == 0 and "all of 30 pictures can be read" in out and not err
    broken = sorted((place / "colours").rglob("*.png"))[5:17]
    for path in broken:
        path.write_bytes(path.read_bytes()[:90])
    status, out, err = call(capsys, "data", "colours", "--check")
    assert status == 1 and "12 of 30 pictures cannot be read; mend or remove them:" in out
    names = [path.relative_to(place / "colours").as_posix() for path in broken]
    assert [line.strip().split(": ")[0] for line in out.splitlines()[1:]] == names  # not ten of them
    status, out, err = call(capsys, "data", "colours", "--check", "--json")
    told = json.loads(out)
    assert status == 1 and told["pictures"] == 30 and len(told["unreadable"]) == 12
    assert "say which data set" in refused(capsys, 2, "data", "--check")
    assert "no such file" in refused(capsys, 1, "data", "no/where", "--check")


def test_shards_are_trained_on_and_found_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = sorted(make_pictures(place / "colours").rglob("*.png"))
    for shard in range(3):
        with tarfile.open(place / f"set-{shard:02}.tar", "w") as archive:
            for number, path in enumerate(pictures[shard::3]):
                archive.add(path, f"{number}.png")
                (place / "label").write_text(path.parent.name)
                archive.add(place / "label", f"{number}.cls")
    options = ("--data", "set-{00..02}.tar", "--model", "tiny", "--epochs", "1", "--out", "run")
    status, out, err = call(capsys, "train", *options)
    assert status == 0 and "24 training, 0 validation, 6 test pictures" in out and "error" not in err
    status, out, err = call(capsys, "evaluate", "run")
    assert status == 0 and "of 6 right" in out
    assert "all of 30 pictures can be read" in call(capsys, "data", "set-{00..02}.tar", "--check")[1]
    (place / "set-00.tar").unlink()
    assert "are no more at" in refused(capsys, 1, "evaluate", "run")


def test_a_cache_and_a_draft_are_settings_of_a_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_pictures(place / "colours")
    options = ("--data", "colours", "--model", "tiny", "--epochs", "1")
    assert call(capsys, "train", *options, "--out", "a", "--cache", "--draft")[0] == 0
    config = json.loads(Path("a/config.json").read_text())
    assert (config["stream"], config["cache"], config["draft"]) == (None, "pixels", True)
    assert len([*(place / "cache/minires/pixels").glob("*.uint8")]) == 1
    line = refused(capsys, 2, "train", *options, "--out", "b", "--cache", "--no-stream")
    assert "cache is for a stream; leave it out" in line


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("data", ""), "NAME is empty"), (("train", "--data", ""), "--data is empty"),
        (("predict", "run", "a.png", ""), "PICTURE is empty"),
        (("import-weights", "", "--model", "x"), "FILE is empty"),
        (("train", str(Path(__file__).parent)), "too many arguments: /"),
        (("train", str(Path(__file__).parent)), "; did you mean --data /"),
        (("data", "https://example.com/a.zip"), "a.zip: nothing is fetched; download it first"),
        (("import-weights", "http://a.b/c.pth", "--model", "x"), "c.pth: nothing is fetched"),
    ],
)  # fmt: skip
def test_an_argument_that_cannot_be_meant_is_refused_in_words(
    command: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(command)
    assert said in capsys.readouterr().err


def test_a_name_that_is_too_long_is_refused_with_a_way(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, 1, "train", "--data", "hands", "--out", 300 * "y")
    assert line.endswith("y: File name too long. Choose a shorter name")


def test_a_table_takes_the_place_of_a_table_alone(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = Path(shutil.copy(run.parent / "colours/red/0.png", place / "red.png"))
    before = {path: path.read_bytes() for path in (picture, run / "model.safetensors", run / "metrics.csv")}
    shutil.copy(picture, "named.csv")
    predict = ("predict", run, "red.png", "--csv")
    for path in (picture, run / "model.safetensors", "table.txt"):
        assert "but a table is written as .csv" in refused(capsys, 2, *predict, path)
    for path in (run / "metrics.csv", "named.csv"):
        assert "is there already, and is no table" in refused(capsys, 2, *predict, path)
    assert all(path.read_bytes() == content for path, content in before.items())
    with tarfile.open("tar.csv", "w", format=tarfile.USTAR_FORMAT) as packed:  # which begins as a table
        packed.add(picture, "picture,label,red.png")
    line = refused(capsys, 2, "predict", run, "tar.csv", "--csv", "./tar.csv")
    assert "tar.csv is among the pictures: --csv must be another file" in line
    begun = Path("begun")
    begun.mkdir()
    shutil.copy(run / "config.json", begun)
    assert "metrics.csv is a file of the run in begun" in refused(capsys, 2, *predict, "begun/metrics.csv")
    for _ in range(2):
        assert call(capsys, *predict, "t.CSV")[0] == 0
    assert Path("t.CSV").read_bytes().startswith(b"\xef\xbb\xbfpicture,label,")  # so that Excel knows UTF-8
    Path("t.CSV").write_bytes(Path("t.CSV").read_bytes()[3:])
    assert call(capsys, *predict, "t.CSV")[0] == 0


def test_where_the_pictures_of_a_run_have_moved_it_is_said_what_to_do(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(run, place / "copy"))
    (copy / "model.safetensors").rename("model.safetensors")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "data": str(place / "moved")}))
    shutil.copy("model.safetensors", copy)
    for command in (("evaluate", "copy"), ("trace", "copy")):
        line = refused(capsys, 1, *command)
        assert f"pictures that copy was trained on are no more at {place / 'moved'}: put them back" in line
        assert line.endswith("or give pictures with --data")
    (copy / "summary.json").unlink()
    line = refused(capsys, 1, "train", "--resume", "copy")
    assert line.endswith(f"no more at {place / 'moved'}: put them back there, or a link to where they are")


def test_weights_of_others_are_no_trained_model_and_the_way_to_one_is_named(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"fc.bias": np.zeros(3, np.float32)}, "theirs.safetensors")
    Path("theirs.pth").write_bytes(b"PK\x03\x04" + bytes(60))
    Path("theirs.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(60))
    Path("page.pth").write_bytes(b"<!DOCTYPE html><title>404</title>" + bytes(60))
    for name in ("theirs.safetensors", "theirs.pth", "theirs.h5"):
        line = refused(capsys, 1, "predict", name, "a.png")
        assert line.endswith(f"trained by: minires import-weights {name} --model NAME"), line
    line = refused(capsys, 1, "predict", "page.pth", "a.png")
    assert line.endswith("a web page, not the file itself; was the download refused?")


def test_a_part_is_chosen_where_the_test_pictures_have_no_labels(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run.parent / "colours", place / "set/train")
    shutil.copytree(run.parent / "colours", place / "set/val")
    shutil.copytree(run.parent / "colours/red", place / "set/test")
    for command in ("evaluate", "trace"):
        line = refused(capsys, 1, command, run, "--data", "set")
        assert "which part? The pictures of test have no labels. There are train and val" in line
        assert line.endswith("try --split val")
    found = json.loads(
        call(capsys, "trace", run, "--data", "set", "--split", "val", "--html", "a.html", "--json")[1]
    )
    assert (found["picture"], found["label"]) == ("val/blue/0.png", "blue")
    line = refused(capsys, 2, "trace", run, "--image", "set/test/0.png", "--split", "val")
    assert "--split val is a part of a data set" in line
    line = refused(capsys, 2, "trace", run, "--data", "set/test/0.png")
    assert line.endswith("--data set/test/0.png is a picture by itself: use --image set/test/0.png")


def test_an_hdf5_file_is_no_picture_and_the_message_says_what_reads_it(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "held").mkdir()
    Path("held/test_signs.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50))
    for path in ("held", "held/test_signs.h5"):
        line = refused(capsys, 1, "predict", run, path)
        assert "an HDF5 file: `minires train` and `minires evaluate` read one" in line


def test_labels_of_signs_are_read_from_the_names_of_files(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train_signs", 2), ("test_signs", 1)):
        (place / "SIGNS" / part).mkdir(parents=True)
        for name in [f"{k}_IMG_{number}.jpg" for k in range(6) for number in range(count)]:
            picture = Image.fromarray(rng.integers(0, 256, (12, 12, 3)).astype(np.uint8))
            picture.save(place / "SIGNS" / part / name)
    shutil.make_archive("test_signs", "zip", "SIGNS/test_signs")
    model = models.build("tiny", classes=6, seed=0)
    classes = tuple(map(str, range(6)))
    trained = Trained(model, "tiny", {}, classes, data.Normalize.none(), (12, 12), "none")
    save_model("model.safetensors", trained)
    for path, total in (("SIGNS/test_signs", 6), ("test_signs.zip", 6), ("SIGNS", 18)):
        status, out, _ = call(capsys, "predict", "model.safetensors", path)
        assert status == 0 and out.splitlines()[-1].endswith(f" of {total} right, by their names")
        if total == 6:
            found = json.loads(call(capsys, "evaluate", "model.safetensors", "--data", path, "--json")[1])
            assert (found["total"], found["split"]) == (6, "test")
            found = json.loads(call(capsys, "data", path, "--json")[1])
            assert found["per_class"] == {"test": [1] * 6}


def test_a_table_is_written_whole_or_not_at_all(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pictures(place / "more", each=1)
    for name in ("a", "b"):
        Path(f"more/{name}.jpg").write_bytes(b"<html>")
    line = call(capsys, "predict", run, "more", "--csv", "t.csv")[2]
    assert "2 unreadable pictures" in line and "more/a.jpg: cannot read this picture: this is a web" in line
    assert not Path("t.csv").exists()
    assert "there is no folder no" in refused(capsys, 2, "predict", run, "more", "--csv", "no/t.csv")
    (place / "empty").mkdir()
    assert "empty: no picture found" in refused(capsys, 1, "predict", run, "empty")


def test_predict_refuses_a_missing_or_broken_picture(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nosuch.png: cannot read this picture: no such file" in refused(
        capsys, 1, "predict", run, "nosuch.png"
    )
    Path("broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    assert "broken.png" in refused(capsys, 1, "predict", run, run.parent / "colours/red/0.png", "broken.png")
    assert "--top is 0" in refused(capsys, 2, "predict", run, "x.png", "--top", "0")
    assert call(capsys, "predict", run)[0] == 2  # no picture at all


@pytest.mark.skipif(not backend.HAS_NUMBA, reason="there are no kernels without Numba")
def test_commands_that_compile_say_so_the_first_time_and_beside_the_result(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Tiny.forward

    def with_a_new_kernel(self: Tiny, x: Tensor) -> Tensor:
        backend.kernel(lambda one: one + 1)(1)
        return forward(self, x)

    monkeypatch.setattr(Tiny, "forward", with_a_new_kernel)
    pictures = run.parent / "colours"
    train = ("train", "--data", pictures, "--model", "tiny", "--epochs", "1", "--json")
    predict = ("predict", run, pictures / "red/0.png", "--json")
    for arguments in (train, ("evaluate", run, "--json"), predict):
        monkeypatch.setattr("numba.config.CACHE_DIR", str(place / f"kernels of {arguments[0]}"))
        for times in (1, 0):
            status, out, err = call(capsys, *arguments)
            assert status == 0 and json.loads(out)
            assert err.count("compiling the kernels that are new here (they are kept") == times


# ------------------------------------------------------------------------------------------ trace, play


def test_a_run_is_traced_with_its_first_test_picture_or_with_one_of_the_users(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = call(capsys, "trace", run, "--json")
    got = json.loads(out)
    page = run / "trace-tiny.html"
    assert status == 0 and Path(got["html"]) == page and got["bytes"] == page.stat().st_size > 100_000
    test = data.load(run.parent / "colours", size=12).test
    trained = load_model(run)
    guess = trained.classes[predict(trained.model, test.images[:1], trained.normalize)[0].argmax()]
    assert got["guess"] == guess
    page.unlink()
    picture = run.parent / "colours/red/0.png"
    arguments = ("trace", run, "--image", picture, "--label", "blue", "--html", "red.html")
    status, text, _ = call(capsys, *arguments)
    assert status == 0 and "red.html" in text and "guess: red" in text
    assert Path("red.html").is_file() and not page.exists()


def test_the_loss_of_a_trace_is_for_the_label_of_the_picture_or_for_the_one_given(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = data.load(run.parent / "colours", size=12)
    backwards = replace(splits, test=splits.test.take(range(len(splits.test) - 1, -1, -1)))
    monkeypatch.setattr(data, "load", lambda *_, **__: backwards)
    labels: list[Any] = []

    def spied(model: nn.Module, x: Any, y: Any, *, out: str, **_: Any) -> None:
        labels.append(y)
        Path(out).write_text("a page")

    monkeypatch.setattr("minires.debug.trace_page.trace", spied)
    for more in ((), ("--label", "green"), ("--image", run.parent / "colours/red/0.png")):
        assert call(capsys, "trace", run, "--html", "page.html", *more)[0] == 0
    assert backwards.test.labels[0] == 2 and labels == [2, 1, None]


def test_a_trace_takes_the_first_picture_of_a_folder_or_of_a_data_set(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pictures(place / "more", each=2)
    alone = Path(shutil.copy(run / "model.safetensors", place / "alone.safetensors"))
    assert "use --data" in refused(capsys, 2, "trace", alone)
    got = json.loads(call(capsys, "trace", alone, "--data", "more", "--html", "a.html", "--json")[1])
    assert (got["picture"], got["label"], got["html"]) == ("blue/0.png", "blue", "a.html")
    status, text, _ = call(capsys, "trace", alone, "--image", "more/green", "--html", "a.html")
    assert status == 0 and "The picture: more/green/0.png" in text
    assert call(capsys, "trace", alone, "--image", "more", "--data", "more")[0] == 2


def test_a_fresh_model_is_traced_with_a_picture(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_pictures(place / "colours", 1)
    status, text, _ = call(capsys, "trace", "tiny", "--image", "colours/red/0.png")
    assert status == 0 and "trace-tiny.html" in text and Path("trace-tiny.html").is_file()
    assert "which picture? --image FILE" in refused(capsys, 2, "trace", "tiny")


def test_a_trace_without_a_label_has_gradients_and_says_which_label_was_taken(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An untrained ResNet-20 is so sure of its guess, whatever it sees, that the loss of that is 0."""
    recordings: list[Recording] = []

    def spied(*args: Any, **kwargs: Any) -> Recording:
        recordings.append(record_passes(*args, **kwargs))
        return recordings[-1]

    monkeypatch.setattr("minires.debug.trace_page.build.record_passes", spied)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)).save("noise.png")
    arguments = ("trace", "resnet20_cifar", "--image", "noise.png")
    found = json.loads(call(capsys, *arguments, "--json")[1])
    scores = recordings[-1].logits[0]
    best, second = np.argsort(-scores)[:2]
    assert found["guess"] == str(best) and found["label"] == str(second)
    assert found["chosen"] and not found["noise"] and not recordings[-1].noise
    assert recordings[-1].loss > 1 and np.abs(recordings[-1].operations[0].incoming).max() > 1e-3
    text = call(capsys, *arguments)[1]
    assert f"No label given: the loss is as if {second} were right, its second guess" in text
    assert "noise" not in text.replace("noise.png", "")
    text = call(capsys, *arguments, "--label", best)[1]
    assert "The loss is about 0: the gradients are noise" in text and "No label given" not in text
    assert recordings[-1].noise and np.abs(recordings[-1].operations[0].incoming).max() < 1e-6
    found = json.loads(call(capsys, *arguments, "--label", best, "--json")[1])
    assert found["noise"] and not found["chosen"] and found["label"] == str(best)


def test_trace_and_play_refuse_what_cannot_be(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, 2, "trace", "resnet5")
    assert "resnet5 is neither a run folder, a model.safetensors file nor a model" in line
    assert "--label pink: the model knows blue, green, red" in refused(
        capsys, 2, "trace", run, "--label", "pink"
    )
    assert "nosuch.png" in refused(capsys, 1, "trace", run, "--image", "nosuch.png")
    assert "cannot write" in refused(capsys, 1, "trace", run, "--html", place / "no" / "x.html")
    assert "does not exist" in refused(capsys, 1, "play", place / "nothing")
    assert "port" in refused(capsys, 2, "play", run, "--port", "99999", "--no-browser")


# ------------------------------------------------------------------------------ summary, gradcheck, data


def test_summary_as_text_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "summary", "resnet50_signs", "--json")
    got = json.loads(out)
    assert status == 0 and got["macs"] == 308_178_944 and len(got["layers"]) == 110
    assert (got["params_total"], got["params_trainable"]) == (23_600_006, 23_546_886)
    status, out, _ = call(capsys, "summary", "--classes", "10", "--input", "96")
    assert status == 0 and out.startswith("resnet50_signs, input 96x96x3\n")
    assert "output 48x48" in out and f"{10 * (4 * 2048 + 1):,}" in out  # 2x2 places are left at this size


def test_summary_refuses_what_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert "the nearest are resnet50_signs" in refused(capsys, 2, "summary", "resnet50_sign")
    assert "--input is 0" in refused(capsys, 2, "summary", "--input", "0")
    assert "classes must be a whole number of at least 1" in refused(capsys, 2, "summary", "--classes", "0")
    assert "pictures of 2x2 are too small, it takes 5x5 and larger" in refused(
        capsys, 2, "summary", "--input", "2"
    )


def test_summary_of_a_variant(capsys: pytest.CaptureFixture[str]) -> None:
    # ResNet-18 with option A has 11,523,496 parameters, with option B 11,699,112 (trained: 11,689,512).
    for option, params in (("A", "11,523,496"), ("B", "11,699,112")):
        status, out, _ = call(capsys, "summary", "resnet18", "--variant", f"shortcut={option}")
        assert status == 0 and params in out
    status, out, _ = call(capsys, "summary", "resnet18", "--variant", "repeats=[1,1,1,1]", "--input", "64")
    assert status == 0 and "res2a" in out and "res2b" not in out
    message = refused(capsys, 2, "summary", "resnet18", "--variant", "shortcut")
    assert "write NAME=VALUE" in message
    assert "Did you mean 'shortcut'" in refused(capsys, 2, "summary", "resnet18", "--variant", "shortcuts=A")


def test_models_are_listed_by_paper_with_a_filter(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "models", "resnet1??_keras")
    lines = out.splitlines()
    assert status == 0 and lines[-1].startswith(f"2 of {len(models.names())} models.")
    assert "He et al. 2015, arXiv:1512.03385: Deep residual learning for image recognition" in lines
    (row,) = [line.split() for line in lines if line.startswith("resnet101_keras")]
    assert row[:4] == ["resnet101_keras", "224x224", "1000", "44,601,832"]
    assert " ".join(row[4:]) == models.entry("resnet101_keras").title
    got = json.loads(call(capsys, "models", "signs", "--json")[1])["models"]
    assert got == [{
        "name": "resnet50_signs", "title": models.entry("resnet50_signs").title, "size": 64, "classes": 6,
        "parameters": 23_546_886, "paper": {
            "authors": "He et al.", "year": 2015, "arxiv": "1512.03385",
            "title": "Deep residual learning for image recognition",
        },
    }]  # fmt: skip
    assert "unknown model 'resnt'; the nearest are" in refused(capsys, 2, "models", "resnt")


def test_gradcheck_prints_a_row_per_case(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "gradcheck", "relu", "linear")
    count = len(cases.all_cases()["relu"]) + len(cases.all_cases()["linear"])
    assert status == 0 and out.count(" right ") == count and f"all {count} cases are right" in out
    status, out, _ = call(capsys, "gradcheck", "relu", "--json")
    got = json.loads(out)
    assert status == 0 and got["ok"] and {row["op"] for row in got["cases"]} == {"relu"}
    assert all(0 <= row["error"] < 1e-5 and row["ok"] for row in got["cases"])
    assert "no operation 'con2d'; the nearest is conv2d" in refused(capsys, 2, "gradcheck", "con2d")


def test_a_wrong_gradient_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from minires.tensor import record

    def doubled(x: Tensor) -> Tensor:
        y = np.maximum(x.data, 0)
        return record("doubled", y, inputs={"x": x}, backward=lambda dy: (2 * dy * (x.data > 0),))

    wrong = replace(registry.describe("relu"), function=doubled,
                    cases=lambda: [registry.Case("doubled", {"x": registry.apart((3, 4))})])  # fmt: skip
    monkeypatch.setitem(registry.OPERATIONS, "relu", wrong)
    status, out, _ = call(capsys, "gradcheck", "relu")
    assert status == 1 and "WRONG" in out and "1 of 1 cases are WRONG" in out and "analytic" in out
    status, out, _ = call(capsys, "gradcheck", "relu", "--json")
    assert status == 1 and not json.loads(out)["ok"]


def test_data_lists_where_each_set_is(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "data")
    assert status == 0 and "not found" in out and str(place / "data") in out
    got = json.loads(call(capsys, "data", "--json")[1])
    assert {one["name"]: one["available"] for one in got["data"]} == {
        "signs": False, "hands": True, "cifar10": False,
    }  # fmt: skip
    assert got["searched"] == [str(place / "data"), str(place / "cache" / "minires")]
    assert "'signs' not found" in refused(capsys, 1, "data", "signs")
    assert "Did you mean 'signs'?" in refused(capsys, 2, "data", "sings")
    assert "which data set" in refused(capsys, 2, "data", "--download")


def test_data_shows_what_a_folder_holds(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_pictures(place / "colours")
    status, out, err = call(capsys, "data", "colours")
    assert status == 0 and "from 40 wide, 36 high to 40 wide, 45 high" in out
    status, sized, _ = call(capsys, "data", "colours", "--size", "20")
    assert status == 0 and "20 wide, 20 high" in sized and sized.splitlines()[1:] == out.splitlines()[1:]
    assert out.splitlines()[-1].split() == ["all", "19", "5", "6"]
    got = json.loads(call(capsys, "data", "colours", "--size", "20", "--json")[1])
    assert (got["train"], got["val"], got["test"]) == (19, 5, 6) and got["classes"] == list(COLOURS)
    assert sum(got["per_class"]["train"]) == 19 and got["size"] == [20, 20]
    assert "minires: warning: few pictures: 19 to train 3 classes" in err
    assert got["warnings"][0].startswith("few pictures: 19") and got["twins"] == []
    shutil.copy("colours/red/0.png", "colours/blue/again.png")
    got = json.loads(call(capsys, "data", "colours", "--json")[1])
    (twins,) = got["twins"]
    assert {twins["one"]["picture"], twins["other"]["picture"]} == {"red/0.png", "blue/again.png"}
    assert not twins["nearly"] and got["size"] is None and got["smallest"] == [36, 40]


def test_data_prepares_and_downloads(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pictures(place / "colours")
    assert "no SIGNS here" in refused(capsys, 1, "data", "signs", "--from", "colours")
    assert "no such file" in refused(capsys, 1, "data", "signs", "--from", "nothing")
    assert "cannot be prepared" in refused(capsys, 2, "data", "hands", "--from", "colours")
    assert "made when used and needs no files" in refused(capsys, 2, "data", "hands", "--download")
    assert call(capsys, "data", "signs", "--from", "colours", "--download")[0] == 2
    asked: list[str] = []

    def unreachable(name: str) -> str:
        asked.append(name)
        raise minires.DataError("no network: cannot reach example.org")

    monkeypatch.setattr(data, "download", unreachable)
    assert "no network" in refused(capsys, 1, "data", "signs", "--download") and asked == ["signs"]


# ------------------------------------------------------------------------------------------ the program


def test_version_and_wrong_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--version") == (0, f"minires {minires.__version__}\n", "")
    for arguments in (
        (),
        ("trian",),
        ("train", "--epoch", "3"),
        ("train", "--epochs", "many"),
        ("summary", "--js"),
    ):
        status, out, err = call(capsys, *arguments)
        assert status == 2 and out == "" and err.startswith("usage: minires")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "--epoch", "3"), "there is no option --epoch; did you mean --epochs?"),
        (("train", "--epoch=3"), "there is no option --epoch; did you mean --epochs?"),
        (("train", "--batchsize", "3"), "there is no option --batchsize; did you mean --batch-size?"),
        (("evaluate", "run", "--xyzzy"), "there is no option --xyzzy"),
        (("train", "a\x1b[31mb"), "too many arguments: a\\x1b[31mb"),
    ],
)
def test_a_wrong_option_is_named_with_the_nearest(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = call(capsys, *arguments)
    assert status == 2 and err.endswith(f"minires {arguments[0]}: error: {said}\n")


def test_a_name_of_a_file_does_nothing_to_the_terminal(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "\x1b[2J\x9b1m\u202egnp.png"
    Image.new("RGB", (20, 20), "#3030c8").save(name)
    harmless = "\\x1b[2J\\x9b1m\\u202egnp.png"
    status, out, _ = call(capsys, "predict", run, name, "--top", "1")
    assert status == 0 and out.startswith(f"{harmless}  blue")
    Path(name).write_bytes(b"no picture")
    assert harmless in refused(capsys, 1, "predict", run, name)


def test_help_names_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(call(capsys, "train", "--help")[1].split())
    for name in (*recipes.names(), *data.names()):
        assert name in text[text.index("--data NAME signs") :]
    for name, command in COMMANDS.items():
        status, out, _ = call(capsys, name, "--help")
        assert status == 0 and command.text.splitlines()[0] in out
        assert ("--json" in out) == command.json


@pytest.mark.parametrize("arguments", [["--debug", "summary", "resnet"], ["summary", "--debug", "resnet"]])
def test_debug_shows_where(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    status, _, err = call(capsys, *arguments)
    assert status == 2 and "Traceback" in err and "UnknownName" in err
    assert err.strip().splitlines()[-1].startswith("minires: error: unknown model 'resnet'")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (MemoryError("12 GiB"), 1, "not enough memory (12 GiB)"),
        (PermissionError(13, "Permission denied", "x"), 1, "x: Permission denied. You may not write there"),
        (ModuleNotFoundError("No module named 'PIL'"), 1, "`minires doctor` says"),
        (KeyboardInterrupt(), 130, "minires: interrupted"),
        (minires.ShapeError("too small"), 1, "minires: error: too small"),
        (minires.ConfigError("unknown"), 2, "minires: error: unknown"),
    ],
)
def test_what_goes_wrong_inside_is_one_line_and_a_status(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: int,
    said: str,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("minires.models.entry", fail)
    got, out, err = call(capsys, "summary")
    assert got == status and out == "" and said in err and len(err.splitlines()) == 1


def test_a_fault_of_our_own_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minires.models.entry", lambda name: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["summary"])


def test_a_reader_that_leaves_early_is_no_traceback(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "minires", "data"], cwd=tmp_path, env=clean_environment(tmp_path),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as program:  # fmt: skip
        assert program.stdout is not None and program.stderr is not None
        program.stdout.close()
        assert program.stderr.read() == ""
    assert program.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_what_standard_output_cannot_take_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main(["models"]) == 1
        with contextlib.suppress(OSError):
            full.close()
    assert said.getvalue().startswith(
        "minires: error: standard output: No space left on device. Free some space or choose another folder"
    )
