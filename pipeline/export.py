"""Exports a run's network for other programs, held against the run's own model on images of the eval split."""

import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from imagepipe.base import filesystem
from imagepipe.base.errors import ConfigError, ModelError, describe_error
from imagepipe.base.names import NOVELTY, OPTIMIZED, THRESHOLDS, TRAINING_FOLDER
from imagepipe.base.signals import hold_signals
from imagepipe.deploy import storage
from imagepipe.deploy.saved_model import read_inputs, read_labels, read_task
from pipeline.export_figures import Batches, compare_answers, describe_figures
from pipeline.runs.lineage import Lineage, trace_model

if TYPE_CHECKING:
    from imagepipe.serving.loaded_model import LoadedModel
    from trainer.export.portable import Ask

Format = Literal["onnx", "openvino", "saved_model", "tflite"]
Precision = Literal["float32", "float16", "int8"]

_PRECISIONS: dict[Format, tuple[Precision, ...]] = {  # the first is the default
    "onnx": ("float32", "int8"),
    "openvino": ("float32", "float16", "int8"),
    "tflite": ("float16", "float32", "int8"),
    "saved_model": (),
}
_WHY_NOT: dict[tuple[Format, Precision], str] = {
    ("onnx", "float16"): "ONNX Runtime computes in float32 on CPUs, and would convert weights in float16 back",
}
_SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "tflite": ".tflite"}
_EXTRAS = {"onnx": ("onnx", "onnxruntime", "tf2onnx"), "openvino": ("openvino", "nncf")}  # their packages, by extra
_CALIBRATION_IMAGES = 300  # as NNCF takes by default
_COMPARED_IMAGES = 1000
_BATCH = 32

_PREPROCESSING = (
    "Decode to RGB, turn upright by EXIF or XMP, lay transparency on white, resize to height and width by bilinear "
    "interpolation with antialiasing (the proportions are not kept), round to whole numbers. The network does all "
    "further scaling."
)
_UNKNOWN = (
    "where novelty is novelty_from or more, the model's label is '': the image is like none that it has learned from"
)
_WITHOUT_NOVELTY = (
    "It answers with classes alone, without novelty: its training kept nothing to compute it by, as those of earlier "
    "versions. Run the pipeline again for one that does."
)


@dataclass(frozen=True)
class _Source:
    """A model to export, and what is known of it.

    Attributes:
        model: the SavedModel as its Trainer wrote it, with the folder of its training beside it.
        run: id of the run that it comes from; '' if that is unknown.
        examples: folder of the run's Examples; '' if they are gone, or unknown.
    """

    model: str
    run: str
    examples: str

    @property
    def training(self) -> str:
        """The folder of the training."""
        return f"{self.model.rpartition('/')[0]}/{TRAINING_FOLDER}"

    @property
    def has_novelty(self) -> bool:
        """Whether the training kept what the network's novelty is computed by."""
        return filesystem.exists(f"{self.training}/{NOVELTY}")

    def read_limit(self) -> float | None:
        """Returns the novelty from which on the model gives no label; None if it has no such limit."""
        unknown = ((self._read_facts("config.json") or {}).get("serving") or {}).get("unknown")
        return unknown["novelty"] if unknown else None

    def read_thresholds(self) -> dict[str, float] | None:
        """Returns the decision thresholds of several labels; None in other tasks, and of earlier versions."""
        facts = self._read_facts(THRESHOLDS)
        return None if facts is None else {label: fact["threshold"] for label, fact in facts.items()}

    def read_precision(self) -> str:
        """Returns the precision of the SavedModel; '' if that is not known."""
        return str((self._read_facts(OPTIMIZED) or {}).get("saved_precision", ""))

    def _read_facts(self, name: str) -> dict[str, Any] | None:
        """Returns what a file of the training has in JSON; None if there is none, as of earlier versions."""
        path = f"{self.training}/{name}"
        try:
            return cast(dict[str, Any], json.loads(filesystem.read_text(path)))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ModelError(
                f"{path} is damaged: {describe_error(error)}. Copy it again, or run the pipeline again"
            ) from error


