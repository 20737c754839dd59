"""The command line. Imports nothing heavy before a command needs it."""

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from serving.predictions import Prediction
    from serving.requests import Failure

# Results go to stdout, what is said on the way to stderr.
_out = Console(highlight=False, soft_wrap=True)
_err = Console(stderr=True, highlight=False, soft_wrap=True)

FAILED, WRONG_USE, NOT_BLESSED = 1, 2, 3
_SECONDS_TO_LOOK = 5.0  # from one look at a run somewhere else to the next
_MOST_WIDTH = 10_000
_RUNS_WIDTH = 100  # a row of the list of runs is of use only if it is whole, also where it is piped

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help="From labelled images to a gated, served classifier.",
    epilog="Exit status: 0 done, 1 it failed, 2 wrong use, 3 it ran but the model was not blessed.",
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Workdir = Annotated[
    Path | None, typer.Option(help="Folder for artifacts, models and runs; by default that of the configuration.")
]
ModelFolder = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="A SavedModel, a folder of versions (serving/NAME), or a run (runs/RUN)."),
]
Target = Annotated[
    Literal["filesystem", "kserve", "vertex", "ml_engine"] | None,
    typer.Option(help="Where models are deployed to; by default what the configuration says."),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as trainer.epochs=2.")
]
BeamOption = Annotated[
    Path | None, typer.Option("--config", help="A configuration file, for Beam's runner: its section beam.")
]
ConfigOption = Annotated[Path, typer.Option("--config", help="The configuration file, for its section deploy.")]
ConfigFile = Annotated[Path, typer.Argument(metavar="[CONFIG]", help="The configuration file.")]


def main() -> None:
    """Runs the command line."""
    app()


@contextmanager
def _errors_in_words() -> Iterator[None]:
    """Turns what is the user's to mend into a message and an exit status, without a traceback."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        from ingest.dataset import IngestError
        from pipeline.config import ConfigError
        from serving.versions import ModelError, UnavailableError
        from trainer.errors import TrainingError

        if not isinstance(error, ConfigError | IngestError | ModelError | TrainingError):
            raise
        _err.print(f"[red]imagepipe:[/] {_escape(str(error))}")
        raise typer.Exit(FAILED if isinstance(error, UnavailableError) else WRONG_USE) from None
    except OSError as error:  # a full disk, a file system that isn't there, a folder that can't be written
        where = f"{error.filename}: " if error.filename else ""
        _err.print(f"[red]imagepipe:[/] {_escape(f'{where}{error.strerror or error}')}")
        raise typer.Exit(FAILED) from None


def _beam_args(given: list[str], config: Path | None) -> tuple[str, ...]:
    """What a configuration says in its section ``beam``, and what stands after ``--``."""
    if given and not given[0].startswith("-"):
        raise typer.BadParameter(
            f"there is one source; {given[0]} is a second one. A pattern such as 'photos/*.jpg' goes in quotes"
        )
    if config is None:
        return tuple(given)
    from ingest.runners import arguments, with_setup_file
    from pipeline.config import BeamConfig, read

    beam = read(config).beam
    configured = with_setup_file(arguments(beam.runner, beam.options)) if beam != BeamConfig() else []
    return (*configured, *given)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": False})
def ingest(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="A folder of class folders, or a manifest (.csv, .jsonl).")],
    out: Annotated[str, typer.Option(help="The dataset's folder; images are added to one that exists.")],
    task: Annotated[
        Literal["classification", "multilabel", "regression"], typer.Option(help="How labels are read.")
    ] = "classification",
    splits: Annotated[str, typer.Option(help="Shares of train/eval/test.")] = "80/10/10",
    max_side: Annotated[int | None, typer.Option(help="Shrink photos whose longer side is over this.", min=1)] = None,
    max_pixels: Annotated[int, typer.Option(help="Set aside images of more pixels.", min=1)] = 100_000_000,
    compress: Annotated[Literal["gzip"] | None, typer.Option(help="JPEG hardly shrinks.")] = None,
    workers: Annotated[int | None, typer.Option(help="Threads that read and decode; all cores by default.", min=1)] = (
        None
    ),
    config: BeamOption = None,
    as_json: Json = False,
) -> None:
    """Make a dataset from labelled images. Options for Beam go after --."""
    with _errors_in_words():
        from ingest.pipeline import run as _ingest

        result = _ingest(
            source,
            out,
            task=task,
            splits=_parse_splits(splits),
            max_side=max_side,
            max_pixels=max_pixels,
            compress=compress,
            workers=workers,
            beam_args=_beam_args(context.args, config),
        )
    if as_json:
        _out.print_json(data=dataclasses.asdict(result) | {"written": result.written})
    else:
        _out.print(str(result))
    if result.quarantined:
        _err.print(f"What was set aside, with reasons: {_escape(out)}/quarantine.jsonl")


def _parse_splits(text: str) -> dict[str, int]:
    shares = text.split("/")
    if len(shares) != 3 or not all(share.isdigit() for share in shares) or not any(int(share) for share in shares):
        raise typer.BadParameter("expected three whole numbers such as 80/10/10", param_hint="--splits")
    return dict(zip(("train", "eval", "test"), map(int, shares), strict=True))


@app.command()
def init(
    dataset: Annotated[Path, typer.Argument(help="A folder that `imagepipe ingest` wrote.")],
    out: Annotated[Path | None, typer.Option(help="The file; by default pipeline.yaml beside the dataset.")] = None,
) -> None:
    """Write a commented configuration for a dataset."""
    with _errors_in_words():
        from pipeline.init import write_config

        path = out or dataset.resolve().parent / "pipeline.yaml"
        for note in write_config(dataset, path):
            _err.print(note)
    _out.print(f"Wrote {path}. Next: imagepipe run {path}")


@app.command()
def schema(
    source: Annotated[
        Path, typer.Argument(metavar="DATASET|RUN", help="A folder that `imagepipe ingest` wrote, or a run (runs/RUN).")
    ],
    freeze: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it to a new file, to be curated: .pbtxt.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show which columns the data has to have, with which values; and freeze that, for data.curated_schema."""
    with _errors_in_words():
        from pipeline.logs import quiet

        with quiet():
            from pipeline import schema as schemas

            found = schemas.find(source)
        if freeze:
            schemas.freeze(found, freeze)
    rows = schemas.columns(found)
    if as_json:
        _out.print_json(data=[dataclasses.asdict(row) for row in rows])
    else:
        table = Table("column", "type", "required", "values", box=box.SIMPLE_HEAD)
        for row in rows:
            table.add_row(_escape(row.name), row.type, "yes" if row.required else "", _escape(row.values))
        Console(width=max(_out.width, _RUNS_WIDTH), highlight=False).print(table)
    if freeze:
        _err.print(f"Wrote {_escape(str(freeze))}. Curate it, and name it in the configuration: data.curated_schema")


