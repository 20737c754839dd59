"""Command that removes what old runs have left: clean."""

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from imagepipe.base.console import quote
from imagepipe.base.progress import print_note
from pipeline.cli.shared import ERR, FAILED, OUT, JsonOption, print_json, report_errors

if TYPE_CHECKING:
    from pipeline.clean import Cleaning

_NAMES = {
    "training": "state of a training that did not end",
    "partial": "left by a process that was killed",
    "version": "version",
}

app = typer.Typer()


@app.command()
def clean(
    workdir: Annotated[Path, typer.Argument(help="The folder with the runs.")] = Path(),
    keep: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of runs, and of versions of the model, to keep; by default run.keep of the newest run, or 10.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove artifacts and versions of old runs, and what killed ones left; never what is live or in use."""
    with report_errors():
        from pipeline.clean import clean, format_size
        from pipeline.logs import hide_output

        with hide_output():
            cleaning = clean(workdir, keep, dry_run)
    if as_json:
        print_json(cleaning.to_json())
    else:
        for line in describe_cleaning(cleaning):
            OUT.print(quote(line))
        size = sum(cleaning.sizes.values()) if dry_run else cleaning.freed
        OUT.print(f"{'would free' if dry_run else 'freed'} {format_size(size)}")
    for note in cleaning.plan.problems:
        print_note(note)
    for path, reason in cleaning.failures.items():
        ERR.print(f"[red]{quote(path)} can't be removed: {quote(reason)}[/]")
    if cleaning.stopped:
        ERR.print(f"[red]{escape(cleaning.stopped)}[/]")
    if cleaning.failures or cleaning.stopped:
        raise typer.Exit(FAILED)


def describe_cleaning(cleaning: "Cleaning") -> list[str]:
    """Returns a line per run and folder that is removed, and one per older run and folder that stays."""
    from pipeline.clean import format_size

    lines, artifacts, temporary = [], defaultdict(list), []
    for removal, size in cleaning.sizes.items():
        match removal.kind:
            case "artifact":
                artifacts[removal.run].append(size)
            case "temporary":
                temporary.append(size)
            case kind:
                path = removal.path
                root = cleaning.workdir.root
                name = path.relative_to(root) if path.is_relative_to(root) else path
                lines.append(f"{_NAMES[kind]}: {name}, {format_size(size)}")
    runs = [
        f"run {run}: {len(sizes)} artifact{'' if len(sizes) == 1 else 's'}, {format_size(sum(sizes))}"
        for run, sizes in artifacts.items()
    ]
    if temporary:
        lines.append(f"temporary folders: {len(temporary)}, {format_size(sum(temporary))}")
    stay = [f"stays: {name}: {reason}" for name, reason in cleaning.plan.kept.items()]
    keep = cleaning.plan.keep
    newest = f"The {keep} newest runs and versions stay." if keep > 1 else "The newest run and version stay."
    return [newest, *stay, *runs, *lines]
