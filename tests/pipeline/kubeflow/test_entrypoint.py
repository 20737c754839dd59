import pytest
from kfp import dsl
from tfx.utils import import_utils

from pipeline.kubeflow.entrypoint import (
    add_driver_metadata,
    add_types,
    create_missing_outputs,
    drop_log,
    drop_nulls,
    keep_numbers,
    replace_uris,
    to_local_path,
)

DECLARED = {"instanceSchema": "title: tfx.Model\ntype: object\n"}


def message(uri: str) -> dict:
    return {
        "inputs": {"artifacts": {"model": {"artifacts": [{"uri": f"{uri}/in", "metadata": {"x": 1.0}}]}}},
        "outputs": {
            "artifacts": {"blessing": {"artifacts": [{"uri": f"{uri}/out", "type": DECLARED}]}},
            "outputFile": "out.json",
        },
    }


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("minio://mlpipeline/v2/artifacts/x", "/minio/mlpipeline/v2/artifacts/x"),
        ("s3://bucket/x", "/s3/bucket/x"),
        ("gs://bucket/x", "gs://bucket/x"),
        ("/data/minio://x", "/data/minio://x"),
    ],
)
def test_uris_that_tfx_can_not_open_become_the_launchers_paths(uri, path):
    assert to_local_path(uri) == path


def test_the_uris_of_inputs_and_outputs_are_changed_and_nothing_else():
    changed = replace_uris(message("minio://b"), to_local_path)
    assert changed == message("/minio/b")
    assert replace_uris({"artifacts": {"m": {"artifacts": [{"uri": "minio://b/m"}]}}}, to_local_path) == {
        "artifacts": {"m": {"artifacts": [{"uri": "/minio/b/m"}]}}
    }


def test_uris_of_google_cloud_storage_stay_unchanged():
    original = message("gs://bucket")
    assert replace_uris(original, to_local_path) == original


def test_inputs_without_a_type_get_the_one_that_the_component_declares():
    original = message("minio://b")
    typed = add_types(original, {"artifacts": {"model": {"artifactType": DECLARED}}})
    (artifact,) = typed["inputs"]["artifacts"]["model"]["artifacts"]
    assert artifact["type"] == DECLARED
    assert artifact["name"] == "minio://b/in"
    assert artifact["metadata"] == {"x": 1.0}
    assert original == message("minio://b")  # the argument is left unchanged


def outputs(**titles: str) -> dict:
    typed = {key: {"artifacts": [{"uri": key, "type": {"schemaTitle": title}}]} for key, title in titles.items()}
    return {"outputs": {"artifacts": typed, "outputFile": "out.json"}}


@pytest.mark.parametrize(
    "title", [dsl.HTML.schema_title, dsl.Metrics.schema_title, dsl.ClassificationMetrics.schema_title]
)
def test_outputs_of_kfps_types_become_artifacts_of_ours_of_the_same_type(title):
    typed = add_types(outputs(report=title), {})
    (artifact,) = typed["outputs"]["artifacts"]["report"]["artifacts"]
    assert title == import_utils.import_class_by_path(artifact["type"]["schemaTitle"]).TYPE_NAME


def test_the_log_that_kubeflow_adds_to_each_task_is_no_output_of_a_component():
    expected = outputs(model="x.Model") | {"inputs": {}}
    log = outputs(**{"model": "x.Model", "executor-logs": "system.Artifact"}) | {"inputs": {}}
    assert drop_log(log) == expected
    assert drop_log({"inputs": {}}) == {"inputs": {}}


@pytest.mark.parametrize("scheme", ["gs", "minio", "s3"])
def test_each_output_is_where_the_launcher_looks_even_if_the_executor_wrote_none(scheme, tmp_path, monkeypatch):
    folders = {f"{name}://": f"{tmp_path}/{name}/" for name in ("minio", "s3")}
    monkeypatch.setattr("pipeline.kubeflow.entrypoint._LOCAL_PATHS", folders)
    monkeypatch.setattr("pipeline.kubeflow.entrypoint._MOUNTED_PATHS", {"gs://": f"{tmp_path}/gs/"})
    bucket = tmp_path / scheme / "bucket"
    bucket.mkdir(parents=True)
    (bucket / "report").write_text("<html>")
    artifacts = {key: {"artifacts": [{"uri": f"{scheme}://bucket/{key}"}]} for key in ("report", "champion")}
    create_missing_outputs({"outputs": {"artifacts": artifacts, "outputFile": "out.json"}})
    assert (bucket / "report").read_text() == "<html>"
    assert list((bucket / "champion").iterdir()) == []


def test_metrics_are_left_with_their_figures_and_other_artifacts_with_all_that_they_have():
    metadata = {"accuracy": 0.5, "blessed": 1.0, "tfx_version": "1.21.0"}
    output = {"artifacts": {key: {"artifacts": [{"uri": key, "metadata": metadata}]} for key in ("metrics", "model")}}
    kept = keep_numbers(output, outputs(metrics="system.Metrics", model="x.Model"))["artifacts"]
    assert kept["metrics"]["artifacts"] == [{"uri": "metrics", "metadata": {"accuracy": 0.5, "blessed": 1.0}}]
    assert kept["model"] == output["artifacts"]["model"]


def test_the_executor_gets_the_metadata_of_the_driver():
    driver_output = {"artifacts": {"blessing": {"artifacts": [{"uri": "elsewhere", "metadata": {"span": 3.0}}]}}}
    (artifact,) = add_driver_metadata(message("gs://b"), driver_output)["outputs"]["artifacts"]["blessing"]["artifacts"]
    assert artifact == {"uri": "gs://b/out", "type": DECLARED, "metadata": {"span": 3.0}}


def test_metadata_that_kubeflow_refuses_are_left_out():
    output = {"artifacts": {"m": {"artifacts": [{"uri": "u", "metadata": {"a": None, "b": 0.0, "c": ""}}]}}}
    assert drop_nulls(output) == {"artifacts": {"m": {"artifacts": [{"uri": "u", "metadata": {"b": 0.0, "c": ""}}]}}}
