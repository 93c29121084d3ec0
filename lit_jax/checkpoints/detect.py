"""The architecture of a checkpoint, from its keys and shapes, its companions and the user."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lit_jax.checkpoints.layouts import layout_of
from lit_jax.checkpoints.pairing import StateDict
from lit_jax.config import from_mapping, typed_fields, unknown_name
from lit_jax.keymap.rows import Layout
from lit_jax.keymap.shapes import Detector, Shapes
from lit_jax.models.attention import is_softmax
from lit_jax.models.family import network_fields
from lit_jax.models.registry import NetworkConfig, config_class, family_of, members, rows, sizes


def detect_config(
    state: StateDict,
    name: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    stored: Mapping[str, Any] | None = None,
    hub: Mapping[str, Any] | None = None,
    layout: Layout | None = None,
) -> NetworkConfig:
    """Return the configuration of a state dict.

    `name` is a named size or a member of a family, `overrides` are fields of the configuration;
    both are checked against the shapes. `stored` is the architecture that a file of ours carries,
    `hub` the config.json of a Hugging Face folder. `overrides` overrule the former and not the
    latter, which is a file to be edited. Raises ValueError that lists every contradiction and
    exactly the fields that are missing.
    """
    layout = layout or layout_of(list(state))
    detector = family_of(layout.config).detect
    shapes = Shapes(layout, {key: tuple(value.shape) for key, value in state.items()}, state)
    beside = _beside(layout, detector, hub or {}, stored or {})
    asked = _asked(layout, name, overrides or {}, beside)
    told = beside.fields | asked
    _check_required(shapes, detector)
    told = detector.settle(shapes, told)
    found = detector.read(shapes, told)
    _check_differences(told, found, asked, beside, name)
    fields = told | found
    if "num_heads" in detector.asks and "num_heads" not in fields:
        fields |= _official_heads(fields)
    if missing := [field for field in detector.asks if field not in fields]:
        raise ValueError(_missing_message(missing, detector, shapes, fields["family"]))
    return from_mapping(layout.config, fields, "model")


@dataclasses.dataclass(frozen=True)
class Beside:
    """Description beside the tensors: `fields` of the architecture, typed, those of our metadata
    before those of config.json; `hub` are the ones that config.json itself says; `assumed` those
    that neither says, filled in."""

    fields: dict[str, Any]
    hub: dict[str, Any]
    assumed: set[str]


def _beside(
    layout: Layout, detector: Detector, hub: Mapping[str, Any], stored: Mapping[str, Any]
) -> Beside:
    """Return both companions; ValueError where they contradict each other."""
    filled = _typed(layout, detector.from_hub(hub)) if hub else {}
    default = {field for field, entry in detector.assumed.items() if hub.get(entry) is None}
    said = {field: value for field, value in filled.items() if field not in default}
    own = _typed(layout, stored)
    differences = [
        f"{field}: config.json says {value!r}, the metadata of the weights {own[field]!r}"
        for field, value in said.items()
        if field in own and not _agree(own[field], value)
    ]
    if differences:
        raise ValueError(
            "config.json and the weights beside it are of different models:\n  "
            + "\n  ".join(differences)
        )
    return Beside(filled | own, said, (filled.keys() & default) - own.keys())


def _asked(
    layout: Layout, name: str | None, overrides: Mapping[str, Any], beside: Beside
) -> dict[str, Any]:
    """Return what the user says: the fields of a name, and single ones that overrule it."""
    fields = network_fields(layout.config)
    aliases = family_of(layout.config).aliases
    given = {aliases.get(k, k) if k not in fields else k: v for k, v in overrides.items()}
    named: dict[str, Any] = {}
    if name is not None:
        if name not in rows():
            raise unknown_name("model", name, rows())
        row = rows()[name]
        _check_kind(layout, name, row["family"])
        # The family is checked; within it the keys tell the mixer and a stored null caption.
        named = {"family": row["family"]}
        if name in sizes():
            named = {k: v for k, v in row.items() if k not in ("mixer", "model_max_length")}
            named |= {"mlp_ratio": 4.0} if "mlp_ratio" in fields else {}
        if row.get("mixer") == "window":  # of which the keys tell nothing
            named["mixer"] = "window"
        _check_named(name, named, beside)
    if named.get("family") == "LiT" and "LiT" not in family_of(layout.config).members:
        named["family"] = layout.config.family  # a text-to-image LiT is a PixArt
    return _typed(layout, named | given)


def _typed(layout: Layout, said: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of the architecture in their types; ValueError for an unknown one and another
    type."""
    fields = network_fields(layout.config)
    for key in said:
        if key not in fields:
            raise unknown_name("architecture field", key, fields)
    # Of a group only the keys that were given are said; the others are not its defaults.
    return {
        field: {key: getattr(value, key) for key in said[field]}
        if isinstance(said[field], Mapping) and dataclasses.is_dataclass(value)
        else value
        for field, value in typed_fields(layout.config, said, "model").items()
    }


