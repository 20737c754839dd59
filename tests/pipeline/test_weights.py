"""Files of weights before a run: what ``imagepipe weights`` shows, and what ``run`` and ``compile`` refuse."""

import json

import pytest
from typer.testing import CliRunner

from imagepipe.base.errors import ConfigError
from pipeline.cli import app
from pipeline.config_file import read_config
from pipeline.kubeflow.compilation_check import check_and_compile
from pipeline.preflight import check_pretrained, check_unfreezing
from tests.stores import memory  # noqa: F401 (a fixture)
from tests.weight_files import write_weights

runner = CliRunner()


@pytest.fixture
def config(tmp_path):
    """A configuration for a cluster, which starts from a file of MobileNetV2's weights."""
    write_weights(tmp_path / "w.h5", "mobilenet_v2")
    text = "name: x\ndata: {path: data}\ntrainer: {weights: w.h5, backbone: mobilenet_v2}\n"
    (tmp_path / "pipeline.yaml").write_text(f"{text}deploy: {{path: /data/serving}}\nkubeflow: {{image: x}}\n")
    return lambda *overrides: read_config(tmp_path / "pipeline.yaml", overrides)


def test_weights_shows_what_a_file_is(tmp_path):
    file = str(write_weights(tmp_path / "w.h5", "mobilenet_v2"))
    shown = runner.invoke(app, ["weights", file])
    assert shown.exit_code == 0
    assert "mobilenet_v2 (2,257,984 weights)" in shown.output
    assert "5 outputs" in shown.output
    described = json.loads(runner.invoke(app, ["weights", file, "--json"]).output)
    assert described == {
        "format": ".h5 of Keras 2 or earlier",
        "backbone": "mobilenet_v2",
        "is_single": True,
        "size": None,
        "top": 5,
        "layers": 105,
        "numbers": 2_257_984 + 1280 * 5 + 5,
        "base_numbers": 2_257_984,
    }


def test_weights_of_a_store_are_shown_too(memory, tmp_path):  # noqa: F811
    uri = memory.put("w.h5", write_weights(tmp_path / "w.h5", "mobilenet_v2").read_bytes())
    shown = runner.invoke(app, ["weights", uri])
    assert shown.exit_code == 0
    assert "mobilenet_v2 (2,257,984 weights)" in shown.output
    refused = runner.invoke(app, ["weights", f"{memory.uri}/none.h5"])
    assert refused.exit_code == 2
    assert f"there is no file {memory.uri}/none.h5" in refused.output


def test_weights_of_a_file_that_holds_a_backbone_twice_says_so(tmp_path):
    write_weights(tmp_path / "w.h5", "mobilenet_v2", times=2)
    shown = runner.invoke(app, ["weights", str(tmp_path / "w.h5")])
    assert "backbone     mobilenet_v2, more than once: which one is meant can't be told" in shown.output
    assert "top          not known" in shown.output


def test_weights_of_no_file_or_of_another_kind_is_wrong_use(tmp_path):
    files = {
        "none.h5": (None, "there is no file"),
        "noise.h5": (b"\x80noise", "it is neither HDF5 nor a .keras file"),
        "notes.h5": (b"noise", "it is text"),
        "empty.h5": (b"", "it is empty"),
        "cloned.keras": (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer: run git lfs pull"),
        "missed.h5": (b"<!DOCTYPE html>\n<title>Sign in</title>", "it is an HTML page"),
    }
    for file, (content, phrase) in files.items():
        if content is not None:
            (tmp_path / file).write_bytes(content)
        refused = runner.invoke(app, ["weights", str(tmp_path / file)])
        assert refused.exit_code == 2
        assert phrase in refused.output
        assert "trainer.weights" not in refused.output


def test_weights_of_the_backbone_pass_and_of_another_are_refused_in_three_lines(config):
    check_pretrained(config())
    with pytest.raises(ConfigError) as refused:
        check_pretrained(config("trainer.backbone=mobilenet_v3_small"))
    first, second, third = str(refused.value).splitlines()
    assert first.startswith("trainer.weights: ")
    assert first.endswith("w.h5 does not hold the weights of mobilenet_v3_small:")
    assert second == "its layer 'conv' takes (3,3,3,16), and the file has (3,3,3,32) in 'Conv1'."
    assert third.startswith("It seems to be of mobilenet_v2: set trainer.backbone to that")


def test_compile_refuses_them_too_if_it_sees_the_file(config):
    with pytest.raises(ConfigError, match="It seems to be of mobilenet_v2"):
        check_and_compile(config("trainer.backbone=resnet50"), "kubeflow")


SEARCH = "tuner={space: {unfreeze_after: {values: [block_12_add, nonsense]}}}"


@pytest.mark.parametrize(
    ("override", "phrase"),
    [
        ("trainer.unfreeze_after=mixed5", r"trainer\.unfreeze_after: there is no layer 'mixed5' in mobilenet_v2"),
        (SEARCH, r"tuner\.space\.unfreeze_after: there is no layer 'nonsense' in mobilenet_v2"),
    ],
)
def test_a_layer_to_unfreeze_after_that_the_backbone_lacks_is_refused_with_some_that_it_has(config, override, phrase):
    wrong = config(override)
    expected = rf"{phrase} \(by default block_12_add\)\. Similar names: \w+, \w+, .*"
    with pytest.raises(ConfigError, match=expected):
        check_unfreezing(wrong)
    with pytest.raises(ConfigError, match=expected):
        check_and_compile(wrong, "kubeflow")


def test_a_layer_without_weights_and_a_backbone_from_scratch_pass(config):
    check_unfreezing(config("trainer.unfreeze_after=block_5_add"))
    check_unfreezing(config("trainer.unfreeze_after=mixed5", "trainer.weights=none"))
