"""Names of strangers on a terminal."""

import io

import pytest
from rich.table import Table

from imagepipe.base.console import PlainConsole, quote, show_controls

HOSTILE = "a\nrose 0.9999  b\x1b[2J\x1b]0;pwn\x07\x9b2J\u202egpj\u2028[/x][red]:cat:\udcff.jpg"


def test_a_name_is_one_visible_line():
    shown = show_controls(HOSTILE)
    assert shown == r"a\nrose 0.9999  b\x1b[2J\x1b]0;pwn\x07\x9b2J\u202egpj\u2028[/x][red]:cat:\udcff.jpg"
    assert show_controls("größe 1 mm\tå\n", "\n\t") == "größe 1 mm\tå\n"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_console_prints_a_name_letter_by_letter(is_terminal):
    file = io.StringIO()
    console = PlainConsole(file=file, force_terminal=is_terminal, width=300, no_color=True)
    console.print(f"1{quote(HOSTILE)}")
    table = Table("name", quote(HOSTILE), box=None)
    table.add_row("", f"2{quote(HOSTILE)}")
    console.print(table)
    console.print(HOSTILE.replace("[/x][red]", ""))
    lines = file.getvalue().splitlines()
    assert sum(show_controls(HOSTILE) in line for line in lines) == 3
    assert not any(line in file.getvalue() for line in ("\x1b[2J", "\x1b]0", "\x07", "\x9b", "\u202e"))
