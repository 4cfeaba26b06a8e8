"""``minires train --set NAME=VALUE``: every setting, nested ones too, and what contradicts what."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import command_line
import pytest
from quick_runs import dark_and_light, draw_nothing

from minires import cli, models, nn, optim
from minires.commands import given_settings
from minires.data import Glance
from minires.errors import ConfigError
from minires.train import Config, auto, recipes, schedules


class Tiny(nn.Module):
    def __init__(self, *, classes, rng, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, stride=2, rng=rng)
        self.norm = nn.BatchNorm2d(width, momentum=0.5, relu=True)
        self.pool = nn.GlobalAvgPool2d()
        self.fc = nn.Linear(width, classes, rng=rng)

    def forward(self, x):
        return self.fc(self.pool(self.norm(self.conv(x))))


@pytest.fixture
def place(tmp_path, monkeypatch):
    dark_and_light(tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(models.MODELS, "tiny", models.Entry(Tiny, size=8, classes=2))
    draw_nothing(monkeypatch)
    return tmp_path


BASE = [
    "train", "--data", "pictures", "--model", "tiny", "--recipe", "default", "--batch-size", "4",
    "--epochs", "1",
]  # fmt: skip


def config_of(capsys, *arguments, base=tuple(BASE)):
    """The configuration of the run that such a command begins."""
    assert cli.main([*base, "--out", "run", *arguments]) == 0, capsys.readouterr().err
    return json.loads(Path("run/config.json").read_text())


def refused(capsys, *arguments, base=tuple(BASE), status=2):
    line = command_line.refused(capsys, status, *base, *arguments)
    assert not Path("runs").exists() and not Path("run/model.safetensors").exists()
    return line


def test_settings_are_reached_nested_too(place, capsys):
    config = config_of(
        capsys,
        "--set", "optimizer.lr=0.01", "--set", "schedule.name=cosine", "--set", "schedule.final=0.5",
        "--set", 'augment=[["shift",{"pixels":2}],"flip"]', "--set", "label_smoothing=0", "--set", "ema=0.5",
        "--set", "variant.width=5", "--set", "normalize.mean=[0.5,0.5,0.5]", "--set", "normalize.std=[1,1,1]",
        "--set", "checkpoint_every=3", "--set", "size=null",
    )  # fmt: skip
    assert config["optimizer"] == {"name": "adam", "lr": 0.01}
    assert config["schedule"] == {"name": "cosine", "warmup": 0.2, "final": 0.5}  # warmup is the recipe's
    assert config["augment"] == [["shift", {"pixels": 2}], "flip"]
    assert (config["label_smoothing"], config["ema"], config["checkpoint_every"]) == (0, 0.5, 3)
    assert config["variant"] == {"width": 5} and config["size"] is None
    assert config["normalize"] == {"mean": [0.5] * 3, "std": [1] * 3}


# A value other than the default for each setting, and the option of its own if there is one.
VALUES = {
    "model": ("tiny", "--model"), "variant": ({"width": 3}, None), "data": ("pictures", "--data"),
    "size": (9, "--size"), "train_on": ("train+val", "--train-on"), "recipe": ("cifar", "--recipe"),
    "pictures": (7, "--pictures"),
    "epochs": (2, "--epochs"), "batch_size": (5, "--batch-size"), "accumulate": (2, "--accumulate"),
    "drop_last": (False, "--no-drop-last"), "optimizer": ({"name": "sgd", "lr": 0.5}, None),
    "schedule": ({"name": "constant"}, None), "augment": (["flip"], None), "normalize": ("none", None),
    "label_smoothing": (0.25, None), "balance": ("sampler", "--balance"), "ema": (0.5, None),
    "batch_norm": ("sync", "--batch-norm"),
    "recalibrate": (True, "--recalibrate"), "patience": (1, "--patience"), "seed": (3, "--seed"),
    "device": ("auto", "--device"), "precision": ("bf16", "--precision"),
    "start_from": (None, None), "freeze": (["conv"], None), "plan": (False, "--no-plan"),
    "checkpoint_every": (7, None), "keep": ("best", "--keep"), "watch": (False, "--no-watch"),
    "stream": (True, "--stream"), "draft": (True, "--draft"), "cache": ("pixels", "--cache"),
}  # fmt: skip


def test_every_field_of_a_configuration_is_among_the_values_here():
    assert VALUES.keys() == {field.name for field in dataclasses.fields(Config)}


@pytest.mark.parametrize("name", [name for name in VALUES if name != "start_from"])
def test_each_setting_is_one_of_set_and_its_option_says_the_same(name, place, capsys):
    value, option = VALUES[name]
    text = value if isinstance(value, str) else json.dumps(value)
    base = ["train"]
    for flag, given in zip(BASE[1::2], BASE[2::2], strict=True):
        base += [flag, given] if flag != option else []
    expected = str(place / "pictures") if name == "data" else value
    assert config_of(capsys, "--set", f"{name}={text}", base=base)[name] == expected
    if option:
        flags = [option] if isinstance(value, bool) else [option, text]
        for path in sorted(Path("run").iterdir()):
            path.unlink()
        assert config_of(capsys, *flags, base=base)[name] == expected


def test_a_run_starts_from_another_by_set_too(place, capsys):
    config_of(capsys)
    Path("run").rename("first")
    base = ["train", "--data", "pictures", "--batch-size", "4", "--epochs", "1"]
    config = config_of(capsys, "--set", "start_from=first", base=base)
    assert config["start_from"] == str(place / "first") and config["model"] == "tiny"
    assert isinstance(config["normalize"], dict)  # taken over


@pytest.mark.parametrize(("given", "said"), [
    (["--set", "epohcs=3"], "unknown setting 'epohcs'. Did you mean 'epochs'?"),
    (["--set", "lr=0.1"], "unknown setting 'lr'. Did you mean 'optimizer.lr'?"),
    (["--set", "scedule.name=cosine"], "unknown setting 'scedule.name'. Did you mean 'schedule.name'?"),
    (["--set", "optimizer.clipnorm=1"], "option of adam 'clipnorm'. Did you mean 'clip_norm'?"),
    (["--set", "schedule.warmpu=1"], "Did you mean 'warmup'?"),
    (["--set", "variant.widht=1"], "Did you mean 'width'?"),
    (["--set", "schedule.name=cosin"], "unknown schedule 'cosin'. Did you mean 'cosine'?"),
    (["--set", "epochs"], "--set 'epochs': write NAME=VALUE, for example --set schedule.name=cosine"),
    (["--set", "=3"], "write NAME=VALUE"),
    (["--set", "optimizer..lr=3"], "write NAME=VALUE"),
    (["--set", "ema.x=3"], "--set ema.x=3: ema is given as a whole, --set ema=VALUE"),
    (["--set", "augment.0=flip"], "augment is given as a whole"),
    (["--set", "optimizer.lr.x=3"], "optimizer.lr is 0.001, and has nothing inside"),
    (["--set", "optimizer=adam", "--lr", "0.1"], "--lr 0.1: optimizer is 'adam', and has nothing inside"),
    (["--set", "optimizer=adam"], "optimizer is 'adam'; it must be of type dict"),
    (["--set", "model=3"], "--set model=3: it must be text"),
    (["--set", "model=null"], "--model is None; it must be of type str"),
    (["--set", "label_smoothing=NaN"], "label_smoothing is 'NaN'; it must be of type float"),
    (["--set", "ema=1"], "ema is 1; it must be at least 0 and below 1"),
    (["--set", "normalize.mean=[0,0,0]"], "normalize must have mean and std, not mean"),
    # What contradicts what.
    (["--set", "epochs=2"], "--epochs 1 and --set epochs=2 contradict each other; give one of them"),
    (["--set", "seed=1", "--set", "seed=2"], "--set seed=1 and --set seed=2 contradict each other"),
    (["--lr", "0.1", "--set", "optimizer.lr=0.2"], "--lr 0.1 and --set optimizer.lr=0.2 contradict"),
    (["--lr", "0.1", "--set", 'optimizer={"name":"sgd","lr":0.2}'], "--lr 0.1 and --set optimizer="),
    (["--set", "optimizer.lr=0.1", "--set", 'optimizer={"name":"sgd","lr":0.2}'], "contradict each other"),
    (["--clip-norm", "1", "--set", "optimizer.clip_norm=null"], "--clip-norm 1.0 and --set optimizer.clip"),
    (["--variant", "width=5", "--set", "variant.width=6"], "--variant width=5 and --set variant.width=6"),
    (["--no-drop-last", "--set", "drop_last=true"], "--no-drop-last and --set drop_last=true contradict"),
    (["--set", "seed=true", "--seed", "1"], "--seed 1 and --set seed=true contradict"),
    (["--freeze", "conv", "--set", 'freeze=["fc"]'], "contradict each other"),
    # What another one has, given and not left of the recipe's.
    (["--set", "schedule.name=cosine", "--set", "schedule.peak=0.3"], "option of the cosine schedule 'peak'"),
    (["--recipe", "cifar", "--set", "schedule.name=cosine", "--set", "schedule.factor=0.1"],
     "unknown option of the cosine schedule 'factor'"),
    (["--set", 'schedule={"name":"cosine","peak":0.3}'], "unknown option of the cosine schedule 'peak'"),
    (["--recipe", "cifar", "--set", "optimizer.name=adam", "--set", "optimizer.momentum=0.9"],
     "unknown option of adam 'momentum'"),
    (["--recipe", "cifar", "--set", "optimizer.name=adm"], "unknown optimizer 'adm'. Did you mean 'adam'?"),
    (["--set", "schedule.name=null"], "unknown schedule None"),
    # Options of their own.
    (["--patience", "2", "--train-on", "train+val"], "--patience is 2, and asks for validation, but with "),
    (["--recipe", "blog", "--keep", "best"], "leave it out, or use --train-on train"),
    (["--patience", "0"], "--patience is 0; it must be at least 1"),
    (["--accumulate", "5"], "--accumulate is 5; it must be at most --batch-size 4, as"),
    (["--clip-norm", "-1"], "--clip-norm is -1.0; it must be above 0"),
    (["--balance", "wieghts"], "unknown value of --balance 'wieghts'. Did you mean 'weights'?"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_in_words(given, said, place, capsys):
    assert said in refused(capsys, *given)


def recipe_settings(recipe):
    if recipe != "auto":
        return recipes.get(recipe)
    counts = {part: (30, 30) for part in ("train", "val", "test")}
    return auto.choose(Glance("pets", ("cat", "dog"), counts, shorter=480)).settings


KINDS = {
    "optimizer": (optim.OPTIMIZERS, optim.options_of),
    "schedule": (schedules.SCHEDULES, schedules.options_of),
}


@pytest.mark.parametrize("recipe", [*recipes.names(), "auto"])
def test_another_optimizer_or_schedule_keeps_of_a_recipe_what_it_has_itself(recipe):
    settings = {**Config().to_dict(), **recipe_settings(recipe)}
    for kind, (known, options_of) in KINDS.items():
        before = settings[kind]
        for name in known:
            kept = {"name": before["name"]} | {key: before[key] for key in options_of(name) if key in before}
            given = given_settings.read([f"{kind}.name={name}"])
            content, lines = given_settings.without_leftovers(settings, given)
            assert content == {**settings, kind: kept}
            dropped = [f"{key}={before[key]!r}" for key in before if key not in kept]
            assert len(lines) == bool(dropped) and all(part in lines[0] for part in dropped)
            made = Config.from_dict(given_settings.applied(content, given))
            assert getattr(made, kind) == kept | {"name": name}
        assert settings[kind] is before and before["name"] in known  # what was given is as it was


def test_the_recipe_auto_takes_another_schedule_and_says_what_is_left_out(place, capsys):
    base = ["train", "--data", "pictures", "--model", "tiny", "--batch-size", "4", "--epochs", "1"]
    config = config_of(capsys, "--set", "schedule.name=cosine", "--set", "schedule.warmup=0.1", base=base)
    assert config["recipe"] == "auto" and config["schedule"] == {"name": "cosine", "warmup": 0.1}
    said = capsys.readouterr().out
    assert "schedule cosine instead of one-cycle: what only one-cycle has is left out, peak=0.25\n" in said


def test_an_option_of_the_recipes_own_schedule_changes_and_nothing_is_left_out(place, capsys):
    base = ["train", "--data", "pictures", "--model", "tiny", "--batch-size", "4", "--epochs", "1"]
    config = config_of(
        capsys, "--set", "schedule.name=one-cycle", "--set", "schedule.peak=0.3",
        "--set", 'optimizer={"name":"sgd","lr":0.1}', base=base,
    )  # fmt: skip
    assert config["schedule"] == {"name": "one-cycle", "peak": 0.3}
    assert config["optimizer"] == {"name": "sgd", "lr": 0.1}
    assert "left out" not in capsys.readouterr().out


def test_another_optimizer_leaves_out_what_only_the_recipes_has(place, capsys):
    config = config_of(
        capsys, "--recipe", "cifar", "--set", "optimizer.name=adam", "--set", "optimizer.eps=1e-7",
        base=[*BASE[:5], *BASE[7:]],
    )  # fmt: skip
    assert config["optimizer"] == {"name": "adam", "lr": 0.1, "weight_decay": 1e-4, "eps": 1e-7}
    assert "optimizer adam instead of sgd: what only sgd has is left out, momentum=0.9\n" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("given", [["--set", "variant.widths=[4,4,4]"], ["--variant", "widths=[4,4,4]"]])
def test_a_part_of_the_variant_makes_the_recipe_auto_start_new_in_either_way(given, place, capsys):
    config = config_of(capsys, *given, base=["train", "--data", "pictures", "--epochs", "1"])
    assert config["start_from"] is None and config["variant"] == {"widths": [4, 4, 4]}


def test_the_same_value_twice_is_no_contradiction(place, capsys):
    config = config_of(
        capsys, "--set", "epochs=1", "--lr", "1", "--set", "optimizer.lr=1.0", "--set", "optimizer.lr=1.0",
        "--set", 'optimizer={"name":"sgd"}', "--clip-norm", "2",
    )  # fmt: skip
    assert config["optimizer"] == {"name": "sgd", "lr": 1.0, "clip_norm": 2.0} and config["epochs"] == 1


def test_a_run_that_goes_on_takes_what_may_change_and_no_more(place, capsys):
    config_of(capsys, "--keep", "all")
    Path("run/summary.json").unlink()
    resume = ("train", "--resume", "run")
    for given, named in [
        (["--set", "epochs=2"], "--set epochs"), (["--set", "optimizer.lr=2"], "--set optimizer.lr"),
        (["--patience", "3"], "--patience"), (["--clip-norm", "3"], "--clip-norm"),
        (["--balance", "weights", "--accumulate", "2"], "--accumulate, --balance"),
    ]:  # fmt: skip
        model = Path("run/model.safetensors")
        content = model.read_bytes()
        model.unlink()
        line = refused(capsys, *given, base=resume)
        assert f"leave out {named}, or start a new run" in line
        model.write_bytes(content)
    assert "contradict" in _said(capsys, [*resume, "--keep", "last", "--set", "keep=none"])
    assert cli.main([*resume, "--set", "keep=best", "--set", "checkpoint_every=1"]) == 0
    assert json.loads(Path("run/config.json").read_text())["keep"] == "best"


def _said(capsys, arguments):
    capsys.readouterr()
    assert cli.main(arguments) == 2
    return capsys.readouterr().err


def test_settings_of_a_recipe_can_be_looked_at_before_they_are_checked():
    settings = Config.settings_of("cifar", epochs=0)
    assert settings["epochs"] == 0 and settings["batch_size"] == 128 and settings["recipe"] == "cifar"
    with pytest.raises(ConfigError, match="epochs is 0"):
        Config.of("cifar", epochs=0)
