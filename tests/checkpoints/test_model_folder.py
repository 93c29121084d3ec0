"""Model folders: atomic writes, strict reads, moving averages of workdirs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import lit_jax
from lit_jax.checkpoints.identity import params_sha256
from lit_jax.checkpoints.model_folder import ModelFolder
from lit_jax.checkpoints.writing import save_model_dir
from lit_jax.config import MeshConfig
from lit_jax.models.dit.config import DiTConfig
from lit_jax.models.family import architecture
from lit_jax.models.functional import Params, init_params, shardings
from lit_jax.models.registry import model_config
from lit_jax.sharding import make_mesh
from lit_jax.storage import staging

TINY = {"hidden_size": 8, "depth": 2, "num_heads": 2, "input_size": 4, "num_classes": 3}


@pytest.fixture(scope="module")
def model() -> tuple[DiTConfig, Params]:
    config = model_config("LiT", **TINY)
    return config, jax.tree.map(np.asarray, init_params(config, jax.random.key(0)))


def write_checkpoints(workdir: Path, params: Params, averages: dict[int, Params]) -> None:
    """Write checkpoints as training does: step -> moving average, beside other parameters."""
    manager = ocp.CheckpointManager(workdir / "checkpoints")
    for step, average in averages.items():
        opt_state = {"mu": params, "count": np.int32(step)}
        state = {"step": step, "params": params, "ema": average, "opt_state": opt_state}
        manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)))
    manager.wait_until_finished()
    manager.close()


def assert_equal(one: Params, two: Params) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_round_trip(model: tuple[DiTConfig, Params], tmp_path: Path) -> None:
    config, params = model
    save_model_dir(tmp_path / "deep" / "m", config, params, {"source": "x.pt"})
    folder = ModelFolder(tmp_path / "deep" / "m")
    restored = folder.params()
    assert (folder.config, folder.family.name) == (config, "DiT")
    assert folder.provenance == {"source": "x.pt"}
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(restored))
    assert_equal(params, restored)
    content = json.loads((tmp_path / "deep" / "m" / "config.json").read_text())
    assert content == {"model": architecture(config), "provenance": {"source": "x.pt"}}
    assert os.listdir(tmp_path / "deep") == ["m"]


def test_load_model_computes_in_the_dtype(model: tuple[DiTConfig, Params], tmp_path: Path) -> None:
    config, params = model
    save_model_dir(tmp_path / "m", config, params, {})
    loaded = lit_jax.load_model(tmp_path / "m", dtype="bfloat16")
    assert loaded.config.dtype == "bfloat16"
    assert loaded.x_embedder.kernel[...].dtype == np.float32
    np.testing.assert_array_equal(loaded.x_embedder.kernel[...], params["x_embedder"]["kernel"])
    for dtype in (jnp.bfloat16, np.dtype("float32"), jnp.float32):
        loaded = lit_jax.load_model(model_dir=tmp_path / "m", dtype=dtype)
        assert loaded.config.dtype == jnp.dtype(dtype).name
        assert loaded.blocks.mlp.fc1.dtype == jnp.dtype(dtype).name
    for dtype, name in ((jnp.int8, "int8"), ("foo", "foo")):
        with pytest.raises(ValueError, match=rf"dtype '{name}'.*known: bfloat16, float32"):
            lit_jax.load_model(tmp_path / "m", dtype=dtype)


def test_restored_onto_shardings(model: tuple[DiTConfig, Params], tmp_path: Path) -> None:
    config, params = model
    save_model_dir(tmp_path / "m", config, params, {})
    mesh = make_mesh(MeshConfig(fsdp=2), jax.devices()[:2])
    restored = ModelFolder(tmp_path / "m").params(mesh)
    placed = jax.tree.map(lambda leaf: leaf.sharding, restored)
    assert placed == shardings(config, mesh)
    assert not restored["blocks"]["mlp"]["fc1"]["kernel"].is_fully_replicated
    assert_equal(params, restored)


def test_nothing_is_overwritten_unasked(model: tuple[DiTConfig, Params], tmp_path: Path) -> None:
    config, params = model
    save_model_dir(tmp_path / "m", config, params, {"n": 1})
    with pytest.raises(ValueError, match="exists; pass --overwrite"):
        save_model_dir(tmp_path / "m", config, params, {"n": 2})
    save_model_dir(tmp_path / "m", config, params, {"n": 3}, overwrite=True)
    content = json.loads((tmp_path / "m" / "config.json").read_text())
    assert content["provenance"] == {"n": 3}
    assert os.listdir(tmp_path) == ["m"]
    precious = tmp_path / "photos"
    precious.mkdir()
    with pytest.raises(ValueError, match="not a model folder"):
        save_model_dir(precious, config, params, {}, overwrite=True)
    assert precious.is_dir()


def test_a_failed_write_leaves_nothing(
    model: tuple[DiTConfig, Params], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, params = model
    save_model_dir(tmp_path / "old", config, params, {"n": 1})

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(staging, "replace_folder", full)
    for name in ("new", "old"):
        with pytest.raises(OSError, match="no space"):
            save_model_dir(tmp_path / name, config, params, {}, overwrite=True)
    assert os.listdir(tmp_path) == ["old"]
    assert ModelFolder(tmp_path / "old").config == config


KILLED = """
import sys, time
import jax, numpy as np
from lit_jax.checkpoints import writing
from lit_jax.models.functional import init_params
from lit_jax.models.registry import model_config
from lit_jax.storage import staging

