"""Commands for data: ingest, init, schema."""

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from imagepipe.base.console import quote
from imagepipe.base.names import TaskName
from pipeline.cli.ingested import describe_dataset, print_ingested
from pipeline.cli.shared import (
    ERR,
    OUT,
    BeamConfigOption,
    JsonOption,
    print_json,
    print_table,
    read_beam_arguments,
    report_errors,
)

app = typer.Typer()

_SPLIT_FOLDERS = {"folders": True, "none": False}


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": False})
def ingest(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="A folder of class folders; a manifest (.csv, .tsv, .jsonl, .parquet); or images in archives (.tar, "
            ".tgz, .zip, WebDataset), in Parquet, or named by COCO's or Label Studio's .json."
        ),
    ],
    out: Annotated[str, typer.Option(help="The dataset's folder; images are added to a dataset that exists.")],
    task: Annotated[TaskName, typer.Option(help="What is learned, and so how labels are read.")] = "classification",
    splits: Annotated[
        str,
        typer.Option(
            help="Shares of train/eval/test, where the source gives no splits; 'folders': the top folders are splits; "
            "'none': they are classes, whatever their names; or both: none,70/15/15."
        ),
    ] = "80/10/10",
    group: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN|REGEX",
            help="Images of one group (a patient, a product) are never in two splits: a column of the manifest, or for "
            "a folder or archive a pattern on the path with one part in parentheses.",
        ),
    ] = None,
    sync: Annotated[bool, typer.Option("--sync", help="Remove images that are gone from this source.")] = False,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|none",
            help="Decisions of people (labels.jsonl, of `imagepipe label`), which override the source's labels. The "
            "dataset remembers the file; 'none': take the source's labels again.",
        ),
    ] = None,
    max_side: Annotated[
        int | None, typer.Option(help="Shrink images whose longer side has more pixels.", min=1)
    ] = None,
    max_pixels: Annotated[int, typer.Option(help="Quarantine images with more pixels.", min=1)] = 100_000_000,
    compress: Annotated[
        Literal["gzip"] | None, typer.Option(help="Compress the TFRecords; JPEG hardly shrinks.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that read and decode; by default one per core.", min=1)
    ] = None,
    config: BeamConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a dataset from labelled images. Options for Beam go after --."""
    with report_errors():
        from imagepipe.ingest.command import ingest as ingest_images

        shares, split_folders = _parse_splits(splits)
        result = ingest_images(
            source,
            out,
            task=task,
            splits=shares,
            split_folders=split_folders,
            group=group,
            sync=sync,
            labels=labels,
            max_side=max_side,
            max_pixels=max_pixels,
            compress=compress,
            workers=workers,
            beam_args=read_beam_arguments(context.args, config),
        )
    if as_json:
        counts = dataclasses.asdict(result)
        del counts["dataset"]
        print_json(counts | {"written": result.written} | describe_dataset(result.dataset))
    else:
        OUT.print(escape(str(result)))
    print_ingested(result, out)


def _parse_splits(text: str) -> tuple[dict[str, int], bool | None]:
    """Returns the shares, and whether folders are splits; None to find that out."""
    *words, last = text.split(",")
    if last in _SPLIT_FOLDERS:
        words, last = [*words, last], "80/10/10"
    shares = last.split("/")
    is_understood = len(words) <= 1 and set(words) <= _SPLIT_FOLDERS.keys() and all(map(str.isdecimal, shares))
    if not is_understood or len(shares) != 3 or not any(map(int, shares)):
        raise typer.BadParameter(
            "expected three whole numbers such as 80/10/10, or 'folders', or 'none'", param_hint="--splits"
        )
    return dict(zip(("train", "eval", "test"), map(int, shares), strict=True)), _SPLIT_FOLDERS.get("".join(words))


@app.command()
def init(
    dataset: Annotated[
        str, typer.Argument(help="A folder that `imagepipe ingest` wrote, or its URI (s3://…, gs://…).")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The file; by default pipeline.yaml beside the dataset, or here if it is a URI.")
    ] = None,
) -> None:
    """Write a commented configuration for a dataset."""
    with report_errors():
        from imagepipe.base.filesystem import is_uri
        from pipeline.init import write_config

        path = out or (Path() if is_uri(dataset) else Path(dataset).resolve().parent) / "pipeline.yaml"
        for note in write_config(dataset, path):
            ERR.print(escape(note))
    OUT.print(quote(f"Wrote {path}. Next: {shlex.join(['imagepipe', 'run', str(path)])}"))


@app.command("schema")
def show_schema(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DATASET|RUN", help="A folder that `imagepipe ingest` wrote, or its URI; or a run (runs/RUN)."
        ),
    ],
    freeze: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it to a new file (.pbtxt), for you to curate.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show which columns the data must have, with which values; or freeze that, for data.curated_schema."""
    with report_errors():
        from pipeline import data_schema
        from pipeline.logs import hide_output

        if freeze:
            data_schema.refuse_existing(freeze)
        with hide_output():
            schema = data_schema.find_schema(source)
        if freeze:
            data_schema.freeze_schema(schema, freeze)
    columns = data_schema.list_columns(schema)
    if as_json:
        print_json([dataclasses.asdict(column) for column in columns])
    else:
        table = Table("column", "type", "required", "values", box=box.SIMPLE_HEAD)
        for column in columns:
            required = "yes" if column.required else ""
            table.add_row(quote(column.name), column.type, required, quote(column.values))
        print_table(table)
    if freeze:
        ERR.print(f"Wrote {quote(freeze)}. Curate it, and name it in the configuration: data.curated_schema")
