"""Commands for Kubeflow Pipelines and Vertex AI."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from imagepipe.base.console import quote
from imagepipe.base.progress import print_note
from pipeline.cli.shared import (
    ERR,
    FAILED,
    OUT,
    ConfigArgument,
    JsonOption,
    SetOption,
    print_json,
    report_errors,
)

if TYPE_CHECKING:
    from pipeline.kubeflow_config import KubeflowConfig

POLL_SECONDS = 5.0  # between two questions about the state of a run

Cluster = Literal["kubeflow", "vertex"]
ClusterOption = Annotated[Cluster, typer.Option(help="What runs it: open-source Kubeflow Pipelines, or Vertex AI.")]

MonitorOption = Annotated[
    bool,
    typer.Option(
        "--monitor",
        help="The pipeline that compares what the live model is asked with what it was trained on, instead of the one "
        "that trains; see the section monitoring of the configuration.",
    ),
]

app = typer.Typer()


@app.command("compile")
def compile_config(
    config: ConfigArgument = Path("pipeline.yaml"),
    target: ClusterOption = "kubeflow",
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write, .yaml.")] = Path("compiled.yaml"),
    monitor: MonitorOption = False,
    overrides: SetOption = None,
) -> None:
    """Compile a pipeline for Kubeflow Pipelines or Vertex AI."""
    with report_errors():
        from imagepipe.base.errors import ConfigError
        from pipeline.config_file import read_config
        from pipeline.kubeflow.compilation_check import check_and_compile
        from pipeline.kubeflow.submit import counts_at_submission

        settings = read_config(config, overrides or ())
        if out.exists() and out.samefile(config):
            raise ConfigError(f"--out {out}: that is the configuration; give the compiled pipeline another name")
        out.write_text(check_and_compile(settings, target, monitor), encoding="utf-8")
    _warn_of_mutable_image(settings.kubeflow)
    command = ["imagepipe", "submit", str(out), "--config", str(config), "--target", target]
    for override in overrides or ():
        if counts_at_submission(override, target):
            command += ["--set", override]
    OUT.print(quote(f"Wrote {out}. Next: {shlex.join(command)}"))


@app.command()
def submit(
    file: Annotated[
        Path, typer.Argument(metavar="[FILE]", help="The configuration, or a file that `imagepipe compile` wrote.")
    ] = Path("pipeline.yaml"),
    config: Annotated[
        Path | None,
        typer.Option(
            help="The configuration file, for its section kubeflow, if FILE is compiled; by default pipeline.yaml, if "
            "there is one."
        ),
    ] = None,
    target: ClusterOption = "kubeflow",
    monitor: MonitorOption = False,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Kubeflow's address; by default kubeflow.host, or the cluster that this runs in."
        ),
    ] = None,
    experiment: Annotated[
        str | None, typer.Option(help="Kubeflow's experiment; by default kubeflow.experiment.")
    ] = None,
    create_experiment: Annotated[
        bool, typer.Option("--create-experiment", help="Create the experiment if it doesn't exist.")
    ] = False,
    run_name: Annotated[
        str | None, typer.Option(help="The run's name; by default the pipeline's name and the time.")
    ] = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="NAME=VALUE", help="A parameter of the run, such as epochs=3."),
    ] = None,
    every: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Run repeatedly: 30m, 6h, 1d. Replaces the recurring run of the same name."),
    ] = None,
    cron: Annotated[
        str | None, typer.Option(help="Run repeatedly, by minute, hour, day, month and weekday in UTC: '0 2 * * *'.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Show the progress until the end; exit status 1 if the run fails.")
    ] = False,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a pipeline on Kubeflow Pipelines or Vertex AI."""
    if wait and (every or cron):
        raise typer.BadParameter("there is no end to wait for with --every or --cron", param_hint="--wait")
    if target == "vertex" and (host or experiment or create_experiment):
        raise typer.BadParameter("--host and --experiment are options for Kubeflow", param_hint="--target")
    options = {"kubeflow.host": host, "kubeflow.experiment": experiment}
    sets = (*(overrides or ()), *(f"{key}={json.dumps(value)}" for key, value in options.items() if value))
    with report_errors():
        from pipeline.kubeflow import progress
        from pipeline.kubeflow.package import parse_parameters
        from pipeline.kubeflow.submission import Submission, parse_schedule
        from pipeline.kubeflow.submit import prepare_package
        from pipeline.kubeflow.submit import submit as submit_package

        schedule = parse_schedule(every, cron)
        package, settings = prepare_package(file, config, target, sets, monitor)
        if any(executor.get("container", {}).get("image") == settings.image for executor in package.executors):
            _warn_of_mutable_image(settings)
        submission = Submission(parse_parameters(package, parameters or ()), run_name, schedule, create_experiment)
        submitted = submit_package(package, settings, target, submission)
        (ERR if as_json else OUT).print(quote(submitted))
        ended = None
        if wait and submitted.poll:
            ERR.print("waiting for its end; the run continues if you stop waiting (Ctrl-C) …")
            ended = progress.follow_run(submitted.poll, print_note, POLL_SECONDS)
    if as_json:
        run = {name: getattr(submitted, name) for name in ("id", "name", "url", "replaced")}
        progress_at_end = dataclasses.asdict(ended) if ended else {"state": None}
        print_json({"pipeline": package.name, "version": package.version} | run | progress_at_end)
    if ended and ended.state != "succeeded":
        ERR.print(f"[red]imagepipe:[/] the run {escape(str(ended))}\nIts logs: {quote(submitted.logs)}")
        raise typer.Exit(FAILED)


def _warn_of_mutable_image(settings: "KubeflowConfig") -> None:
    if settings.cache and settings.has_mutable_image:
        print_note(
            f"kubeflow.image: {settings.image} may be another image after the next build, and the cluster's cache "
            "would return results of the old one. Give each build a tag of its own, name the image by its digest "
            "(@sha256:…), or set kubeflow.cache to false"
        )
