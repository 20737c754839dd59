"""mkdocs' hooks: the page of benchmarks is made from ``benchmarks/results/``, and options stay in one piece.

That page is not committed, unlike the configuration reference: it says which figures are older than the code, which
often changes.
"""

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # mkdocs loads this file by its path

from benchmarks.results import render_tables

_PLACE = "<!-- results -->"

# Browsers break lines after a hyphen, also between the two of --option. Long names may break: a phone is narrow.
_INLINE_CODE = re.compile(r"<code>([^<\n]*)</code>")
_HYPHENATED = re.compile(r"(?<!\S)-{0,2}[A-Za-z_]+(?:-[A-Za-z_]+)*(?:=\S+)?(?!\S)")
_MAX_UNBROKEN = 24


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fills in the results."""
    if page.file.src_uri != "benchmarks.md":
        return markdown
    if _PLACE not in markdown:
        raise ValueError(f"docs/benchmarks.md has no {_PLACE}")
    return markdown.replace(_PLACE, render_tables())


def on_page_content(html: str, **_: Any) -> str:
    """Marks options and hyphenated names in inline code, at whose hyphens no line shall break."""
    return _INLINE_CODE.sub(lambda code: f"<code>{_HYPHENATED.sub(_mark_unbroken, code[1])}</code>", html)


def _mark_unbroken(name: re.Match[str]) -> str:
    is_short = "-" in name[0] and len(name[0]) <= _MAX_UNBROKEN
    return f'<span class="unbroken">{name[0]}</span>' if is_short else name[0]
