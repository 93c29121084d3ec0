"""The persistent compilation cache: its folder, switching it off, and programs of a second run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_jax.commands.entry import COMMANDS
from lit_jax.runs import compilation
from lit_jax.runs.compilation import FOLDER, MIN_SECONDS, OURS, default_folder, enable_cache
from support import tiny_runs

# One program that is worth keeping, the digits of its result and the number of compilations that
# the cache has saved.
PROGRAM = """
import sys
from lit_jax.runs.compilation import enable_cache
assert "jax" not in sys.modules
print("folder", enable_cache(sys.argv[1]))
assert "jax" not in sys.modules
import jax, jax.numpy as jnp
hits = []
jax.monitoring.register_event_listener(
    lambda name, **_: hits.append(name) if name == "/jax/compilation_cache/cache_hits" else None
)
x = jnp.linspace(0.0, 1.0, 64)
print("result", float(jax.jit(lambda x: jnp.sum(jnp.fft.fft(jnp.sin(x)).real ** 2))(x)).hex())
print("hits", len(hits))
"""


def run(home: Path, choice: str = "", **extra: str) -> dict[str, str]:
    """Run PROGRAM in a process with this home; return what it printed, by name."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "LIT_JAX_", "XDG_"))}
    environment = kept | {"HOME": str(home), "JAX_PLATFORMS": "cpu", MIN_SECONDS: "0"} | extra
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, choice],
        cwd=tiny_runs.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return dict(line.partition(" ")[::2] for line in done.stdout.splitlines())


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_second_run_takes_programs_from_the_cache(tmp_path: Path) -> None:
    first = run(tmp_path)
    folder = Path(first["folder"])
    assert folder.parent == tmp_path / ".cache" / "lit_jax" / "xla"
    assert files(folder) and first["hits"] == "0"
    second = run(tmp_path)
    assert int(second["hits"]) > 0
    assert second["result"] == first["result"]


@pytest.mark.parametrize("by_variable", [False, True], ids=["flag", "variable"])
def test_off(tmp_path: Path, by_variable: bool) -> None:
    choice = {"choice": ""} if by_variable else {"choice": "off"}
    extra = {OURS: "off"} if by_variable else {}
    for _ in range(2):
        assert run(tmp_path, **choice, **extra)["hits"] == "0"
    assert not files(tmp_path)


def test_off_also_without_the_folder_of_jax(tmp_path: Path) -> None:
    """The flag decides, whatever the environment names."""
    folder = tmp_path / "jax"
    for _ in range(2):
        assert run(tmp_path, "off", **{FOLDER: str(folder)})["hits"] == "0"
    assert not files(tmp_path)


@pytest.mark.parametrize("by_variable", [False, True], ids=["flag", "variable"])
def test_another_folder(tmp_path: Path, by_variable: bool) -> None:
    folder, home = tmp_path / "a" / "b", tmp_path / "home"
    home.mkdir()
    choice, extra = ("", {OURS: str(folder)}) if by_variable else (str(folder), {})
    assert run(home, choice, **extra)["folder"] == str(folder)
    assert files(folder) and not files(home)
    assert int(run(home, choice, **extra)["hits"]) > 0


def test_unwritable_home_is_no_error(tmp_path: Path) -> None:
    """A file in place of the folder refuses to be one for root as well."""
    (tmp_path / ".cache").write_text("")
    ran = run(tmp_path)
    assert (ran["folder"], ran["hits"]) == ("", "0")
    assert files(tmp_path) == [tmp_path / ".cache"]


def test_no_home_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(compilation.Path, "home", homeless)
    environment: dict[str, str] = {}
    assert enable_cache("", environment) == ""
    assert environment == {}


def test_order_of_precedence(tmp_path: Path) -> None:
    flag, ours, theirs, base = (str(tmp_path / name) for name in ("flag", "ours", "theirs", "base"))
    environment = {FOLDER: theirs, OURS: ours, "XDG_CACHE_HOME": base}
    given = dict(environment)
    assert enable_cache(flag, given) == given[FOLDER] == flag
    given = dict(environment)
    assert enable_cache("", given) == given[FOLDER] == ours
    del environment[OURS]
    given = dict(environment)
    assert enable_cache("", given) == given[FOLDER] == theirs
    assert given == environment and not Path(theirs).exists()  # as jax has it, nothing is set
    del environment[FOLDER]
    given = dict(environment)
    assert enable_cache("", given) == given[FOLDER] == str(default_folder(environment))
    assert given[FOLDER].startswith(base)


def test_threshold_of_the_user_stays(tmp_path: Path) -> None:
    environment = {MIN_SECONDS: "7"}
    enable_cache(str(tmp_path), environment)
    assert environment[MIN_SECONDS] == "7"


def test_another_processor_has_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Homes are shared by hosts whose compiled programs must not mix."""
    monkeypatch.setattr(compilation, "_processor", lambda: "one")
    one = default_folder({"XDG_CACHE_HOME": "/c"})
    monkeypatch.setattr(compilation, "_processor", lambda: "two")
    assert default_folder({"XDG_CACHE_HOME": "/c"}) != one


def test_every_command_has_the_flag() -> None:
    for command in COMMANDS.values():
        assert "compilation_cache" in [one.flag for one in command.settings]
