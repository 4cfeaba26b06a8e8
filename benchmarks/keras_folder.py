"""ResNet50V2 in Keras's form on a picture folder, as Keras's tutorials train one: one command, its figure.

    python benchmarks/keras_folder.py [--seeds 0 1 2]

SIGNS, as published (1,080 and 120 pictures), is written as one folder of PNG files for each class, without
parts, and trained on by ``COMMAND``, which splits it (64 : 16 : 20); the seeds are those of weights, order
and augmentation. One takes some minutes on two cores, and is kept as soon as it is measured.

Figures: test accuracy of each seed, and the same without twins: SIGNS has some pictures twice, so that 18
of the 240 test pictures stand among those that were trained or validated on, too, byte for byte. Results:
``benchmarks/results/keras_folder.json``, and beside it the curves of the lowest seed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import describe, without_pins
from PIL import Image

from minires import data
from minires.data import Dataset, Splits
from minires.train import evaluate, load_model

RESULT = Path(__file__).parent / "results" / "keras_folder.json"
FOLDER, SIZE, EPOCHS = "pictures", 64, 30
COMMAND = f"minires train --data {FOLDER} --model resnet50v2_keras --size {SIZE} --epochs {EPOCHS}"
FIGURES = ("test_accuracy", "test_loss", "parameters", "epochs_done", "kept_epoch", "steps", "seconds")
MEDIANS = ("test_accuracy", "accuracy_without_twins", "seconds")


def write(whole: Dataset, folder: Path) -> None:
    """Write a data set as one folder of PNG files for each class."""
    for index, (image, label) in enumerate(zip(whole.images, whole.labels, strict=True)):
        place = folder / whole.classes[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{index:04}.png")


def without_twins(splits: Splits) -> Dataset:
    """The test pictures that stand in no other part, byte for byte."""
    seen = {image.tobytes() for part in (splits.train, splits.val) for image in part.images}
    return splits.test.take([i for i, image in enumerate(splits.test.images) if image.tobytes() not in seen])


def measure(command: str, beside: Path, seed: int) -> dict[str, Any]:
    """Run a command with a seed where the folder stands; the run folder is ``runs/SEED`` beside it."""
    out = Path("runs", str(seed))
    words = [sys.executable, "-m", *command.split(), "--seed", str(seed), "--out", str(out)]
    subprocess.run(words, check=True, cwd=beside, env=without_pins())
    summary = json.loads((beside / out / "summary.json").read_text())
    splits = data.load(beside / FOLDER, size=SIZE)
    alone, trained = without_twins(splits), load_model(beside / out)
    return {
        **{name: summary[name] for name in FIGURES},
        "accuracy_without_twins": evaluate(trained.model, alone, trained.normalize).accuracy,
        "pictures": {part: len(getattr(splits, part)) for part in ("train", "val", "test")},
        "pictures_without_twins": len(alone),
    }


def begun(out: Path, command: str) -> dict[str, Any]:
    """The report so far, if it is of this command, commit and processor: seeds may be measured in pieces."""
    new: dict[str, Any] = {"what": command, "machine": describe(), "seeds": {}}
    old = json.loads(out.read_text()) if out.exists() else new
    same = all(old["machine"][name] == new["machine"][name] for name in ("commit", "processor"))
    return old if same and old["what"] == command else new


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", default=EPOCHS, help="fewer, to see whether all works")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    command = COMMAND.replace(f"--epochs {EPOCHS}", f"--epochs {arguments.epochs}")
    report = begun(arguments.out, command)
    seeds = report["seeds"]
    with tempfile.TemporaryDirectory() as temporary:
        beside = Path(temporary)
        signs = data.load("signs")
        write(signs.train.join(signs.val).join(signs.test), beside / FOLDER)
        for seed in arguments.seeds:
            seeds[str(seed)] = found = measure(command, beside, seed)
            report["median"] = {key: statistics.median(one[key] for one in seeds.values()) for key in MEDIANS}
            arguments.out.write_text(json.dumps(report, indent=1) + "\n")
            if str(seed) == min(seeds, key=int):
                curves = arguments.out.with_name(f"{arguments.out.stem}_curves.png")
                shutil.copy(beside / "runs" / str(seed) / "curves.png", curves)
            print(f"seed {seed}: " + ", ".join(f"{key} {found[key]:.3f}" for key in MEDIANS), flush=True)


if __name__ == "__main__":
    main()
