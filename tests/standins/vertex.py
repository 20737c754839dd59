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

from tests.standins.google import PROJECT, PROJECT_NUMBER, REGION, Accounts, Api, Json, RefusedError, loaded
from tests.standins.tensorflow_serving import Loaded

LOCATION = f"projects/{PROJECT}/locations/{REGION}"
_TYPE = "type.googleapis.com/google.cloud.aiplatform.v1"
_PAGE = 2
_MODEL_ID = r"[a-z_][a-z0-9_-]{0,62}"
_ALIAS = r"[a-z][a-zA-Z0-9-]{0,126}[a-z0-9]"
_LABEL_KEY, _LABEL = r"[a-z][a-z0-9_-]{0,62}", r"[a-z0-9_-]{0,63}"


class Vertex(Api):
    """The service's state, for tests to look at and to set.

    Attributes:
        models: by id, the versions in the registry, as ``Model`` messages.
        endpoints: by resource name.
        answered: how many requests each deployed model got, by its id.
    """

    def __init__(self, account: Accounts):
        super().__init__(account)
        self.models: dict[str, list[Any]] = {}
        self.endpoints: dict[str, Any] = {}
        self.answered: Counter[str] = Counter()
        self._loaded: dict[str, Loaded] = {}
        self._made = 0

    def routes(self) -> dict[tuple[str, str], Callable[..., Json]]:
        """See ``Api``."""
        models, endpoints = f"/v1/{LOCATION}/models", f"/v1/{LOCATION}/endpoints"
        return {
            ("POST", f"{models}:upload"): self._upload,
            ("GET", f"{models}/([^/]+):listVersions"): self._list_versions,
            ("GET", f"{models}/([^/:]+)"): lambda id_, query, body: _json(self._version(id_)),
            ("PATCH", f"{models}/([^/:]+)"): self._update_model,
            ("POST", f"{models}/([^/:]+):mergeVersionAliases"): self._merge_aliases,
            ("DELETE", f"{models}/([^/:]+):deleteVersion"): self._delete_version,
            ("DELETE", f"{models}/([^/:]+)"): self._delete_model,
            ("POST", endpoints): self._create_endpoint,
            ("GET", endpoints): self._list_endpoints,
            ("GET", f"{endpoints}/([^/:]+)"): lambda id_, query, body: _json(self._endpoint(id_)),
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
            id_ = self._version(request.parent_model.rpartition("/")[2]).name.rpartition("/")[2].partition("@")[0]
        else:
            id_ = request.model_id or self._number()
            _require(request.model_id == "" or re.fullmatch(_MODEL_ID, id_), f"model_id {id_} is invalid.")
            if id_ in self.models:
                raise RefusedError(409, f"Model {id_} already exists.")
        number = str(max((int(version.version_id) for version in self.models.get(id_, [])), default=0) + 1)

        def work() -> Json:
            made = vertex.Model(model)
            made.name, made.version_id = f"{LOCATION}/models/{id_}", number
            made.etag = "1"
            if id_ not in self.models:
                made.version_aliases.append("default")
            for other in self.models.setdefault(id_, []):
                other.version_aliases = [alias for alias in other.version_aliases if alias not in made.version_aliases]
            self.models[id_].append(made)
            return {"@type": f"{_TYPE}.UploadModelResponse", "model": made.name, "modelVersionId": number}

        return self._start(f"{LOCATION}/models/{id_}", "UploadModel", work)

    def _list_versions(self, id_: str, query: Json, body: Json) -> Json:
        if id_ not in self.models:
            raise RefusedError(404, f"The Model {LOCATION}/models/{id_} does not exist.")
        return _page("models", [_json(version) for version in self.models[id_]], query)

    def _version(self, id_and_version: str) -> Any:
        id_, _, wanted = id_and_version.partition("@")
        for version in self.models.get(id_, []):
            if (wanted or "default") in (version.version_id, *version.version_aliases):
                return version
        raise RefusedError(404, f"The Model {LOCATION}/models/{id_and_version} does not exist.")

    def _update_model(self, id_: str, query: Json, body: Json) -> Json:
        _require(query.get("updateMask") == "labels" and "@" in id_, "Only labels of versions, here.")
        model = _parse(body, vertex.Model)
        _check_labels(model.labels)
        version = self._version(id_)
        version.labels = dict(model.labels)
        return _json(version)

    def _merge_aliases(self, id_: str, query: Json, body: Json) -> Json:
        aliases = list(_parse(body, vertex.MergeVersionAliasesRequest).version_aliases)
        _require(aliases and all(re.fullmatch(_ALIAS, alias) for alias in aliases), "A version alias is invalid.")
        merged = self._version(id_)
        for version in self.models[id_.partition("@")[0]]:
            version.version_aliases = [alias for alias in version.version_aliases if alias not in aliases]
        merged.version_aliases.extend(aliases)
        return _json(merged)

    def _delete_version(self, id_: str, query: Json, body: Json) -> Json:
        version = self._version(id_)
        versions = self.models[id_.partition("@")[0]]
        self._check_unused([version])
        if len(versions) == 1 or "default" in version.version_aliases:
            raise RefusedError(412, "The default version can't be deleted.")

        def work() -> Json:
            versions.remove(version)
            return {"@type": "type.googleapis.com/google.protobuf.Empty"}

        return self._start(f"{LOCATION}/models/{id_.partition('@')[0]}", "DeleteModelVersion", work)

    def _delete_model(self, id_: str, query: Json, body: Json) -> Json:
        self._version(id_)
        self._check_unused(self.models[id_])

        def work() -> Json:
            del self.models[id_]
            return {"@type": "type.googleapis.com/google.protobuf.Empty"}

        return self._start(f"{LOCATION}/models/{id_}", "DeleteModel", work)

    def _check_unused(self, versions: list[Any]) -> None:
        used = {
            (_id_of(deployed.model), deployed.model_version_id)
            for endpoint in self.endpoints.values()
            for deployed in endpoint.deployed_models
        }
        if used & {(_id_of(version.name), version.version_id) for version in versions}:
            raise RefusedError(412, "The Model is deployed to an Endpoint.")

    # Endpoints

    def _create_endpoint(self, query: Json, body: Json) -> Json:
        endpoint = _parse(body, vertex.Endpoint)
        _require(endpoint.display_name, "display_name is required.")

        def work() -> Json:
            endpoint.name, endpoint.etag = f"{LOCATION}/endpoints/{self._number()}", "1"
            self.endpoints[endpoint.name] = endpoint
            return {"@type": f"{_TYPE}.Endpoint", **_json(endpoint)}

        return self._start(LOCATION, "CreateEndpoint", work)

    def _list_endpoints(self, query: Json, body: Json) -> Json:
        found = list(self.endpoints.values())
        if "filter" in query:
            match = re.fullmatch(r'display_name="([^"]*)"', query["filter"])
            _require(match, f"The filter {query['filter']} is invalid.")
            assert match
            found = [endpoint for endpoint in found if endpoint.display_name == match[1]]
        return _page("endpoints", [_json(endpoint) for endpoint in found], query)

    def _endpoint(self, id_: str) -> Any:
        name = f"{LOCATION}/endpoints/{id_}"
        if name not in self.endpoints:
            raise RefusedError(404, f"The Endpoint {name} does not exist.")
        return self.endpoints[name]

    def _update_endpoint(self, id_: str, query: Json, body: Json) -> Json:
        endpoint, changed = self._endpoint(id_), _parse(body, vertex.Endpoint)
        _require(query.get("updateMask") in ("trafficSplit", "traffic_split"), "Only traffic_split, here.")
        if changed.etag and changed.etag != endpoint.etag:
            raise RefusedError(409, "The Endpoint was changed meanwhile: its etag does not match.")
        self._split(endpoint, dict(changed.traffic_split))
        return _json(endpoint)

    def _split(self, endpoint: Any, split: dict[str, int]) -> None:
        there = {deployed.id for deployed in endpoint.deployed_models}
        _require(set(split) <= there, f"traffic_split names what is not deployed: {sorted(set(split) - there)}.")
        _require(not split or sum(split.values()) == 100, "The traffic percentages must add up to 100.")
        _require(all(0 <= share <= 100 for share in split.values()), "A traffic percentage is invalid.")
        endpoint.traffic_split = {id_: share for id_, share in split.items() if share}
        endpoint.etag = str(int(endpoint.etag) + 1)

    def _deploy(self, id_: str, query: Json, body: Json) -> Json:
        endpoint, request = self._endpoint(id_), _parse(body, vertex.DeployModelRequest)
        deployed = request.deployed_model
        _require(deployed.model.startswith(f"{LOCATION}/models/"), "deployed_model.model is invalid.")
        version = self._version(deployed.model.rpartition("/")[2])
        resources = deployed.dedicated_resources
        machine = resources.machine_spec
        _require(machine.machine_type, "machine_spec.machine_type is required.")
        _require(1 <= resources.min_replica_count <= resources.max_replica_count, "The replica counts are invalid.")
        _require(bool(machine.accelerator_type) == bool(machine.accelerator_count), "The accelerator is invalid.")
        split = dict(request.traffic_split)
        _require(not split or sum(split.values()) == 100, "The traffic percentages must add up to 100.")

        def work() -> Json:
            deployed.id = self._number()
            deployed.model = version.name.replace(PROJECT, PROJECT_NUMBER)
            deployed.model_version_id = version.version_id
            self._loaded[deployed.id] = loaded(version.artifact_uri)
            endpoint.deployed_models.append(deployed)
            if split:
                self._split(endpoint, {deployed.id if key == "0" else key: share for key, share in split.items()})
            else:
                endpoint.etag = str(int(endpoint.etag) + 1)
            return {"@type": f"{_TYPE}.DeployModelResponse", "deployedModel": _json(deployed)}

        return self._start(endpoint.name, "DeployModel", work)

    def _undeploy(self, id_: str, query: Json, body: Json) -> Json:
        endpoint, request = self._endpoint(id_), _parse(body, vertex.UndeployModelRequest)
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
        endpoint = self._endpoint(id_)
        _parse(body, vertex.PredictRequest)
        if not endpoint.traffic_split:
            raise RefusedError(412, "The Endpoint has no deployed model that takes traffic.")
        # In turns that come to the shares as soon as can be, so that a hundred requests are divided exactly.
        asked = sum(self.answered[key] for key in endpoint.traffic_split) + 1
        shares = endpoint.traffic_split.items()
        chosen = max(shares, key=lambda item: (item[1] * asked / 100 - self.answered[item[0]], item[0]))[0]
        self.answered[chosen] += 1
        (deployed,) = (each for each in endpoint.deployed_models if each.id == chosen)
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

    def _number(self) -> str:
        self._made += 1
        return str(1000 + self._made)


def _parse(body: Json, kind: Any) -> Any:
    try:
        return kind(json_format.ParseDict(body, kind.pb(kind())))
    except json_format.ParseError as error:
        raise RefusedError(400, f"Invalid JSON payload received. {error}") from error


def _json(message: Any) -> Json:
    return json_format.MessageToDict(type(message).pb(message))


def _require(condition: Any, otherwise: str) -> None:
    if not condition:
        raise RefusedError(400, otherwise)


def _check_labels(labels: Any) -> None:
    fine = all(re.fullmatch(_LABEL_KEY, key) and re.fullmatch(_LABEL, value) for key, value in labels.items())
    _require(fine, f"A label is invalid: {dict(labels)}.")


def _id_of(resource: str) -> str:
    return resource.rpartition("/")[2].partition("@")[0]


def _page(key: str, items: list[Json], query: Json) -> Json:
    start = int(query.get("pageToken") or 0)
    page: Json = {key: items[start : start + _PAGE]}
    return page | ({"nextPageToken": str(start + _PAGE)} if len(items) > start + _PAGE else {})
