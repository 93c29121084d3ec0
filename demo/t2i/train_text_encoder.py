"""Makes the text-to-image demo's text encoder again: about two minutes on one core.

A sentencepiece vocabulary and a small `T5Encoder`, both learned from captions alone. From the
feature of every token, linear maps must tell the thing that the token speaks of (colour, shape,
number, where it is) and how many things there are in all.

Why trained and not hashed: a hash of words would give the diffusion model a bag of symbols, and
"a red circle and a blue square" would have to be told from "a blue circle and a red square" by its
cross-attention, which sees tokens without their order. A real T5 hands over tokens that know their
context; so does this one. It has never seen an image.
"""

from __future__ import annotations

import argparse
import io
import itertools
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sentencepiece
from flax import nnx

from demo.t2i import shapes
from lit_jax.checkpoints.writing import save_model_dir
from lit_jax.data.tokenizer import Tokenizer
from lit_jax.models.layers import Dense
from lit_jax.models.t5.config import T5Config
from lit_jax.models.t5.model import T5Encoder

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = 160
MAX_LENGTH = 24
CONFIG = T5Config(
    vocab_size=VOCABULARY,
    d_model=64,
    d_kv=16,
    d_ff=128,
    num_layers=2,
    num_heads=4,
    relative_attention_num_buckets=16,
    relative_attention_max_distance=24,
)
DATA_SEED = 2_000_000
"""Not the seed of any data set that is encoded."""

GAIN = 4.0
"""The final norm is multiplied by this after training. PixArt's first layer for captions starts
with weights of 0.02, made for 4096 channels; with 64 of unit size the captions would start too
faint to be learned from in a few thousand steps."""

# What a token is asked: the number of answers. Colour and place have "not said" as answer 0.
PLACES = {"left": 1, "right": 2, "above": 3, "over": 3, "below": 4, "under": 4}
INVERSE = {0: 0, 1: 2, 2: 1, 3: 4, 4: 3}
ANSWERS = {
    "colour": len(shapes.COLOURS) + 1,
    "shape": len(shapes.SHAPES),
    "number": len(shapes.NUMBERS),
    "place": 5,
    "total": len(shapes.NUMBERS),
}
UNASKED = -1


def train_vocabulary(captions: Sequence[str]) -> bytes:
    """A sentencepiece model with T5's special ids; letters in lower case."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions),
        model_writer=model,
        vocab_size=VOCABULARY,
        hard_vocab_limit=False,
        model_type="bpe",
        normalization_rule_name="nmt_nfkc_cf",
        required_chars="abcdefghijklmnopqrstuvwxyz",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def answers(caption: str) -> list[dict[str, int]]:
    """What each word of a caption must tell: one row of ANSWERS per word.

    A word speaks of the first thing that is named at or after it, else of the last one.
    """
    words = caption.split()
    names = {form: n for n, s in enumerate(shapes.SHAPES) for form in (s, shapes.plural(s))}
    colours = {name: n + 1 for n, name in enumerate(shapes.COLOURS)}
    numbers = {word: n for n, word in enumerate(shapes.NUMBERS)}
    ends = [n for n, word in enumerate(words) if word in names]
    things = []
    for begin, end in zip([0, *(e + 1 for e in ends)], ends, strict=False):
        part = words[begin : end + 1]
        things.append(
            {
                "colour": max((colours[w] for w in part if w in colours), default=0),
                "shape": names[words[end]],
                "number": max((numbers[w] for w in part if w in numbers), default=0),
                "place": 0,
            }
        )
    if len(things) == 2:
        first = max((PLACES[word] for word in words if word in PLACES), default=0)
        things[0]["place"], things[1]["place"] = first, INVERSE[first]
    total = {"total": sum(thing["number"] + 1 for thing in things) - 1}
    owners = [min(sum(end < n for end in ends), len(ends) - 1) for n in range(len(words))]
    return [things[owner] | total for owner in owners]


def tables(captions: Sequence[str], tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """ids and mask [N, L], and [N, L] answers of each kind, UNASKED at padding and at </s> but for
    the total."""
    ids, mask = tokenizer(captions, MAX_LENGTH)
    result = {"ids": ids, "mask": mask}
    result |= {kind: np.full(ids.shape, UNASKED, np.int32) for kind in ANSWERS}
    for row, caption in enumerate(captions):
        told = answers(caption)
        lengths = [len(tokenizer.encode(word)) for word in caption.split()]
        if sum(lengths) + 1 != mask[row].sum():
            raise ValueError(f"{caption!r} is not split at its spaces, or has over {MAX_LENGTH}")
        owner = np.repeat(np.arange(len(told)), lengths)
        for kind in ANSWERS:
            result[kind][row, : len(owner)] = [told[word][kind] for word in owner]
        result["total"][row, len(owner)] = told[0]["total"]
    return result


class Student(nnx.Module):
    """The encoder with a linear map per question; only the encoder is kept."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.encoder = T5Encoder(CONFIG, rngs=rngs)
        self.questions = nnx.Dict(
            {
                kind: Dense(CONFIG.d_model, count, dtype="float32", rngs=rngs)
                for kind, count in ANSWERS.items()
            }
        )

    def __call__(self, ids_BxL: jax.Array, mask_BxL: jax.Array) -> dict[str, jax.Array]:
        features_BxLxD = self.encoder(ids_BxL, mask_BxL)
        return {kind: question(features_BxLxD) for kind, question in self.questions.items()}


