"""Which backbone suits a dataset: probes those whose weights are at hand, draws the results, configures the choice."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from imagepipe.base import filesystem, tfrecord
from imagepipe.base.charts import Axis, Point, draw_chart
from imagepipe.base.errors import ConfigError, IngestError, WeightsError
from imagepipe.ingest import dataset as datasets
from imagepipe.ingest import shards
from pipeline.config import Config
from pipeline.config_file import parse_config, read_config
from pipeline.staging import open_splits
from pipeline.yaml_edit import remove_value, replace_values
from pipeline.yaml_text import load_yaml
from trainer.backbones import BACKBONES, DEFAULT
from trainer.config import IMAGENET
from trainer.unfreezing import load_names

if TYPE_CHECKING:
    from trainer.probe import Probed

_LAYER = "unfreeze_after"  # key of the trainer that names a layer of the backbone
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
        passed_over: for each file that is no backbone's weights, or whose weights can't be used, the reason.
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
        IngestError: if there is no such dataset, or it is damaged.
        WeightsError: if there is no such folder of weights, or none in it that can be used.
        TrainingError: if there is too little to learn from.
    """
    if weights is not None and not weights.is_dir():
        problem = (
            f"{weights} is a file: give the folder that it is in"
            if weights.exists()
            else f"there is no folder {weights}"
        )
        raise WeightsError(f"--weights: {problem}")
    dataset = filesystem.absolute(dataset)
    description = datasets.load(dataset)
    split = description.splits.get("train", datasets.Split())
    on_start("loading TensorFlow …")
    from trainer import probe as backbones

    candidates, passed_over = backbones.list_candidates(weights)
    if not candidates:
        problem = "there are no weights to probe: Keras's can't be downloaded from here and are not in its cache"
        if weights is not None:
            problem += f", and {weights} has none of a backbone"
        raise WeightsError("\n".join([f"{problem}. Give a folder of files: --weights DIR", *passed_over]))
    with open_splits(dataset, ["train"]) as folder:
        options = description.options
        files = {f"{folder}/{shard.file}": filesystem.join(dataset, shard.file) for shard in split.shards}
        try:
            images = backbones.read_images(list(files), options.task, split.records, (options.compress or "").upper())
        except Exception:  # TensorFlow's own, which don't say in which file
            _check_shards(files, options.compress)
            raise
        results: list[Probed] = []
        for candidate in candidates:
            on_start(f"{candidate.backbone} at {candidate.size[0]} pixels, {len(images.targets):,} images …")
            try:
                results.append(backbones.probe_candidate(candidate, images))
            except WeightsError as error:
                passed_over.append(str(error).removeprefix("trainer.weights: "))
        if not results:
            raise WeightsError("\n".join(["none of the weights at hand can be used:", *passed_over]))
        chosen = backbones.choose_cheapest(results, images)
    metric = backbones.METRICS[images.task]
    return Outcome(metric, len(images.targets), images.total, results, chosen, passed_over)


def _check_shards(files: Mapping[str, str], compress: datasets.Compression | None) -> None:
    """Reads shards, given with their names for messages.

    Raises:
        IngestError: if one is damaged.
    """
    for file, name in files.items():
        try:
            for record in shards.read_records(file, compress):
                tfrecord.decode_example(record)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise IngestError(
                f"{name} is not a TFRecord file of tf.train.Examples ({error}). Ingest its source into a new folder."
            ) from error


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


def check_configuration(config: Path) -> None:
    """Checks, before anything is probed, that a choice can be set in a configuration file.

    Raises:
        ConfigError: if the file can't be read, or can't be so changed.
    """
    _set_choice(config, DEFAULT, IMAGENET, BACKBONES[DEFAULT].size)


def configure(chosen: "Probed", config: Path) -> list[str]:
    """Sets backbone, weights and image size in a configuration file, or the one that a link leads to; comments stay.

    Returns:
        Keys that were removed: they named layers that the backbone does not have.

    Raises:
        ConfigError: see ``check_configuration``.
    """
    text, removed = _set_choice(config, *chosen.candidate)
    filesystem.write_whole(str(config.resolve()), text.encode())
    return removed


def _set_choice(config: Path, backbone: str, weights: str, size: tuple[int, int]) -> tuple[str, list[str]]:
    """Returns the text of a configuration with another backbone, and the keys that were removed from it."""
    previous = read_config(config)  # says what is wrong with it
    text = config.read_text(encoding="utf-8")
    layers = set(load_names()[backbone])
    removed = [key for key, names in _list_layers(previous).items() if not layers.issuperset(names)]
    values = {("trainer", "backbone"): backbone, ("trainer", "weights"): weights, ("image", "size"): list(size)}
    wanted = _change(load_yaml(text, Config), values, removed)
    problem = f"{config}: the choice of a backbone can't be set in it"
    try:
        for key in removed:
            text = remove_value(text, key.split("."))
        text = replace_values(text, values)
        content = load_yaml(text, Config)
        parse_config(content, (), str(config), config.parent)
    except yaml.YAMLError:
        content = None  # the text was YAML
    except ConfigError as error:
        raise ConfigError(f"{problem}: {error}") from error
    if content != wanted:
        choice = ", ".join(f"{section}.{key}: {value}" for (section, key), value in values.items())
        raise ConfigError(f"{problem}, as its YAML is written: set {choice} by hand")
    return text, removed


def _change(content: dict[str, Any], values: Mapping[tuple[str, str], Any], removed: Sequence[str]) -> dict[str, Any]:
    """Returns the content of a configuration with other values, without keys."""
    changed = deepcopy(content)
    for key in removed:
        *path, last = key.split(".")
        del reduce(getitem, path, changed)[last]
    for (section, key), value in values.items():
        changed[section] = {**(changed.get(section) or {}), key: value}
    return changed


def _list_layers(config: Config) -> dict[str, list[str]]:
    """Returns the layers of the backbone that a configuration names, by the key that goes with them."""
    layer, space = config.trainer.unfreeze_after, config.tuner.space if config.tuner else {}
    layers = {f"trainer.{_LAYER}": [layer]} if layer else {}
    if _LAYER in space:  # where nothing else is searched, nothing would be left of the tuner
        layers["tuner" if len(space) == 1 else f"tuner.space.{_LAYER}"] = list(space[_LAYER].values or ())
    return layers
