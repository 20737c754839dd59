"""Stands in for Vertex AI's API (v1) on loopback, as far as its clients and we use it: models, endpoints, predictions.

Every body is read into the API's own message types, which refuse what they don't know. A deployment loads the
SavedModel that the model's ``artifactUri`` names, and answers by it. Lists come in pages of two.
"""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.cloud import aiplatform_v1 as vertex
from google.protobuf import json_format

from tests.standins.google import PROJECT, PROJECT_NUMBER, REGION, Accounts, Api, Json, RefusedError, load_cached
from tests.standins.tensorflow_serving import Servable

LOCATION = f"projects/{PROJECT}/locations/{REGION}"
_TYPE = "type.googleapis.com/google.cloud.aiplatform.v1"
_PAGE = 2
_MODEL_ID = r"[a-z_][a-z0-9_-]{0,62}"
_ALIAS = r"[a-z][a-zA-Z0-9-]{0,126}[a-z0-9]"
_LABEL_KEY, _LABEL = r"[a-z][a-z0-9_-]{0,62}", r"[a-z0-9_-]{0,63}"


class Vertex(Api):
    """The service's state, for tests to look at and to set.

    Attributes:
        models: versions in the registry by the model's id, as ``Model`` messages.
        endpoints: ``Endpoint`` messages by resource name.
        answered: number of requests that each deployed model got, by its id.
    """

    def __init__(self, account: Accounts):
        super().__init__(account)
        self.models: dict[str, list[Any]] = {}
        self.endpoints: dict[str, Any] = {}
        self.answered: Counter[str] = Counter()
        self._loaded: dict[str, Servable] = {}
        self._count = 0

    def routes(self) -> dict[tuple[str, str], Callable[..., Json]]:
        """See ``Api``."""
        models, endpoints = f"/v1/{LOCATION}/models", f"/v1/{LOCATION}/endpoints"
        return {
            ("POST", f"{models}:upload"): self._upload,
            ("GET", f"{models}/([^/]+):listVersions"): self._list_versions,
            ("GET", f"{models}/([^/:]+)"): lambda id_, query, body: _to_json(self._find_version(id_)),
            ("PATCH", f"{models}/([^/:]+)"): self._update_model,
            ("POST", f"{models}/([^/:]+):mergeVersionAliases"): self._merge_aliases,
            ("DELETE", f"{models}/([^/:]+):deleteVersion"): self._delete_version,
            ("DELETE", f"{models}/([^/:]+)"): self._delete_model,
            ("POST", endpoints): self._create_endpoint,
            ("GET", endpoints): self._list_endpoints,
            ("GET", f"{endpoints}/([^/:]+)"): lambda id_, query, body: _to_json(self._find_endpoint(id_)),
            ("PATCH", f"{endpoints}/([^/:]+)"): self._update_endpoint,
            ("POST", f"{endpoints}/([^/:]+):deployModel"): self._deploy,
            ("POST", f"{endpoints}/([^/:]+):undeployModel"): self._undeploy,
            ("POST", f"{endpoints}/([^/:]+):predict"): self._predict,
            # Google's REST clients ask for operations at /ui, where Vertex AI serves its API too.
            ("GET", f"/(?:v1|ui)/({LOCATION}/.*operations/[0-9]+)"): self._operation,
        }

    # Models

    def _upload(self, query: Json, body: Json) -> Json:
        request = _parse(body, vertex.UploadModelRequest)
        model = request.model
        _require(model.display_name, "display_name is required.")
        _require(model.container_spec.image_uri, "container_spec.image_uri is required.")
        _require((Path(model.artifact_uri) / "saved_model.pb").is_file(), f"{model.artifact_uri} has no SavedModel.")
        _require(all(re.fullmatch(_ALIAS, alias) for alias in model.version_aliases), "A version alias is invalid.")
        _check_labels(model.labels)
        _require(not (request.parent_model and request.model_id), "model_id is for new models only.")
        if request.parent_model:
            id_ = self._find_version(request.parent_model.rpartition("/")[2]).name.rpartition("/")[2].partition("@")[0]
        else:
            id_ = request.model_id or self._create_number()
            _require(request.model_id == "" or re.fullmatch(_MODEL_ID, id_), f"model_id {id_} is invalid.")
            if id_ in self.models:
                raise RefusedError(409, f"Model {id_} already exists.")
        number = str(max((int(version.version_id) for version in self.models.get(id_, [])), default=0) + 1)

        def work() -> Json:
            version = vertex.Model(model)
            version.name, version.version_id = f"{LOCATION}/models/{id_}", number
            version.etag = "1"
            if id_ not in self.models:
                version.version_aliases.append("default")
            for other in self.models.setdefault(id_, []):
                other.version_aliases = [a for a in other.version_aliases if a not in version.version_aliases]
            self.models[id_].append(version)
            return {"@type": f"{_TYPE}.UploadModelResponse", "model": version.name, "modelVersionId": number}

        return self._start(f"{LOCATION}/models/{id_}", "UploadModel", work)

    def _list_versions(self, id_: str, query: Json, body: Json) -> Json:
        if id_ not in self.models:
            raise RefusedError(404, f"The Model {LOCATION}/models/{id_} does not exist.")
        return _page("models", [_to_json(version) for version in self.models[id_]], query)

    def _find_version(self, id_and_version: str) -> Any:
        id_, _, wanted = id_and_version.partition("@")
        for version in self.models.get(id_, []):
            if (wanted or "default") in (version.version_id, *version.version_aliases):
                return version
        raise RefusedError(404, f"The Model {LOCATION}/models/{id_and_version} does not exist.")

    def _update_model(self, id_: str, query: Json, body: Json) -> Json:
        _require(query.get("updateMask") == "labels" and "@" in id_, "Only labels of versions, here.")
        model = _parse(body, vertex.Model)
        _check_labels(model.labels)
        version = self._find_version(id_)
        version.labels = dict(model.labels)
        return _to_json(version)

    def _merge_aliases(self, id_: str, query: Json, body: Json) -> Json:
        aliases = list(_parse(body, vertex.MergeVersionAliasesRequest).version_aliases)
        _require(aliases and all(re.fullmatch(_ALIAS, alias) for alias in aliases), "A version alias is invalid.")
        merged = self._find_version(id_)
        for version in self.models[id_.partition("@")[0]]:
            version.version_aliases = [alias for alias in version.version_aliases if alias not in aliases]
        merged.version_aliases.extend(aliases)
        return _to_json(merged)

    def _delete_version(self, id_: str, query: Json, body: Json) -> Json:
        version = self._find_version(id_)
        versions = self.models[id_.partition("@")[0]]
        self._check_unused([version])
        if len(versions) == 1 or "default" in version.version_aliases:
            raise RefusedError(412, "The default version can't be deleted.")

        def work() -> Json:
            versions.remove(version)
            return {"@type": "type.googleapis.com/google.protobuf.Empty"}

        return self._start(f"{LOCATION}/models/{id_.partition('@')[0]}", "DeleteModelVersion", work)

    def _delete_model(self, id_: str, query: Json, body: Json) -> Json:
        self._find_version(id_)
        self._check_unused(self.models[id_])

        def work() -> Json:
            del self.models[id_]
            return {"@type": "type.googleapis.com/google.protobuf.Empty"}

        return self._start(f"{LOCATION}/models/{id_}", "DeleteModel", work)

    def _check_unused(self, versions: list[Any]) -> None:
        used = {
            (_parse_id(deployed.model), deployed.model_version_id)
            for endpoint in self.endpoints.values()
            for deployed in endpoint.deployed_models
        }
        if used & {(_parse_id(version.name), version.version_id) for version in versions}:
            raise RefusedError(412, "The Model is deployed to an Endpoint.")

    # Endpoints

    def _create_endpoint(self, query: Json, body: Json) -> Json:
        endpoint = _parse(body, vertex.Endpoint)
        _require(endpoint.display_name, "display_name is required.")

        def work() -> Json:
            endpoint.name, endpoint.etag = f"{LOCATION}/endpoints/{self._create_number()}", "1"
            self.endpoints[endpoint.name] = endpoint
            return {"@type": f"{_TYPE}.Endpoint", **_to_json(endpoint)}

        return self._start(LOCATION, "CreateEndpoint", work)

    def _list_endpoints(self, query: Json, body: Json) -> Json:
        endpoints = list(self.endpoints.values())
        if "filter" in query:
            match = re.fullmatch(r'display_name="([^"]*)"', query["filter"])
            _require(match, f"The filter {query['filter']} is invalid.")
            assert match
            endpoints = [endpoint for endpoint in endpoints if endpoint.display_name == match[1]]
        return _page("endpoints", [_to_json(endpoint) for endpoint in endpoints], query)

    def _find_endpoint(self, id_: str) -> Any:
        name = f"{LOCATION}/endpoints/{id_}"
        if name not in self.endpoints:
            raise RefusedError(404, f"The Endpoint {name} does not exist.")
        return self.endpoints[name]

    def _update_endpoint(self, id_: str, query: Json, body: Json) -> Json:
        endpoint, changed = self._find_endpoint(id_), _parse(body, vertex.Endpoint)
        _require(query.get("updateMask") in ("trafficSplit", "traffic_split"), "Only traffic_split, here.")
        if changed.etag and changed.etag != endpoint.etag:
            raise RefusedError(409, "The Endpoint was changed meanwhile: its etag does not match.")
        self._split(endpoint, dict(changed.traffic_split))
        return _to_json(endpoint)

    def _split(self, endpoint: Any, split: dict[str, int]) -> None:
        there = {deployed.id for deployed in endpoint.deployed_models}
        _require(set(split) <= there, f"traffic_split names what is not deployed: {sorted(set(split) - there)}.")
        _require(not split or sum(split.values()) == 100, "The traffic percentages must add up to 100.")
        _require(all(0 <= share <= 100 for share in split.values()), "A traffic percentage is invalid.")
        endpoint.traffic_split = {id_: share for id_, share in split.items() if share}
        endpoint.etag = str(int(endpoint.etag) + 1)

    def _deploy(self, id_: str, query: Json, body: Json) -> Json:
        endpoint, request = self._find_endpoint(id_), _parse(body, vertex.DeployModelRequest)
        deployed = request.deployed_model
        _require(deployed.model.startswith(f"{LOCATION}/models/"), "deployed_model.model is invalid.")
        version = self._find_version(deployed.model.rpartition("/")[2])
        resources = deployed.dedicated_resources
        machine = resources.machine_spec
        _require(machine.machine_type, "machine_spec.machine_type is required.")
        _require(1 <= resources.min_replica_count <= resources.max_replica_count, "The replica counts are invalid.")
        _require(bool(machine.accelerator_type) == bool(machine.accelerator_count), "The accelerator is invalid.")
        split = dict(request.traffic_split)
        _require(not split or sum(split.values()) == 100, "The traffic percentages must add up to 100.")

        def work() -> Json:
            deployed.id = self._create_number()
            deployed.model = version.name.replace(PROJECT, PROJECT_NUMBER)
            deployed.model_version_id = version.version_id
            self._loaded[deployed.id] = load_cached(version.artifact_uri)
            endpoint.deployed_models.append(deployed)
            if split:
                self._split(endpoint, {deployed.id if key == "0" else key: share for key, share in split.items()})
            else:
                endpoint.etag = str(int(endpoint.etag) + 1)
            return {"@type": f"{_TYPE}.DeployModelResponse", "deployedModel": _to_json(deployed)}

        return self._start(endpoint.name, "DeployModel", work)

    def _undeploy(self, id_: str, query: Json, body: Json) -> Json:
        endpoint, request = self._find_endpoint(id_), _parse(body, vertex.UndeployModelRequest)
        gone = request.deployed_model_id
        _require(gone in {deployed.id for deployed in endpoint.deployed_models}, f"{gone} is not deployed.")
        if request.traffic_split:
            self._split(endpoint, dict(request.traffic_split))

        def work() -> Json:
            others = [deployed for deployed in endpoint.deployed_models if deployed.id != gone]
            if others and endpoint.traffic_split.get(gone):
                raise RefusedError(412, f"DeployedModel {gone} gets traffic.")
            endpoint.deployed_models = others
            if not others:
                endpoint.traffic_split = {}
            endpoint.etag = str(int(endpoint.etag) + 1)
            return {"@type": f"{_TYPE}.UndeployModelResponse"}

        return self._start(endpoint.name, "UndeployModel", work)

    def _predict(self, id_: str, query: Json, body: Json) -> Json:
        endpoint = self._find_endpoint(id_)
        _parse(body, vertex.PredictRequest)
        if not endpoint.traffic_split:
            raise RefusedError(412, "The Endpoint has no deployed model that takes traffic.")
        # Requests are spread so that every hundred of them are divided exactly by the shares.
        count = sum(self.answered[key] for key in endpoint.traffic_split) + 1
        shares = endpoint.traffic_split.items()
        chosen = max(shares, key=lambda item: (item[1] * count / 100 - self.answered[item[0]], item[0]))[0]
        self.answered[chosen] += 1
        (deployed,) = (model for model in endpoint.deployed_models if model.id == chosen)
        try:
            predictions = self._loaded[chosen].predict(body["instances"])
        except (KeyError, ValueError, tf.errors.OpError) as error:
            raise RefusedError(400, str(error)) from error
        return {
            "predictions": predictions,
            "deployedModelId": chosen,
            "model": deployed.model,
            "modelDisplayName": deployed.display_name,
            "modelVersionId": deployed.model_version_id,
        }

    def _operation(self, name: str, query: Json, body: Json) -> Json:
        return self.operations.get(name)

    def _start(self, parent: str, method: str, work: Callable[[], Json]) -> Json:
        metadata = {"@type": f"{_TYPE}.{method}OperationMetadata"}
        if method.startswith("Delete"):
            metadata = {"@type": f"{_TYPE}.DeleteOperationMetadata"}
        return self.operations.start(parent, method, work, metadata)

    def _create_number(self) -> str:
        self._count += 1
        return str(1000 + self._count)


def _parse(body: Json, kind: Any) -> Any:
    try:
        return kind(json_format.ParseDict(body, kind.pb(kind())))
    except json_format.ParseError as error:
        raise RefusedError(400, f"Invalid JSON payload received. {error}") from error


def _to_json(message: Any) -> Json:
    return json_format.MessageToDict(type(message).pb(message))


def _require(condition: Any, otherwise: str) -> None:
    if not condition:
        raise RefusedError(400, otherwise)


def _check_labels(labels: Any) -> None:
    fine = all(re.fullmatch(_LABEL_KEY, key) and re.fullmatch(_LABEL, value) for key, value in labels.items())
    _require(fine, f"A label is invalid: {dict(labels)}.")


def _parse_id(resource: str) -> str:
    return resource.rpartition("/")[2].partition("@")[0]


def _page(key: str, items: list[Json], query: Json) -> Json:
    start = int(query.get("pageToken") or 0)
    page: Json = {key: items[start : start + _PAGE]}
    return page | ({"nextPageToken": str(start + _PAGE)} if len(items) > start + _PAGE else {})