def _check_named(name: str, named: Mapping[str, Any], beside: Beside) -> None:
    """Refuse a name that contradicts the description beside the checkpoint; `overrides` may
    overrule our own metadata."""
    differences = [
        f"{field}: {value!r} in {name}, {beside.fields[field]!r} beside the checkpoint"
        for field, value in named.items()
        if field in beside.fields
        and field not in beside.assumed
        and not _agree(beside.fields[field], value)
    ]
    if differences:
        raise ValueError(f"the checkpoint is not --model {name}:\n  " + "\n  ".join(differences))


def _check_kind(layout: Layout, name: str, family: str) -> None:
    """Refuse a name of another kind of network. LiT names a linear DiT and a linear PixArt."""
    if issubclass(layout.config, config_class(family)):
        return
    if family == "LiT" and layout.name == "lit":
        return
    kinds = [known for known, family in members().items() if family.config is layout.config]
    raise ValueError(
        f"the checkpoint is not --model {name}: its keys are those of {' or '.join(kinds)}"
        f" (layout {layout.name!r})"
    )


def _check_required(shapes: Shapes, detector: Detector) -> None:
    problems = []
    for target, rank in detector.required.items():
        shape = shapes.of(target)
        if shape is None:
            problems.append(f"key {shapes.key(target)!r} is missing")
            continue
        try:
            shapes.ranked(target, shape, rank)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("cannot read the architecture:\n  " + "\n  ".join(problems))


def _check_differences(
    told: Mapping[str, Any],
    found: Mapping[str, Any],
    asked: Mapping[str, Any],
    beside: Beside,
    name: str | None,
) -> None:
    """Compare the fields that shapes decide with the given ones, and those of the user with
    config.json."""
    users, files = [], []
    for field, value in told.items():
        if field in found and not _agree(value, found[field]):
            if field in asked:
                line = f"{field}: asked for {value!r}, the checkpoint has {found[field]!r}"
                users.append(line)
            else:
                source = "config.json says" if field in beside.hub else "its metadata say"
                files.append(f"{field}: {source} {value!r}, the checkpoint has {found[field]!r}")
        elif field in asked and field in beside.hub and not _agree(asked[field], beside.hub[field]):
            users.append(
                f"{field}: asked for {asked[field]!r}, config.json beside the checkpoint says"
                f" {beside.hub[field]!r}; edit that file if it is wrong"
            )
    if users:
        wanted = f"--model {name}" if name else "what was asked for"
        raise ValueError(f"the checkpoint is not {wanted}:\n  " + "\n  ".join(users + files))
    if files:
        raise ValueError("the checkpoint is not what is said beside it:\n  " + "\n  ".join(files))


def _official_heads(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the softmax heads of the named size with this family, depth and width, if there is
    one."""
    if not is_softmax(fields.get("mixer", "")):
        return {}
    same = ("family", "depth", "hidden_size")
    heads = {
        row["num_heads"]
        for row in sizes().values()
        if is_softmax(row.get("mixer", "")) and all(row[f] == fields.get(f) for f in same)
    }
    return {"num_heads": heads.pop()} if len(heads) == 1 else {}


def _agree(said: Any, value: Any) -> bool:
    """Return whether what was said describes the value, key by key for a group."""
    if isinstance(said, Mapping):
        return all(getattr(value, key, None) == part for key, part in said.items())
    return bool(_square(said) == _square(value))


def _square(value: Any) -> Any:
    """Return (16, 16) and 16 are one input size; lists and tuples are the same."""
    if isinstance(value, (tuple, list)):
        return value[0] if len(value) == 2 and value[0] == value[1] else tuple(value)
    return value


def _missing_message(missing: list[str], detector: Detector, shapes: Shapes, family: str) -> str:
    told = "; ".join(f"{field} ({detector.asks[field][0](shapes)})" for field in missing)
    flags = " ".join(detector.asks[field][1] for field in missing)
    return f"the checkpoint does not tell {told}. Pass --model {family} --set {flags}"
