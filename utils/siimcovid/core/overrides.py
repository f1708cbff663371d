"""Configurations as trees of frozen dataclasses: single values changed by dotted keys, and carried through JSON.

Unknown keys are refused with the nearest right name, values of a wrong type or out of range by what they must be.
Imports no torch.
"""

import dataclasses
import difflib
import functools
import math
import sys
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
        changes[key.strip()] = value.strip()
    return changes


def override(config: Any, changes: Mapping[str, Any]) -> Any:
    """A copy of a dataclass tree with the values at dotted keys replaced, and checked as by `check`.

    Raises:
        InputError: a key that does not exist (with the nearest that does), a value of a wrong type or out of its range,
            or values that do not fit each other.
    """
    known = list(leaf_keys(config))
    for key, value in changes.items():
        if not isinstance(key, str):
            raise InputError(f"a setting's name must be a text such as {known[0]!r}, not {key!r}")
        config = _replace(config, key.split("."), value, key, known)
    check(config)
    return config


def check(config: Any, prefix: str = "") -> None:
    """Check the type and range of each value of a dataclass tree, then what `check_values` of its branches demands.

    Ranges are the annotations `Annotated[type, range]`; a range is any object with `in` for membership and `str` for
    the message. Raises InputError naming the first value that is wrong; `prefix` stands before the names.
    """
    for name, kind in _kinds(type(config)).items():
        value = getattr(config, name)
        if not dataclasses.is_dataclass(kind):
            _checked(value, kind, prefix + name)
            continue
        if not isinstance(value, kind):
            raise InputError(f"setting {prefix + name!r} must be a {kind.__name__}, not {value!r}")
        check(value, f"{prefix}{name}.")
        if hasattr(value, "check_values"):
            value.check_values(f"{prefix}{name}.")
    if not prefix and hasattr(config, "check_values"):
        config.check_values()


@functools.cache
def _kinds(kind: type) -> dict[str, Any]:
    """The annotations of a dataclass's fields, ranges included."""
    return typing.get_type_hints(kind, include_extras=True)


def _replace(config: Any, path: list[str], value: Any, key: str, known: list[str]) -> Any:
    head, *rest = path
    kinds = _kinds(type(config))
    if head not in kinds:
        near = " or ".join(map(repr, nearest(key, known)))
        raise InputError(f"no setting {key!r}" + (f"; did you mean {near}?" if near else ""))
    if rest:
        child = getattr(config, head)
        if not dataclasses.is_dataclass(child):
            raise InputError(f"no setting {key!r}: {head!r} is a single value")
        return dataclasses.replace(config, **{head: _replace(child, rest, value, key, known)})
    return dataclasses.replace(config, **{head: _checked(value, kinds[head], key)})


def nearest(key: str, known: Sequence[str]) -> list[str]:
    """The known keys that were probably meant, at most three.

    The last part counts first, since it names the value, then the first part, then the whole. A key of one part that
    stands in several groups means any of them. Where no last part is similar, whole keys are compared.
    """
    *groups, last = key.split(".")
    similar = difflib.get_close_matches(last, {name.split(".")[-1] for name in known}, n=1)
    if not similar:
        return difflib.get_close_matches(key, known, n=1)
    candidates = [name for name in known if name.split(".")[-1] == similar[0]]
    if not groups:
        return candidates[:3]

    def likeness(name: str) -> tuple[float, float]:
        return tuple(
            difflib.SequenceMatcher(None, *pair).ratio() for pair in ((groups[0], name.split(".")[0]), (key, name))
        )

    return [max(candidates, key=likeness)]


def _listed(text: str) -> list[str]:
    """The parts of "16, 28", or of the same in brackets."""
    text = text.strip()
    inner = text[1:-1] if text[:1] + text[-1:] in ("[]", "()") else text
    return [part for part in inner.split(",") if part.strip()]


def _checked(value: Any, kind: Any, key: str) -> Any:
    """The value as the annotated type; a text (from the command line) is read as that type.

    Raises InputError, naming `key`, for a value of another type or out of the annotation's range.
    """
    if dataclasses.is_dataclass(kind):
        raise InputError(f"setting {key!r} is a group; set one of its values, for example {key}.{_first_leaf(kind)}")
    wrong = InputError(f"setting {key!r} must be {_type_name(kind)}, not {_shown(value)}")
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        plain, *ranges = typing.get_args(kind)
        try:
            number = _checked(value, plain, key)
        except InputError:
            raise wrong from None
        if not all(number in allowed for allowed in ranges):
            raise wrong
        return number
    if origin is Literal:
        if value not in typing.get_args(kind):
            raise wrong
        return value
    if origin is tuple:
        parts = _listed(value) if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            raise wrong
        return tuple(_checked(part, typing.get_args(kind)[0], key) for part in parts)
    if kind is bool:
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if isinstance(value, bool):
            return value
        raise wrong
    if kind is str:
        if not isinstance(value, str):
            raise wrong
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise wrong
    try:
        number = kind(value)
        whole = float(value)
    except (ValueError, OverflowError):
        raise wrong from None
    if not math.isfinite(whole) or (kind is int and number != whole):
        raise wrong
    return number


def _shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"a number of more than {sys.get_int_max_str_digits():,} digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Annotated:
        plain, *ranges = typing.get_args(kind)
        return ", ".join([_type_name(plain), *map(str, ranges)])
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        return f"a list, each {_type_name(typing.get_args(kind)[0])}"
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
    """The inverse of `to_dict`; an unknown, missing, mistyped or unfitting value raises InputError."""
    config = _built(kind, values, "")
    check(config)
    return config


def _built(kind: type, values: Mapping[str, Any], prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise InputError(f"a {kind.__name__} must be an object of settings, not {_shown(values)}")
    kinds, built = _kinds(kind), {}
    for name, value in values.items():
        if name not in kinds:
            raise InputError(f"no setting {name!r} in a {kind.__name__}")
        child, key = kinds[name], prefix + name
        nested = dataclasses.is_dataclass(child)
        built[name] = _built(child, value, f"{key}.") if nested else _checked(value, child, key)
    try:
        return kind(**built)
    except TypeError as error:
        raise InputError(f"a {kind.__name__} is incomplete: {error}") from None
