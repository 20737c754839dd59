"""The form of a network that OpenVINO computes, in a version's folder beside the SavedModel.

``assets.extra/openvino/`` holds

- ``network.xml`` and ``network.bin``: the network alone, from transformed features by name, ``[n, ...]``, to ``logits``
  float32 ``[n, k]`` and ``embedding`` float32 ``[n, d]``, for any n;
- a SavedModel of what stands around it: the functions ``preprocess``, ``preprocess_examples`` and ``answers``, the
  signature ``transform_features``, see ``trainer.export.signatures``, and ``assets``;
- ``form.json``: ``precision``, ``inputs``, ``outputs``, ``openvino`` (the version that wrote it), ``sha256`` of
  ``network.bin`` and ``sha256_xml`` of ``network.xml``, ``measured``, when it was accepted, and of an int8 form
  ``exact_int8``: whether that was on a processor as ``imagepipe.base.processor.has_exact_int8`` says. Forms of earlier
  versions have neither ``sha256_xml`` nor ``exact_int8``.
"""

import functools
import hashlib
import importlib.util
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from imagepipe.base.errors import ModelError, describe_error, put_on_one_line
from imagepipe.base.processor import has_exact_int8

FOLDER = "assets.extra/openvino"
"""The form's folder in a SavedModel's."""

FORM, NETWORK = "form.json", "network.xml"
"""Files in the form's folder."""

OpenVinoPrecision = Literal["float32", "bfloat16", "int8"]

# Of an int8 network, what isn't quantized. Without a hint OpenVINO takes bfloat16 wherever a processor has it, so that
# answers would depend on the machine.
_HINTS: dict[OpenVinoPrecision, str] = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}


def find_form(model: Path) -> Path | None:
    """Returns the folder of a SavedModel's form for OpenVINO, None if it has none."""
    folder = model / FOLDER
    return folder if (folder / FORM).is_file() else None


def find_usable_form(model: Path) -> Path | None:
    """Returns the folder of a SavedModel's form for OpenVINO, None if it has none, before anything is loaded.

    Raises:
        ModelError: if it has one that can't be used here: OpenVINO isn't installed, ``form.json`` can't be read, or
            this processor would give other answers.
    """
    if folder := find_form(model):
        _read_usable_form(folder)
    return folder


def is_form_unused(model: Path, engine: str, note: str) -> bool:
    """Returns whether a version that is loaded has a form for OpenVINO that came later, or can only be used by now.

    Args:
        model: the SavedModel's folder.
        engine: that computes the network, see ``LoadedModel``; the note likewise.
        note: the reason why it isn't the one of the form, '' if nobody has been told of any.
    """
    if engine.startswith("OpenVINO"):
        return False
    try:
        return find_usable_form(model) is not None
    except ModelError:
        return not note  # who loads it again is told


def read_form(folder: Path) -> dict[str, Any]:
    """Reads ``form.json``.

    Raises:
        ModelError: if it can't be read.
    """
    try:
        form = json.loads((folder / FORM).read_bytes())
        if form["precision"] not in _HINTS or not all(form[key] for key in ("inputs", "outputs", "sha256")):
            raise ValueError(f"precision {form['precision']!r} is not known, or something is empty")
        return dict(form)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / FORM} can't be read: {error!r}") from error


def write_form(folder: Path, form: Mapping[str, Any]) -> None:
    """Writes ``form.json``, with the hashes of the network's files that lie beside it.

    Args:
        folder: the form's folder, which has the network.
        form: what it says, but for the hashes.
    """
    (folder / FORM).write_text(json.dumps({**form, **_hash_network(folder)}, indent=1) + "\n", encoding="utf-8")


def _hash_network(folder: Path) -> dict[str, str]:
    """Returns the hash of each of the network's files by its name in ``form.json``."""
    hashes = {}
    for name, suffix in (("sha256", ".bin"), ("sha256_xml", ".xml")):
        with (folder / NETWORK).with_suffix(suffix).open("rb") as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


@functools.cache
def get_core() -> Any:
    """Returns OpenVINO's ``Core``, which stays as long as the process.

    With the last one goes a stack that its CPU plugin gave the thread that made the first (``sigaltstack``): in a
    server that had replaced a version, SIGTERM, which Python handles on it, was a segmentation fault. Call it first
    where no other thread does: two that came at once would make two.
    """
    import openvino

    return openvino.Core()


