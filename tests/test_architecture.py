"""Import rules of docs/architecture.md, checked on the import statements of every file.

The checker is a pure function from source text to a list of findings, so that the same tests can
feed it sources that must fail.
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

# Packages of lit_jax, top to bottom. A package imports only from those below it.
ORDER = (
    "__main__",
    "commands",
    "sampling",
    "evaluation",
    "training",
    "inheritance",
    "objectives",
    "checkpoints",
    "data",
    "models",
    "diffusion",
    "keymap",
    "sharding",
    "runs",
    "storage",
    "config",
    "version",
)
FACADE = "lit_jax"  # the public names of lit_jax/__init__.py; no package imports it
PUBLIC = {"checkpoints", "models", "version"}  # packages that the facade may import

# Packages and modules that run where only jax, flax, optax and numpy are installed.
PURE_PACKAGES = {
    *("inheritance", "objectives", "models", "diffusion", "keymap", "sharding"),
    *("config", "version"),
}
PURE_TRAINING = {
    *("training.state", "training.batch", "training.step", "training.optimizer"),
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


def package_of(dotted: str) -> str:
    """Return the package of a name: lit_jax.models.dit.model -> models; the facade for the rest."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ORDER else FACADE


def is_pure(module: str) -> bool:
    """Return whether `module` (dotted, without leading lit_jax) must run on a bare image."""
    inside = ".".join(module.split(".")[:2])
    return module.split(".")[0] in PURE_PACKAGES or inside in PURE_TRAINING or not module


def order_finding(package: str, target: str) -> str | None:
    """Return why `package` may not import the lit_jax name `target`, or None."""
    goal = package_of(target)
    if package == goal:
        return None
    if package == FACADE:
        allowed = goal in PUBLIC
        return None if allowed else f"the facade imports {sorted(PUBLIC)}, not {goal}"
    if goal == FACADE:
        return f"{target!r} is no package; only programs outside the package use the facade"
    if ORDER.index(goal) < ORDER.index(package):
        return f"{package} imports {target!r}; it may import only from packages below it"
    return None


def findings(path: str, source: str) -> list[str]:
    """All breaches in one file. `path` is relative to the repository root, with forward slashes."""
    found = []
    parts = list(Path(path).with_suffix("").parts)
    in_package = parts[0] == FACADE
    package = ".".join(parts[:-1])
    module = ".".join(parts[1:-1] if parts[-1] == "__init__" else parts[1:])
    own = module.split(".")[0] or FACADE

    if Path(path).name == "utils.py":
        found.append(f"{path}: a helper without a home; name its topic")
    if in_package and own not in {*ORDER, FACADE}:
        return [*found, f"{path}: package {own!r} is not in ORDER"]
    if path == "lit_jax/__main__.py" and (length := len(source.splitlines())) > 100:
        found.append(f"{path}: {length} lines; at most 100 are allowed")

    for line, name in imported_names(source, package):
        where, library = f"{path}:{line}", name.split(".")[0]
        homes = HOMES.get(library)
        if homes and not path.startswith((*homes, "tests/", "benchmarks/")):
            found.append(f"{where}: {library} is imported only in {', '.join(homes)}")
        if in_package and library in ("demo", "tools", "configs", "benchmarks", "tests"):
            found.append(f"{where}: the package imports {library}/, which stands above it")
        if in_package and library == FACADE and (why := order_finding(own, name)):
            found.append(f"{where}: {why}")
        outside = library not in {FACADE, *PURE_LIBRARIES, *sys.stdlib_module_names}
        if in_package and is_pure(module) and outside:
            found.append(f"{where}: {module} must run with {sorted(PURE_LIBRARIES)}, not {library}")
        if parts[0] == "demo" and library == FACADE and any(p[:1] == "_" for p in name.split(".")):
            found.append(f"{where}: the demo uses public names only, not {name}")
    return found


def source_files() -> list[Path]:
    return sorted(path for top in SCANNED for path in (ROOT / top).rglob("*.py"))


def test_every_file_keeps_the_rules() -> None:
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
        ("lit_jax/diffusion/gaussian.py", "from lit_jax.models import dit", "below it"),
        ("lit_jax/diffusion/gaussian.py", "import lit_jax.training.step", "below it"),
        ("lit_jax/diffusion/gaussian.py", "from ..commands import train", "below it"),
        ("lit_jax/diffusion/gaussian.py", "from .. import commands", "below it"),
        ("lit_jax/sharding.py", "from lit_jax.models.registry import FAMILIES", "below it"),
        ("lit_jax/keymap/rows.py", "from ..models.registry import FAMILIES", "below it"),
        ("lit_jax/config/typed.py", "def late():\n    from lit_jax.models import dit", "below it"),
        ("lit_jax/config/typed.py", "import_module('lit_jax.models.functional')", "below it"),
        ("lit_jax/config/typed.py", "from lit_jax import create_model", "facade"),
        ("lit_jax/__init__.py", "from lit_jax.training import step", "facade"),
        ("lit_jax/objectives.py", "import scipy", "must run with"),
        ("lit_jax/config/typed.py", "import ml_collections", "must run with"),
        ("lit_jax/training/step.py", "from grain import python", "must run with"),
        ("lit_jax/training/loop.py", "import torch", "torch is imported only"),
        ("configs/lit.py", "import torch.nn as nn", "torch is imported only"),
        ("demo/digits/__main__.py", "from torch import load", "torch is imported only"),
        ("lit_jax/data/stream.py", "import tensorflow as tf", "tensorflow is imported only"),
        ("lit_jax/commands/train/job.py", "from clu import metric_writers", "clu is imported only"),
        ("lit_jax/commands/train/job.py", "from demo import digits", "stands above"),
        ("demo/digits/__main__.py", "from lit_jax.models.functional import _rows", "public names"),
        ("lit_jax/helpers/strings.py", "", "not in ORDER"),
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
        (
            "lit_jax/models/dit/model.py",
            "from lit_jax.models.layers import Dense\nimport jax, math",
        ),
        ("lit_jax/models/attention/linear.py", "from ..layers import Dense"),
        ("lit_jax/training/metrics.py", "import tensorflow\nfrom clu import metric_writers"),
        ("lit_jax/training/step.py", "from lit_jax import diffusion, objectives"),
        ("lit_jax/data/pipeline.py", "import grain.python as pygrain"),
        ("lit_jax/__main__.py", "from lit_jax.commands import train\n" * 100),
        ("tools/convert_torch_ckpt.py", "import torch\nfrom lit_jax.checkpoints import stored"),
        ("demo/digits/__main__.py", "from lit_jax.evaluation import scores"),
    ],
)
def test_checker_accepts(path: str, source: str) -> None:
    assert findings(path, source) == []


def test_every_package_is_documented() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    assert [package for package in ORDER if package not in page] == []


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


def test_pure_packages_run_on_a_bare_image() -> None:
    """Every pure module imports where only jax, flax, optax and numpy are installed.

    The interpreter is made to miss the other direct requirements, so that a detour through another
    package is noticed too.
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
