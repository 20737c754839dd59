"""Stands in for AI Platform Prediction's API (ml v1) on loopback, as it was documented, as far as we use it.

Bodies are checked against the documented fields and their types; fields that only the service sets are refused. A
version loads the SavedModel that its ``deploymentUri`` names. A job reads its files, asks the version, and writes the
results where and as the service did. Lists come in pages of two.
"""

import glob
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tests.standins.google import PROJECT, REGION, Accounts, Api, Json, RefusedError, load_cached
from tests.standins.tensorflow_serving import Servable

HERE = f"projects/{PROJECT}"
_NAME = r"[a-zA-Z][a-zA-Z0-9_]{0,127}"
_PAGE, _SHARDS = 2, 2
_INT64 = (str, int)  # JSON has them as strings; numbers are taken too

MODEL = {"name": str, "regions": [str], "description": str, "labels": dict, "onlinePredictionLogging": bool}
VERSION = {
    "name": str,
    "description": str,
    "deploymentUri": str,
    "runtimeVersion": str,
    "pythonVersion": str,
    "machineType": str,
    "framework": ("TENSORFLOW", "SCIKIT_LEARN", "XGBOOST"),
    "labels": dict,
    "autoScaling": {"minNodes": int, "maxNodes": int},
    "manualScaling": {"nodes": int},
    "acceleratorConfig": {"count": _INT64, "type": str},
    "serviceAccount": str,
}
JOB = {
    "jobId": str,
    "labels": dict,
    "predictionInput": {
        "dataFormat": ("JSON", "TEXT", "TF_RECORD", "TF_RECORD_GZIP"),
        "outputDataFormat": ("JSON", "CSV"),
        "inputPaths": [str],
        "outputPath": str,
        "region": str,
        "maxWorkerCount": _INT64,
        "batchSize": _INT64,
        "runtimeVersion": str,
        "signatureName": str,
        "modelName": str,
        "versionName": str,
        "uri": str,
    },
}