def compile_network(network: Any, precision: OpenVinoPrecision, options: Mapping[str, Any] | None = None) -> Any:
    """Returns OpenVINO's ``CompiledModel`` of a network.

    Args:
        network: OpenVINO's model, or the path of its file.
        precision: in which it was accepted.
        options: OpenVINO's properties, such as ``PERFORMANCE_HINT``, besides the precision.
    """
    settings = {"INFERENCE_PRECISION_HINT": _HINTS[precision]} | dict(options or {})
    return get_core().compile_model(network, "CPU", settings)


def _check_network(folder: Path, form: Mapping[str, Any]) -> None:
    """Checks that the network's files are those that were written: OpenVINO would compute with whatever is there.

    Raises:
        ModelError: if they are not, or can't be read.
    """
    try:
        hashes = _hash_network(folder)
    except OSError as error:
        raise ModelError(describe_error(error)) from error
    for name, digest in hashes.items():
        if form.get(name, digest) != digest:  # earlier versions wrote that of the weights alone
            what = f"the weights of {NETWORK} are" if name == "sha256" else f"{NETWORK} is"
            raise ModelError(
                f"{folder}: {what} damaged: the bytes are not those that were written, see {name} in {FORM}"
            )


def _read_usable_form(folder: Path) -> dict[str, Any]:
    """Reads ``form.json``, and checks that OpenVINO is here, and gives the answers by which an int8 form was accepted.

    Raises:
        ModelError: if it can't be read, or either is not so.
    """
    if importlib.util.find_spec("openvino") is None:
        raise ModelError(f"{folder} needs a package that is not installed: pip install 'imagepipe-tfx[openvino]'")
    form = read_form(folder)
    was_exact = form.get("exact_int8")
    if was_exact is None or was_exact == has_exact_int8():
        return form
    if was_exact:
        raise ModelError(
            f"{folder}: int8 was accepted on a processor with VNNI, and without VNNI, as here, OpenVINO gives other "
            "answers: sums in 16 bits are cut off"
        )
    raise ModelError(
        f"{folder}: int8 was accepted on a processor without VNNI, and with VNNI, as here, OpenVINO gives other "
        "answers: sums in 16 bits are not cut off"
    )


class OpenVinoNetwork:
    """A network that OpenVINO computes; calls of several threads wait for each other.

    Attributes:
        form: the content of ``form.json``.
        inputs: shape of an image's row and dtype, by name.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any] | None = None):
        """Loads and compiles it.

        Args:
            folder: the form's folder, see ``find_form``.
            options: OpenVINO's properties, such as ``PERFORMANCE_HINT``, besides the precision.

        Raises:
            ModelError: if it can't be loaded, is damaged, would give other answers on this machine's processor, or
                OpenVINO isn't installed.
        """
        self.form = _read_usable_form(folder)
        _check_network(folder, self.form)
        try:
            self._compiled = compile_network(folder / NETWORK, self.form["precision"], options)
        except RuntimeError as error:
            raise ModelError(f"{folder} can't be loaded by OpenVINO: {put_on_one_line(error)}") from error
        for kind, ports in (("inputs", self._compiled.inputs), ("outputs", self._compiled.outputs)):
            if sorted(self.form[kind]) != sorted(port.any_name for port in ports):
                raise ModelError(f"{folder / FORM} has other {kind} than {NETWORK}: the folder is damaged")
        self.inputs = {
            port.any_name: (tuple(n.get_length() for n in list(port.partial_shape)[1:]), port.element_type.to_dtype())
            for port in self._compiled.inputs
        }
        self._compute, self._lock = self.open_request(), threading.Lock()

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns ``logits`` ``[n, k]`` and ``embedding`` ``[n, d]``, float32, of transformed features ``[n, ...]``."""
        with self._lock:
            return self._compute(inputs)

    def open_request(self) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
        """Returns a function that does what a call does, beside others that this returned; for one thread."""
        request = self._compiled.create_infer_request()
        names, outputs = self.form["inputs"], self.form["outputs"]

        def compute(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            results = request.infer({name: inputs[name] for name in names}, share_inputs=True)
            return {name: results[name] for name in outputs}

        return compute
