"""A SavedModel's variables are read without TensorFlow: the same numbers, and what is damaged is refused."""

import shutil

import numpy as np
import pytest
import tensorflow as tf

from imagepipe.base.errors import WeightsError
from trainer.weights import checkpoint
from trainer.weights.check import check_readable
from trainer.weights.checkpoint import Checkpoint
from trainer.weights.contents import open_weights


class Layer(tf.Module):
    """A layer as the object graph of a checkpoint shows it."""

    def __init__(self, number: int, dtype: tf.DType):
        super().__init__(name=f"conv_{number}")
        generator = np.random.default_rng(number)
        with self.name_scope:
            self.bias = tf.Variable(tf.cast(generator.normal(size=(4,)), dtype), name="bias")
            self.kernel = tf.Variable(tf.cast(generator.normal(size=(3, 3, number + 1, 4)), dtype), name="kernel")


class Network(tf.Module):
    """More variables than fit into one block of the index."""

    def __init__(self):
        super().__init__()
        dtypes = [tf.float32, tf.float64, tf.float16, tf.bfloat16]
        self.layers = [Layer(number, dtypes[number % 4]) for number in range(200)]


@pytest.fixture(scope="module")
def network():
    return Network()


@pytest.fixture(scope="module")
def saved(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tf.saved_model.save(network, str(folder))
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def test_layers_and_numbers_are_those_that_tensorflow_wrote(network, saved):
    with open_weights(str(saved)) as (contents, read):
        assert [layer.name for layer in contents.layers] == [layer.name for layer in network.layers]
        for stored, layer in zip(contents.layers, network.layers, strict=True):
            assert stored.shapes == (tuple(layer.kernel.shape), (4,))
            kernel, bias = map(read, stored.keys)
            np.testing.assert_array_equal(kernel, layer.kernel.numpy().astype(kernel.dtype))
            np.testing.assert_array_equal(bias, layer.bias.numpy().astype(bias.dtype))


def test_a_changed_number_is_noticed(copy):
    values = copy / "variables" / "variables.data-00000-of-00001"
    content = bytearray(values.read_bytes())
    content[8] ^= 1
    values.write_bytes(content)
    checkpoint = Checkpoint(str(copy))
    keys = [key for layer in checkpoint.list_contents().layers for key in layer.keys]
    with pytest.raises(OSError, match="checksum is wrong"):
        list(map(checkpoint.read, keys))


@pytest.mark.parametrize("suffix", ["index", "data-00000-of-00001"])
def test_a_truncated_file_is_refused(copy, suffix):
    file = copy / "variables" / f"variables.{suffix}"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(WeightsError, match="does not hold weights that can be read"), open_weights(str(copy)):
        pass


def test_damage_of_the_index_ends_in_a_message_if_in_an_error(copy):
    """Each of many bytes, changed alone: the reader ends soon, with a message if at all."""
    index = copy / "variables" / "variables.index"
    content = index.read_bytes()
    refused = 0
    for at in np.random.default_rng(0).choice(len(content), 200, replace=False):
        index.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        try:
            with open_weights(str(copy)) as (contents, read):
                for layer in contents.layers:
                    list(map(read, layer.keys))
        except WeightsError:
            refused += 1
    assert refused > 150  # bytes that hold nothing read may change


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="is a folder, but not of a SavedModel"):
        check_readable(str(tmp_path))


def test_an_index_of_few_bytes_for_many_names_is_refused(copy):
    def write_varint(number: int) -> bytes:
        return bytes([number & 127 | 128, *write_varint(number >> 7)]) if number > 127 else bytes([number])

    def write_block(*entries: tuple[int, bytes, bytes]) -> bytes:
        """Entries are how much of the key before they share, the rest of the key, and the value."""
        parts = [
            b"".join(map(write_varint, (shared, len(key), len(value)))) + key + value for shared, key, value in entries
        ]
        return b"".join(parts) + bytes(4) + (1).to_bytes(4, "little") + b"\0"

    names = write_block((0, b"a" * 4000, b""), *[(4000, b"", b"")] * 20_000)
    blocks = write_block((0, b"z", write_varint(0) + write_varint(len(names) - 1)))
    footer = bytes(2) + write_varint(len(names)) + write_varint(len(blocks) - 1)
    content = names + blocks + footer.ljust(40, b"\0") + checkpoint._MAGIC
    (copy / "variables" / "variables.index").write_bytes(content)
    with pytest.raises(WeightsError, match="names of its variables are larger than 64 MiB"), open_weights(str(copy)):
        pass


def test_a_shape_of_many_sides_is_refused_at_once():
    side = b"\x12\x02\x08\x01"  # 1
    message = b"\x12" + bytes([8 * len(side)]) + 8 * side
    assert checkpoint._parse_entry(message).shape == (1,) * 8
    size = 3_000_000 * len(side)
    varint = bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14 & 127 | 128, size >> 21])
    with pytest.raises(OSError, match="a shape has more than 8 sides"):
        checkpoint._parse_entry(b"\x12" + varint + 3_000_000 * side)


def test_of_two_networks_with_the_same_names_none_is_taken(tmp_path):
    network = Network()
    network.layers = [Layer(1, tf.float32), Layer(1, tf.float32)]
    network.layers[1].kernel.assign_add(tf.ones_like(network.layers[1].kernel))
    tf.saved_model.save(network, str(tmp_path / "two"))
    with open_weights(str(tmp_path / "two")) as (contents, _):
        assert [layer.shapes for layer in contents.layers] != [((3, 3, 2, 4), (4,))]
