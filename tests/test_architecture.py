"""The shape of the package: imports point only down, in no circle, and nobody reaches past the backend."""

from __future__ import annotations

import ast
import configparser
import graphlib
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from architecture import FILES, FLOORS, INSIDE, arrows, code_lines, draw, floor, imports

import minires

ABOVE_THE_PACKAGE = {"doctor", "commands", "cli", "__main__"}  # these may import minires itself
INDEPENDENT = {
    "version": set(), "beginnings": set(), "quiet_start": set(), "errors": set(),
    "interrupt": {"quiet_start"},
    "registry": {"errors"}, "files": {"errors"}, "exercises": set(), "limits": {"errors"}, "hdf5": {"errors"},
    "download": {"errors"},
    "settings": {"errors"}, "backend": {"errors", "settings"}, "modes": {"settings"},
    "data": {"errors", "registry", "files", "download", "limits", "hdf5", "beginnings", "backend"},
}  # fmt: skip
ONLY_BACKEND = {"cupy", "numba", "llvmlite", "ml_dtypes"}
NEVER = {"torch", "torchvision", "tensorflow", "keras", "jax", "sklearn", "scipy", "autograd", "pickle"}
# Weight files that torch.save wrote are pickles, which PyTorch's own safe loader opens, and nothing else; and
# torch.save writes them.
READERS = {("minires.weights.torch.pickled", "torch"), ("minires.weights.torch.export", "torch")}


def test_every_room_has_its_floor():
    assert {floor(module) for module in INSIDE} <= set(FLOORS)
    assert {"errors", "backend", "tensor", "gradient_check", "ops", "nn", "models", "data", "train"} <= {
        floor(module) for module in INSIDE
    }


def test_imports_point_only_down():
    wrong = []
    for module in INSIDE:
        own = floor(module)
        allowed = INDEPENDENT.get(own, set(FLOORS[: FLOORS.index(own)])) | {own}
        for imported in imports(module):
            if imported == "minires" and own not in ABOVE_THE_PACKAGE:
                wrong.append(f"{module} imports the package itself; import the module that defines the name")
            elif imported.startswith("minires.") and floor(imported) not in allowed:
                wrong.append(f"{module} imports {imported}")
    assert not wrong, "\n".join(wrong)


def test_imports_go_in_no_circle():
    graph = {m: {i for i in imports(m) if i in FILES and i != m} for m in INSIDE}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, with the circle
    assert len(order) == len(set(order)) >= len(INSIDE)


def test_the_picture_of_the_floors_shows_every_arrow(tmp_path):
    assert {("ops", "tensor"), ("nn", "ops"), ("cli", "commands")} <= arrows().keys()
    assert all(FLOORS.index(below) < FLOORS.index(above) for above, below in arrows())
    draw(tmp_path / "floors.png")
    assert (tmp_path / "floors.png").stat().st_size > 10_000


def test_the_guide_names_every_floor_from_the_top():
    text = (Path(__file__).parents[1] / "tutorials/guide/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert set(named) == set(FLOORS) - {"__main__"} and len(named) == len(set(named))
    tops = [max(FLOORS.index(name) for name in re.findall(r"`(\w+)`", row)) for row in rows]
    assert tops == sorted(tops, reverse=True)


def test_no_file_uses_the_private_names_of_another_file():
    wrong = []
    for module, path in FILES.items():
        wrong += [f"{module}: {what}" for what in private_names(path.read_text(encoding="utf-8"))]
    assert not wrong, "\n".join(wrong)


def private_names(text):
    """The private names of other modules that a file uses."""

    def private(name):
        return name.startswith("_") and not name.startswith("__")

    nodes, modules = list(ast.walk(ast.parse(text))), {"minires": "minires"}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("minires"):
            yield from (f"import {one.name}" for one in node.names if private(one.name))
            modules |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
        elif isinstance(node, ast.Import):
            modules |= {one.asname: one.name for one in node.names if one.asname}
    for node in nodes:
        if isinstance(node, ast.Attribute) and private(node.attr):
            first, _, rest = ast.unparse(node.value).partition(".")
            if ".".join(filter(None, (modules.get(first), rest))) in FILES and first in modules:
                yield ast.unparse(node)


@pytest.mark.parametrize(
    "text",
    [
        "from minires.ops.relu import _backward",
        "from minires.ops import relu as r\nr._backward",
        "from minires import ops\nops.conv2d._im2col",
        "import minires.tensor as t\nt._state",
        "import minires.ops.conv2d\nminires.ops.conv2d._im2col",
    ],
)
def test_a_private_name_of_another_is_noticed(text):
    assert list(private_names(text)) and not list(private_names(text.replace("_", "x")))


def test_only_arrays_and_kernels_and_what_these_compile_import_cupy_and_numba():
    users = {m for m in FILES if ONLY_BACKEND & {i.split(".")[0] for i in imports(m)}}
    compiled = ("addresses", "arrays", "atomics", "kernels", "overloads", "simd", "simd_compiled")
    assert users == {f"minires.backend.{name}" for name in compiled}


def test_no_other_framework_is_imported_and_nothing_is_unpickled():
    users = {(m, i) for m in FILES for i in imports(m) if i.split(".")[0] in NEVER}
    assert users <= READERS
    for module, path in FILES.items():
        assert "allow_pickle=True" not in path.read_text(), module


def test_every_module_can_be_imported_with_the_required_packages_alone():
    """What belongs to an extra is imported in the function that needs it, or under a condition."""
    named = {"pillow": "PIL"}
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[1] / "setup.cfg")
    required = {re.split(r"[><=]", line)[0] for line in config["options"]["install_requires"].split()}
    allowed = {named.get(name, name) for name in required} | set(sys.stdlib_module_names) | {"minires"}
    wrong = [
        f"{module} imports {name}"
        for module, path in FILES.items()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([one.name for one in node.names] if isinstance(node, ast.Import) else [str(node.module)])
        if name.split(".")[0] not in allowed
    ]
    assert not wrong, "\n".join(wrong)


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
             "optim": optim, "train": train, "weights": weights}  # fmt: skip
    assert all(sys.modules[f"minires.{name}"] is room for name, room in rooms.items())
    from minires.optim import SGD

    assert SGD is optim.SGD
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


