import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from imagepipe.base.errors import ConfigError
from imagepipe.base.section import Section
from imagepipe.deploy.config import DeployConfig
from pipeline.config import BeamConfig, Config, EvaluationConfig
from pipeline.config_file import read_config
from pipeline.kubeflow.package import find_package
from tools.config_reference import list_sections

MINIMAL = "name: flowers\ndata: {path: dataset}\n"


@pytest.fixture
def file(tmp_path):
    def write(text: str = MINIMAL) -> Path:
        path = tmp_path / "pipeline.yaml"
        path.write_text(text)
        return path

    return write


def test_name_and_data_path_are_enough_and_paths_are_relative_to_the_file(file, tmp_path):
    config = read_config(file())
    assert config.data.path == str(tmp_path / "dataset")
    assert config.image.size == (299, 299)
    assert config.trainer.weights == "imagenet"
    relative = read_config(
        file(
            "name: x\ndata: {path: 'gs://bucket/x', curated_schema: a.pbtxt}\ndeploy: {path: ../live}\n"
            "trainer: {weights: w/base.weights.h5}\n"
        )
    )
    assert relative.trainer.weights == str(tmp_path / "w" / "base.weights.h5")
    assert relative.deploy.path == str(tmp_path.parent / "live")
    assert relative.data.path == "gs://bucket/x"
    assert relative.data.curated_schema == str(tmp_path / "a.pbtxt")


def test_a_path_in_an_override_is_relative_to_the_folder_that_one_stands_in(file, tmp_path, monkeypatch):
    here = tmp_path / "elsewhere"
    here.mkdir()
    monkeypatch.chdir(here)
    overridden = read_config(
        file(), ("trainer.weights=w.h5", "deploy.path=../live", "data.path=none", "data.curated_schema=~/a.pbtxt")
    )
    assert overridden.trainer.weights == str(here / "w.h5")
    assert overridden.deploy.path == str(tmp_path / "live")
    assert overridden.data.path == str(here / "none")
    assert overridden.data.curated_schema == str(Path.home() / "a.pbtxt")
    section = read_config(file(), ("data={path: images}", "trainer={weights: none}"))
    assert (section.data.path, section.trainer.weights) == (str(here / "images"), "none")
    for written in ("s3://bucket/x", "s3://bucket/x/"):  # to a store, x and x/ are two folders
        assert read_config(file(), (f"deploy.path={written}",)).deploy.path == "s3://bucket/x"
    assert read_config(file(), ("data.path=file:///data/set",)).data.path == "/data/set"
    with pytest.raises(ConfigError, match=r"data\.path"):
        read_config(file(), ("data.path=[a]",))


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("/photos #2", "/photos #2"),
        ("/#2", "/#2"),
        ("'/photos' # a comment", "/photos"),
        ('"/a: b"', "/a: b"),
        ("~", str(Path.home())),
        (" /a ", "/a"),
        ("!!str /a", "/a"),
        ("null", None),
        ("NULL", None),
        ("", None),
    ],
)
def test_the_text_of_an_override_is_taken_whole_unless_it_is_quoted(file, written, path):
    given = f"{MINIMAL}deploy: {{path: /live}}\n"
    assert read_config(file(given), (f"deploy.path={written}",)).deploy.path == path
    if path:
        assert read_config(file(), (f"data.path={written}",)).data.path == path


def test_a_single_override_in_place_of_several_is_refused(file):
    with pytest.raises(TypeError, match="put a single one into a list"):
        read_config(file(), "trainer.epochs=2")


