"""Batch prediction jobs of AI Platform Prediction (ML Engine) with the live version of a model."""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from imagepipe.base.errors import DeployError, ModelError
from imagepipe.deploy import gcp
from imagepipe.deploy.config import DeployConfig
from imagepipe.deploy.ml_engine_api import (
    Json,
    call,
    connect,
    find_live_version,
    generate_pauses,
    get,
    version_path,
)

_FORMATS = {".jsonl": "JSON", ".tfrecord": "TF_RECORD", ".tfrecord.gz": "TF_RECORD_GZIP"}


@dataclass(frozen=True)
class Job:
    """A batch job.

    Attributes:
        id: name of the job.
        state: Google's: QUEUED, PREPARING, RUNNING, CANCELLING or SUCCEEDED.
        predicted: number of instances with a prediction, as far as Google reports it.
        errors: number of instances without; ``prediction.errors_stats-*`` says why.
        out: folder of ``prediction.results-*``, which hold JSON lines.
    """

    id: str
    state: str
    predicted: int
    errors: int
    out: str

    @property
    def done(self) -> bool:
        """Whether all results are there."""
        return self.state == "SUCCEEDED"

    def __str__(self) -> str:
        counts = f"{self.predicted:,} predicted, {self.errors:,} errors; {self.out}" if self.done else self.out
        return f"job {self.id}: {self.state}; {counts}"


def start_job(inputs: Sequence[str], out: str, config: DeployConfig, workers: int | None = None) -> Job:
    """Starts a batch job, which gives files of requests to the live version.

    Args:
        inputs: files or patterns on Cloud Storage, all of one format, by their ending: ``.jsonl``, ``.tfrecord`` or
            ``.tfrecord.gz``, as ``imagepipe requests`` writes them.
        out: folder for the results, on Cloud Storage.
        config: where models are deployed to.
        workers: maximum number of machines; Google's own limit is 10.

    Raises:
        ModelError: if the files are of no such format, or not on Cloud Storage.
        DeployError: if nothing is live, or ML Engine refuses.
    """
    cloud = connect(config)
    data_format = _find_format(inputs)
    for uri in (*inputs, out):
        if not cloud.settings.can_read(uri):
            raise ModelError(f"{uri}: ML Engine reads and writes Cloud Storage only: gs://…")
    prediction: Json = {
        "dataFormat": data_format,
        "outputDataFormat": "JSON",
        "inputPaths": list(inputs),
        "outputPath": out,
        "region": cloud.settings.region,
        "versionName": version_path(cloud, find_live_version(cloud)),
        "batchSize": str(cloud.settings.batch_size),
    }
    if data_format != "JSON":
        prediction["signatureName"] = "tf_examples"
    if workers:
        prediction["maxWorkerCount"] = str(workers)
    name = f"{str(config.name).replace('-', '_')}_{time.strftime('%Y%m%d_%H%M%S')}_{uuid.uuid4().hex[:6]}"
    with gcp.explain_errors("ML Engine would not start the job", cloud.settings):
        body = {"jobId": name, "predictionInput": prediction}
        return _parse_job(call(cloud, "POST", f"{cloud.project}/jobs", body))


def find_job(name: str, config: DeployConfig) -> Job:
    """Returns the present state of a batch job.

    Raises:
        DeployError: if it failed or was cancelled; the message says why.
    """
    cloud = connect(config)
    with gcp.explain_errors(f"ML Engine would not say how the job {name} goes", cloud.settings):
        answer = get(cloud, f"{cloud.project}/jobs/{name}")
    if answer["state"] in ("FAILED", "CANCELLED"):
        reason = answer.get("errorMessage") or "ML Engine doesn't say why"
        raise DeployError(f"the job {name} {answer['state'].lower()}: {reason}")
    return _parse_job(answer)


def wait_for_job(name: str, config: DeployConfig, show: Callable[[Job], None]) -> Job:
    """Waits until a batch job is done, however long that takes.

    Args:
        name: name of the job.
        config: where models are deployed to.
        show: called with the job at each change of its state.

    Raises:
        DeployError: see ``find_job``.
    """
    state, pauses = None, generate_pauses()
    while True:
        job = find_job(name, config)
        if job.state != state:
            show(job)
            state = job.state
        if job.done:
            return job
        time.sleep(next(pauses))


def _find_format(inputs: Sequence[str]) -> str:
    formats = {next((format_ for end, format_ in _FORMATS.items() if uri.endswith(end)), None) for uri in inputs}
    data_format = formats.pop() if len(formats) == 1 else None
    if not data_format:
        raise ModelError(
            f"{', '.join(inputs)}: a job takes files of one kind, {', '.join(_FORMATS)}, "
            "which `imagepipe requests` writes"
        )
    return data_format


def _parse_job(answer: Json) -> Job:
    output = answer.get("predictionOutput") or {}
    # Numbers of 64 bits are strings, in JSON.
    predicted, errors = (int(output.get(key) or 0) for key in ("predictionCount", "errorCount"))
    return Job(answer["jobId"], answer["state"], predicted, errors, answer["predictionInput"]["outputPath"])
