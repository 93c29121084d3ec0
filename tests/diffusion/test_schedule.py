"""Schedules and respacing against the official tables and the numbers of the papers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lit_jax.diffusion.gaussian import create_process
from lit_jax.diffusion.schedule import (
    SCHEDULES,
    cosine_betas,
    linear_betas,
    respaced_timesteps,
    schedule_betas,
)
from support.golden_cases import golden_sources, load_arrays, load_meta

SOURCES = golden_sources("diffusion_tables.npz")


@pytest.mark.parametrize("folder", SOURCES)
def test_tables_equal_the_official_ones(folder: Path) -> None:
    arrays = load_arrays(folder, "diffusion_tables")
    spacings = load_meta(folder, "diffusion_tables")["respacings"]
    processes = {name: create_process(spacing) for name, spacing in spacings.items()}
    processes["cosine_full"] = create_process(schedule="squaredcos_cap_v2")
    assert {key.split("/")[0] for key in arrays} == set(processes)
    for key, expected in arrays.items():
        name, table = key.split("/")
        value = getattr(processes[name], table.removesuffix("_f64"))
        if table == "timestep_map":
            np.testing.assert_array_equal(value, expected, err_msg=key)
        else:
            assert value.dtype == np.float64
            np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-14, err_msg=key)


def test_full_schedule_has_the_known_values() -> None:
    process = create_process()
    assert process.betas[500] == pytest.approx(0.01005995995995996, rel=1e-14)
    assert process.alphas_cumprod[[0, 500, 999]] == pytest.approx(
        [0.9999, 0.07779665836502, 4.035829765376e-5], rel=1e-12
    )
    assert process.posterior_variance[1] == pytest.approx(5.453187661301e-5, rel=1e-12)
    assert process.posterior_log_variance_clipped[[0, 1, 999]] == pytest.approx(
        [-9.816725135296, -9.816725135296, -3.9120238291], rel=1e-10
    )
    assert process.posterior_mean_coef1[1] == pytest.approx(0.5452914995101, rel=1e-12)
    assert process.posterior_mean_coef2[[1, 999]] == pytest.approx(
        [0.454708498991, 0.989948678268], rel=1e-11
    )


@pytest.mark.parametrize(
    ("spacing", "first", "last", "total"),
    [
        ("", [0, 1, 2], [998, 999], 499500),
        ("250", [0, 4, 8, 12, 16, 20], [979, 983, 987, 991, 995, 999], 124875),
        ("20", [0, 53, 105, 158], [894, 946, 999], 9990),
        ("50", [0, 20, 41, 61], [999], None),
        ("10", [0, 111, 222], [999], 4995),
        ("ddim50", [0, 20, 40], [960, 980], 24500),
        ("ddim250", [0, 4, 8], [992, 996], 124500),
        ("10,15,20", [0, 37], [999], None),
    ],
)
def test_respacing_keeps_the_official_steps(
    spacing: str, first: list[int], last: list[int], total: int | None
) -> None:
    kept = respaced_timesteps(1000, spacing)
    assert kept[: len(first)].tolist() == first
    assert kept[-len(last) :].tolist() == last
    assert total is None or kept.sum() == total
    assert (np.diff(kept) > 0).all()


def test_rounding_is_half_to_even_on_an_accumulated_stride() -> None:
    # Stride 2.5: positions 2.5 and 7.5 go to 2 and 8; rounding half up would keep 3 and 8.
    assert respaced_timesteps(11, "5").tolist() == [0, 2, 5, 8, 10]
    # Stride 166.5: the first step is 166, and 167 if halves went up.
    assert respaced_timesteps(1000, "7")[[1, 5]].tolist() == [166, 832]
    # Half of 999 is reached as a sum of strides a hair below (21) or above (31): 10 * 49.95 is
    # exactly 499.5, which goes to 500, and 15 * 33.3 is below it.
    assert respaced_timesteps(1000, "21")[10] == 499
    assert respaced_timesteps(1000, "31")[15] == 500


def test_sections_split_the_remainder_from_the_front() -> None:
    # 10 steps in 3 sections: 4, 3 and 3, of which 2 are kept each: first and last of every section.
    assert respaced_timesteps(10, "2,2,2").tolist() == [0, 3, 4, 6, 7, 9]


def test_respaced_process_has_the_known_last_beta() -> None:
    assert create_process("250").betas[249] == pytest.approx(0.07751934499235, rel=1e-12)


def test_respacing_preserves_the_signal_level() -> None:
    full, short = create_process(), create_process("20")
    np.testing.assert_allclose(
        short.alphas_cumprod, full.alphas_cumprod[short.timestep_map], rtol=1e-12
    )


def test_shorter_linear_schedules_keep_the_total_noise() -> None:
    assert linear_betas(500)[0] == pytest.approx(2e-4)
    assert linear_betas(500)[-1] == pytest.approx(0.04)
    assert linear_betas(500).sum() == pytest.approx(linear_betas(1000).sum())


def test_cosine_betas_are_capped() -> None:
    betas = cosine_betas(1000)
    assert betas[-1] == 0.999 and betas[-2] < 0.999
    assert (np.diff(betas) > 0).all()


@pytest.mark.parametrize(
    ("spacing", "message"),
    [
        ("many", "not understood at 'many'"),
        ("10,,20", "not understood at ''"),
        ("ddim", "not understood at ''"),
        ("0", "not understood at '0'"),
        ("-5", "not understood at '-5'"),
        ("1001", "asks for 1001 steps of a section of 1000"),
        ("600,600", "asks for 600 steps of a section of 500"),
        ("ddim999", "no integer stride leaves exactly 999 of 1000"),
        ("1", "at least 2"),
    ],
)
def test_bad_spacings_are_refused(spacing: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        respaced_timesteps(1000, spacing)
    assert repr(spacing) in str(error.value)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match="did you mean 'linear'.*squaredcos_cap_v2"):
        create_process(schedule="liner")
    with pytest.raises(ValueError, match="known: epsilon, x_start"):
        create_process(mean_type="velocity")
    with pytest.raises(ValueError, match="known: fixed_large, fixed_small, learned_range"):
        create_process(var_type="learned")


def test_a_linear_schedule_that_is_too_short_is_refused() -> None:
    assert set(SCHEDULES) == {"linear", "squaredcos_cap_v2"}
    with pytest.raises(ValueError, match="'linear' with 10 steps has betas up to 2"):
        schedule_betas("linear", 10)
