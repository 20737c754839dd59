"""Raw Examples to training-ready batches: by the transform graph in tf.data, by plain tf.data, and materialized.

- ours: `trainer.inputs`, that is the graph that Transform wrote, inside tf.data; uint8 pixels kept in memory
- plain: what one would write by hand: parse, decode, antialiased resize, a map an image, `cache()`
- materialized: Transform writes float pixels to TFRecords with Beam, and those are read back

Each side is a process of its own. The analysis (the vocabulary) is done before, for all, and not timed. 320x240 JPEGs,
crops of scikit-learn's sample photos, become batches of 32 at 299x299.

    python -m benchmarks.transform_and_input [--images N] [--repeats N] [--json]
"""

import argparse
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common import measure, photo_crops, report

SIZE = (299, 299)
BATCH = 32
SIDES = ("ours", "plain", "materialized")
GOALS = {"ours/plain, first pass": 0.9, "ours/plain, later passes": 0.9, "ours/materialized": 30.0}
MEMORY_GOAL = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    parser.add_argument("--side", choices=["prepare", *SIDES], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        if arguments.side == "prepare":
            prepare(arguments.folder, arguments.images)
        else:
            times = {"ours": ours, "plain": plain, "materialized": materialized}[arguments.side](arguments.folder)
            (arguments.folder / f"{arguments.side}.json").write_text(json.dumps(times))
        os._exit(0)  # a process that ran TensorFlow Transform here crashes when it is torn down; all is written by now

    rates: dict[str, dict[str, list[float]]] = {side: {"first": [], "later": []} for side in SIDES}
    memory: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.transform_and_input", "--folder", folder]
        measure([*command, "--side", "prepare", "--images", str(arguments.images)])
        for repeat in range(arguments.repeats):
            for side in SIDES if repeat == 0 else SIDES[:2]:  # the slow side takes minutes, and is far away
                _, peak = measure([*command, "--side", side])
                memory[side] = max(memory.get(side, 0), peak / 2**20)
                for which, seconds in json.loads((Path(folder) / f"{side}.json").read_text()).items():
                    rates[side][which].append(arguments.images / seconds)

    median = {side: {which: statistics.median(values) for which, values in r.items()} for side, r in rates.items()}
    ratios = {
        "ours/plain, first pass": median["ours"]["first"] / median["plain"]["first"],
        "ours/plain, later passes": median["ours"]["later"] / median["plain"]["later"],
        "ours/materialized": median["ours"]["first"] / median["materialized"]["first"],
    }
    rows = [
        [side, f"{median[side]['first']:,.0f}", f"{median[side]['later']:,.0f}", f"{memory[side]:,.0f}"]
        for side in SIDES
    ]
    memory_ratio = memory["ours"] / memory["materialized"]
    report(
        arguments.json,
        {
            "benchmark": "transform_and_input",
            "images": arguments.images,
            "images_per_second": median,
            "peak_memory_mib": memory,
            "ratios": ratios,
            "goals": GOALS,
            "memory_ratio": memory_ratio,
            "memory_goal": MEMORY_GOAL,
        },
        ["", "first pass, images/s", "later passes", "peak MiB"],
        rows,
        [f"{name}: {ratio:.2f} (goal: at least {GOALS[name]:g})" for name, ratio in ratios.items()]
        + [f"memory, ours/materialized: {memory_ratio:.2f} (goal: below {MEMORY_GOAL:g})"],
    )


def _preprocessing() -> Any:
    from transform.features import Features
    from transform.preprocessing import preprocessing_fn

    config = {"task": "classification", "features": asdict(Features()), "image_size": list(SIZE)}
    return functools.partial(preprocessing_fn, custom_config=config)


def _metadata() -> Any:
    import tensorflow as tf
    import tensorflow_transform as tft

    spec = {name: tf.io.FixedLenFeature([], tf.string) for name in ("input", "label")}
    return tft.DatasetMetadata.from_feature_spec(spec)


def _beam() -> Any:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    return beam.Pipeline("DirectRunner", PipelineOptions(["--direct_running_mode=in_memory"]))


def prepare(folder: Path, images: int) -> None:
    """Writes the Examples, and Transform's analysis of them."""
    import apache_beam as beam
    import tensorflow as tf
    import tensorflow_transform.beam as tft_beam

    with tf.io.TFRecordWriter(str(folder / "examples.tfrecord")) as writer:
        for number, jpeg in enumerate(photo_crops(images)):
            example = tf.train.Example()
            example.features.feature["input"].bytes_list.value.append(jpeg)
            example.features.feature["label"].bytes_list.value.append(b"%d" % (number % 10))
            writer.write(example.SerializeToString())
    rows = [{"input": jpeg, "label": b"%d" % number} for number, jpeg in enumerate(photo_crops(10))]
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

    from trainer import export, inputs, tasks
    from transform import graph
    from transform.features import Features

    output = tft.TFTransformOutput(str(folder / "transform"))
    _owner, transform = graph.load(output)
    parse = export.example_parser(output, Features(), with_label=True)
    split = inputs.load(
        [str(folder / "examples.tfrecord")],
        lambda x: transform(parse(x)),
        str(folder),
        tasks.classification(10).known,
    )
    return _passes(inputs.training_batches(split, BATCH, seed=0))


def plain(folder: Path) -> dict[str, float]:
    import tensorflow as tf

    names = tf.constant([str(number) for number in range(10)])

    def one(serialized: Any) -> Any:
        spec = {name: tf.io.FixedLenFeature([], tf.string) for name in ("input", "label")}
        parsed = tf.io.parse_single_example(serialized, spec)
        pixels = tf.image.resize(tf.io.decode_jpeg(parsed["input"], channels=3), SIZE, antialias=True)
        pixels = tf.cast(tf.clip_by_value(tf.round(pixels), 0, 255), tf.uint8)
        return {"image": pixels}, tf.argmax(tf.equal(names, parsed["label"]))

    records = tf.data.TFRecordDataset(str(folder / "examples.tfrecord"))
    examples = records.map(one, num_parallel_calls=tf.data.AUTOTUNE).cache()
    return _passes(examples.shuffle(2000, seed=0).batch(BATCH).prefetch(tf.data.AUTOTUNE))


def materialized(folder: Path) -> dict[str, float]:
    import apache_beam as beam
    import tensorflow as tf
    import tensorflow_transform as tft
    import tensorflow_transform.beam as tft_beam
    from tfx_bsl.coders.example_coder import RecordBatchToExamplesEncoder
    from tfx_bsl.public import tfxio

    start = time.perf_counter()
    source = tfxio.TFExampleRecord(str(folder / "examples.tfrecord"), schema=_metadata().schema)
    with _beam() as pipeline, tft_beam.Context(temp_dir=str(folder / "tmp")):
        transform_fn = pipeline | tft_beam.ReadTransformFn(str(folder / "transform"))
        raw = (pipeline | source.BeamSource(), source.TensorAdapterConfig())
        (batches, metadata) = (raw, transform_fn) | tft_beam.TransformDataset(output_record_batches=True)
        encoder = RecordBatchToExamplesEncoder(metadata.schema)
        _ = (
            batches
            | beam.FlatMapTuple(lambda batch, _: encoder.encode(batch))
            | beam.io.WriteToTFRecord(str(folder / "materialized"), file_name_suffix=".gz")
        )
    spec = tft.TFTransformOutput(str(folder / "transform")).transformed_feature_spec()
    files = sorted(str(file) for file in folder.glob("materialized*"))
    records = tf.data.TFRecordDataset(files, compression_type="GZIP")
    examples = records.batch(BATCH).map(lambda x: tf.io.parse_example(x, spec), num_parallel_calls=tf.data.AUTOTUNE)
    written = time.perf_counter() - start
    passes = _passes(examples.prefetch(tf.data.AUTOTUNE))
    for file in files:
        Path(file).unlink()
    return {"first": written + passes["first"], "later": passes["later"]}


if __name__ == "__main__":
    main()
