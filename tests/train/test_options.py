"""Every option of training takes NumPy's numbers as Python's, and answers a wrong kind of value in words,
where it is given: schedules, augmentations, optimisers, settings of a run, and what else has options.

The registries are walked: what is added to one is tested, too.
"""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest
from PIL import Image
from train.small_run import small_model, stripes

from minires import data, models, nn, optim
from minires.data import Loader, Normalize
from minires.data.augment import AUGMENTATIONS
from minires.errors import ConfigError, MiniresError
from minires.nn import init
from minires.optim import OPTIMIZERS
from minires.tensor import Tensor
from minires.train import (
    EMA,
    Config,
    Schedule,
    evaluate,
    freeze,
    load_model,
    predict,
    recalibrate,
    start_from,
)
from minires.train.schedules import SCHEDULES, WARMUP, Curve

NAN, INF = float("nan"), float("inf")
NO_NUMBERS = (None, "0.1", "", [], {}, (0.1, 0.2), True, np.True_, 1j, NAN, INF, -INF, object(), -0.5)
KINDS = {
    "number": (*NO_NUMBERS, 10**400, -(10**400)),
    "whole": (*NO_NUMBERS, 1.5, 2.0, np.float32(2)),
    "numbers": (None, 0.5, "0.5", [None], ["0.5"], [True], [NAN], [INF], [-1.0], {0.5}, {"a": 0.5}, [[0.5]]),
    "pair": (None, 0.5, "0.5", [0.5], [0.5, "0.5"], (0.5, True), (NAN, 0.5), (0.5,) * 3, {}, (-1.0, 0.5)),
    "truth": (None, 0, 1, 0.0, "True", "", [], NAN),
    "word": (None, 0, 1.5, True, [], "sideways", {}, NAN),
}  # fmt: skip


def kind_of(default):
    if isinstance(default, bool):
        return "truth"
    if isinstance(default, int):
        return "whole"
    if isinstance(default, float):
        return "number"
    if isinstance(default, tuple | list):
        return "pair" if len(default) == 2 else "numbers"
    assert isinstance(default, str), default
    return "word"


def numpy_kinds(value):
    """The same value in NumPy's numbers."""
    if isinstance(value, bool):
        return [np.bool_(value)]
    if isinstance(value, int):
        return [np.int64(value), np.int8(value), np.uint16(value)]
    if isinstance(value, float):
        return [np.float64(value), np.float32(value)]
    if isinstance(value, tuple | list):
        return [[np.float64(one) for one in value], np.array(value, np.float64), tuple(value), list(value)]
    return []


SLOT: dict[str, tuple] = {}  # what has options: (kind, a good value, use it)


def _add(name, kind, good, use):
    SLOT[name] = kind, good, use


def _rates(spec):
    schedule = Schedule(spec, lr=0.5, total_steps=9)
    for loss in (1.0, 1.0, 1.0):
        schedule.epoch_end(loss)
    return [schedule.lr(step) for step in range(9)]


for name, curve in SCHEDULES.items():
    for field in dataclasses.fields(curve):
        kind = "numbers" if field.name == "at" else kind_of(field.default)
        good = {"number": 0.5, "whole": 1, "numbers": (0.25, 0.5)}[kind]
        use = lambda v, n=name, f=field.name: _rates({"name": n, f: v})  # noqa: E731
        _add(f"schedule {name} {field.name}", kind, good, use)
    for option in WARMUP:
        use = lambda v, n=name, o=option: _rates({"name": n, "warmup": 0.5, o: v})  # noqa: E731
        _add(f"schedule {name} {option}", "number", 0.5, use)
_add("schedule lr", "number", 0.5, lambda v: Schedule({"name": "cosine"}, lr=v, total_steps=4).lr(1))
_add("schedule total_steps", "whole", 4, lambda v: Schedule({"name": "cosine"}, lr=1.0, total_steps=v).lr(1))

PICTURES = stripes(12, 0)


def _augmented(name, options):
    steps, rng = data.build([[name, options]]), np.random.default_rng(0)
    if name == "scale_crop":
        return steps.steps[0].from_picture(Image.fromarray(PICTURES.images[0]), 10, rng)
    return steps(PICTURES.images, rng)


SPECIAL = {  # of options whose default does not say what they take
    ("scale_crop", "shorter"): ("whole", 20),
    ("scale_crop", "resample"): ("word", "bicubic"),
    ("pca_colour", "values"): ("numbers", (0.5, 0.25, 0.125)),
    ("pca_colour", "vectors"): (None, None),  # rows of numbers: see tests/data/test_data_imagenet.py
}
for name, make in AUGMENTATIONS.items():
    for parameter in inspect.signature(make).parameters.values():
        kind, good = SPECIAL.get((name, parameter.name)) or (kind_of(parameter.default), None)
        if (name, parameter.name) not in SPECIAL:
            good = {"number": 0.5, "whole": 2, "pair": (0.5, 0.75), "word": "edge"}[kind]
        if kind is None:
            continue
        use = lambda v, n=name, p=parameter.name: _augmented(n, {p: v})  # noqa: E731
        _add(f"augmentation {name} {parameter.name}", kind, good, use)
