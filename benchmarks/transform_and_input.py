"""Raw Examples to training-ready batches: by the transform graph in tf.data, by plain tf.data, and materialized.

- ours: `trainer.inputs`, that is the graph that Transform wrote, inside tf.data; uint8 pixels kept in a file
- plain: what one would write by hand: parse, decode, antialiased resize, a map an image, `cache(FILE)`
- materialized: TFX's Transform by its defaults writes float pixels to TFRecords, with statistics, and those are read;
  Beam has a worker process for each core, as tf.data has a thread
- materialized, one process: the same where Beam works in the process that asks it, on one core

Each side is a process of its own. The first two start from the graph of an earlier analysis, as the Trainer does; TFX
does its analysis (a vocabulary of ten labels) on the way. 320x240 JPEGs, crops of scikit-learn's sample photos, become
batches of 32 at 299x299.

    python -m benchmarks.transform_and_input [--images N] [--repeats N] [--json] [--record]
"""

import argparse
import contextlib
import functools
import json
import os
import statistics
import sys
import tempfile
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common import make_photo_crops, measure
from benchmarks.results import Claim, at_least, make_parser, report

MEASURES = ("transform", "trainer/inputs.py")
SIZE = (299, 299)
BATCH = 32
RECORDS = "records"  # the folder of the Examples
SHARDS = 8  # as Beam's workers share them by file
MATERIALIZED: dict[str, dict[str, Any]] = {  # and Beam's options for it
    "materialized": {
        "direct_running_mode": "multi_processing",
        "direct_num_workers": len(os.sched_getaffinity(0)),
    },
    "materialized, one process": {},
}
SIDES = ("ours", "plain", *MATERIALIZED)
GOALS = {"ours/plain, first pass": 0.9, "ours/plain, later passes": 0.9} | {f"ours/{side}": 30 for side in MATERIALIZED}
MEMORY_GOAL = 0.5


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--side", choices=["prepare", *SIDES], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        if arguments.side == "prepare":
            prepare(arguments.folder, arguments.images)
        else:
            materialize = {side: functools.partial(materialized, side=side) for side in MATERIALIZED}
            times = ({"ours": ours, "plain": plain} | materialize)[arguments.side](arguments.folder)
            (arguments.folder / f"{arguments.side}.json").write_text(json.dumps(times), encoding="utf-8")
        os._exit(0)  # a process that ran TensorFlow Transform here crashes when it is torn down; all is written by now

    rates: dict[str, dict[str, list[float]]] = {side: {"first": [], "later": []} for side in SIDES}
    memory: dict[str, float] = {}
    anonymous: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.transform_and_input", "--folder", folder]
        measure([*command, "--side", "prepare", "--images", str(arguments.images)])
        for repeat in range(arguments.repeats):
            for side in SIDES if repeat == 0 else SIDES[:2]:  # the others take minutes, and are far away
                usage = measure([*command, "--side", side])
                memory[side] = max(memory.get(side, 0), usage.peak / 2**20)
                anonymous[side] = max(anonymous.get(side, 0), usage.peak_anonymous / 2**20)
                result = json.loads((Path(folder) / f"{side}.json").read_text(encoding="utf-8"))
                for which, seconds in result.items():
                    rates[side][which].append(arguments.images / seconds)

    median = {side: {which: statistics.median(values) for which, values in r.items()} for side, r in rates.items()}
    ratios = {
        "ours/plain, first pass": median["ours"]["first"] / median["plain"]["first"],
        "ours/plain, later passes": median["ours"]["later"] / median["plain"]["later"],
        **{f"ours/{side}": median["ours"]["first"] / median[side]["first"] for side in MATERIALIZED},
    }
    rows = [
        [
            side,
            f"{median[side]['first']:,.0f}",
            f"{median[side]['later']:,.0f}",
            f"{memory[side]:,.0f}",
            f"{anonymous[side]:,.0f}",
        ]
        for side in SIDES
    ]
    memory_ratios = {f"ours/{side}": memory["ours"] / memory[side] for side in MATERIALIZED}
    report(
        arguments,
        "transform_and_input",
        MEASURES,
        {
            "images": arguments.images,
            "images_per_second": median,
            "peak_memory_mib": memory,
            "without_files_mib": anonymous,
            "ratios": ratios,
            "goals": GOALS,
            "memory_ratios": memory_ratios,
            "memory_goal": MEMORY_GOAL,
        },
        ["", "first pass, images/s", "later passes", "peak MiB", "without files' pages"],
        rows,
        [at_least(f"images/s, {name}", ratio, GOALS[name]) for name, ratio in ratios.items()]
        + [
            Claim(f"peak memory, {name}", f"{ratio:.2f}", f"below {MEMORY_GOAL:g}", ratio < MEMORY_GOAL)
            for name, ratio in memory_ratios.items()
        ],
    )


