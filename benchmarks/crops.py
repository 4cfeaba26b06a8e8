"""Testing by one crop and by ten: what it comes to on CIFAR-10's test half, and on hands after three seeds.

    python benchmarks/crops.py          about fifteen minutes on two cores, with MINIRES_DATA

    starter    the trained model of the package on the 10,000 test pictures of CIFAR-10, which it has not
               learnt (``benchmarks/starter.py``); squares of 32, cut out of pictures of 32, 36 and 40
    seeds      ResNet-20 from the beginning on 800 of the rendered hands, scaled to 44 to 56, squares of
               40 cut out at random and mirrored or not, as the papers do; tested on the other 400;
               trained to the end, 20 epochs, and for 6, as then there is more left to get right

Of each way: how many pictures are right, the loss, and of two ways how many pictures only one has right.
The figures go to ``benchmarks/results/crops.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from numpy.typing import NDArray
from PIL import Image

from minires import data
from minires.data import Dataset
from minires.train import Config, Trained, Trainer, evaluate, evaluate_crops, load_model
from minires.train.starters import STARTER, path_of

RESULT = Path(__file__).parent / "results" / "crops.json"
Way = tuple[int | str, tuple[int, ...]]  # crops, scales
OF_STARTER: tuple[Way, ...] = (
    (1, (32,)), (1, (36,)), (10, (36,)), (1, (40,)), (10, (40,)), (10, (36, 40)),
    ("full", (32,)), ("full", (36,)), ("full", (40,)), ("full", (32, 36, 40)),
)  # fmt: skip
OF_SEEDS: tuple[Way, ...] = ((1, (48,)), (10, (48,)), (1, (56,)), (10, (56,)), (10, (48, 56)))
SIDE, TRAINED_ON, EPOCHS = 40, 800, (20, 6)
CONFIG = Config(
    model="resnet20_cifar", size=SIDE, stream=True, train_on="train+val", batch_size=32,
    drop_last=True, optimizer={"name": "adam", "lr": 3e-3}, schedule={"name": "one-cycle", "peak": 0.25},
    augment=[["scale_crop", {"shorter": [44, 56]}], "flip"], recalibrate=True,
)  # fmt: skip


def name_of(way: Way) -> str:
    """A way in words: "10 crops at 36"."""
    crops, scales = way
    views = {1: "1 crop", 10: "10 crops", "full": "whole and mirrored"}[crops]
    return f"{views} at {', '.join(map(str, scales))}"


def tested(
    trained: Trained, pictures: Dataset, side: int, ways: Iterable[Way]
) -> tuple[dict[str, Any], dict[str, NDArray[np.bool_]]]:
    """The figures of each way, and which pictures it has right.

    Of several scales, whose views count alike, the mean of what each has given before is taken.
    """
    figures, right, probabilities = {}, {}, {}
    for way in ways:
        crops, scales = way
        if len(scales) == 1:
            found = evaluate_crops(
                trained.model, pictures, trained.normalize, side=side, crops=crops, scales=scales
            )
            probabilities[way] = found.probabilities
        else:
            probabilities[way] = np.mean([probabilities[crops, (scale,)] for scale in scales], axis=0)
        name, truth = name_of(way), probabilities[way][np.arange(len(pictures)), pictures.labels]
        right[name] = probabilities[way].argmax(axis=1) == pictures.labels
        accuracy, loss = float(right[name].mean()), float(-np.log(truth).mean())
        figures[name] = {"right": int(right[name].sum()), "accuracy": accuracy, "loss": round(loss, 4)}
        print(f"  {name:<34}{100 * accuracy:7.2f}%{loss:9.4f}", flush=True)
    return figures, right


def against(one: NDArray[np.bool_], ten: NDArray[np.bool_]) -> dict[str, Any]:
    """How many pictures only one of two ways has right, and how likely so uneven a split is by chance.

    The chance is that of a fair coin for each of these pictures, two-sided: McNemar's exact test.
    """
    gained, lost = int((ten & ~one).sum()), int((one & ~ten).sum())
    each = [math.comb(gained + lost, k) for k in range(min(gained, lost) + 1)]
    return {"gained": gained, "lost": lost, "chance": min(1.0, 2 * sum(each) / 2 ** (gained + lost))}


def hands(seed: int, folder: Path) -> None:
    """Write the rendered hands as files, other ones to train and to test for each seed."""
    splits = data.load("hands")
    pool = splits.train.join(splits.val).join(splits.test)
    order = np.random.default_rng([seed, 10]).permutation(len(pool))
    for part, chosen in (("train", order[:TRAINED_ON]), ("test", order[TRAINED_ON:])):
        for label in pool.classes:
            (folder / part / label).mkdir(parents=True)
        for index in chosen:
            label = pool.classes[pool.labels[index]]
            Image.fromarray(pool.images[index]).save(folder / part / label / f"{index}.png")


def of_seed(seed: int, epochs: int) -> dict[str, Any]:
    """Train on hands once, and test by each way."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, run = Path(temporary, "hands"), Path(temporary, "run")
        hands(seed, folder)
        start = time.perf_counter()
        settings = {**CONFIG.to_dict(), "data": str(folder), "seed": seed, "epochs": epochs}
        Trainer(Config.from_dict(settings), run, say=lambda _: None).run()
        print(f"seed {seed}, {epochs} epochs: trained in {time.perf_counter() - start:.0f} s", flush=True)
        pictures = data.load_part(folder, "test", size=SIDE, stream=True).pictures
        figures, right = tested(load_model(run), pictures, SIDE, OF_SEEDS)
    one, ten = (right[name_of(way)] for way in OF_SEEDS[:2])
    return {"ways": figures, "ten against one": against(one, ten)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    starter, test = load_model(path_of(STARTER)), data.load("cifar10").test
    print(f"starter on {len(test):,} test pictures of CIFAR-10: accuracy, loss")
    figures, right = tested(starter, test, 32, OF_STARTER)
    plain = evaluate(starter.model, test, starter.normalize).accuracy
    whole, middle = right["1 crop at 32"], right["1 crop at 36"]
    report = {
        "what": "accuracy by one crop, ten crops and several scales",
        "machine": describe(),
        "starter": {
            "test_pictures": len(test), "evaluate": plain, "ways": figures,
            "10 crops at 36 against 1 crop at 36": against(middle, right["10 crops at 36"]),
            "10 crops at 36 against 1 crop at 32": against(whole, right["10 crops at 36"]),
        },
        "seeds": {
            "config": CONFIG.to_dict(), "trained_on": TRAINED_ON,
            "runs": {f"{epochs} epochs": {seed: of_seed(seed, epochs) for seed in arguments.seeds}
                     for epochs in EPOCHS},
        },
    }  # fmt: skip
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    print(RESULT)


if __name__ == "__main__":
    main()