class MLEngine(Api):
    """The service's state, for tests to look at and to set.

    Attributes:
        models: models by name.
        versions: versions by the name of the model and their own.
        jobs: jobs by id.
        failing_versions: error messages of the next versions, which do not get ready.
        failing_jobs: error messages of the next jobs.
    """

    def __init__(self, account: Accounts):
        super().__init__(account)
        self.models: dict[str, Json] = {}
        self.versions: dict[str, dict[str, Json]] = {}
        self.jobs: dict[str, Json] = {}
        self.failing_versions: list[str] = []
        self.failing_jobs: list[str] = []
        self._loaded: dict[tuple[str, str], Servable] = {}

    def routes(self) -> dict[tuple[str, str], Callable[..., Json]]:
        """See ``Api``."""
        models = f"/v1/{HERE}/models"
        versions = f"{models}/([^/:]+)/versions"
        return {
            ("POST", models): self._create_model,
            ("POST", versions): self._create_version,
            ("GET", versions): self._list_versions,
            ("GET", f"{versions}/([^/:]+)"): lambda model, name, query, body: self._find_version(model, name),
            ("PATCH", f"{versions}/([^/:]+)"): self._update_version,
            ("DELETE", f"{versions}/([^/:]+)"): self._delete_version,
            ("POST", f"{versions}/([^/:]+):setDefault"): self._set_default,
            ("POST", f"{models}/([^/:]+):predict"): self._predict,
            ("POST", f"/v1/{HERE}/jobs"): self._create_job,
            ("GET", f"/v1/{HERE}/jobs/([^/:]+)"): self._read_job,
            ("GET", f"/v1/({HERE}/operations/[0-9]+)"): lambda name, query, body: self.operations.get(name),
        }

    def _create_model(self, query: Json, body: Json) -> Json:
        _check(body, MODEL)
        name = body["name"]
        _require(re.fullmatch(_NAME, name), f"name: {name} has to begin with a letter, then letters, digits and _.")
        _require(body.get("regions") == [REGION], f"regions: {body.get('regions')} is not available.")
        if name in self.models:
            raise RefusedError(409, f"Field: model.name Error: A model with name {name} already exists.")
        self.models[name] = {**body, "name": f"{HERE}/models/{name}"}
        self.versions[name] = {}
        return self.models[name]

    def _create_version(self, model: str, query: Json, body: Json) -> Json:
        self._find_model(model)
        _check(body, VERSION)
        name = body["name"]
        _require(re.fullmatch(_NAME, name), f"name: {name} has to begin with a letter, then letters, digits and _.")
        _require((Path(body["deploymentUri"]) / "saved_model.pb").is_file(), "deploymentUri: there is no SavedModel.")
        _require({"runtimeVersion", "pythonVersion", "framework"} <= set(body), "A field that is needed is missing.")
        _require(not {"autoScaling", "manualScaling"} <= set(body), "autoScaling and manualScaling exclude each other.")
        minimum = body.get("autoScaling", {}).get("minNodes", 1)
        _require(minimum or not body["machineType"].startswith("n1-"), "autoScaling.minNodes: N1 needs one at least.")
        if name in self.versions[model]:
            raise RefusedError(409, f"Field: version.name Error: A version with name {name} already exists.")
        version = {**body, "name": f"{HERE}/models/{model}/versions/{name}", "state": "CREATING"}
        self.versions[model][name] = version

        def work() -> Json:
            if self.failing_versions:
                version.update(state="FAILED", errorMessage=self.failing_versions.pop())
            else:
                self._loaded[model, name] = load_cached(body["deploymentUri"])
                version["state"] = "READY"
                if not any(other.get("isDefault") for other in self.versions[model].values()):
                    version["isDefault"] = True
            return {"@type": "type.googleapis.com/google.cloud.ml.v1.Version", **version}

        def undo() -> None:
            del self.versions[model][name]

        return self._start("CREATE_VERSION", work, undo)

    def _list_versions(self, model: str, query: Json, body: Json) -> Json:
        self._find_model(model)
        versions = list(self.versions[model].values())
        start = int(query.get("pageToken") or 0)
        page: Json = {"versions": versions[start : start + _PAGE]} if versions else {}
        return page | ({"nextPageToken": str(start + _PAGE)} if len(versions) > start + _PAGE else {})

    def _find_model(self, model: str) -> Json:
        if model not in self.models:
            raise RefusedError(404, f'Field: name Error: The model resource: "{model}" was not found.')
        return self.models[model]

    def _find_version(self, model: str, name: str) -> Json:
        self._find_model(model)
        if name not in self.versions[model]:
            raise RefusedError(404, f'Field: name Error: The version resource: "{name}" was not found.')
        return self.versions[model][name]

    def _update_version(self, model: str, name: str, query: Json, body: Json) -> Json:
        version = self._find_version(model, name)
        _check(body, VERSION)
        _require(query.get("updateMask") == "description", "updateMask: only the description, here.")

        def work() -> Json:
            version["description"] = body["description"]
            return {"@type": "type.googleapis.com/google.cloud.ml.v1.Version", **version}

        return self._start("UPDATE_VERSION", work)

    def _delete_version(self, model: str, name: str, query: Json, body: Json) -> Json:
        if self._find_version(model, name).get("isDefault") and len(self.versions[model]) > 1:
            raise RefusedError(412, "The default version can't be deleted as long as there are others.")

        def work() -> Json:
            del self.versions[model][name]
            return {"@type": "type.googleapis.com/google.protobuf.Empty"}

        return self._start("DELETE_VERSION", work)

    def _set_default(self, model: str, name: str, query: Json, body: Json) -> Json:
        version = self._find_version(model, name)
        _check(body, {})
        if version["state"] != "READY":
            raise RefusedError(412, f"The version {name} is not ready.")
        for other in self.versions[model].values():
            other.pop("isDefault", None)
        version["isDefault"] = True
        return version

    def _predict(self, model: str, query: Json, body: Json) -> Json:
        self._find_model(model)
        default = [name for name, version in self.versions[model].items() if version.get("isDefault")]
        if not default:
            raise RefusedError(412, "The model has no default version.")
        return {"predictions": _predict_instances(self._loaded[model, default[0]], body["instances"])}

    def _create_job(self, query: Json, body: Json) -> Json:
        _check(body, JOB)
        prediction = body["predictionInput"]
        _require(re.fullmatch(_NAME, body["jobId"]), f"jobId: {body['jobId']} is invalid.")
        _require(prediction.get("region") == REGION, "region: has to be one of the service's.")
        needed = {"dataFormat", "inputPaths", "outputPath"}
        _require(needed <= set(prediction), f"Needed: {sorted(needed)}.")
        _require(
            len({"modelName", "versionName", "uri"} & set(prediction)) == 1, "Just one of modelName, versionName, uri."
        )
        if body["jobId"] in self.jobs:
            raise RefusedError(409, f"The job {body['jobId']} already exists.")
        job = {**body, "state": "QUEUED", "createTime": "2026-01-01T00:00:00Z"}
        self.jobs[body["jobId"]] = job
        return job

    def _read_job(self, name: str, query: Json, body: Json) -> Json:
        """Advances a job by one step, and returns it."""
        if name not in self.jobs:
            raise RefusedError(404, f"Field: name Error: The job {name} was not found.")
        job = self.jobs[name]
        if job["state"] == "RUNNING" and self.failing_jobs:
            job |= {"state": "FAILED", "errorMessage": self.failing_jobs.pop()}
        elif job["state"] == "RUNNING":
            job["predictionOutput"] = self._run(job["predictionInput"])
            job["state"] = "SUCCEEDED"
        else:
            further = {"QUEUED": "PREPARING", "PREPARING": "RUNNING", "CANCELLING": "CANCELLED"}
            job["state"] = further.get(job["state"], job["state"])
        return job

    def _run(self, prediction: Json) -> Json:
        _, _, _, model, _, name = prediction["versionName"].split("/")
        version = self._loaded[model, name]
        results, errors = [], []
        for row in _read_rows(prediction):
            try:
                results += (
                    _predict_example(version, row) if isinstance(row, bytes) else _predict_instances(version, [row])
                )
            except (RefusedError, tf.errors.OpError) as error:
                errors.append({"error": str(error), "count": 1})
        out = Path(prediction["outputPath"])
        out.mkdir(parents=True, exist_ok=True)
        for shard in range(_SHARDS):
            lines = [json.dumps(row) + "\n" for row in results[shard::_SHARDS]]
            (out / f"prediction.results-{shard:05}-of-{_SHARDS:05}").write_text("".join(lines))
        (out / "prediction.errors_stats-00000-of-00001").write_text("".join(json.dumps(e) + "\n" for e in errors))
        counts = {"predictionCount": str(len(results)), "errorCount": str(len(errors))}
        return counts | {"outputPath": prediction["outputPath"], "nodeHours": 0.01}

    def _start(self, kind: str, work: Callable[[], Json], failed: Callable[[], None] | None = None) -> Json:
        metadata = {
            "@type": "type.googleapis.com/google.cloud.ml.v1.OperationMetadata",
            "operationType": kind,
        }
        return self.operations.start(HERE, kind, work, metadata, failed)


