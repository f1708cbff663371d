"""Configurations as trees of frozen dataclasses: single values changed by dotted keys, and carried through JSON.

Unknown keys are refused with the nearest right name, values of a wrong type by the type's name. Imports no torch.
"""

import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from siimcovid.core.errors import InputError


def read_settings(texts: Sequence[str]) -> dict[str, str]:
    """The changes that `--set KEY=VALUE` texts ask for. Raises InputError for a text without an equals sign."""
    changes = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set takes KEY=VALUE, not {text!r}")
        changes[key] = value
    return changes


def override(config: Any, changes: Mapping[str, Any]) -> Any:
    """A copy of a dataclass tree with the values at dotted keys replaced.

    Raises:
        InputError: a key that does not exist (with the nearest that does), or a value of the wrong type.
    """
    known = list(leaf_keys(config))
    for key, value in changes.items():
        config = _replace(config, key.split("."), value, key, known)
    return config


def _replace(config: Any, path: list[str], value: Any, key: str, known: list[str]) -> Any:
    head, *rest = path
    kinds = typing.get_type_hints(type(config))
    if head not in kinds:
        near = difflib.get_close_matches(key, known, n=1)
        raise InputError(f"no setting {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    if rest:
        child = getattr(config, head)
        if not dataclasses.is_dataclass(child):
            raise InputError(f"no setting {key!r}: {head!r} is a single value")
        return dataclasses.replace(config, **{head: _replace(child, rest, value, key, known)})
    return dataclasses.replace(config, **{head: _checked(value, kinds[head], key)})


def _checked(value: Any, kind: Any, key: str) -> Any:
    """The value as the annotated type; a text (from the command line) is read as that type."""
    if dataclasses.is_dataclass(kind):
        raise InputError(f"setting {key!r} is a group; set one of its values, for example {key}.{_first_leaf(kind)}")
    wrong = InputError(f"setting {key!r} must be {_type_name(kind)}, not {value!r}")
    origin = typing.get_origin(kind)
    if origin is Literal:
        if value not in typing.get_args(kind):
            raise wrong
        return value
    if origin is tuple:
        parts = [p for p in value.split(",") if p] if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            raise wrong
        return tuple(_checked(part, typing.get_args(kind)[0], key) for part in parts)
    if kind is bool:
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if isinstance(value, bool):
            return value
        raise wrong
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise wrong
    if kind is str:
        if not isinstance(value, str):
            raise wrong
        return value
    try:
        number = kind(value)
    except ValueError:
        raise wrong from None
    if kind is int and number != float(value):
        raise wrong
    return number


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        part = typing.get_args(kind)[0]
        return f"a list of {part.__name__}" if isinstance(part, type) else f"a list, each {_type_name(part)}"
    return {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}[kind.__name__]


def _first_leaf(kind: type) -> str:
    return dataclasses.fields(kind)[0].name


def leaf_keys(config: Any, prefix: str = "") -> typing.Iterator[str]:
    """The dotted keys of all single values of a dataclass tree."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            yield from leaf_keys(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name


def to_dict(config: Any) -> dict[str, Any]:
    """The tree as plain JSON values (tuples as lists)."""
    return dataclasses.asdict(
        config, dict_factory=lambda pairs: {k: list(v) if isinstance(v, tuple) else v for k, v in pairs}
    )


def from_dict(kind: type, values: Mapping[str, Any]) -> Any:
    """The inverse of `to_dict`; an unknown, missing or mistyped value raises InputError."""
    if not isinstance(values, Mapping):
        raise InputError(f"a {kind.__name__} must be an object of settings, not {values!r}")
    kinds = typing.get_type_hints(kind)
    built = {}
    for name, value in values.items():
        if name not in kinds:
            raise InputError(f"no setting {name!r} in a {kind.__name__}")
        child = kinds[name]
        built[name] = from_dict(child, value) if dataclasses.is_dataclass(child) else _checked(value, child, name)
    try:
        return kind(**built)
    except TypeError as error:
        raise InputError(f"a {kind.__name__} is incomplete: {error}") from None