def test_an_override_that_is_a_comment_to_yaml_is_text(file, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert read_config(file(), ("data.path=#2",)).data.path == str(tmp_path / "#2")


@pytest.mark.parametrize("key", ["data.path", "data.curated_schema", "deploy.path", "trainer.weights"])
@pytest.mark.parametrize(
    ("path", "reason"),
    [("~nosuchuser/x", "could not determine home directory"), ("a\0b", "embedded null byte")],
)
def test_what_can_not_be_a_path_is_refused_by_its_key(file, key, path, reason):
    section, name = key.split(".")
    values = {"name": "x", "data": {"path": "dataset"}}
    values[section] = values.get(section, {}) | {name: path}
    message = re.escape(f"{key}: {path!r} can't be a path: {reason}")
    with pytest.raises(ConfigError, match=message):
        read_config(file(json.dumps(values)))
    for override in (f"{key}={json.dumps(path)}", f"{section}={json.dumps({name: path})}"):
        with pytest.raises(ConfigError, match=message):
            read_config(file(), (override,))


@pytest.mark.parametrize(
    ("overrides", "size"),
    [
        ((), (299, 299)),
        (("image.size=null", "trainer.backbone=efficientnet_v2_b1"), (240, 240)),
        (("image={}", "trainer.backbone=mobilenet_v2"), (224, 224)),
        (("image.size=[32, 40]", "trainer.backbone=mobilenet_v2"), (32, 40)),
    ],
)
def test_images_have_the_size_of_the_backbone_unless_one_is_given(file, overrides, size):
    assert read_config(file(), overrides).image.size == size


def test_a_backbone_of_ones_own_gives_size_and_minimum_too(file, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "docs" / "examples")
    own = ("trainer.backbone=vision_transformer:build", "trainer.weights=none")
    assert read_config(file(), own).image.size == (160, 160)
    with pytest.raises(ConfigError, match=r"\[16, 64\] is too small; vision_transformer:build takes 32 pixels or more"):
        read_config(file(), (*own, "image.size=[16, 64]"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.batch_size=0", r"trainer\.batch_size: .*greater than or equal to 1 \(it is 0\)"),
        ("trainer.seed=4294967296", r"trainer\.seed: .*less than or equal to 4294967295 \(it is 4294967296\)"),
        ("trainer.batchsize=8", r"trainer\.batchsize: unknown key; known are backbone, weights"),
        (
            "image.size=[64, 299]",
            r"image: size: \[64, 299\] is too small; inception_v3 takes 75 pixels or more per side",
        ),
        ("image.size=[299, 5000]", r"image\.size\.1: .*less than or equal to 4096"),
        (
            "trainer.backbone=nowhere.networks:build",
            r"trainer\.backbone: there is no module 'nowhere\.networks' here: ",
        ),
        ("trainer.backbone=resnet", r"trainer\.backbone: .*no backbone 'resnet'; known are inception_v3, "),
        (
            "trainer.distribution=multi_worker",
            r"trainer\.distribution: .*no longer supported: a training runs on one machine\. Use mirrored .*, or auto",
        ),
        ("trainer.dropout=1", r"trainer\.dropout: .*less than 1"),
        ("image.size=96", r"image\.size: .*tuple"),
        ("name=Flowers!", r"name: .*match pattern"),
        ("nmae=x", r"nmae: unknown key; known are name, task"),
        ("evaluation.thresholds.accuracy=95", r"evaluation\.thresholds\.accuracy: 95.* between 0 and 1"),
        ("evaluation.thresholds.f1=0.5", r"evaluation\.thresholds\.f1: .*accuracy, top_k_accuracy, macro_f1, log_loss"),
        (f"data.features.numeric={[f'f{n}' for n in range(513)]}", "513 side features, and a model takes at most 512"),
        ("data.features.numeric=[label]", r"data\.features: label: a feature has one role"),
        ("data.features.categorical=[image]", r"data\.features: image: the pipeline uses this name itself"),
        (
            "data.features.numeric=[width]",
            r"data\.features: width: the pipeline uses this name itself; rename the column",
        ),
        (
            "data.features.numeric=[class]",
            r"data\.features: class: TensorFlow takes no such name .* Rename the column: ",
        ),
        ("data.features.numeric=[patient age]", r"data\.features: patient age: TensorFlow takes no such name"),
        ("data.features.categorical=[größe]", r"data\.features: größe: TensorFlow takes no such name"),
        ("data.features.numeric=[image/height]", r"data\.features: image/height: TensorFlow takes no such name"),
        ("evaluation.slices=[target]", r"evaluation: target: no slices by this column, as the pipeline uses the name"),
        ("evaluation.rules=[{metric: accuracy, slice: {image: a}, min: 0}]", r"evaluation: image: no slices by this"),
        ("data.split={train: 8, test: 2}", r"data: split: .*eval is missing"),
        ("task=detection", r"task: .*'classification'"),
        ("data.path=", r"data\.path: "),
        ("trainer.loss=huber", r"trainer\.loss: is for task: regression, and the task is classification"),
        ("trainer.label_thresholds={a: 0.4}", r"trainer\.label_thresholds: is for task: multilabel"),
        ("trainer.label_thresholds=highest_f1", r"trainer\.label_thresholds: is for task: multilabel"),
        ("tuner.trials=3", r"tuner\.space: has to be given"),
        ("tuner.space={}", r"tuner\.space: .*at least 1 item"),
        ("tuner.space={rate: {min: 1, max: 2}}", r"tuner\.space\.rate: can't be searched; what can be is .*dropout"),
        ("tuner.space={loss: {values: [huber, a]}}", r"tuner\.space\.loss: can't be searched"),
        ("tuner.space={validation: {min: 0.1, max: 0.5}}", r"tuner\.space\.validation: can't be searched"),
        ("tuner.space={calibration: {values: [none, temperature]}}", r"tuner\.space\.calibration: can't be searched"),
        ("tuner.space={refit: {values: [true, false]}}", r"tuner\.space\.refit: can't be searched"),
        ("tuner.space={dropout: {min: 0, max: 1}}", r"tuner\.space\.dropout: .*less than 1 \(it is 1"),
        ("tuner.space={dropout: {min: 0, mx: 1}}", r"tuner\.space\.dropout\.mx: unknown key; known are min, max, log"),
        ("tuner.space={dropout: {min: 0.5, max: 0.1}}", r"tuner\.space\.dropout: min has to be less than max"),
        ("tuner.space={dropout: {min: 0, max: 0.5, log: true}}", r"tuner\.space\.dropout: log needs a min above 0"),
        ("tuner.space={dropout: {min: 0.1}}", r"tuner\.space\.dropout: give min and max, or values"),
        ("tuner.space={dropout: {min: 0.1, values: [0, 0.2]}}", r"tuner\.space\.dropout: give either values, or min"),
        ("tuner.space={head_units: {min: 8, max: 9.5}}", r"tuner\.space\.head_units: .*integer.* \(it is 9\.5\)"),
        ("tuner.space={learning_rate: {min: 1, max: .inf}}", r"tuner\.space\.learning_rate\.max: .*finite"),
        ("tuner.space={optimizer: {min: 1, max: 2}}", r"tuner\.space\.optimizer: .*'adam'"),
        ("tuner.space={optimizer: {values: [adam, sdg]}}", r"tuner\.space\.optimizer: .*'sgd' \(it is 'sdg'\)"),
        ("tuner.space={augmentation.vertical_flip: {min: 0, max: 1}}", r"vertical_flip: a range is for numbers"),
        ("tuner.space={dropout: {values: [0.1]}}", r"tuner\.space\.dropout: values: give two or more"),
        ("tuner.space={ema: {values: [null, 0.9]}}", r"tuner\.space\.ema: null can't be one"),
    ],
)
def test_what_is_wrong_is_named_by_key_with_what_would_be_right(file, override, message):
    with pytest.raises(ConfigError, match=message):
        read_config(file(), (override,))


def test_without_a_tuner_there_is_none_and_its_space_is_by_key_of_the_trainer(file):
    assert read_config(file()).tuner is None
    assert read_config(file(), ("tuner=null",)).tuner is None
    space = "{learning_rate: {min: 1e-5, max: 1.e-2, log: true}, augmentation.mixup: {values: [0, 0.2]}, \
batch_size: {values: [16, 32]}, unfreeze_after: {values: [mixed7, mixed9]}}"
    tuner = read_config(file(), ("tuner.trials=4", f"tuner.space={space}")).tuner
    assert (tuner.trials, tuner.search, tuner.epochs) == (4, "random", None)
    assert tuner.space["learning_rate"].min == 1e-5
    assert tuner.space["augmentation.mixup"].values == (0, 0.2)


def test_the_gate_of_a_configuration_that_is_made_of_sections_has_the_default_too():
    def make(task: str = "classification", **given) -> Config:
        return Config(name="x", task=task, data={"path": "y"}, evaluation=EvaluationConfig(**given))

    rules = ({"metric": "accuracy", "min": 0.5},)
    config = make(margin=0.02, rules=rules)
    assert (config.evaluation.thresholds, config.evaluation.margin) == ({"accuracy": 0.8}, 0.02)
    assert config == Config(name="x", data={"path": "y"}, evaluation={"margin": 0.02, "rules": rules})
    assert make(thresholds={}).evaluation.thresholds == {}
    assert make("regression").evaluation.thresholds == {}


def test_each_task_has_its_own_metrics(file):
    assert read_config(file()).evaluation.thresholds == {"accuracy": 0.8}
    assert read_config(file(), ("evaluation.margin=0.5",)).evaluation.thresholds == {"accuracy": 0.8}
    assert read_config(file(), ("task=multilabel", "trainer.label_thresholds={a: 0.4}")).evaluation.thresholds == {}
    bounds = ("evaluation.thresholds={mean_absolute_error: 1e6, r_squared: -2}", "trainer.loss=huber")
    assert read_config(file(), ("task=regression", *bounds)).evaluation.thresholds["mean_absolute_error"] == 1e6


@pytest.mark.parametrize(
    ("task", "override", "message"),
    [
        ("multilabel", "evaluation.thresholds.accuracy=0.5", r"thresholds\.accuracy: a multilabel has macro_f1"),
        (
            "regression",
            "evaluation.thresholds.mean_absolute_error=-1",
            r"-1\.0 can't be reached; .* between 0 and inf",
        ),
        ("regression", "evaluation.thresholds.r_squared=1.1", r"r_squared: 1\.1 can't be reached"),
        (
            "multilabel",
            "trainer.label_thresholds={a: 2}",
            r"^\S+:\n  trainer\.label_thresholds\.a: .*less than or equal to 1",
        ),
        (
            "multilabel",
            "trainer.label_thresholds=f1",
            r"^\S+:\n  trainer\.label_thresholds: .*'highest_f1' \(it is 'f1'\)$",
        ),
        (
            "classification",
            "trainer.class_weights={a: -2}",
            r"^\S+:\n  trainer\.class_weights\.a: .*greater than or equal",
        ),
        ("regression", "trainer.loss=mae", r"trainer\.loss: .*'mean_squared_error' or 'huber'"),
    ],
)
def test_what_does_not_fit_the_task_is_refused(file, task, override, message):
    with pytest.raises(ConfigError, match=message):
        read_config(file(), (f"task={task}", override))


def test_everything_that_is_wrong_is_reported_at_once(file):
    with pytest.raises(ConfigError) as error:
        read_config(file("name: x\ntrainer: {epochs: -1, seed: a}\n"))
    assert all(key in str(error.value) for key in ("data: has to be given", "trainer.epochs", "trainer.seed"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.epochs", "expected KEY=VALUE"),
        ("name.first=x", "name has no keys of its own"),
        ("trainer.epochs=[1", "not YAML"),
    ],
)
def test_an_override_that_makes_no_sense_is_refused(file, override, message):
    with pytest.raises(ConfigError, match=message):
        read_config(file(), (override,))


def test_a_section_whose_keys_are_all_comments_has_the_default_ones(file):
    text = f"{MINIMAL}trainer:\n  # epochs: 3\n  augmentation:\n    # zoom: 0\nimage:\nbeam:\n  # runner: x\n"
    text += "evaluation:\n  rules:\n    # - metric: accuracy\n  thresholds:\n    # accuracy: 0.9\n"
    assert read_config(file(text)) == read_config(file())
    with pytest.raises(ConfigError, match=r"data: has to be given"):
        read_config(file("name: flowers\ndata:\n  # path: dataset\n"))


def test_an_override_of_a_key_below_one_that_is_null_makes_its_section(file):
    text = "name: x\ndata: {path: y}\ntuner: null\ntrainer: {class_weights: null}\n"
    space = "tuner.space.dropout={min: 0.1, max: 0.5}"
    config = read_config(file(text), ("tuner.trials=3", space, "trainer.class_weights.daisy=2"))
    assert (config.tuner.trials, config.trainer.class_weights) == (3, {"daisy": 2})


@pytest.mark.parametrize(
    ("toleration", "operator"), [("{effect: NoSchedule}", "Exists"), ("{key: gpu}", "Equal"), ("{}", "Exists")]
)
def test_a_toleration_without_a_key_is_of_all_that_exist(file, toleration, operator):
    (read,) = read_config(file(), (f"kubeflow.tolerations=[{toleration}]",)).kubeflow.tolerations
    assert read.operator == operator


@pytest.mark.parametrize(
    ("toleration", "message"),
    [
        ("{operator: Equal, value: a}", "operator: Equal needs a key"),
        ("{value: a}", "value: goes with operator: Equal"),
        ("{key: gpu, operator: Exists, value: a}", "value: goes with operator: Equal"),
        ("{key: gpu, seconds: 3}", "seconds: goes with effect: NoExecute"),
    ],
)
def test_a_toleration_that_kubernetes_refuses_is_refused(file, toleration, message):
    with pytest.raises(ConfigError, match=f"kubeflow.tolerations.0: {message}"):
        read_config(file(), (f"kubeflow.tolerations=[{toleration}]",))


def test_an_override_changes_no_other_key_that_has_its_value_by_an_alias(file):
    given = "{default: &a {memory: 8Gi, gpu: &b {count: 1}}, Trainer: *a, Tuner: {gpu: *b}}"
    text = f"{MINIMAL}kubeflow: {{resources: {given}}}\n"
    resources = read_config(
        file(text), ("kubeflow.resources.Trainer.memory=64Gi", "kubeflow.resources.Trainer.gpu.count=4")
    ).kubeflow.resources
    assert {name: (one.memory, one.gpu.count) for name, one in resources.items()} == {
        "default": ("8Gi", 1),
        "Trainer": ("64Gi", 4),
        "Tuner": ("8Gi", 1),
    }


@pytest.mark.parametrize("text", ["- a list", "name: [", "!!python/object/apply:os.system ['true']", ""])
def test_a_file_that_is_no_configuration_is_refused_and_never_executed(file, text):
    with pytest.raises(ConfigError):
        read_config(file(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"{MINIMAL}trainer: {{epochs: 3}}\nrun: {{keep: 1}}\ntrainer:\n",
            "'trainer' is there twice, in line 3 and in line 5",
        ),
        (
            f"{MINIMAL}evaluation:\n  thresholds:\n    accuracy: 0.9\n    accuracy: 0.1\n",
            "'accuracy' .* line 5 and in line 6",
        ),
        (f"{MINIMAL}trainer: {{class_weights: {{1: 2, '1': 3}}}}\n", "'1' .* line 3 and in line 3"),
    ],
)
def test_a_key_that_is_there_twice_is_refused_with_its_lines(file, text, message):
    with pytest.raises(ConfigError, match=message):
        read_config(file(text))


