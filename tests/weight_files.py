"""Files of a built-in backbone's weights, all zero, written without Keras."""

from pathlib import Path

import h5py

from trainer.weights.identify import load_layers

NAMES = {1: ["kernel:0"], 2: ["kernel:0", "bias:0"], 3: ["beta:0", "moving_mean:0", "moving_variance:0"]}
NAMES[4] = ["gamma:0", *NAMES[3]]


def write_weights(file: Path, backbone: str, times: int = 1) -> Path:
    """Writes them as Keras 2 did, with a classifier of 5 classes; HDF5 gives no room to numbers nobody wrote."""
    taken = load_layers()[backbone]
    prefixes = [f"network_{number}_" for number in range(times)] if times > 1 else [""]
    layers = {f"{prefix}{layer.name}": layer.shapes for prefix in prefixes for layer in taken}
    layers["predictions"] = ((1280, 5), (5,))
    with h5py.File(file, "w") as stored:
        stored.attrs["layer_names"] = [name.encode() for name in layers]
        for name, shapes in layers.items():
            group = stored.create_group(name)
            names = [f"{name}/{weight}" for weight in NAMES[len(shapes)]]
            group.attrs["weight_names"] = [weight.encode() for weight in names]
            for weight, shape in zip(names, shapes, strict=True):
                group.create_dataset(weight, shape, "f4")
    return file