@dataclass(frozen=True)
class Export:
    """An exported network.

    Attributes:
        file: its file, or folder of a SavedModel.
        card: the file beside it, in JSON: labels, preprocessing, figures.
        figures: how its answers compare with the model's on images of the eval split; None if they weren't.
        not_compared: why not, '' if they were.
        note: what the export lacks, for people; '' if nothing.
    """

    file: Path
    card: Path
    figures: dict[str, Any] | None
    not_compared: str
    note: str

    def __str__(self) -> str:
        compared = f"It was not compared with the model: {self.not_compared}."
        if self.figures is not None:
            compared = describe_figures(self.figures)
        return " ".join(text for text in (compared, self.note) if text)


def export_model(model: str, out: Path, kind: Format, precision: Precision | None) -> Export:
    """Exports a run's network.

    An export that is there already is replaced when the new one is whole, and else left as it was.

    Args:
        model: a run, a version that it pushed, or the SavedModel that its Trainer wrote.
        out: the file to write, ``.xml`` of OpenVINO, or the folder of a SavedModel.
        kind: the format.
        precision: of weights, or of weights and activations (int8); by default the format's.

    Raises:
        ConfigError: if there is no such form, or a package is missing that makes it.
        ModelError: if there is no such model, or it lacks what it takes.
        TrainingError: if the network needs side features.
    """
    precision = _check_form(kind, precision)
    _check_place(kind, out)
    source = _find_source(model)
    if precision == "int8" and not source.examples:
        raise ModelError(
            f"{model}: int8 needs images of the train split, and the Examples of its run are gone, or not known. Give "
            "a run that has them; `imagepipe clean` removes those of old runs"
        )
    with _replace_whole(out) as file:
        if kind == "saved_model":
            # Without what is being written, if that lies in the model's folder.
            ignored = shutil.ignore_patterns(f"{filesystem.PARTIAL}*")
            shutil.copytree(storage.fetch_folder(source.model), file, ignore=ignored)
            reason = "it is a copy of the run's model"
            export = _describe(source, file, kind, source.read_precision(), None, reason, None)
        else:
            export = _convert(source, file, kind, precision)
    return replace(export, file=out, card=_name_card(out))


def _convert(source: _Source, file: Path, kind: Literal["onnx", "openvino", "tflite"], precision: Precision) -> Export:
    """Writes a network to a file, opens that and compares it."""
    from imagepipe.serving.loaded_model import LoadedModel
    from trainer.export import portable

    write, open_file = {
        "onnx": (portable.write_onnx, portable.open_onnx),
        "openvino": (portable.write_openvino, portable.open_openvino),
        "tflite": (portable.write_tflite, portable.open_tflite),
    }[kind]
    network = portable.load_network(storage.fetch_folder(source.training))
    loaded = LoadedModel(storage.fetch_folder(source.model), "tf_examples")
    size = list(network.inputs[0].shape[1:3])
    images = np.zeros((0, *size, 3), np.uint8)
    if precision == "int8":
        batches = _read_batches(loaded, f"{source.examples}/Split-train", _CALIBRATION_IMAGES)
        images = np.concatenate([pixels for pixels, _, _ in batches])
    write(network, precision, images, file)
    ask = _open_written(open_file, file, kind)
    if not source.examples:
        reason = "the Examples of its run are gone, or not known"
        return _describe(source, file, kind, precision, None, reason, size)
    batches = _read_batches(loaded, f"{source.examples}/Split-eval", _COMPARED_IMAGES)
    thresholds = [(source.read_thresholds() or {}).get(label, 0.5) for label in loaded.labels]
    figures = compare_answers(ask, batches, loaded.task, thresholds, source.read_limit())
    return _describe(source, file, kind, precision, figures, "", size)