_add("normalize mean", "numbers", (0.5, 0.5, 0.5), lambda v: Normalize(v, (1, 1, 1))(PICTURES.images))
_add("normalize std", "numbers", (0.5, 0.5, 0.5), lambda v: Normalize((0, 0, 0), v)(PICTURES.images))


def _stepped(name, options):
    w = Tensor(np.linspace(-1, 1, 6).reshape(2, 3), requires_grad=True)
    optimizer = optim.build({"name": name, "lr": 0.1, **options}, [w])
    for _ in range(3):
        w.grad = np.ones((2, 3))
        optimizer.step()
    return w.data


OPTIONAL = {"clip_norm": "number", "eps": "number", "lr": "number"}  # None is their default, or there is none
for name, make in OPTIMIZERS.items():
    for parameter in list(inspect.signature(make).parameters.values())[1:]:
        kind = OPTIONAL.get(parameter.name) or kind_of(parameter.default)
        good = {"number": 0.5, "pair": (0.5, 0.75), "truth": True, "word": "keras"}[kind]
        more = {"momentum": 0.5} if parameter.name == "nesterov" else {}
        use = lambda v, n=name, p=parameter.name, m=more: _stepped(n, {**m, p: v})  # noqa: E731
        _add(f"optimizer {name} {parameter.name}", kind, good, use)

CONFIG_KINDS = {"int": "whole", "float": "number", "bool": "truth", "int | None": "whole"}
for field in dataclasses.fields(Config):
    if field.type in CONFIG_KINDS:
        kind = CONFIG_KINDS[field.type]
        good = {"number": 0.5, "whole": 2, "truth": True}[kind]
        _add(f"Config {field.name}", kind, good, lambda v, f=field.name: Config(**{f: v}))
_add("Config schedule", "numbers", [0.25, 0.5],
     lambda v: Config(schedule={"name": "step", "at": v}).to_dict())  # fmt: skip
_add("Config optimizer", "number", 0.5, lambda v: Config(optimizer={"name": "sgd", "lr": v}))
_add("Config augment", "whole", 2, lambda v: Config(augment=[["shift", {"pixels": v}]]))


def _moved(decay):
    model = nn.Linear(2, 2, rng=np.random.default_rng(0))
    ema = EMA(model, decay)
    model.weight.data += 1
    ema.update()
    return ema.averages["weight"]


def _first_batch(**options):
    return next(Loader(PICTURES, **{"batch_size": 4, **options}).epoch(0))


_add("EMA decay", "number", 0.5, _moved)
_add("Loader batch_size", "whole", 5, lambda v: _first_batch(batch_size=v))
_add("Loader seed", "whole", 5, lambda v: _first_batch(seed=v))
_add("Loader shuffle", "truth", True, lambda v: _first_batch(shuffle=v))
_add("Loader drop_last", "truth", True, lambda v: _first_batch(drop_last=v))
_add("Loader epoch", "whole", 2, lambda v: next(Loader(PICTURES, 4).epoch(v)))
_add("Loader start", "whole", 2, lambda v: next(Loader(PICTURES, 4).epoch(0, v)))
_add("split fraction", "number", 0.5, lambda v: PICTURES.split(v, seed=0)[0].labels)
_add("split seed", "whole", 5, lambda v: PICTURES.split(0.5, seed=v)[0].images)
_add("evaluate batch_size", "whole", 5, lambda v: evaluate(small_model(), PICTURES, NONE, batch_size=v).loss)
_add("predict batch_size", "whole", 5, lambda v: predict(small_model(), PICTURES.images, NONE, batch_size=v))
_add("recalibrate batch_size", "whole", 5, lambda v: _recalibrated(v))
_add("Dropout seed", "whole", 5, lambda v: nn.Dropout(0.5, seed=v)(X).numpy())
_add("manual_seed", "whole", 5, lambda v: init.manual_seed(v).random())
_add("build seed", "whole", 5, lambda v: models.build("resnet20_cifar", seed=v).fc.weight.numpy())
_add("build classes", "whole", 5, lambda v: models.build("resnet20_cifar", classes=v).fc.weight.numpy())
NONE, X = Normalize.none(), Tensor(np.ones((4, 8)))


def _recalibrated(batch_size):
    model = small_model()
    recalibrate(model, PICTURES.images, NONE, batch_size=batch_size)
    return model.bn2.running_var