@app.command()
def run(
    config: ConfigFile = Path("pipeline.yaml"),
    overrides: Overrides = None,
    workdir: Workdir = None,
    as_json: Json = False,
) -> None:
    """Run the pipeline: validate, train, evaluate, and push what the gate lets through."""
    with _errors_in_words():
        from pipeline.config import read

        settings = read(config, tuple(overrides or ()))
        summary = _run(settings, workdir or config.resolve().parent)
    if as_json:
        _out.print_json(data=summary.model_dump())
    raise typer.Exit(_report(summary))


def _run(settings, workdir: Path):  # type: ignore[no-untyped-def]  # their types would have to be imported
    from pipeline.logs import quiet
    from pipeline.workdir import Workdir

    _err.print("loading TFX …")
    with quiet():
        from pipeline.run import run as run_pipeline

    return run_pipeline(settings, Workdir(workdir.resolve()), _err)


def _report(summary) -> int:  # type: ignore[no-untyped-def]
    """Says how a run ended, and returns the exit status for it."""
    if summary.status == "failed":
        _err.print(f"[red]{_escape(str(summary.error))}[/]\nThe whole log: {summary.log}")
        _err.print("What was done before is kept: the next run goes on from there.")
        return FAILED
    from components.measures import CHAMPION_METRIC

    if summary.hyperparameters:
        listed = ", ".join(f"{k} {_setting(v)}" for k, v in summary.hyperparameters.items())
        _err.print(f"the best of the search: {_escape(listed)}")
    shown = {k: v for k, v in summary.metrics.items() if k != "example_count"}
    _err.print(
        f"eval split of {summary.metrics['example_count']:g}: "
        + ", ".join(f"{k} {_figure(v)}{_ends(summary.intervals.get(k))}" for k, v in shown.items())
    )
    if summary.served.max_difference is not None:
        _err.print(
            f"served in {summary.served.precision}, within {summary.served.max_difference:.2g} of the trained network"
        )
    if summary.champion_metrics:
        name = CHAMPION_METRIC[summary.task]
        _err.print(f"champion's {name} on it: {_figure(summary.champion_metrics[name])}")
    if summary.serving.p95_ms is not None:
        _err.print(
            ("" if summary.serving.problems else "a server answers as the graph does; ")
            + f"an image takes it {summary.serving.median_ms:.0f} ms, 95th percentile {summary.serving.p95_ms:.0f}"
        )
    if not summary.pushed_version:
        reasons = "; ".join([*summary.not_blessed_because, *summary.serving.problems])
        _err.print(f"[yellow]Not blessed, not pushed:[/] {_escape(reasons)}")
        return NOT_BLESSED
    _err.print(f"[green]Blessed[/] and pushed as version {summary.pushed_version}: {summary.serving_dir}")
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
    from components.measures import SHOWN
    from pipeline.summary import is_live, read_all
    from pipeline.workdir import Workdir

    rows = [summary.model_dump() | {"live": is_live(summary)} for summary in read_all(Workdir(workdir).runs)]
    if as_json:
        _out.print_json(data=rows)
        return
    metrics = list(dict.fromkeys(name for row in rows for name in SHOWN[row["task"]]))
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
    Console(width=max(_out.width, _RUNS_WIDTH), highlight=False).print(table)


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
    with _errors_in_words():
        from pipeline import lineage as traced

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
    with _errors_in_words():
        from pipeline import report as reports
        from pipeline.logs import quiet

        with quiet():
            text = reports.page_of(run)
        file = out or run / reports.PAGE
        file.write_text(text)
    _out.print(f"The report: {_escape(str(file))}")


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
    with _errors_in_words():
        from pipeline.dashboard import server

        if not workdir.is_dir():
            raise typer.BadParameter(f"there is no folder {workdir}", param_hint="WORKDIR")
        if out is None:
            server.main(workdir.resolve(), host, port, lambda url: _err.print(f"{url}, until Ctrl+C"))
            return
        count = server.export(workdir.resolve(), out)
    _out.print(f"Wrote {count} files; open {_escape(str(out))}/index.html")