def _config() -> dict[str, Any]:
    from imagepipe.base.features import Features

    return {"task": "classification", "features": asdict(Features()), "image_size": list(SIZE)}


def _preprocessing() -> Any:
    from transform.preprocessing import preprocessing_fn

    return functools.partial(preprocessing_fn, custom_config=_config())


def _metadata() -> Any:
    import tensorflow as tf
    import tensorflow_transform as tft

    spec = {name: tf.io.FixedLenFeature([], tf.string) for name in ("input", "label")}
    return tft.DatasetMetadata.from_feature_spec(spec)


def _beam() -> Any:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    from pipeline.config import BeamConfig

    return beam.Pipeline(options=PipelineOptions(BeamConfig().make_arguments()))


def prepare(folder: Path, images: int) -> None:
    """Writes the Examples, and Transform's analysis of them."""
    import apache_beam as beam
    import tensorflow as tf
    import tensorflow_transform.beam as tft_beam

    (folder / RECORDS).mkdir()
    with contextlib.ExitStack() as stack:
        shards = [
            stack.enter_context(tf.io.TFRecordWriter(str(folder / RECORDS / f"data-{number:05}-of-{SHARDS:05}")))
            for number in range(SHARDS)
        ]
        for number, jpeg in enumerate(make_photo_crops(images)):
            example = tf.train.Example()
            example.features.feature["input"].bytes_list.value.append(jpeg)
            example.features.feature["label"].bytes_list.value.append(b"%d" % (number % 10))
            shards[number % SHARDS].write(example.SerializeToString())
    rows = [{"input": jpeg, "label": b"%d" % number} for number, jpeg in enumerate(make_photo_crops(10))]
    with _beam() as pipeline, tft_beam.Context(temp_dir=str(folder / "tmp")):
        transform_fn = ((pipeline | beam.Create(rows)), _metadata()) | tft_beam.AnalyzeDataset(_preprocessing())
        _ = transform_fn | tft_beam.WriteTransformFn(str(folder / "transform"))
        _ = _metadata() | tft_beam.WriteMetadata(str(folder / "transform" / "metadata"), pipeline=pipeline)


