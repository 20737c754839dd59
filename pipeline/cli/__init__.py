"""The command line, one module per group of commands. What a command needs is imported when it runs."""

import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipeline.cli import (
    cleaning,
    clusters,
    data,
    demo,
    deployments,
    label,
    models,
    monitor,
    probe,
    runs,
    serve,
    train,
    weights,
)
from pipeline.cli.shared import FAILED
from pipeline.logs import discard_output, open_closed_streams


def _refuse_uri(value: Any) -> Any:
    """Refuses a URI where a path was expected: as a path it is a folder of this machine by the name of ``s3:``."""
    for path in value if isinstance(value, list | tuple) else [value]:
        if isinstance(path, Path) and re.match(r"[a-z][a-z0-9+.-]+:/.", str(path)):
            raise typer.BadParameter(f"expected a path of this machine, and not {str(path).replace(':/', '://', 1)}")
    return value


class _Commands(TyperGroup):
    """The commands, none of which takes a URI for a path."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for command in self.commands.values():
            for parameter in command.params:
                parameter.callback = parameter.callback or (lambda context, parameter, value: _refuse_uri(value))


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="From labelled images to a gated, served classifier.",
    epilog="Exit status: 0 done, 1 it failed, 2 wrong use, 3 it ran but the model was not blessed, or not pushed, or "
    "the traffic has moved (monitor).",
)
for part in (train, data, label, weights, probe, runs, cleaning, models, serve, monitor, clusters, deployments, demo):
    app.add_typer(part.app)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        from imagepipe.base.names import read_version

        print(f"imagepipe {read_version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Takes the options that stand before a command."""


def main() -> None:
    """Runs the command line. If its results can't be printed, the status is 1, with a line that says why."""
    open_closed_streams()
    try:
        try:
            app()
        except SystemExit:
            sys.stdout.flush()
            raise
    except OSError as error:
        discard_output()
        ended = error.__context__
        is_reported = isinstance(ended, SystemExit) and ended.code
        if not (is_reported or isinstance(error, BrokenPipeError)):  # of a pipe, the reader wants no more
            from imagepipe.base.errors import describe_error

            with suppress(OSError):
                print(f"imagepipe: {describe_error(error)}", file=sys.stderr)
        sys.exit(FAILED)