@app.command()
def predict(
    asked: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL IMAGE...",
            help="A SavedModel, a folder of versions (serving/NAME) or a run (runs/RUN), unless --endpoint or --target "
            "is given; then files, folders or globs; also files of requests (.jsonl, .npz, .tfrecord, .tfrecord.gz).",
        ),
    ],
    endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Ask a server: its URL, or the model's there (…/v1/models/NAME)."),
    ] = None,
    target: Annotated[
        Literal["filesystem", "kserve", "vertex", "ml_engine"] | None,
        typer.Option(help="Ask what is live there, by the configuration's section deploy."),
    ] = None,
    config: ConfigOption = Path("pipeline.yaml"),
    top: Annotated[
        int | None,
        typer.Option(help="Show so many, the most probable first; by default what the model says.", min=1),
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask a model about images. A line each: the label, or all that it says, with the score, or the value; the file."""
    with _errors_in_words():
        if endpoint and target:
            raise typer.BadParameter("give --endpoint or --target, not both")
        if endpoint:
            results = _asked_online(endpoint, asked)
        elif target:
            results = _asked_there(config, target, asked)
        else:
            results = _asked_here(Path(asked[0]), asked[1:])
        failed = False
        for result in results:
            failed |= not _show_result(result, top, as_json)
    raise typer.Exit(FAILED if failed else 0)


def _asked_online(endpoint: str, images: list[str]) -> "Iterator[Prediction | Failure]":
    from serving import requests
    from serving.client import Endpoint
    from serving.files import image_files

    paths = image_files(images)
    return Endpoint(endpoint).predict_all(requests.normalized(requests.of_files(paths)))


def _asked_there(config: Path, target: str, images: list[str]) -> "Iterator[Prediction | Failure]":
    from serving import requests
    from serving.files import image_files

    paths = image_files(images)
    deployment = _deployment(config, target, None)
    endpoint = _target(deployment).online(deployment)
    return endpoint.predict_all(requests.normalized(requests.of_files(paths)))


def _asked_here(model: Path, images: list[str]) -> "Iterator[Prediction | Failure]":
    from ingest.optional import KERAS, without
    from pipeline.logs import quiet
    from serving import requests
    from serving.files import image_files
    from serving.versions import find_model

    if not images:
        raise typer.BadParameter("give a model and then images")
    folder, paths = find_model(model), image_files(images)
    with quiet(), without(*KERAS):
        from serving.model import Model, predict_all

        loaded = Model(folder)
    return predict_all(loaded, requests.normalized(requests.of_files(paths)))


def _show_result(result: "Prediction | Failure", top: int | None, as_json: bool) -> bool:
    """Prints a line. Returns whether it is a prediction."""
    from serving.requests import Failure

    if isinstance(result, Failure):
        if as_json:
            print(json.dumps({"id": result.id, "error": result.error}))
        else:
            _err.print(f"[red]{_escape(result.id)}: {_escape(result.error)}[/]")
        return False
    names = list(result.classes)[:top] if top else result.said
    shown = {name: result.classes[name] for name in names}
    if as_json:
        print(json.dumps({"id": result.id, "label": result.label, "score": result.score, "classes": shown}))
    else:
        line = "  ".join(f"{name} {score:.4f}" for name, score in shown.items()) or "(no label)"
        print(f"{line}  {result.id}")
    return True


@app.command()
def serve(
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A SavedModel, a folder of versions (serving/NAME), which is followed, or a run (runs/RUN). "
            "By default what the environment variable AIP_STORAGE_URI says, as Vertex AI sets it.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name in URLs; by default its folder's.")] = None,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="The port to listen on; 0 for any.", envvar="AIP_HTTP_PORT", min=0, max=65535)
    ] = 8080,
) -> None:
    """Serve a model by TensorFlow Serving's and KServe's protocols, with a page to try it on at /."""
    with _errors_in_words():
        from pipeline.logs import quiet
        from serving.versions import model_name

        with quiet():
            from serving import server, storage

        told = os.environ.get("AIP_STORAGE_URI")
        if not (path := model or (told and storage.fetched(told))):
            raise typer.BadParameter("give a model")
        server.main(path, name or model_name(path), host, port)


@app.command()
def export(
    model: ModelFolder,
    out: Annotated[Path, typer.Option(help="The file to write; the labels go beside it.")],
    kind: Annotated[
        Literal["tflite"], typer.Option("--format", help="TensorFlow Lite, weights in float16.")
    ] = "tflite",
) -> None:
    """Convert a run's network for devices. It takes pixels: decoding and resizing are left to the device."""
    with _errors_in_words():
        from pipeline.logs import quiet
        from serving.versions import ModelError, find_model, labels

        folder = find_model(model)
        trained = folder.parent / "training" / "model.keras"
        if not trained.is_file():
            raise ModelError(f"{folder} has no Keras model beside it. Give the run that it comes from (runs/RUN).")
        with quiet():
            from trainer.lite import convert

            content = convert(trained)
        out.write_bytes(content)
        names = out.with_suffix(".labels.txt")
        names.write_text("".join(f"{label}\n" for label in labels(folder)))
    _out.print(f"Wrote {out} ({len(content) / 2**20:.1f} MiB) and {names}")


@app.command("batch-predict")
def batch_predict(
    asked: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL INPUT",
            help="A SavedModel, a folder of versions (serving/NAME) or a run (runs/RUN); then a folder or glob of "
            "images, files of requests (.jsonl, .npz, .tfrecord, .tfrecord.gz), or a .csv with a column path. With "
            "--target no model, but any number of files of requests, or patterns, where the target reads them (gs://…).",
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Folder for the results; what it has already is not asked again, but by a job.")
    ] = None,
    kind: Annotated[
        Literal["jsonl", "parquet", "tfrecord"], typer.Option("--format", help="Of the results.")
    ] = "jsonl",
    workers: Annotated[
        int | None,
        typer.Option(help="Processes, each with the model in its memory: one by default. Of a job, machines.", min=1),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="A configuration file: its section beam, or deploy with --target."),
    ] = None,
    target: Annotated[
        Literal["ml_engine"] | None, typer.Option(help="Let the model that is live there do it, as a job.")
    ] = None,
    job: Annotated[
        str | None, typer.Option(metavar="JOB", help="With --target: how a job goes that was started before.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="With --target: until the job is done.")] = True,
    as_json: Json = False,
) -> None:
    """Ask a model about many images. Run again, it goes on where it was, or with what is new.

    Options for Beam go after --.
    """
    given = asked or []
    with _errors_in_words():
        if target:
            if kind != "jsonl" or any(text.startswith("-") for text in given):
                raise typer.BadParameter("a job writes --format jsonl, and takes no options for Beam")
            result = _batch_job(config or Path("pipeline.yaml"), target, given, out, workers, job, wait)
        else:
            if len(given) < 2 or not out or job:
                raise typer.BadParameter("give a model, an input and --out")
            model, source, *rest = given
            result = _batch_here(Path(model), source, Path(out), kind, workers or 1, _beam_args(rest, config))
    if as_json:
        _out.print_json(data=dataclasses.asdict(result))
    else:
        _out.print(_escape(str(result)))
    if not target and result.quarantined:
        _err.print(f"What was set aside, with reasons: {_escape(str(out))}/quarantine-*.jsonl")


def _batch_here(model: Path, source: str, out: Path, kind: Any, workers: int, beam_args: tuple[str, ...]) -> Any:
    from pipeline.logs import quiet
    from serving.versions import find_model

    folder = find_model(model)
    with quiet():
        from serving import batch

    return batch.run(folder, source, out, kind, workers, beam_args)


def _batch_job(
    config: Path, target: str, inputs: list[str], out: str | None, workers: int | None, job: str | None, wait: bool
) -> Any:
    """Starts a job, or finds one that was started, and waits for it if that is wanted."""
    if (inputs or out) if job else not (inputs and out):
        raise typer.BadParameter("give files of requests and --out, or --job alone")
    deployment = _deployment(config, target, None)
    jobs: Any = _target(deployment)
    if job:
        return jobs.wait_for_job(job, deployment, _show) if wait else jobs.job(job, deployment)
    started = jobs.start_job(inputs, out, deployment, workers)
    _err.print(f"Started. Ask for it again: imagepipe batch-predict --target {target} --job {started.id}")
    return jobs.wait_for_job(started.id, deployment, _show) if wait else started


def _show(what: object) -> None:
    _err.print(_escape(str(what)))


@app.command("requests")
def write_requests(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Files, folders or globs.")],
    out: Annotated[Path, typer.Option(help="The file: *.jsonl, *.npz (npy) or *.tfrecord.gz.")],
    kind: Annotated[
        Literal["jsonl", "npy", "tfrecord"], typer.Option("--format", help="What it is to hold.")
    ] = "jsonl",
) -> None:
    """Write images as requests: for curl, batch jobs, saved_model_cli; and for `imagepipe predict`."""
    failed = False
    with _errors_in_words():
        from serving import requests
        from serving.files import image_files

        def readable() -> Iterator[requests.Request]:
            nonlocal failed
            for each in requests.normalized(requests.of_images(image_files(images))):
                if isinstance(each, requests.Request):
                    yield each
                else:
                    failed = True
                    _err.print(f"[red]{_escape(each.id)}: {_escape(each.error)}[/]")

        count = requests.write(readable(), out, kind)
    _out.print(f"Wrote {count} request{'s' if count != 1 else ''} to {_escape(str(out))}")
    raise typer.Exit(FAILED if failed else 0)


def _deployment(config: Path, target: str | None, overrides: list[str] | None):  # type: ignore[no-untyped-def]  # imported late
    """The section ``deploy`` of a configuration, with the target's name and folder."""
    from pipeline.config import read
    from pipeline.workdir import Workdir

    sets = (*(overrides or ()), *([f"deploy.target={target}"] if target else ()))
    settings = read(config, sets)
    return settings.deployment(str(Workdir(config.resolve().parent).serving(settings.name)))


def _target(deployment):  # type: ignore[no-untyped-def]  # imported late
    from pipeline.logs import quiet

    with quiet():
        from serving import targets

        return targets.target(deployment)


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
    with _errors_in_words():
        from pipeline.config import read
        from pipeline.logs import quiet

        settings = read(config, tuple(overrides or ()))
        with quiet():
            from kubeflow.compile import compile_pipeline

            text = compile_pipeline(settings, target)
        out.write_text(text)
    there = " --target vertex" if target == "vertex" else ""
    _out.print(f"Wrote {_escape(str(out))}. Next: imagepipe submit {_escape(str(out))}{there}")


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
    with _errors_in_words():
        from kubeflow import progress
        from kubeflow.package import parameters as values_of
        from kubeflow.submit import Asked, prepare, schedule
        from kubeflow.submit import submit as submit_

        when = schedule(every, cron)
        package, settings = prepare(file, config, target, sets)
        asked = Asked(values_of(package, parameters or ()), run_name, when, create_experiment)
        submitted = submit_(package, settings, target, asked)
        (_err if as_json else _out).print(_escape(str(submitted)))
        ended = None
        if wait and submitted.look:
            _err.print("waiting for its end; the run goes on also if you stop waiting (Ctrl-C) …")
            ended = progress.follow(submitted.look, lambda line: _err.print(_escape(line)), _SECONDS_TO_LOOK)
    if as_json:
        told = {name: getattr(submitted, name) for name in ("id", "name", "url", "replaced")}
        how = dataclasses.asdict(ended) if ended else {"state": None}
        _out.print_json(data={"pipeline": package.name, "version": package.version} | told | how)
    if ended and ended.state != "succeeded":
        _err.print(f"[red]imagepipe:[/] the run {_escape(str(ended))}\nWhat it printed: {_escape(submitted.logs)}")
        raise typer.Exit(FAILED)


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
    with _errors_in_words():
        from serving.versions import find_model

        deployment = _deployment(config, target, overrides)
        folder = find_model(model)
        version = _target(deployment).deploy(str(folder), deployment, traffic or deployment.traffic)
    if as_json:
        _out.print_json(data=dataclasses.asdict(version))
    else:
        _out.print(f"Version {version.version} gets {version.traffic}% of the requests: {_escape(version.uri)}")


@app.command()
def status(
    config: ConfigOption = Path("pipeline.yaml"),
    target: Target = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Show which versions are deployed, and which of them are live."""
    with _errors_in_words():
        deployment = _deployment(config, target, overrides)
        versions = _target(deployment).status(deployment)
    if as_json:
        _out.print_json(data=[dataclasses.asdict(version) for version in versions])
        return
    table = Table("version", "requests", "state", "model", box=box.SIMPLE_HEAD)
    for version in versions:
        table.add_row(version.version, f"{version.traffic}%", _escape(version.state), _escape(version.uri))
    needed = Console(width=_MOST_WIDTH).measure(table).maximum  # a path or a reason that is cut is of no use
    Console(width=max(_out.width, needed), highlight=False).print(table)


@app.command()
def rollback(
    config: ConfigOption = Path("pipeline.yaml"),
    target: Target = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Take the newest version out of service: the one before gets its requests."""
    with _errors_in_words():
        deployment = _deployment(config, target, overrides)
        version = _target(deployment).rollback(deployment)
    if as_json:
        _out.print_json(data=dataclasses.asdict(version))
    else:
        _out.print(f"Version {version.version} is live: {_escape(version.uri)}")


@app.command()
def demo(
    workdir: Annotated[Path, typer.Option(help="Folder for all that the demo makes.")] = Path("demo"),
) -> None:
    """From handwritten digits to a served classifier, in a few minutes."""
    with _errors_in_words():
        from pipeline import demo as steps

        root = workdir.resolve()
        _err.print("[bold]1. Images[/]: scikit-learn's handwritten digits, as files")
        images = steps.write_images(root)
        _err.print(f"[bold]2. Ingest[/]: {images}")
        _err.print(str(steps.ingest(root)))
        _err.print(f"[bold]3. Run[/]: {steps.write_config(root)}")
        settings = steps.read_config(root)
        summary = _run(settings, root)
        status = _report(summary)
        if status == 0:
            _err.print(
                "[bold]4. Predict[/]: the test split, which training and gate have not seen, through the pushed model"
            )
            picture, accuracy, examples = steps.predict_test_split(root, summary)
            table = Table("image", "digit", "predicted", "score")
            for example in examples:
                table.add_row(example.id, example.actual, example.label, f"{example.score:.3f}")
            _out.print(table)
            _out.print(f"test accuracy {accuracy:.4f}; picture: {picture}")
            _out.print(f"Ask it yourself: imagepipe predict {summary.serving_dir} {images}/7")
    raise typer.Exit(status)


if __name__ == "__main__":
    main()
