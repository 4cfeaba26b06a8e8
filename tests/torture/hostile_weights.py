"""Hostile files of weights: HDF5, PyTorch's, safetensors, indexes of shards, and our own."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import samples as s
import whole_weights as w
from hostile import GIGA, OK, RED, case, rewritten_keras

# --------------------------------------------------------------------------------------------------- HDF5


def keras_h5(change: Callable[[Any, Any], None], *, legacy: bool = False) -> Callable[[Path], Path]:
    """A file of Keras's with something else in it."""

    def make(folder: Path) -> Path:
        import h5py

        (w.make_keras_legacy if legacy else w.make_keras_weights)(folder)
        path = folder / ("weights.h5" if legacy else "small.weights.h5")
        with h5py.File(path, "r+") as file:
            change(file, h5py)
        return path

    return make


KERNEL, LEGACY = "layers/conv2d/vars/0", "model_weights/conv1/conv1/kernel"


def instead(name: str, make: Callable[[Any, Any, str], None]) -> Callable[[Any, Any], None]:
    def change(file: Any, h5py: Any) -> None:
        del file[name]
        make(file, h5py, name)

    return change


def external_link(file: Any, h5py: Any, name: str) -> None:
    with h5py.File(Path(file.filename).parent / "other.h5", "w") as other:
        other["x"] = np.ones((3, 3, 3, 4), np.float32)
    file[name] = h5py.ExternalLink("other.h5", "/x")


def external_storage(file: Any, h5py: Any, name: str) -> None:
    file.create_dataset(name, (3, 3, 3, 4), "f4", external=[("/etc/passwd", 0, 10_000)])


def virtual(file: Any, h5py: Any, name: str) -> None:
    with h5py.File(Path(file.filename).parent / "other.h5", "w") as other:
        other["x"] = np.ones((3, 3, 3, 4), np.float32)
    layout = h5py.VirtualLayout((3, 3, 3, 4), "f4")
    layout[...] = h5py.VirtualSource(str(Path(file.filename).parent / "other.h5"), "x", (3, 3, 3, 4))
    file.create_virtual_dataset(name, layout)


def huge_empty(file: Any, h5py: Any, name: str) -> None:
    file.create_dataset(name, (30_000, 30_000), "f4")


def huge_chunked(file: Any, h5py: Any, name: str) -> None:
    file.create_dataset(name, (30_000, 30_000), "f4", chunks=(100, 100), compression="gzip")


def packed_bomb(file: Any, h5py: Any, name: str) -> None:
    made = file.create_dataset(name, (3000, 1024, 256), "f4", chunks=(1, 1024, 256), compression="gzip")
    chunk = zlib.compress(bytes(1024 * 1024), 9)
    for number in range(3000):
        made.id.write_direct_chunk((number, 0, 0), chunk)


def one_chunk_bomb(file: Any, h5py: Any, name: str) -> None:
    made = file.create_dataset(name, (3, 3, 3, 4), "f4", chunks=(3, 3, 3, 4), compression="gzip")
    made.id.write_direct_chunk((0, 0, 0, 0), zlib.compress(bytes(2**30), 9))


def texts(file: Any, h5py: Any, name: str) -> None:
    file.create_dataset(name, (3, 3, 3, 4), h5py.string_dtype())


def to_itself(file: Any, h5py: Any, name: str) -> None:
    file[name] = file[name.rpartition("/")[0]]


for told, make in {
    "an external link": external_link,
    "external storage": external_storage,
    "a virtual array": virtual,
    "a huge array that was never written": huge_empty,
    "a huge chunked array that was never written": huge_chunked,
    "an array of 3 GB packed to 3 MB": packed_bomb,
    "a chunk that unpacks to 1 GB": one_chunk_bomb,
    "an array of texts": texts,
    "a group that holds itself": to_itself,
}.items():
    fine = OK if make is one_chunk_bomb else ("refused",)
    case(f"Keras .weights.h5 with {told}", keras_h5(instead(KERNEL, make)), w.read_keras, fine=fine)
    case(f"Keras .h5 with {told}", keras_h5(instead(LEGACY, make), legacy=True), w.read_keras, fine=fine)


def layers_in_layers(file: Any, h5py: Any) -> None:
    file["layers/conv2d/layers"] = file["layers"]


def deep_layers(file: Any, h5py: Any) -> None:
    group = file["layers/conv2d"]
    for _ in range(3000):
        group = group.create_group("layers/a")


def many_layers(file: Any, h5py: Any) -> None:
    for number in range(20_000):
        file.create_group(f"layers/x{number}/vars")


