"""Results of benchmarks: printed, recorded in ``benchmarks/results/NAME.json``, and shown on a page of the docs.

A result file holds one record per processor: ratios hold on the machine on which they were measured. A record names the
code that it measured by a hash of its syntax trees, so that the page can tell which figures are older than the code.
"""

import argparse
import ast
import datetime
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks" / "results"


class Claim(NamedTuple):
    """One line of the page.

    Attributes:
        what: what was compared with what.
        result: the figures.
        goal: the figure to reach, if there is one.
        is_met: whether it was reached; None without a goal.
    """

    what: str
    result: str
    goal: str = ""
    is_met: bool | None = None


def at_least(what: str, value: float, goal: float, detail: str = "") -> Claim:
    """Returns the claim that a ratio is at least its goal."""
    return Claim(what, f"{value:.2f}{detail}", f"at least {goal:g}", value >= goal)


def at_most(what: str, value: float, goal: float, detail: str = "") -> Claim:
    """Returns the claim that a figure is at most its goal."""
    return Claim(what, f"{value:,.2f}{detail}", f"at most {goal:g}", value <= goal)


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a benchmark's parser, with the options that all have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of a table")
    parser.add_argument("--record", action="store_true", help="write the result to benchmarks/results/ too")
    return parser


def report(
    arguments: argparse.Namespace,
    name: str,
    measures: Sequence[str],
    figures: dict[str, Any],
    header: list[str],
    rows: list[list[str]],
    claims: list[Claim],
) -> None:
    """Prints a result, and records it if ``--record`` was given.

    Args:
        arguments: of ``make_parser``.
        name: of the benchmark.
        measures: files and folders of the code that was measured, relative to the repository.
        figures: for programs.
        header: of the table.
        rows: of the table; the first column is text.
        claims: what follows from it.
    """
    if arguments.json:
        print(json.dumps({"benchmark": name} | figures))
    else:
        for line in _table_lines(header, rows):
            print(line)
        for claim in claims:
            print(f"{claim.what}: {claim.result}{f' (goal: {claim.goal})' if claim.goal else ''}")
    if arguments.record:
        record = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "commit": _commit(),
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)),
            "command": " ".join(["python", "-m", f"benchmarks.{name}", *(a for a in sys.argv[1:] if a != "--record")]),
            "measures": list(measures),
            "code": hash_code(measures),
            "claims": [claim._asdict() for claim in claims],
            "table": {"header": header, "rows": rows},
            "figures": figures,
        }
        records = [other for other in read(name) if other["processor"] != record["processor"]]
        text = json.dumps({"records": [*records, record]}, indent=1, ensure_ascii=False)
        (FOLDER / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")


def _table_lines(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        first, *others = (
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join([first, *others])


def read(name: str) -> list[dict[str, Any]]:
    """Returns a benchmark's records; none if it has not been recorded."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["records"] if path.is_file() else []


def processor() -> str:
    """Returns the processor's name, which 16-bit arithmetic it shows, and what oneDNN was told to make do with.

    By that variable (https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html) TensorFlow and
    OpenVINO compute as on an older processor, such as one with VNNI and without AMX: `AVX512_CORE_VNNI`.
    """
    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()]
    values = {name.strip(): value.strip() for name, _, value in reversed(lines)}
    flags = set(values.get("flags", "").split())
    shown = [title for flag, title in (("avx512_bf16", "AVX512-BF16"), ("amx_bf16", "AMX")) if flag in flags]
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    limited = f"; ONEDNN_MAX_CPU_ISA={limit}" if limit else ""
    return f"{values.get('model name', 'unknown')} ({', '.join(shown) or 'no bfloat16'}{limited})"


def hash_code(measures: Sequence[str]) -> str:
    """Returns a hash of the Python code in files and folders: words in docstrings and comments don't count."""
    digest = hashlib.sha256()
    for measured in measures:
        path = ROOT / measured
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(ast.dump(_strip_docstrings(ast.parse(file.read_text(encoding="utf-8")))).encode())
    return digest.hexdigest()[:16]


def _strip_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [
                part
                for part in node.body
                if not (
                    isinstance(part, ast.Expr)
                    and isinstance(part.value, ast.Constant)
                    and isinstance(part.value.value, str)
                )
            ]
    return tree


def _commit() -> str:
    """Returns the commit that is checked out, with a plus if files differ from it."""
    commit, dirty = (
        subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603, S607
        for arguments in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    )
    return f"{commit}{'+' if dirty else ''}"


def render_tables() -> str:
    """Returns all recorded results as Markdown, a section per benchmark."""
    parts = []
    for path in sorted(FOLDER.glob("*.json")):
        records = read(path.stem)
        script = ROOT / "benchmarks" / f"{path.stem}.py"
        title = (
            ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) if script.is_file() else None
        ) or _OTHER
        parts += [f"## {path.stem}", title.partition("\n\n    python")[0].strip()]
        if script.is_file():
            parts.append(f"    python -m benchmarks.{path.stem}")
        for record in records:
            parts += [_heading(record), _claims_table(record["claims"])]
    return "\n\n".join(parts) + "\n"


_OTHER = "Measured by tests and by hand."


def _heading(record: dict[str, Any]) -> str:
    is_current = record.get("code") == hash_code(record["measures"]) if record.get("code") else False
    where = f"**{record['processor']}**, {record['cores']} cores, {record['date']}, commit {record['commit']}"
    return where if is_current else f"{where}, *older than the code*"


def _claims_table(claims: list[dict[str, Any]]) -> str:
    lines = ["| what | result | goal |", "| --- | --- | --- |"]
    for claim in claims:
        missed = " **missed**" if claim["is_met"] is False else ""
        lines.append(f"| {claim['what']} | {claim['result']}{missed} | {claim['goal']} |".replace("\n", " "))
    return "\n".join(lines)
