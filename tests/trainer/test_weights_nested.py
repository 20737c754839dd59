"""Layers within layers, such as attention: each of their weights is found in a file of any layout."""

import h5py
import keras
import numpy as np
import pytest

from imagepipe.base.errors import WeightsError
from trainer.pretrained import load_weights


class Block(keras.layers.Layer):
    """A block as people write them: layers as attributes, in a list, in a model, and a weight of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = keras.layers.MultiHeadAttention(2, 4, name="attention")
        self.norms = [keras.layers.LayerNormalization() for _ in range(2)]
        self.mlp = keras.Sequential([keras.layers.Dense(16), keras.layers.Dense(8)])

    def build(self, _):
        self.scale = self.add_weight(shape=(8,), name="scale")

    def call(self, x):
        normed = self.norms[0](x)
        return (x + self.mlp(self.norms[1](x + self.attention(normed, normed)))) * self.scale


def make_network() -> keras.Model:
    tokens = keras.Input((16, 8))
    x = keras.layers.MultiHeadAttention(2, 4)(tokens, tokens)
    return keras.Model(tokens, keras.layers.MultiHeadAttention(2, 4)(Block()(Block()(x)), x))


@pytest.fixture(scope="module")
def network():
    network = make_network()
    generator = np.random.default_rng(0)
    network.set_weights([generator.normal(size=weight.shape) for weight in network.weights])
    return network


@pytest.mark.parametrize("kind", ["base.weights.h5", "base.h5", "base.keras", "whole.weights.h5", "whole.h5"])
def test_a_file_of_any_layout_gives_all_of_them(kind, network, tmp_path):
    saved = network
    if kind.startswith("whole"):
        tokens = keras.Input((16, 8))
        saved = keras.Model(tokens, keras.layers.Dense(3)(network(tokens)))
    (saved.save_weights if ".weights" in kind else saved.save)(tmp_path / kind)
    loaded = make_network()  # of another number of each class in this process
    load_weights(loaded, str(tmp_path / kind), "mine")
    assert all(np.array_equal(a, b) for a, b in zip(network.get_weights(), loaded.get_weights(), strict=True))


class Affine(keras.layers.Layer):
    """ResMLP's (Touvron et al. 2021), and weights whose names Keras's layers have in another order."""

    def build(self, shape):
        self.alpha = self.add_weight(shape=(shape[-1],), name="alpha")
        self.beta = self.add_weight(shape=(shape[-1],), name="beta")
        self.gamma = self.add_weight(shape=(shape[-1],), name="gamma")

    def call(self, x):
        return (x * self.alpha + self.beta) * self.gamma


class Swapped(Affine):
    """The same, made in another order, and saved by its names."""

    def build(self, shape):
        self.gamma = self.add_weight(shape=(shape[-1],), name="gamma")
        self.alpha = self.add_weight(shape=(shape[-1],), name="alpha")
        self.beta = self.add_weight(shape=(shape[-1],), name="beta")

    def save_own_variables(self, store):
        for name in ("beta", "alpha", "gamma"):
            store[name] = getattr(self, name)


@pytest.mark.parametrize("layer", [Affine, Swapped])
@pytest.mark.parametrize("kind", ["w.h5", "w.keras", "w.weights.h5", "saved"])
def test_weights_of_one_shape_in_a_layer_of_ones_own_go_by_their_names(layer, kind, tmp_path):
    def build() -> keras.Model:
        return keras.Sequential([keras.Input((4,)), layer(name="affine")])

    model, loaded = build(), build()
    model.set_weights([np.full(4, number, np.float32) for number in range(3)])
    if kind == "saved":
        model.export(tmp_path / kind, verbose=False)
    else:
        (model.save_weights if ".weights" in kind else model.save)(tmp_path / kind)
    load_weights(loaded, str(tmp_path / kind), "mine")
    for name in ("alpha", "beta", "gamma"):
        np.testing.assert_array_equal(getattr(loaded.layers[0], name), getattr(model.layers[0], name))


def test_attention_in_a_file_of_keras_2_is_found_by_its_nested_names(network, tmp_path):
    names = ("query", "key", "value", "attention_output")
    attention = network.layers[1]
    with h5py.File(tmp_path / "w.h5", "w") as stored:
        stored.attrs["layer_names"] = [b"multi_head_attention"]
        group = stored.create_group("multi_head_attention")
        listed = [f"multi_head_attention/{name}/{weight}:0" for name in names for weight in ("kernel", "bias")]
        group.attrs["weight_names"] = [name.encode() for name in listed]
        for name, value in zip(listed, attention.get_weights(), strict=True):
            group[name] = value
    tokens = keras.Input((16, 8))
    base = keras.Model(tokens, keras.layers.MultiHeadAttention(2, 4)(tokens, tokens))
    load_weights(base, str(tmp_path / "w.h5"), "mine")
    assert all(np.array_equal(a, b) for a, b in zip(attention.get_weights(), base.get_weights(), strict=True))


def make_transformer(blocks: int) -> keras.Model:
    """Of Keras's layers alone, to which Keras gives the names."""
    x = tokens = keras.Input((16, 8))
    for _ in range(blocks):
        x = keras.layers.Add()([x, keras.layers.MultiHeadAttention(2, 4)(x, x)])
        x = keras.layers.LayerNormalization()(x)
        wide = keras.layers.Dense(16, activation="gelu")(x)
        x = keras.layers.Add()([x, keras.layers.Dense(8)(wide)])
    return keras.Model(tokens, keras.layers.LayerNormalization()(x))


@pytest.mark.parametrize("kind", ["w.weights.h5", "w.keras"])
def test_attention_in_the_head_is_no_further_block(kind, tmp_path):
    base = make_transformer(3)
    base.set_weights([np.random.default_rng(0).normal(size=weight.shape) for weight in base.weights])
    pooled = keras.layers.MultiHeadAttention(2, 4)(base.output, base.output)
    whole = keras.Model(base.input, keras.layers.Dense(3)(pooled))
    (whole.save_weights if ".weights" in kind else whole.save)(tmp_path / kind)
    loaded = make_transformer(3)
    load_weights(loaded, str(tmp_path / kind), "mine")
    assert all(np.array_equal(a, b) for a, b in zip(base.get_weights(), loaded.get_weights(), strict=True))
    with pytest.raises(WeightsError, match="does not hold the weights"):
        load_weights(make_transformer(2), str(tmp_path / kind), "mine")
