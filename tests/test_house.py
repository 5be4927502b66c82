"""Rules of the house that no linter checks: what is private stays in its module."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import tensair_dask

PACKAGE = Path(tensair_dask.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# Modules of more than this many lines are hard to read; these are, still.
LINES = 500
LONG = {
    "batches/batch.py",
    "checkpoints/store.py",
    "coordinator/dispatcher.py",
    "coordinator/session.py",
    "coordinator/start.py",
    "drift/modes.py",
    "exchange/exchange.py",
    "exchange/ties.py",
    "observe/figures/drift.py",
    "prequential/prequential.py",
    "pubsub/api.py",
    "pubsub/endpoint.py",
    "replica/actor.py",
    "replica/learner.py",
    "streams/node.py",
    "streams/sources/files.py",
    "trainer.py",
}

# A constructor of more parameters than this takes an object in place of some; but
# these are called by users, who type keywords, and two are the exchange's own.
PARAMETERS = 6
MANY = {
    "exchange/exchange.py: Exchange",
    "drift/optwin.py: OPTWIN",
    "prequential/prequential.py: Prequential",
    "pubsub/api.py: Sub",
    "pubsub/link.py: Link",
    "streams/predict_then_train_node.py: predict_then_train",
    "streams/sources/kafka.py: from_kafka_records",
    "trainer.py: Trainer",
}

# Of torch, streamz and named tuples, which have no other names for these.
FOREIGN = {"_buffers", "_callbacks", "_fields", "_flush", "_modules", "_parameters"}
FOREIGN |= {"_values", "_version"}

# At most so many rooms and modules, or nobody finds a room by its name.
ROOMS, FLOOR = 13, 14


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_names(tree: ast.Module) -> set[str]:
    """Names that the module itself gives to attributes, methods and functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                found.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def reaches(tree: ast.Module, package_names: set[str]) -> list[str]:
    """Private attributes of other modules of the package that a module uses."""
    own = own_names(tree)
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and private(node.attr)
        and node.attr not in own | FOREIGN
        and node.attr in package_names
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    ]


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return {name_of(path): ast.parse(path.read_text()) for path in MODULES}


def test_no_module_reaches_into_what_is_private_to_another(trees):
    names = {each for tree in trees.values() for each in own_names(tree)}
    found = {name: reaches(tree, names) for name, tree in trees.items()}
    assert {name: each for name, each in found.items() if each} == {}


def test_a_reach_is_found():
    tree = ast.parse(
        "class A:\n    def f(self, other):\n        return other._secret\n"
    )
    assert reaches(tree, {"_secret"}) == ["line 3: other._secret"]


def test_modules_that_are_too_long_are_known():
    long = {
        name_of(path) for path in MODULES if len(path.read_text().splitlines()) > LINES
    }
    assert long <= LONG


def parameters(kind: ast.ClassDef) -> int:
    """How many parameters a constructor has, beside self and ``**options``."""
    for node in kind.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return len(node.args.args) - 1 + len(node.args.kwonlyargs)
    return 0


def test_constructors_of_many_parameters_are_known(trees):
    many = {
        f"{name}: {node.name}"
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and parameters(node) > PARAMETERS
    }
    assert many <= MANY


def test_there_are_few_rooms_and_few_modules_at_the_top():
    rooms = [each for each in PACKAGE.iterdir() if (each / "__init__.py").exists()]
    modules = [path for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]
    assert len(rooms) <= ROOMS
    assert len(modules) <= FLOOR