def _passes(batches: Any) -> dict[str, float]:
    """Seconds of the first pass, and the median of three later ones."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        for _batch in batches:
            pass
        times.append(time.perf_counter() - start)
    return {"first": times[0], "later": statistics.median(times[1:])}


def ours(folder: Path) -> dict[str, float]:
    import tensorflow_transform as tft

    from imagepipe.base.features import Features
    from trainer.inputs import load_split, read_batches, shuffle_epochs
    from trainer.tasks import make_classification
    from transform.examples import load_graph, make_parser, read_shards

    output = tft.TFTransformOutput(str(folder / "transform"))
    _owner, transform = load_graph(output)
    parse = make_parser(output, Features(), with_label=True)
    start = time.perf_counter()
    records = read_shards([str(folder / RECORDS / "*")])
    split = load_split(records, lambda x: transform(parse(x)), make_classification(10), folder / "pixels")
    loaded = time.perf_counter() - start
    epochs = shuffle_epochs(split.count, split.count, BATCH, seed=0, first=0)
    epoch = read_batches(split, epochs.take(-(-split.count // BATCH))).prefetch(2)
    passes = _passes(epoch)
    return {"first": loaded + passes["first"], "later": passes["later"]}


def plain(folder: Path) -> dict[str, float]:
    import tensorflow as tf

    names = tf.constant([str(number) for number in range(10)])

    def one(serialized: Any) -> Any:
        spec = {name: tf.io.FixedLenFeature([], tf.string) for name in ("input", "label")}
        parsed = tf.io.parse_single_example(serialized, spec)
        pixels = tf.image.resize(tf.io.decode_jpeg(parsed["input"], channels=3), SIZE, antialias=True)
        pixels = tf.cast(tf.clip_by_value(tf.round(pixels), 0, 255), tf.uint8)
        return {"image": pixels}, tf.argmax(tf.equal(names, parsed["label"]))

    records = tf.data.TFRecordDataset(tf.io.gfile.glob(str(folder / RECORDS / "*")))
    examples = records.map(one, num_parallel_calls=tf.data.AUTOTUNE).cache(str(folder / uuid.uuid4().hex))
    return _passes(examples.shuffle(2000, seed=0).batch(BATCH).prefetch(tf.data.AUTOTUNE))


def materialized(folder: Path, side: str) -> dict[str, float]:
    import tensorflow as tf
    import tensorflow_transform as tft
    from tensorflow_transform.tf_metadata import metadata_io
    from tfx.components.transform.executor import Executor
    from tfx.types import standard_artifacts

    from pipeline.config import BeamConfig

    given, folder = folder / RECORDS, folder / side
    (folder / "examples").mkdir(parents=True)
    (folder / "examples" / "Split-train").symlink_to(given)
    metadata_io.write_metadata(_metadata(), str(folder / "schema"))
    examples, schema = standard_artifacts.Examples(), standard_artifacts.Schema()
    examples.uri, schema.uri = str(folder / "examples"), str(folder / "schema")
    graph, transformed = standard_artifacts.TransformGraph(), standard_artifacts.Examples()
    graph.uri, transformed.uri = str(folder / "graph"), str(folder / "transformed")
    examples.split_names = transformed.split_names = '["train"]'

    outputs = {"transform_graph": [graph], "transformed_examples": [transformed]}
    for prefix, kinds in {
        "pre_transform": {"schema": standard_artifacts.Schema, "stats": standard_artifacts.ExampleStatistics},
        "post_transform": {
            "schema": standard_artifacts.Schema,
            "stats": standard_artifacts.ExampleStatistics,
            "anomalies": standard_artifacts.ExampleAnomalies,
        },
    }.items():
        for name, kind in kinds.items():
            artifact = kind()
            artifact.uri = str(folder / f"{prefix}_{name}")
            Path(artifact.uri).mkdir()
            outputs[f"{prefix}_{name}"] = [artifact]

    start = time.perf_counter()
    beam_args = BeamConfig(options=MATERIALIZED[side]).make_arguments()
    context = Executor.Context(beam_pipeline_args=beam_args, tmp_dir=str(folder / "tmp"), unique_id="0")
    Executor(context).Do(
        {"examples": [examples], "schema": [schema]},
        outputs,
        {
            "preprocessing_fn": "transform.preprocessing.preprocessing_fn",
            "custom_config": json.dumps(_config()),
            "splits_config": '{"analyze": ["train"], "transform": ["train"]}',
        },
    )
    spec = tft.TFTransformOutput(graph.uri).transformed_feature_spec()
    files = sorted(str(file) for file in (folder / "transformed").rglob("*.gz"))
    records = tf.data.TFRecordDataset(files, compression_type="GZIP")
    batches = records.batch(BATCH).map(lambda x: tf.io.parse_example(x, spec), num_parallel_calls=tf.data.AUTOTUNE)
    written = time.perf_counter() - start
    passes = _passes(batches.prefetch(tf.data.AUTOTUNE))
    return {"first": written + passes["first"], "later": passes["later"]}


if __name__ == "__main__":
    main()