def stall(staged, path, overwrite):
    print("written", flush=True)
    time.sleep(60)

staging.replace_folder = stall
config = model_config("LiT", **{tiny})
params = jax.tree.map(np.asarray, init_params(config, jax.random.key(0)))
writing.save_model_dir({path!r}, config, params, {{}})
"""


def test_a_killed_write_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    """The worst moment: everything written, the rename not yet done."""
    code = KILLED.format(tiny=TINY, path=str(tmp_path / "m"))
    environment = {**os.environ, "PYTHONPATH": str(Path(lit_jax.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "written"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "m").exists()
    [left] = os.listdir(tmp_path)
    assert left.startswith(".m.") and left.endswith(".tmp")
    assert staging.leftovers(tmp_path / "m") == [tmp_path / left]
    assert staging.leftovers(tmp_path / "other") == []


def rewrite(path: Path, **changes: object) -> None:
    content = json.loads((path / "config.json").read_text())
    content["model"] |= changes
    (path / "config.json").write_text(json.dumps(content))


def test_strict_reading(model: tuple[DiTConfig, Params], tmp_path: Path) -> None:
    config, params = model
    with pytest.raises(ValueError, match="it has no config.json"):
        ModelFolder(tmp_path / "nowhere", finished=False)
    save_model_dir(tmp_path / "m", config, params, {})
    rewrite(tmp_path / "m", hiden_size=3)
    with pytest.raises(ValueError, match="did you mean 'hidden_size'"):
        ModelFolder(tmp_path / "m", finished=False)
    content = {"model": architecture(config)}
    del content["model"]["num_heads"], content["model"]["depth"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="lacks depth, num_heads"):
        ModelFolder(tmp_path / "m", finished=False)
    (tmp_path / "m" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        ModelFolder(tmp_path / "m", finished=False)
    (tmp_path / "m" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match='no "model" group'):
        ModelFolder(tmp_path / "m", finished=False)


def test_parameters_of_another_size_are_one_clear_line(
    model: tuple[DiTConfig, Params], tmp_path: Path
) -> None:
    config, params = model
    save_model_dir(tmp_path / "m", config, params, {})
    rewrite(tmp_path / "m", hidden_size=16)
    with pytest.raises(ValueError, match="not of the size in its config.json") as error:
        ModelFolder(tmp_path / "m").params()
    assert "(2, 8, 48), config.json says (2, 16, 96)" in str(error.value)
    assert "more)" in str(error.value) and "\n" not in str(error.value)
    rewrite(tmp_path / "m", hidden_size=8, num_classes=0)
    with pytest.raises(ValueError, match=r"y_embedder/embedding is \(4, 8\), .* says nothing"):
        ModelFolder(tmp_path / "m").params()


def test_incomplete_folder(model: tuple[DiTConfig, Params], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model": architecture(model[0])}))
    with pytest.raises(ValueError, match="it has no config.json"):
        ModelFolder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="neither params/ nor checkpoints/"):
        ModelFolder(tmp_path)
    (tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp-0").mkdir(parents=True)
    with pytest.raises(ValueError, match="no finished checkpoint"):
        ModelFolder(tmp_path)
    (tmp_path / "checkpoints" / "4").mkdir()
    with pytest.raises(ValueError, match=r"checkpoints/4/state is incomplete: it has no _META"):
        ModelFolder(tmp_path)
    assert (
        ModelFolder(tmp_path, finished=False).config == model[0]
    )  # the architecture of a run that has just begun


# After a failure the other reads of orbax go on and raise when the event loop is closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_parameters(model: tuple[DiTConfig, Params], tmp_path: Path) -> None:
    config, params = model
    for name in ("_METADATA", "manifest.ocdbt", "d"):
        path = tmp_path / name
        save_model_dir(path, config, params, {})
        ModelFolder(path)
        os.rename(path / "params" / name, path / "gone")
        with pytest.raises(ValueError, match=f"params is incomplete: it has no {name}"):
            ModelFolder(path)
    save_model_dir(tmp_path / "cut", config, params, {})
    for file in (tmp_path / "cut" / "params").glob("ocdbt.process_0/d/*"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="params is incomplete or damaged: "):
        ModelFolder(tmp_path / "cut").params()


def test_no_folder_below_a_file(model: tuple[DiTConfig, Params], tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ValueError, match="notes is a file, not a folder"):
        save_model_dir(tmp_path / "notes" / "deep" / "m", *model, {})
    assert os.listdir(tmp_path) == ["notes"]


def test_workdir_gives_the_latest_moving_average(
    model: tuple[DiTConfig, Params], tmp_path: Path
) -> None:
    config, params = model
    content = {"model": architecture(config), "train": {"seed": 0}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    averages = [jax.tree.map(lambda leaf, s=step: leaf * s, params) for step in (2, 10)]
    write_checkpoints(tmp_path, params, {2: averages[0], 10: averages[1]})
    folder = ModelFolder(tmp_path)
    assert folder.config == config
    assert_equal(folder.params(), averages[1])
    assert folder.sha256 == params_sha256(averages[1])
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert_equal(folder.params(mesh), averages[1])


def test_another_network_is_refused_with_one_message(tmp_path: Path) -> None:
    config = model_config("T5", d_model=8, d_ff=8, d_kv=4, num_heads=2, num_layers=1, vocab_size=9)
    params = jax.tree.map(np.asarray, init_params(config, jax.random.key(0)))
    save_model_dir(tmp_path / "t5", config, params, {})
    for expect, needed in (
        ("AutoencoderKL", r"a VAE \(AutoencoderKL\)"),
        ("denoiser", "a denoiser such as a DiT"),
        ("caption", "a denoiser on captions such as a PixArt"),
    ):
        with pytest.raises(ValueError, match=rf"--vae \S*t5 holds a T5; {needed}.* is needed"):
            ModelFolder(tmp_path / "t5", expect, "--vae")
    assert ModelFolder(tmp_path / "t5", "T5").config == config


def test_a_denoiser_is_expected_by_family_or_condition(
    model: tuple[DiTConfig, Params], tmp_path: Path
) -> None:
    save_model_dir(tmp_path / "m", *model, {})
    for expect in ("denoiser", "label"):
        assert ModelFolder(tmp_path / "m", expect).family.condition == "label"
    with pytest.raises(ValueError, match="m holds a LiT; a denoiser on captions"):
        ModelFolder(tmp_path / "m", "caption")


def test_a_run_that_goes_on_does_not_change_an_open_folder(
    model: tuple[DiTConfig, Params], tmp_path: Path
) -> None:
    config, params = model
    (tmp_path / "config.json").write_text(json.dumps({"model": architecture(config)}))
    write_checkpoints(tmp_path, params, {2: params})
    folder = ModelFolder(tmp_path)
    write_checkpoints(tmp_path, params, {4: jax.tree.map(lambda leaf: leaf + 1, params)})
    assert folder.sha256 == params_sha256(params)
    assert_equal(folder.params(), params)
    assert ModelFolder(tmp_path).sha256 != folder.sha256


def test_load_model_returns_any_network(tmp_path: Path) -> None:
    config = model_config("T5", d_model=8, d_ff=8, d_kv=4, num_heads=2, num_layers=1, vocab_size=9)
    params = jax.tree.map(np.asarray, init_params(config, jax.random.key(0)))
    save_model_dir(tmp_path / "t5", config, params, {})
    model = lit_jax.load_model(tmp_path / "t5", param_dtype="bfloat16")
    assert model.blocks.attn.q.kernel[...].dtype == jnp.bfloat16
    tokens = jnp.array([[1, 2, 3]])
    whole = lit_jax.load_model(tmp_path / "t5")(tokens, None)
    np.testing.assert_allclose(model(tokens, None), whole, atol=0.05)
