"""Commands about a model in service: monitor, feedback, compare."""

import dataclasses
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from imagepipe.base.console import quote
from imagepipe.base.periods import parse_start
from imagepipe.base.progress import print_note
from pipeline.cli.shared import (
    ERR,
    MOVED,
    OUT,
    JsonOption,
    WorkdirOption,
    print_json,
    print_table,
    report_errors,
)

if TYPE_CHECKING:
    from imagepipe.monitoring.feedback import Accuracy, Feedback
    from imagepipe.monitoring.pairs import Pairs
    from imagepipe.monitoring.report import Monitored

app = typer.Typer()

CaptureArgument = Annotated[
    str, typer.Argument(metavar="CAPTURE", help="The folder of `serve --capture`: a path or URI.")
]
SinceOption = Annotated[
    str, typer.Option(metavar="TIME", help="Leave out what was answered before: 7d, 12h, or a date such as 2026-05-01.")
]

TaskOption = Annotated[Literal["classification", "multilabel", "regression"], typer.Option(help="The model's task.")]


@app.command()
def monitor(
    capture: CaptureArgument,
    against: Annotated[
        str,
        typer.Option(
            metavar="MODEL|RUN",
            help="The live version (serving/NAME/VERSION or serving/NAME), its run (runs/RUN), or the "
            "reference.parquet of that.",
        ),
    ],
    since: SinceOption = "7d",
    feedback: Annotated[
        str | None, typer.Option(metavar="FILE", help="True labels that came later, see `imagepipe feedback`.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page of it, such as monitor.html.")] = None,
    max_divergence: Annotated[
        float, typer.Option(min=0, max=1, help="Divergence of a number up to which it has not moved.")
    ] = 0.02,
    max_share: Annotated[
        float, typer.Option(min=0, max=1, help="Change of a label's share up to which it has not moved.")
    ] = 0.05,
    workdir: WorkdirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare what a model is asked with what it was trained on. Exits with 3 if a measure has moved."""
    start = parse_since(since)
    with report_errors():
        from components.serving_monitor import page
        from imagepipe.monitoring import report
        from imagepipe.monitoring.comparison import Limits
        from imagepipe.monitoring.feedback import join_feedback
        from pipeline.runs.reference import find_reference

        reference = find_reference(against, workdir)
        joined = join_feedback(feedback, capture, reference.task, start) if feedback else None
        limits = Limits(divergence=max_divergence, share=max_share)
        monitored = report.monitor(capture, reference, limits, start, joined)
        if out:
            out.write_text(page.render_page(monitored), encoding="utf-8")
    if note := report.describe_other_versions(monitored):
        print_note(note)
    if as_json:
        print_json(report.to_json(monitored))
    else:
        _show(monitored)
        if joined:
            _show_feedback(joined)
    if out:
        ERR.print(f"The page: {quote(out)}")
    raise typer.Exit(MOVED if monitored.moved else 0)


@app.command()
def feedback(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="CSV or JSON lines with metadata or request_id, each image's true label, and columns to slice by.",
        ),
    ],
    capture: CaptureArgument,
    task: TaskOption = "classification",
    since: SinceOption = "30d",
    as_json: JsonOption = False,
) -> None:
    """Join true labels that came later with captured answers: accuracy in service, by version and slice."""
    start = parse_since(since)
    with report_errors():
        from imagepipe.monitoring.feedback import join_feedback

        joined = join_feedback(file, capture, task, start)
    if as_json:
        print_json(dataclasses.asdict(joined))
    else:
        _show_feedback(joined)


@app.command()
def compare(
    capture: CaptureArgument,
    versions: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[VERSION VERSION]",
            help="The live one, then the other; by default the live one and the last that answered in shadow.",
        ),
    ] = None,
    feedback: Annotated[
        str | None, typer.Option(metavar="FILE", help="True labels that came later, see `imagepipe feedback`.")
    ] = None,
    task: TaskOption = "classification",
    since: SinceOption = "30d",
    as_json: JsonOption = False,
) -> None:
    """Compare two versions on the captured images that both were asked about: which is right more often."""
    start = parse_since(since)
    if versions and len(versions) != 2:
        raise typer.BadParameter("give two versions, or none")
    with report_errors():
        from imagepipe.monitoring.pairs import compare_versions, find_shadow

        first, second = versions or find_shadow(capture, start)
        pairs = compare_versions(capture, (first, second), task, feedback, start)
    if as_json:
        print_json(dataclasses.asdict(pairs))
    else:
        show_pairs(pairs, OUT)


def parse_since(text: str) -> datetime:
    """Returns the time that an option ``--since`` names."""
    try:
        return parse_start(text)
    except ValueError as error:
        raise typer.BadParameter(f"--since: {error}") from None


def _show(monitored: "Monitored") -> None:
    from imagepipe.monitoring.report import MIN_IMAGES, describe_moved, describe_nothing_compared, measure_latency

    table = Table("day (UTC)", "version", "images", "ms, median", "ms, 95 %", "errors", "moved", box=box.SIMPLE)
    for part, traffic in monitored.traffic.items():
        moved = [m.comparison.measure for m in monitored.moved if m.part == str(part)]
        few = traffic.images < MIN_IMAGES
        verdict = f"too few to compare (at least {MIN_IMAGES})" if few else ", ".join(moved) or "nothing"
        latency = measure_latency(traffic) or {}
        times = [f"{value:.1f}" for value in latency.values()] or ["", ""]
        errors = f"{traffic.errors.total():,}"
        table.add_row(part.day, quote(part.version), f"{traffic.images:,}", *times, errors, verdict)
    print_table(table)
    for part, traffic in monitored.traffic.items():
        if traffic.errors:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in traffic.errors.most_common())
            OUT.print(quote(f"{part}: requests that were not answered: {reasons}"))
    if sentence := describe_nothing_compared(monitored):
        OUT.print(sentence)
    for measure in monitored.moved:
        OUT.print(quote(describe_moved(measure)))


def _show_feedback(joined: "Feedback") -> None:
    OUT.print(
        f"{joined.lines:,} labels = {joined.joined:,} joined + {joined.unmatched:,} whose answer was not captured"
        f" + {joined.ambiguous:,} with several images under one id"
    )
    for accuracy in joined.accuracies:
        OUT.print(quote(f"version {accuracy.version}: {_format(accuracy)} over {accuracy.images:,} images"))
    if joined.slices:
        table = Table("slice", "version", "images", "value", box=box.SIMPLE)
        for part in joined.slices:
            name = quote(f"{part.column}: {part.slice or '(none)'}")
            table.add_row(name, quote(part.version), f"{part.images:,}", _format(part))
        print_table(table)
    for column, count in joined.values_left_out.items():
        OUT.print(quote(f"{column}: {count:,} more values, with fewer images, are left out"))


def _format(accuracy: "Accuracy") -> str:
    low, high = accuracy.interval
    return f"{accuracy.value:.4f} ({low:.4f} to {high:.4f})"


def show_pairs(pairs: "Pairs", console: Console) -> None:
    """Prints to a console how two versions compare."""
    from imagepipe.monitoring.pairs import find_better

    first, second = (quote(version) for version in pairs.versions)
    alone = f"{pairs.alone[0]:,} that only {first} was asked about, {pairs.alone[1]:,} only {second}"
    console.print(f"{pairs.images:,} images that both were asked about (left out: {alone})")
    if pairs.same is not None and pairs.same_interval:
        low, high = pairs.same_interval
        console.print(f"the same answer: {pairs.same / pairs.images:.4f} ({low:.4f} to {high:.4f})")
    console.print(f"scores or values differ by {pairs.mean_difference:.4f} on average")
    times = [f"{version} {ms:.1f} ms" for version, ms in zip((first, second), pairs.milliseconds, strict=True) if ms]
    if times:
        console.print(f"mean time of an answer: {', '.join(times)}")
    for version, images in zip((first, second), pairs.in_shadow, strict=True):
        if images:
            console.print(f"{version} answered {images:,} images in shadow: its time is that of the lowest priority")
    if (judged := pairs.judgement) is None:
        console.print("which is better: not known, as no true label of these images is (--feedback)")
        return
    measure = "share of right answers" if pairs.same is not None else "mean absolute error"
    console.print(
        f"{measure} over {judged.images:,} images: {first} {judged.values[0]:.4f}, {second} {judged.values[1]:.4f}"
    )
    better = find_better(pairs)
    verdict = f"version {quote(better)} is better" if better else "no difference could be shown"
    low, high = judged.interval
    console.print(
        f"{verdict}: the difference is {judged.difference:+.4f} ({low:+.4f} to {high:+.4f}), p = {judged.p:.2g}"
    )
