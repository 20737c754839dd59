import jsonschema
import pytest
import yaml

from imagepipe.base.errors import ConfigError
from pipeline import demo, init
from pipeline.config_file import read_config
from pipeline.config_schema import SCHEMA_FILE, make_json_schema, render_json_schema
from tests.pipeline.test_init import dataset  # noqa: F401 (a fixture)

SCHEMA = make_json_schema()
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)

KSERVE = "target: kserve, path: /models"


def refusals(text: str) -> list[str]:
    return [error.json_path for error in VALIDATOR.iter_errors(yaml.safe_load(text))]


def is_accepted(path) -> bool:
    try:
        read_config(path)
    except ConfigError:
        return False
    return True


def test_it_is_a_json_schema_that_editors_of_any_age_take():
    assert SCHEMA["$schema"] == "http://json-schema.org/draft-07/schema#"
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    newer = {key: value for key, value in SCHEMA.items() if key != "$schema"}
    jsonschema.Draft202012Validator.check_schema(newer)
    assert "prefixItems" not in render_json_schema()  # of newer drafts, which the older ones ignore


@pytest.mark.parametrize("section", ["", *SCHEMA["$defs"]])
def test_every_key_is_described_and_no_other_is_allowed(section):
    part = SCHEMA["$defs"][section] if section else SCHEMA
    assert part["additionalProperties"] is False
    for key, value in part["properties"].items():
        target = SCHEMA["$defs"][value["$ref"].rpartition("/")[2]] if "$ref" in value else {}
        assert value.get("description") or target.get("description"), key


@pytest.mark.parametrize("reachable", [True, False])
def test_what_init_writes_names_it_in_the_first_line_and_is_accepted(dataset, tmp_path, monkeypatch, reachable):  # noqa: F811
    monkeypatch.setattr(init, "is_imagenet_available", lambda: reachable)
    path = tmp_path / "pipeline.yaml"
    init.write_config(dataset, path)
    first, *_ = path.read_text().splitlines()
    assert first == f"# yaml-language-server: $schema={SCHEMA_FILE}"
    assert (tmp_path / SCHEMA_FILE).read_text(encoding="utf-8") == render_json_schema()
    assert refusals(path.read_text()) == []


def test_the_configuration_of_the_demo_is_accepted(tmp_path):
    assert refusals(demo.write_config(tmp_path).read_text()) == []


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("nmae: x", "$"),
        ("trainer: {batchsize: 8}", "$.trainer"),
        ("trainer: {batch_size: many}", "$.trainer.batch_size"),
        ("trainer: {batch_size: 0}", "$.trainer.batch_size"),
        ("trainer: {backbone: resnet}", "$.trainer.backbone"),
        ("trainer: {augmentation: {blur: 1}}", "$.trainer.augmentation"),
        ("image: {size: 96}", "$.image.size"),
        ("image: {size: [96]}", "$.image.size"),
        ("image: {size: [96, 5000]}", "$.image.size"),
        ("task: detection", "$.task"),
        ("evaluation: {thresholds: {f1: 0.5}}", "$.evaluation.thresholds"),
        ("evaluation: {thresholds: {accuracy: high}}", "$.evaluation.thresholds.accuracy"),
        ("evaluation: {rules: [{metric: accuracy, minimum: 0.5}]}", "$.evaluation.rules[0]"),
        (
            "evaluation: {rules: [{metric: accuracy, min: 0.5, slice: {label: [a]}}]}",
            "$.evaluation.rules[0].slice.label",
        ),
        ("tuner: {trials: 3}", "$.tuner"),
        ("tuner: {space: {dropout: {min: 0, mx: 1}}}", "$.tuner"),
        ("serving: {optimize: true}", "$.serving.optimize"),
        ("deploy: {target: ftp}", "$.deploy.target"),
        (f"deploy: {{{KSERVE}, kserve: {{cpu: four}}}}", "$.deploy.kserve"),
        ("data: {path: dataset, split: {training: 8}}", "$.data.split"),
        ("data: {features: {numeric: [a]}}", "$.data"),
        ("beam: {runner: prism}", "$.beam.runner"),
        ("kubeflow: {resources: {Trainer: {cpus: 4}}}", "$.kubeflow.resources.Trainer"),
    ],
)
def test_what_the_models_refuse_is_refused_at_its_key(tmp_path, text, key):
    given = {"name": "x", "data": {"path": "dataset"}} | yaml.safe_load(text)
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(given))
    assert not is_accepted(path)
    assert refusals(path.read_text()) == [key]


@pytest.mark.parametrize(
    "text",
    [
        "image: {}",
        "image: {size: null}",
        "image: {size: [96, 128]}",
        "tuner: null",
        "tuner: {space: {dropout: {values: [0, 0.2]}, optimizer: {values: [adam, sgd]}}}",
        "evaluation: {rules: [{metric: accuracy, min: 0.5, slice: {label: 7}}]}",
        "evaluation: {rules: [{metric: accuracy, min: 0.5, slice: {label: 1.5, camera: true}}]}",
        "evaluation: {thresholds: {accuracy: 1}, slices: [camera]}",
        "serving: {optimize: off, precision: auto}",
        "trainer: {class_weights: {daisy: 2}}",
        "trainer: {class_weights: balanced, weights: base.weights.h5}",
        f"deploy: {{{KSERVE}}}",
        f"deploy: {{{KSERVE}, kserve: {{cpu: 4, memory: 2Gi}}}}",
        "beam: {runner: dataflow, options: {project: p, region: r, temp_location: 'gs://x', sdk_container_image: i, "
        "experiments: [a, b]}}",
        "kubeflow: {resources: {Trainer: {cpu: 0.5}}, tolerations: [{key: gpu, operator: Exists}]}",
        "data: {path: x, validation: {min_images: {train: 3}, drift: null, stop_on: [skew]}}",
    ],
)
def test_what_the_models_take_is_accepted(tmp_path, text):
    given = {"name": "x", "data": {"path": "dataset"}} | yaml.safe_load(text)
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(given))
    assert read_config(path)
    assert refusals(path.read_text()) == []
