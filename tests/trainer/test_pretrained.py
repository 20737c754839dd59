"""Loads random weights in every supported layout into a network with other random weights."""

import pickle
import shutil
import zipfile

import h5py
import keras
import numpy as np
import pytest

from imagepipe.base.errors import WeightsError
from pipeline.config_file import parse_config
from trainer import pretrained
from trainer.config import TrainerConfig
from trainer.network import build_network
from trainer.pretrained import check_weights, load_weights
from trainer.tasks import make_classification

SIZE = (32, 32)


def application(name: str = "MobileNetV2", **options) -> keras.Model:
    return getattr(keras.applications, name)(weights=None, input_shape=(*SIZE, 3), **options)


def fill(model: keras.Model) -> keras.Model:
    """Gives each weight numbers of its own, so that two layers of the same shape are told apart."""
    generator = np.random.default_rng(0)
    model.set_weights([generator.normal(size=weight.shape) for weight in model.get_weights()])
    return model


def classify(base: keras.Model) -> keras.Model:
    """A classifier with the base nested as one layer."""
    image = keras.Input((*SIZE, 3))
    scaled = keras.layers.Rescaling(1 / 127.5, -1)(image)
    pooled = keras.layers.GlobalAveragePooling2D()(base(scaled))
    return keras.Model(image, keras.layers.Dense(3)(pooled))


@keras.saving.register_keras_serializable()
class Own(keras.Model):
    """A model whose layers are attributes."""

    def __init__(self, base: keras.Model | None = None, **options):
        super().__init__(**options)
        self.encoder, self.pool, self.head = base, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)

    def call(self, image):
        return self.head(self.pool(self.encoder(image)))


@pytest.fixture(scope="module")
def bare():
    return fill(application(include_top=False))


@pytest.fixture(scope="module")
def blank():
    """Another network of the same kind, for weights to be loaded into."""
    return application(include_top=False)


@pytest.fixture(scope="module")
def other():
    return application("MobileNetV3Small", include_top=False)


@pytest.fixture(scope="module")
def files(bare, tmp_path_factory):
    """Files with the same base in all of them."""
    folder = tmp_path_factory.mktemp("weights")
    bare.save_weights(folder / "base.weights.h5")
    bare.save(folder / "base.keras")
    bare.save(folder / "base-model.h5")
    topped = application(include_top=True, classes=5)
    topped.set_weights(bare.get_weights() + topped.get_weights()[-2:])
    topped.save_weights(folder / "top.weights.h5")
    topped.save(folder / "top.keras")
    topped.save(folder / "top-model.h5")
    config = TrainerConfig(backbone="mobilenet_v2", weights=str(folder / "base.weights.h5"))
    build_network(SIZE, make_classification(3), {"price": None}, config).model.save(folder / "model.keras")
    with h5py.File(folder / "base-model.h5") as whole, h5py.File(folder / "weights-only.h5", "w") as only:
        group = whole["model_weights"]
        for name in group:
            group.copy(name, only)
        only.attrs.update(group.attrs)

    nested = classify(bare)
    nested.save_weights(folder / "nested.weights.h5")
    nested.export(folder / "exported", verbose=False)
    pooled = keras.Sequential([bare, keras.layers.GlobalAveragePooling2D()])
    deep = keras.Sequential([keras.Input((*SIZE, 3)), pooled, keras.layers.Dense(4)])
    deep.save(folder / "deep.keras")
    deep.save(folder / "deep.h5")
    own = Own(bare)
    own(np.zeros((1, *SIZE, 3), np.float32))
    own.save(folder / "own.keras")
    flat = keras.Model(bare.input, keras.layers.Dense(3)(keras.layers.Flatten()(bare.output)))
    flat.save(folder / "flat.h5")
    for layer in bare.layers[:100]:
        layer.trainable = False
    nested.save(folder / "half-frozen.h5")
    bare.trainable = True
    return folder


ALL = [
    "base.weights.h5",
    "base.keras",
    "base-model.h5",
    "weights-only.h5",
    "top.weights.h5",
    "top.keras",
    "top-model.h5",
    "model.keras",
    "nested.weights.h5",
    "exported",
    "deep.keras",
    "deep.h5",
    "own.keras",
    "flat.h5",
    "half-frozen.h5",
]


