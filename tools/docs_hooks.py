"""mkdocs' hooks: the page of benchmarks is made from ``benchmarks/results/`` when the documentation is built.

Not committed, unlike the configuration reference: it says which figures are older than the code, which often changes.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # mkdocs loads this file by its path

from benchmarks.results import render_tables

_PLACE = "<!-- results -->"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fills in the results."""
    if page.file.src_uri != "benchmarks.md":
        return markdown
    if _PLACE not in markdown:
        raise ValueError(f"docs/benchmarks.md has no {_PLACE}")
    return markdown.replace(_PLACE, render_tables())
