"""The report of 10,000 predictions: seconds, peak memory, size of the page.

A model of ten classes at 75x75 with Grad-CAM's network beside it, 10,000 photos, and what the Evaluator makes of
predictions at random, so that all of the page is full. Those figures are made here: TFMA's reading of them is left out.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import photo_crops

_NAMES = [f"class-{i}" for i in range(10)]


def prepare(folder: Path, images: int) -> None:
    """Writes what the page is made from."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import tensorflow as tf

    rng = np.random.default_rng(0)
    scores = rng.dirichlet(np.full(10, 0.3), images).astype(np.float32)
    labels = [_NAMES[i] for i in rng.integers(0, 10, images)]
    split = folder / "examples" / "Split-eval"
    split.mkdir(parents=True)
    with tf.io.TFRecordWriter(str(split / "data.gz"), tf.io.TFRecordOptions("GZIP")) as writer:
        for image, label in zip(photo_crops(images), labels, strict=True):
            feature = {
                "input": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
                "label": tf.train.Feature(bytes_list=tf.train.BytesList(value=[label.encode()])),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    (folder / "predictions").mkdir()
    columns = {
        "index": pa.array(range(images), pa.int64()),
        "id": [f"eval/{i}" for i in range(images)],
        "labels": [[label] for label in labels],
        "target": pa.nulls(images, pa.float64()),
        "candidate": pa.array(scores.tolist(), pa.list_(pa.float32())),
        "candidate_label": [_NAMES[i] for i in scores.argmax(axis=1)],
    }
    pq.write_table(pa.table(columns), folder / "predictions" / "predictions.parquet")
    (folder / "predictions" / "names.json").write_text(json.dumps({"task": "classification", "candidate": _NAMES}))
    _models(folder / "model")


def _models(folder: Path) -> None:
    import tensorflow as tf

    from trainer import model, tasks
    from trainer.config import TrainerConfig
    from transform.features import IMAGE
    from transform.images import decode_and_resize

    built = model.build((224, 224), tasks.classification(10), {}, TrainerConfig(weights="none"))
    (folder / "training").mkdir(parents=True)
    built.model.save(folder / "training" / "model.keras")

    class Transform(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
        def transform_features(self, examples: Any) -> dict[str, Any]:
            parsed = tf.io.parse_example(examples, {"input": tf.io.FixedLenFeature([], tf.string)})
            return {IMAGE: decode_and_resize(parsed["input"], (224, 224))}

    module = Transform()
    signatures = {"transform_features": module.transform_features}
    tf.saved_model.save(module, str(folder / "Format-Serving"), signatures=signatures)


def evaluated(folder: Path) -> Any:
    """What the Evaluator would have found, from the rows."""
    from collections import Counter

    from components.evaluation import Evaluation, Figure, Slice
    from components.report import rows

    said = rows.load(folder / "predictions")
    actual = [_NAMES.index(labels[0]) for labels in said.labels]
    confusion = Counter(zip(actual, said.scores.argmax(axis=1).tolist(), strict=True))
    right = sum(count for (a, p), count in confusion.items() if a == p)
    whole = Slice({}, len(actual), {"accuracy": Figure(right / len(actual))}, None, {}, None)
    return Evaluation([whole], {}, dict(confusion), {}, {}, [])


def render(folder: Path) -> None:
    """Makes the page, and prints its size and how long it took, imports left out."""
    import resource
    from unittest import mock

    from components.report import page
    from serving.report import Report
    from transform.features import Features

    figures = evaluated(folder)
    imports = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    start = time.monotonic()
    given = page.Inputs(
        evaluation="",
        predictions=folder / "predictions",
        splits={"eval": str(folder / "examples" / "Split-eval")},
        model=folder / "model" / "Format-Serving",
        findings=None,
        blessed=True,
        serving=Report([], median_ms=1.0, p95_ms=2.0),
        features=Features(),
        name="benchmark",
        config={},
    )
    with mock.patch.object(page.evaluations, "load", return_value=figures):
        html = page.render(given)
    seconds = time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    found = {"seconds": round(seconds, 1), "peak_mib": round(peak), "imports_mib": round(imports)}
    print(json.dumps(found | {"page_mib": round(len(html) / 2**20, 2)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--render", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.render:
        render(given.render)
        return
    import subprocess

    with tempfile.TemporaryDirectory() as folder:
        # Each in a process of its own, so that the peak is that of the page alone.
        code = (
            f"from pathlib import Path; from benchmarks import report; report.prepare(Path({folder!r}), {given.images})"
        )
        subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603 (our own command)
        command = [sys.executable, "-m", "benchmarks.report", "--render", folder]
        done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    line = done.stdout.strip().splitlines()[-1]
    found = json.loads(line)
    print(line if given.json else "\n".join(f"{name:>10}  {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
