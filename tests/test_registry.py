"""What a user registers is used by its name wherever one of ours could stand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minires
from minires import cli, data, models, nn, optim
from minires.errors import CheckpointError, ConfigError
from minires.registry import Registry
from minires.tensor import Tensor
from minires.train import Config, Interrupted, Trainer, load_model, schedules

# A module as a user writes one: a model, a data set, an optimiser, a schedule, and what else there is.
OWN = '''
from dataclasses import dataclass

import numpy as np

from minires import data, models, nn, optim
from minires.ops.registry import operation
from minires.tensor import record
from minires.train import recipes, schedules


@models.register("own_net", size=8, classes=2, title="a convolution of our own")
class Net(nn.Module):
    def __init__(self, *, classes, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, stride=2)
        self.pool = nn.GlobalAvgPool2d()
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(self.drop(self.pool(self.conv(x))))


@data.register("own_set", title="dark and bright pictures")
def pictures(*, size=None, seed=0):
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    images = rng.integers(0, 60, (40, size or 8, size or 8, 3)) + 150 * labels[:, None, None, None]
    names = tuple(f"{i}" for i in range(40))
    whole = data.Dataset(images.astype(np.uint8), labels, ("dark", "bright"), names, "own_set")
    train, rest = whole.split(0.5, seed=seed)
    return data.Splits(train, *rest.split(0.5, seed=seed), "own_set (drawn)")


@optim.register("own_signs")
class Signs(optim.Optimizer):
    slots = ("average",)

    def __init__(self, parameters, lr, *, beta=0.5, **options):
        super().__init__(parameters, lr, **options)
        self.beta = beta

    def numbers(self, step):
        return self.lr, self.beta

    @staticmethod
    def plain(w, g, m, lr, beta):
        m += (1 - beta) * (g - m)
        w -= lr * np.sign(m)


@schedules.register("own_halves")
@dataclass
class Halves(schedules.Curve):
    parts: int = 2
    ranges = {"parts": (1, 10)}

    def __call__(self, lr, step, steps):
        return lr / 2 ** int(self.parts * step / steps)


@data.augment.register("own_turn")
def turn(p=1.0):
    return lambda x, rng: x[:, ::-1].copy() if rng.random() < p else x


@operation(math="y = 2 * x", backward="dx = 2 * dy")
def own_double(x):
    return record("own_double", 2 * x.data, inputs={"x": x}, backward=lambda dy: (2 * dy,))


recipes.register("own_recipe", {
    "model": "own_net", "data": "own_set", "epochs": 2, "batch_size": 5,
    "augment": [["own_turn", {"p": 0.5}]],
    "optimizer": {"name": "own_signs", "lr": 0.05, "beta": 0.25, "weight_decay": 0.01},
    "schedule": {"name": "own_halves", "parts": 4},
})
'''


@pytest.fixture
def own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registries_as_before: tuple[Registry[Any], ...]
) -> Iterator[None]:
    """The user's module, imported."""
    before = [len(registry) for registry in registries_as_before]
    (tmp_path / "own_things.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    __import__("own_things")
    assert [len(registry) for registry in registries_as_before] == [count + 1 for count in before]
    yield
    del sys.modules["own_things"]


@pytest.mark.usefixtures("own")
def test_a_run_of_nothing_but_own_things(tmp_path: Path) -> None:
    config = Config.of("own_recipe", seed=1, variant={"width": 6}, keep="last")
    trainer = Trainer(config, tmp_path / "run", progress=False, say=lambda line: None)
    assert trainer.model.fc.weight.shape == (6, 2)
    rates = [trainer.schedule.lr(step) for step in range(8)]
    assert rates == [0.05 / 2**k for k in (0, 0, 1, 1, 2, 2, 3, 3)]
    summary = trainer.run()
    assert type(trainer.optimizer).__name__ == "Signs" and trainer.optimizer.beta == 0.25
    assert trainer.optimizer.lr == rates[-1]
    assert summary["dataset"] == "own_set" and summary["test_accuracy"] > 0.5
    trained = load_model(tmp_path / "run")
    assert trained.name == "own_net" and trained.variant == {"width": 6}
    # Continued from a checkpoint, as if it had not come to its end: the state of the optimiser fits.
    (tmp_path / "run" / "summary.json").unlink()
    again = Trainer(None, tmp_path / "run", resume=True, progress=False, say=lambda line: None)
    before, after = trainer.optimizer.state_dict(), again.optimizer.state_dict()
    assert "average:conv.weight" in before and before.keys() == after.keys()
    assert all(np.array_equal(array, after[key]) for key, array in before.items())


def test_the_command_line_imports_a_module_of_the_users_first(tmp_path: Path) -> None:
    (tmp_path / "own_things.py").write_text(OWN)

    def minires(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "minires", "--import", "own_things", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    hints = minires("train", "--recipe", "own_recipe", "--out", "told").stdout.partition("Next:")[2]
    commands = [line.split("  ")[1] for line in hints.splitlines() if line]
    assert len(commands) == 6
    assert all(command.startswith("minires --import own_things ") for command in commands)
    assert minires(*commands[-1].split()[3:]).returncode == 0  # its summary

    done = minires("train", "--recipe", "own_recipe", "--out", "run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "own_net"
    assert json.loads(minires("evaluate", "run", "--json").stdout)["total"] == 10
    listed = json.loads(minires("models", "own", "--json").stdout)["models"]
    assert [(one["name"], one["title"], one["parameters"]) for one in listed] == [
        ("own_net", "a convolution of our own", 4 * 28 + 10)
    ]
    assert "own_set" in minires("data").stdout and "own_recipe" in minires("train", "--help").stdout
    # Without it the name is not known, and the message says what to do.
    alone = subprocess.run(
        [sys.executable, "-m", "minires", "evaluate", "run"], cwd=tmp_path, capture_output=True, text=True
    )
    assert alone.returncode == 1 and "minires --import MODULE" in alone.stderr


@pytest.mark.usefixtures("registries_as_before")
def test_a_run_that_is_stopped_goes_on_with_the_module_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(self: Trainer) -> dict[str, Any]:
        raise Interrupted("stopped after step 3")

    (tmp_path / "things_of_mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(Trainer, "run", stopped)
    status = cli.main(["--import", "things_of_mine", "train", "--recipe", "own_recipe", "--out", "a run"])
    said = capsys.readouterr().err
    assert status == 130 and said.endswith(
        "stopped after step 3. Go on with: minires --import things_of_mine train --resume 'a run'\n"
    )


def test_a_mistake_in_the_imported_module_is_shown_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, line in (("wrong_a", "from minires import modelss"), ("wrong_b", "import torchh")):
        (tmp_path / f"{name}.py").write_text(f"import json\n{line}\n")
        assert cli.main(["--import", name, "models"]) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"minires: error: --import {name}: ")
        assert said.endswith(f"{name}.py, line 2)\n")
        assert "doctor" not in said


@pytest.mark.usefixtures("registries_as_before")
def test_a_builder_may_take_any_options_and_must_give_a_module() -> None:
    @models.register("odd_one", size=8, classes=2)
    def build(**options: Any) -> Any:
        return nn.Linear(2, options["classes"]) if options["classes"] < 5 else None

    assert models.build("odd_one", classes=3).weight.shape == (2, 3)
    with pytest.raises(ConfigError, match="the model odd_one must be a Module, but what builds it gave None"):
        models.build("odd_one", classes=7)


def test_an_unknown_model_on_the_command_line_says_import(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["summary", "own_net"]) == 2
    assert "minires --import MODULE" in capsys.readouterr().err


def test_a_module_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert cli.main(["--import", "no_such_things", "models"]) == 2
    assert "--import no_such_things: there is no such module, neither in" in capsys.readouterr().err
    (tmp_path / "needs_more.py").write_text("import not_installed_here")
    assert cli.main(["--import", "needs_more", "models"]) == 1
    assert "No module named 'not_installed_here'" in capsys.readouterr().err


@pytest.mark.usefixtures("own")
def test_a_model_file_of_an_unknown_model_says_what_to_do() -> None:
    Trainer(Config.of("own_recipe", epochs=1), "run", progress=False, say=lambda line: None).run()
    entry = models.MODELS.pop("own_net")
    with pytest.raises(CheckpointError, match=r"holds a own_net.*register.*or give its model="):
        load_model("run")
    model = entry.make(classes=2)
    assert load_model("run", model=model).name == "own_net"
    models.MODELS["own_net"] = entry


@pytest.mark.usefixtures("own")
def test_a_model_without_a_generator_is_drawn_from_the_seed_and_leaves_the_default_one_alone() -> None:
    minires.manual_seed(5)
    first = models.build("own_net", seed=3)
    after = nn.Linear(2, 2).weight.numpy()
    minires.manual_seed(6)
    again, other = models.build("own_net", seed=3), models.build("own_net", seed=4)
    minires.manual_seed(5)
    assert np.array_equal(nn.Linear(2, 2).weight.numpy(), after)
    assert np.array_equal(first.conv.weight.data, again.conv.weight.data)
    assert not np.array_equal(first.conv.weight.data, other.conv.weight.data)
    assert first.random_states() == again.random_states() != other.random_states()
    minires.manual_seed(0)


# ------------------------------------------------------------------------------------- the registry itself


def one() -> int:
    return 1


def test_a_cell_that_is_run_twice_replaces_its_own_definition_and_nothing_else() -> None:
    def made() -> Any:
        def same() -> None: ...

        return same

    registry: Registry[Any] = Registry("thing", {"ours": one})
    first, second = made(), made()
    registry.add("theirs", first)
    registry.add("theirs", second)
    assert registry["theirs"] is second
    for name in ("ours", "theirs"):
        with pytest.raises(ConfigError, match=f"there is a thing '{name}' already"):
            registry.add(name, one if name == "theirs" else second)
    # An entry is compared by what was decorated.
    registry.add("entry", {"size": 1}, maker=first)
    registry.add("entry", {"size": 2}, maker=second)
    assert registry["entry"] == {"size": 2}
    registry.add("value", {"size": 1})
    with pytest.raises(ConfigError, match="already"):
        registry.add("value", {"size": 2})


@pytest.mark.parametrize("name", ["", "two words", "a/b", "shortcut=A", "-x"])
def test_a_name_that_could_be_something_else_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a thing"):
        Registry[Any]("thing", {}).add(name, one)


def test_long_lists_are_answered_with_the_nearest_and_short_ones_with_all() -> None:
    short: Registry[int] = Registry("number", {"one": 1, "two": 2})
    with pytest.raises(ConfigError) as error:
        short.find("tow")
    assert str(error.value) == "unknown number 'tow'. Did you mean 'two'? Known: one, two"
    with pytest.raises(ConfigError, match="unknown number None"):
        short.find(None)
    long = Registry("number", {f"n{k}": k for k in range(30)})
    with pytest.raises(ConfigError) as error:
        long.find("n2x")
    assert str(error.value).startswith("unknown number 'n2x'; the nearest are n2")
    with pytest.raises(ConfigError, match="Known: there are none"):
        Registry[int]("number", {}).find("x")


def test_what_cannot_be_used_is_refused_when_it_is_registered(
    registries_as_before: tuple[Registry[Any], ...],
) -> None:
    def without_classes(*, rng: np.random.Generator) -> nn.Module:
        raise AssertionError

    def without_seed(*, size: int | None = None) -> data.Splits:
        raise AssertionError

    class NoDataclass(schedules.Curve):
        pass

    with pytest.raises(ConfigError, match="the model mine does not take the keyword classes"):
        models.register("mine")(without_classes)
    with pytest.raises(ConfigError, match="the data set mine is read with .* does not take seed"):
        data.register("mine")(without_seed)
    with pytest.raises(ConfigError, match="must be a dataclass"):
        schedules.register("mine")(NoDataclass)
    with pytest.raises(ConfigError, match="there is a model 'resnet18' already"):
        models.register("resnet18")(models.entry("resnet18").make)
    for registry in registries_as_before:
        assert "mine" not in registry


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": {"name": "own_sings", "lr": 1.0}}, "Did you mean 'own_signs'"),
        ({"optimizer": {"name": "own_signs", "lr": 1.0, "bta": 0.5}}, "Did you mean 'beta'"),
        ({"optimizer": {"name": "own_signs", "lr": 1.0, "clip": 0.5}}, "clip_norm"),
        ({"schedule": {"name": "own_halfs"}}, "Did you mean 'own_halves'"),
        ({"schedule": {"name": "own_halves", "parts": 11}}, "parts of the own_halves schedule is 11"),
        ({"augment": [["own_turn", {"q": 1}]]}, "option of the augmentation own_turn 'q'. Known: p|'p'"),
        ({"augment": ["own_trun"]}, "Did you mean 'own_turn'"),
        ({"model": "own_nte"}, "the nearest is own_net"),
        ({"variant": {"wdith": 3}}, "Did you mean 'width'"),
        ({"data": "own_ste"}, "Did you mean 'own_set'"),
    ],
)
def test_a_wrong_name_of_an_own_thing_is_answered(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        Trainer(Config.of("own_recipe", **changes), tmp_path / "run", say=lambda line: None)
    assert not (tmp_path / "run").exists()


def test_the_formula_of_an_own_optimizer_sees_clipped_and_decayed_gradients() -> None:
    class Plain(optim.Optimizer):
        @staticmethod
        def plain(w: Any, g: Any, lr: float) -> None:
            w -= lr * g

    w = Tensor(np.array([[3.0, 4.0]]), requires_grad=True)
    w.grad = np.array([[6.0, 8.0]])  # of norm 10
    Plain([w], 0.5, weight_decay=0.1, clip_norm=1.0).step()
    np.testing.assert_allclose(w.data, [[3 - 0.5 * (0.6 + 0.3), 4 - 0.5 * (0.8 + 0.4)]], rtol=1e-6)
    w.grad = np.zeros((1, 2))
    before = w.data.copy()
    Plain([w], 0.5, weight_decay=0.1, decoupled=True).step()
    np.testing.assert_allclose(w.data, before * 0.95, rtol=1e-12)


@pytest.mark.usefixtures("registries_as_before")
def test_a_schedule_may_have_an_option_called_begin():
    @schedules.register("from_begin")
    @dataclass
    class FromBegin(schedules.Curve):
        begin: float = 0.5
        ranges = {"begin": (0, 1)}

        def __call__(self, lr, step, steps):
            return lr * self.begin

    made = schedules.Schedule({"name": "from_begin", "begin": 0.25}, lr=1.0, total_steps=4)
    assert made.lr(0) == 0.25
    assert schedules.options_of("from_begin") == ["begin", "warmup", "warmup_start"]


@pytest.mark.parametrize("register", [models.register, optim.register, schedules.register, data.register])
def test_register_without_a_name_says_how_it_is_written(register):
    with pytest.raises(ConfigError, match='@register\\("my_name"\\) above Net'):

        @register
        class Net: ...


def test_an_operation_without_parentheses_says_so():
    with pytest.raises(ConfigError, match="above square, with parentheses"):

        @minires.ops.registry.operation
        def square(x): ...


def test_build_takes_a_name_and_knows_classes_and_seed():
    with pytest.raises(ConfigError, match="make one of your own with Linear\\(...\\)"):
        models.build(nn.Linear)
    with pytest.raises(ConfigError, match="Did you mean 'classes'\\? Known: classes, seed, "):
        models.build("resnet20_cifar", num_classes=3)
    with pytest.raises(ConfigError, match="the nearest are resnet20_cifar, "):
        models.build("resnet20")


@pytest.mark.usefixtures("registries_as_before")
def test_an_optimizer_that_gives_none_is_noticed():
    optim.register("empty")(lambda parameters, lr: None)
    with pytest.raises(ConfigError, match="the optimizer empty must give .* but it returned None"):
        optim.build({"name": "empty", "lr": 0.1}, [])


def test_an_article_fits_the_kind():
    with pytest.raises(ConfigError, match="there is an optimizer 'sgd' already"):
        optim.register("sgd")(optim.SGD)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": {"name": "adm", "lr": 0.1}},
        {"schedule": {"name": "cosin"}},
        {"augment": ["flop"]},
        {"model": "resnet20", "size": 32},
    ],
)
def test_names_are_looked_up_before_the_pictures(changes, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", lambda *args, **options: pytest.fail("the pictures were read"))
    with pytest.raises(ConfigError, match="unknown"):
        Trainer(Config(data="hands", **changes), tmp_path)
