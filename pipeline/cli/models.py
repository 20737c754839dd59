"""Commands that ask and convert models: predict, export, batch-predict, requests."""

import dataclasses
import json
import os
import shlex
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from imagepipe.base.console import quote, show_controls
from imagepipe.base.progress import print_note
from pipeline.cli.shared import (
    ERR,
    FAILED,
    OUT,
    CaptureImagesOption,
    CaptureRateOption,
    DeployConfigOption,
    JsonOption,
    TargetName,
    load_deploy_target,
    print_json,
    read_beam_arguments,
    read_deployment,
    replace_non_finite,
    report_errors,
)

if TYPE_CHECKING:
    from imagepipe.capture.rows import CaptureOptions
    from imagepipe.serving.batch import BatchResult
    from imagepipe.serving.client import Client
    from imagepipe.serving.types import Failure, Prediction

app = typer.Typer()


@app.command()
def predict(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL IMAGE...",
            help="A SavedModel, a folder of versions (serving/NAME) or a run (runs/RUN), unless --endpoint or --target "
            "is given; then images: files, folders or patterns; manifests with a column path (.csv, .tsv, .jsonl, "
            ".ndjson, .parquet); exports of COCO or Label Studio (.json); or files of requests (.jsonl, .npz, "
            ".tfrecord, .tfrecord.gz).",
        ),
    ],
    endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Ask a server: its URL, or the URL of one of its models (…/v1/models/NAME)."),
    ] = None,
    target: Annotated[
        TargetName | None, typer.Option(help="Ask the live model of this deploy target, see the section deploy.")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --endpoint: the file with the token that the server asks for; by default the value of the "
            "environment variable IMAGEPIPE_TOKEN, if it is set.",
        ),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="With --endpoint: certificates in PEM to trust, the server's own or its authority's."
        ),
    ] = None,
    config: DeployConfigOption = Path("pipeline.yaml"),
    top: Annotated[
        int | None,
        typer.Option(help="Show the N most probable classes; by default the predicted ones.", metavar="N", min=1),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a model about images. Prints one line per image: the labels with their scores, or the value; the file."""
    with report_errors():
        if endpoint and target:
            raise typer.BadParameter("give --endpoint or --target, not both")
        if not endpoint and (token_file or ca):
            raise typer.BadParameter("--token-file and --ca go with --endpoint; a target has its own credentials")
        if endpoint:
            results = _ask_server(endpoint, inputs, token_file, ca)
        elif target:
            results = _ask_target(config, target, inputs)
        else:
            results = _ask_here(inputs[0], inputs[1:])
        failed = False
        for result in results:
            failed |= not _show_result(result, top, as_json)
    raise typer.Exit(FAILED if failed else 0)


def _ask_server(
    endpoint: str, names: list[str], token_file: Path | None, ca: Path | None
) -> "Iterator[Prediction | Failure]":
    from imagepipe.serving.client import Client
    from imagepipe.serving.credentials import read_token

    token = read_token(token_file) if token_file else os.environ.get("IMAGEPIPE_TOKEN") or None
    with Client(endpoint, token=token, ca=ca) as client:
        yield from _ask_client(client, names)


def _ask_target(config: Path, target: str, names: list[str]) -> "Iterator[Prediction | Failure]":
    from imagepipe.serving.client import Client

    deployment = read_deployment(config, target, None)
    address = load_deploy_target(deployment).find_address(deployment)
    with Client.from_address(address) as client:
        yield from _ask_client(client, names)


def _ask_client(client: "Client", names: list[str]) -> "Iterator[Prediction | Failure]":
    from imagepipe.serving.inputs import normalize_images
    from imagepipe.serving.listing import infer_types, list_inputs
    from imagepipe.serving.reading import read_items

    types = client.side_types
    listing = list_inputs(names, types)
    requests = read_items(listing.items, infer_types(listing.items) if types is None else types)
    yield from client.predict_requests(normalize_images(requests))
    _report_passed_over(listing.passed_over, listing.columns)
    if client.shrunk:
        print_note(f"Shrunk: {client.shrunk:,} of the images, as a request may have {client.max_bytes:,} bytes there")


def _ask_here(model: str, names: list[str]) -> "Iterator[Prediction | Failure]":
    from imagepipe.base.process import UNUSED_BY_KERAS, hide_modules
    from imagepipe.deploy import storage
    from imagepipe.deploy.versions import find_model
    from imagepipe.serving.listing import list_for_model
    from imagepipe.serving.reading import read_items
    from pipeline.logs import hide_output

    if not names:
        raise typer.BadParameter("give a model and then images")
    folder = find_model(storage.fetch_newest(model))
    listing = list_for_model(folder, names)
    with hide_output(), hide_modules(*UNUSED_BY_KERAS):
        from imagepipe.serving.predictor import load
        from imagepipe.serving.threads import limit_threads

        limit_threads(folder)
        predictor = load(folder)
    if predictor.model.note:
        print_note(predictor.model.note)
    yield from predictor.predict_requests(read_items(listing.items, predictor.model.side_types, listing.columns))
    _report_passed_over(listing.passed_over, listing.columns)


def _report_passed_over(passed_over: Mapping[str, int], columns: Collection[str]) -> None:
    from imagepipe.serving.listing import describe_omissions

    if text := describe_omissions(passed_over, columns):
        print_note(f"Passed over: {text}")


def _show_result(result: "Prediction | Failure", top: int | None, as_json: bool) -> bool:
    """Prints a line, and returns whether it is a prediction."""
    from imagepipe.serving.types import Failure

    if isinstance(result, Failure):
        if as_json:
            print(json.dumps({"id": result.id, "error": result.error}))
        else:
            ERR.print(f"[red]{quote(result.id)}: {quote(result.error)}[/]")
        return False
    names = list(result.classes)[:top] if top else result.labels
    classes = {name: result.classes[name] for name in names}
    if as_json:
        answer = {"id": result.id, "label": result.label, "score": result.score, "classes": classes}
        answer |= {} if result.novelty is None else {"novelty": result.novelty}
        print(json.dumps(replace_non_finite(answer)))
    else:
        line = "  ".join(f"{name} {score:.4f}" for name, score in classes.items()) or "(no label)"
        print(show_controls(f"{line}  {result.id}"))
    return True


@app.command()
def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A run (runs/RUN), a version that it pushed, or a SavedModel as its Trainer wrote it.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="The file to write (a folder for a SavedModel); labels and figures are written beside it."),
    ],
    kind: Annotated[
        Literal["tflite", "onnx", "openvino", "saved_model"],
        typer.Option("--format", help="TensorFlow Lite, ONNX, OpenVINO's IR, or TensorFlow's SavedModel."),
    ] = "tflite",
    precision: Annotated[
        Literal["float32", "float16", "int8"] | None,
        typer.Option(help="Of the weights, with int8 also of the layers; by default float16 for tflite, else float32."),
    ] = None,
) -> None:
    """Convert a run's network for other programs, and compare its answers with the model's on the eval split.

    It takes pixels: decoding and resizing are up to the caller. Only a SavedModel takes encoded images.
    """
    with report_errors():
        from imagepipe.base.signals import end_on_signals
        from pipeline.export import export_model
        from pipeline.logs import hide_output

        with hide_output(), end_on_signals():  # so that SIGTERM, too, leaves no half an export
            exported = export_model(model, out, kind, precision)
    OUT.print(quote(f"Wrote {exported.file} and {exported.card}"))
    OUT.print(escape(str(exported)))


@app.command("batch-predict")
def batch_predict(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL INPUT",
            help="A SavedModel, a folder of versions (serving/NAME) or a run (runs/RUN); then a folder or pattern of "
            "images, a manifest with a column path (.csv, .tsv, .jsonl, .ndjson, .parquet), an export of COCO or Label "
            "Studio (.json), or files of requests (.jsonl, .npz, .tfrecord, .tfrecord.gz). With "
            "--target no model, but any number of files of requests, or patterns, that the target can read (gs://…).",
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="Folder for the results. Images that have a result there are skipped, except by a job."),
    ] = None,
    kind: Annotated[
        Literal["jsonl", "parquet", "tfrecord"], typer.Option("--format", help="Format of the results.")
    ] = "jsonl",
    workers: Annotated[
        int | None,
        typer.Option(help="Processes, each with the model in its memory; by default one. Of a job: machines.", min=1),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="A configuration file, for its section beam, or with --target for deploy."),
    ] = None,
    target: Annotated[
        Literal["ml_engine"] | None, typer.Option(help="Let the live model of this deploy target do it, as a job.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Write the manifest's further columns into the results, too (kept).")
    ] = False,
    capture: Annotated[
        str | None,
        typer.Option(metavar="DIR|URI", help="Write what is answered to Parquet files as `serve --capture` does."),
    ] = None,
    capture_rate: CaptureRateOption = 0.01,
    capture_images: CaptureImagesOption = "none",
    job: Annotated[
        str | None, typer.Option(metavar="JOB", help="With --target: show the state of a job that was started earlier.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="With --target: wait until the job is done.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Ask a model about many images. Run again, it continues where it stopped, or with new images.

    Options for Beam go after --.
    """
    inputs = arguments or []
    with report_errors():
        if target:
            if kind != "jsonl" or keep or capture or any(text.startswith("-") for text in inputs):
                raise typer.BadParameter(
                    "a job writes --format jsonl, without --keep and --capture, and takes no options for Beam"
                )
            result = _batch_job(config or Path("pipeline.yaml"), target, inputs, out, workers, job, wait)
        else:
            if len(inputs) < 2 or not out or job:
                raise typer.BadParameter("give a model, an input and --out")
            model, source, *rest = inputs
            beam_args = read_beam_arguments(rest, config)
            options = None
            if capture:
                from imagepipe.capture.rows import CaptureOptions

                options = CaptureOptions(capture, capture_rate, capture_images)
            result = _batch_here(model, source, out, kind, workers or 1, beam_args, keep, options)
    if as_json:
        print_json(dataclasses.asdict(result))
    else:
        OUT.print(escape(str(result)))
    if not target:
        _report_passed_over(result.passed_over, result.columns)
        if result.quarantined:
            ERR.print(f"Quarantined images, with reasons: {quote(out)}/quarantine-*.jsonl")


def _batch_here(
    model: str,
    source: str,
    out: str,
    kind: Any,
    workers: int,
    beam_args: tuple[str, ...],
    keep: bool,
    options: "CaptureOptions | None",
) -> "BatchResult":
    from imagepipe.deploy import storage
    from imagepipe.serving.listing import check_inputs, read_side_features
    from pipeline.logs import hide_output

    # Refused at once, and not after the imports, if there is no model or no input.
    folder = storage.find_model(model)
    check_inputs(source, read_side_features(folder), keep)
    with hide_output():
        from imagepipe.serving import batch

    return batch.predict_source(folder, source, out, kind, workers, beam_args, keep, options)


def _batch_job(
    config: Path, target: str, inputs: list[str], out: str | None, workers: int | None, job: str | None, wait: bool
) -> Any:
    """Starts a job, or looks up a job that was started earlier, and waits for its end if that is wanted."""
    if (inputs or out) if job else not (inputs and out):
        raise typer.BadParameter("give files of requests and --out, or --job alone")
    from pipeline.logs import hide_output

    with hide_output():
        from imagepipe.deploy import ml_engine_jobs as jobs
    deployment = read_deployment(config, target, None)

    def report(asked: jobs.Job) -> None:
        print_note(str(asked))

    if job:
        return jobs.wait_for_job(job, deployment, report) if wait else jobs.find_job(job, deployment)
    started = jobs.start_job(inputs, str(out), deployment, workers)
    command = ["imagepipe", "batch-predict", "--config", str(config), "--target", target, "--job", started.id]
    print_note(f"Started. Ask for it again: {shlex.join(command)}")
    return jobs.wait_for_job(started.id, deployment, report) if wait else started


@app.command("requests")
def write_requests(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...",
            help="Files, folders or patterns; manifests with a column path; exports of COCO or Label Studio (.json).",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The file: *.jsonl, *.npz (npy) or *.tfrecord.gz.")],
    kind: Annotated[
        Literal["jsonl", "npy", "tfrecord"], typer.Option("--format", help="Format of the file.")
    ] = "jsonl",
    model: Annotated[
        str | None,
        typer.Option(
            help="The model that is to be asked: columns of a manifest that it does not take are passed over. By "
            "default all but label and split are in the file."
        ),
    ] = None,
) -> None:
    """Write images as a file of requests: for curl, batch jobs, saved_model_cli, and `imagepipe predict`."""
    failed = False
    with report_errors():
        from imagepipe.deploy import storage
        from imagepipe.serving import request_files
        from imagepipe.serving.inputs import normalize_images
        from imagepipe.serving.listing import infer_types, list_inputs, read_side_features
        from imagepipe.serving.reading import read_items
        from imagepipe.serving.types import Request

        types = read_side_features(storage.find_model(model)) if model else None
        listing = list_inputs(images, types)
        types = infer_types(listing.items) if types is None else types

        def report_failures() -> Iterator[Request]:
            nonlocal failed
            for request in normalize_images(read_items(listing.items, types)):
                if isinstance(request, Request):
                    yield request
                else:
                    failed = True
                    ERR.print(f"[red]{quote(request.id)}: {quote(request.error)}[/]")

        count = request_files.write_requests(report_failures(), out, kind)
    OUT.print(f"Wrote {count} request{'s' if count != 1 else ''} to {quote(out)}")
    _report_passed_over(listing.passed_over, listing.columns)
    raise typer.Exit(FAILED if failed else 0)
