"""Features of raw Examples by a frozen backbone."""

import keras
import numpy as np
import tensorflow as tf

from tests.conftest import SIZE, make_example
from trainer.features import compute_features


def test_each_image_has_its_features_in_order_and_a_broken_one_has_none(analyzed):
    output, features, serialized = analyzed
    image = keras.Input((*SIZE, 3), dtype="uint8")
    backbone = keras.Model(image, keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1e6)(image)))
    broken = make_example(b"no image", "7", camera="new").SerializeToString()
    records = [*serialized[:40], broken, *serialized[40:]]  # in the second batch

    def compute(records: list[bytes]) -> list[np.ndarray]:
        return list(compute_features(tf.data.Dataset.from_tensor_slices(records), output, features, backbone))

    whole, rows = compute(serialized), compute(records)
    assert [i for i, row in enumerate(rows) if np.isnan(row).any()] == [40]
    np.testing.assert_array_equal([*rows[:40], *rows[41:]], whole)
    assert {row.dtype for row in rows} == {np.dtype(np.float16)}
    assert np.max(whole) == np.finfo(np.float16).max  # larger ones are cut off, not infinite
