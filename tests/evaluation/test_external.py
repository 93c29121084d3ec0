"""The whole chain, images to scores, against implementations that are not ours."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_jax.checkpoints.convert import import_params
from lit_jax.checkpoints.writing import save_model_dir
from lit_jax.commands.evaluate.job import evaluate
from lit_jax.config.evaluate import EvaluateConfig, ReferenceConfig
from lit_jax.models.inception.config import InceptionConfig
from support import evaluation_cases
from support.evaluation_cases import pictures, save_inception
from support.golden_cases import COPIES
from support.inception_cases import TINY, golden_weights, tiny_weights

torch = pytest.importorskip("torch")

COUNT = 30
SAMPLES, REFERENCE = pictures(COUNT, seed=1), pictures(COUNT, seed=2)
SAMPLES[15:] //= 8
REFERENCE[15:] = REFERENCE[15:] // 8 + 200

# A folder with torch-fidelity (pip install --no-deps --target FOLDER torch-fidelity==0.4.0), where
# it is not to be installed: it asks for torchvision, which this test does without.
FOLDER = "LIT_JAX_TORCH_FIDELITY"


def _metrics(path: Path, inception: Path) -> dict[str, Any]:
    np.savez(path / "samples.npz", arr_0=SAMPLES)
    np.savez(path / "reference.npz", arr_0=REFERENCE)
    config = EvaluateConfig(
        reference=ReferenceConfig(source=str(path / "reference.npz")),
        samples=str(path / "samples.npz"),
        inception=str(inception),
        out=str(path / "metrics.json"),
    )
    evaluate(config, log=lambda text: None)
    metrics: dict[str, Any] = json.loads((path / "metrics.json").read_text())["metrics"]
    return metrics


@pytest.mark.parametrize("preprocessing", ["tf1", "pytorch_fid"])
def test_torch_reference(tmp_path: Path, preprocessing: str) -> None:
    """The Inception of tools/ in torch, and scores over whole matrices."""
    from tools.torch_reference.inception import official

    config = InceptionConfig(
        width_divisor=TINY.width_divisor, num_logits=TINY.num_logits, preprocessing=preprocessing
    )
    found = _metrics(tmp_path, save_inception(tmp_path / "inception", config))
    state = {name: torch.from_numpy(value) for name, value in tiny_weights(config).items()}
    features = []
    for images in (SAMPLES, REFERENCE):
        inputs = {"images": torch.from_numpy(images.transpose(0, 3, 1, 2).copy())}
        with torch.no_grad():
            outputs = official(state, {"preprocessing": preprocessing}, inputs)
        features.append({name: value.numpy() for name, value in outputs.items()})
    ours, theirs = features
    logits = ours["logits"] - tiny_weights(config)["fc.bias"]
    mean, std = evaluation_cases.inception_score(logits, [3 * i for i in range(11)])
    flat = [part["spatial"].reshape(COUNT, -1) for part in features]
    expected = {
        "fid": evaluation_cases.frechet_from_rows(ours["pool3"], theirs["pool3"]),
        "sfid": evaluation_cases.frechet_from_rows(*flat),
        "inception_score": mean,
        "inception_score_std": std,
        "kid": evaluation_cases.kid(ours["pool3"], theirs["pool3"]),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, err_msg=name)
    pair = evaluation_cases.precision_recall(theirs["pool3"], ours["pool3"])
    np.testing.assert_allclose((found["precision"], found["recall"]), pair, atol=1.01 / COUNT)


@pytest.mark.slow
def test_torch_fidelity(tmp_path: Path) -> None:
    """The network at its real width, in torch-fidelity's own code: a process of its own, because it
    changes what `import torchvision` means."""
    folder = os.environ.get(FOLDER)
    if folder is None and importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip(f"torch-fidelity is not installed, and {FOLDER} names no folder that has it")
    weights = golden_weights(COPIES)
    save_model_dir(
        tmp_path / "inception", InceptionConfig(), import_params(weights, InceptionConfig())[0], {}
    )
    found = _metrics(tmp_path, tmp_path / "inception")
    torch.save({k: torch.from_numpy(v) for k, v in weights.items()}, tmp_path / "weights.pth")
    np.savez(tmp_path / "images.npz", samples=SAMPLES, reference=REFERENCE)
    program = Path(__file__).resolve().parents[1] / "support" / "fidelity_program.py"
    command = [sys.executable, str(program), "images.npz", "weights.pth"]
    environment = os.environ | {"PYTHONPATH": folder or ""}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    expected = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps({"lit_jax": found, "torch-fidelity": expected}))
    for ours, theirs in {
        "fid": "frechet_inception_distance",
        "inception_score": "inception_score_mean",
        "kid": "kernel_inception_distance_mean",
        "precision": "precision",
        "recall": "recall",
    }.items():
        np.testing.assert_allclose(found[ours], expected[theirs], rtol=1e-3, err_msg=ours)
