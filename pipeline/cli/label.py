"""The command label: a page on which a person corrects labels."""

import getpass
import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from imagepipe.base.console import quote
from imagepipe.base.progress import print_note
from pipeline.cli.shared import (
    ERR,
    OUT,
    AllowHostOption,
    CertificateOption,
    HostOption,
    KeyOption,
    TokenFileOption,
    read_access_options,
    report_errors,
)

app = typer.Typer()


@app.command("label")
def label_images(
    source: Annotated[
        str,
        typer.Argument(
            metavar="WORKDIR|CAPTURE",
            help="A folder with runs, for what the newest one found and was unsure of; or what `imagepipe serve "
            "--capture` wrote.",
        ),
    ],
    labels: Annotated[
        Path | None,
        typer.Option(help="The file of decisions; by default labels.jsonl in WORKDIR, or beside the folder CAPTURE."),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the queues with decisions for Label Studio (.json), or the decisions (.csv)."
        ),
    ] = None,
    add: Annotated[
        Path | None,
        typer.Option("--import", metavar="FILE", help="Add the decisions in an export of Label Studio, or in a CSV."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Of a capture: the run of the served model (runs/RUN), to show its nearest training images.",
        ),
    ] = None,
    by: Annotated[str | None, typer.Option(help="Who decides; by default the name of this machine's user.")] = None,
    host: HostOption = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on; 0 for any.", min=0, max=65535)] = 8091,
    token_file: TokenFileOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    allow_host: AllowHostOption = None,
) -> None:
    """Correct labels on a page, by keyboard. Decisions go to a file that `imagepipe ingest --labels` takes."""
    with report_errors():
        from imagepipe.base import filesystem
        from imagepipe.base.signals import end_on_signals
        from imagepipe.serving.access import is_loopback
        from pipeline.labelling import server
        from pipeline.labelling.capture_work import read_capture_work
        from pipeline.labelling.exchange import export_decisions, import_decisions
        from pipeline.labelling.run_work import read_run_work
        from pipeline.labelling.trained import MAX_TRAINED, TrainedImages
        from pipeline.workdir import Workdir

        if not token_file and not is_loopback(host):
            raise typer.BadParameter(f"whoever reaches {host} could change labels: give --token-file, too")
        access = read_access_options(host, token_file, certificate, key, allow_host, None)
        is_run = not filesystem.is_uri(source) and (Path(source) / "runs").is_dir()
        if filesystem.is_uri(source) and not labels:
            raise typer.BadParameter("of a capture on an object store, give the file of decisions: --labels FILE")
        if not filesystem.is_folder(source):
            raise typer.BadParameter(f"there is no folder {source}", param_hint="WORKDIR|CAPTURE")
        if is_run and against:
            raise typer.BadParameter("--against is for captures: a run is compared with its own training images")
        trained = TrainedImages(against) if against else None
        if trained:
            ERR.print(f"Computing the embeddings of up to {MAX_TRAINED:,} training images …")
        # A copy of somebody's images, which is not to outlast the program.
        with end_on_signals(), tempfile.TemporaryDirectory(prefix="imagepipe-label-") as pictures:
            folder = Path(pictures)
            if is_run:
                work = read_run_work(Workdir(Path(source).resolve()), folder)
            else:
                work = read_capture_work(source, folder, trained)
            place = Path(source).resolve()
            file = labels or (place if is_run else place.parent) / "labels.jsonl"
            for queue in work.queues:
                ERR.print(quote(f"{len(queue.items):,} images: {queue.title}"))
            for note in work.notes:
                print_note(note)
            if add:
                count, skipped = import_decisions(work, file, add)
                OUT.print(quote(f"Added {count:,} decisions to {file}"))
                for reason, number in sorted(skipped.items()):
                    print_note(f"Not added: {number:,} {reason}")
            if export:
                OUT.print(quote(f"Wrote {export_decisions(work, file, export):,} images to {export}"))
            if add or export:
                return
            if not work.queues:
                ERR.print("There is nothing to look at.")
                return

            def announce(url: str) -> None:
                ERR.print(quote(f"{url}, until Ctrl+C. Decisions go to {file}"))

            server.serve(work, file, by or _find_user(), host, port, announce, access)


def _find_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user that has no name
        return f"uid {os.getuid()}"
