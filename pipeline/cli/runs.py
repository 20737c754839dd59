"""Commands for runs on this machine, and what is known of them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from pipeline.cli.shared import (
    ERR,
    FAILED,
    NOT_BLESSED,
    OUT,
    ConfigFile,
    Json,
    Overrides,
    Workdir,
    print_table,
    report_errors,
)

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.runs.summary import Summary

app = typer.Typer()


@app.command()
def run(
    config: ConfigFile = Path("pipeline.yaml"),
    overrides: Overrides = None,
    workdir: Workdir = None,
    as_json: Json = False,
) -> None:
    """Run the pipeline: validate, train, evaluate, and push what the gate lets through."""
    with report_errors():
        from pipeline.config_file import read_config

        settings = read_config(config, tuple(overrides or ()))
        summary = run_here(settings, workdir or config.resolve().parent)
    if as_json:
        OUT.print_json(data=summary.model_dump())
    raise typer.Exit(print_outcome(summary))


def run_here(settings: "Config", workdir: Path) -> "Summary":
    """Runs the pipeline, and says on stderr how it goes."""
    from pipeline.logs import hide_output
    from pipeline.workdir import Workdir

    ERR.print("loading TFX …")
    with hide_output():
        from pipeline.run import run as run_pipeline

    return run_pipeline(settings, Workdir(workdir.resolve()), ERR)


def print_outcome(summary: "Summary") -> int:
    """Says how a run ended, and returns the exit status for it."""
    if summary.status == "failed":
        ERR.print(f"[red]{escape(str(summary.error))}[/]\nThe whole log: {summary.log}")
        ERR.print("What was done before is kept: the next run goes on from there.")
        return FAILED
    from imagepipe.base.metrics import CHAMPION_METRIC

    if summary.hyperparameters:
        listed = ", ".join(f"{k} {_setting(v)}" for k, v in summary.hyperparameters.items())
        ERR.print(f"the best of the search: {escape(listed)}")
    shown = {k: v for k, v in summary.metrics.items() if k != "example_count"}
    ERR.print(
        f"eval split of {summary.metrics['example_count']:g}: "
        + ", ".join(f"{k} {_figure(v)}{_ends(summary.intervals.get(k))}" for k, v in shown.items())
    )
    served, serving = summary.served, summary.serving
    if served and served.max_difference is not None:
        ERR.print(f"served in {served.precision}, within {served.max_difference:.2g} of the trained network")
    if summary.champion_metrics:
        name = CHAMPION_METRIC[summary.task]
        ERR.print(f"champion's {name} on it: {_figure(summary.champion_metrics[name])}")
    if serving and serving.p95_ms is not None:
        ERR.print(
            ("" if serving.problems else "a server answers as the graph does; ")
            + f"an image takes it {serving.median_ms:.0f} ms, 95th percentile {serving.p95_ms:.0f}"
        )
    if not summary.pushed_version:
        reasons = "; ".join([*summary.not_blessed_because, *(serving.problems if serving else ())])
        ERR.print(f"[yellow]Not blessed, not pushed:[/] {escape(reasons)}")
        return NOT_BLESSED
    ERR.print(f"[green]Blessed[/] and pushed as version {summary.pushed_version}: {summary.serving_dir}")
    return 0


def _setting(value: bool | int | float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _figure(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.4f}"


def _ends(interval: tuple[float, float] | None) -> str:
    """A 95 % confidence interval."""
    return "" if interval is None else f" ({interval[0]:.4f} to {interval[1]:.4f})"


@app.command()
def runs(
    workdir: Annotated[Path, typer.Argument(help="The folder with the runs.")] = Path(),
    as_json: Json = False,
) -> None:
    """List runs: when, how long, metrics, blessed, pushed, live."""
    from imagepipe.base.metrics import HEADLINE_METRICS
    from pipeline.runs.summary import is_live, read_all
    from pipeline.workdir import Workdir

    rows = [summary.model_dump() | {"live": is_live(summary)} for summary in read_all(Workdir(workdir).runs)]
    if as_json:
        OUT.print_json(data=rows)
        return
    metrics = list(dict.fromkeys(name for row in rows for name in HEADLINE_METRICS[row["task"]]))
    headings = [name.replace("_", " ") for name in metrics]
    table = Table("run", "status", "time", *headings, "blessed", "version", "live", box=box.SIMPLE_HEAD)
    for row in rows:
        figures = [row["metrics"].get(name) for name in metrics]
        table.add_row(
            row["run_id"],
            row["status"],
            f"{row['seconds']:.0f} s",
            *("" if figure is None else f"{figure:.4f}" for figure in figures),
            {True: "yes", False: "no", None: ""}[row["blessed"]],
            row["pushed_version"] or "",
            "live" if row["live"] else "",
        )
    print_table(table)


@app.command()
def lineage(
    version: Annotated[
        Path,
        typer.Argument(
            metavar="VERSION", help="A pushed model (serving/NAME/VERSION), the newest of a folder of them, or a run."
        ),
    ],
    workdir: Annotated[
        Path | None, typer.Option(help="The pipeline's, if the model is not below it (deploy.path).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a model was made from: dataset, commit, configuration, packages; and the command to repeat it."""
    with report_errors():
        from pipeline.runs import lineage as traced

        found = traced.trace(version, workdir)
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
    else:
        print(traced.describe(found))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run (runs/RUN).")],
    out: Annotated[Path | None, typer.Option(help="The file to write; by default report.html in that folder.")] = None,
) -> None:
    """Write the page of a run: verdict, figures, mistakes with their images, data, model card."""
    with report_errors():
        from pipeline.logs import hide_output
        from pipeline.runs import report as reports

        with hide_output():
            text = reports.page_of(run)
        file = out or run / reports.PAGE
        file.write_text(text)
    OUT.print(f"The report: {escape(str(file))}")


@app.command()
def dashboard(
    workdir: Annotated[Path, typer.Argument(help="The folder with the runs.")] = Path(),
    host: Annotated[
        str, typer.Option(help="The address to listen on; who reaches it can read all runs, without a password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on; 0 for any.", min=0, max=65535)] = 8090,
    out: Annotated[
        Path | None,
        typer.Option(
            "--export",
            metavar="DIR",
            help="Write the pages as files instead; there each run is compared with the one before.",
        ),
    ] = None,
) -> None:
    """Show all runs in a browser: metrics over time, two runs compared, nodes, logs, what a version was made from."""
    with report_errors():
        from pipeline.runs.dashboard import server

        if not workdir.is_dir():
            raise typer.BadParameter(f"there is no folder {workdir}", param_hint="WORKDIR")
        if out is None:
            server.main(workdir.resolve(), host, port, lambda url: ERR.print(f"{url}, until Ctrl+C"))
            return
        count = server.export(workdir.resolve(), out)
    OUT.print(f"Wrote {count} files; open {escape(str(out))}/index.html")
