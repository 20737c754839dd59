"""Changes values of a YAML file where they stand: comments, order and everything else stay as they are."""

from collections.abc import Mapping
from typing import Any

import yaml

from imagepipe.base.errors import ConfigError


def replace_values(text: str, values: Mapping[tuple[str, str], Any]) -> str:
    """Returns a YAML text with other values.

    Args:
        text: sections with keys.
        values: by section and key. What isn't there yet is added, at the start of its section or at the end.

    Raises:
        ConfigError: if the text is no YAML, or a section is written in braces and lacks the key.
    """
    for (section, key), value in values.items():
        text = _replace_value(text, section, key, value)
    return text


def _replace_value(text: str, section: str, key: str, value: Any) -> str:
    new = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
    try:
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"it is not YAML: {error}") from error
    pair = _find(root, section)
    if pair is None:
        return f"{text.rstrip()}\n\n{section}:\n  {key}: {new}\n"
    section_key, content = pair
    if (place := _find(content, key)) is not None:
        _, old = place
        return text[: old.start_mark.index] + new + text[old.end_mark.index :]
    if getattr(content, "flow_style", False):
        raise ConfigError(f"{section}: is written in braces. Write each key on a line of its own, or add {key}: {new}")
    is_empty = not isinstance(content, yaml.MappingNode)
    indent = " " * (2 if is_empty else content.value[0][0].start_mark.column)
    lines = text.splitlines(keepends=True)
    lines.insert(section_key.start_mark.line + 1, f"{indent}{key}: {new}\n")
    return "".join(lines)


def _find(node: yaml.Node | None, key: str) -> tuple[yaml.Node, yaml.Node] | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    return next(((name, value) for name, value in pairs if name.value == key), None)
