"""A backbone of the user's own: checked by its source, built, trained on, its weights loaded, its code in the key."""

import json
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from pydantic import ValidationError

from imagepipe.base import code_closure, syntax
from imagepipe.base.errors import ConfigError, TrainingError, WeightsError
from trainer.config import TrainerConfig, find_backbone
from trainer.network import build_network, unfreeze_after
from trainer.own_backbone import hash_module
from trainer.pretrained import check_weights
from trainer.tasks import make_classification
from trainer.trained import load_trained

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
TRANSFORMER = "vision_transformer:build"
CONSTANTS = 'SIZE = (64, 48)\nMIN_SIDE = 32\nSCALING = "0 to 1"\nUNFREEZE_AFTER = "first"\n'
EMPTY = f"{CONSTANTS}def build(size): ..."


@pytest.fixture
def put_module(tmp_path, monkeypatch):
    """Writes a module of a package that can be imported; returns the name of its function."""
    folder = tmp_path / "my_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)

    def put_module(source: str, module: str = "networks") -> str:
        (folder / f"{module}.py").write_text(source)
        return f"my_package.{module}:build"

    yield put_module
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


@pytest.fixture
def transformer(monkeypatch):
    """The example in the documentation, from scratch, for images of 32 pixels."""
    monkeypatch.syspath_prepend(EXAMPLES)
    config = TrainerConfig(backbone=TRANSFORMER, weights="none", head_units=8)
    return config, build_network((32, 32), make_classification(3), {}, config)


def refuse(backbone: str, phrase: str) -> None:
    with pytest.raises(ValidationError, match=phrase):
        TrainerConfig(backbone=backbone, weights="none")


def test_what_it_says_is_read_without_importing_it(put_module, tmp_path):
    (tmp_path / "my_package" / "__init__.py").write_text("raise AssertionError('imported')")
    backbone = find_backbone(put_module(EMPTY))
    assert (backbone.size, backbone.min_side, backbone.unfreeze_after) == ((64, 48), 32, "first")
    assert backbone.scaling.scale == (1 / 255,) * 3
    own = "{'scale': (1, 2, 3), 'offset': (0, 0, -1), 'bgr': True}"
    scaling = find_backbone(put_module(EMPTY.replace('"0 to 1"', own))).scaling
    assert (scaling.scale, scaling.offset, scaling.bgr) == ((1, 2, 3), (0, 0, -1), True)


@pytest.mark.parametrize(
    "function",
    [
        "def build(size): return make(size)",
        "from functools import partial\nbuild = partial(make)",
        "build: object = make",
        "from my_package.others import make_other as build",
    ],
)
def test_a_function_may_be_defined_assigned_or_imported(function, put_module):
    making = "return keras.Sequential([keras.Input((*size, 3)), keras.layers.GlobalMaxPooling2D()])"
    put_module(f"import keras\ndef make_other(size): {making}", "others")
    sized = CONSTANTS.replace("(64, 48)", "[64, 48]")
    name = put_module(f"import keras\n{sized}def make(size): {making}\n{function}")
    config = TrainerConfig(backbone=name, weights="none")
    assert find_backbone(name).size == (64, 48)
    assert build_network((8, 8), make_classification(3), {}, config).model.count_params()


@pytest.mark.parametrize(
    ("source", "phrase"),
    [
        ("def build(size: ...", "networks.py is no Python"),
        ("x = " + 200_000 * "-" + "1", "networks.py is no Python"),
        (EMPTY.replace("build", "make"), "networks.py has no function 'build', only make"),
        ("def build(size): ...", "has to say SIZE and MIN_SIDE and SCALING and UNFREEZE_AFTER of its network"),
        (EMPTY.replace("32", "int(32)"), "has to say MIN_SIDE of its network"),
        (EMPTY.replace("32", "0"), "MIN_SIDE: Input should be greater than 0"),
        (EMPTY.replace("first", ""), "UNFREEZE_AFTER: String should have at least 1 character"),
        (EMPTY.replace("(64, 48)", "[64, 48.5]"), r"SIZE\.1: Input should be a valid integer"),
        (EMPTY.replace('"0 to 1"', "{'scale': (1e999, 1, 1), 'offset': (0, 0, 0)}"), "SCALING: .* finite number"),
        (EMPTY.replace("0 to 1", "0 to 2"), "SCALING is one of '0 to 255', '0 to 1', '-1 to 1', or scale and offset"),
    ],
)
def test_a_module_that_can_not_be_used_is_refused_by_its_source(source, phrase, put_module):
    refuse(put_module(source), phrase)


def test_a_module_that_is_not_there_is_refused(put_module):
    put_module(EMPTY)
    refuse("my_package.missing:build", r"no module 'my_package\.missing' here: install its package .* PYTHONPATH")
    refuse("nowhere:build", "no module 'nowhere' here")
    refuse("__main__:build", "no module '__main__' here")
    refuse("../networks:build", "no module")
    refuse("networks", "no backbone 'networks'; known are .*, and a function of your own, as my_package.networks:build")


def test_imagenet_weights_are_of_built_in_ones_only(put_module):
    with pytest.raises(
        ValidationError, match=r"trainer\.weights: imagenet: Keras has none of my_package\.networks:build"
    ):
        TrainerConfig(backbone=put_module(EMPTY))


