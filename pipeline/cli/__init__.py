"""The command line, one module per group of commands. What a command needs is imported when it runs."""

from typing import Annotated

import typer

from pipeline.cli import cleaning, clusters, data, demo, deployments, models, probe, runs, serve, train, weights

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="From labelled images to a gated, served classifier.",
    epilog="Exit status: 0 done, 1 it failed, 2 wrong use, 3 it ran but the model was not blessed, or not pushed.",
)
for part in (train, data, weights, probe, runs, cleaning, models, serve, clusters, deployments, demo):
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
    """Runs the command line."""
    app()
