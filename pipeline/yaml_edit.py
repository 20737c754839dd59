"""Changes values of a YAML file where they stand: comments, order and everything else stay as they are."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from imagepipe.base.errors import ConfigError


def replace_values(text: str, values: Mapping[tuple[str, str], Any]) -> str:
    """Returns a YAML text with other values.

    Args:
        text: sections with keys, none of them twice.
        values: by section and key. What isn't there yet is added, at the start of its section or at the end.

    Raises:
        ConfigError: if a section is written in braces and lacks the key, or there are comments between the lines of a
            value.
        yaml.YAMLError: if the text is no YAML, or would be none.
    """
    for (section, key), value in values.items():
        text = _replace_value(text, section, key, value)
    return text


def _replace_value(text: str, section: str, key: str, value: Any) -> str:
    new = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
    pair = _find(_compose(text), section)
    if pair is None:
        return f"{text.rstrip()}\n\n{section}:\n  {key}: {new}\n"
    section_key, content = pair
    if (place := _find(content, key)) is not None:
        name, old = place
        is_block = isinstance(old, yaml.CollectionNode) and not old.flow_style
        start = text.index(":", name.end_mark.index) + 1 if is_block else old.start_mark.index
        written = text[start : _find_end(old).index].rstrip()
        if is_block and "#" in written:
            raise ConfigError(f"{section}.{key} has comments between its lines. Write it as {key}: {new}")
        space = " " if is_block or not written else ""
        return text[:start] + space + new + text[start + len(written) :]
    if getattr(content, "flow_style", False):
        raise ConfigError(f"{section}: is written in braces. Write each key on a line of its own, or add {key}: {new}")
    is_empty = not isinstance(content, yaml.MappingNode)
    indent = " " * (2 if is_empty else content.value[0][0].start_mark.column)
    lines = text.splitlines(keepends=True)
    lines.insert(section_key.start_mark.line + 1, f"{indent}{key}: {new}\n")
    return "".join(lines)


def remove_value(text: str, path: Sequence[str]) -> str:
    """Returns a YAML text without a key and its value; the same text if it isn't there.

    Args:
        text: mappings in one another, without a key that is there twice.
        path: the keys from the outermost one to the one that goes, with what is behind it on its lines. Above one that
            goes, others have to stay.

    Raises:
        yaml.YAMLError: if the text is no YAML.
    """
    node = _compose(text)
    for section in path[:-1]:
        _, node = _find(node, section) or (None, None)
    pair = _find(node, path[-1])
    if pair is None or not isinstance(node, yaml.MappingNode):
        return text
    key, value = pair
    start, end = key.start_mark, _find_end(value)
    if not node.flow_style:
        lines = text.splitlines(keepends=True)
        return "".join(lines[: start.line] + lines[end.line + 1 :])
    pairs = [other for other, _ in node.value]
    place = pairs.index(key)
    if place + 1 < len(pairs):
        return text[: start.index] + text[pairs[place + 1].start_mark.index :]
    previous = _find_end(node.value[place - 1][1]).index if place else start.index
    return text[:previous] + text[end.index :]


def _find_end(node: yaml.Node) -> yaml.Mark:
    """Returns where a value ends; YAML's mark is behind the comments that follow it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _find_end(last[1] if isinstance(last, tuple) else last)
    return node.end_mark


def _compose(text: str) -> yaml.Node | None:
    return yaml.compose(text, yaml.SafeLoader)


def _find(node: yaml.Node | None, key: str) -> tuple[yaml.Node, yaml.Node] | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    return next(((name, value) for name, value in pairs if name.value == key), None)
