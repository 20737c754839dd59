"""The server's OpenAPI document, and requests that schemathesis makes from it, against a real model."""

import base64
from types import SimpleNamespace

import hypothesis
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import strategies as st

from imagepipe.serving import openapi
from imagepipe.serving.engine import Engine, ServedModel
from tests.serving.test_server import gray

schemathesis.openapi.format(
    "byte",
    st.sampled_from([gray(10), gray(250, "JPEG"), b"", b"text"]).map(lambda data: base64.b64encode(data).decode()),
)
VERSIONS = ("", "/versions/{version}")
EXAMPLES = 5  # of each operation


@pytest.fixture(scope="module")
def schema(served):
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json")


def test_each_route_is_described_with_its_types(served):
    document = served.http.get("/openapi.json").json()
    assert set(document["paths"]) == {
        *(
            f"/v1/{models}/{{name}}{version}:predict"
            for models in ("models", "projects/{project}/models")
            for version in VERSIONS
        ),
        *(f"/v1/models/{{name}}{version}{rest}" for version in VERSIONS for rest in ("", "/metadata")),
        *(f"/v2/models/{{name}}{version}{rest}" for version in VERSIONS for rest in ("", "/ready", "/infer")),
        *("/v1/models", "/v2/models", "/v2", "/v2/health/live", "/v2/health/ready", "/metrics"),
        *("/alive", "/v1/endpoints/1/deployedModels/2:predict"),
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            content, *others = operation["responses"]["200"]["content"].values()
            assert len(others) == path.endswith("/infer")  # in binary
            assert content["schema"], path
            kinds = ["application/json", "image/*", "multipart/form-data"]
            assert method == "get" or [*operation["requestBody"]["content"]] == kinds, path


def test_the_document_is_made_once_for_each_version(served, monkeypatch):
    first = served.http.get("/openapi.json").json()
    versions = []
    monkeypatch.setattr(openapi, "describe_api", lambda _, engine, *rest: versions.append(engine.version) or {})
    assert served.http.get("/openapi.json").json() == first
    with monkeypatch.context() as newer:
        newer.setattr(ServedModel, "engine", Engine(served.folder / "7", "brightness", "8", lambda _: None))
        assert [served.http.get("/openapi.json").json() for _ in range(3)] == [{}] * 3
    assert versions == ["8"]
    assert served.http.get("/openapi.json").json() == first


def test_the_outputs_of_a_request_are_those_of_the_model(served):
    schemas = served.http.get("/openapi.json").json()["components"]["schemas"]
    names = schemas["InferRequest"]["properties"]["outputs"]["items"]["properties"]["name"]["enum"]
    assert names == [tensor["name"] for tensor in served.http.get("/v2/models/brightness").json()["outputs"]]
    assert names == ["classes", "label", "score", "metadata", "novelty"]


def test_the_examples_of_requests_are_answered(served):
    schemas = served.http.get("/openapi.json").json()["components"]["schemas"]
    for path, name in (
        ("/v1/models/brightness:predict", "PredictRequest"),
        ("/v2/models/brightness/infer", "InferRequest"),
    ):
        for example in schemas[name]["examples"]:
            answer = served.http.post(path, json=example)
            assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("mode", schemathesis.GenerationMode)
def test_requests_made_from_the_schema_are_answered_as_it_says(schema, mode):
    for operation in (result.ok() for result in schema.get_all_operations()):
        if mode == schemathesis.GenerationMode.NEGATIVE and not (operation.path_parameters or operation.body):
            continue  # nothing in it can be wrong

        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        @hypothesis.settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
        def ask(case):
            # A request of the right form may still have broken images, or lists of different lengths: it is refused.
            case.call_and_validate(excluded_checks=[schemathesis.checks.positive_data_acceptance])

        ask()


def test_what_is_sent_to_an_open_path_needs_the_token():
    app = FastAPI()
    app.add_api_route("/metrics", lambda: {})
    app.add_api_route("/alive", lambda: {})
    app.add_api_route("/alive", lambda: {}, methods=["POST"])  # AIP_PREDICT_ROUTE may be the same as AIP_HEALTH_ROUTE
    engine = SimpleNamespace(name="m", version="1", side_types={}, model=SimpleNamespace(has_novelty=False))
    paths = openapi.describe_api(app.routes, engine, True, ["/alive"])["paths"]
    assert {name: "security" in operation for name, operation in paths["/alive"].items()} == {
        "get": False,
        "post": True,
    }