case("Keras .weights.h5 whose layers hold themselves", keras_h5(layers_in_layers), w.read_keras)
case("Keras .weights.h5 with layers 3,000 deep", keras_h5(deep_layers), w.read_keras)
case("Keras .weights.h5 with 20,000 empty layers", keras_h5(many_layers), w.read_keras, fine=OK)
case(
    "Keras .h5 with a config 100,000 deep",
    keras_h5(lambda f, h: f.attrs.create("model_config", "[" * 30_000 + "]" * 30_000), legacy=True),
    w.read_keras,
)
case(
    "Keras .h5 whose layer_names lists a layer twice",
    keras_h5(lambda f, h: f["model_weights"].attrs.create("layer_names", ["conv1"] * 2), legacy=True),
    w.read_keras,
)
case(
    "a .keras with a config 100,000 deep",
    lambda f: rewritten_keras(f, lambda c: None, text="[" * 100_000 + "]" * 100_000),
    w.read_keras,
)
case(
    "a .keras with a config of numbers",
    lambda f: rewritten_keras(f, lambda c: c["config"].update(layers=[1, 2, 3])),
    w.read_keras,
    fine=OK,
)


def with_number(value: float) -> Callable[[Any, Any], None]:
    def change(file: Any, h5py: Any) -> None:
        name = KERNEL if KERNEL in file else LEGACY
        array = file[name][()]
        array[0, 0, 0, 0] = value
        file[name][...] = array

    return change


case("Keras .weights.h5 with NaN", keras_h5(with_number(np.nan)), w.read_keras)
case("Keras .h5 with infinity", keras_h5(with_number(np.inf), legacy=True), w.read_keras)


def signs_with(change: Callable[[Any, Any, str], None], name: str = "train_set_x") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import h5py

        s.make_signs(folder)
        path = folder / "set" / "train_signs.h5"
        with h5py.File(path, "r+") as file:
            instead(name, change)(file, h5py)
        return path

    return make


def u1(make: Callable[[Any, Any, str], None]) -> Callable[[Any, Any, str], None]:
    """As it makes float32 for Keras, but as pictures."""

    class AsBytes:
        def __init__(self, file: Any) -> None:
            self.file, self.filename = file, file.filename

        def create_dataset(self, name: str, shape: Any, dtype: Any, **options: Any) -> Any:
            shape = {2: (300_000, 64, 64, 3), 3: (3000, 1024, 256, 3), 4: (30, 8, 8, 3)}[len(shape)]
            if "chunks" in options:
                options["chunks"] = (1, *shape[1:]) if len(shape) == 4 and shape[0] > 30 else shape
            return self.file.create_dataset(name, shape, "u1", **options)

    def change(file: Any, h5py: Any, name: str) -> None:
        make(AsBytes(file), h5py, name)

    return change


case("SIGNS with an external link", signs_with(external_link), s.read_set)
case("SIGNS with a virtual array", signs_with(virtual), s.read_set)
case("SIGNS with external storage", signs_with(u1(external_storage)), s.read_set)
case("SIGNS with 300,000 pictures that were never written", signs_with(u1(huge_empty)), s.read_set)
case("SIGNS with a huge chunked array", signs_with(u1(huge_chunked)), s.read_set)
case("SIGNS with a chunk that unpacks to 1 GB", signs_with(u1(one_chunk_bomb)), s.read_set, fine=OK)
case(
    "SIGNS with texts for labels",
    signs_with(lambda f, h, n: f.create_dataset(n, (30,), h.string_dtype()), "train_set_y"),
    s.read_set,
)
case("SIGNS with a group for pictures", signs_with(lambda f, h, n: f.create_group(n)), s.read_set)
case(
    "SIGNS with a link to nowhere",
    signs_with(lambda f, h, n: f.__setitem__(n, h.SoftLink("/nowhere"))),
    s.read_set,
)
case(
    "SIGNS with odd labels",
    signs_with(lambda f, h, n: f.create_dataset(n, data=np.full(30, 2**63, np.uint64)), "train_set_y"),
    s.read_set,
)
case(
    "SIGNS with odd classes",
    signs_with(lambda f, h, n: f.create_dataset(n, data=np.array([b"\xff\xfe", b"a"])), "list_classes"),
    s.read_set,
    fine=OK,
)


# ------------------------------------------------------------------------------------- weights of PyTorch's


