"""The plan of the house, enforced: who may import what, read from the import statements.

The checker is a pure function from source text to a list of findings, so that the same tests can
feed it sources that must fail. docs/architecture.md explains the rules in prose.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lit_jax"

# Every room of lit_jax and its floor. A new room gets a row here and in docs/architecture.md.
FLOORS = {
    "config": 0,
    "files": 0,
    "version": 0,
    "models": 1,
    "diffusion": 1,
    "sharding": 1,
    "weights": 2,
    "data": 2,
    "objectives": 3,
    "inheritance": 3,
    "training": 4,
    "evaluation": 4,
    "jobs": 5,
    "__main__": 6,
}
FACADE = "lit_jax"  # the few public names of lit_jax/__init__.py; no room may lean on it
PUBLIC_ROOMS = {"config", "models", "version", "weights"}  # what the facade may gather names from

PURE_FLOORS = {0, 1, 3}
PURE_TRAINING = {
    *("training.state", "training.examples", "training.step", "training.optimizer"),
    "training.came",
}
PURE_LIBRARIES = {"jax", "flax", "optax", "numpy"}

# Library -> the one place (a path below the repository root, or its beginning) that may import it.
HOMES = {
    "torch": ("tools/", "tests/", "benchmarks/"),
    "tensorflow": ("lit_jax/training/metrics.py",),
    "clu": ("lit_jax/training/metrics.py",),
}
HEAVY = ["tensorflow", "clu", "grain", "tensorflow_datasets", "torch", "ml_collections"]
SCANNED = ("lit_jax", "configs", "demo", "tools", "benchmarks", "tests")


def imported_names(source: str, package: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything `source` imports, wherever the statement stands.

    `package` is the dotted package of the file, to resolve relative imports. `from a import b`
    yields `a.b`, because `b` may be a module. Calls such as import_module("a.b") count as well.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(parents if node.level else []), *filter(None, [node.module])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            target = getattr(node.args[0], "value", None)
            if name in ("import_module", "__import__") and isinstance(target, str):
                yield node.lineno, target


def room_of(dotted: str) -> str:
    """Return the package of a name: lit_jax.models.dit.model -> models; the facade for the rest."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS else FACADE


def is_pure(module: str) -> bool:
    """Whether `module` (dotted, without leading lit_jax) must run on a bare accelerator image."""
    room = module.split(".")[0]
    inside = ".".join(module.split(".")[:2])
    return FLOORS.get(room) in PURE_FLOORS or inside in PURE_TRAINING


def floor_finding(room: str, target: str) -> str | None:
    """Why `room` may not import the lit_jax name `target`, or None."""
    goal = room_of(target)
    if room == goal:
        return None
    if room == FACADE:
        allowed = goal in PUBLIC_ROOMS
        return None if allowed else f"the facade gathers from {sorted(PUBLIC_ROOMS)}, not {goal}"
    if goal == FACADE:
        return f"{target!r} is no room; only programs outside the package use the facade"
    if FLOORS[goal] >= FLOORS[room]:
        return (
            f"{room} (floor {FLOORS[room]}) imports {target!r} of {goal} (floor {FLOORS[goal]});"
            " a room imports only from lower floors"
        )
    return None


def findings(path: str, source: str) -> list[str]:
    """All breaches in one file. `path` is relative to the repository root, with forward slashes."""
    found = []
    parts = list(Path(path).with_suffix("").parts)
    in_package = parts[0] == FACADE
    package = ".".join(parts[:-1])
    module = ".".join(parts[1:-1] if parts[-1] == "__init__" else parts[1:])
    room = module.split(".")[0] or FACADE

    if Path(path).name == "utils.py":
        found.append(f"{path}: a helper without a home; give it a room")
    if in_package and room not in {*FLOORS, FACADE}:
        return [*found, f"{path}: room {room!r} has no floor (known: {', '.join(FLOORS)})"]
    if path == "lit_jax/__main__.py" and (length := len(source.splitlines())) > 100:
        found.append(f"{path}: {length} lines; the door has at most 100")

    for line, name in imported_names(source, package):
        where, library = f"{path}:{line}", name.split(".")[0]
        homes = HOMES.get(library)
        if homes and not path.startswith((*homes, "tests/", "benchmarks/")):
            found.append(f"{where}: {library} is imported only in {', '.join(homes)}")
        if in_package and library in ("demo", "tools", "configs", "benchmarks", "tests"):
            found.append(f"{where}: the package imports {library}/, which stands on top of it")
        if in_package and library == FACADE and (why := floor_finding(room, name)):
            found.append(f"{where}: {why}")
        outside = library not in {FACADE, *PURE_LIBRARIES, *sys.stdlib_module_names}
        if in_package and is_pure(module) and outside:
            found.append(f"{where}: {module} must run with {sorted(PURE_LIBRARIES)}, not {library}")
        if parts[0] == "demo" and library == FACADE and any(p[:1] == "_" for p in name.split(".")):
            found.append(f"{where}: the demo uses public doors only, not {name}")
    return found