@pytest.mark.parametrize(
    "value",
    ["2024-02-30", "2024-13-45", "9" * 30, "9" * 5000, "0x" + "f" * 5000, "!!timestamp foo", "!!bool foo", "!!int foo"],
)
def test_a_value_that_can_not_be_what_its_form_says_is_refused_with_its_line(file, value):
    with pytest.raises(ConfigError, match=r"can't be read as \w+: (?s:.*)line 4, column 10"):
        read_config(file(f"{MINIMAL}trainer:\n  refit: {value}\n"))
    with pytest.raises(ConfigError, match=r"--set trainer\.refit=.* can't be read as"):
        read_config(file(), (f"trainer.refit={value}",))


@pytest.mark.parametrize(
    "override",
    [
        "trainer.augmentation.rotation=true",
        "trainer.epochs=yes",
        "evaluation.thresholds.accuracy=on",
        "deploy.traffic=off",
        "image.size.0=no",
        "run.keep=True",
        "tuner.space.dropout.min=true",
        "evaluation.rules.0.min=true",
    ],
)
def test_yes_and_true_are_no_numbers(file, override):
    key, _, word = override.partition("=")
    parts = key.split(".")
    text = "".join("[" if part == "0" else f"{{{part}: " for part in parts[1:]) + word
    text += "".join("]" if part == "0" else "}" for part in reversed(parts[1:]))
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}\S*: .* \(it is '{word}'\)"):
        read_config(file(f"{MINIMAL}{parts[0]}: {text}\n"))


