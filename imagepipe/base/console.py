"""Text on a terminal: names of strangers' files and labels are printed, and never obeyed.

A name may hold anything: a line's end that forges a second line, the controls of a terminal, Rich's markup, or the
name of an emoji between colons.
"""

import re
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text

# Controls of ASCII and Latin-1, further ends of lines, marks that reverse what follows, and halves of characters, which
# no encoding takes.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def show_controls(text: str, kept: str = "") -> str:
    r"""Returns text for a terminal: with ``\n`` and ``\x1b``, as Python writes them, for what is no visible character.

    Args:
        text: any.
        kept: controls that stay, such as the ends of lines of a text that has several.
    """
    return _CONTROLS.sub(lambda match: match[0] if match[0] in kept else ascii(match[0])[1:-1], text)


def quote(text: object) -> str:
    """Returns text for one line of a console, with nothing in it that a terminal or Rich would obey."""
    return escape(show_controls(str(text)))


class PlainConsole(Console):
    """A console for lines with names in them: nothing is wrapped, highlighted or taken for an emoji."""

    def __init__(self, **options: Any):
        super().__init__(**({"emoji": False, "highlight": False, "soft_wrap": True} | options))

    def render_str(self, text: str, **options: Any) -> Text:
        """Renders a string, also one in a table, as Rich does, but for its controls other than ends of lines."""
        return super().render_str(show_controls(text, "\n\t"), **options)
