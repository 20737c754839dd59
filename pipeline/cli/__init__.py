"""The command line. Imports nothing heavy before a command needs it."""

import typer

from pipeline.cli import clusters, data, demo, deployments, models, runs

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help="From labelled images to a gated, served classifier.",
    epilog="Exit status: 0 done, 1 it failed, 2 wrong use, 3 it ran but the model was not blessed.",
)
for part in (data, runs, models, clusters, deployments, demo):
    app.add_typer(part.app)


def main() -> None:
    """Runs the command line."""
    app()