@pytest.mark.parametrize("name", ALL)
def test_every_layout_is_read_with_and_without_the_classifier(bare, blank, files, name):
    blank.set_weights([np.zeros_like(weight) for weight in blank.get_weights()])
    load_weights(blank, str(files / name), "mobilenet_v2")
    assert all(np.array_equal(a, b) for a, b in zip(bare.get_weights(), blank.get_weights(), strict=True))


def test_a_network_of_another_size_is_built_with_the_weights(bare, files):
    config = TrainerConfig(backbone="mobilenet_v2", weights=str(files / "deep.h5"))
    loaded = build_network((64, 40), make_classification(2), {}, config).base
    assert all(np.array_equal(a, b) for a, b in zip(bare.get_weights(), loaded.get_weights(), strict=True))


@pytest.mark.parametrize(("name", "top"), [("ConvNeXtTiny", True), ("MobileNetV3Small", False)])
def test_layers_within_layers_and_own_scaling_change_nothing(tmp_path, name, top):
    saved = fill(application(name, include_top=top, **({"classes": 5} if top else {})))
    path = tmp_path / "saved.weights.h5"
    saved.save_weights(path)
    base = application(name, include_top=False, include_preprocessing=False)
    load_weights(base, str(path), name)
    assert all(np.array_equal(a, b) for a, b in zip(saved.get_weights(), base.get_weights(), strict=False))


@pytest.mark.parametrize("name", ALL)
def test_weights_of_another_architecture_are_refused_by_the_first_layer_that_differs(files, other, name):
    initial = other.get_weights()
    message = (
        rf"{name} does not hold the weights of mobilenet_v3_small:\nits layer 'conv' takes \(3,3,3,16\), and the file "
        r"has \(3,3,3,32\) in '.*Conv1'\.\nIt seems to be of mobilenet_v2: set trainer\.backbone.*weights\.$"
    )
    with pytest.raises(WeightsError, match=message):
        load_weights(other, str(files / name), "mobilenet_v3_small")
    assert all(np.array_equal(a, b) for a, b in zip(initial, other.get_weights(), strict=True))


@pytest.mark.parametrize("name", ["base.weights.h5", "base-model.h5"])
def test_weights_that_are_too_few_name_the_first_layer_without(files, name, bare):
    longer = keras.Model(bare.input, keras.layers.Dense(2, name="more")(bare.output))
    with pytest.raises(WeightsError, match=r"its layer 'more' takes \(1280,2\) \(2,\), and the file has none"):
        load_weights(longer, str(files / name), "longer")


def test_numbers_that_are_not_finite_are_refused_before_any_weight_is_changed(blank, files, tmp_path):
    file = shutil.copy(files / "base.weights.h5", tmp_path)
    with h5py.File(file, "r+") as damaged:
        damaged["layers/conv2d/vars/0"][0, 0, 0, 0] = np.nan
    initial = blank.get_weights()
    with pytest.raises(WeightsError, match="weights of layer 'Conv1' are not all finite"):
        load_weights(blank, file, "mobilenet_v2")
    assert all(np.array_equal(a, b) for a, b in zip(initial, blank.get_weights(), strict=True))
    with pytest.raises(WeightsError, match=r"^trainer\.weights: .*layer 'Conv1' are not all finite"):
        check_weights(file, "mobilenet_v2")  # before any node starts


def test_numbers_that_are_no_floats_are_refused_before_anything_runs(files, tmp_path):
    file = shutil.copy(files / "base.weights.h5", tmp_path)
    with h5py.File(file, "r+") as quantized:
        del quantized["layers/conv2d/vars/0"]
        quantized["layers/conv2d/vars/0"] = np.ones((3, 3, 3, 32), np.int8)
    with pytest.raises(WeightsError, match=r"^trainer\.weights: .*layers/conv2d/vars/0 is not numeric"):
        check_weights(file, "mobilenet_v2")


