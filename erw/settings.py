"""Strict, frozen dataclass settings: to and from JSON, and as ``--section.field VALUE`` on a command line."""

import argparse
import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar, get_args, get_origin

from erw.errors import UserError

T = TypeVar("T")
_TRUE, _FALSE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}


def setting(default: Any = dataclasses.MISSING, help: str = "", parse: Callable[[str], Any] | None = None) -> Any:
    """A dataclass field with a line of help and, where the type alone does not say how, a parser from text."""
    return dataclasses.field(default=default, metadata={"help": help, "parse": parse})


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field, Any, Any]]:
    """(dotted name, field, type, value) of every plain value in a nested dataclass."""
    hints = typing.get_type_hints(type(config))
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{f.name}.")
        elif f.metadata.get("fixed") is not True:
            yield prefix + f.name, f, hints[f.name], value


def _parse_bool(text: str) -> bool:
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise ValueError("true or false")


def _parser_of(hint: Any) -> tuple[Callable[[str], Any], str]:
    """A function from text to a value of the type ``hint``, and the type's name for messages."""
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        by_text = {str(c): c for c in choices}
        return (lambda text: by_text[text]), "one of " + ", ".join(by_text)
    if get_origin(hint) in (typing.Union, types.UnionType):
        inner, name = _parser_of(next(a for a in get_args(hint) if a is not type(None)))
        return (lambda text: None if text.lower() == "none" else inner(text)), f"{name} or none"
    if get_origin(hint) is tuple:
        inner, name = _parser_of(get_args(hint)[0])
        return (lambda text: tuple(inner(part) for part in text.split(",") if part)), f"{name}s with commas between"
    if hint is bool:
        return _parse_bool, "true or false"
    if hint is int:
        return (lambda text: int(text.replace("_", ""))), "a whole number"
    if hint is float:
        return float, "a number"
    return hint, "text"


def _convert(name: str, hint: Any, f: dataclasses.Field, text: str) -> Any:
    parse, expected = _parser_of(hint)
    if f.metadata.get("parse"):
        return f.metadata["parse"](text)
    try:
        return parse(text)
    except (ValueError, KeyError):
        raise UserError(f"--{name} takes {expected}, not '{text}'") from None


def _replace(config: T, changes: dict[str, Any]) -> T:
    """``config`` with dotted names replaced, all at once, so that checks see the final values only."""
    direct = {name: value for name, value in changes.items() if "." not in name}
    for head in {name.split(".", 1)[0] for name in changes if "." in name}:
        nested = {name.split(".", 1)[1]: v for name, v in changes.items() if name.startswith(head + ".")}
        direct[head] = _replace(getattr(config, head), nested)
    return dataclasses.replace(config, **direct)


def override(config: T, arguments: list[str]) -> T:
    """``config`` with ``--section.field VALUE`` (or ``--section.field=VALUE``) pairs applied.

    Raises `UserError` for an unknown name (with the nearest ones), a missing value or one of the wrong type.
    """
    known = {name: (f, hint) for name, f, hint, _ in leaves(config)}
    changes: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise UserError(f"'{word}' stands where an option was expected: options are --section.field VALUE")
        name, equals, text = word[2:].partition("=")
        name = name.replace("-", "_")
        if name not in known:
            raise UserError(f"there is no option --{name}; {nearest(name, known, '--')}")
        if not equals:
            if not rest:
                raise UserError(f"--{name} needs a value")
            text = rest.pop(0)
        changes[name] = _convert(name, known[name][1], known[name][0], text)
    return _replace(config, changes)


def nearest(name: str, known: Any, mark: str = "") -> str:
    """'did you mean ...' for a mistyped ``name``, or where to look when nothing is near."""
    last = {k.rsplit(".", 1)[-1]: k for k in known}
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    near += [last[n] for n in difflib.get_close_matches(name.rsplit(".", 1)[-1], list(last), n=2, cutoff=0.7)]
    if near:
        return "did you mean " + " or ".join(mark + n for n in dict.fromkeys(near)) + "?"
    return "--help lists them all" if mark else "known: " + ", ".join(sorted(known))


def help_text(config: Any) -> str:
    """Every option of ``config`` with its default and meaning, a line each."""
    rows = []
    for name, f, hint, value in leaves(config):
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
        rows.append((f"--{name}", str(shown), f.metadata.get("help") or _parser_of(hint)[1]))
    width = [min(34, max(len(row[i]) for row in rows)) for i in (0, 1)]
    return "\n".join(f"  {a:<{width[0]}}  {b:<{width[1]}}  {c}" for a, b, c in rows)


def to_dict(config: Any) -> dict[str, Any]:
    """Plain JSON types."""
    return dataclasses.asdict(config)


def from_dict(kind: type[T], data: dict[str, Any], hooks: dict[type, Callable] | None = None) -> T:
    """The inverse of `to_dict`. Raises `UserError` for a missing, unknown or wrongly typed key."""
    import dacite  # here, so that what only builds settings (the GPU benchmark on a bare machine) does without

    try:
        return dacite.from_dict(kind, data, dacite.Config(strict=True, cast=[tuple], type_hooks=hooks or {}))
    except (dacite.DaciteError, TypeError) as error:
        raise UserError(f"settings: {error}") from None


def formatter(prog: str) -> argparse.HelpFormatter:
    """argparse's formatter with room for long option names."""
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=36, width=118)
