"""Rules of docs/architecture.md on sizes, names, docstrings and the isolation of families.

As in test_architecture.py each rule is a function from source text to findings, so that every rule
is also tested on a source that breaks it.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lit_jax"

MAX_FILES, MAX_LINES, MAX_FUNCTION = 12, 320, 80

QUESTION_WORDS = {"What", "Whether", "Which", "Where", "How", "Who", "Why"}
NOT_IMPERATIVE = QUESTION_WORDS | {
    *("The", "A", "An", "All", "Any", "Each", "Every", "Both", "One", "Some", "This", "These"),
    *("It", "Its", "No", "None", "As", "In", "If", "True", "False", "ValueError", "Whenever"),
    *("From", "For", "Of", "On", "At", "By", "With", "Same", "Up"),
}
# Verbs that end in s in the imperative; other words in s are third person ("Writes") or plural.
ENDS_IN_S = {"Pass", "Process", "Express", "Compress", "Address", "Guess", "Press", "Focus", "Bias"}

# A parameter path as a string: families own them.
PATH = re.compile(r"\b(blocks|[xyt]_embedder|final_layer|t_block|kv_compress)/\w")

# Configurations of networks: code outside models/ asks `family_of(config)` instead.
CONFIGS = re.compile(
    r"(DiT|DiG|PixArt|Autoencoder|T5|Inception|Mixer|Labelled|Denoiser)\w*Config\b"
)

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[FunctionNode]:
    yield from (n for n in ast.walk(tree) if isinstance(n, FunctionNode))


def is_property(node: FunctionNode) -> bool:
    names = [getattr(d, "id", getattr(d, "attr", "")) for d in node.decorator_list]
    return bool({"property", "cached_property"} & set(names))


def docstring_findings(source: str) -> list[str]:
    """Return the docstrings that open with the wrong kind of word."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.Module, ast.ClassDef, *FunctionNode.__args__)):
            continue
        text = ast.get_docstring(node)
        word = re.match(r"\w+", text) if text else None
        if word is None:
            continue
        first, where = word[0], getattr(node, "name", "module")
        if first in QUESTION_WORDS:
            found.append(f"{where}: the docstring opens with {first!r}")
        elif isinstance(node, FunctionNode) and not is_property(node):
            third = first.endswith("s") and first not in ENDS_IN_S
            if first in NOT_IMPERATIVE or third or not first[0].isupper():
                found.append(f"{where}: {first!r} is no imperative verb")
    return found


def size_findings(source: str) -> list[str]:
    """Return files and functions that are too long."""
    found = []
    if (lines := len(source.splitlines())) > MAX_LINES:
        found.append(f"{lines} lines, at most {MAX_LINES} are allowed")
    for node in functions(ast.parse(source)):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > MAX_FUNCTION:
            found.append(f"{node.name}: {length} lines, at most {MAX_FUNCTION} are allowed")
    return found


def family_findings(source: str) -> list[str]:
    """Return what code outside models/ must ask of the family instead."""
    found = []
    tree = ast.parse(source)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, *FunctionNode.__args__))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
            kind = ast.unparse(node.args[1])
            if re.search(
                r"(DiT|DiG|PixArt|Autoencoder|T5|Inception|Mixer|Labelled|Denoiser)\w*Config\b",
                kind,
            ):
                found.append(f"line {node.lineno}: isinstance(..., {kind})")
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docstrings
            and PATH.search(node.value)
        ):
            found.append(f"line {node.lineno}: parameter path {node.value!r}")
    return found


def command_findings(path: str, source: str) -> list[str]:
    """Return imports of one command by another; `path` is relative to lit_jax/commands."""
    own = Path(path).parts[0].removesuffix(".py")
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lit_jax.commands"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            others = {name.split(".")[2] for name in names} - {own, "flags", "help"}
            found += [f"line {node.lineno}: {own} imports the command {name}" for name in others]
    return found


