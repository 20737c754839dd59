"""Reads YAML in which what the configuration takes as text stays as it is written.

YAML 1.1 takes a plain ``007`` for the number 7, ``no`` for false, ``12:30`` for 750 and ``0x1F`` for 31, and a rule
about the class 010 would be one about the class 8. Where a model of the configuration has text, it is taken as text.
Where it has a number, so are ``yes``, ``on`` and ``true``, and pydantic refuses them: it would take true for 1.
"""

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, TypeGuard, Union, cast, get_args, get_origin

import yaml
from pydantic import BaseModel

_TAG = "tag:yaml.org,2002:"
_BOOL, _NULL, _TEXT = f"{_TAG}bool", f"{_TAG}null", f"{_TAG}str"
_MAX_DEPTH, _MAX_NODES = 100, 1_000_000  # a configuration has five levels; one with weights of classes, many values
_TOO_DEEP = f"its values lie more than {_MAX_DEPTH} deep in one another, or one holds itself (&name, *name)"
_MAX_INTEGER = 2**63 - 1  # of ML Metadata, TFX's store
_TAKEN_FOR_OTHERS = {f"{_TAG}{kind}" for kind in ("bool", "float", "int", "null", "timestamp", "value")}


class _Loader(yaml.SafeLoader):
    """Says of a value in what line it can't be what its form says, such as the date 2024-02-30."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int) and abs(value) > _MAX_INTEGER:
                raise ValueError(f"whole numbers go up to {_MAX_INTEGER}")
        except (ValueError, AttributeError, KeyError) as error:  # the latter two of !!timestamp x and !!bool x
            kind = node.tag.removeprefix(_TAG)
            problem = f"{str(node.value)[:50]!r} can't be read as {kind}: {error}; put text in quotes"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from error
        return value


def load_yaml(text: str, kind: Any) -> Any:
    """Returns the value of a YAML document, in which plain text is text wherever ``kind`` has text.

    Args:
        text: of the document.
        kind: annotation of the value: a pydantic model, a type, or what typing makes of them.

    Raises:
        yaml.YAMLError: it is not YAML, has a key twice or a value that can't be, or holds tags other than YAML's own.
    """
    with _open(text) as loader:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_nodes(node)
        _keep_text(loader, node, kind)
        return loader.construct_document(node)


def load_argument(text: str, kind: Any) -> Any:
    """Returns the value of a YAML document that is an argument of a command.

    As of ``load_yaml``, but plain text of a key that takes text is the argument unchanged: ``/photos #2`` is no path
    with a comment, and ``~`` is a folder. ``null`` is none, if there may be none.

    Raises:
        yaml.YAMLError: as of ``load_yaml``.
    """
    value = load_yaml(text, kind)
    written, options = text.strip(), list(_list_options(kind))
    if not written or str not in options or (type(None) in options and written in ("null", "Null", "NULL")):
        return value
    with _open(text) as loader:
        node = loader.get_single_node()
    if node is None:
        return written
    if not isinstance(node, yaml.ScalarNode) or node.style is not None or isinstance(value, int | float):
        return value
    return written if written.startswith(node.value) else value  # else it has a tag, or several lines


def load_documents(text: str) -> Iterator[Any]:
    """Yields the values of the documents of a YAML file, read as YAML 1.1 has them.

    Raises:
        yaml.YAMLError: as of ``load_yaml``.
    """
    with _open(text) as loader:
        while loader.check_node():
            node = cast(yaml.Node, loader.get_node())
            _check_nodes(node)
            yield loader.construct_document(node)


@contextmanager
def _open(text: str) -> Iterator[_Loader]:
    loader = _Loader(text)
    try:
        yield loader
    except RecursionError:
        raise yaml.YAMLError(_TOO_DEEP) from None
    finally:
        loader.dispose()


def _check_nodes(root: yaml.Node) -> None:
    """Refuses a key that is there twice, and a value that holds itself, or by its aliases far more than is written."""
    count, pending = 0, [(root, 1)]
    while pending:
        node, depth = pending.pop()
        count += 1
        if depth > _MAX_DEPTH:
            raise yaml.YAMLError(_TOO_DEEP)
        if count > _MAX_NODES:
            raise yaml.YAMLError(f"with its aliases (*name) it has more than {_MAX_NODES:,} values")
        if isinstance(node, yaml.MappingNode):
            _refuse_duplicates(node)
            pending += ((part, depth + 1) for pair in node.value for part in pair)
        elif isinstance(node, yaml.SequenceNode):
            pending += ((item, depth + 1) for item in node.value)


def _refuse_duplicates(mapping: yaml.MappingNode) -> None:
    """Refuses a key that is there twice: PyYAML takes the last, and the first would have no effect."""
    lines: dict[str, int] = {}
    for key, _ in mapping.value:
        line = key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode) and key.tag != f"{_TAG}merge":
            if key.value in lines:
                raise yaml.YAMLError(
                    f"the key '{key.value}' is there twice, in line {lines[key.value]} and in line {line}; keep one"
                )
            lines[key.value] = line


def find_kind(kind: Any, key: str) -> Any:
    """Returns the annotation of a key of a model or a dict, None if it has no such key."""
    for option in _list_options(kind):
        if is_model(option) and key in option.model_fields:
            return option.model_fields[key].annotation
        if get_origin(option) is dict:
            return get_args(option)[1]
    return None


def is_model(kind: Any) -> TypeGuard[type[BaseModel]]:
    """Returns whether an annotation is that of a section which always is there."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def has_parts(kind: Any) -> bool:
    """Returns whether an annotation is that of a section, a list or keys of one's own, which are always there."""
    return is_model(kind) or get_origin(kind) in (dict, list, tuple)


def _keep_text(loader: yaml.SafeLoader, node: yaml.Node, kind: Any) -> None:
    options = list(_list_options(kind))
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)
        key_kinds = [get_args(option)[0] for option in options if get_origin(option) is dict]
        for key, value in node.value:
            if key_kinds:
                _keep_text(loader, key, key_kinds[0])
            _keep_text(loader, value, find_kind(kind, str(key.value)))
    elif isinstance(node, yaml.SequenceNode):
        for option in options:
            if get_origin(option) in (tuple, list):
                for item in node.value:
                    _keep_text(loader, item, get_args(option)[0])
    elif (node.tag == _BOOL and _is_number(options)) or (
        node.tag in _TAKEN_FOR_OTHERS and _is_text(options, is_null=node.tag == _NULL, text=node.value)
    ):
        node.tag = _TEXT


def _is_number(options: list[Any]) -> bool:
    """Returns whether one of these types is a number, and none is a truth value or text."""
    return any(option in (int, float) for option in options) and not any(option in (bool, str) for option in options)


def _is_text(options: list[Any], *, is_null: bool, text: str) -> bool:
    """Returns whether a scalar that YAML takes for something else is text to one of these types, and to no other."""
    if is_null and (not text or type(None) in options):  # there is none, or there may be none
        return False
    literals = [value for option in options if get_origin(option) is Literal for value in get_args(option)]
    if any(option in (int, float, bool) for option in options) or any(not isinstance(one, str) for one in literals):
        return False
    return str in options or text in literals


def _list_options(kind: Any) -> Iterator[Any]:
    """Yields the types that an annotation allows."""
    origin = get_origin(kind)
    if origin is Annotated:
        yield from _list_options(get_args(kind)[0])
    elif origin in (Union, types.UnionType):
        for option in get_args(kind):
            yield from _list_options(option)
    else:
        yield kind
