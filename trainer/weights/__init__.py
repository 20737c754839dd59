"""Files of weights from elsewhere: which layers they hold, and which of them are a backbone's.

Nothing in such a file is built, unpickled or executed. From below: layers (what a layer is, here and in a file),
hdf5 and checkpoint (what a file holds), contents (any of them), check (read by another process first), matching,
identify (whose weights a file holds, with backbones.json.gz, the layers of the built-in backbones).
layer_names.json.gz has the names of all their layers, for ``trainer.unfreezing``.
"""