# The functions of these files that are the reference implementation. Idea is what a student reads: they, the
# public functions, and the head of the file.
REFERENCE = {
    "minires.ops.conv2d": {"_im2col", "_col2im", "_forward", "_backward_x", "_backward_w", "backward_b"},
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
    sizes = {module: code_lines(path) for module, path in FILES.items()}
    assert not {module: size for module, size in sizes.items() if size > 400}
    operations = {module: size for module, size in sizes.items() if module.startswith("minires.ops.")}
    del operations["minires.ops.cases"]  # a table
    assert not {module: size for module, size in operations.items() if size > 250}


# What would find things out by looking inside: the frames, cells and source of functions that run.
LOOKS_INSIDE = {
    "_getframe", "currentframe", "f_locals", "f_back", "__closure__", "cell_contents", "co_freevars",
    "getclosurevars", "getsource", "getsourcelines",
}  # fmt: skip
# The checker of exercises is asked to look at what a reader wrote, and looks at that alone.
ASKED_TO_LOOK = {"minires.exercises"}


def _names(tree):
    """All names and attributes that a piece of code reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            yield node.value  # getattr(function, "__closure__")


@pytest.mark.parametrize("module", sorted(set(FILES) - ASKED_TO_LOOK))
def test_nothing_is_found_out_by_looking_inside(module):
    tree = ast.parse(FILES[module].read_text())
    assert not LOOKS_INSIDE & set(_names(tree))
    for node in ast.walk(tree):  # a docstring may be shown, but nothing is read out of it
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in PATTERNS:
            texts = {name for part in (*node.args, node.func) for name in _names(part)}
            assert not texts & {"__doc__", "getdoc"}, f"line {node.lineno}"


PATTERNS = {"search", "match", "fullmatch", "findall", "finditer", "split", "sub", "compile"}


def test_such_looks_would_be_found():
    for code in ("sys._getframe(1).f_locals", "f.__closure__[0].cell_contents", "getattr(f, '__closure__')",
                 "inspect.getsource(f)"):  # fmt: skip
        assert LOOKS_INSIDE & set(_names(ast.parse(code))), code


# Folding a batch norm into the convolution before it is about these two operations, and a plan about those
# that its one compiled function has a line for: what else there is runs as it is. A graph that is compared
# with one of Keras's is about those that Keras has a layer for: to what else there is, none of its is equal.
ABOUT_SOME_OPERATIONS = {
    "minires.nn.fuse", "minires.plan.trace", "minires.plan.steps", "minires.plan.program",
    "minires.plan.training.values", "minires.plan.training.batch_norm", "minires.plan.training.program",
    "minires.weights.keras.ours",
}  # fmt: skip


def _asked_for_by_name(tree):
    """The names of operations that a piece of code compares ``something.op`` with, or looks up by it."""
    for node in ast.walk(tree):
        sides = []
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
        elif isinstance(node, ast.Subscript):
            sides = [node.value, node.slice]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            sides = [node.func.value, *node.args]
        if any(isinstance(side, ast.Attribute) and side.attr == "op" for side in sides):
            yield from (part.value for side in sides for part in ast.walk(side)
                        if isinstance(part, ast.Constant) and isinstance(part.value, str))  # fmt: skip


@pytest.mark.parametrize("module", sorted(set(FILES) - ABOUT_SOME_OPERATIONS))
def test_no_operation_is_a_special_case_by_its_name(module):
    """What sets an operation apart it declares itself: see minires/ops/registry.py."""
    assert set(_asked_for_by_name(ast.parse(FILES[module].read_text()))) <= {"leaf"}


def test_special_cases_would_be_found():
    for code in ("node.op == 'a'", "call.op in ('a', 'b')", "{'a': 1}.get(one.op)", "{'a': f}[one.op]"):
        assert set(_asked_for_by_name(ast.parse(code))), code
    assert {"batch_norm", "conv2d"} <= set(
        _asked_for_by_name(ast.parse(FILES["minires.nn.fuse"].read_text()))
    )


def test_the_trace_page_knows_no_operation_by_its_name():
    folder = FILES["minires.debug.trace_page.build"].parent / "page"
    for script in folder.glob("*.js"):
        # What an operation says of itself is looked up by its name, and nothing else.
        text = re.sub(r"trace\.described\[(operation\.)?op\]", "", script.read_text())
        assert not re.search(r"\.op\b\s*(===|!==)|\w\[[^\],]*\bop\]", text), script.name
