"""Weights in an object store: what takes files gets a copy, and messages name the URI."""

from pathlib import Path

import numpy as np
import pytest

from imagepipe.base.errors import WeightsError
from tests.stores import memory, s3, s3_server, store  # noqa: F401 (fixtures)
from tests.trainer.test_weights_sharded import make_network, sharded  # noqa: F401 (a fixture)
from tests.weight_files import write_weights
from trainer.given import hash_given
from trainer.pretrained import check_file, check_weights, load_weights
from trainer.weights import fetch


def test_weights_in_several_files_are_loaded_from_a_store(sharded, store):  # noqa: F811
    network, path = sharded
    for file in path.parent.iterdir():
        store.put(f"weights/{file.name}", file.read_bytes())
    uri = f"{store.uri}/weights/{path.name}"
    check_file(uri)
    load_weights(other := make_network(), uri, "mine")
    assert all(np.array_equal(a, b) for a, b in zip(network.get_weights(), other.get_weights(), strict=True))
    assert hash_given("weights", uri) == hash_given("weights", str(path))


def test_messages_name_the_uri(memory, tmp_path):  # noqa: F811
    write_weights(tmp_path / "w.h5", "mobilenet_v2")
    uri = memory.put("w.h5", (tmp_path / "w.h5").read_bytes())
    check_weights(uri, "mobilenet_v2")
    with pytest.raises(WeightsError, match=f"{uri} does not hold the weights of resnet50"):
        check_weights(uri, "resnet50")
    index = memory.put("x.weights.json", b'{"weight_map": {"/layers/dense/vars": "x_0.h5"}}')
    with pytest.raises(WeightsError, match=rf"^trainer.weights: {index} names {memory.uri}/x_0\.h5, and there is no"):
        check_weights(index, "mobilenet_v2")
    with pytest.raises(WeightsError, match=f"^trainer.weights: there is no file {memory.uri}/none.h5"):
        check_weights(f"{memory.uri}/none.h5", "mobilenet_v2")


def test_the_folder_of_a_saved_model_is_fetched_whole(memory):  # noqa: F811
    for name in ("saved_model.pb", "variables/variables.index"):
        memory.put(f"model/{name}", name.encode())
    check_file(f"{memory.uri}/model")
    copy = fetch.fetch_weights(f"{memory.uri}/model/")
    assert Path(copy, "variables/variables.index").read_text() == "variables/variables.index"


def test_variables_behind_links_count(tmp_path):
    saved, linked = tmp_path / "saved", tmp_path / "linked"
    for folder in (saved, linked):
        folder.mkdir()
    (saved / "variables").symlink_to(linked)
    (linked / "variables.data-00000-of-00001").symlink_to(tmp_path / "values")
    (linked / "loop").symlink_to(linked)

    def hash_values(index: str, values: str) -> str:
        (linked / "variables.index").write_text(index)
        (tmp_path / "values").write_text(values)
        return hash_given("weights", str(saved))

    assert len({hash_values("a", "b"), hash_values("c", "b"), hash_values("a", "d")}) == 3


def test_more_than_weights_can_be_is_not_fetched(memory, monkeypatch):  # noqa: F811
    monkeypatch.setattr(fetch, "_MAX_BYTES", 5)
    with pytest.raises(WeightsError, match=r"w\.h5 can't be fetched: it has 6 bytes in 1 files; at most 5 in"):
        check_weights(memory.put("w.h5", b"123456"), "mobilenet_v2")
