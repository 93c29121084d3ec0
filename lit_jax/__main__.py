"""The command line: `python -m lit_jax COMMAND --flags`."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from absl import logging

from lit_jax.commands import help as help_text
from lit_jax.commands.entry import COMMANDS, HELP, run
from lit_jax.config import unknown_name


def main() -> None:
    name, argv = " ".join(sys.argv[1:2]), sys.argv[1:]
    if not name:
        sys.exit(help_text.overview(COMMANDS))
    if name in HELP:
        help_text.show(help_text.overview(COMMANDS))
        return
    logging.set_verbosity(logging.ERROR)  # orbax reports every file it touches
    try:
        if name not in COMMANDS:
            raise unknown_name("command", name, COMMANDS)
        run(name, argv)
    except (ValueError, OSError, FloatingPointError) as error:
        if not is_message(error):
            raise
        sys.exit("error: " + " ".join(str(error).split()))


def is_message(error: Exception) -> bool:
    """Return True for an error with a message for the user. A ValueError out of a library is a bug:
    it keeps its traceback."""
    file = traceback.extract_tb(error.__traceback__)[-1].filename
    return not isinstance(error, ValueError) or Path(file).is_relative_to(Path(__file__).parent)


if __name__ == "__main__":
    main()
