"""The pipeline that monitors, on this machine: the page stays, and the run fails if the traffic has moved."""

import json
from pathlib import Path

import pytest
from tfx.orchestration import metadata

from imagepipe.base.names import MONITORED, REFERENCE
from imagepipe.capture.files import write_rows
from imagepipe.deploy.config import DeployConfig
from imagepipe.monitoring.reference_rows import write_reference
from pipeline.local_runner import NodeError, NodeResult, run_nodes
from pipeline.monitor_dag import create_monitor_pipeline
from pipeline.monitoring_config import MonitoringConfig
from tests.monitoring.test_monitor import make_rows


@pytest.fixture
def monitor(tmp_path):
    """Runs the pipeline on quiet traffic to version 3, and further rows; returns the results of its nodes, by name."""

    def run(*rows: dict, reference: bool = True) -> tuple[dict[str, NodeResult], str]:
        version = tmp_path / "serving" / "3"
        version.mkdir(parents=True)
        (version / "saved_model.pb").write_bytes(b"")
        if reference:
            samples = [row | {"split": s} for n, s in ((8, "train"), (9, "eval")) for row in make_rows(300, seed=n)]
            write_reference(str(version / REFERENCE), samples, "classification", "", "")
        write_rows(str(tmp_path / "traffic"), [*make_rows(100, seed=2), *rows], "quiet")
        pipeline = create_monitor_pipeline(
            "digits-monitor",
            MonitoringConfig(capture=str(tmp_path / "traffic")),
            DeployConfig(name="digits", path=str(tmp_path / "serving")),
            pipeline_root=str(tmp_path / "artifacts"),
            parameter=lambda name, value: value,
            metadata=metadata.sqlite_metadata_connection_config(str(tmp_path / "metadata.db")),
        )
        results: dict[str, NodeResult] = {}
        try:
            run_nodes(pipeline, "run", (), lambda node: None, lambda result: results.update({result.id: result}))
        except NodeError as error:
            return results, str(error)
        return results, ""

    return run


def test_a_quiet_run_succeeds_and_leaves_page_figures_and_metrics(monitor):
    results, error = monitor()
    assert (list(results), error) == (["ServingMonitor", "MonitorGate"], "")
    outputs = {key: artifact for key, (artifact,) in results["ServingMonitor"].outputs.items()}
    assert "Nothing has moved" in Path(outputs["page"].uri).read_text()
    figures = json.loads(Path(outputs["figures"].uri, MONITORED).read_text())
    assert (figures["version"], figures["moved"]) == ("3", [])
    shown = {name: outputs["metrics"].get_float_custom_property(name) for name in ("images", "errors", "moved")}
    assert shown == {"images": 100, "errors": 0, "moved": 0}
    (part,) = figures["parts"]
    for comparison in part["comparisons"]:
        distance = outputs["metrics"].get_float_custom_property(f"{comparison['measure']}_distance")
        assert distance == pytest.approx(comparison["distance"], abs=1e-6)


def test_traffic_that_moved_fails_the_run_by_name_and_the_page_stays(monitor):
    results, error = monitor(*make_rows(100, seed=3, brighter=0.3))
    assert error == ("MonitorGate failed: the traffic has moved: brightness. ServingMonitor's page shows it")
    (page,) = results["ServingMonitor"].outputs["page"]
    assert "The traffic has moved" in Path(page.uri).read_text()


def test_a_live_version_without_a_reference_is_refused_in_words(monitor, tmp_path):
    results, error = monitor(reference=False)
    assert results == {}
    assert error.startswith(f"ServingMonitor failed: {tmp_path}/serving/3 has no reference to compare with")
