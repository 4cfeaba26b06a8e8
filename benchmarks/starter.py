"""Makes the trained model that is part of the package, ``minires/train/starter.safetensors``.

    python benchmarks/starter.py [--run FOLDER]      trains for half an hour on two cores, with MINIRES_DATA

A ResNet-20 one and a half times as wide as the paper's on the 50,000 training pictures of CIFAR-10, tested on
the other 10,000. The kernels are kept as 8-bit numbers; what that costs is measured on the test pictures.
``--run`` takes a run that is finished instead of training one. The figures go to
``benchmarks/results/starter.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from machine import describe

from minires import data
from minires.train import Config, Trainer, evaluate, load_model, save_model
from minires.train.starters import STARTER, path_of

RESULT = Path(__file__).parent / "results" / "starter.json"
CONFIG = Config.of(
    "cifar", variant={"widths": [24, 48, 96]}, train_on="train+val", epochs=16, drop_last=True,
    optimizer={"name": "sgd", "lr": 0.2, "momentum": 0.9, "weight_decay": 5e-4},
    schedule={"name": "one-cycle", "peak": 0.2},
    augment=[["crop", {"scale": [0.5, 1.0]}], "flip", ["jitter", {}]], recalibrate=True,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--run", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = arguments.run or Path(temporary, "run")
        if arguments.run is None:
            Trainer(CONFIG, run).run()
        trained = load_model(run)
        config = json.loads((run / "config.json").read_text())
    out = Path(path_of(STARTER))
    save_model(out, trained, small=True)
    test = data.load(CONFIG.data).test
    figures = {
        name: evaluate(model.model, test, model.normalize).accuracy
        for name, model in (("float32", trained), ("int8", load_model(out)))
    }
    report = {
        "what": "ResNet-20, widths 24, 48, 96, trained on the JPEG form of CIFAR-10",
        "machine": describe(),
        "config": config,
        "parameters": sum(parameter.size for parameter in trained.model.parameters()),
        "bytes": out.stat().st_size,
        "test_pictures": len(test),
        "test_accuracy": figures,
    }
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{out}: {report['bytes']:,} bytes, test accuracy {figures}")


if __name__ == "__main__":
    main()
