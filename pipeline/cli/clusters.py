"""Commands for Kubeflow Pipelines and Vertex AI."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from pipeline.cli.shared import ERR, FAILED, OUT, ConfigFile, Json, Overrides, print_note, report_errors

SECONDS_TO_LOOK = 5.0  # from one look at a run somewhere else to the next

app = typer.Typer()


@app.command("compile")
def compile_(
    config: ConfigFile = Path("pipeline.yaml"),
    target: Annotated[
        Literal["kubeflow", "vertex"], typer.Option(help="What is to run it: open-source Kubeflow, or Vertex AI.")
    ] = "kubeflow",
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write, .yaml.")] = Path("compiled.yaml"),
    overrides: Overrides = None,
) -> None:
    """Compile the pipeline for Kubeflow Pipelines or Vertex AI."""
    with report_errors():
        from pipeline.config_file import read_config
        from pipeline.logs import hide_output

        settings = read_config(config, tuple(overrides or ()))
        with hide_output():
            from pipeline.kubeflow.compile import compile_pipeline

            text = compile_pipeline(settings, target)
        out.write_text(text)
    there = " --target vertex" if target == "vertex" else ""
    OUT.print(f"Wrote {escape(str(out))}. Next: imagepipe submit {escape(str(out))}{there}")


@app.command()
def submit(
    file: Annotated[
        Path, typer.Argument(metavar="[FILE]", help="The configuration, or what `imagepipe compile` made of it.")
    ] = Path("pipeline.yaml"),
    config: Annotated[
        Path, typer.Option(help="Where FILE is compiled: the configuration file, for its section kubeflow.")
    ] = Path("pipeline.yaml"),
    target: Annotated[
        Literal["kubeflow", "vertex"], typer.Option(help="What is to run it: open-source Kubeflow, or Vertex AI.")
    ] = "kubeflow",
    host: Annotated[
        str | None, typer.Option(metavar="URL", help="Kubeflow's address; by default kubeflow.host, or this cluster's.")
    ] = None,
    experiment: Annotated[str | None, typer.Option(help="Kubeflow's; by default kubeflow.experiment.")] = None,
    create_experiment: Annotated[
        bool, typer.Option("--create-experiment", help="Make the experiment if it doesn't exist.")
    ] = False,
    run_name: Annotated[str | None, typer.Option(help="By default the pipeline's name, and the time.")] = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="NAME=VALUE", help="A parameter of the run, such as epochs=3."),
    ] = None,
    every: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Run again and again: 30m, 6h, 1d. Replaces the last such of the name."),
    ] = None,
    cron: Annotated[
        str | None, typer.Option(help="The same by minute, hour, day, month and weekday, UTC: '0 2 * * *'.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show how it goes; exit status 1 if it fails.")] = False,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Run the pipeline on Kubeflow Pipelines or Vertex AI."""
    if wait and (every or cron):
        raise typer.BadParameter("there is no end to wait for with --every or --cron", param_hint="--wait")
    if target == "vertex" and (host or experiment or create_experiment):
        raise typer.BadParameter("--host and --experiment are of Kubeflow", param_hint="--target")
    given = {"kubeflow.host": host, "kubeflow.experiment": experiment}
    sets = (*(overrides or ()), *(f"{key}={json.dumps(value)}" for key, value in given.items() if value))
    with report_errors():
        from pipeline.kubeflow import progress
        from pipeline.kubeflow.package import parameters as values_of
        from pipeline.kubeflow.submit import Asked, prepare, schedule
        from pipeline.kubeflow.submit import submit as submit_

        when = schedule(every, cron)
        package, settings = prepare(file, config, target, sets)
        asked = Asked(values_of(package, parameters or ()), run_name, when, create_experiment)
        submitted = submit_(package, settings, target, asked)
        (ERR if as_json else OUT).print(escape(str(submitted)))
        ended = None
        if wait and submitted.look:
            ERR.print("waiting for its end; the run goes on also if you stop waiting (Ctrl-C) …")
            ended = progress.follow(submitted.look, print_note, SECONDS_TO_LOOK)
    if as_json:
        told = {name: getattr(submitted, name) for name in ("id", "name", "url", "replaced")}
        how = dataclasses.asdict(ended) if ended else {"state": None}
        OUT.print_json(data={"pipeline": package.name, "version": package.version} | told | how)
    if ended and ended.state != "succeeded":
        ERR.print(f"[red]imagepipe:[/] the run {escape(str(ended))}\nWhat it printed: {escape(submitted.logs)}")
        raise typer.Exit(FAILED)