# Values that an option takes although others of its kind do not.
FINE = {
    "Config size": (None,),
    "Config pictures": (None,),
    "Config patience": (None,),
    "Dropout seed": (None,),
    "build classes": (None,),
    "schedule step at": ([],),
    **{f"optimizer {name} {option}": (None,) for name in OPTIMIZERS for option in ("clip_norm", "eps")},
}  # fmt: skip


def same(one, other):
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return one == other and repr(one) == repr(other)


@pytest.mark.parametrize("name", SLOT)
def test_a_value_of_a_wrong_kind_is_answered_in_words(name):
    kind, _, use = SLOT[name]
    for wrong in KINDS[kind]:
        if any(wrong is fine or (type(wrong) is type(fine) and wrong == fine) for fine in FINE.get(name, ())):
            continue
        with pytest.raises(MiniresError) as caught:
            use(wrong)
        assert caught.value.message.strip(), wrong


@pytest.mark.parametrize("name", SLOT)
def test_numbers_of_numpy_are_as_good_as_pythons(name):
    _, good, use = SLOT[name]
    expected = use(good)
    for value in numpy_kinds(good):
        assert same(use(value), expected), repr(value)


@pytest.mark.parametrize(
    "use",
    [
        lambda wrong: Schedule(wrong, lr=0.1, total_steps=4),
        lambda wrong: Schedule({"name": wrong}, lr=0.1, total_steps=4),
        lambda wrong: Config(schedule=wrong),
        lambda wrong: Config(optimizer=wrong),
        lambda wrong: Config(variant=wrong),
        lambda wrong: Config(normalize=wrong),
        lambda wrong: Config(normalize={"mean": wrong, "std": [1, 1, 1]}),
        lambda wrong: Config(freeze=[[wrong]]),
        lambda wrong: Config(augment=[[wrong]]),
        lambda wrong: Config(augment=[["shift", wrong]]),
        lambda wrong: freeze(small_model(), wrong),
        lambda wrong: freeze(small_model(), [wrong]),
        lambda wrong: start_from(small_model(), wrong),
        lambda wrong: data.load(wrong),
        lambda wrong: Loader(wrong, 2),
        lambda wrong: Loader(PICTURES, 2, augment=wrong),
        lambda wrong: Loader(PICTURES, 2, normalize=wrong),
        lambda wrong: nn.Linear(2, 2, rng=wrong),
        lambda wrong: nn.Conv2d(2, 2, 3, rng=wrong),
        lambda wrong: predict(small_model(), wrong, NONE),
        lambda wrong: PICTURES.take([wrong]),
    ],
)
@pytest.mark.parametrize("wrong", ["sideways", 1.5, {3: 4}, object()])
def test_what_is_no_number_is_checked_for_its_kind_too(use, wrong):
    with pytest.raises(MiniresError):
        use(wrong)


def test_a_mistake_in_a_recipe_is_found_when_it_is_written_and_says_where():
    for changes, text in [
        ({"schedule": {"name": "step", "at": 0.5}}, "at of the step schedule must be a list of numbers"),
        ({"optimizer": {"name": "adam", "lr": "1"}}, "lr must be a number, not '1'"),
        ({"optimizer": {"name": "adam", "lr": 1, "betas": 0.9}}, "betas must be 2 numbers, not 0.9"),
        ({"augment": [["flip", {"p": None}]]}, "flip: p must be a number from 0 to 1, got None"),
        ({"variant": {"width": {1}}}, "cannot be written as JSON"),
        ({"size": 0}, "size is 0; it must be at least 1"),
    ]:  # fmt: skip
        with pytest.raises(MiniresError, match=text):
            Config(**changes)
    # A name that is registered later is no mistake yet.
    assert Config(schedule={"name": "mine"}, optimizer={"name": "mine"}, augment=["mine"])


def test_an_option_that_has_no_default_is_asked_for(monkeypatch):
    @dataclasses.dataclass
    class Needs(Curve):
        depth: float

        def __call__(self, lr, step, steps):
            return lr * self.depth

    monkeypatch.setitem(SCHEDULES, "needs", Needs)
    with pytest.raises(ConfigError, match="the needs schedule needs depth"):
        Schedule({"name": "needs"}, lr=1.0, total_steps=4)
    assert Schedule({"name": "needs", "depth": np.float32(0.5)}, lr=1.0, total_steps=4).lr(0) == 0.5
    monkeypatch.setitem(AUGMENTATIONS, "needs", lambda depth: lambda x, rng: x)
    with pytest.raises(ConfigError, match="the augmentation needs needs depth"):
        data.build(["needs"])


@pytest.mark.parametrize("wrong", [None, 3, ["default"]])
def test_a_configuration_or_a_path_that_is_none_is_answered(wrong, tmp_path):
    with pytest.raises(ConfigError):
        Config.from_dict(wrong)
    with pytest.raises(ConfigError, match="is read from the path of its file"):
        load_model(wrong)
