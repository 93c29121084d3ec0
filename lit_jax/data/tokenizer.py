"""Text -> token ids of a T5, by the sentencepiece model that lies in its model folder.

N texts, L tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from lit_jax.models.t5.config import TOKENIZER_FILE
from lit_jax.storage.files import sha256_file

# T5 fixes these ids; its tokens for masked spans follow the pieces, counted from the end.
PAD, END, UNKNOWN = 0, 1, 2
SPANS = 100


class Tokenizer:
    """`tokenizer(texts, max_length)` -> ids int32 [N, L] and mask int32 [N, L], L = max_length.

    A text is stripped of white space at both ends and not cleaned otherwise: no lower case, no
    removal of URLs or markup, as PixArt-Sigma's own sampling script does. It is cut to L - 1
    tokens, ends with </s> and is padded with zeros; the mask is 1 for tokens, </s> included. The
    empty text is </s> alone. The names <pad>, </s>, <unk> and <extra_id_0> ... in a text stand for
    those tokens, as in transformers; an <extra_id_k> that the vocabulary of the network has no
    room for is ordinary text.

    `sha256` is that of the file. Raises ValueError for a file that is no sentencepiece model or
    not one of T5's kind, and for one with more pieces than `vocab_size`.
    """

    def __init__(self, path: str | Path, vocab_size: int) -> None:
        path = Path(path)
        content = path.read_bytes()
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=content)
        except RuntimeError as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(
                f"{path} is no sentencepiece model ({reason}); copy it again"
            ) from error
        if not content:
            raise ValueError(f"{path} is no sentencepiece model (it is empty); copy it again")
        self.sha256 = sha256_file(path)
        count = self._pieces.get_piece_size()
        ids = (self._pieces.pad_id(), self._pieces.eos_id(), self._pieces.unk_id())
        if ids != (PAD, END, UNKNOWN):
            raise ValueError(
                f"{path} has the ids {ids} for padding, end and unknown; T5's are"
                f" {(PAD, END, UNKNOWN)}: take the spiece.model of the encoder"
            )
        if count > vocab_size:
            raise ValueError(
                f"{path} has {count} pieces, the encoder a vocabulary of {vocab_size}; take the"
                " spiece.model of the encoder"
            )
        spans = {f"<extra_id_{k}>": count + SPANS - 1 - k for k in range(SPANS)}
        self._special = {"<pad>": PAD, "</s>": END, "<unk>": UNKNOWN} | {
            name: number for name, number in spans.items() if number < vocab_size
        }
        self._split = re.compile("(" + "|".join(map(re.escape, self._special)) + ")")

    def encode(self, text: str) -> list[int]:
        """Return all ids of one text, without </s> at the end, of any length. Raises ValueError for
        a text that no UTF-8 stands for, as bytes of another encoding become on a command line."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{text[:40]!r} is no Unicode text (character {error.start}); write it in UTF-8"
            ) from None
        ids: list[int] = []
        for part in self._split.split(text.strip()):
            if part in self._special:
                ids.append(self._special[part])
            else:
                ids += self._pieces.encode(part)
        return ids

    def length(self, text: str) -> int:
        """Return tokens of a text with its </s>: above `max_length` it would be cut."""
        return len(self.encode(text)) + 1

    def __call__(self, texts: Sequence[str], max_length: int) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(texts, str):
            raise ValueError(f"texts is {texts[:40]!r}; it must be a list of texts")
        if max_length < 1:
            raise ValueError(f"max_length is {max_length}; it must be at least 1, for </s>")
        ids_NxL = np.full((len(texts), max_length), PAD, np.int32)
        mask_NxL = np.zeros((len(texts), max_length), np.int32)
        for row, text in enumerate(texts):
            ids = [*self.encode(text)[: max_length - 1], END]
            ids_NxL[row, : len(ids)] = ids
            mask_NxL[row, : len(ids)] = 1
        return ids_NxL, mask_NxL


def load_tokenizer(model_dir: str | Path) -> Tokenizer:
    """Return the tokenizer in the model folder of a T5.

    Raises ValueError when the folder has none, or one that is not the encoder's.
    """
    path = Path(model_dir) / TOKENIZER_FILE
    if not path.is_file():
        raise ValueError(
            f"{model_dir} has no {TOKENIZER_FILE}: convert the encoder with --tokenizer FILE, or"
            f" copy its {path.name} there"
        )
    config = json.loads((Path(model_dir) / "config.json").read_text())
    return Tokenizer(path, config["model"]["vocab_size"])
