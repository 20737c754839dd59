"""Commands for deployed models, wherever they are: deploy, status, rollback."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.cli.shared import (
    OUT,
    DeployConfigOption,
    JsonOption,
    SetOption,
    TargetOption,
    fill_in_deployment,
    load_deploy_target,
    print_note,
    print_table,
    read_deployment,
    read_settings,
    report_errors,
)

if TYPE_CHECKING:
    from imagepipe.deploy.config import DeployConfig
    from pipeline.config import Config

_MAX_WIDTH = 10_000

app = typer.Typer()


@app.command()
def deploy(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A SavedModel, or a folder of versions, by path or URI; or a run (runs/RUN)."
        ),
    ],
    config: DeployConfigOption = Path("pipeline.yaml"),
    target: TargetOption = None,
    traffic: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100,
            help="Percent of the requests that it gets, if the target can split them; the rest stays where it is.",
        ),
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Deploy a model, whether or not it passed the gate; or change a deployed model's share of the requests."""
    with report_errors():
        from imagepipe.deploy import storage

        settings = read_settings(config, target, overrides)
        deployment = fill_in_deployment(settings, config)
        folder = storage.find_model(model)
        version = load_deploy_target(deployment).deploy(folder, deployment, traffic or deployment.traffic)
    if as_json:
        OUT.print_json(data=dataclasses.asdict(version))
    else:
        OUT.print(f"Version {version.version} gets {version.traffic}% of the requests: {escape(version.uri)}")
    _report_live(settings, deployment)


@app.command()
def status(
    config: DeployConfigOption = Path("pipeline.yaml"),
    target: TargetOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
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
    full_width = Console(width=_MAX_WIDTH).measure(table).maximum  # a path or a reason that is cut is useless
    print_table(table, full_width)


@app.command()
def rollback(
    config: DeployConfigOption = Path("pipeline.yaml"),
    target: TargetOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take the newest version out of service: the previous one gets its requests."""
    with report_errors():
        settings = read_settings(config, target, overrides)
        deployment = fill_in_deployment(settings, config)
        version = load_deploy_target(deployment).rollback(deployment)
    if as_json:
        OUT.print_json(data=dataclasses.asdict(version))
    else:
        OUT.print(f"Version {version.version} is live: {escape(version.uri)}")
    _report_live(settings, deployment)


def _report_live(settings: "Config", deployment: "DeployConfig") -> None:
    """Moves MLflow's alias for what is live, where runs are recorded, and prints that."""
    from pipeline.runs.tracking import report_live

    if note := report_live(settings.tracking, deployment, settings.name):
        print_note(note)