def loss_and_accuracy(
    model: Student, batch: dict[str, jax.Array]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean cross-entropy, summed over the questions, and the share of right answers to each."""
    logits = model(batch["ids"], batch["mask"])
    total, right = jnp.zeros(()), {}
    for kind, logits_BxLxK in logits.items():
        asked_BxL = batch[kind] != UNASKED
        wanted_BxL = jnp.maximum(batch[kind], 0)
        loss_BxL = optax.softmax_cross_entropy_with_integer_labels(logits_BxLxK, wanted_BxL)
        total = total + jnp.sum(loss_BxL * asked_BxL) / jnp.sum(asked_BxL)
        hits_BxL = (jnp.argmax(logits_BxLxK, -1) == wanted_BxL) & asked_BxL
        right[kind] = jnp.sum(hits_BxL) / jnp.sum(asked_BxL)
    return total, right


def train(data: dict[str, np.ndarray], steps: int, batch: int = 64) -> Student:
    graphdef, params = nnx.split(Student(nnx.Rngs(0)))
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, 50, steps, 1e-5)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    @jax.jit
    def step(params: Any, state: Any, rows: dict[str, jax.Array]) -> tuple[Any, Any, Any]:
        def loss_of(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            return loss_and_accuracy(nnx.merge(graphdef, params), rows)

        (loss, _), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    state = optimizer.init(params)
    rng = np.random.default_rng(0)
    began = time.perf_counter()
    for number in range(steps):
        chosen = rng.integers(len(data["ids"]), size=batch)
        rows = {name: values[chosen] for name, values in data.items()}
        params, state, loss = step(params, state, rows)
        if number % 200 == 199:
            took = time.perf_counter() - began
            print(f"step {number + 1}/{steps}  loss {float(loss):.4f}  {took:.0f} s", flush=True)
    return nnx.merge(graphdef, params)


def captions_of(first: int, count: int) -> list[str]:
    """Both captions of scenes."""
    drawn = (shapes.example(DATA_SEED, first + n) for n in range(count))
    return list(itertools.chain.from_iterable((item.long, item.short) for item in drawn))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dst", default="demo/t2i/text_encoder", help="folder of the result")
    parser.add_argument("--steps", type=int, default=1200, help="training steps of 64 captions")
    args = parser.parse_args()
    captions = captions_of(0, 4000)
    with tempfile.TemporaryDirectory() as scratch:
        pieces = Path(scratch, "spiece.model")
        pieces.write_bytes(train_vocabulary(captions))
        tokenizer = Tokenizer(pieces, VOCABULARY)
        model = train(tables(captions, tokenizer), args.steps)
        heldout = tables(captions_of(4000, 500), tokenizer)
        right = loss_and_accuracy(model, jax.tree.map(jnp.asarray, heldout))[1]
        print("right answers:", {kind: round(float(share), 4) for kind, share in right.items()})
        encoder = model.encoder
        encoder.final_norm.scale[...] = GAIN * encoder.final_norm.scale[...]
        params = nnx.to_pure_dict(nnx.state(encoder))
        made_by = {"made_by": "demo/t2i/train_text_encoder.py"}
        save_model_dir(f"{scratch}/t5", CONFIG, params, made_by)
        command = ["tools/convert_torch_ckpt.py", "--export", "--layout", "transformers"]
        command += ["--src", f"{scratch}/t5", "--dst", f"{scratch}/exported"]
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
        Path(args.dst).mkdir(parents=True, exist_ok=True)
        for name in ("exported/config.json", "exported/model.safetensors", pieces.name):
            shutil.copy(Path(scratch, name), args.dst)


if __name__ == "__main__":
    main()
