"""The command from a source to a served classifier: train, which is ingest, init and run in one."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from imagepipe.base.console import quote
from imagepipe.base.names import TaskName
from pipeline.cli.ingested import print_ingested
from pipeline.cli.runs import print_outcome
from pipeline.cli.shared import ERR, OUT, SetOption, report_errors

if TYPE_CHECKING:
    from pipeline.runs.summary import Summary

app = typer.Typer()


@app.command()
def train(
    source: Annotated[str, typer.Argument(help="A folder of class folders, or a manifest, as for ingest.")],
    out: Annotated[str, typer.Option(help="Folder for all of it: dataset/, pipeline.yaml, serving/, runs/, …")],
    task: Annotated[TaskName, typer.Option(help="What is learned, and so how labels are read.")] = "classification",
    overrides: SetOption = None,
) -> None:
    """From labelled images to a served classifier, for a first look: ingest, init and run in one.

    Called again, it adds new images, keeps the configuration, and repeats only what has changed.
    """
    with report_errors():
        from imagepipe.base.filesystem import is_uri
        from imagepipe.ingest.command import ingest
        from pipeline.init import write_config
        from pipeline.run import run

        if is_uri(out):
            raise typer.BadParameter("expected a folder of this machine", param_hint="--out")
        root = Path(out).resolve()
        dataset, config = root / "dataset", root / "pipeline.yaml"
        ERR.print(f"[bold]1. Ingest[/]: {quote(source)}")
        result = ingest(source, str(dataset), task=task)
        OUT.print(escape(str(result)))
        print_ingested(result, str(dataset))
        ERR.print(f"[bold]2. Init[/]: {quote(config)}")
        if config.exists():
            ERR.print("It was there, and is kept.")
        else:
            for note in write_config(dataset, config):
                ERR.print(escape(note))
        ERR.print("[bold]3. Run[/]")
        summary = run(config, overrides=overrides or (), console=ERR)
    status = print_outcome(summary)
    _print_next(config, summary, status)
    raise typer.Exit(status)


def _print_next(config: Path, summary: "Summary", status: int) -> None:
    """Prints to stdout the report's path, and the commands that come next."""
    report = config.parent / "runs" / summary.run_id / "report.html"
    if report.exists():
        OUT.print(quote(f"Its report: {report}"))
    commands = [("Change the configuration, and run it again", ["imagepipe", "run", str(config)])]
    if status == 0 and summary.target == "filesystem":
        commands = [
            ("Ask it", ["imagepipe", "predict", summary.serving_dir, "PHOTO.jpg"]),
            ("Serve it", ["imagepipe", "serve", summary.serving_dir]),
            *commands,
        ]
    for words, command in commands:
        OUT.print(quote(f"{words}: {shlex.join(command)}"))
