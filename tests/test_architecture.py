"""The shape of the package: imports point only down, in no circle, and nobody reaches past the backend."""

from __future__ import annotations

import ast
import graphlib
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import minires

ROOT = Path(minires.__file__).parent
# A module may import what stands above it in this list, and modules of its own folder.
FLOORS = [
    "version", "errors", "registry", "files", "exercises", "backend", "tensor", "gradient_check", "ops", "nn", "models",
    "data", "train", "weights", "inspect", "debug", "play", "doctor", "commands", "cli", "__main__",
]  # fmt: skip
ABOVE_THE_PACKAGE = {"doctor", "commands", "cli", "__main__"}  # these may import minires itself
INDEPENDENT = {
    "version": set(), "errors": set(), "registry": {"errors"}, "files": {"errors"}, "exercises": set(), "backend": {"errors"},
    "data": {"errors", "registry", "files"},
}  # fmt: skip
ONLY_BACKEND = {"cupy", "numba", "llvmlite", "ml_dtypes"}
NEVER = {"torch", "torchvision", "tensorflow", "keras", "jax", "sklearn", "scipy", "autograd", "pickle"}
# Weight files that torch.save wrote are pickles, which PyTorch's own safe loader opens, and nothing else.
READERS = {("minires.weights.torch.files", "torch")}


def _name(path: Path) -> str:
    parts = ("minires", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def _imports(module: str) -> Iterator[str]:
    """Everything that ``module`` imports, inside functions too, and by importlib.import_module."""
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} line {node.lineno}: imports are written in full"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in FILES else str(node.module)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield str(node.args[0].value)


def _floor(module: str) -> str:
    """``minires.ops.relu`` -> ``ops``."""
    return module.split(".")[1]


INSIDE = [module for module in FILES if module != "minires"]


def test_every_room_has_its_floor():
    assert {_floor(module) for module in INSIDE} <= set(FLOORS)
    assert {"errors", "backend", "tensor", "gradient_check", "ops", "nn", "models", "data", "train"} <= {
        _floor(module) for module in INSIDE
    }


def test_imports_point_only_down():
    wrong = []
    for module in INSIDE:
        floor = _floor(module)
        allowed = INDEPENDENT.get(floor, set(FLOORS[: FLOORS.index(floor)])) | {floor}
        for imported in _imports(module):
            if imported == "minires" and floor not in ABOVE_THE_PACKAGE:
                wrong.append(f"{module} imports the package itself; import the module that defines the name")
            elif imported.startswith("minires.") and _floor(imported) not in allowed:
                wrong.append(f"{module} imports {imported}")
    assert not wrong, "\n".join(wrong)


def test_imports_go_in_no_circle():
    graph = {m: {i for i in _imports(m) if i in FILES and i != m} for m in INSIDE}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, with the circle
    assert len(order) == len(set(order)) >= len(INSIDE)


def test_only_arrays_and_kernels_import_cupy_and_numba():
    users = {m for m in FILES if ONLY_BACKEND & {i.split(".")[0] for i in _imports(m)}}
    assert users == {f"minires.backend.{name}" for name in ("arrays", "kernels", "simd")}


def test_no_other_framework_is_imported_and_nothing_is_unpickled():
    users = {(m, i) for m in FILES for i in _imports(m) if i.split(".")[0] in NEVER}
    assert users <= READERS
    for module, path in FILES.items():
        assert "allow_pickle=True" not in path.read_text(), module


def test_importing_the_package_imports_no_heavy_library():
    heavy = sorted(ONLY_BACKEND | NEVER - {"pickle"} | {"matplotlib", "PIL", "h5py", "safetensors", "tqdm"})
    code = f"import sys, minires; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


def test_a_module_is_found_under_its_name_and_no_function_stands_there():
    """The operations' modules are called like functions, see minires.ops.callable_module."""
    modules = [m for m in INSIDE if m != "minires.__main__" and not m.startswith("minires.ops.")]
    for module in modules:
        importlib.import_module(module)
    hidden = []
    for module in modules:
        parent, _, name = module.rpartition(".")
        if getattr(sys.modules[parent], name) is not sys.modules[module]:
            hidden.append(module)
    assert not hidden


def test_the_face_is_complete_and_late():
    from minires import data, debug, inspect, models, nn, ops, optim, train, weights

    rooms = {"data": data, "debug": debug, "inspect": inspect, "models": models, "nn": nn, "ops": ops,
             "train": train, "weights": weights}  # fmt: skip
    assert all(sys.modules[f"minires.{name}"] is room for name, room in rooms.items())
    assert optim is train.optim is sys.modules["minires.train.optim"]
    assert {*minires.__all__, "__version__"} <= set(dir(minires))
    assert all(getattr(minires, name) is not None for name in minires.__all__)
    with pytest.raises(AttributeError, match="no attribute 'optimizers'"):
        _ = minires.optimizers
    code = "import sys, minires; print([n for n in minires._MODULES.values() if n in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


def test_a_type_checker_sees_what_is_imported_late():
    """mypy knows nothing of __getattr__: each name is imported once more, for it alone."""
    seen: set[str] = set()
    for node in ast.parse(FILES["minires"].read_text()).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            seen |= {alias.name for line in node.body for alias in getattr(line, "names", [])}
    assert seen == {*minires._MODULES, *minires._FUNCTIONS}


def _code_lines(path: Path) -> int:
    """How many lines hold code: no blank ones, no comments, no docstrings."""
    text = path.read_text()
    lines = {number for number, line in enumerate(text.splitlines(), 1) if line.strip(" )]}")}
    lines -= {number for number, line in enumerate(text.splitlines(), 1) if line.lstrip().startswith("#")}
    for node in ast.walk(ast.parse(text)):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


# The functions of these files that are the reference implementation. Idea is what a student reads: they, the
# public functions, and the head of the file.
REFERENCE = {
    "minires.ops.conv2d": {"_im2col", "_col2im", "_forward", "_backward_x", "_backward_w", "_backward_b"},
    "minires.ops.batch_norm": {"_statistics", "_inv", "_move", "_update", "_forward", "_backward"},
    "minires.ops.max_pool2d": {"_forward", "_backward"},
    "minires.ops.avg_pool2d": {"_counts", "_sum", "_backward"},
}  # fmt: skip


@pytest.mark.parametrize("module", REFERENCE)
def test_the_first_file_of_an_operation_is_mostly_its_idea(module):
    text = FILES[module].read_text()
    head, *rest = ast.parse(text).body
    assert isinstance(head, ast.Expr), "the file begins with its docstring"
    functions = {node.name: node for node in rest if isinstance(node, ast.FunctionDef)}
    assert functions.keys() >= REFERENCE[module]
    public = {name for name in functions if not name.startswith("_")}
    assert public and all(ast.get_docstring(functions[name]) for name in public)
    idea = head.end_lineno
    for name in public | REFERENCE[module]:
        node = functions[name]
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        idea += node.end_lineno - first + 1
    share = idea / len(text.splitlines())
    assert share >= 0.6, f"{share:.0%} of {module} is formula, reference and public functions"


def test_no_room_is_too_large():
    sizes = {module: _code_lines(path) for module, path in FILES.items()}
    assert not {module: size for module, size in sizes.items() if size > 400}
    operations = {module: size for module, size in sizes.items() if module.startswith("minires.ops.")}
    del operations["minires.ops.cases"]  # a table
    assert not {module: size for module, size in operations.items() if size > 250}
