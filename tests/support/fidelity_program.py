"""torch-fidelity on two sets of images, in a process of its own: prints its scores as JSON.

    PYTHONPATH=FOLDER_WITH_TORCH_FIDELITY python tests/fidelity_program.py IMAGES.npz WEIGHTS.pth

IMAGES.npz holds `samples` and `reference`, uint8 [N, H, W, 3]. torch-fidelity imports torchvision
for data sets and networks that are not used here; where torchvision is not installed, an empty
stand-in takes its place. The network of the FID is torch-fidelity's own.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types

import numpy as np
import torch


class StandIn(types.ModuleType):
    """A module in which every name is an empty class."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


if importlib.util.find_spec("torchvision") is None:
    sys.modules["torchvision"] = StandIn("torchvision")
    for part in ("datasets", "transforms", "transforms.functional", "models"):
        module = sys.modules[f"torchvision.{part}"] = StandIn(f"torchvision.{part}")
        parent, _, name = f"torchvision.{part}".rpartition(".")
        setattr(sys.modules[parent], name, module)

from torch_fidelity import calculate_metrics


class Images(torch.utils.data.Dataset):
    def __init__(self, images_NxHxWx3: np.ndarray) -> None:
        self._images_Nx3xHxW = torch.from_numpy(images_NxHxWx3.transpose(0, 3, 1, 2).copy())

    def __len__(self) -> int:
        return len(self._images_Nx3xHxW)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._images_Nx3xHxW[index]


def main(images: str, weights: str) -> None:
    with np.load(images) as stored:
        samples, reference = Images(stored["samples"]), Images(stored["reference"])
    size = min(len(samples), len(reference))
    found = calculate_metrics(
        input1=samples,
        input2=reference,
        cuda=False,
        batch_size=16,
        fid=True,
        isc=True,
        prc=True,
        kid=True,
        kid_subsets=1,
        kid_subset_size=size,
        feature_extractor="inception-v3-compat",
        save_cpu_ram=True,  # no processes that load images
        samples_shuffle=False,
        feature_extractor_weights_path=weights,
        cache=False,
        verbose=False,
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