@contextmanager
def _replace_whole(out: Path) -> Iterator[Path]:
    """Gives a path to write an export to; it then takes its place together with what was written beside it.

    If the block fails or is interrupted, or a file can't take its place, all that was there stays as it was. Only a
    kill leaves the folder of the new files.

    Args:
        out: the file or folder of the export; the other files of one have names that begin as its does.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    # In a folder of their own the files have the names that they keep: some of them name others.
    with TemporaryDirectory(prefix=filesystem.PARTIAL, dir=out.parent) as partial:
        new, old = Path(partial, "new"), Path(partial, "old")
        new.mkdir()
        old.mkdir()
        yield new / out.name
        for path, _ in filesystem.walk(str(new)):  # else a power cut may leave the new names with nothing in them
            with filesystem.open_read(path) as file:
                os.fsync(file.fileno())
        with hold_signals(), ExitStack() as undo:
            names = sorted(path.name for path in new.iterdir())  # the card is the last of them
            # It goes first and comes last, so that a kill leaves none beside a file that it doesn't describe.
            for name in reversed(names):
                if (place := out.with_name(name)).is_file():
                    place.rename(old / name)
                    undo.callback((old / name).rename, place)
            for name in names:
                (new / name).rename(out.with_name(name))
                undo.callback(out.with_name(name).rename, new / name)
            undo.pop_all()
            filesystem.flush_folder(str(out.parent))


def _open_written(open_file: "Callable[[Path], Ask]", file: Path, kind: Format) -> "Ask":
    """Opens an export by its format's own runtime, which may not take it."""
    try:
        return open_file(file)
    except Exception as error:  # each runtime has its own
        raise ModelError(
            f"--format {kind}: what this network was converted to can't be opened: {describe_error(error)}. Nothing "
            "was written; take another format"
        ) from error


def _check_form(kind: Format, precision: Precision | None) -> Precision:
    precisions = _PRECISIONS[kind]
    if not precisions:
        if precision:
            raise ConfigError(
                f"--precision {precision}: a SavedModel is exported as the run made it; serving.precision is what "
                "decides. Leave it out"
            )
        return "float32"
    precision = precision or precisions[0]
    if precision not in precisions:
        raise ConfigError(f"--precision {precision}: {_WHY_NOT[kind, precision]}. Take one of {', '.join(precisions)}")
    for package in _EXTRAS.get(kind, ()):
        if (package != "nncf" or precision == "int8") and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"--format {kind} needs a package that is not installed: pip install 'imagepipe-tfx[{kind}]'"
            )
    return precision


def _check_place(kind: Format, out: Path) -> None:
    if kind == "saved_model":
        if out.exists():
            raise ConfigError(f"--out: {out} exists; a SavedModel is a folder that is written new")
    elif out.is_dir():
        raise ConfigError(f"--out: {out} is a folder: give a file that ends in {_SUFFIXES[kind]}")
    elif out.suffix != _SUFFIXES[kind]:
        raise ConfigError(f"--out: {out}: a file of {kind} ends in {_SUFFIXES[kind]}")
    elif not out.parent.is_dir():
        raise ConfigError(f"--out: there is no folder {out.parent}")
    beside = [_name_card(out), *([out.with_suffix(".bin")] if kind == "openvino" else [])]
    if folders := [file for file in beside if file.is_dir()]:
        raise ConfigError(f"--out: {folders[0]} is a folder, and the file beside {out.name} has that name")
    if lost := [file for file in beside if file.exists() and not out.exists()]:  # not of an export that is replaced
        raise ConfigError(f"--out: {lost[0]} is there, and would be replaced: give another name than {out.name}")


def _name_card(out: Path) -> Path:
    """Returns the path of the file beside an export that describes it."""
    return Path(f"{out}.json")


