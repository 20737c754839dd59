"""Writes a commented configuration for a dataset."""

import json
import re
from pathlib import Path

from imagepipe.base.errors import ConfigError
from imagepipe.ingest import dataset
from trainer.weights import imagenet_available

_TEMPLATE = """\
# What `imagepipe run` does. Every key has a default; those shown are worth knowing.
# `imagepipe run --set trainer.batch_size=64` overrides one key for one run.

name: {name}            # names the served model: serving/{name}/<version>/
task: {task}

data:
  path: {path}       # made by `imagepipe ingest`; relative to this file
{features}
image:
  size: [299, 299]      # height and width that the network sees; InceptionV3 takes 75 and more, 299 is its own

trainer:
  backbone: inception_v3  # smaller and faster: mobilenet_v2, efficientnet_v2_b0; larger: convnext_base, …
  weights: {weights}
  epochs: 20            # at most; it stops early when the eval split no longer improves
  batch_size: 32        # larger is faster on a GPU, if it fits
{training}  augmentation:         # of training's images; also: rotation, zoom, shift, contrast, mixup, …
    horizontal_flip: true  # not where left and right make a difference, as in writing

evaluation:
{gate}
serving:
  precision: auto       # of the served graph: bfloat16 where this processor is faster in it, else float32
"""

_TRAINING = {
    "classification": "",
    "multilabel": """\
  label_thresholds: {}  # by label, from which probability on it is said of an image, where not from 0.5
""",
    "regression": """\
  loss: mean_squared_error  # or huber, which minds outliers less
""",
}

_GATE = {
    "classification": """\
  thresholds:           # the gate: a model below any of these is not pushed
    accuracy: 0.8       # also: macro_f1, top_k_accuracy, and log_loss (an upper bound)
  margin: 0.01          # by how much its accuracy may be below that of the model that is live
""",
    "multilabel": """\
  thresholds: {}        # the gate, such as {macro_f1: 0.7}; also: micro_f1, precision, recall, auc. A model below any
                        # is not pushed. There are none by default: what is good depends on how rare the labels are
  margin: 0.01          # by how much its macro_f1 may be below that of the model that is live
""",
    "regression": """\
  thresholds: {}        # the gate, such as {mean_absolute_error: 2.5}, in the label's unit. Upper bounds, as is
                        # mean_squared_error; r_squared is a lower one. There are none by default
  margin: 0.01          # by what share its mean_absolute_error may be above that of the model that is live
""",
}

_OWN_FEATURES = {"input", "label", "metadata", "width", "height", "format", "sha256", *dataset.MEASURED}
_DOWNLOADED = "imagenet     # imagenet | none (from scratch) | a file, such as an earlier run's base.weights.h5"
_SCRATCH = "none         # imagenet | none (from scratch) | a file; imagenet, which could not be reached, trains better"


def write_config(dataset_dir: Path, out: Path) -> list[str]:
    """Writes a configuration.

    Args:
        dataset_dir: a folder that ``imagepipe ingest`` wrote.
        out: the file to write; its folder's name becomes the pipeline's.

    Returns:
        What the user should know about it, a sentence each.

    Raises:
        ConfigError: if ``out`` exists.
        imagepipe.ingest.dataset.IngestError: if there is no dataset.
    """
    if out.exists():
        raise ConfigError(f"{out} exists. Delete it, or give another name with --out.")
    made = dataset.load(str(dataset_dir))
    task = made.options.task
    reachable = imagenet_available()
    text = _TEMPLATE.format(
        name=re.sub(r"[^a-z0-9_-]+", "-", out.resolve().parent.name.lower()).strip("-_")[:63] or "images",
        task=task,
        path=_relative(dataset_dir, out),
        features=_side_features(made.features),
        weights=_DOWNLOADED if reachable else _SCRATCH,
        training=_TRAINING[task],
        gate=_GATE[task],
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    return (
        [] if reachable else ["ImageNet weights can't be reached from here: the network will be trained from scratch."]
    )


def _relative(dataset_dir: Path, out: Path) -> str:
    """The dataset's path as YAML, seen from the configuration where it is below that."""
    path, root = dataset_dir.resolve(), out.resolve().parent
    return json.dumps(str(path.relative_to(root) if path.is_relative_to(root) else path), ensure_ascii=False)


def _side_features(types: dict[str, str]) -> str:
    """The lines for the columns of the manifest; nothing if it had no further ones."""
    side = {name: kind for name, kind in types.items() if name not in _OWN_FEATURES}
    if not side:
        return ""
    numeric = [name for name, kind in side.items() if kind != "bytes"]
    categorical = [name for name, kind in side.items() if kind == "bytes"]
    return (
        "  features:             # columns of the manifest that enter the network next to the image;\n"
        "                        # remove those that say the label, or that are not known when it is asked\n"
        f"    numeric: {json.dumps(numeric, ensure_ascii=False)}\n"
        f"    categorical: {json.dumps(categorical, ensure_ascii=False)}\n"
    )
