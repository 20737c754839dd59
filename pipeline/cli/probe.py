"""Command that compares backbones on a dataset: probe."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from imagepipe.base.console import quote
from imagepipe.base.progress import print_note
from pipeline.cli.shared import ERR, OUT, JsonOption, print_json, print_table, report_errors

if TYPE_CHECKING:
    from pipeline.probe import Outcome
    from trainer.probe import Probed

app = typer.Typer()


@app.command()
def probe(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A dataset that ingest made.")],
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="A folder with files of weights, besides Keras's own (its cache, or the net)."
        ),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG", help="Set backbone, weights and image size in this configuration file."),
    ] = None,
    picture: Annotated[Path, typer.Option(metavar="FILE", help="Where to draw the metric by the cost.")] = Path(
        "probe.svg"
    ),
    as_json: JsonOption = False,
) -> None:
    """Compare pretrained backbones on a dataset: accuracy of a linear model on their features, and cost.

    Each image of the train split is judged by a model that has not seen it; eval and test are not looked at.
    """
    with report_errors():
        from pipeline.logs import redirect_output
        from pipeline.probe import check_configuration, configure, draw_outcome
        from pipeline.probe import probe as probe_backbones

        _check_writable(picture, picture if picture.exists() else picture.parent, "--picture")
        if write is not None:
            if not write.is_file():
                raise typer.BadParameter(f"there is no file {write}: imagepipe init writes one", param_hint="--write")
            _check_writable(write, write.resolve().parent, "--write")  # a new file takes its place
            check_configuration(write)
        with redirect_output(Path(os.devnull)) as terminal:
            outcome = probe_backbones(dataset, weights, lambda line: print(line, file=terminal))
        if as_json:
            print_json(_describe(outcome))
        else:
            _print_outcome(outcome)
        draw_outcome(outcome, picture)
        print_note(f"A picture: {picture}")
        if write is not None:
            removed = configure(outcome.chosen, write)
            print_note(f"Set in {write}.")
            if removed:
                print_note(
                    f"Removed from it, as they name layers that the backbone does not have: {', '.join(removed)}."
                )


def _check_writable(file: Path, place: Path, option: str) -> None:
    """Checks, before minutes of work, that a file can be written: that a place, itself or its folder, is writable."""
    if file.is_dir():
        problem = f"{file} is a folder"
    elif not place.exists():
        problem = f"there is no folder {place}"
    elif not os.access(place, os.W_OK):
        problem = f"{file} can't be written: {place} is not writable"
    else:
        return
    raise typer.BadParameter(problem, param_hint=option)


def _print_outcome(outcome: "Outcome") -> None:
    for reason in outcome.passed_over:
        print_note(f"passed over: {reason}")
    print_table(_tabulate(outcome), min_width=120)
    images = f"{outcome.images:,} of {outcome.total:,}, a sample by hash," if outcome.images < outcome.total else ""
    ERR.print(f"Judged on {images or f'{outcome.images:,}'} images of the train split.")
    chosen = outcome.chosen.candidate
    OUT.print(f"The cheapest within noise of the best: {chosen.backbone} ({quote(Path(chosen.weights).name)})")


def _tabulate(outcome: "Outcome") -> Table:
    table = Table(
        "backbone", outcome.metric, "95 % interval", "ms/image", "MB", "pixels", "weights", box=box.SIMPLE_HEAD
    )
    for column in table.columns[1:6]:
        column.justify = "right"
    for result in sorted(outcome.results, key=lambda result: result.milliseconds):
        bold = "[bold]" if result is outcome.chosen else ""
        table.add_row(
            bold + result.candidate.backbone,
            f"{bold}{result.value:.3f}",
            f"{result.interval[0]:.3f} to {result.interval[1]:.3f}",
            f"{result.milliseconds:.1f}",
            f"{_count_megabytes(result):.0f}",
            str(result.candidate.size[0]),
            quote(Path(result.candidate.weights).name),
        )
    return table


def _describe(outcome: "Outcome") -> dict[str, Any]:
    return {
        "metric": outcome.metric,
        "images": outcome.images,
        "images_of_train": outcome.total,
        "backbones": [
            {
                "backbone": result.candidate.backbone,
                "weights": result.candidate.weights,
                "size": list(result.candidate.size),
                "value": result.value,
                "interval": list(result.interval),
                "milliseconds": result.milliseconds,
                "megabytes": _count_megabytes(result),
            }
            for result in outcome.results
        ],
        "chosen": outcome.chosen.candidate.backbone,
        "chosen_weights": outcome.chosen.candidate.weights,
        "passed_over": outcome.passed_over,
    }


def _count_megabytes(result: "Probed") -> float:
    return result.numbers * 4 / 1e6
