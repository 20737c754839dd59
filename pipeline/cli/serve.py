"""The command that serves a model."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.shared import (
    AllowHostOption,
    AllowOriginOption,
    CaptureImagesOption,
    CaptureRateOption,
    CertificateOption,
    HostOption,
    KeyOption,
    TokenFileOption,
    read_access_options,
    report_errors,
)

app = typer.Typer()


@app.command()
def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A SavedModel, a folder of versions (serving/NAME), whose newest is served, or a run (runs/RUN); or "
            "the URI of one of the first two, which is copied once. By default the value of the environment variable "
            "AIP_STORAGE_URI, which Vertex AI sets.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name in URLs; by default the folder's.")] = None,
    host: HostOption = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="The port to listen on; 0 for any.", envvar="AIP_HTTP_PORT", min=0, max=65535)
    ] = 8080,
    grpc_port: Annotated[
        int | None,
        typer.Option(
            help="Answer by gRPC too, on this port (0 for any): the Open Inference Protocol and TensorFlow Serving's.",
            min=0,
            max=65535,
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(help="Processes that share the port and the CPUs, each with the model in its memory.", min=1),
    ] = 1,
    token_file: TokenFileOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    allow_host: AllowHostOption = None,
    allow_origin: AllowOriginOption = None,
    verify: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            envvar="IMAGEPIPE_VERIFY",
            help="Load only versions that are signed (deploy.sign) with the private key of this public key.",
        ),
    ] = None,
    capture: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|URI",
            envvar="IMAGEPIPE_CAPTURE",
            help="Write what is asked and answered to Parquet files below this folder, local or s3://…, gs://…",
        ),
    ] = None,
    capture_rate: CaptureRateOption = 0.01,
    capture_images: CaptureImagesOption = "none",
    capture_days: Annotated[
        int, typer.Option(min=1, max=36_500, help="With --capture: delete what is older than so many days.")
    ] = 30,
    shadow: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION|newest",
            help="With --capture: ask this version of the folder, or whichever is the newest in its shadow/, too, "
            "whatever is captured. Its answers are captured and not returned.",
        ),
    ] = None,
) -> None:
    """Serve a model by TensorFlow Serving's and KServe's protocols, with a page to try it on at /."""
    with report_errors():
        from imagepipe.base.filesystem import is_uri
        from imagepipe.capture.rows import CaptureOptions
        from imagepipe.deploy import signing, storage
        from imagepipe.deploy.versions import check_shadow, find_model, find_model_name

        access = read_access_options(host, token_file, certificate, key, allow_host, allow_origin)
        if verify:
            signing.check_public_key(verify)
        if not (given := model or os.environ.get("AIP_STORAGE_URI")):
            raise typer.BadParameter("give a model")
        if shadow and not capture:
            raise typer.BadParameter("--shadow needs --capture, which gets its answers")
        if shadow and is_uri(given):
            raise typer.BadParameter("--shadow needs a folder of versions on this machine, of a URI one is copied")
        path = storage.fetch_newest(given)
        find_model(path)  # refused at once if there is none, and not after the imports
        options = CaptureOptions(capture, capture_rate, capture_images, capture_days) if capture else None
        if shadow:
            check_shadow(path, shadow)
        # Another program's folder may be missing, or have its metrics; of its own workers, run_workers makes one.
        os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)  # before Prometheus' client is imported, which reads it
        from imagepipe.serving.connections import PortHolder
        from imagepipe.serving.shadow_process import find_shadow_version

        grpc_holder = PortHolder(host, grpc_port, "--grpc-port") if grpc_port is not None else None
        name = name or find_model_name(path)
        find_shadow = partial(find_shadow_version, path, shadow, name, verify) if shadow else None
        settings = (access, verify, options, grpc_holder.address if grpc_holder else None, find_shadow)
        arguments = (path, name, host)
        if workers == 1:
            _serve(*arguments, port, *settings)
            return
        from imagepipe.serving.workers import run_workers

        holder = PortHolder(host, port)
        status = run_workers(workers, partial(_work, *arguments, holder.port, *settings))
    raise typer.Exit(status)


def _serve(*arguments: Any) -> None:
    from pipeline.logs import hide_output

    with hide_output():
        from imagepipe.serving import server

    server.main(*arguments)


def _work(*arguments: Any) -> None:
    """Serves in a process beside others, which shows its errors as a command does."""
    try:
        with report_errors():
            _serve(*arguments)
    except typer.Exit as ended:
        sys.exit(ended.exit_code)
