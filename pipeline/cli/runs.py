"""Commands for runs on this machine: run, runs, lineage, report, dashboard, track."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from imagepipe.base.console import quote, show_controls
from pipeline.cli.shared import (
    ERR,
    FAILED,
    NOT_BLESSED,
    OUT,
    AllowHostOption,
    AllowOriginOption,
    CertificateOption,
    ConfigArgument,
    HostOption,
    JsonOption,
    KeyOption,
    SetOption,
    TokenFileOption,
    WorkdirOption,
    fill_in_deployment,
    print_json,
    print_table,
    read_access_options,
    read_settings,
    report_errors,
)

if TYPE_CHECKING:
    from pipeline.runs.summary import Summary

app = typer.Typer()


@app.command()
def run(
    config: ConfigArgument = Path("pipeline.yaml"),
    overrides: SetOption = None,
    workdir: WorkdirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the pipeline: validate, train, evaluate, and push the model if it passes the gate."""
    with report_errors():
        from pipeline.run import run as run_pipeline

        summary = run_pipeline(config, overrides=overrides or (), workdir=workdir, console=ERR)
    if as_json:
        print_json(summary.model_dump())
    raise typer.Exit(print_outcome(summary))


def print_outcome(summary: "Summary") -> int:
    """Prints to stderr how a run ended, and returns the exit status."""
    if summary.status == "failed":
        ERR.print(f"[red]{escape(str(summary.error))}[/]\nThe whole log: {quote(summary.log)}")
        ERR.print("Results of the nodes before are kept: the next run continues from there.")
        if summary.push:
            from pipeline.runs.push_outcome import describe_push, describe_traffic

            ERR.print(f"Before it failed, the model was {quote(describe_push(summary))}.")
            ERR.print(f"{summary.target}: {quote(describe_traffic(summary))}")
        return FAILED
    from imagepipe.base.metrics import CHAMPION_METRIC

    if summary.hyperparameters:
        settings = ", ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in summary.hyperparameters.items()
        )
        ERR.print(f"the best of the search: {quote(settings)}")
    metrics = []
    for name, value in summary.metrics.items():
        if name != "example_count":
            interval = summary.intervals.get(name)  # of 95 %
            ends = f" ({interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
            metrics.append(f"{name} {_format_metric(value)}{ends}")
    over = f", intervals over {summary.groups}" if summary.groups and summary.intervals else ""
    ERR.print(f"eval split of {summary.metrics['example_count']:g}{over}: {', '.join(metrics)}")
    served, serving = summary.served, summary.serving
    if served and served.max_difference is not None:
        engine = " by OpenVINO" if served.engine == "openvino" else ""
        ERR.print(f"served{engine} in {served.precision}, within {served.max_difference:.2g} of the trained network")
    if summary.champion_metrics:
        name = CHAMPION_METRIC[summary.task]
        ERR.print(f"champion's {name} on it: {_format_metric(summary.champion_metrics[name])}")
    if summary.champion_note:
        ERR.print(f"[yellow]champion: {quote(summary.champion_note)}[/]")
    if serving and serving.p95_ms is not None:
        ERR.print(
            ("" if serving.problems else "a server answers as the graph does; ")
            + f"an image takes it {serving.median_ms:.0f} ms, 95th percentile {serving.p95_ms:.0f}"
        )
    if summary.unchecked:
        ERR.print(f"[yellow]{quote(summary.unchecked)}[/]")
    return _print_push(summary)


def _print_push(summary: "Summary") -> int:
    """Prints what became of the model, and last what the target says; returns the exit status."""
    from pipeline.runs.push_outcome import (
        describe_push,
        describe_traffic,
        describe_trial,
        is_in_service,
        make_deploy_command,
    )

    problems = summary.serving.problems if summary.serving else ()
    if reasons := [*summary.not_blessed_because, *problems]:
        ERR.print(f"[yellow]Not blessed, not pushed:[/] {quote('; '.join(reasons))}")
    elif not summary.push and not summary.pushed_version:
        ERR.print("[yellow]Blessed, but not pushed:[/] the Pusher left no result")
    elif not summary.pushed_version:
        ERR.print(f"[yellow]Blessed, but {quote(describe_push(summary))}.[/] A run does not undo that. To deploy it:")
        ERR.print(quote(make_deploy_command(summary)))
    else:
        ERR.print(f"[green]Blessed[/] and {quote(describe_push(summary))}: {quote(summary.serving_dir)}")
        if trial := describe_trial(summary):
            ERR.print(f"It is {trial}. To give it all requests:\n{quote(make_deploy_command(summary, 100))}")
    ERR.print(f"{summary.target}: {quote(describe_traffic(summary))}")
    return 0 if is_in_service(summary) else NOT_BLESSED


def _format_metric(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.4f}"


