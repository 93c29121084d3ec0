"""Pins, package metadata, make targets and scripts agree with each other."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lit_jax

ROOT = Path(__file__).resolve().parents[1]


def pins(file_name: str, section: str | None = None) -> dict[str, str]:
    """Name -> version of a requirements file; `section` selects the lines below that comment."""
    found: dict[str, str] = {}
    current = None
    for line in (ROOT / file_name).read_text("utf-8").splitlines():
        if line.startswith("# "):
            current = line[2:].split(" ")[0]
        elif line and not line.startswith("-r ") and section in (None, current):
            match = re.fullmatch(r"([A-Za-z0-9_.-]+)==([0-9][A-Za-z0-9.]*)", line)
            assert match, f"{file_name}: {line!r} is not of the form name==version"
            name = canonicalize_name(match[1])
            assert name not in found, f"{file_name}: {name} is pinned twice"
            found[name] = match[2]
    return found


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def mismatches(requirements: list[str], pinned: dict[str, str]) -> list[str]:
    """Requirements that no pin satisfies."""
    parsed = [Requirement(text) for text in requirements]
    return [
        str(need)
        for need in parsed
        if not need.specifier.contains(pinned.get(canonicalize_name(need.name), "0"))
    ]


def test_direct_pins_are_the_dependencies(project: dict) -> None:
    direct = pins("requirements.txt", "direct")
    names = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    assert set(direct) == names
    assert mismatches(project["dependencies"], direct) == []
    assert mismatches(["jax>=99"], direct) == ["jax>=99"]


def imported_packages(source: str) -> set[str]:
    """First names of everything that `source` imports, wherever the statement stands."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_every_import_of_the_package_is_a_dependency(project: dict) -> None:
    declared = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    providers = importlib.metadata.packages_distributions()
    for file in (ROOT / "lit_jax").rglob("*.py"):
        used = imported_packages(file.read_text("utf-8")) - sys.stdlib_module_names - {"lit_jax"}
        for name in used:
            distributions = {canonicalize_name(d) for d in providers[name]}
            assert distributions & declared, f"{file.name} imports {name}, which is not declared"


def test_extras_agree_with_the_pins(project: dict) -> None:
    extras = project["optional-dependencies"]
    assert {"convert", "test", "gpu", "tpu"} <= set(extras)
    runtime, testing = pins("requirements.txt"), pins("requirements-test.txt")
    assert mismatches(extras["test"], testing) == []
    assert mismatches(extras["convert"], runtime | testing) == []
    assert mismatches(extras["gpu"] + extras["tpu"], runtime) == []


def test_runtime_has_no_torch_and_tests_pin_it() -> None:
    runtime, testing = pins("requirements.txt"), pins("requirements-test.txt")
    assert [name for name in runtime if name.startswith(("torch", "nvidia"))] == []
    assert "torch" in testing
    assert set(runtime) & set(testing) == set()


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-test.txt", "Makefile"])
def test_no_package_index_is_named(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    assert re.findall(r"https?://|--(?:extra-)?index-url|--find-links|\s-[if]\s+\w+:", text) == []


def test_python_floor_is_the_same_everywhere(project: dict) -> None:
    assert project["requires-python"] == ">=3.11"
    assert "(3, 11)" in (ROOT / "Makefile").read_text("utf-8")


def test_license_is_apache(project: dict) -> None:
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", ["help", "demo", "test", "lint", "format", "bench", "clean"])
def test_make_knows(target: str) -> None:
    """The rule exists and expands (dry run); `nonsense` shows that make would tell us."""
    run = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    bad = subprocess.run(["make", "-n", "nonsense"], cwd=ROOT, capture_output=True, text=True)
    assert bad.returncode != 0


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_refuses_an_old_python(tmp_path: Path) -> None:
    """No usable interpreter stops with the remedy before anything is installed."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.txt", "requirements-test.txt"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "python2.7"
    old.write_text("#!/bin/sh\necho 'PYTHON is Python 2.7; needs 3.11 or newer' >&2\nexit 1\n")
    old.chmod(0o755)
    for override, remedy in ((f"PYTHON={old}", "needs 3.11"), ("PYTHON=", "install one")):
        run = subprocess.run(
            ["make", "install", override], cwd=tmp_path, capture_output=True, text=True
        )
        assert run.returncode != 0
        assert remedy in run.stderr
        assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("script", [".ci/run", "launch/slurm.sh", "launch/tpu_pod.sh"])
def test_scripts_parse_and_run(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK), f"{script} is not executable"
    checked = subprocess.run(["bash", "-n", ROOT / script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_version_is_the_same_everywhere(project: dict) -> None:
    assert project["version"] == lit_jax.__version__
