"""What the first run costs: `minires train` before and after its kernels are compiled, and `import minires`.

    python benchmarks/first_run.py [--rounds 3] [--json benchmarks/results/first_run.json]

Each round has fresh folders for what is kept between runs, Numba's kernels and matplotlib's list of fonts,
and runs the same command twice with them: one epoch of the default recipe (ResNet-50, 64x64) on a few
pictures, with validation, test and drawings. The measurement stops if the first run does not say that it
compiles, or if the second one does. Each import is timed in a process of its own.

Units: seconds (medians).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np
from PIL import Image

SAID = "compiling the kernels, once on this machine"
IMPORTS = 15
IMPORT = """
import json, sys, time
start = time.perf_counter()
import minires
seconds = time.perf_counter() - start
print(json.dumps([seconds, [name for name in ("numba", "matplotlib") if name in sys.modules]]))
"""


def make_pictures(folder: Path) -> None:
    """Noise in six classes, enough for two batches of training."""
    rng = np.random.default_rng(0)
    for label in range(6):
        (folder / str(label)).mkdir(parents=True)
        for number in range(12):
            noise = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / str(label) / f"{number}.png")


def train(pictures: Path, out: Path, caches: Path) -> float:
    """One run of the program; how long it took. ``caches`` is empty if it is to be the first."""
    first = not caches.exists()
    kept = {"NUMBA_CACHE_DIR": str(caches / "numba"), "MPLCONFIGDIR": str(caches / "matplotlib")}
    command = [sys.executable, "-m", "minires", "train", "--data", str(pictures), "--recipe", "default"]
    command += ["--epochs", "1"]
    start = time.perf_counter()
    done = subprocess.run(
        [*command, "--out", str(out)], env={**machine.without_pins(), **kept}, check=True,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    if (SAID in done.stdout) != first:
        sys.exit(f"{'nothing' if first else 'something'} was said about compiling:\n{done.stdout}")
    return seconds


def measure(rounds: int) -> dict[str, Any]:
    """First and second runs in turn, then the import."""
    pairs = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            place = Path(name)
            make_pictures(place / "pictures")
            pairs.append([train(place / "pictures", place / run, place / "caches") for run in ("a", "b")])
        print(f"first {pairs[-1][0]:.1f} s, second {pairs[-1][1]:.1f} s", flush=True)
    imports = []
    for _ in range(IMPORTS):
        done = subprocess.run([sys.executable, "-c", IMPORT], check=True, stdout=subprocess.PIPE, text=True)
        imports.append(json.loads(done.stdout))
    first, second = zip(*pairs, strict=True)
    return {
        "first_seconds": round(statistics.median(first), 2),
        "second_seconds": round(statistics.median(second), 2),
        "more_seconds": round(statistics.median(a - b for a, b in pairs), 2),
        "most_more_seconds": round(max(a - b for a, b in pairs), 2),
        "import_seconds": round(statistics.median(seconds for seconds, _ in imports), 3),
        "import_pulls_in": sorted({module for _, modules in imports for module in modules}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    options = parser.parse_args()
    what = f"minires train --epochs 1 on 72 pictures, {options.rounds} rounds; {IMPORTS} imports"
    report = {"machine": machine.describe(), "what": what, **measure(options.rounds)}
    print({name: value for name, value in report.items() if name != "machine"})
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
