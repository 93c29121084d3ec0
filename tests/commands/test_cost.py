"""The cost job: what the compiler is made to count, the tables, resuming and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks.paper_figures import heads_table, keys_table
from lit_jax.commands.cost import job
from lit_jax.commands.cost.checks import trained
from lit_jax.commands.cost.compiled import PROGRAMS, Counted, count, forward_program
from lit_jax.config.cost import CostConfig
from lit_jax.models.cost import forward_macs
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.models.registry import model_config
from support import tiny_runs
from support.kills import contents

TINY = "hidden_size=24 depth=3 num_heads=2"
MODELS = (f"DiT {TINY}", f"LiT {TINY}")


def config(out: Path, **changes: Any) -> CostConfig:
    values = {"models": MODELS, "out": str(out), "resolutions": (64, 128), "compile_up_to": 64}
    return CostConfig(**values | changes)


def nested(x: jax.Array, w: jax.Array, repeats: tuple[int, int], unroll: int) -> jax.Array:
    """Products in a loop within a loop, behind a jit and a checkpoint."""

    @jax.checkpoint
    def inner(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return x @ w, None

    def outer(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        x = jax.jit(lambda x: jax.lax.scan(inner, x, length=repeats[1], unroll=unroll)[0])(x)
        return x @ w, None

    return jax.lax.scan(outer, x, length=repeats[0])[0] @ w


def explicit(x: jax.Array, w: jax.Array, repeats: tuple[int, int]) -> jax.Array:
    """The same without loops."""
    for _ in range(repeats[0]):
        for _ in range(repeats[1] + 1):
            x = x @ w
    return x @ w


@pytest.mark.parametrize(("repeats", "unroll"), [((4, 7), 1), ((3, 7), 2), ((2, 5), 5)])
def test_loops_count_as_often_as_they_run(repeats: tuple[int, int], unroll: int) -> None:
    x = w = jax.ShapeDtypeStruct((16, 16), jnp.float32)
    looped = count((lambda x, w: nested(x, w, repeats, unroll), (x, w), ()))
    written_out = count((lambda x, w: explicit(x, w, repeats), (x, w), ()))
    products = repeats[0] * (repeats[1] + 1) + 1
    assert written_out.flops == 2 * 16**3 * products
    # Loops have counters, too: an addition and a comparison per iteration.
    assert written_out.flops <= looped.flops < written_out.flops * 1.01


def test_gradient_of_a_loop() -> None:
    """Backward loops have bodies of their own: two products for each of the forward one."""
    x = w = jax.ShapeDtypeStruct((32, 32), jnp.float32)

    def loss(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.sum(jax.lax.scan(lambda x, _: (x @ w, None), x, length=9)[0])

    products = count((jax.grad(loss, (0, 1)), (x, w), ())).flops / (2 * 32**3)
    assert products == pytest.approx(3 * 9, rel=0.03)


def test_loop_of_unknown_length() -> None:
    x = jax.ShapeDtypeStruct((4,), jnp.float32)

    def run(x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda x: x[0] < 9, lambda x: x * 2, x)

    with pytest.raises(ValueError, match="a loop without a fixed length cannot be counted"):
        count((run, (x,), ()))


def test_depth_does_not_hide_in_a_loop() -> None:
    """Where products dominate, the compiler's operations are twice the closed form, whether the
    loop over depth is unrolled or not."""
    shape = {"mixer": "linear", "hidden_size": 96, "num_heads": 2, "input_size": 32, "depth": 4}
    network = model_config("DiT", kernel_size=None, **shape)
    unrolled = model_config("DiT", kernel_size=None, scan_unroll=4, **shape)
    looped, written_out = (count(forward_program(one, 1)) for one in (network, unrolled))
    assert looped.flops == pytest.approx(written_out.flops, rel=0.01)
    assert looped.flops == pytest.approx(2 * forward_macs(network), rel=0.08)
    assert looped.flops > 2 * forward_macs(network)


def test_training_step() -> None:
    """Forward and backward are three times the products; the state is overwritten in place."""
    network = model_config(
        "DiT", hidden_size=96, num_heads=2, input_size=32, depth=2, num_classes=0
    )
    counted = count(PROGRAMS["train"](network, 2))
    assert counted.flops / 2 == pytest.approx(3 * 2 * forward_macs(network), rel=0.15)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(forward_program(network, 1)[1][0]))
    # Parameters, their mean, and two moments; what comes back needs no place of its own.
    assert counted.arguments == pytest.approx(16 * parameters, rel=0.01)
    assert counted.peak - counted.temporary == pytest.approx(counted.arguments, rel=1e-3)


def test_captions_and_micro_conditions_compile() -> None:
    """Such models are not trained here, so that there is no step to be counted."""
    shape = {"hidden_size": 24, "num_heads": 2, "depth": 1, "input_size": 8}
    shape |= {"micro_condition": True, "model_max_length": 5, "caption_channels": 8}
    network = model_config("PixArt", **shape)
    assert isinstance(network, PixArtConfig) and not trained(network)
    assert count(forward_program(network, 1)).flops > 2 * forward_macs(network)


def test_job(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """Tables, plots and JSON; stopped in the middle and run again, the output is the same; a
    finished one is not counted again, another request is refused.

    The compiler is stood in for: training steps compile for seconds.
    """

    def counted(program: Any) -> Counted:
        images = [leaf for leaf in jax.tree.leaves(program[1]) if len(leaf.shape) == 4]
        return Counted(float(images[-1].size), 10, len(program[2]), 2**30)

    monkeypatch.setattr(job, "count", counted)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    job.cost(config(whole))
    text = capsys.readouterr().out
    expected = contents(whole)
    names = {"request.json", "cost.json", "cost.md"}
    names |= {f"cost_{name}.png" for name in ("macs", "memory")}
    assert expected.keys() == names and (whole / "cost.md").read_text() in text

    content = json.loads(expected["cost.json"])
    assert list(content["models"]) == list(MODELS)
    small, large = (content["models"][MODELS[1]][side] for side in ("64", "128"))
    network = model_config("LiT", hidden_size=24, depth=3, num_heads=2, input_size=16)
    assert large["forward_macs"] == forward_macs(network) == sum(large["macs"].values())
    assert small["tokens"] == 16 and large["compiled"] == {}
    assert small["compiled"].keys() == {"forward", "train"}
    assert small["compiled"]["train"] == {
        **{"flops": 8 * 8 * 4.0, "arguments": 10},
        **{"temporary": 1, "peak": 2**30},
    }
    rows = [line for line in text.splitlines() if line.startswith(("|  64 |", "| 128 |"))]
    assert [row.count(" - |") for row in rows] == [0, 4, 0, 4]
    softmax, linear = text.split("## ")[1:]
    assert "Eq. 4" in linear.split("Compiled with")[0] and "Eq. 4" not in softmax
    assert [row.endswith("   1 |") for row in rows] == [True, False, True, False]

    calls: list[Any] = []

    def failing(program: Any) -> Any:
        calls.append(program)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return counted(program)

    monkeypatch.setattr(job, "count", failing)
    with pytest.raises(KeyboardInterrupt):
        job.cost(config(stopped))
    assert (stopped / "compiled.json").exists() and not (stopped / "cost.json").exists()
    job.cost(config(stopped))
    assert len(calls) == 3 + 2  # two of four were kept
    assert contents(stopped) == expected

    capsys.readouterr()
    job.cost(config(stopped))
    assert "already counted" in capsys.readouterr().out and len(calls) == 5
    with pytest.raises(ValueError, match=r"another request: dtype is float32, asked .* bfloat16"):
        job.cost(config(stopped, dtype="bfloat16"))
    assert contents(stopped) == expected


def test_figures_reproduce_the_papers() -> None:
    """LiT paper, Figures 5 and 9 (S: 2.416 against 3.202 ... 1.857 GMACs); CLEAR's 99.5%."""
    small = heads_table()["S"]
    assert small["softmax"] == pytest.approx(2.416, abs=6e-4)
    for heads, giga in {"1": 3.202, "2": 2.522, "6": 2.069, "96": 1.857}.items():
        assert small["printed"][heads] == pytest.approx(giga, abs=6e-4)
        assert small["multiplied"][heads] < small["printed"][heads]
    assert f"{1 - keys_table()['16']['share']['8192']:.1%}" == "99.5%"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"models": ("DiTT-S/2",)}, "unknown model 'DiTT-S/2'; did you mean 'DiT-S/2'"),
    "argument": ({"models": ("DiT-S/2 dept=1",)}, "unknown argument of DiT-S/2 'dept'"),
    "a size": (
        {"models": ("DiT-S/2 input_size=64",)},
        "input_size is that of --resolutions; leave it out",
    ),
    "no value": ({"models": ("DiT-S/2 depth",)}, "'depth' is not of the form NAME=VALUE"),
    "folder": ({"models": ("/no/model",)}, "there is no such folder"),
    "network": ({"models": ("SD-VAE",)}, "is a AutoencoderKL; a denoiser such as a DiT is needed"),
    "patches": ({"resolutions": (72,)}, "resolution 72 is not a multiple of 16, vae_factor 8 x"),
    "pool": (
        {"models": ("CLEAR-S/2 down_factor=4",), "resolutions": (256, 288)},
        "token grid 18x18 does not divide into patches of down_factor 4",
    ),
    "dtype": ({"dtype": "float16"}, "unknown dtype 'float16'; did you mean 'bfloat16'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(tmp_path: Path, case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(ValueError) as error:
        job.cost(config(tmp_path / "out", **changes))
    assert message in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ()}, "--model is empty"),
        ({"models": ("DiT-S/2", "DiT-S/2")}, "names a model twice"),
        ({"resolutions": ()}, "--resolutions is empty"),
        ({"resolutions": (256, 100)}, "--resolutions has 100; it must be a multiple of vae_factor"),
        ({"vae_factor": 0}, "vae_factor is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"compile_up_to": -1}, "compile_up_to is -1"),
    ],
)
def test_refused_configurations(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CostConfig(**{"models": ("DiT-S/2",), "out": "o"} | changes)


def test_model_folders_and_strange_outputs(tmp_path: Path) -> None:
    """A model folder counts like its architecture; a folder of something else is left alone."""
    model = tiny_runs.save_model(tmp_path / "model")
    changes = {"models": (str(model),), "resolutions": (8, 16), "vae_factor": 1}
    out = job.cost(config(tmp_path / "out", compile_up_to=0, **changes))
    content = json.loads((out / "cost.json").read_text())
    assert content["models"][str(model)]["16"]["tokens"] == 16
    assert not (out / "cost_memory.png").exists()
    with pytest.raises(ValueError, match=r"holds config.json, params and no request.json; choose"):
        job.cost(config(model, compile_up_to=0, **changes))