def _find_source(path: str) -> _Source:
    """Finds the model that a path stands for; a version's is its run's, by whatever way it came there."""
    folder = storage.find_model(path)
    try:
        lineage = trace_model(path)
    except ModelError as error:  # of a cluster's run, say, or by a URI
        source, reason = _Source(folder, "", ""), f": {error}"
    else:
        model = storage.find_model(str(lineage.run.model_dir)) if lineage.verified else folder
        source, reason = _Source(model, lineage.run.run_id, _find_examples(lineage)), ", nor does its run"
    if not filesystem.exists(f"{source.training}/model.keras"):
        raise ModelError(f"{folder} has no Keras model beside it{reason}. Give the run that it comes from (runs/RUN)")
    return source


def _find_examples(lineage: Lineage) -> str:
    """Returns the folder with the splits that the model was trained and evaluated on; '' if it is gone."""
    for execution in lineage.executions:
        for output in execution.outputs:
            if output.key == "examples" and not output.removed and filesystem.exists(f"{output.uri}/Split-eval"):
                return output.uri
    return ""


def _read_batches(loaded: "LoadedModel", folder: str, maximum: int) -> Batches:
    """Yields pixels, the model's answers, and targets of the first images of a split, which is in no order."""
    import tensorflow as tf

    from imagepipe.base.features import IMAGE, TARGET
    from transform.examples import read_serialized

    transform, answer = loaded.loaded.signatures["transform_features"], loaded.loaded.signatures["tf_examples"]
    try:
        for examples in read_serialized(folder).take(maximum).batch(_BATCH):
            features, answers = transform(examples=examples), answer(examples=examples)
            numbers = {name: answers[name].numpy() for name in ("classes", "novelty") if name in answers}
            yield features[IMAGE].numpy(), numbers, features[TARGET].numpy()
    except tf.errors.OpError as error:
        raise ModelError(
            f"The Examples in {folder} can't be read: {error.message}. If a file is damaged, run the pipeline again"
        ) from error


def _describe(
    source: _Source,
    out: Path,
    kind: Format,
    precision: str,
    figures: dict[str, Any] | None,
    not_compared: str,
    size: list[int] | None,
) -> Export:
    """Writes the file beside an export."""
    assets = storage.fetch_assets(source.model)
    takes: dict[str, Any] = {"name": "input", "type": "string [n]", "takes": "encoded images: JPEG or PNG"}
    if kind != "saved_model":
        takes = {
            "name": "image",
            "type": f"uint8 [{'1' if kind == 'tflite' else 'n'}, height, width, 3]",
            "takes": "pixels",
            "size": size,
            "preprocessing": _PREPROCESSING,
        }
    outputs = [{"name": "classes", "type": "float32 [n, k]", "order": "that of labels"}]
    has_novelty, is_saved_model = source.has_novelty, kind == "saved_model"
    if is_saved_model:
        outputs += [{"name": "label", "type": "string [n]"}, {"name": "score", "type": "float32 [n]"}]
        outputs += [{"name": "metadata", "type": "string [n]"}]
    if has_novelty:
        outputs += [{"name": "novelty", "type": "float32 [n]"}]
    if has_novelty and not is_saved_model:
        outputs += [{"name": "embedding", "type": "float32 [n, d]"}]
    further = read_inputs(source.model) if is_saved_model else {}
    limit = source.read_limit() if has_novelty else None
    note = "" if has_novelty or is_saved_model else _WITHOUT_NOVELTY
    content = {
        "format": kind,
        "precision": precision,
        "run": source.run,
        "task": read_task(assets),
        "labels": read_labels(assets),
        "label_thresholds": source.read_thresholds(),
        "input": takes,
        "further_inputs": [{"name": name, "type": f"{kind} [n]"} for name, kind in further.items() if name != "input"],
        "outputs": outputs,
        "unknown": {"novelty_from": limit, "rule": _UNKNOWN} if limit is not None else None,
        "note": note or None,
        "compared_on_eval": figures,
        "not_compared_because": not_compared or None,
    }
    card = _name_card(out)
    card.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return Export(out, card, figures, not_compared, note)
