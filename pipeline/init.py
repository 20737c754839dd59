"""Writes a commented configuration for a dataset, and beside it the JSON Schema by which editors check it."""

import json
import re
from pathlib import Path

from imagepipe.base import filesystem
from imagepipe.base.errors import ConfigError
from imagepipe.base.labels import list_names
from imagepipe.ingest import dataset
from pipeline.columns import find_unsuitable_columns
from pipeline.config import find_side_problems
from pipeline.config_schema import SCHEMA_FILE, render_json_schema
from trainer.config import FINE_TUNING_EPOCHS, SCRATCH_EPOCHS
from trainer.pretrained import is_imagenet_available

_TEMPLATE = """\
# yaml-language-server: $schema={schema}
# The configuration of `imagepipe run`. Every key has a default; those shown are worth knowing.
# `imagepipe run --set trainer.batch_size=64` overrides one key for one run.

name: {name}            # names the served model: serving/{name}/<version>/
task: {task}

data:
  path: {path}       # made by `imagepipe ingest`; relative to this file
{features}
image:
  size: [299, 299]      # height and width that the network sees; best as its weights were trained, InceptionV3's at 299

trainer:
  backbone: inception_v3  # also: mobilenet_v2 and efficientnet_v2_b0, small and fast; convnext_base, large; …
  weights: {weights}
  epochs: {epochs}            # at most; it stops early when nothing improves any more
  batch_size: 32        # larger is faster on a GPU, if it fits
{training}  augmentation:         # of the training images; also: rotation, zoom, shift, contrast, mixup, …
    horizontal_flip: true  # false where left and right make a difference, as in writing

evaluation:
{gate}
serving:
  precision: auto       # of the served graph: bfloat16 if this processor is faster in it, else float32

run:
  keep: null            # number of runs, and of versions, to keep: each run then removes what older ones left
"""

_TRAINING = {
    "classification": "",
    "multilabel": """\
  label_thresholds: {}  # decision threshold per label (default 0.5), such as {rain: 0.3}; or highest_f1, to choose
""",
    "regression": """\
  loss: mean_squared_error  # or huber, which is less sensitive to outliers
""",
}

_GATE = {
    "classification": """\
  thresholds:           # the gate: a model below any of these is not pushed
    accuracy: 0.8       # also: macro_f1, top_k_accuracy, and log_loss (an upper bound)
  margin: 0.01          # by how much its accuracy may be below the live model's
""",
    "multilabel": """\
  thresholds: {}        # the gate, such as {macro_f1: 0.7}; also: micro_f1, precision, recall, auc. A model below any
                        # is not pushed. There are none by default: what is good depends on how rare the labels are
  margin: 0.01          # by how much its macro_f1 may be below the live model's
""",
    "regression": """\
  thresholds: {}        # the gate, such as {mean_absolute_error: 2.5}, in the label's unit. Errors have upper bounds
                        # (also: mean_squared_error), r_squared a lower one. There are none by default
  margin: 0.01          # by what share its mean_absolute_error may be above the live model's
""",
}

_DOWNLOADED = "imagenet     # imagenet | none (from scratch) | a file, such as an earlier run's base.weights.h5"
_SCRATCH = "none         # imagenet | none (from scratch) | a file; imagenet, which could not be reached, trains better"


def write_config(dataset_dir: str | Path, out: Path) -> list[str]:
    """Writes a configuration and its JSON Schema.

    Args:
        dataset_dir: a folder that ``imagepipe ingest`` wrote, or the URI of one.
        out: the file to write; its folder's name becomes the pipeline's. The schema is written beside it.

    Returns:
        Notes for the user, one sentence each.

    Raises:
        ConfigError: if ``out`` exists, or the dataset has no split called train or eval.
        IngestError: if there is no dataset, or it is damaged.
    """
    if out.exists():
        raise ConfigError(f"{out} exists. Delete it, or give another name with --out.")
    description = dataset.load(str(dataset_dir))
    if missing := next((name for name in ("train", "eval") if name not in description.splits), None):
        raise ConfigError(
            f"{dataset_dir} has the splits {list_names(list(description.splits))}, and none called {missing}: a run "
            "trains on train, and evaluates with eval. Ingest into another folder with splits of these names."
        )
    task = description.options.task
    side = {
        name: kind
        for name, kind in description.features.items()
        if name not in dataset.list_features(task, has_groups=True)
    }
    problems = find_side_problems(list(side))
    problems |= find_unsuitable_columns(str(dataset_dir), description, [name for name in side if name not in problems])
    is_reachable = is_imagenet_available()
    text = _TEMPLATE.format(
        schema=SCHEMA_FILE,
        name=re.sub(r"[^a-z0-9_-]+", "-", out.resolve().parent.name.lower()).strip("-_")[:63] or "images",
        task=task,
        path=_render_path(dataset_dir, out),
        features=_render_side_features({name: kind for name, kind in side.items() if name not in problems}),
        weights=_DOWNLOADED if is_reachable else _SCRATCH,
        epochs=FINE_TUNING_EPOCHS if is_reachable else SCRATCH_EPOCHS,
        training=_TRAINING[task],
        gate=_GATE[task],
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    out.with_name(SCHEMA_FILE).write_text(render_json_schema(), encoding="utf-8")
    notes = [f"This column was left out of data.features: {problem}." for problem in problems.values()]
    if not is_reachable:
        notes.append(
            "ImageNet weights can't be reached from here: trainer.weights is none, from scratch, until a file is given."
        )
    return notes


def _render_path(dataset_dir: str | Path, out: Path) -> str:
    """Returns the dataset's path as YAML; relative to the configuration if it lies below it."""
    if filesystem.is_uri(str(dataset_dir)):
        return json.dumps(filesystem.absolute(str(dataset_dir)), ensure_ascii=False)
    path, root = Path(dataset_dir).resolve(), out.resolve().parent
    return json.dumps(str(path.relative_to(root) if path.is_relative_to(root) else path), ensure_ascii=False)


def _render_side_features(side: dict[str, str]) -> str:
    """Returns the lines for side features, by name and type; nothing if there are none."""
    if not side:
        return ""
    numeric = [name for name, kind in side.items() if kind != "bytes"]
    categorical = [name for name, kind in side.items() if kind == "bytes"]
    return (
        "  features:             # columns of the manifest that enter the network next to the image;\n"
        "                        # remove those that are unknown when the model is asked\n"
        f"    numeric: {json.dumps(numeric, ensure_ascii=False)}\n"
        f"    categorical: {json.dumps(categorical, ensure_ascii=False)}\n"
    )