def test_a_file_is_named_by_the_link_that_was_given_and_its_parts_lie_beside_that(tmp_path, files):
    """Caches of downloads keep files under a hash, and links to them by their names."""
    (tmp_path / "blobs").mkdir()
    shutil.copy(files / "base.weights.h5", tmp_path / "blobs" / "aaaa")
    (tmp_path / "blobs" / "bbbb").write_text('{"weight_map": {"": "m_00000.weights.h5"}}')
    for name, blob in (("m.weights.json", "bbbb"), ("m_00000.weights.h5", "aaaa")):
        (tmp_path / name).symlink_to(tmp_path / "blobs" / blob)
    config = parse_config(
        {"name": "x", "data": {"path": "d"}, "trainer": {"weights": "m.weights.json"}}, (), "", tmp_path
    )
    assert config.trainer.weights == f"{tmp_path}/m.weights.json"
    check_weights(config.trainer.weights, "mobilenet_v2")
    with pytest.raises(WeightsError, match=r"m\.weights\.json does not hold the weights of inception_v3"):
        check_weights(config.trainer.weights, "inception_v3")


def test_a_file_that_is_not_one_of_weights_is_refused_unread(tmp_path, files, blank):
    class Evil:
        def __reduce__(self):
            return (pytest.fail, ("it was run",))

    whole = (files / "base.weights.h5").read_bytes()
    contents = {
        "pickle.h5": pickle.dumps(Evil()),
        "empty.h5": b"",
        "truncated.weights.h5": whole[: len(whole) // 2],
        "truncated.keras": (files / "base.keras").read_bytes()[:-100],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("readme.txt", "no weights")
    with h5py.File(tmp_path / "table.h5", "w") as file:
        file["rows"] = np.zeros(3)
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(WeightsError, match=rf"trainer\.weights: {path} does not hold weights"):
            load_weights(blank, str(path), "mobilenet_v2")


def test_a_file_that_points_to_another_one_is_refused(tmp_path, files, bare):
    with h5py.File(files / "base.weights.h5") as source, h5py.File(tmp_path / "link.h5", "w") as link:
        for name in source["layers"]:
            link[f"layers/{name}"] = h5py.ExternalLink(files / "base.weights.h5", f"layers/{name}")
    with pytest.raises(WeightsError, match="in another file"):
        load_weights(bare, str(tmp_path / "link.h5"), "mobilenet_v2")


def test_a_missing_file_of_weights_is_reported_before_anything_runs(tmp_path):
    with pytest.raises(WeightsError, match=r"^trainer\.weights: there is no file .*none\.h5\. Give a file, 'imagenet'"):
        check_weights(str(tmp_path / "none.h5"), "mobilenet_v2")


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A machine without network and with an empty cache; returns the cache's folder."""

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(pretrained.urllib.request, "urlopen", refuse)
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


@pytest.mark.parametrize(
    ("backbone", "file", "other"),
    [
        ("inception_v3", "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5", "inception_v3_weights_tf.h5"),
        ("resnet50", "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5", "resnet50v2_weights_tf_notop.h5"),
        (
            "mobilenet_v2",
            "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_160_no_top.h5",
            "mobilenet_1_0_no_top.h5",
        ),
        ("mobilenet_v3_small", "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5", "efficientnetv2-s_notop.h5"),
        ("efficientnet_v2_b0", "efficientnetv2-b0_notop.h5", "efficientnetv2-b0.h5"),
        ("convnext_tiny", "convnext_tiny_notop.h5", "convnext_small_notop.h5"),
    ],
)
def test_without_network_imagenet_names_the_two_ways_out_unless_keras_has_its_copy(offline, backbone, file, other):
    (offline / other).write_bytes(b"of another network, or with its top")
    with pytest.raises(WeightsError, match=rf"weights of {backbone} .*trainer\.weights: FILE.*trainer\.weights: none"):
        check_weights("imagenet", backbone)
    (offline / file).write_bytes(b"cached")
    check_weights("imagenet", backbone)


def test_a_download_that_fails_names_the_two_ways_out_too(monkeypatch):
    def refuse(*args, **kwargs):
        raise Exception("URL fetch failure")  # as keras.utils.get_file does

    monkeypatch.setattr(keras.applications, "MobileNetV2", refuse)
    config = TrainerConfig(backbone="mobilenet_v2", weights="imagenet")
    with pytest.raises(WeightsError, match=r"URL fetch failure.*trainer\.weights: FILE.*trainer\.weights: none"):
        build_network(SIZE, make_classification(2), {}, config)