def _read_rows(prediction: Json) -> list[Any]:
    files = [file for path in prediction["inputPaths"] for file in sorted(glob.glob(path))]  # noqa: PTH207
    if prediction["dataFormat"] in ("JSON", "TEXT"):
        return [json.loads(line) for file in files for line in Path(file).read_text().splitlines()]
    _require(prediction.get("signatureName") == "tf_examples", "Records need a signature that takes one string.")
    kind = {"TF_RECORD": "", "TF_RECORD_GZIP": "GZIP"}[prediction["dataFormat"]]
    return list(tf.data.TFRecordDataset(files, kind).as_numpy_iterator())


def _predict_instances(version: Servable, instances: list[Json]) -> list[Json]:
    try:
        return version.predict(instances)
    except (KeyError, ValueError, tf.errors.OpError) as error:
        raise RefusedError(400, f"Prediction failed: {error}") from error


def _predict_example(version: Servable, record: bytes) -> list[Json]:
    answer = version.module.signatures["tf_examples"](examples=tf.constant([record]))
    row = {key: value.numpy()[0] for key, value in answer.items()}
    return [{key: v.decode() if isinstance(v, bytes) else np.asarray(v).tolist() for key, v in row.items()}]


def _check(body: Any, fields: Json, path: str = "") -> None:
    """Refuses what is not among the documented fields, or of another type, as Google's servers do."""
    _require(isinstance(body, dict), f"{path or 'the body'} is no object.")
    for key, value in body.items():
        where = f"{path}.{key}" if path else key
        _require(key in fields, f'Invalid JSON payload received. Unknown name "{where}": Cannot find field.')
        kind = fields[key]
        if isinstance(kind, dict):
            _check(value, kind, where)
        elif isinstance(kind, list):
            fine = isinstance(value, list) and all(isinstance(item, kind[0]) for item in value)
            _require(fine, f"Invalid value at '{where}'.")
        elif isinstance(kind, tuple) and isinstance(kind[0], str):
            _require(value in kind, f"Invalid value at '{where}': {value}")
        else:
            _require(isinstance(value, kind) and not (kind is int and isinstance(value, bool)), f"Invalid '{where}'.")


def _require(condition: Any, otherwise: str) -> None:
    if not condition:
        raise RefusedError(400, otherwise)
