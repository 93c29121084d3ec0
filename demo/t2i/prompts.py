"""Evaluation prompts about coloured shapes, as GenEval writes its own (Ghosh et al. 2023).

One JSON object per line: `tag`, `include` (what must be seen: class, count, and where the prompt
says so colour and position), `exclude` (for counting: one more than asked for) and `prompt`.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from demo.t2i.shapes import COLOURS, NUMBERS, RELATIONS, SHAPES, plural
from lit_jax.storage import files

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
PER_TAG = 24
"""Prompts per tag; `single_object` and `counting` have no more than 12 different ones."""

Prompt = dict[str, Any]


def prompts(per_tag: int = PER_TAG, seed: int = 0) -> list[Prompt]:
    """At most `per_tag` prompts of each tag, drawn without repetition, in the order of TAGS."""
    rng = np.random.default_rng(seed)
    chosen = []
    for everything in _everything().values():
        count = min(per_tag, len(everything))
        chosen += [everything[n] for n in sorted(rng.permutation(len(everything))[:count])]
    return chosen


def write_prompts(path: Path, chosen: Sequence[Mapping[str, Any]]) -> None:
    """One JSON object per line."""
    files.write_text(path, "".join(json.dumps(prompt) + "\n" for prompt in chosen))


def _everything() -> dict[str, list[Prompt]]:
    """All prompts of each tag."""
    pairs = list(itertools.permutations(SHAPES, 2))
    colours = list(itertools.permutations(COLOURS, 2))
    return {
        "single_object": [
            _prompt("single_object", f"{frame} {shape}", [_thing(shape)])
            for frame in ("a photo of a", "a", "one")
            for shape in SHAPES
        ],
        "two_object": [
            _prompt("two_object", f"{frame}a {a} and a {b}", [_thing(a), _thing(b)])
            for frame in ("a photo of ", "")
            for a, b in pairs
        ],
        "counting": [_counting(shape, count) for count in (2, 3, 4) for shape in SHAPES],
        "colors": [
            _prompt("colors", f"a photo of a {colour} {shape}", [_thing(shape, color=colour)])
            for colour in COLOURS
            for shape in SHAPES
        ],
        "position": [
            _prompt(
                "position",
                f"a photo of a {b} {where} a {a}",
                [_thing(a), _thing(b, position=[where, 0])],
            )
            for where in RELATIONS
            for a, b in pairs
        ],
        "color_attr": [
            _prompt(
                "color_attr",
                f"a photo of a {p} {a} and a {q} {b}",
                [_thing(a, color=p), _thing(b, color=q)],
            )
            for (a, b), (p, q) in itertools.product(pairs, colours)
        ],
    }


def _prompt(tag: str, text: str, include: list[dict[str, Any]]) -> Prompt:
    return {"tag": tag, "include": include, "prompt": text}


def _thing(shape: str, **more: Any) -> dict[str, Any]:
    return {"class": shape, "count": 1} | more


def _counting(shape: str, count: int) -> Prompt:
    text = f"a photo of {NUMBERS[count - 1]} {plural(shape)}"
    return {
        "tag": "counting",
        "include": [{"class": shape, "count": count}],
        "exclude": [{"class": shape, "count": count + 1}],
        "prompt": text,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="the .jsonl file to write")
    parser.add_argument("--per_tag", type=int, default=PER_TAG, help="prompts of each tag at most")
    args = parser.parse_args()
    chosen = prompts(args.per_tag)
    write_prompts(args.path, chosen)
    print(f"{len(chosen)} prompts in {args.path}")


if __name__ == "__main__":
    main()
