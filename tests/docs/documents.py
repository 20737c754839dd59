"""The documents, taken apart: blocks, commands, links."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *PAGES, *sorted((ROOT / "kubeflow").glob("*.md"))]

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SHELL_WORD = re.compile(r"'[^']*'|\"(?:\\.|[^\"\\])*\"|[^'\"\n]|\n")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        place: the document and the line, for names of tests.
        language: the word after the fence; '' if there is none.
        text: the content.
    """

    place: str
    language: str
    text: str


def list_blocks(language: str) -> list[Block]:
    """Returns all fenced blocks of a language, of all documents."""
    blocks = []
    for document in DOCUMENTS:
        text = document.read_text()
        for match in _BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            if match[1] == language:
                blocks.append(Block(f"{document.relative_to(ROOT)}:{line}", match[1], match[2]))
    return blocks


def list_commands() -> list[tuple[str, str]]:
    """Returns all shell commands with their places: of blocks, and of inline code that starts with ``imagepipe``."""
    commands = []
    for block in list_blocks("sh"):
        script = re.sub(r"\$\([^()]*\)", "OUTPUT", block.text).replace("\\\n", " ")
        commands += [(block.place, command) for command in _split_lines(script)]
    for document in DOCUMENTS:
        prose = _BLOCK.sub("", document.read_text())
        for match in re.finditer(r"`((?:imagepipe|make|python -m) [^`]+)`", prose):
            if "…" not in match[1]:
                commands.append((str(document.relative_to(ROOT)), match[1]))
    return commands


def _split_lines(text: str) -> list[str]:
    """Splits a script at line ends outside of quotes, and at && and |."""
    words, command, commands = _SHELL_WORD.findall(text), "", []
    for word in [*words, "\n"]:
        if word == "\n":
            commands.append(command.strip())
            command = ""
        else:
            command += word
    parts = [part.strip() for line in commands for part in re.split(r"\s(?:&&|\|)\s", line)]
    return [part.removesuffix("&").strip() for part in parts if part and not part.startswith("#")]


def strip_blocks(text: str) -> str:
    """Returns a document without its fenced blocks."""
    return _BLOCK.sub("", text)
