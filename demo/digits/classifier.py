"""The judge: a digit classifier that tells whether a conditional sample shows its label.

It is trained on the held-out split, which no generative model learns from. That makes it
independent of the models it judges; its own errors are reported as its accuracy on real images,
which is the practical ceiling of the conditional accuracy of a model.

Letters: N images, H height, W width, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.svm import SVC

# A textbook choice for this data set, fixed before any sample was judged.
_PENALTY = 10.0
DESCRIPTION = "RBF support vector machine (C = 10, gamma = 1 / (64 var)) on pixels"


@dataclass(frozen=True)
class Judge:
    """A trained classifier of uint8 images [N, *image_shape]."""

    classifier: SVC
    image_shape: tuple[int, ...]
    train_count: int

    def predict(self, images_NxHxWxC: np.ndarray) -> np.ndarray:
        """Return predicted labels int [N]. Raises ValueError for another image shape or dtype."""
        if images_NxHxWxC.shape[1:] != self.image_shape:
            raise ValueError(
                f"images have shape {images_NxHxWxC.shape}; the judge was trained on"
                f" {list(self.image_shape)}"
            )
        return self.classifier.predict(_pixels(images_NxHxWxC))


def _pixels(images_NxHxWxC: np.ndarray) -> np.ndarray:
    if images_NxHxWxC.dtype != np.uint8:
        raise ValueError(
            f"images are {images_NxHxWxC.dtype}, not uint8; convert samples in [-1, 1] with"
            " lit_jax.data.transforms.to_uint8"
        )
    return images_NxHxWxC.reshape(len(images_NxHxWxC), -1) / 255.0


def train_judge(images_NxHxWxC: np.ndarray, labels_N: np.ndarray) -> Judge:
    """Fit the judge on real uint8 images and labels. Deterministic: no random numbers."""
    classifier = SVC(C=_PENALTY, kernel="rbf", gamma="scale")
    classifier.fit(_pixels(images_NxHxWxC), labels_N)
    return Judge(classifier, images_NxHxWxC.shape[1:], len(images_NxHxWxC))


def conditional_accuracy(judge: Judge, images_NxHxWxC: np.ndarray, labels_N: np.ndarray) -> float:
    """Return fraction in [0, 1] of images that the judge gives the label they were generated for.

    Raises ValueError when there are no images or as many labels as images are missing.
    """
    labels_N = np.asarray(labels_N)
    if len(images_NxHxWxC) == 0 or labels_N.shape != (len(images_NxHxWxC),):
        raise ValueError(
            f"{len(images_NxHxWxC)} images with labels of shape {labels_N.shape}; give one label"
            " per image and at least one image"
        )
    return float(np.mean(judge.predict(images_NxHxWxC) == labels_N))
