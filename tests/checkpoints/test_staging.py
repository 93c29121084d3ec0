"""Folders take their place in one step: nothing is lost, nothing half written is seen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import lit_jax
from lit_jax.checkpoints.writing import check_destination, save_model_dir
from lit_jax.models.functional import Params
from lit_jax.models.registry import model_config
from lit_jax.storage import staging
from lit_jax.storage.staging import leftovers, replace_folder, staged_folder
from support.models import load_model_dir

CONFIG = model_config("T5", d_model=4, d_ff=4, d_kv=2, num_heads=2, num_layers=1, vocab_size=5)


def params(value: float) -> Params:
    import jax

    from lit_jax.models.functional import abstract_params

    return jax.tree.map(
        lambda leaf: np.full(leaf.shape, value, np.float32), abstract_params(CONFIG)
    )


def value_of(path: Path) -> float:
    values = {float(leaf.mean()) for leaf in _leaves(load_model_dir(path)[1])}
    assert len(values) == 1
    return values.pop()


def _leaves(tree: Params) -> list[np.ndarray]:
    import jax

    return jax.tree.leaves(tree)


@pytest.fixture(params=["one step", "two steps"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without the system call that exchanges two names."""
    if request.param == "two steps":
        monkeypatch.setattr(staging, "_renameat2", lambda *_: False)
    return str(request.param)


def filled(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text)
    return path


def test_new_and_replaced(tmp_path: Path, way: str) -> None:
    target = tmp_path / "m"
    for text, overwrite in (("one", False), ("two", True)):
        with staged_folder(target, overwrite) as staged:
            (staged / "file").write_text(text)
            assert overwrite == target.exists()
        assert (target / "file").read_text() == text
        assert os.listdir(tmp_path) == ["m"]


def test_a_folder_that_appears_meanwhile_is_kept(tmp_path: Path, way: str) -> None:
    target = tmp_path / "m"
    with (
        pytest.raises(ValueError, match="m appeared while it was being written; pass --overwrite"),
        staged_folder(target, overwrite=False) as staged,
    ):
        (staged / "file").write_text("new")
        filled(target, "thesis")
    assert (target / "file").read_text() == "thesis" and os.listdir(tmp_path) == ["m"]


def test_what_stood_there_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of the two renames fails."""
    monkeypatch.setattr(staging, "_renameat2", lambda *_: False)
    target, staged = filled(tmp_path / "m", "old"), filled(tmp_path / ".m.x.tmp", "new")
    rename = os.rename

    def failing(source: Path, destination: Path) -> None:
        if Path(source) == staged:
            raise OSError("disk gone")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="disk gone"):
        replace_folder(staged, target, overwrite=True)
    assert (target / "file").read_text() == "old" and (staged / "file").read_text() == "new"


def test_leftovers_of_the_dead_only(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "m", overwrite=False) as staged:
        assert leftovers(tmp_path / "m") == []  # this process is alive
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        left = tmp_path / staged.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-")
        left.mkdir()
        (tmp_path / left.name.replace(".m.", ".m.v2.")).mkdir()
        (tmp_path / ".m.notes.tmp").mkdir()
        assert leftovers(tmp_path / "m") == [left]
    assert leftovers(tmp_path / "nowhere" / "m") == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: (m / "samples").mkdir(), "it holds samples"),
        (lambda m: (m / "source.pt").write_text("x"), "it holds source.pt"),
        (lambda m: (m / "config.json").write_text("{}"), 'has no "model" group'),
        (lambda m: (m / "config.json").unlink(), "it has no config.json"),
        (lambda m: (m / "params" / "_METADATA").unlink(), "params/ holds no arrays"),
    ],
)
def test_only_what_was_written_here_is_replaced(tmp_path: Path, make: object, message: str) -> None:
    target = tmp_path / "m"
    save_model_dir(target, CONFIG, params(1.0), {})
    check_destination(target, overwrite=True)
    make(target)  # type: ignore[operator]
    before = sorted(os.listdir(target))
    with pytest.raises(ValueError, match="exists and is not a model folder") as error:
        save_model_dir(target, CONFIG, params(2.0), {}, overwrite=True)
    assert message in str(error.value) and sorted(os.listdir(target)) == before


def test_odd_destinations(tmp_path: Path) -> None:
    save_model_dir(tmp_path / "m", CONFIG, params(1.0), {})
    (tmp_path / "link").symlink_to(tmp_path / "m")
    with pytest.raises(ValueError, match="link is a symbolic link; name the folder itself: .*/m$"):
        check_destination(tmp_path / "link", overwrite=True)
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    with pytest.raises(ValueError, match="broken is a symbolic link"):
        check_destination(tmp_path / "broken", overwrite=False)
    with pytest.raises(ValueError, match=r"holds a '\[', which orbax takes for a pattern"):
        save_model_dir(tmp_path / "ema[0.9999]" / "m", CONFIG, params(1.0), {})
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="it is a file"):
        check_destination(tmp_path / "file", overwrite=True)
    for name in ("a b", "x*y?", "{z}#"):
        save_model_dir(tmp_path / name, CONFIG, params(3.0), {})
        assert value_of(tmp_path / name) == 3.0


REWRITES = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from test_staging import CONFIG, params
from lit_jax.checkpoints.writing import save_model_dir
print("ready", flush=True)
for n in range(2, 1000):
    save_model_dir({target!r}, CONFIG, params(float(n)), {{}}, overwrite=True)
    print(n, flush=True)
"""


def test_kills_while_overwriting(tmp_path: Path) -> None:
    """Whenever the writer dies, a whole model is there: the old one or the new one."""
    target = tmp_path / "m"
    save_model_dir(target, CONFIG, params(1.0), {})
    here = [str(Path(__file__).parent), str(Path(lit_jax.__file__).parents[1])]
    code = REWRITES.format(path=here, target=str(target))
    rng = np.random.default_rng()
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(2):  # "ready", and one whole rewrite
            process.stdout.readline()
        time.sleep(rng.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert value_of(target) >= 1.0
    for left in leftovers(target):
        assert left.name.startswith(".m.")
