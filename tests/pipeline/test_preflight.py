import importlib.util

import pytest

from imagepipe.base.errors import ConfigError
from imagepipe.base.features import Features
from pipeline.config import Config
from pipeline.preflight import _check_engine, _check_schema, check_run


def test_a_runner_whose_workers_are_on_no_machine_with_the_workdir_is_refused(tmp_path):
    options = {"project": "p", "region": "r", "temp_location": "gs://b/t", "sdk_container_image": "i"}
    beam = {"runner": "dataflow", "options": options}
    config = Config.model_validate({"name": "x", "data": {"path": str(tmp_path)}, "beam": beam})
    with pytest.raises(ConfigError, match=r"beam\.runner: dataflow: its workers can't open the workdir"):
        check_run(config, config.make_deployment(str(tmp_path)))


def test_a_curated_schema_whose_label_is_not_the_tasks_is_refused_with_the_reason(tmp_path):
    path = tmp_path / "curated.pbtxt"
    path.write_text('feature { name: "input" type: BYTES } feature { name: "label" type: BYTES }')
    for task in ("classification", "multilabel"):
        _check_schema(str(path), Features(), task)
    with pytest.raises(
        ConfigError, match=r"the label 'label' has the type BYTES; task: regression needs FLOAT or INT$"
    ):
        _check_schema(str(path), Features(), "regression")
    path.write_text('feature { name: "input" type: BYTES } feature { name: "label" type: INT }')
    for task in ("classification", "multilabel", "regression"):
        _check_schema(str(path), Features(), task)


def test_an_engine_whose_packages_are_missing_is_refused_before_the_run(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    for serving in ({"engine": "openvino"}, {"engine": "auto", "precision": "int8"}):
        config = Config.model_validate({"name": "x", "data": {"path": str(tmp_path)}, "serving": serving})
        with pytest.raises(ConfigError, match=r"needs openvino, which is not installed: pip install"):
            _check_engine(config.serving)
