"""Which backbone suits a dataset: probes those whose weights are at hand, draws the results, configures the choice."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from imagepipe.base import filesystem
from imagepipe.base.charts import Axis, Point, draw_chart
from imagepipe.base.errors import ConfigError, WeightsError
from imagepipe.ingest import dataset as datasets
from pipeline.config_file import read_config
from pipeline.staging import open_splits
from pipeline.yaml_edit import replace_values

if TYPE_CHECKING:
    from trainer.probe import Probed

_WIDTH, _HEIGHT = 640, 400
_STYLE = """<style>
text { font: 13px sans-serif; fill: #37474f; } .grid { stroke: #cfd8dc; } .whisker { stroke: #78909c; }
.f0 { fill: #78909c; } .chosen { fill: #c62828; }
</style><rect width="100%" height="100%" fill="white"/>"""


class Outcome(NamedTuple):
    """Result of a probe.

    Attributes:
        metric: what the values are.
        images: number of images that were judged.
        total: number of images of the train split.
        results: one per backbone, in the order in which they were probed.
        chosen: the fastest that is no worse than the best beyond chance.
        passed_over: for each file that is no backbone's weights the reason.
    """

    metric: str
    images: int
    total: int
    results: list["Probed"]
    chosen: "Probed"
    passed_over: list[str]


def probe(dataset: str, weights: Path | None, on_start: Callable[[str], None] = lambda line: None) -> Outcome:
    """Probes all backbones whose weights are at hand on images of a dataset's train split.

    Args:
        dataset: folder that ``imagepipe ingest`` wrote, or the URI of one, whose train split is copied.
        weights: folder with files of weights; None for Keras's only.
        on_start: called with a line about what is done.

    Raises:
        IngestError: if there is no such dataset.
        WeightsError: if there are no weights, or they can't be loaded.
        TrainingError: if there is too little to learn from.
    """
    dataset = filesystem.absolute(dataset)
    description = datasets.load(dataset)
    split = description.splits.get("train", datasets.Split())
    on_start("loading TensorFlow …")
    from trainer import probe as backbones

    candidates, passed_over = backbones.list_candidates(weights)
    if not candidates:
        raise WeightsError(
            "there are no weights to probe: Keras's can't be downloaded from here and are not in its cache"
            + ("" if weights is None else f", and {weights} has none of a backbone")
            + ". Give a folder of files: --weights DIR"
        )
    with open_splits(dataset, ["train"]) as folder:
        images = backbones.read_images(
            [f"{folder}/{shard.file}" for shard in split.shards],
            description.options.task,
            split.records,
            (description.options.compress or "").upper(),
        )
        results: list[Probed] = []
        for candidate in candidates:
            on_start(f"{candidate.backbone} at {candidate.size[0]} pixels, {len(images.targets):,} images …")
            results += backbones.probe_candidates([candidate], images)
        chosen = backbones.choose_cheapest(results, images)
    metric = backbones.METRICS[images.task]
    return Outcome(metric, len(images.targets), images.total, results, chosen, passed_over)


def draw_outcome(outcome: Outcome, path: Path) -> None:
    """Draws the metric against the cost, as an SVG picture."""
    points = [
        Point(
            result.milliseconds,
            result.value,
            result.interval,
            title=f"{result.value:.3f}, {result.milliseconds:.1f} ms an image",
            css_class="chosen" if result is outcome.chosen else "f0",
        )
        for result in outcome.results
    ]
    highest = max(point.x for point in points)
    chart = draw_chart(
        f"{outcome.metric} by cost",
        {"backbones": points},
        Axis("milliseconds per image", (0, 1.1 * highest)),
        Axis(outcome.metric),
        size=(_WIDTH, _HEIGHT),
        joined=False,
    )
    if chart is None:
        raise ValueError("there is nothing to draw")
    names = []
    for dot, result in zip(chart.lines[0].dots, outcome.results, strict=True):
        side, anchor = (8, "start") if dot.x < 0.7 * _WIDTH else (-8, "end")
        place = f'x="{dot.x + side:.1f}" y="{dot.y + 4:.1f}" text-anchor="{anchor}"'
        names.append(f"<text {place}>{result.candidate.backbone}</text>")
    opening, rest = chart.svg.split("\n", 1)
    opening = opening.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" ')
    drawing = rest.removesuffix("</svg>")
    path.write_text("\n".join([opening, _STYLE, drawing, *names, "</svg>\n"]), encoding="utf-8")


def configure(chosen: "Probed", config: Path) -> None:
    """Sets backbone, weights and image size in a configuration file; its comments stay.

    Raises:
        ConfigError: if the file can't be read, or can't be so changed.
    """
    read_config(config)  # says what is wrong with it
    candidate = chosen.candidate
    values = {
        ("trainer", "backbone"): candidate.backbone,
        ("trainer", "weights"): candidate.weights,
        ("image", "size"): list(candidate.size),
    }
    try:
        text = replace_values(config.read_text(encoding="utf-8"), values)
    except ConfigError as error:
        raise ConfigError(f"{config}: {error}") from error
    filesystem.write_whole(str(config), text.encode())
