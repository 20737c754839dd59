"""The page of a run, for `imagepipe report`: as the run left it, or made anew from its artifacts."""

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagepipe.base.errors import ConfigError
from imagepipe.base.names import SERVING_REPORT
from imagepipe.base.process import UNUSED_BY_KERAS, hide_modules
from imagepipe.serving.check_report import Report
from pipeline.config_file import read_config
from pipeline.runs import store
from pipeline.runs.provenance import CONFIG
from pipeline.runs.summary import FILENAME
from pipeline.workdir import Workdir

if TYPE_CHECKING:
    from components.evaluator.evaluation import Evaluation

PAGE = "report.html"

_NEEDED = {
    "examples": "ImportExampleGen",
    "model": "Trainer",
    "evaluation": "Evaluator",
    "predictions": "Predictions",
    "blessing": "Evaluator",
}


def page_of(run: Path) -> str:
    """The page, as HTML.

    Args:
        run: the folder of a run, ``runs/<run>``.

    Raises:
        ConfigError: if it is no run, or one that did not get as far as an evaluation.
    """
    if (run / PAGE).is_file():
        return (run / PAGE).read_text()
    if not (run / FILENAME).is_file():
        raise ConfigError(f"{run} is no run; `imagepipe runs` lists them, give runs/RUN")
    return _made_anew(run)


def _made_anew(run: Path) -> str:
    name = json.loads((run / FILENAME).read_text())["name"]
    try:
        with store.opened(Workdir(run.resolve().parent.parent).metadata) as opened:
            executions = store.executions(opened, name, run.resolve().name) if opened else []
    except store.BusyError as error:
        raise ConfigError(f"{run} has no page, and none can be made of it now: {error}") from error
    made = {(each.node, output.key): output for each in executions for output in each.outputs}
    missing = [f"{node}'s {key}" for key, node in _NEEDED.items() if not _is_there(made.get((node, key)))]
    if not _is_there(made.get(("ServingCheck", "blessing"))):
        missing.append("ServingCheck's blessing")
    if missing or not (run / CONFIG).is_file():
        what = ", ".join(missing) or CONFIG
        raise ConfigError(f"{run} has no page, and none can be made of it: {what} is missing. Run the pipeline again")
    settings = read_config(run / CONFIG)

    uris = {key: Path(made[node, key].uri) for key, node in _NEEDED.items()}
    findings = made.get(("DataCheck", "findings"))
    return render(
        str(uris["evaluation"]),
        predictions=uris["predictions"],
        splits={each.name.removeprefix("Split-"): str(each) for each in uris["examples"].glob("Split-*")},
        model=uris["model"] / "Format-Serving",
        findings=Path(findings.uri) if findings and _is_there(findings) else None,
        blessed=made["Evaluator", "blessing"].properties.get("blessed") == "1",
        serving=Report(**json.loads((Path(made["ServingCheck", "blessing"].uri) / SERVING_REPORT).read_text())),
        features=settings.data.features.make_features(),
        name=name,
        config=settings.model_dump(mode="json", exclude={"beam", "kubeflow"}),
    )


def render(evaluation: str, **given: Any) -> str:
    """Makes the page in little memory.

    What the Evaluator wrote is read in a process of its own, before this one imports TensorFlow: what reading it
    imports, 300 MiB, is gone with that process.

    Args:
        evaluation: the folder of what the Evaluator wrote.
        given: the other ``components.model_report.page.Inputs``.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(_read_evaluation, evaluation).result()
    with hide_modules(*UNUSED_BY_KERAS):
        from components.model_report import page

    return page.render(page.Inputs(evaluation=found, **given))


def _read_evaluation(folder: str) -> "Evaluation":
    from components.evaluator.evaluation_reader import load

    return load(folder)


def _is_there(artifact: store.Artifact | None) -> bool:
    return artifact is not None and Path(artifact.uri).exists()
