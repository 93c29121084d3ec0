"""The shipped teacher of the digits: a small softmax DiT, converted to a model folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from lit_jax.checkpoints.stored import CONFIG
from lit_jax.storage import files

ROOT = Path(__file__).resolve().parents[2]
TEACHER = ROOT / "demo" / "teacher" / "digits_dit.safetensors"


def convert_teacher(target: Path, title: str) -> Path:
    """Convert the teacher from the official DiT key layout; an existing `target` is checked."""
    command = ["tools/convert_torch_ckpt.py", "--src", str(TEACHER.relative_to(ROOT))]
    command += ["--dst", str(target.absolute())]
    print(f"\n=== {title}: python {' '.join(command)}", flush=True)
    if not target.exists():
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
        return target
    source = json.loads((target / CONFIG).read_text())["provenance"]["sha256"]
    if source != files.sha256_file(TEACHER):
        raise ValueError(f"{target} was made from another {TEACHER.name}; choose another --out")
    print(f"{target} is there already")
    return target
