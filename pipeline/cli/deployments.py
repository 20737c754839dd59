"""Commands for what is deployed, wherever that is."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.cli.shared import (
    OUT,
    ConfigOption,
    Json,
    ModelFolder,
    Overrides,
    Target,
    load_deploy_target,
    print_table,
    read_deployment,
    report_errors,
)

_MOST_WIDTH = 10_000

app = typer.Typer()


@app.command()
def deploy(
    model: ModelFolder,
    config: ConfigOption = Path("pipeline.yaml"),
    target: Target = None,
    traffic: Annotated[
        int | None,
        typer.Option(
            min=1, max=100, help="Percent of the requests for it, where the target can; the rest stays where it is."
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Deploy a model, whatever a gate said of it. Again with another --traffic, its share of the requests changes."""
    with report_errors():
        from imagepipe.deploy.versions import find_model

        deployment = read_deployment(config, target, overrides)
        folder = find_model(model)
        version = load_deploy_target(deployment).deploy(str(folder), deployment, traffic or deployment.traffic)
    if as_json:
        OUT.print_json(data=dataclasses.asdict(version))
    else:
        OUT.print(f"Version {version.version} gets {version.traffic}% of the requests: {escape(version.uri)}")


@app.command()
def status(
    config: ConfigOption = Path("pipeline.yaml"),
    target: Target = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Show which versions are deployed, and which of them are live."""
    with report_errors():
        deployment = read_deployment(config, target, overrides)
        versions = load_deploy_target(deployment).status(deployment)
    if as_json:
        OUT.print_json(data=[dataclasses.asdict(version) for version in versions])
        return
    table = Table("version", "requests", "state", "model", box=box.SIMPLE_HEAD)
    for version in versions:
        table.add_row(version.version, f"{version.traffic}%", escape(version.state), escape(version.uri))
    needed = Console(width=_MOST_WIDTH).measure(table).maximum  # a path or a reason that is cut is of no use
    print_table(table, needed)


@app.command()
def rollback(
    config: ConfigOption = Path("pipeline.yaml"),
    target: Target = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Take the newest version out of service: the one before gets its requests."""
    with report_errors():
        deployment = read_deployment(config, target, overrides)
        version = load_deploy_target(deployment).rollback(deployment)
    if as_json:
        OUT.print_json(data=dataclasses.asdict(version))
    else:
        OUT.print(f"Version {version.version} is live: {escape(version.uri)}")
