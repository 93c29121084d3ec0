"""From the command line to a command: name -> configuration and function.

A command is imported after its flags are checked, so that a slip of the keyboard is answered before
jax is imported.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from absl import flags

from lit_jax.commands import flags as command_line
from lit_jax.commands import help as help_text
from lit_jax.config import EncodeConfig, TrainConfig, from_mapping
from lit_jax.config.cost import CostConfig
from lit_jax.config.evaluate import EvaluateConfig
from lit_jax.config.generate import GenerateConfig
from lit_jax.config.sample import SampleConfig
from lit_jax.config.self_generate import SelfGenerateConfig
from lit_jax.config.settings import MISSING, Setting, build, settings_of
from lit_jax.runs.compilation import enable_cache

HELP = {"-h", "--help", "-help", "--helpshort", "-helpshort", "--helpfull", "-helpfull"}


def _place(flag: str, about: str) -> Setting:
    return Setting((), flag, (), str, MISSING, "", f"{about}; the same command resumes it")


@dataclass(frozen=True)
class Command:
    """A command: `function` ("module:name") is called with the configuration and, where that is a
    file, with the folder of the flag `place`."""

    about: str
    config: type
    function: str
    place: Setting | None = None

    @property
    def settings(self) -> list[Setting]:
        """The flags, those of the configuration file excluded."""
        own = [self.place] if self.place else settings_of(self.config)
        return [*own, *(SAMPLING if self.config is EvaluateConfig else ()), command_line.CACHE]

    @property
    def keys(self) -> list[Setting]:
        """The keys of the configuration file; none for a command without one."""
        return settings_of(self.config) if self.place else []

    def load(self) -> Callable[..., Any]:
        module, _, name = self.function.partition(":")
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return function


# What `evaluate --model` hands on to `sample`.
SAMPLING = [
    dataclasses.replace(one, default=50_000) if one.flag == "num_samples" else one
    for one in settings_of(SampleConfig, skip=("model", "out"))
]

_FOLDER = "lit_jax.commands"
COMMANDS: dict[str, Command] = {
    "encode": Command(
        "Images to latents of a VAE, with features of captions",
        EncodeConfig,
        f"{_FOLDER}.encode.job:encode",
        _place("out", "folder of the latents"),
    ),
    "self_generate": Command(
        "Training data that a teacher draws",
        SelfGenerateConfig,
        f"{_FOLDER}.self_generate.job:self_generate",
        _place("out", "folder of the examples"),
    ),
    "train": Command(
        "Training, from scratch, from a teacher, or from the last checkpoint",
        TrainConfig,
        f"{_FOLDER}.train.job:train",
        _place("workdir", "folder of the run"),
    ),
    "sample": Command(
        "Images of a model on class labels", SampleConfig, f"{_FOLDER}.sample.job:sample"
    ),
    "evaluate": Command(
        "FID, sFID, Inception Score, precision, recall and KID of samples",
        EvaluateConfig,
        f"{_FOLDER}.evaluate.job:evaluate",
    ),
    "generate": Command("Images from prompts", GenerateConfig, f"{_FOLDER}.generate.job:generate"),
    "cost": Command(
        "Parameters, products and memory of models against resolution",
        CostConfig,
        f"{_FOLDER}.cost.job:cost",
    ),
}


def run(name: str, argv: Sequence[str]) -> None:
    """Run a command with the words of its command line, the program's name first.

    Raises ValueError for anything wrong on the command line, before jax is imported.
    """
    command = COMMANDS[name]
    if HELP & set(argv):
        help_text.show(help_text.of_command(name, command.about, command.settings, command.keys))
        return
    given = command_line.declare(command.settings, config_file=command.place is not None)
    command_line.parse(given, argv)
    config: Any
    arguments: tuple[Any, ...]
    if command.place is not None:
        config = from_mapping(command.config, given.config.to_dict())
        arguments = (config, getattr(given, command.place.flag))
        print(given.config, flush=True)
    else:
        own = settings_of(command.config)
        arguments = (build(command.config, command_line.values(given, own)),)
    if command.config is EvaluateConfig:
        arguments = (*arguments, _drawing(given, arguments[0]))
    enable_cache(given.compilation_cache)
    function = command.load()
    from lit_jax.sharding import join_cluster

    join_cluster()
    function(*arguments)


def _drawing(given: flags.FlagValues, config: EvaluateConfig) -> Callable[[Any], Any] | None:
    """Return the function that draws the samples of `evaluate --model` into a folder; None without
    --model, where flags of sampling are refused."""
    if not config.model:
        for one in SAMPLING:
            if given[one.flag].present:
                raise ValueError(
                    f"--{one.flag} belongs to --model, whose samples are drawn; leave it out"
                )
        return None
    values = command_line.values(given, SAMPLING) | {("model",): config.model, ("out",): "-"}
    sampling = build(SampleConfig, values)
    if sampling.num_samples < max(2, config.is_splits):
        raise ValueError(
            f"--num_samples {sampling.num_samples} cannot fill --is_splits {config.is_splits} of"
            " the Inception Score; draw more, or use fewer splits"
        )
    if sampling.save_latents and not sampling.vae:
        raise ValueError(
            "--save_latents without --vae draws latents only, which have no scores; give the --vae"
        )

    def draw(folder: Any) -> Any:
        return COMMANDS["sample"].load()(dataclasses.replace(sampling, out=str(folder)))

    return draw