def torch_with(name: str, change: Callable[[dict[str, Any], Any], Any]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import torch

        state = {key: torch.from_numpy(array) for key, array in w.torch_state().items()}
        other = change(state, torch)
        torch.save(state if other is None else other, folder / name)
        return folder / name

    return make


def itself(state: Any, torch: Any) -> Any:
    state["state_dict"] = state
    return state


def nested(state: Any, torch: Any) -> Any:
    for _ in range(150):
        state = {"state_dict": state}
    return state


def put(key: str, value: Callable[[Any], Any]) -> Callable[[dict[str, Any], Any], None]:
    def change(state: dict[str, Any], torch: Any) -> None:
        state[key] = value(torch)

    return change


for told, change in {
    "that holds itself": itself,
    "150 containers deep": nested,
    "with a tensor of 40 GB made of one number": put(
        "conv1.weight", lambda torch: torch.zeros(1, dtype=torch.float16).expand(10**5, 10**5)
    ),
    "with a sparse tensor": put("linear.weight", lambda torch: torch.ones(10, 8).to_sparse()),
    "with a huge sparse tensor": put(
        "linear.weight", lambda torch: torch.sparse_coo_tensor([[0], [0]], [1.0], (10**6, 10**6))
    ),
    "with a complex tensor": put("linear.weight", lambda torch: torch.ones(10, 8, dtype=torch.complex64)),
    "with a tensor without numbers": put("linear.weight", lambda torch: torch.ones(10, 8, device="meta")),
    "with whole numbers for weights": put("linear.weight", lambda torch: torch.ones(10, 8, dtype=torch.int8)),
    "with truth values for weights": put("linear.weight", lambda torch: torch.ones(10, 8, dtype=torch.bool)),
    "with NaN": put("linear.weight", lambda torch: torch.full((10, 8), float("nan"))),
    "with infinity": put("bn1.running_var", lambda torch: torch.full((4,), float("inf"))),
    "with a negative variance": put("bn1.running_var", lambda torch: -torch.ones(4)),
    "with a tensor of no numbers": put("linear.weight", lambda torch: torch.ones(0, 8)),
    "with a quantised tensor": put(
        "linear.weight", lambda torch: torch.quantize_per_tensor(torch.ones(10, 8), 0.1, 0, torch.qint8)
    ),
    "with a nested tensor": put(
        "linear.weight", lambda torch: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    ),
    "with a name that is a number": lambda state, torch: {**state, 7: torch.ones(1)},
    "with a name that is a tuple": lambda state, torch: {**state, ("a", 1): torch.ones(1)},
    "with a name that steers a terminal": lambda state, torch: {**state, RED: torch.ones(1)},
    "that is a list": lambda state, torch: list(state.values()),
    "that is a number": lambda state, torch: 3.0,
    "that is an empty dict": lambda state, torch: {"state_dict": {}},
    "that is a tensor": lambda state, torch: torch.ones(3),
}.items():
    case(
        f"a .pth {told}",
        torch_with("weights.pth", change),
        w.read_torch,
        fine=OK if change is nested else ("refused",),
    )


def safetensors_with(
    name: str, header: Callable[[dict[str, Any]], Any], *, size: int | None = None
) -> Callable[[Path], Path]:
    """A safetensors file with another header; ``size`` is what it says of the header's length."""

    def make(folder: Path) -> Path:
        w.make_safetensors(folder)
        old, body = mutations.opened((folder / "weights.safetensors").read_bytes())
        new = header(old)
        text = new if isinstance(new, bytes) else json.dumps(new).encode()
        text += b" " * (-len(text) % 8)
        (folder / name).write_bytes((len(text) if size is None else size).to_bytes(8, "little") + text + body)
        return folder / name

    return make


DEEP = b'{"a":' * 100_000 + b"0" + b"}" * 100_000
for told, header, size in [
    ("a header of 2^60 bytes", lambda h: h, 2**60),
    ("a header of 2^64 - 1 bytes", lambda h: h, 2**64 - 1),
    ("a header 100,000 deep", lambda h: DEEP, None),
    ("a header that is a list", lambda h: [h], None),
    ("one name twice", lambda h: json.dumps(h)[:-1].encode() + b"," + json.dumps(h)[1:].encode(), None),
    (
        "a tensor of 2^62 numbers",
        lambda h: {**h, "x": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 2**64 - 1]}},
        None,
    ),
    (
        "a shape that is too large for its bytes",
        lambda h: {**h, "conv1.weight": {**h["conv1.weight"], "shape": [2**62, 4]}},
        None,
    ),
    ("two tensors in one place", lambda h: {**h, "conv1.weight": h["layer1.0.conv1.weight"]}, None),
    ("names that steer a terminal", lambda h: {RED + k: v for k, v in h.items()}, None),
    ("names that lead elsewhere", lambda h: {"../../" + k: v for k, v in h.items()}, None),
    (
        "metadata 100,000 deep",
        lambda h: {**h, "__metadata__": {"minires": "[" * 100_000 + "]" * 100_000}},
        None,
    ),
    ("metadata that is a number", lambda h: {**h, "__metadata__": {"minires": "3"}}, None),
]:
    fine = OK if told.startswith("metadata") else ("refused",)
    case(
        f"safetensors of others with {told}",
        safetensors_with("weights.safetensors", header, size=size),
        w.read_torch,
        fine=fine,
    )
    case(
        f"model.safetensors with {told}",
        safetensors_with("model.safetensors", header, size=size),
        s.read_model,
    )