def package_sources() -> dict[str, str]:
    return {
        path.relative_to(PACKAGE).as_posix(): path.read_text("utf-8")
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def breaches(found: dict[str, list[str]]) -> str:
    return "\n".join(f"{path}: {finding}" for path, rows in found.items() for finding in rows)


def test_docstrings_open_with_a_verb_or_a_noun() -> None:
    found = {path: docstring_findings(source) for path, source in package_sources().items()}
    assert not breaches(found), "\n" + breaches(found)


def test_files_and_functions_are_short() -> None:
    found = {path: size_findings(source) for path, source in package_sources().items()}
    assert not breaches(found), "\n" + breaches(found)


def test_test_files_are_short() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text("utf-8").splitlines())
        for path in (ROOT / "tests").rglob("*.py")
    }
    assert {path: lines for path, lines in lengths.items() if lines > MAX_LINES} == {}


def folder_findings(names: list[str]) -> list[str]:
    """Return what is wrong with the file names of one folder."""
    names = [name for name in names if name not in ("__init__.py", "__main__.py")]
    found = (
        [f"{len(names)} files, at most {MAX_FILES} are allowed"] if len(names) > MAX_FILES else []
    )
    prefixes = Counter(name.split("_")[0] for name in names if "_" in name)
    return found + [
        f"{n} files start with {p}_; make a folder" for p, n in prefixes.items() if n > 2
    ]


def test_folders_are_small() -> None:
    folders = [path for path in (PACKAGE, *PACKAGE.rglob("*")) if path.is_dir()]
    found = {
        folder.relative_to(ROOT).as_posix(): folder_findings([p.name for p in folder.glob("*.py")])
        for folder in folders
    }
    assert not breaches(found), "\n" + breaches(found)


def test_families_are_isolated() -> None:
    found = {
        path: family_findings(source)
        for path, source in package_sources().items()
        if not path.startswith("models/")
    }
    assert not breaches(found), "\n" + breaches(found)


def test_commands_import_no_command() -> None:
    found = {
        path: command_findings(path.removeprefix("commands/"), source)
        for path, source in package_sources().items()
        if path.startswith("commands/") and path != "commands/entry.py"
    }
    assert not breaches(found), "\n" + breaches(found)


@pytest.mark.parametrize(
    "source",
    [
        'def f():\n    """What this is."""',
        'class A:\n    """Whether it is."""',
        'def f():\n    """Writes a file."""',
        'def f():\n    """The file."""',
        'def f():\n    """the file."""',
        '"""How it works."""',
    ],
)
def test_a_wrong_docstring_is_found(source: str) -> None:
    assert docstring_findings(source)


def test_a_right_docstring_is_accepted() -> None:
    source = '"""Names."""\nclass A:\n    """Table of names."""\n'
    source += '    def f(self):\n        """Write it."""'
    assert docstring_findings(source) == []
    assert docstring_findings('@property\ndef f():\n    """Width of a head."""') == []


def test_other_breaches_are_found() -> None:
    assert size_findings("x = 1\n" * (MAX_LINES + 1))
    assert size_findings("def f():\n" + "    x = 1\n" * MAX_FUNCTION)
    assert family_findings("isinstance(config, PixArtConfig)")
    assert family_findings("isinstance(config, (DiTConfig, DiGConfig))")
    assert family_findings("path = 'blocks/attn/q/kernel'")
    assert family_findings("path = r'(^|/)y_embedder/embedding'")
    assert not family_findings(
        'def f():\n    """Return blocks/attn/q."""\n    return isinstance(x, dict)'
    )
    assert command_findings("sample/job.py", "from lit_jax.commands.train import job")
    assert command_findings("cost.py", "from lit_jax.commands import train")
    assert not command_findings("sample/job.py", "from lit_jax.commands.sample import checks")
    assert folder_findings([f"{letter}.py" for letter in "abcdefghijklm"])
    assert folder_findings(["train_a.py", "train_b.py", "train_c.py"])
