"""older_engines.py: the network it describes is ours, and what it reports of the peers' times is right.

Neither Chainer nor DeZero is needed: minires follows the description itself, and a program with made-up
numbers takes the place of every engine.
"""

import ast
import sys
from pathlib import Path

import compare
import numpy as np
import older_engines
import older_peers
import oracle
import pytest

from minires.errors import ConfigError
from minires.models import build
from minires.nn.blocks import Conv, ResidualBlock
from minires.nn.layers import AvgPool2d, Conv2d, ReLU, Sequential
from minires.ops.avg_pool2d import avg_pool2d
from minires.ops.batch_norm import batch_norm
from minires.ops.conv2d import conv2d
from minires.ops.linear import linear
from minires.ops.max_pool2d import max_pool2d
from minires.ops.relu import relu
from minires.ops.reshape import flatten
from minires.tensor import Tensor


@pytest.fixture(scope="module")
def model():
    return oracle.shake(build("resnet50_signs", last_gamma=0.25))


def every_layer(network):
    for layer in network:
        yield layer
        for part in ("branch", "shortcut"):
            yield from every_layer(layer.get(part, []))


def test_every_weight_is_described_once(model):
    network = list(every_layer(older_engines.described(model)))
    named = [path for layer in network for path in layer["arrays"].values()]
    assert sorted(named) == sorted(model.state_dict())
    kinds = [layer["kind"] for layer in network]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "conv": 53, "batch_norm": 53, "relu": 49, "residual": 16, "max_pool": 1, "avg_pool": 1, "flatten": 1,
        "linear": 1,
    }  # fmt: skip


def test_whoever_follows_the_description_gets_our_numbers(model):
    state = model.state_dict()

    def make(layer):
        kind, options = layer["kind"], {key: layer[key] for key in layer.keys() - {"kind", "arrays"}}
        w = {short: state[path] for short, path in layer["arrays"].items()}
        return {
            "conv": lambda x: conv2d(x, Tensor(w["weight"]), Tensor(w["bias"]), **options),
            "batch_norm": lambda x: batch_norm(
                x, Tensor(w["gamma"]), Tensor(w["beta"]), training=True, convention="keras",
                running_mean=w["running_mean"].copy(), running_var=w["running_var"].copy(), **options,
            ),
            "relu": relu,
            "max_pool": lambda x: max_pool2d(x, **options),
            "avg_pool": lambda x: avg_pool2d(x, **options),
            "flatten": flatten,
            "linear": lambda x: linear(x, Tensor(w["weight"]), Tensor(w["bias"])),
        }[kind]  # fmt: skip

    x = Tensor(np.random.default_rng(0).standard_normal((2, 64, 64, 3), np.float32))
    theirs = older_peers.assemble(older_engines.described(model), make)(x).data
    ours = model.train()(x).data
    assert np.linalg.norm(theirs - ours) < 1e-4 * np.linalg.norm(ours)
    assert np.linalg.norm(ours[0] - ours[1]) > 1e-2 * np.linalg.norm(ours)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Sequential(res2a=block(shortcut="A")), "res2a: .* without a gate, shortcut B or C"),
        (lambda: Sequential(res2a=block(gate=ReLU())), "res2a: .* without a gate, shortcut B or C"),
        (lambda: build("resnet50", repeats=(1,), widths=(8,)), "bn_conv1: .* not told of this BatchNorm2d"),
        (lambda: Sequential(conv1=conv(padding="same")), "conv1: .* not told of this Conv2d"),
        (lambda: Sequential(conv1=conv(relu=True)), "conv1: .* not told of this Conv2d"),
        (lambda: Sequential(pool=AvgPool2d(3, padding="same")), "pool: .* not told of this AvgPool2d"),
        (lambda: Sequential(pool=AvgPool2d(2, padding=1)), "pool: .* not told of this AvgPool2d"),
    ],
)
def test_what_cannot_be_described_is_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        older_engines.described(make())


def block(**options):
    rng = np.random.default_rng(0)
    return ResidualBlock(3, (Conv(4, 1), Conv(4, 3)), stage=2, block="a", rng=rng, **options)


def conv(**options):
    return Conv2d(3, 4, 3, rng=np.random.default_rng(0), **options)


# --------------------------------------------------------------------------------------- in the peer


def test_a_peer_needs_its_engine_and_numpy_alone():
    tree = ast.parse(Path(older_engines.CHILD).read_text())
    wanted = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wanted |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            wanted.add(node.module)
    packages = {name.split(".")[0] for name in wanted}
    assert packages - sys.stdlib_module_names == {"numpy", *older_peers.PEERS}


