"""`python -m lit_jax.data NAME DATA_DIR` prepares a data set; a prepared one is left as it is."""

from __future__ import annotations

import argparse
import sys

from lit_jax.data import registry


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lit_jax.data", description=__doc__)
    parser.add_argument("name", help=f"one of: {', '.join(sorted(registry.BUILDERS))}")
    parser.add_argument("data_dir", help="folder that holds the prepared data sets")
    parsed = parser.parse_args(arguments)
    try:
        builder = registry.builder(parsed.name, parsed.data_dir)
        builder.download_and_prepare()
    except ValueError as error:
        sys.exit(f"error: {error}")
    info = builder.info
    for split, split_info in sorted(info.splits.items()):
        print(f"{info.full_name} {split}: {split_info.num_examples} images")
    print(f"in {info.data_dir}")


if __name__ == "__main__":
    main()
