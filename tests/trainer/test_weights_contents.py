"""Files of weights from strangers: read as Keras does, or refused before it costs anything."""

import json
import zipfile

import h5py
import keras
import numpy as np
import pytest

from imagepipe.base.errors import WeightsError
from tests.small_backbone import build
from tests.weight_files import write_weights
from trainer.weights import contents
from trainer.weights.contents import open_weights
from trainer.weights.identify import describe_contents, find_layers, load_layers


def refuse(file, phrase: str) -> None:
    with pytest.raises(WeightsError, match=f"{file.name} does not hold weights that can be read: .*{phrase}"):  # noqa: SIM117
        with open_weights(str(file)):
            pass


def test_lists_of_names_that_keras_has_split_are_joined(tmp_path):
    file = write_weights(tmp_path / "w.h5", "mobilenet_v2")
    with h5py.File(file, "r+") as stored:
        names = stored.attrs.pop("layer_names")
        for part, some in enumerate(np.array_split(names, 12)):
            stored.attrs[f"layer_names{part}"] = some
    with open_weights(str(file)) as (read, _):
        assert describe_contents(read).backbone == "mobilenet_v2"


def test_numbers_of_16_bits_are_read(tmp_path):
    halves = np.array([0x3FC0, 0xC000], np.uint16)  # 1.5 and -2 in bfloat16
    with h5py.File(tmp_path / "w.weights.h5", "w") as stored:
        stored.create_dataset("layers/dense/vars/0", data=halves.view("V2")).attrs["dtype"] = "bfloat16"  # as Keras 3
        stored["layers/dense/vars/1"] = np.array([1.5, -2], np.float16)
    with h5py.File(tmp_path / "w.h5", "w") as stored:
        stored.attrs["layer_names"] = ["dense"]
        stored.create_group("dense").attrs["weight_names"] = ["dense/kernel", "dense/bias"]
        stored.create_dataset("dense/dense/kernel", data=halves.view("V2"))  # as Keras 3 in the older layout
        stored["dense/dense/bias"] = np.array([1.5, -2], np.float16)
    for name in ("w.weights.h5", "w.h5"):
        with open_weights(str(tmp_path / name)) as (read, get_numbers):
            (layer,) = read.layers
            assert len(layer.keys) == 2
            for key in layer.keys:
                np.testing.assert_array_equal(get_numbers(key), [1.5, -2])


def test_an_archive_that_would_fill_the_disk_is_refused_unread(tmp_path):
    file = tmp_path / "bomb.keras"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(20 << 20))
    refuse(file, "would have 20971520 bytes")


def test_an_archive_of_something_else_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"")  # as PyTorch's
    refuse(tmp_path / "model.pth", "it is a zip archive of PyTorch, and no .keras file")


@pytest.mark.parametrize("wrap", [lambda layers: {"layers": layers}, lambda layers: layers], ids=["later", "first"])
def test_the_size_is_found_in_the_configuration_of_a_sequence(tmp_path, wrap):
    file = write_weights(tmp_path / "w.h5", "mobilenet_v2")
    image = {"class_name": "InputLayer", "config": {"batch_input_shape": [None, 192, 128, 3], "name": "input_1"}}
    layers = [image, {}, "x", {"class_name": "Conv2D", "config": {"name": "Conv1"}}]
    with h5py.File(file, "r+") as stored:
        stored.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": wrap(layers)})
    with open_weights(str(file)) as (read, _):
        assert describe_contents(read).size == (192, 128)


def test_a_link_within_the_file_is_refused_too(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as stored:
        stored["layers/conv2d/vars/0"] = np.zeros(3)
        stored["layers/conv2d_1"] = h5py.SoftLink("/layers/conv2d")
    refuse(tmp_path / "w.h5", "conv2d_1 is in another file, or elsewhere")


def test_a_file_of_too_many_layers_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "_MAX_LAYERS", 100)
    refuse(write_weights(tmp_path / "w.h5", "mobilenet_v2"), "it has 105 layers")


def test_a_file_that_claims_more_numbers_than_there_can_be_is_refused(tmp_path):
    with h5py.File(tmp_path / "w.weights.h5", "w") as stored:
        stored.create_dataset("layers/dense/vars/0", (1 << 20, 1 << 20), np.float32, chunks=(8, 8))
    refuse(tmp_path / "w.weights.h5", "by its shapes it has more than 8,589,934,592 numbers")


def test_a_file_of_a_network_of_your_own_is_of_no_backbone(tmp_path):
    with h5py.File(tmp_path / "w.weights.h5", "w") as stored:
        stored["layers/conv2d/vars/0"] = np.zeros((3, 3, 3, 8), np.float32)
    with open_weights(str(tmp_path / "w.weights.h5")) as (read, _):
        description = describe_contents(read)
    assert (description.backbone, description.top, description.numbers) == (None, None, 216)


def test_a_short_list_of_names_that_stands_for_many_layers_is_refused(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as stored:
        group = stored.create_group("conv")
        group["kernel"] = np.zeros((1, 1, 1, 1), np.float32)
        group.attrs["weight_names"] = [b"kernel"] * 500
        stored.attrs["layer_names"] = [b"conv"] * 500
    refuse(tmp_path / "w.h5", "it lists more than 20,000 layers and weights")


@pytest.mark.parametrize("kind", ["h5", "keras"])
@pytest.mark.parametrize("inner", [(64, 64), (None, None)], ids=["says its size", "of any size"])
def test_the_size_is_that_of_the_model_that_has_the_layer_and_not_of_what_lies_around_it(kind, inner, tmp_path):
    image = keras.Input((32, 32, 3))
    first = keras.layers.Conv2D(3, 1, name="around")(image)
    preprocessing = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Resizing(64, 64)])
    inside = keras.Model(image, build(inner)(preprocessing(first)))
    outer = keras.Input((48, 48, 3))
    keras.Model(outer, inside(keras.layers.Resizing(32, 32)(outer))).save(tmp_path / f"model.{kind}")
    with open_weights(str(tmp_path / f"model.{kind}")) as (read, _):
        sizes = {layer.name.rpartition("/")[2]: layer.size for layer in read.layers}
    assert sizes == {"around": (32, 32)} | {f"block_{number}": (64, 64) for number in (1, 2, 3)}


def test_a_file_that_holds_a_backbone_twice_is_described_as_such_and_refused_in_words_that_agree(tmp_path):
    with open_weights(str(write_weights(tmp_path / "w.h5", "mobilenet_v2", times=2))) as (read, _):
        description = describe_contents(read)
        refusals = []
        for backbone in ("mobilenet_v2", "resnet50"):
            with pytest.raises(WeightsError) as refused:
                find_layers("w.h5", read, backbone, load_layers()[backbone])
            refusals.append(str(refused.value).splitlines()[1:])
    assert (description.backbone, description.is_single, description.top) == ("mobilenet_v2", False, None)
    assert refusals[0] == [
        "the file holds such a network more than once, and which one is meant can't be told.",
        "Give a file that holds the weights of mobilenet_v2 once.",
    ]
    assert refusals[1][1] == "It holds mobilenet_v2 more than once. Give a file of resnet50's weights."
