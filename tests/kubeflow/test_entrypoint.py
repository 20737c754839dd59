import pytest

from kubeflow.entrypoint import local, with_driver_output, with_types, with_uris, without_nulls


def message(uri: str) -> dict:
    return {
        "inputs": {"artifacts": {"model": {"artifacts": [{"uri": f"{uri}/in", "metadata": {"x": 1.0}}]}}},
        "outputs": {"artifacts": {"blessing": {"artifacts": [{"uri": f"{uri}/out"}]}}, "outputFile": "out.json"},
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
    assert local(uri) == path


def test_the_uris_of_inputs_and_outputs_are_changed_and_nothing_else():
    changed = with_uris(message("minio://b"), local)
    assert changed == message("/minio/b")
    assert with_uris({"artifacts": {"m": {"artifacts": [{"uri": "minio://b/m"}]}}}, local) == {
        "artifacts": {"m": {"artifacts": [{"uri": "/minio/b/m"}]}}
    }


def test_with_google_cloud_storage_uris_stay_as_they_are():
    asked = message("gs://bucket")
    assert with_uris(asked, local) == asked


def test_inputs_without_a_type_get_the_one_that_the_component_declares():
    declared = {"instanceSchema": "title: tfx.Model\ntype: object\n"}
    asked = message("minio://b")
    (artifact,) = with_types(asked, {"artifacts": {"model": {"artifactType": declared}}})["inputs"]["artifacts"][
        "model"
    ]["artifacts"]
    assert artifact["type"] == declared
    assert artifact["name"] == "minio://b/in"
    assert artifact["metadata"] == {"x": 1.0}
    assert asked == message("minio://b")  # what was given is left alone


def test_what_a_driver_found_out_is_known_to_the_executor():
    given = {"artifacts": {"blessing": {"artifacts": [{"uri": "elsewhere", "metadata": {"span": 3.0}}]}}}
    (artifact,) = with_driver_output(message("gs://b"), given)["outputs"]["artifacts"]["blessing"]["artifacts"]
    assert artifact == {"uri": "gs://b/out", "metadata": {"span": 3.0}}


def test_metadata_that_kubeflow_refuses_are_left_out():
    left = {"artifacts": {"m": {"artifacts": [{"uri": "u", "metadata": {"a": None, "b": 0.0, "c": ""}}]}}}
    assert without_nulls(left) == {"artifacts": {"m": {"artifacts": [{"uri": "u", "metadata": {"b": 0.0, "c": ""}}]}}}
