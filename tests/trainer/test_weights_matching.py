"""Which layers of a file are a network's: all of them are found, or the file is refused."""

import time
from collections import Counter

import pytest

from imagepipe.base.errors import WeightsError
from trainer.weights import matching
from trainer.weights.identify import describe_contents, find_layers, identify_backbone, load_layers
from trainer.weights.layers import Contents, StoredLayer, TakenLayer, number_class
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


def stack(blocks: int, name: str = "block_{}_", kind: str = "", first: int = 0) -> list[TakenLayer]:
    """A small transformer's layers: of Keras, or each block in a layer of one's own, of this class."""
    layers, counts = [TakenLayer("layers/conv2d", "patches", ((8, 8, 3, 8), (8,)))], Counter()
    for block in range(first, first + blocks):
        for part, shapes in {"norm": ((8,), (8,)), "wide": ((8, 16), (16,)), "narrow": ((16, 8), (8,))}.items():
            inner = "layer_normalization" if part == "norm" else "dense"
            path = number_class(kind, Counter({kind: block})) + f"/{part}" if kind else number_class(inner, counts)
            layers.append(TakenLayer(f"layers/{path}", name.format(block) + part, shapes))
    return [*layers, TakenLayer(f"layers/{number_class('layer_normalization', counts)}", "final", ((8,), (8,)))]


@pytest.mark.parametrize("backbone", TABLES)
@pytest.mark.parametrize(("is_ordered", "has_names"), [(True, True), (True, False), (False, True), (False, False)])
def test_every_backbone_is_told_from_all_others(backbone, is_ordered, has_names):
    name, match = identify_backbone(store(TABLES[backbone], is_ordered, has_names))
    assert name == backbone
    assert [pair.path for pair in match.pairs] == [layer.path for layer in TABLES[backbone]]


@pytest.mark.parametrize("is_ordered", [True, False])
def test_a_convolution_before_the_network_is_not_its_classifier_and_one_behind_is(is_ordered):
    taken = TABLES["mobilenet_v2"]
    front = TakenLayer("layers/front", "gray", ((1, 1, 1, 3), (3,)))
    behind = TakenLayer("layers/conv2d_999", "to_classes", ((1, 1, 1280, 7), (7,)))
    assert describe_contents(store([front, *taken], is_ordered)).top is None
    assert describe_contents(store([front, *taken, behind], is_ordered)).top == 7
    assert describe_contents(store([*taken, TakenLayer("layers/dense", "out", ((1280, 5), (5,)))], is_ordered)).top == 5


@pytest.mark.parametrize("other", [("lstm/cell", ((8, 256), (64, 256), (256,))), ("embedding", ((1000, 48),))])
def test_the_classifier_is_the_dense_layer_and_no_other_of_two_dimensions(other):
    layers = [*TABLES["mobilenet_v2"], TakenLayer("layers/dense", "out", ((1280, 5), (5,)))]
    layers.append(TakenLayer(f"layers/{other[0]}", other[0], other[1]))
    assert describe_contents(store(layers, is_ordered=False)).top == 5


def test_files_of_thousands_of_layers_are_told_in_a_moment():
    layers = [TakenLayer(f"layers/conv2d_{i}", f"conv2d_{i}", ((3, 3, 32, 32),)) for i in range(1, 3000)]
    start = time.process_time()
    assert identify_backbone(store(layers)) is None
    assert time.process_time() - start < 2


def test_names_of_a_strangers_layers_do_not_fill_a_message_or_steer_a_terminal():
    name = "a\n\n\x1b[31m" + 4000 * "x"
    layers = [layer._replace(name=name) for layer in TABLES["mobilenet_v2"][:1]]
    layers += [layer._replace(shapes=((9,) * 300,)) for layer in TABLES["mobilenet_v2"][1:]]
    with pytest.raises(WeightsError) as caught:
        find_layers("FILE", store(layers), "mobilenet_v2", TABLES["mobilenet_v2"])
    lines = str(caught.value).split("\n")
    assert len(lines) == 3
    assert max(map(len, lines)) < 250
    assert "\x1b" not in str(caught.value)


def test_a_smaller_network_is_not_taken_out_of_a_larger_one_with_the_same_names():
    taken, larger = TABLES["resnet50v2"], TABLES["resnet101v2"]
    assert {layer.name for layer in taken} <= {layer.name for layer in larger}
    for is_ordered in (True, False):
        match = match_layers(taken, store(larger, is_ordered))
        assert not match.is_whole
        assert match.extra.name.startswith("conv4_block")


@pytest.mark.parametrize("is_ordered", [True, False])
@pytest.mark.parametrize("own", [{}, {"kind": "block", "name": "block_{}/"}], ids=["flat", "in layers of one's own"])
def test_the_first_blocks_and_the_last_layer_of_a_deeper_network_are_not_a_shallower_one(own, is_ordered):
    with pytest.raises(WeightsError, match=r"\nthe file has a layer 'block_6[_/]norm' among its layers") as caught:
        find_layers("FILE", store(stack(12, **own), is_ordered), "mine", stack(6, **own))
    assert str(caught.value).count("\n") == 2
    assert match_layers(stack(6, **own), store(stack(6, **own), is_ordered)).is_whole


def test_an_order_that_most_names_contradict_is_no_match():
    taken = stack(6)
    layers = [*taken[:-1], taken[-1]._replace(name="renamed")]
    assert match_layers(taken, store(layers)).is_whole
    layers[2], layers[5] = layers[5], layers[2]
    with pytest.raises(
        WeightsError, match=r"'final' takes \(8,\) \(8,\), and the file has as many .* nor does their order fit"
    ):
        find_layers("FILE", store(layers), "mine", taken)


@pytest.mark.parametrize("is_ordered", [True, False])
def test_a_network_whose_layers_have_other_names_is_found_with_one_of_its_names_in_the_head(is_ordered):
    taken = stack(2)
    renamed = [layer._replace(name=f"{layer.name}_x") for layer in taken]
    head = TakenLayer("layers/layer_normalization_9", "final", ((3,), (3,)))
    match = match_layers(taken, store([*renamed, head], is_ordered))
    assert match.is_whole
    assert [pair.name for pair in match.pairs] == [layer.name for layer in renamed]


def test_two_layers_of_a_network_never_get_the_weights_of_one():
    taken = [TakenLayer("layers/block/norm", "block/norm", ((8,),)), TakenLayer("layers/rescaling", "norm", ((8,),))]
    assert not match_layers(
        taken, store([taken[0], taken[1]._replace(path="layers/other", name="other")], False)
    ).is_whole


def test_the_very_names_are_taken_where_the_head_has_one_more_of_a_class():
    taken = [layer._replace(name=layer.path.removeprefix("layers/")) for layer in stack(2)]
    more = taken[-1]._replace(path="layers/layer_normalization_3", name="layer_normalization_3")
    assert taken[-1].name == "layer_normalization_2"
    match = match_layers(taken, store([*taken, more], is_ordered=False))
    assert match.is_whole
    assert [pair.path for pair in match.pairs] == [layer.path for layer in taken]
    with pytest.raises(WeightsError, match="the file has 4 such layers for 3 of the network: which are meant can't"):
        find_layers("FILE", store([*taken, more], is_ordered=False, has_names=False), "mine", taken)


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