@app.command()
def runs(
    workdir: Annotated[Path, typer.Argument(help="The folder with the runs.")] = Path(),
    as_json: JsonOption = False,
) -> None:
    """List runs: time, metrics, whether blessed, pushed and live."""
    from imagepipe.base.metrics import HEADLINE_METRICS
    from pipeline.runs.summary import UNREADABLE, is_live, read_summaries
    from pipeline.workdir import Workdir

    with report_errors():
        if not workdir.is_dir():
            raise typer.BadParameter(f"there is no folder {workdir}", param_hint="WORKDIR")
        summaries = dict(read_summaries(Workdir(workdir).runs))
    if as_json:
        damaged = {"status": "damaged", "error": UNREADABLE}
        print_json(
            [
                summary.model_dump() | {"live": is_live(summary)} if summary else {"run_id": run_id} | damaged
                for run_id, summary in summaries.items()
            ]
        )
        return
    metrics = list(dict.fromkeys(name for s in summaries.values() if s for name in HEADLINE_METRICS[s.task]))
    headings = [name.replace("_", " ") for name in metrics]
    table = Table("run", "status", "time", *headings, "blessed", "version", "live", box=box.SIMPLE_HEAD)
    for run_id, summary in summaries.items():
        if not summary:
            table.add_row(quote(run_id), "damaged")
            continue
        values = [summary.metrics.get(name) for name in metrics]
        table.add_row(
            quote(run_id),
            summary.status,
            f"{summary.seconds:.0f} s",
            *("" if value is None else f"{value:.4f}" for value in values),
            {True: "yes", False: "no", None: ""}[summary.blessed],
            quote(summary.pushed_version or ""),
            "live" if is_live(summary) else "",
        )
    print_table(table)
    for run_id, summary in summaries.items():  # not in the table, which would cut it
        if reason := summary.error if summary else UNREADABLE:
            OUT.print(escape(f"{run_id}: {reason}"))


@app.command()
def lineage(
    version: Annotated[
        str,
        typer.Argument(
            metavar="VERSION",
            help="A pushed model (serving/NAME/VERSION), the newest of a folder of them, by path or URI; or a run.",
        ),
    ],
    workdir: Annotated[
        Path | None, typer.Option(help="The pipeline's folder, if the model is not below it (deploy.path).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a model was made from: dataset, commit, configuration, packages; and the command to repeat it."""
    with report_errors():
        from pipeline.runs.lineage import describe_lineage, trace_model

        model_lineage = trace_model(version, workdir)
    if as_json:
        print_json(model_lineage.to_json())
    else:
        print(show_controls(describe_lineage(model_lineage), "\n"))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run (runs/RUN).")],
    out: Annotated[Path | None, typer.Option(help="The file to write; by default report.html in that folder.")] = None,
) -> None:
    """Write the report page of a run: verdict, metrics, mistakes with their images, data, model card."""
    with report_errors():
        from pipeline.logs import hide_output
        from pipeline.runs.report_page import PAGE, load_page

        with hide_output():
            page = load_page(run)
        file = out or run / PAGE
        file.write_text(page, encoding="utf-8")
    OUT.print(f"The report: {quote(file)}")


@app.command()
def dashboard(
    workdir: Annotated[Path, typer.Argument(help="The folder with the runs.")] = Path(),
    host: HostOption = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on; 0 for any.", min=0, max=65535)] = 8090,
    out: Annotated[
        Path | None,
        typer.Option(
            "--export",
            metavar="DIR",
            help="Write the pages as files instead; in them each run is compared with the previous one.",
        ),
    ] = None,
    token_file: TokenFileOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    allow_host: AllowHostOption = None,
    allow_origin: AllowOriginOption = None,
) -> None:
    """Show all runs in a browser: metrics over time, two runs compared, nodes, logs, where a version comes from."""
    with report_errors():
        if not workdir.is_dir():
            raise typer.BadParameter(f"there is no folder {workdir}", param_hint="WORKDIR")
        from pipeline.runs.dashboard import server

        if out is None:
            access = read_access_options(host, token_file, certificate, key, allow_host, allow_origin)
            login = "; the browser asks for any user's name, and for the token as password" if access.token else ""
            server.serve_pages(
                workdir.resolve(), host, port, lambda url: ERR.print(f"{url}, until Ctrl+C{login}"), access
            )
            return
        count = server.export_pages(workdir.resolve(), out)
    OUT.print(f"Wrote {count} files; open {quote(out)}/index.html")


@app.command()
def track(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="The folders of runs (runs/RUN).")],
    config: Annotated[
        Path, typer.Option("--config", help="The configuration file, for its sections tracking and deploy.")
    ] = Path("pipeline.yaml"),
    overrides: SetOption = None,
) -> None:
    """Record in MLflow (tracking.mlflow) runs that are not there: earlier ones, or those that it was away for."""
    with report_errors():
        from pipeline.runs.tracking import track_runs

        settings = read_settings(config, None, overrides)
        for run, page in track_runs(settings.tracking, fill_in_deployment(settings, config), runs):
            OUT.print(quote(f"{run}: {page}"))
