"""A small net that fails when it is told to, on one rank of a run: for ranks.py.

``minires --import rank_net train --recipe ranks --data PICTURES --out FOLDER`` trains it, and so does
``python rank_net.py PICTURES FOLDER``, a script. What happens is said by the environment: RANKS_PLAN, such as
``raise:1:7``, is what rank 1 does in its step 7, counted from 0. In the folder RANKS_NOTES each rank writes
its process number, and that one the time at which it has come so far.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from rank_job import BATCH, CLASSES, ENOUGH, EPOCHS, EVERY, SIDE

from minires import models, nn
from minires.distributed import launched
from minires.tensor import Tensor
from minires.train import Config, Trainer, recipes, run_folder


def number() -> int:
    """The number of this rank."""
    start = launched()
    return start.rank if start else 0


def note(name: str, text: str) -> None:
    """Leave a note where ranks.py looks, whole or not at all."""
    if folder := os.environ.get("RANKS_NOTES"):
        path = Path(folder) / f".{name}.{os.getpid()}"
        path.write_text(text)
        path.replace(Path(folder) / name)


SLOW = {"quick": 0.02, "slow": 0.25}  # seconds that a step then takes longer, so that it can be hit


class Fails(nn.Module):
    """Gives what it gets, until its time has come."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        what, rank, step = os.environ.get("RANKS_PLAN", "nothing:0:0").split(":")
        self.what, self.at = what if int(rank) == number() else "nothing", int(step)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.what == "raise in validation":
            note("moment", repr(time.monotonic()))
            raise RuntimeError(ENOUGH)
        if not self.training or self.what == "nothing":
            return x
        if self.steps == self.at:
            note("moment", repr(time.monotonic()))
            self.fail()
        self.steps += 1
        if self.steps > self.at:
            time.sleep(SLOW.get(self.what, 0))
        return x * float("nan") if self.what == "nan" and self.steps > self.at else x

    def fail(self) -> None:
        """What is not done here is done by who reads the note."""
        if self.what == "raise":
            raise RuntimeError(ENOUGH)
        if self.what == "exit":
            sys.exit(0)
        if self.what == "vanish":
            os._exit(0)
        if self.what == "sleep":
            time.sleep(600)
        if self.what == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)


@models.register("rank_net", size=SIDE, classes=len(CLASSES), title="ResNet-20 behind a layer that fails")
def rank_net(*, classes: int) -> nn.Module:
    """The thinnest ResNet-20, behind the layer that fails."""
    net = models.build("resnet20_cifar", classes=classes, widths=[4, 8, 8])
    return nn.Sequential(own=Fails(), net=net)


recipes.register(
    "ranks",
    {
        "model": "rank_net",
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "checkpoint_every": EVERY,
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "augment": [["shift", {"pixels": 2}], "flip"],
        "watch": False,
    },
)
for name in ("draw_curves", "draw_confusion", "draw_mistakes"):  # they take longer than all the rest
    setattr(run_folder, name, lambda *_, **__: None)
note(f"rank-{number()}", str(os.getpid()))


if __name__ == "__main__":
    if os.environ.get("RANKS_PLAN", "").startswith(f"leave:{number()}:"):
        from minires.distributed import world

        world()
        note("moment", repr(time.monotonic()))
        sys.exit(0)
    Trainer(Config.of("ranks", data=sys.argv[1]), sys.argv[2], progress=False).run()