def source_files() -> list[Path]:
    return sorted(path for top in SCANNED for path in (ROOT / top).rglob("*.py"))


def test_every_file_keeps_the_plan() -> None:
    files = source_files()
    assert any(path.is_relative_to(PACKAGE) for path in files), f"no sources below {PACKAGE}"
    breaches = [
        finding
        for path in files
        for finding in findings(path.relative_to(ROOT).as_posix(), path.read_text("utf-8"))
    ]
    assert not breaches, "\n" + "\n".join(breaches)


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("lit_jax/diffusion/gaussian.py", "from lit_jax.models import dit", "lower floors"),
        ("lit_jax/diffusion/gaussian.py", "import lit_jax.training.step", "lower floors"),
        ("lit_jax/diffusion/gaussian.py", "from ..jobs import train", "lower floors"),
        ("lit_jax/diffusion/gaussian.py", "from .. import jobs", "lower floors"),
        ("lit_jax/models/attention/linear.py", "from ... import sharding", "lower floors"),
        ("lit_jax/models/__init__.py", "from ..diffusion import guidance", "lower floors"),
        ("lit_jax/config.py", "def late():\n    from lit_jax.models import zoo", "lower floors"),
        ("lit_jax/config.py", "import_module('lit_jax.models.functional')", "lower floors"),
        ("lit_jax/config.py", "from lit_jax import create_model", "facade"),
        ("lit_jax/__init__.py", "from lit_jax.training import step", "facade"),
        ("lit_jax/objectives.py", "import scipy", "must run with"),
        ("lit_jax/config.py", "import ml_collections", "must run with"),
        ("lit_jax/training/step.py", "from grain import python", "must run with"),
        ("lit_jax/training/loop.py", "import torch", "torch is imported only"),
        ("configs/lit.py", "import torch.nn as nn", "torch is imported only"),
        ("demo/digits_demo.py", "from torch import load", "torch is imported only"),
        ("lit_jax/data/digits.py", "import tensorflow as tf", "tensorflow is imported only"),
        ("lit_jax/jobs/train.py", "from clu import metric_writers", "clu is imported only"),
        ("lit_jax/jobs/train.py", "from demo import digits_demo", "stands on top"),
        ("demo/digits_demo.py", "from lit_jax.models.functional import _rows", "public doors"),
        ("lit_jax/helpers/strings.py", "", "has no floor"),
        ("lit_jax/data/utils.py", "", "without a home"),
        ("lit_jax/__main__.py", "pass\n" * 101, "at most 100"),
    ],
)
def test_checker_finds(path: str, source: str, expected: str) -> None:
    assert any(expected in finding for finding in findings(path, source)), findings(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("lit_jax/__init__.py", "from lit_jax.models.functional import create_model"),
        ("lit_jax/models/dit.py", "from lit_jax.models.layers import Dense\nimport jax, math"),
        ("lit_jax/models/attention/linear.py", "from ..layers import Dense"),
        ("lit_jax/training/metrics.py", "import tensorflow\nfrom clu import metric_writers"),
        ("lit_jax/training/step.py", "from lit_jax import diffusion, objectives"),
        ("lit_jax/data/pipeline.py", "import grain.python as pygrain"),
        ("lit_jax/__main__.py", "from lit_jax.jobs import train\n" * 100),
        ("tools/convert_torch_ckpt.py", "import torch\nfrom lit_jax.weights import folder"),
        ("demo/digits_demo.py", "from lit_jax.evaluation import scores"),
    ],
)
def test_checker_accepts(path: str, source: str) -> None:
    assert findings(path, source) == []


def test_every_room_is_in_the_plan() -> None:
    plan = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    assert [room for room in FLOORS if f"`{room}" not in plan] == []


def run_python(code: str) -> str:
    """Output of a new interpreter that runs `code` at the repository root."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_lit_jax_stays_light() -> None:
    code = f"import sys, lit_jax; print([m for m in {HEAVY} if m in sys.modules])"
    assert run_python(code).split("\n")[-2] == "[]"


def test_pure_floors_run_on_a_bare_image() -> None:
    """Everything of the pure floors imports where only jax, flax, optax and numpy are installed.

    The interpreter is made to miss the other direct requirements, so that a detour through another
    room is noticed too.
    """
    dotted = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in PACKAGE.rglob("*.py")]
    modules = sorted(name.removesuffix(".__init__") for name in dotted)
    pure = [name for name in modules if is_pure(name.removeprefix("lit_jax").lstrip("."))]
    missing = [*HEAVY, "array_record", "orbax", "safetensors", "sklearn", "matplotlib", "PIL"]
    code = f"import sys, importlib; sys.modules.update(dict.fromkeys({missing}))\n"
    code += f"for name in {pure}: importlib.import_module(name)\n"
    code += "print('imported', len([m for m in sys.modules if m.startswith('lit_jax')]))"
    assert "lit_jax.config" in pure
    assert "imported" in run_python(code)
