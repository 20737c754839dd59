"""Commands for deployed models, wherever they are: deploy, status, promote, rollback."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from imagepipe.base.console import PlainConsole, quote
from imagepipe.base.progress import print_note
from pipeline.cli.monitor import SinceOption, parse_since, show_pairs
from pipeline.cli.shared import (
    ERR,
    NOT_BLESSED,
    OUT,
    DeployConfigOption,
    JsonOption,
    SetOption,
    TargetOption,
    fill_in_deployment,
    load_deploy_target,
    print_json,
    print_table,
    read_deployment,
    read_settings,
    report_errors,
)

if TYPE_CHECKING:
    from datetime import datetime

    from imagepipe.deploy.config import DeployConfig
    from imagepipe.deploy.deployment import Version
    from pipeline.config import Config

_MAX_WIDTH = 10_000

FeedbackOption = Annotated[str, typer.Option(metavar="FILE", help="True labels, see `imagepipe feedback`.")]

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
            min=0,
            max=100,
            help="Percent of the requests that it gets, if the target can split them; the rest stays where it is. Of a "
            "folder 0 keeps it in shadow, see `imagepipe serve --shadow`.",
        ),
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Deploy a model, whether or not it passed the gate; or change a deployed model's share of the requests."""
    with report_errors():
        from imagepipe.deploy import storage
        from imagepipe.deploy.pushing import add_reference

        settings = read_settings(config, target, overrides)
        deployment = fill_in_deployment(settings, config)
        folder = storage.find_model(model)
        share = deployment.traffic if traffic is None else traffic
        if share == 0 and deployment.target != "filesystem":
            raise typer.BadParameter("--traffic 0, for in shadow, needs target: filesystem")
        with add_reference(folder, _find_run_reference(Path(model))) as complete:
            version = load_deploy_target(deployment).deploy(complete, deployment, share)
    if as_json:
        print_json(dataclasses.asdict(version))
    else:
        OUT.print(f"Version {version.version} gets {version.traffic}% of the requests: {quote(version.uri)}")
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
        print_json([dataclasses.asdict(version) for version in versions])
        return
    table = Table("version", "requests", "state", "model", box=box.SIMPLE_HEAD)
    for version in versions:
        table.add_row(version.version, f"{version.traffic}%", quote(version.state), quote(version.uri))
    full_width = PlainConsole(width=_MAX_WIDTH).measure(table).maximum  # a path or a reason that is cut is useless
    print_table(table, full_width)


@app.command()
def promote(
    if_better: Annotated[
        str,
        typer.Option(
            "--if-better",
            metavar="CAPTURE",
            help="The folder of captured traffic: it has to be better than the live version on the same images there.",
        ),
    ],
    feedback: FeedbackOption,
    since: SinceOption = "30d",
    config: DeployConfigOption = Path("pipeline.yaml"),
    target: TargetOption = None,
    overrides: SetOption = None,
) -> None:
    """Give the newest version, a canary or one in shadow, all requests if it is better; exit status 3 if not."""
    start = parse_since(since)
    with report_errors():
        settings = read_settings(config, target, overrides)
        deployment = fill_in_deployment(settings, config)
        module = load_deploy_target(deployment)
        newest, other = _find_rivals(module.status(deployment), is_tried=True)
        if not _compare_rivals(other, newest, if_better, feedback, settings, start, wanted=newest):
            kept = "stays in shadow" if newest.in_shadow else f"still gets {newest.traffic}% of the requests"
            OUT.print(f"Version {newest.version} {kept}")
            raise typer.Exit(NOT_BLESSED)
        version = module.deploy(newest.uri, deployment, 100)
    OUT.print(f"Version {version.version} gets {version.traffic}% of the requests: {quote(version.uri)}")
    _report_live(settings, deployment)


@app.command()
def rollback(
    if_worse: Annotated[
        str | None,
        typer.Option(
            "--if-worse",
            metavar="CAPTURE",
            help="Only if it is worse than the previous one on the same images of this captured traffic; exit status 3 "
            "if it is not.",
        ),
    ] = None,
    feedback: Annotated[
        str | None, typer.Option(metavar="FILE", help="With --if-worse: true labels, see `imagepipe feedback`.")
    ] = None,
    since: SinceOption = "30d",
    config: DeployConfigOption = Path("pipeline.yaml"),
    target: TargetOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take the newest version out of service: the previous one gets its requests."""
    if bool(if_worse) != bool(feedback):
        raise typer.BadParameter("--if-worse and --feedback go together")
    start = parse_since(since)
    with report_errors():
        settings = read_settings(config, target, overrides)
        deployment = fill_in_deployment(settings, config)
        module = load_deploy_target(deployment)
        if if_worse and feedback:
            newest, other = _find_rivals(module.status(deployment), is_tried=False)
            if not _compare_rivals(other, newest, if_worse, feedback, settings, start, wanted=other):
                ERR.print(f"Version {newest.version} stays")
                raise typer.Exit(NOT_BLESSED)
        version = module.rollback(deployment)
    if as_json:
        print_json(dataclasses.asdict(version))
    else:
        OUT.print(f"Version {version.version} is live: {quote(version.uri)}")
    _report_live(settings, deployment)


def _find_run_reference(model: Path) -> str | None:
    """Returns the file that a version gets as its reference; None if the model is no run, which alone has one."""
    from imagepipe.base.errors import ConfigError, ModelError, describe_error
    from imagepipe.base.names import SUMMARY
    from pipeline.runs.reference import find_run_reference

    if not (model / SUMMARY).is_file():
        return None
    try:
        return str(find_run_reference(model))
    except (ConfigError, ModelError, OSError) as error:  # another one's run may not be written to
        reason = describe_error(error)
        print_note(f"The version comes without what `imagepipe monitor` compares its traffic with: {reason}")
        return None


def _find_rivals(versions: "list[Version]", is_tried: bool) -> "tuple[Version, Version]":
    """Returns the newest version, and of the others the one with the most requests.

    Args:
        versions: those at the target, newest first.
        is_tried: whether the newest one is a canary or in shadow, and another one is live; if not, the newest one that
            gets requests is meant, and the other may be the previous one.
    """
    from imagepipe.base.errors import ModelError
    from imagepipe.deploy.deployment import sort_by_traffic

    newest = next((version for version in versions if version.traffic or (is_tried and version.in_shadow)), None)
    others = [v for v in sort_by_traffic(versions) if v != newest and (v.traffic or not is_tried)]
    if newest is None or not others:
        raise ModelError("there are no two versions to compare: `imagepipe status` lists them, with their requests")
    return newest, others[0]


def _compare_rivals(
    live: "Version",
    newest: "Version",
    capture: str,
    feedback: str,
    settings: "Config",
    since: "datetime",
    wanted: "Version",
) -> bool:
    """Prints how two versions did on the same images, and returns whether the wanted one is better."""
    from imagepipe.monitoring.pairs import compare_versions, find_better

    pairs = compare_versions(capture, (live.version, newest.version), settings.task, feedback, since)
    show_pairs(pairs, ERR)
    return find_better(pairs) == wanted.version


def _report_live(settings: "Config", deployment: "DeployConfig") -> None:
    """Moves MLflow's alias for what is live, where runs are recorded, and prints that."""
    from pipeline.runs.tracking import report_live

    if note := report_live(settings.tracking, deployment, settings.name):
        print_note(note)
