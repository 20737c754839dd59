from pipeline.runs import store
from tests.pipeline.runs.workdirs import Recorder, run_id


def test_properties_are_what_is_noted_in_plain_values(tmp_path):
    recorder = Recorder(tmp_path)
    made = recorder.record(0)
    (artifact,) = recorder.store.get_artifacts_by_id([made["Evaluator"]])
    artifact.custom_properties["blessed"].int_value = 1
    artifact.custom_properties["accuracy"].double_value = 0.5
    artifact.custom_properties["confusionMatrix"].struct_value.update({"rows": [{"row": [1, 2]}]})
    artifact.custom_properties["tfx_version"].string_value = "1.21.0"
    recorder.store.put_artifacts([artifact])
    with store.opened(recorder.workdir.metadata) as opened:
        (evaluator,) = [e for e in store.executions(opened, "digits", run_id(0)) if e.node == "Evaluator"]
    assert evaluator.outputs[0].properties == {"accuracy": "0.5", "blessed": "1"}
