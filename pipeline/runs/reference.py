"""The reference of a model: what traffic to it is compared with. A version has its own, of the run that pushed it."""

from pathlib import Path

from imagepipe.base import filesystem
from imagepipe.base.errors import ModelError
from imagepipe.base.names import REFERENCE_FILE, SUMMARY
from imagepipe.deploy.storage import find_model
from imagepipe.monitoring.reference import Reference, find_own_reference, read_reference
from imagepipe.monitoring.reference_rows import collect_rows, write_reference
from pipeline.config_file import read_config
from pipeline.logs import hide_output
from pipeline.runs import lineage, metadata_store
from pipeline.runs.provenance import CONFIG
from pipeline.runs.summary import Summary, read_summary
from pipeline.workdir import Workdir


def find_reference(against: str, workdir: Path | None = None) -> Reference:
    """Returns the reference of a model.

    Of a run that pushed no version, and of versions of earlier releases, which have none, it is made of what the run
    left, and kept in the run's folder.

    Args:
        against: a version (``serving/NAME/VERSION``), a folder of versions (its newest is meant), a run, or a file with
            a reference; also by URI, but for a run.
        workdir: see ``lineage.trace_model``.

    Raises:
        ModelError: if there is no such model, or its run has left nothing to make it of.
    """
    if against.endswith(".parquet"):
        return read_reference(against)
    path = Path(against)
    root: Path | None
    run: Summary | None
    if (path / SUMMARY).is_file():
        root, run = path.resolve().parent.parent, _read_run(path)
        model = f"{run.serving_dir}/{run.pushed_version}" if run.pushed_version else ""
    else:
        root, run = workdir and workdir.resolve(), None
        model = against if filesystem.is_uri(against) else str(path.resolve())
    if model and filesystem.exists(model) and (own := find_own_reference(find_model(model))):
        return own
    root = root or lineage.find_workdir(model)
    run = run or lineage.trace_model(model, root).run
    return read_reference(str(find_run_reference(Workdir(root).runs / run.run_id)))


def find_run_reference(folder: Path) -> Path:
    """Returns the file with the reference of a run, in its folder; it is made of what the run left if it is missing.

    Raises:
        ModelError: if the run can't be read, or has left nothing to make it of.
    """
    run, file = _read_run(folder), folder.resolve() / REFERENCE_FILE
    if not file.is_file():
        _make_reference(Workdir(file.parent.parent.parent), run, file)
    return file


def _read_run(folder: Path) -> Summary:
    folder = folder.resolve()
    summary = read_summary(folder)
    if summary is None:
        raise ModelError(f"{folder / SUMMARY} can't be read: restore it, or give another run")
    return summary


def _make_reference(workdir: Workdir, run: Summary, file: Path) -> None:
    try:
        with metadata_store.open_store(workdir.metadata) as opened:
            executions = metadata_store.read_executions(opened, run.name, run.run_id) if opened else []
    except metadata_store.BusyError as error:
        raise ModelError(str(error)) from error
    outputs = {(e.node, output.key): output.uri for e in executions for output in e.outputs if not output.removed}
    try:
        examples, predictions = outputs["ImportExampleGen", "examples"], outputs["Predictions", "predictions"]
        image = read_config(workdir.runs / run.run_id / CONFIG).data.features.input
        model = run.model_dir if run.model_dir and Path(run.model_dir).is_dir() else None
        with hide_output():
            rows = collect_rows(f"{examples}/Split-train", f"{examples}/Split-eval", predictions, model, image)
    except (KeyError, FileNotFoundError) as error:
        raise ModelError(
            f"{workdir.runs / run.run_id}: traffic can't be compared with this run, as {error} is missing. "
            "`imagepipe clean` removes the artifacts of old runs; run the pipeline again"
        ) from error
    write_reference(str(file), rows, run.task, run.pushed_version or "", run.run_id)