def test_a_kernel_goes_there_and_back():
    kernel = np.random.default_rng(0).random((3, 5, 2, 4), np.float32)
    there = older_peers.channels_first(kernel)
    assert there.shape == (4, 2, 3, 5) and there[3, 1, 2, 4] == kernel[2, 4, 1, 3]
    assert (older_peers.channels_last(there) == kernel).all()


def test_a_peer_that_leaves_float32_is_not_timed():
    narrow, wide = np.ones(2, np.float32), np.ones(2)
    assert older_peers.found(narrow, narrow[0], {"a": narrow}).keys() == {"training", "loss", "d a"}
    with pytest.raises(SystemExit, match="1 results are not in float32: d b"):
        older_peers.found(narrow, narrow[0], {"a": narrow, "b": wide})


# ------------------------------------------------------------------------------------- in the referee

FAKE = """
import json, os, sys
from pathlib import Path
import numpy as np
name, folder, here = sys.argv[2], Path(sys.argv[4]), Path(__file__).parent
steps = {"minires": 1.0, "chainer": 5.0, "dezero": 4.0}
def planned():
    return [0.25, 0.125, 0.125]
def train():
    with open(here / "turns", "a") as turns: print(name, file=turns)
    steps[name] += 0.5  # seconds
    return [steps[name] / 2, steps[name] / 4, steps[name] / 4]
def check():
    assert name == "minires" or json.loads((folder / "network.json").read_text())
    logits = np.ones((2, 6), np.float32)
    wrong = 1.1 if (here / "wrong").exists() and name == "dezero" else 1.0
    np.savez(folder / f"{name}.npz", **{
        "training": logits, "loss": np.float32(np.log(6)), "d a": wrong * np.ones(3), "d b": np.ones(2)})
answers = {
    "train": train, "train, planned": planned, "check": check, "blas": lambda: ["openblas Zen"],
    "versions": lambda: {name: "1.0", "blas": os.environ["OPENBLAS_CORETYPE"]},
}
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    print(json.dumps(answers[line.strip()]()), flush=True)
"""


@pytest.fixture
def measure(tmp_path):
    """The measurement, with a program that stands for every engine."""
    fake = tmp_path / "fake.py"
    fake.write_text(FAKE)
    program = (sys.executable, str(fake))
    job, programs = compare.Job(batch=2, threads=1), {"chainer": program, "dezero": program}
    return lambda: older_engines.measure(job, 3, programs, program)


def test_everyone_takes_turns_and_the_medians_of_the_counted_steps_make_the_ratio(measure, tmp_path, capsys):
    report = measure()
    turns = (tmp_path / "turns").read_text().split()
    m, c, d = ["minires"] * 2, ["chainer"] * 2, ["dezero"] * 2
    assert turns == m + c + d + c + d + m + d + m + c
    # Seconds: minires 1.5 2 2.5 3 3.5 4, of which every second one counts: 2, 3 and 4.
    assert report["results"]["minires"]["train"] == {"median_ms": 3000.0, "quartiles_ms": [2500.0, 3500.0]}
    assert report["results"]["chainer"]["backward"]["median_ms"] == 7000 / 4
    assert report["minires_over_chainer"] == dict.fromkeys(older_engines.COLUMNS, 0.429)
    assert report["minires_over_dezero"] == dict.fromkeys(older_engines.COLUMNS, 0.5)
    assert report["minires_planned_over_chainer"]["train"] == round(0.5 / 7, 3)
    peers = report["machine"]["peers"]
    assert peers == {name: {name: "1.0", "blas": "Zen"} for name in ("chainer", "dezero")}
    assert report["machine"]["blas"] == ["openblas Zen"]
    assert report["agreement"]["minires against dezero"]["gradient"] == 0
    older_engines.show(report)
    shown = capsys.readouterr().out
    assert "resnet50_signs, batch 2, 64x64, float32, Adam, 1 threads, 3 rounds" in shown
    assert "minires / dezero" in shown and "dezero 1.0" in shown and "0.429" in shown and "0.071" in shown


def test_only_openblas_is_told_which_kernels_to_use():
    assert older_engines.same_kernels(["mkl None", "openblas SkylakeX"]) == (
        "env",
        "OPENBLAS_CORETYPE=SkylakeX",
    )
    assert older_engines.same_kernels(["mkl None"]) == ()


def test_nothing_is_timed_where_a_peer_differs(measure, tmp_path):
    (tmp_path / "wrong").touch()
    words = "minires and dezero do not agree, so nothing is timed: gradient 7"
    with pytest.raises(SystemExit, match=words):
        measure()
    assert not (tmp_path / "turns").exists()


def test_at_least_one_peer_must_be_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["older_engines.py"])
    with pytest.raises(SystemExit):
        older_engines.main()
    assert "name an interpreter" in capsys.readouterr().err
