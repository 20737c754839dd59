"""Which layers of a file are a network's: all of them are found, or the file is refused."""

import pytest

from trainer.weights import matching
from trainer.weights.identify import identify_backbone, load_layers
from trainer.weights.layers import Contents, StoredLayer, TakenLayer
from trainer.weights.matching import match_layers

TABLES = load_layers()


def store(layers: list[TakenLayer], is_ordered: bool = True, has_names: bool = True, root: str = "") -> Contents:
    """A file with just these layers."""
    stored = [
        StoredLayer(f"{root}{layer.path}", layer.name if has_names else None, layer.shapes, (layer.path,) * 4)
        for layer in layers
    ]
    return Contents(stored, is_ordered, "of a test")


def number(layers: list[TakenLayer], shift: int) -> list[TakenLayer]:
    """The names that Keras gives if it has counted this many layers of each class before."""

    def count_on(layer: TakenLayer) -> TakenLayer:
        kind, _, count = layer.name.rpartition("_")
        if layer.name == "conv2d":
            return layer._replace(name=f"conv2d_{shift}")
        return layer._replace(name=f"conv2d_{int(count) + shift}") if kind == "conv2d" else layer

    return [count_on(layer) for layer in layers]


@pytest.mark.parametrize("backbone", TABLES)
@pytest.mark.parametrize(("is_ordered", "has_names"), [(True, True), (True, False), (False, True), (False, False)])
def test_every_backbone_is_told_from_all_others(backbone, is_ordered, has_names):
    name, match = identify_backbone(store(TABLES[backbone], is_ordered, has_names))
    assert name == backbone
    assert [pair.path for pair in match.pairs] == [layer.path for layer in TABLES[backbone]]


def test_a_smaller_network_is_not_taken_out_of_a_larger_one_with_the_same_names():
    taken, larger = TABLES["resnet50v2"], TABLES["resnet101v2"]
    assert {layer.name for layer in taken} <= {layer.name for layer in larger}
    for is_ordered in (True, False):
        match = match_layers(taken, store(larger, is_ordered))
        assert not match.is_whole
        assert match.extra.name.startswith("conv4_block")


def test_numbers_in_names_may_begin_anywhere_and_the_order_be_another():
    taken = TABLES["inception_v3"]
    other = list(reversed(number(taken, 1700)))
    match = match_layers(taken, store(other))
    assert match.is_whole
    assert [pair.path for pair in match.pairs] == [layer.path for layer in taken]


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "inception_v3"])
def test_layers_of_ones_own_before_the_network_are_passed_over(backbone):
    own = TakenLayer("layers/conv2d", "conv2d", ((1, 1, 1, 3), (3,)))
    taken = TABLES[backbone]
    kind = "layers/conv2d"

    def count_on(layer: TakenLayer) -> TakenLayer:
        if layer.path == kind:
            return layer._replace(path=f"{kind}_1")
        stem, _, count = layer.path.rpartition("_")
        return layer._replace(path=f"{kind}_{int(count) + 1}") if stem == kind else layer

    layers = [own, *map(count_on, taken)]
    for is_ordered in (True, False):
        match = match_layers(taken, store(layers, is_ordered, has_names=False))
        assert match.is_whole
        assert [pair.path for pair in match.pairs] == [layer.path for layer in layers[1:]]


def test_layers_of_the_same_shapes_in_another_order_and_without_names_are_never_guessed():
    taken = TABLES["mobilenet_v2"]
    match = match_layers(taken, store([*taken[1:], taken[0]], has_names=False))
    assert not match.is_whole


def test_two_of_the_same_network_are_refused():
    taken = TABLES["mobilenet_v2"]
    twice = [store(taken, root="layers/functional/"), store(taken, root="layers/functional_1/")]
    contents = Contents(twice[0].layers + twice[1].layers, False, "of a test")
    match = match_layers(taken, contents)
    assert not match.is_whole
    assert not match.is_single


@pytest.mark.parametrize("is_ordered", [True, False])
@pytest.mark.parametrize("missing", [0, 50, -1])
def test_a_layer_that_is_missing_is_named(is_ordered, missing):
    taken = TABLES["mobilenet_v2"]
    layers = list(taken)
    del layers[missing]
    match = match_layers(taken, store(layers, is_ordered))
    assert taken[match.wrong] == taken[missing]


def test_a_network_is_looked_for_in_a_few_models_only(monkeypatch):
    calls = []
    pair = matching._pair_shifted
    monkeypatch.setattr(matching, "_pair_shifted", lambda *arguments: calls.append(1) or pair(*arguments))
    taken = TABLES["mobilenet_v2"]
    nested = "".join("m/" for _ in range(40))
    layers = [
        StoredLayer(f"{nested[: 2 * depth]}{layer.path}", None, layer.shapes, ("",) * 4)
        for depth in range(40)
        for layer in taken
    ]
    assert not match_layers(taken, Contents(layers, False, "of a test")).is_whole
    assert len(calls) <= 5  # by name, and in four of the forty
