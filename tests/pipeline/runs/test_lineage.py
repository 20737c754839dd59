import json

import pytest
from typer.testing import CliRunner

from imagepipe.base.errors import ModelError
from imagepipe.deploy.saved_model import FINGERPRINT
from pipeline.cli import app
from pipeline.runs import lineage
from tests.pipeline.runs.workdirs import Recorder, run_id
from tests.stores import memory  # noqa: F401 (fixture)


def saved_model(folder, fingerprint: bytes):
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"")
    (folder / FINGERPRINT).write_bytes(fingerprint)
    return folder


@pytest.fixture
def pushed(tmp_path):
    """A first run trained a model that was refused; the second took it from the cache and pushed it."""
    root = tmp_path / "work"
    recorder = Recorder(root)
    model = saved_model(root / "artifacts" / "Trainer" / "model" / "6" / "Format-Serving", b"fingerprint")
    version = saved_model(root / "serving" / "digits" / "1000", b"fingerprint")
    places = {"Trainer": str(model.parent), "Pusher": str(root / "artifacts" / "Pusher" / "1")}
    recorded = recorder.record(0, uris=places)
    cached = {node: recorded[node] for node in recorded if node not in ("Evaluator", "Pusher")}
    recorder.record(1, cached=cached, uris=places | {"Pusher": str(root / "artifacts" / "Pusher" / "2")})
    recorder.summarize(0, model_dir=str(model), not_blessed_because=["accuracy is 0.5"])
    recorder.summarize(1, model_dir=str(model), pushed_version="1000")
    recorder.originate(0)
    recorder.originate(1, config={"name": "digits", "evaluation": {"margin": 1}})
    return root, version


def test_a_version_leads_to_the_run_that_pushed_it_and_to_the_one_that_trained_it(pushed):
    root, version = pushed
    traced = lineage.trace_model(str(version))
    assert (traced.run.run_id, traced.trained_by) == (run_id(1), run_id(0))
    assert traced.verified
    assert traced.live
    assert traced.origin.config["evaluation"] == {"margin": 1}
    assert traced.rerun == f"imagepipe run {root}/runs/{run_id(1)}/config.yaml --workdir {root}"
    # All executions that it depends on, in the runs that did the work; those that only look at it are not among them.
    by_node = {execution.node: execution.run for execution in traced.executions}
    assert by_node["ImportExampleGen"] == by_node["Trainer"] == run_id(0)
    assert by_node["Evaluator"] == by_node["Pusher"] == run_id(1)
    assert "ExampleValidator" not in by_node
    assert lineage.trace_model(str(version.parent)) == traced  # the newest is meant


def test_a_model_that_was_put_in_the_place_of_another_is_not_taken_for_it(pushed):
    _, version = pushed
    (version / FINGERPRINT).write_bytes(b"another")
    with pytest.raises(ModelError, match=r"is not the model that the run .* made under this name"):
        lineage.trace_model(str(version))


def test_a_version_of_which_any_file_was_changed_or_added_is_refused_but_what_the_push_adds_is_not(pushed):
    _, version = pushed
    (version / "model.sig").write_bytes(b"signature")
    (version / "assets.extra").mkdir()
    (version / "assets.extra" / "reference.parquet").write_bytes(b"reference")
    assert lineage.trace_model(str(version)).verified
    (version / "assets.extra" / "added").write_bytes(b"")
    with pytest.raises(
        ModelError, match=rf"is not the model that the run {run_id(1)} made .* assets\.extra/added diff"
    ):
        lineage.trace_model(str(version))
    (version / "assets.extra" / "added").unlink()
    (version / "saved_model.pb").write_bytes(b"another graph")
    with pytest.raises(ModelError, match=r"saved_model\.pb differs. It was replaced or changed by hand"):
        lineage.trace_model(str(version))


def test_a_version_in_a_store_is_traced_and_one_that_was_changed_is_refused(tmp_path, memory):  # noqa: F811
    recorder = Recorder(tmp_path)
    model = saved_model(tmp_path / "artifacts" / "Trainer" / "model" / "6" / "Format-Serving", b"fingerprint")
    folder = f"{memory.uri}/models"
    for version, pushed in (("1000", b"of another workdir"), ("2000", b"fingerprint")):
        memory.put(f"models/{version}/{FINGERPRINT}", pushed)
        memory.put(f"models/{version}/saved_model.pb", b"")
    recorder.record(0)
    recorder.summarize(0, model_dir=str(model), pushed_version="2000", serving_dir=folder)
    for uri in (f"{folder}/2000", folder, f"{folder}/"):
        shown = CliRunner().invoke(app, ["lineage", uri, "--workdir", str(tmp_path)], catch_exceptions=False)
        assert shown.stdout.startswith(f"{folder}/2000 is live\nrun       {run_id(0)}")
    with pytest.raises(ModelError, match=r"models/1000: none of the 1 runs"):
        lineage.trace_model(f"{folder}/1000", tmp_path)
    with pytest.raises(ModelError, match="Give the pipeline's as --workdir"):
        lineage.trace_model(folder)
    memory.put("models/2000/saved_model.pb", b"x")
    with pytest.raises(ModelError, match=rf"{folder}/2000 is not .* saved_model\.pb differs"):
        lineage.trace_model(folder, tmp_path)


def test_a_copy_elsewhere_is_known_by_its_fingerprint(pushed, tmp_path):
    root, _ = pushed
    copy = saved_model(tmp_path / "elsewhere" / "7", b"fingerprint")
    with pytest.raises(ModelError, match="Give the pipeline's as --workdir"):
        lineage.trace_model(str(copy))
    traced = lineage.trace_model(str(copy), root)
    assert traced.run.run_id == run_id(0)  # the first that had it
    assert not traced.live
    stranger = saved_model(tmp_path / "elsewhere" / "8", b"another")
    with pytest.raises(ModelError, match="none of the 2 runs here made this model"):
        lineage.trace_model(str(stranger), root)


def test_a_version_that_was_rolled_back_and_one_whose_artifacts_are_gone_are_traced(pushed):
    root, version = pushed
    aside = version.parent / "rolled_back" / version.name
    aside.parent.mkdir()
    version.rename(aside)
    traced = lineage.trace_model(str(aside))
    assert (traced.run.run_id, traced.live, traced.verified) == (run_id(1), False, True)
    (root / "artifacts").rename(root / "removed")
    (root / "metadata.db").unlink()
    traced = lineage.trace_model(str(aside))
    assert (traced.run.run_id, traced.verified, traced.executions) == (run_id(1), False, [])


def test_the_command_prints_the_fingerprint_the_commit_and_the_configuration(pushed):
    _, version = pushed
    shown = CliRunner().invoke(app, ["lineage", str(version)], catch_exceptions=False)
    assert shown.exit_code == 0
    for text in ("f" * 64, "c0ffee" * 6, "tfx 1.21.0", "margin: 1", f"--workdir {version.parents[2]}", "which is gone"):
        assert text in shown.stdout
    told = json.loads(CliRunner().invoke(app, ["lineage", str(version), "--json"]).stdout)
    assert told["dataset"]["fingerprint"] == "f" * 64
    assert told["commit"]["id"].startswith("c0ffee")
    assert told["config"] == {"name": "digits", "evaluation": {"margin": 1}}
    assert told["packages"]["tfx"] == "1.21.0"
    refused = CliRunner().invoke(app, ["lineage", str(version / "assets")])
    assert refused.exit_code == 2
    assert "is neither a SavedModel" in refused.stderr
