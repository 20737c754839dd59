"""A metric over the runs of a pipeline, as a line chart."""

from dataclasses import dataclass

from imagepipe.base.charts import Axis, Chart, Point, draw_chart

_SIZE = (440, 180)


@dataclass(frozen=True)
class RunValue:
    """A metric's value in a run.

    Attributes:
        run: the run's id.
        value: the value, finite.
        interval: ends of its confidence interval; None if none was computed.
        pushed: whether the run pushed a model.
    """

    run: str
    value: float
    interval: tuple[float, float] | None
    pushed: bool


def draw_metric_history(name: str, values: list[RunValue], latest: str) -> Chart | None:
    """Draws values in order of time; runs stand at equal distances.

    Args:
        name: the metric's, as the title.
        values: one per run.
        latest: the latest value as text.

    Returns:
        The chart; None without values. The dots of runs that pushed a model have the CSS class ``pushed``, others
        ``point``.
    """
    points = [
        Point(
            x=number + 0.5,
            y=run.value,
            interval=run.interval,
            title=f"{run.run}: {run.value}{', pushed' if run.pushed else ''}",
            css_class="pushed" if run.pushed else "point",
        )
        for number, run in enumerate(values)
    ]
    if not values:
        return None
    first, last = format_day(values[0].run), format_day(values[-1].run)
    days = ((0.0, first), (float(len(values)), last)) if first != last else ((0.0, first),)
    return draw_chart(
        name,
        {name: points},
        Axis(ends=(0, len(values)), labels=days),
        Axis(),
        size=_SIZE,
        summary=f"{name} of {len(values)} run{'' if len(values) == 1 else 's'}, the latest {latest}",
    )


def format_day(run: str) -> str:
    """Returns the day of a run from its id, such as 2026-11-25; the id itself if it has another form."""
    return f"{run[:4]}-{run[4:6]}-{run[6:8]}" if run[:8].isdigit() and len(run) > 8 else run