@pytest.mark.parametrize(
    ("returned", "phrase"),
    [
        ("1 / 0", "failed: ZeroDivisionError"),
        ("None\nimport nothing_of_that_name", "failed: my_package.networks can't be imported: ModuleNotFoundError"),
        ("keras.layers.Dense(3)", "returned Dense, and no model of one image"),
        (
            "keras.Sequential([keras.Input((32, 32, 1)), keras.layers.Conv2D(3, 3)])",
            "returned a model of images .*32, 1",
        ),
        (
            "keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Reshape((4, 4, 8, 24))])",
            "returned features .*8, 24",
        ),
    ],
)
def test_a_function_that_gives_no_backbone_is_named(returned, phrase, put_module):
    name = put_module(f"import keras\n{CONSTANTS}def build(size): return {returned}")
    with pytest.raises(TrainingError, match=rf"trainer\.backbone: {name} {phrase}"):
        build_network((32, 32), make_classification(3), {}, TrainerConfig(backbone=name, weights="none"))


def test_what_is_no_function_is_named(put_module):
    name = put_module(f"{CONSTANTS}build = 3")
    with pytest.raises(TrainingError, match=rf"{name} is int, and no function"):
        build_network((32, 32), make_classification(3), {}, TrainerConfig(backbone=name, weights="none"))


def test_tokens_are_averaged_for_the_head(transformer):
    _, network = transformer
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    tokens = network.base(pixels / np.float32(127.5) - 1)
    assert tokens.shape == (2, 4, 192)
    np.testing.assert_allclose(network.pooled(pixels), np.mean(tokens, axis=1), rtol=1e-2, atol=1e-3)
    assert network.model({"image": pixels}).shape == (2, 3)


def test_features_that_are_pooled_go_to_the_head_unchanged(put_module):
    name = put_module(
        f"import keras\n{CONSTANTS}def build(size):\n"
        "    return keras.Sequential([keras.Input((*size, 3)), keras.layers.GlobalMaxPooling2D()])"
    )
    config = TrainerConfig(backbone=name, weights="none")
    pooled = build_network((8, 8), make_classification(3), {}, config).pooled
    np.testing.assert_allclose(pooled(np.full((1, 8, 8, 3), 51, np.uint8)), [[0.2, 0.2, 0.2]], rtol=1e-6)


def test_its_weights_are_matched_and_what_lies_above_its_layer_is_trained(transformer, tmp_path):
    config, network = transformer
    network.base.save_weights(tmp_path / "base.weights.h5")
    given = config.model_copy(update={"weights": str(tmp_path / "base.weights.h5")})
    check_weights(given.weights, given.backbone)
    loaded = build_network((32, 32), make_classification(3), {}, given)
    for one, other in zip(network.base.get_weights(), loaded.base.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    unfreeze_after(loaded.base, find_backbone(TRANSFORMER).unfreeze_after)
    assert {weight.path.split("_")[1][0] for weight in loaded.base.trainable_weights if "block" in weight.path} == {
        "4",
        "5",
    }
    with pytest.raises(WeightsError, match=f"does not hold the weights of {TRANSFORMER}"):
        build_network((64, 32), make_classification(3), {}, given)  # of other positions


def test_what_training_saves_is_loaded_with_its_classes(transformer, tmp_path):
    config, network = transformer
    network.model.save(tmp_path / "model.keras")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": config.model_dump()}))
    del sys.modules["vision_transformer"]
    keras.saving.get_custom_objects().clear()  # as in a new process
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.setattr(sys, "path", [])
        with pytest.raises(ConfigError, match="there is no module 'vision_transformer' here"):
            load_trained(tmp_path / "model.keras")
    loaded = load_trained(tmp_path / "model.keras")
    image = {"image": np.zeros((1, 32, 32, 3), np.uint8)}
    np.testing.assert_allclose(loaded(image), network.model(image), rtol=1e-6)


def compute_key(name: str) -> str:
    """Returns the hash as a new process would."""
    for cached in (syntax.read_syntax, code_closure._locate, code_closure._find_data, code_closure._hash_file):
        cached.cache_clear()
    return hash_module(name)


def test_a_change_of_its_code_or_of_what_it_imports_trains_again(put_module):
    put_module("UNITS = 8", "blocks")
    name = put_module(f"from .blocks import UNITS\n{EMPTY}")
    first = compute_key(name)
    put_module(f"from .blocks import UNITS  # a comment\n{EMPTY}")
    assert compute_key(name) == first
    put_module("UNITS = 9", "blocks")
    second = compute_key(name)
    put_module(f"from .blocks import UNITS\n{EMPTY.replace('...', 'return UNITS')}")
    assert len({first, second, compute_key(name)}) == 3


def test_modules_beside_its_own_count_as_code_unless_they_were_installed_there(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    blocks, units, installed = (tmp_path / f"own_{name}.py" for name in ("blocks", "units", "installed"))
    imports = "from own_blocks import make\nimport own_installed\n"
    (tmp_path / "own_networks.py").write_text(f"{imports}{EMPTY}\nif __name__ == '__main__': build(SIZE)")
    blocks.write_text("from own_units import UNITS\ndef make(): return UNITS")
    info = tmp_path / "own_installed-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-installed\nVersion: 1.0\n")
    (info / "RECORD").write_text("own_installed.py,,\n")

    def compute(units_text: str = "UNITS = 8", installed_text: str = "") -> str:
        units.write_text(units_text)
        installed.write_text(installed_text)
        return compute_key("own_networks:build")

    original = compute()
    (tmp_path / "main").write_text("of git")
    assert compute("UNITS = 8  # a comment") == original
    assert compute("UNITS = 9") != original
    assert compute(installed_text="UNITS = 9") == original
    blocks.write_text("from own_units import UNITS\ndef make(): return -UNITS")
    assert compute() != original


def test_a_module_that_it_imports_is_named_if_it_is_no_python(put_module):
    put_module("\ndef make(size:", "blocks")
    with pytest.raises(ConfigError, match=r"blocks\.py is no Python: SyntaxError: .*line 2"):
        compute_key(put_module(f"from .blocks import make\n{EMPTY}"))
