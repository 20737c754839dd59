"""The reference of a run: what traffic to its model is compared with, made once of what the run left."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from imagepipe.base.errors import ModelError
from imagepipe.base.features import Features
from imagepipe.base.filesystem import is_uri
from imagepipe.base.names import ROWS, SUMMARY
from imagepipe.base.tfrecord import decode_example, read_artifact, read_bytes_feature
from imagepipe.monitoring.comparison import MEASURES
from imagepipe.monitoring.reference import REFERENCE, Reference, read_reference, write_reference
from pipeline.config_file import read_config
from pipeline.runs import lineage, metadata_store
from pipeline.runs.provenance import CONFIG
from pipeline.runs.summary import Summary, read_summaries
from pipeline.workdir import Workdir

_MAX_TRAINED, _MAX_EVALUATED, _MAX_EMBEDDED = 5000, 20_000, 500
_BATCH = 32


def find_reference(against: str, workdir: Path | None = None) -> Reference:
    """Returns the reference of a model, which is made and kept in its run if there is none.

    Args:
        against: a version (``serving/NAME/VERSION``), a folder of versions (its newest is meant), a run, or a
            ``reference.parquet``; also by URI, but for a run.
        workdir: see ``lineage.trace_model``.

    Raises:
        ModelError: if there is no such model, or its run has left nothing to make it of.
    """
    if against.endswith(".parquet"):
        return read_reference(against)
    path = Path(against)
    if (path / SUMMARY).is_file():
        root = path.resolve().parent.parent
        summary = dict(read_summaries(root / "runs")).get(path.resolve().name)
        if summary is None:
            raise ModelError(f"{path / SUMMARY} can't be read: restore it, or give another run")
    else:
        model = against if is_uri(against) else str(path.resolve())
        root = workdir.resolve() if workdir else lineage.find_workdir(model)
        summary = lineage.trace_model(model, root).run
    file = Workdir(root).runs / summary.run_id / REFERENCE
    if not file.is_file():
        _make_reference(Workdir(root), summary, file)
    return read_reference(str(file))


def _make_reference(workdir: Workdir, run: Summary, file: Path) -> None:
    with metadata_store.open_store(workdir.metadata) as opened:
        executions = metadata_store.read_executions(opened, run.name, run.run_id) if opened else []
    outputs = {(e.node, output.key): Path(output.uri) for e in executions for output in e.outputs if not output.removed}
    try:
        examples, predictions = outputs["ImportExampleGen", "examples"], outputs["Predictions", "predictions"]
        rows = pq.read_table(predictions / ROWS).to_pylist()
        features = read_config(workdir.runs / run.run_id / CONFIG).data.features.make_features()
        trained = list(itertools.islice(_read_measures(examples / "Split-train"), _MAX_TRAINED))
    except (KeyError, FileNotFoundError) as error:
        raise ModelError(
            f"{workdir.runs / run.run_id}: traffic can't be compared with this run, as {error} is missing. "
            "`imagepipe clean` removes the artifacts of old runs; run the pipeline again"
        ) from error
    every = -(-len(rows) // _MAX_EMBEDDED)
    embeddings = _embed(run, examples / "Split-eval", features, every)
    evaluated = [_describe_answer(row, embeddings.get(row["index"])) for row in rows[:_MAX_EVALUATED]]
    write_reference(str(file), [*trained, *evaluated], run.task, run.pushed_version or "", run.run_id)


def _describe_answer(row: dict[str, Any], embedding: Any) -> dict[str, Any]:
    measures = {name: row.get(name, row.get(f"x_{name}")) for name in MEASURES}
    answer = {"label": row["candidate_label"], "score": max(row["candidate"]), "novelty": row["candidate_novelty"]}
    return {"split": "eval", **measures, **answer, "embedding": embedding}


def _read_measures(split: Path) -> Iterator[dict[str, Any]]:
    """Yields the measures of a split's images, those of all files in turn: a file may have one class only."""
    for records in itertools.zip_longest(*read_artifact(split)):
        for example in map(decode_example, filter(None, records)):
            yield {"split": "train"} | {name: example[name][0] for name in MEASURES if example.get(name)}


def _embed(run: Summary, split: Path, features: Features, every: int) -> dict[int, Any]:
    """Returns embeddings, float16 ``[d]``, of every n-th image of the eval split by its index; none of old models."""
    from pipeline.logs import hide_output

    records = itertools.islice(enumerate(itertools.chain.from_iterable(read_artifact(split))), 0, None, every)
    embeddings: dict[int, Any] = {}
    if not run.model_dir or not Path(run.model_dir).is_dir():
        return embeddings
    with hide_output():
        import tensorflow as tf

        loaded = tf.saved_model.load(run.model_dir)
        if "embed" not in loaded.signatures:
            return embeddings
        while batch := list(itertools.islice(records, _BATCH)):
            images = tf.constant([read_bytes_feature(record, features.input)[0] for _, record in batch], tf.string)
            metadata = tf.constant([""] * len(batch), tf.string)
            vectors = loaded.signatures["embed"](input=images, metadata=metadata)["embedding"].numpy()
            embeddings |= {index: vector for (index, _), vector in zip(batch, vectors.astype("float16"), strict=True)}
    return embeddings
