"""mkdocs' hooks: the pages of benchmarks and of scale are made from ``benchmarks/results/``, and options stay whole.

What is made is not committed, unlike the configuration reference: it says which figures are older than the code, which
often changes.
"""

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # mkdocs loads this file by its path

from benchmarks import results, scale

_PLACES = {
    "benchmarks.md": ("<!-- results -->", results.render_tables),
    "scale.md": ("<!-- scale -->", scale.render),
}

# Browsers break lines after a hyphen, also between the two of --option. Long names may break: a phone is narrow.
_INLINE_CODE = re.compile(r"<code>([^<\n]*)</code>")
_HYPHENATED = re.compile(r"(?<!\S)-{0,2}[A-Za-z_]+(?:-[A-Za-z_]+)*(?:=\S+)?(?!\S)")
_MAX_UNBROKEN = 24


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fills in the results."""
    place, render = _PLACES.get(page.file.src_uri, ("", str))
    if place not in markdown:
        raise ValueError(f"docs/{page.file.src_uri} has no {place}")
    return markdown.replace(place, render()) if place else markdown


def on_page_content(html: str, **_: Any) -> str:
    """Marks options and hyphenated names in inline code, at whose hyphens no line shall break."""
    return _INLINE_CODE.sub(lambda code: f"<code>{_HYPHENATED.sub(_mark_unbroken, code[1])}</code>", html)


def _mark_unbroken(name: re.Match[str]) -> str:
    is_short = "-" in name[0] and len(name[0]) <= _MAX_UNBROKEN
    return f'<span class="unbroken">{name[0]}</span>' if is_short else name[0]
