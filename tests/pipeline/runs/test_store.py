from pipeline.runs import metadata_store
from tests.pipeline.runs.workdirs import Recorder, run_id


def test_properties_are_what_is_noted_in_plain_values(tmp_path):
    recorder = Recorder(tmp_path)
    artifacts = recorder.record(0)
    (artifact,) = recorder.store.get_artifacts_by_id([artifacts["Evaluator"]])
    artifact.custom_properties["blessed"].int_value = 1
    artifact.custom_properties["accuracy"].double_value = 0.5
    artifact.custom_properties["confusionMatrix"].struct_value.update({"rows": [{"row": [1, 2]}]})
    artifact.custom_properties["tfx_version"].string_value = "1.21.0"
    recorder.store.put_artifacts([artifact])
    with metadata_store.open_store(recorder.workdir.metadata) as opened:
        (evaluator,) = [e for e in metadata_store.read_executions(opened, "digits", run_id(0)) if e.node == "Evaluator"]
    assert evaluator.outputs[0].properties == {"accuracy": "0.5", "blessed": "1"}