def test_a_key_may_override_one_that_is_merged(file):
    text = f"{MINIMAL}trainer: &a {{epochs: 3, seed: 1}}\ntuner: {{space: {{dropout: &b {{min: 0.1, max: 0.3}}, \
ema: {{<<: *b, max: 0.5}}}}}}\n"
    assert read_config(file(text)).tuner.space["ema"].max == 0.5


def test_a_missing_file_says_how_to_get_one(tmp_path):
    with pytest.raises(ConfigError, match="imagepipe init"):
        read_config(tmp_path / "none.yaml")


RULE = "name: x\ndata: {path: y}\nevaluation: {rules: [{metric: accuracy, RULE}]}\n"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("slice: {label: a}", "one of min, max and not_worse_than_champion has to be given"),
        ("min: 0.5, max: 0.9", "one of min, max and not_worse_than_champion has to be given"),
        ("min: 0.5, significance: 0.05", "significance: goes with not_worse_than_champion"),
        ("not_worse_than_champion: 0, significance: 1", "evaluation.rules.0.significance"),
        ("min: 1.5", "evaluation.rules.0.metric: 1.5 can't be reached; it lies between 0 and 1"),
        ("metric: auc, min: 0.5", "evaluation.rules.0.metric: a classification has accuracy"),
        (
            "metric: macro_f1, not_worse_than_champion: 0, significance: 0.05",
            "evaluation.rules.0.significance: macro_f1 has no paired test; of the metrics of a classification accuracy "
            "has one",
        ),
        ("minimum: 0.5", "evaluation.rules.0.minimum: unknown key; known are metric, slice, min"),
    ],
)
def test_a_rule_that_cannot_decide_is_refused_by_its_key(tmp_path, rule, message):
    text = RULE.replace("metric: accuracy, RULE", rule if rule.startswith("metric") else f"metric: accuracy, {rule}")
    (tmp_path / "pipeline.yaml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_config(tmp_path / "pipeline.yaml")


@pytest.mark.parametrize(
    ("task", "metric", "tested"),
    [
        ("multilabel", "auc", "macro_f1, micro_f1, precision, recall have one"),
        ("multilabel", "recall", ""),
        ("regression", "r_squared", ""),
    ],
)
def test_a_significance_is_for_metrics_that_have_a_paired_test(tmp_path, task, metric, tested):
    rule = f"metric: {metric}, not_worse_than_champion: 0, significance: 0.05"
    text = RULE.replace("metric: accuracy, RULE", rule).replace("evaluation", f"task: {task}\nevaluation")
    (tmp_path / "pipeline.yaml").write_text(text)
    if not tested:
        assert read_config(tmp_path / "pipeline.yaml").evaluation.rules[0].metric == metric
        return
    with pytest.raises(ConfigError, match=re.escape(f"significance: {metric} has no paired test; of the metrics of")):
        read_config(tmp_path / "pipeline.yaml")
    with pytest.raises(ConfigError, match=tested):
        read_config(tmp_path / "pipeline.yaml")


TAKEN_FOR_OTHERS = [
    "0",
    "007",
    "010",
    "0x1F",
    "0b11",
    "1_000",
    "1.50",
    "1e3",
    ".inf",
    "12:30",
    "2024-01-02",
    "no",
    "Yes",
]
TAKEN_FOR_OTHERS += ["on", "y", "true", "null", "~", "=", "7"]


@pytest.mark.parametrize("name", TAKEN_FOR_OTHERS)
def test_a_class_is_called_as_it_is_written(file, name):
    """YAML takes each of these for something else, and 010 for the class 8."""
    weights, rules = (
        f"{{{name}: 2, other: 1}}",
        f"[{{metric: accuracy, min: 0.5, slice: {{label: {name}, {name}: x}}}}]",
    )
    written = file(
        f"name: x\ndata: {{path: y}}\ntrainer:\n  class_weights: {weights}\n"
        f"evaluation:\n  slices: [{name}]\n  rules: {rules}\n"
    )
    overrides = (f"trainer.class_weights={weights}", f"evaluation.rules={rules}", f"evaluation.slices=[{name}]")
    sections = (f"trainer={{class_weights: {weights}}}", f"evaluation={{rules: {rules}, slices: [{name}]}}")
    for config in (read_config(written), read_config(file(), overrides), read_config(file(), sections)):
        assert config.trainer.class_weights == {name: 2, "other": 1}
        assert config.evaluation.rules[0].slice == {"label": name, name: "x"}
        assert config.evaluation.slices == (name,)
    thresholds = read_config(file(), ("task=multilabel", f"trainer.label_thresholds={{{name}: 0.25}}"))
    assert thresholds.trainer.label_thresholds == {name: 0.25}
    if "." not in name and "=" not in name:
        assert read_config(file(), (f"trainer.class_weights.{name}=3",)).trainer.class_weights == {name: 3}


def test_components_pack_nothing_for_beams_workers_whose_image_has_all():
    dataflow = {"project": "p", "region": "r", "temp_location": "gs://b", "sdk_container_image": "image:7"}
    jobs = {"job_endpoint": "jobs:8099"}
    for runner, options, image in (
        ("direct", {}, "none"),
        ("portable", jobs, "none"),
        ("dataflow", dataflow, "image:7"),
    ):
        arguments = BeamConfig(runner=runner, options=options).make_arguments()
        assert [argument for argument in arguments if "sdk_container" in argument] == [f"--sdk_container_image={image}"]


def test_what_is_no_text_is_read_as_yaml_has_it(file):
    text = """
name: 007
data: {path: &here 2024-01-02, curated_schema: ~}
trainer: {epochs: 0x10, dropout: 1.e-1, class_weights: null, augmentation: {vertical_flip: yes}, ema: ~}
evaluation: {intervals: none, rules: [{metric: accuracy, min: 5e-1, significance: null}]}
deploy: {<<: {path: *here}}
beam: {runner: portable, options: {job_endpoint: "jobs:8099", parallelism: 2, flink_version: "1.20", checkpointing: no}}
serving: {optimize: off}
"""
    config = read_config(file(text))
    assert (config.name, Path(config.data.path).name, config.data.curated_schema) == ("007", "2024-01-02", None)
    assert (config.trainer.epochs, config.trainer.dropout, config.trainer.class_weights) == (16, 0.1, None)
    assert config.trainer.augmentation.vertical_flip is True
    assert Path(config.deploy.path).name == "2024-01-02"
    options = {"job_endpoint": "jobs:8099", "parallelism": 2, "flink_version": "1.20", "checkpointing": False}
    assert config.beam.options == options
    assert config.serving.optimize == "off"
    with pytest.raises(ConfigError, match=r"data\.path: .*string"):
        read_config(file("name: x\ndata: {path: }\n"))


@pytest.mark.parametrize("name", ["my_flowers", "2024-photos"])
def test_a_pipeline_may_be_called_what_a_folder_is_and_only_services_need_a_stricter_name(name):
    deploy = Config(name=name, data={"path": "x"}).make_deployment("/serving")
    # The nodes get it as JSON, and check it again.
    assert DeployConfig(**json.loads(deploy.model_dump_json())) == deploy
    kserve = {"target": "kserve", "path": "/serving"}
    with pytest.raises(ValidationError, match=f"deploy.name: has to be given, as kserve takes no '{name}'"):
        Config(name=name, data={"path": "x"}, deploy=kserve)
    with pytest.raises(ValidationError, match=f"name: kserve takes no '{name}'"):
        Config(name="x", data={"path": "x"}, deploy=kserve | {"name": name})


def test_another_engine_is_for_targets_that_our_server_serves():
    def configure(target: str, sections: dict, **serving) -> Config:
        deploy = {"target": target, "path": "gs://models/flowers", **sections}
        return Config(name="flowers", data={"path": "x"}, serving=serving, deploy=deploy)

    vertex = {"project": "photos", "region": "europe-west4"}
    ours = {"runtime": "imagepipe", "image": "example/imagepipe"}
    for target, sections in (  # sections of other targets say nothing
        ("kserve", {"kserve": {"runtime": "tensorflow"}, "vertex": vertex | {"image": "example/imagepipe"}}),
        ("vertex", {"vertex": vertex, "kserve": ours}),
        ("ml_engine", {"ml_engine": vertex, "kserve": ours}),
    ):
        assert configure(target, sections, engine="auto").dump_export_settings()["engine"] == "tensorflow"
        for serving in ({"engine": "openvino"}, {"engine": "auto", "precision": "int8"}):
            with pytest.raises(ValueError, match=rf"deploy.target {target} takes TensorFlow's SavedModel"):
                configure(target, sections, **serving)
    for target, sections in (
        ("kserve", {"kserve": ours}),
        ("vertex", {"vertex": vertex | {"image": "europe-docker.pkg.dev/p/images/imagepipe"}}),
    ):
        assert configure(target, sections, engine="openvino").dump_export_settings()["engine"] == "openvino"
    with pytest.raises(ValueError, match="int8 is OpenVINO's"):
        Config(name="flowers", data={"path": "x"}, serving={"engine": "tensorflow", "precision": "int8"})
    here = Config(name="flowers", data={"path": "x"}, serving={"engine": "auto"})
    assert here.dump_export_settings()["engine"] == "auto"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: &a [*a]", "one holds itself"),
        ("data: &a {path: /x, features: *a}", "one holds itself"),
        ("evaluation: &a\n  thresholds: *a", "one holds itself"),
        ("data: " + "{a: " * 3000 + "}" * 3000, "more than 100 deep in one another"),
        (
            "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)),
            "aliases",
        ),
    ],
)
def test_values_that_hold_themselves_or_far_more_than_is_written_are_one_message(tmp_path, text, message):
    (tmp_path / "pipeline.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / "pipeline.yaml")
    assert find_package(tmp_path / "pipeline.yaml") is None
    (tmp_path / "pipeline.yaml").write_text("name: x\ndata: {path: /x}\n")
    if "\n" not in text:
        key, _, value = text.partition(": ")
        with pytest.raises(ConfigError, match=message):
            read_config(tmp_path / "pipeline.yaml", [f"{key}={value}"])


def test_every_section_refuses_numbers_that_are_not_finite(file):
    models = [model for _, model in list_sections("", Config)]
    assert all(issubclass(model, Section) and model.model_config["allow_inf_nan"] is False for model in models)
    keys = ["learning_rate", "fine_tune_learning_rate", "warmup_epochs", "weight_decay", "clip_norm"]
    keys = [f"trainer.{key}" for key in [*keys, "augmentation.mixup", "augmentation.cutmix", "class_weights.a"]]
    for key in [*keys, "serving.max_difference", "evaluation.thresholds.accuracy", "deploy.kserve.timeout"]:
        for number in (".inf", ".nan"):
            with pytest.raises(ConfigError, match=rf"{re.escape(key)}: .*finite"):
                read_config(file(), (f"{key}={number}",))
