"""A tiny text encoder with a tokenizer of its own, for every test that has to encode text."""

from __future__ import annotations

import functools
import io
import random
from pathlib import Path
from typing import Any

import jax
import numpy as np
import sentencepiece

from lit_jax.checkpoints.writing import save_model_dir
from lit_jax.models.functional import init_params
from lit_jax.models.t5.config import TOKENIZER_FILE, T5Config

TEXT = (
    "a red blue green circle square triangle left of right above below two three photo dog cat"
    " café naïve 日本 semi-final don't 3.14"
)

# Room for the pieces below and T5's 100 tokens for masked spans.
TINY_T5 = T5Config(vocab_size=200, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=3)


@functools.cache
def sentencepiece_model(**changes: Any) -> bytes:
    """A unigram model with T5's ids, trained on a few words; `changes` of the trainer's options."""
    rng = random.Random(0)
    lines = [" ".join(rng.choices(TEXT.split(), k=rng.randint(2, 9))) for _ in range(1000)]
    options = {"vocab_size": 90, "hard_vocab_limit": False, "character_coverage": 1.0}
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, minloglevel=2, **(options | ids | changes)
    )
    return out.getvalue()


def write_tokenizer(model_dir: Path) -> Path:
    """Puts the tokenizer into a model folder; returns its path."""
    path = model_dir / TOKENIZER_FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(sentencepiece_model())
    return path


def write_text_encoder(model_dir: Path, config: T5Config = TINY_T5, seed: int = 0) -> Path:
    """A model folder of a random T5 with its tokenizer; returns its path."""
    params = jax.tree.map(np.asarray, init_params(config, jax.random.key(seed)))
    save_model_dir(model_dir, config, params, {})
    write_tokenizer(model_dir)
    return model_dir