def tensors_with(name: str, value: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from safetensors.numpy import save_file

        save_file({**w.torch_state(), name: value}, folder / "weights.safetensors", {"format": "pt"})
        return folder / "weights.safetensors"

    return make


case(
    "safetensors of others with NaN",
    tensors_with("linear.bias", np.full(10, np.nan, np.float32)),
    w.read_torch,
)
case(
    "safetensors of others with infinity",
    tensors_with("linear.bias", np.full(10, -np.inf, np.float32)),
    w.read_torch,
)
case(
    "safetensors of others with whole numbers",
    tensors_with("linear.bias", np.ones(10, np.int32)),
    w.read_torch,
)
case(
    "safetensors of others with a number that float32 lacks",
    tensors_with("linear.bias", np.full(10, 1e300)),
    w.read_torch,
)
case(
    "safetensors of others, a variance below zero",
    tensors_with("bn1.running_var", np.full(4, -1, np.float32)),
    w.read_torch,
)


def index_with(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        w.make_shards(folder)
        path = folder / "model.safetensors.index.json"
        changed = change(json.loads(path.read_text()))
        path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
        return path

    return make


def elsewhere(to: str) -> Callable[[dict[str, Any]], Any]:
    return lambda index: {**index, "weight_map": {name: to for name in index["weight_map"]}}


for told, change in {
    "to ../": elsewhere("../../x.safetensors"),
    "to /etc/passwd": elsewhere("/etc/passwd"),
    "to /dev/zero": elsewhere("/dev/zero"),
    "to itself": elsewhere("model.safetensors.index.json"),
    "to a name that steers a terminal": elsewhere(RED + ".safetensors"),
    "to numbers": lambda index: {**index, "weight_map": dict.fromkeys(index["weight_map"], 3)},
    "100,000 deep": lambda index: "[" * 100_000 + "]" * 100_000,
    "that is empty": lambda index: {},
}.items():
    case(f"an index of shards {told}", index_with(change), w.read_torch)


# ------------------------------------------------------------------------------------------- our own files


def own_with(
    change: Callable[[dict[str, Any], dict[str, Any]], object], *, name: str = "model.safetensors"
) -> Callable[[Path], Path]:
    """One of our models with other contents, and a checksum that fits."""

    def make(folder: Path) -> Path:
        from minires.train import checkpoint

        s.make_model(folder)
        arrays, info = checkpoint.read(folder / "model.safetensors")
        change(arrays, info)
        checkpoint.write(folder / name, arrays, info)
        return folder / name

    return make


for told, change in {
    "a width of a thousand million": lambda a, i: i.update(variant={"width": GIGA}),
    "a million classes": lambda a, i: i.update(classes=[str(n) for n in range(10**6)]),
    "widths of a ResNet of a million": lambda a, i: i.update(
        model="resnet20_cifar", variant={"widths": [10**6] * 3}
    ),
    "a million blocks": lambda a, i: i.update(model="resnet20_cifar", variant={"repeats": [10**6] * 3}),
    "NaN": lambda a, i: a["fc.bias"].fill(np.nan),
    "a negative variance": lambda a, i: a["bn_conv1.running_var"].fill(-1),
    "no classes": lambda a, i: i.update(classes=[]),
    "classes that are numbers": lambda a, i: i.update(classes=[1, 2, 3]),
    "classes that are one text": lambda a, i: i.update(classes="cat"),
    "one class twice": lambda a, i: i.update(classes=["a", "a", "b"]),
    "a deviation of zero": lambda a, i: i["normalize"].update(std=[0, 0, 0]),
    "no normalisation": lambda a, i: i.pop("normalize"),
    "a size below zero": lambda a, i: i.update(size=[-1, 16]),
    "a huge size": lambda a, i: i.update(size=[10**9, 10**9]),
    "a model that is a list": lambda a, i: i.update(model=["torture_net"]),
    "a variant that is a list": lambda a, i: i.update(variant=[1]),
    "a variant with a seed": lambda a, i: i.update(variant={"seed": -1}),
    "nothing but its kind": lambda a, i: [i.pop(k) for k in list(i) if k != "kind"],
}.items():
    # A run that diverged leaves such a model, and nothing forbids two classes of one name.
    fine = OK if told in ("NaN", "a negative variance", "one class twice") else ("refused",)
    case(f"model.safetensors with {told}", own_with(change), s.read_model, fine=fine)
