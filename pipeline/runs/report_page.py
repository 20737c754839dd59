"""The report page of a run, for `imagepipe report`: as the run left it, or made from its artifacts."""

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagepipe.base.errors import ConfigError
from imagepipe.base.names import FINDERS, SERVING_REPORT, SUMMARY
from imagepipe.base.process import UNUSED_BY_KERAS, hide_modules
from imagepipe.deploy.versions import read_run
from imagepipe.serving.types import CheckReport
from pipeline.config import MACHINE_SECTIONS
from pipeline.config_file import read_config
from pipeline.runs import metadata_store
from pipeline.runs.provenance import CONFIG
from pipeline.workdir import Workdir

if TYPE_CHECKING:
    from components.evaluator.evaluation import Evaluation

PAGE = "report.html"

_NEEDED = {
    "examples": "ImportExampleGen",
    "model": "Trainer",
    "evaluation": "Evaluator",
    "predictions": "Predictions",
}


def load_page(run: Path) -> str:
    """Returns the page as HTML.

    Args:
        run: folder of a run, ``runs/<run>``.

    Raises:
        ConfigError: if it is no run, or did not get as far as an evaluation.
    """
    if (run / PAGE).is_file():
        return (run / PAGE).read_text(encoding="utf-8")
    if not (run / SUMMARY).is_file():
        raise ConfigError(f"{run} is no run; `imagepipe runs` lists them, give runs/RUN")
    return _make_page(run)


def _make_page(run: Path) -> str:
    name = read_run(run)["name"]
    try:
        with metadata_store.open_store(Workdir(run.resolve().parent.parent).metadata) as opened:
            executions = metadata_store.read_executions(opened, name, run.resolve().name) if opened else []
    except metadata_store.BusyError as error:
        raise ConfigError(f"{run} has no page, and none can be made of it now: {error}") from error
    outputs = {(execution.node, output.key): output for execution in executions for output in execution.outputs}
    missing = [f"{node}'s {key}" for key, node in _NEEDED.items() if not _is_there(outputs.get((node, key)))]
    if not _is_there(outputs.get(("ServingCheck", "blessing"))):
        missing.append("ServingCheck's blessing")
    if missing or not (run / CONFIG).is_file():
        what = ", ".join(missing) or CONFIG
        cleaned = " (`imagepipe clean` removes those of old runs)" if any(o.removed for o in outputs.values()) else ""
        raise ConfigError(
            f"{run} has no page, and none can be made of it: {what} is missing{cleaned}. Run the pipeline again"
        )
    settings = read_config(run / CONFIG)

    uris = {key: Path(outputs[node, key].uri) for key, node in _NEEDED.items()}
    findings = next((outputs[output] for output in reversed(FINDERS.items()) if output in outputs), None)
    return render_page(
        str(uris["evaluation"]),
        predictions=uris["predictions"],
        splits={split.name.removeprefix("Split-"): str(split) for split in uris["examples"].glob("Split-*")},
        model=uris["model"] / "Format-Serving",
        findings=Path(findings.uri) if findings and _is_there(findings) else None,
        serving=CheckReport(
            **json.loads((Path(outputs["ServingCheck", "blessing"].uri) / SERVING_REPORT).read_text(encoding="utf-8"))
        ),
        features=settings.data.features.make_features(),
        name=name,
        config=settings.model_dump(mode="json", exclude={*MACHINE_SECTIONS}),
    )


def render_page(evaluation: str, **inputs: Any) -> str:
    """Makes the page in little memory.

    The evaluation is read in a process of its own, before this one imports TensorFlow: the 300 MiB that reading it
    imports are gone with that process.

    Args:
        evaluation: folder of the Evaluator's artifact.
        inputs: the other ``components.model_report.page.PageInputs``.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        evaluated = pool.submit(_read_evaluation, evaluation).result()
    with hide_modules(*UNUSED_BY_KERAS):
        from components.model_report import page

    return page.render_page(page.PageInputs(evaluation=evaluated, **inputs))


def _read_evaluation(folder: str) -> "Evaluation":
    from components.evaluator.evaluation_reader import read_evaluation

    return read_evaluation(folder)


def _is_there(artifact: metadata_store.Artifact | None) -> bool:
    return artifact is not None and Path(artifact.uri).exists()
