"""Reads ``pipeline.yaml``: everything that is wrong in it is reported at once, by key, with what would be right."""

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from imagepipe.base import filesystem
from imagepipe.base.errors import ConfigError
from pipeline.config import Config
from pipeline.yaml_text import find_kind, has_parts, load_argument, load_yaml
from trainer.config import IMAGENET, NO_WEIGHTS

_PATHS = (
    ("data", "path"),
    ("data", "features", "label_map"),
    ("data", "curated_schema"),
    ("deploy", "path"),
    ("deploy", "sign"),
    ("monitoring", "capture"),
    ("monitoring", "feedback"),
    ("trainer", "weights"),
)
"""Keys with a path, by section."""

_KINDS = "literal[", "dict["  # what pydantic puts into an error's place where a value may be of several kinds


def read_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a configuration file.

    Args:
        path: the YAML file.
        overrides: ``key.path=value`` each, the value in YAML, such as ``trainer.epochs=2``; they replace what the file
            says. A relative path in them is relative to the current folder, as in every other argument of a command.
            Text, such as the name of a class, stays as it is written, also ``007`` and ``no``.

    Returns:
        The configuration, its paths absolute.

    Raises:
        ConfigError: if the file or an override can't be read, or has a value that can't be.
        TypeError: if ``overrides`` is a single one.
    """
    if isinstance(overrides, str):  # of characters
        raise TypeError("expected several overrides; put a single one into a list")
    try:
        values = load_yaml(path.read_text(encoding="utf-8"), Config)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. 'imagepipe init DATASET' writes a configuration.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values such as 'name: flowers'")
    return parse_config(values, overrides, str(path), path.parent)


def parse_config(values: dict[str, Any], overrides: Sequence[str], source: str, root: Path) -> Config:
    """Makes a configuration of a file's values, see ``read_config``.

    Args:
        values: the values by key; changed in place.
        overrides: see ``read_config``.
        source: where the values come from, for messages.
        root: the folder that relative paths are taken from.

    Raises:
        ConfigError: if an override can't be read, or a value can't be.
    """
    for override in overrides:
        _apply_override(values, override)
    _drop_empty_sections(values, Config)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        faults = [_describe_error(fault) for fault in error.errors() if not _is_of_another_kind(fault)]
        raise ConfigError("\n".join([f"{source}:", *(f"  {fault}" for fault in faults)])) from error
    return make_paths_absolute(config, root)


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: expected KEY=VALUE, such as trainer.batch_size=64")
    try:
        value = load_argument(text, reduce(find_kind, key.split("."), Config))
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not YAML: {error}") from error
    value = _make_override_absolute(key, value)
    *sections, last = key.split(".")
    for section in sections:
        inner = {} if values.get(section) is None else values[section]  # null is a default
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override}: {section} has no keys of its own")
        values[section] = values = dict(inner)  # other keys may have the same one, by an alias
    values[last] = value


def _drop_empty_sections(values: dict[str, Any], kind: Any) -> None:
    """Removes the sections and lists of which nothing is left, as all is comments: YAML has null there."""
    for key, value in list(values.items()):
        section = find_kind(kind, key)
        if value is None and has_parts(section):
            del values[key]
        elif isinstance(value, dict):
            values[key] = inner = dict(value)  # other keys may have the same one, by an alias
            _drop_empty_sections(inner, section)


def _is_of_another_kind(error: Any) -> bool:
    """Returns whether the value may be a word or a mapping, and the error is of the one that it isn't."""
    kinds = [str(part) for part in error["loc"] if str(part).startswith(_KINDS)]
    if not kinds:
        return False
    word, mapping = _KINDS
    if isinstance(error["input"], dict):
        return kinds[0].startswith(word)
    return kinds[0].startswith(mapping) and error["type"] == "dict_type"


def _describe_error(error: Any) -> str:
    """Returns one of pydantic's errors as text: the key, what is wrong and the value."""
    key = ".".join(str(part) for part in error["loc"] if part != "[key]" and not str(part).startswith(_KINDS))
    if error["type"] == "extra_forbidden":
        section: Any = Config
        for part in error["loc"][:-1]:
            if part in section.model_fields:  # or it is a key of a dict of sections
                annotation = section.model_fields[part].annotation
                inner = [kind for kind in (annotation, *get_args(annotation)) if hasattr(kind, "model_fields")]
                section = inner[0] if inner else section
        return f"{key}: unknown key; known are {', '.join(section.model_fields)}"
    if error["type"] == "missing":
        return f"{key}: has to be given"
    message = error["msg"].removeprefix("Value error, ")
    if not key:  # it is about several keys, and names them
        return message
    return f"{key}: {message}" + ("" if error["type"] == "value_error" else f" (it is {error['input']!r:.200})")


def make_paths_absolute(config: Config, root: Path) -> Config:
    """Returns a configuration whose relative paths are taken from ``root``; URIs only lose a slash at their end."""
    for keys in _PATHS:
        config = _make_absolute_below(config, keys, keys, root)
    return config


def list_paths(config: Config) -> dict[str, str]:
    """Returns the paths and URIs that a configuration gives, by key such as ``data.path``."""
    given: dict[tuple[str, ...], Any] = {keys: reduce(getattr, keys, config) for keys in _PATHS}
    return {".".join(keys): path for keys, path in given.items() if path and not _is_word(keys, path)}


def _make_absolute_below(section: Any, keys: tuple[str, ...], below: tuple[str, ...], root: Path) -> Any:
    """Returns a section with the path at the keys below it made absolute; without keys below, it is the path itself."""
    if not below:
        return section and _make_absolute(keys, section, root)
    value = _make_absolute_below(getattr(section, below[0]), keys, below[1:], root)
    return section.model_copy(update={below[0]: value})


def _make_override_absolute(key: str, value: Any) -> Any:
    """Returns the value of an override, of a key or a whole section, whose relative paths are taken from here."""
    above = tuple(key.split("."))
    for keys in _PATHS:
        if keys[: len(above)] == above:
            value = _make_absolute_in(value, keys, keys[len(above) :], Path.cwd())
    return value


def _make_absolute_in(value: Any, keys: tuple[str, ...], below: tuple[str, ...], root: Path) -> Any:
    """Returns a value of the configuration with the path at the keys below it made absolute, if there is one."""
    if not below:
        return _make_absolute(keys, value, root) if isinstance(value, str) else value
    if not isinstance(value, dict) or below[0] not in value:
        return value
    return value | {below[0]: _make_absolute_in(value[below[0]], keys, below[1:], root)}


def _make_absolute(keys: tuple[str, ...], path: str, root: Path) -> str:
    if _is_word(keys, path):
        return path
    if filesystem.is_uri(path):
        return filesystem.absolute(path)
    try:
        place = root / Path(path).expanduser()
        place.resolve()  # says what is wrong with it
        return filesystem.absolute(str(place))  # a link stays: beside it may lie what belongs to it
    except (RuntimeError, ValueError) as error:  # the home of an unknown user, links in a circle; a NUL
        reason = str(error).rstrip(".").lower()
        raise ConfigError(f"{'.'.join(keys)}: {path!r} can't be a path: {reason}") from error


def _is_word(keys: tuple[str, ...], value: str) -> bool:
    """Returns whether the value of a key that can be a path is none."""
    return keys == ("trainer", "weights") and value in (IMAGENET, NO_WEIGHTS)
