"""`imagepipe clean` on workdirs of nightly runs: what stays, what goes, and that it is said to the byte."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient
from ml_metadata.proto import metadata_store_pb2 as mlmd
from rich.console import Console
from typer.testing import CliRunner

from imagepipe.base.errors import ConfigError, ModelError
from imagepipe.base.in_use import hold_folder
from imagepipe.base.locks import lock_folder
from imagepipe.deploy import targets
from imagepipe.deploy.config import DeployConfig
from imagepipe.deploy.deployment import Version
from imagepipe.deploy.versions import find_model
from imagepipe.serving.access import EVERYBODY
from pipeline import clean as clean_module
from pipeline.clean import clean, format_size, keep_newest
from pipeline.cli import app
from pipeline.config import Config
from pipeline.runs.dashboard.server import make_app
from pipeline.runs.metadata_store import BusyError, record_removal
from pipeline.runs.report_page import load_page
from tests.pipeline.runs.nights import Nights, count_bytes, list_files, list_lies, read_artifacts, version_of
from tests.pipeline.runs.workdirs import run_id

NODES = 11


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "digits"


@pytest.fixture
def nights(root) -> Nights:
    return Nights(root)


def fill(nights: Nights, count: int) -> None:
    """Adds nights: the images change every fifth night, each model is compared with the one of the night before."""
    for number in range(count):
        if number % 5 == 0:
            examples = nights.add(number)["ImportExampleGen"]
        else:
            nights.add(number, cached={"ImportExampleGen": examples})
        if number:
            nights.compare(number, version_of(number - 1))


def run_command(root: Path, *options: str):
    return CliRunner().invoke(app, ["clean", str(root), *options], catch_exceptions=False)


def list_versions(root: Path) -> list[int]:
    folders = (root / "serving" / "digits").glob("[0-9]*")
    return sorted(int(folder.name) - int(version_of(0)) for folder in folders)


def list_nights_of_models(root: Path) -> list[int]:
    return sorted(int(folder.name) // 100 for folder in (root / "artifacts" / "Trainer" / "model").iterdir())


def test_of_thirty_nights_the_newest_stay_and_what_it_says_it_frees_is_what_du_says(nights, root):
    fill(nights, 30)
    files = list_files(nights.workdir)
    size = count_bytes(root)
    tried = json.loads(run_command(root, "--keep", "3", "--dry-run", "--json").stdout)
    assert count_bytes(root) == size
    done = json.loads(run_command(root, "--keep", "3", "--json").stdout)
    assert done["freed"] == size - count_bytes(root) == tried["bytes"] > 0
    assert tried["freed"] == 0
    assert sum(removal["bytes"] for removal in done["removals"]) == done["freed"]
    assert list_lies(nights.workdir, files) == set()
    # The fourth of the versions is the champion of the oldest of the three runs, and so its run stays too.
    assert list_versions(root) == list_nights_of_models(root) == [26, 27, 28, 29]
    for number in (26, 27, 28, 29):
        assert not any(artifact.removed for artifact in read_artifacts(nights.workdir, number).values())
    # Its images are those of night 25, whose other results are gone.
    removed = {node for node, artifact in read_artifacts(nights.workdir, 25).items() if artifact.removed}
    assert len(removed) == NODES - 1
    assert "ImportExampleGen" not in removed
    assert len(list((root / "runs").glob("*/summary.json"))) == 30
    again = run_command(root, "--keep", "3")
    assert again.stdout.splitlines()[-1] == "freed 0 bytes"


def test_it_lists_runs_and_versions_that_go_and_the_older_ones_that_stay(nights, root):
    fill(nights, 4)
    nights.compare(3, version_of(0))
    shown = run_command(root, "--keep", "1", "--dry-run").stdout.splitlines()
    assert f"stays: run {run_id(0)}: it made version {version_of(0)}: a newer model was compared with it" in shown
    assert any(line.startswith(f"run {run_id(1)}: 10 artifacts, ") for line in shown)
    assert any(line.startswith(f"version: serving/digits/{version_of(2)}, ") for line in shown)
    size = sum(clean(root, 1, dry_run=True).sizes.values())
    assert shown[-1] == f"would free {format_size(size)}"
    assert list_versions(root) == [0, 1, 2, 3]


def test_what_the_newest_run_has_from_the_cache_was_compared_with_a_version_that_stays(nights, root):
    for number in range(5):
        artifacts = nights.add(number)
    nights.compare(4, version_of(1))
    nights.add(5, cached=artifacts, pushes=False)
    clean(root, 1)
    assert list_versions(root) == [1, 4]


@pytest.mark.slow  # it imports TFX
def test_tfx_takes_no_output_from_its_cache_that_is_recorded_as_removed(nights):
    from tfx.orchestration import metadata
    from tfx.orchestration.portable import cache_utils

    artifacts = nights.add(0)
    (event,) = [e for e in nights.store.get_events_by_artifact_ids([artifacts["Trainer"]]) if e.type == e.OUTPUT]
    kind = nights.store.put_context_type(mlmd.ContextType(name="execution_cache"))
    (cache,) = nights.store.put_contexts([mlmd.Context(type_id=kind, name="key")])
    link = mlmd.Association(execution_id=event.execution_id, context_id=cache)
    nights.store.put_attributions_and_associations([], [link])
    (context,) = nights.store.get_contexts_by_id([cache])
    with metadata.Metadata(metadata.sqlite_metadata_connection_config(str(nights.workdir.metadata))) as handle:
        assert set(cache_utils.get_cached_outputs(handle, context)) == {"model"}
        record_removal(nights.workdir.metadata, [artifacts["Trainer"]])
        assert cache_utils.get_cached_outputs(handle, context) is None


def test_sizes_are_said_in_units_of_ten():
    texts = [format_size(size) for size in (0, 999, 1000, 999_949, 999_951, 3_210_000_000, 7 * 10**18)]
    assert texts == ["0 bytes", "999 bytes", "1.0 kB", "999.9 kB", "1.0 MB", "3.2 GB", "7000.0 PB"]


@pytest.mark.parametrize("after", [0, 7, 60])
def test_a_kill_in_the_middle_leaves_ml_metadata_true_and_the_next_time_ends_as_if_there_had_been_none(
    nights, root, tmp_path, after
):
    fill(nights, 6)
    files = list_files(nights.workdir)
    whole = sorted(removal.path for removal in clean(root, 2, dry_run=True).plan.removals)
    script = (
        "import os, sys, signal; from pathlib import Path; from pipeline.clean import clean\n"
        "unlink, left = os.unlink, int(sys.argv[2])\n"
        "def count(*arguments, **options):\n"
        "    global left\n"
        "    left < 1 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "    left -= 1\n"
        "    unlink(*arguments, **options)\n"
        "os.unlink = count\n"
        "clean(Path(sys.argv[1]), 2)"
    )
    command = [sys.executable, "-c", script, str(root), str(after)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL  # noqa: S603
    assert any(path.exists() for path in whole)
    assert list_lies(nights.workdir, files) == set()
    size = count_bytes(root)
    cleaning = clean(root, 2)
    assert cleaning.freed == size - count_bytes(root) > 0
    assert list_lies(nights.workdir, files) == set()
    assert not any(path.exists() for path in whole)
    assert list_versions(root) == list_nights_of_models(root) == [3, 4, 5]
    assert not list((root / "serving" / "digits").glob(".*"))


def test_a_night_that_failed_pushes_out_no_run_that_was_done(nights, root):
    for number in range(3):
        nights.add(number)
    for number in range(3, 9):
        nights.add(number, pushes=False, status="failed")
    clean(root, 2)
    assert list_nights_of_models(root) == [1, 2, 7, 8]


def test_runs_that_pushed_a_version_that_is_kept_stay_with_all_they_used(nights, root):
    examples = nights.add(0)["ImportExampleGen"]
    for number in range(1, 8):  # nothing was blessed since
        nights.add(number, cached={"ImportExampleGen": examples}, pushes=False)
    kept = clean(root, 2).plan.kept
    assert kept == {f"run {run_id(0)}": f"it made version {version_of(0)}: it gets 100% of the requests"}
    assert list_nights_of_models(root) == [0, 6, 7]


def test_pipelines_that_share_a_workdir_keep_their_own_newest_runs(nights, root):
    for number in range(4):
        nights.add(number, pushes=False)
    for number in range(4, 8):
        Nights(root, "flowers").add(number, pushes=False)
    clean(root, 2)
    assert list_nights_of_models(root) == [2, 3, 6, 7]


def test_a_version_that_a_process_uses_stays_and_so_does_its_run(nights, root):
    fill(nights, 6)
    with hold_folder(root / "serving" / "digits" / version_of(0)):
        kept = clean(root, 1).plan.kept
    assert kept[f"{root}/serving/digits/{version_of(0)}"] == "a process is using it"
    assert list_versions(root) == [0, 4, 5]
    assert 0 in list_nights_of_models(root)
    clean(root, 1)
    assert list_versions(root) == [4, 5]


def test_a_version_that_a_process_begins_to_use_while_others_are_removed_stays(nights, root, monkeypatch):
    fill(nights, 4)
    folder = root / "serving" / "digits" / version_of(0)
    measure_first = clean_module.measure
    with ExitStack() as stack:

        def use_after_planning(removals):
            stack.enter_context(hold_folder(folder))
            return measure_first(removals)

        monkeypatch.setattr(clean_module, "measure", use_after_planning)
        cleaning = clean(root, 1)
    assert cleaning.failures == {str(folder): "a process is using it"}
    assert list_versions(root) == [0, 2, 3]  # 2 is the champion of 3


def test_an_artifact_that_a_process_uses_stays_live_in_ml_metadata(nights, root):
    fill(nights, 4)
    files = list_files(nights.workdir)
    model = read_artifacts(nights.workdir, 0)["Trainer"]
    with hold_folder(Path(model.uri) / "Format-Serving"):
        clean(root, 1)
    assert (Path(model.uri) / "Format-Serving" / "saved_model.pb").exists()
    assert list_lies(nights.workdir, files) == set()
    clean(root, 1)
    assert not Path(model.uri).exists()


def test_a_model_that_was_rolled_back_stays_as_long_as_the_next_run_may_have_it_again(nights, root):
    fill(nights, 6)
    serving = root / "serving" / "digits"
    (serving / "rolled_back").mkdir()
    for number in (1, 2, 5):
        (serving / version_of(number)).rename(serving / "rolled_back" / version_of(number))
    clean(root, 1)
    assert sorted(folder.name for folder in (serving / "rolled_back").iterdir()) == [version_of(5)]
    assert list_versions(root) == [4]
    nights.add(6)  # another model is live by now
    nights.add(7)
    cleaning = clean(root, 1)
    assert sorted(folder.name for folder in (serving / "rolled_back").iterdir()) == [version_of(5)]  # the newest there
    assert cleaning.plan.kept == {f"run {run_id(5)}": f"it made version {version_of(5)}: it is the newest"}


def test_of_the_versions_in_shadow_the_newest_stay_as_of_the_live_ones(nights, root):
    fill(nights, 6)
    serving = root / "serving" / "digits"
    (serving / "shadow").mkdir()
    for number in (3, 4, 5):
        (serving / version_of(number)).rename(serving / "shadow" / version_of(number))
    clean(root, 1)
    assert [folder.name for folder in (serving / "shadow").iterdir()] == [version_of(5)]
    assert list_versions(root) == [2]


@pytest.mark.parametrize("layout", ["{version}", "{version}/{version}"])
def test_an_incomplete_copy_is_not_one_of_the_versions_that_stay_but_may_be_on_its_way(nights, root, layout):
    serving = root / "serving" / "digits"
    for number in range(5):
        nights.add(number)
        version = version_of(number)
        files = serving.joinpath(layout.format(version=version))
        (serving / version).rename(root / "files")
        files.parent.mkdir(exist_ok=True)
        (root / "files").rename(files)
        if number in (0, 4):
            (files / "saved_model.pb").unlink()
    clean(root, 2)
    assert list_versions(root) == [2, 3, 4]  # of which two can be live


def test_weights_in_an_old_artifact_that_a_configuration_names_stay(nights, root):
    fill(nights, 5)
    files = list_files(nights.workdir)
    weights = Path(read_artifacts(nights.workdir, 0)["Trainer"].uri)
    (root / "pipeline.yaml").write_text(f"trainer: {{weights: {weights.relative_to(root)}/training/base.weights.h5}}\n")
    clean(root, 1)
    assert weights.is_dir()
    assert not Path(read_artifacts(nights.workdir, 0)["Transform"].uri).exists()
    assert list_lies(nights.workdir, files) == set()


def test_what_cannot_be_asked_which_version_is_live_loses_none(nights, root, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    fill(nights, 4)
    nights.add(4, pushes=False)
    path = str(nights.workdir.serving("digits"))
    deploy = DeployConfig(target="kserve", name="digits", path=path).model_dump(mode="json")
    for number in range(5):
        nights.originate(number, {"name": "digits", "deploy": deploy})
    done = run_command(root, "--keep", "1")
    assert done.exit_code == 0
    assert "kserve can't be asked which version of digits is live" in done.stderr
    assert list_versions(root) == [0, 1, 2, 3]
    assert list_nights_of_models(root) == [0, 1, 2, 3, 4]


def test_at_a_cluster_the_live_version_the_canary_and_those_to_go_back_to_stay(nights, root, monkeypatch):
    fill(nights, 8)
    path = str(nights.workdir.serving("digits"))
    deploy = DeployConfig(target="kserve", name="digits", path=path).model_dump(mode="json")
    for number in range(8):
        nights.originate(number, {"name": "digits", "deploy": deploy})
    shares = {5: 0, 4: 10, 2: 90, 1: 0}  # at the cluster
    versions = [Version(version_of(number), f"{path}/{version_of(number)}", share) for number, share in shares.items()]
    versions.append(Version(version_of(3), f"{path}/{version_of(3)}", 0, "rolled back", rolled_back=True))
    monkeypatch.setattr(targets, "load_target", lambda config: SimpleNamespace(status=lambda config: versions))
    cleaning = clean(root, 1)
    assert list_versions(root) == [1, 2, 4, 5, 6, 7]  # 6 is the champion of 7
    assert list_nights_of_models(root) == [2, 4, 6, 7]
    assert cleaning.plan.kept[f"run {run_id(4)}"] == f"it made version {version_of(4)}: it gets 10% of the requests"


def test_only_runs_of_this_workdir_lose_versions_in_a_folder_outside_it(nights, root, tmp_path):
    fill(nights, 5)
    outside = tmp_path / "models"
    shutil.move(root / "serving" / "digits", outside)
    nights.write_model(outside / "1794000000", 99)  # somebody else's
    stored = nights.store.get_artifacts_by_type("PushedModel")
    for artifact in stored:
        version = artifact.custom_properties["pushed_version"].string_value
        artifact.custom_properties["pushed_destination"].string_value = f"{outside}/{version}"
    nights.store.put_artifacts(stored)
    for number in range(5):
        nights.originate(number, {"name": "digits", "deploy": {"path": str(outside)}})
    cleaning = clean(root, 2)
    assert sorted(folder.name for folder in outside.iterdir()) == ["1794000000", version_of(3), version_of(4)]
    assert cleaning.plan.kept[f"{outside}/1794000000"] == "no run of this folder pushed it"


def test_a_copy_of_a_workdir_takes_nothing_from_the_original(nights, root, tmp_path):
    fill(nights, 5)
    files = list_files(nights.workdir)
    shutil.copytree(root, tmp_path / "copy")
    size = count_bytes(root)
    clean(tmp_path / "copy", 1)
    assert count_bytes(root) == size
    assert list_lies(nights.workdir, files) == set()


def test_no_symbolic_link_is_followed(nights, root, tmp_path):
    fill(nights, 5)
    moved = {root / "artifacts" / "Trainer": tmp_path / "Trainer", root / "serving": tmp_path / "serving"}
    for path, target in moved.items():
        path.rename(target)
        path.symlink_to(target)
    inside = root / "artifacts" / "Transform" / "transform_graph"
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("mine")
    (next(inside.iterdir()) / "link").symlink_to(victim)
    (root / "artifacts" / ".training").mkdir()
    (root / "artifacts" / ".training" / "0123456789abcdef").symlink_to(victim)
    files = sorted(path for target in moved.values() for path in target.rglob("*"))
    cleaning = clean(root, 1)
    assert sorted(path for target in moved.values() for path in target.rglob("*")) == files
    assert (victim / "file").read_text() == "mine"
    assert "there is a symbolic link on the way to it" in cleaning.plan.kept.values()
    assert len(list(inside.iterdir())) == 2


def test_what_is_no_workdir_or_in_use_is_refused(nights, root, tmp_path):
    for folder in (tmp_path, tmp_path / "typo"):
        result = run_command(folder)
        assert (result.exit_code, "is not the folder of a pipeline" in result.stderr.replace("\n", " ")) == (2, True)
        assert not (folder / ".lock").exists()
    assert not (tmp_path / "typo").exists()
    fill(nights, 3)
    with lock_folder(root, RuntimeError()):
        result = run_command(root, "--keep", "1")
    assert (result.exit_code, "a run is using" in result.stderr) == (2, True)
    assert list_versions(root) == [0, 1, 2]


def test_what_ml_metadata_can_not_record_is_not_removed_and_what_was_is_said(nights, root, monkeypatch, capsys):
    def refuse(*_):
        raise BusyError("ML Metadata can't be written now (database is locked).")

    fill(nights, 4)
    size = count_bytes(root)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.runs.metadata_store.record_removal", refuse)
        keep_newest(nights.workdir, 2, Console(stderr=True, soft_wrap=True))
        freed = format_size(size - count_bytes(root))
        reason = "ML Metadata can't be written now (database is locked). No artifact was removed. Try again later."
        assert capsys.readouterr().err.splitlines() == [
            f"run.keep: kept the 2 newest runs and versions, freed {freed}",
            f"  {reason}",
        ]
        result = run_command(root, "--keep", "2", "--json")
    assert freed != "0 bytes"
    assert (result.exit_code, json.loads(result.stdout)["stopped"]) == (1, reason)
    assert reason in " ".join(result.stderr.split())
    assert list_nights_of_models(root) == [0, 1, 2, 3]
    clean(root, 2)
    assert list_nights_of_models(root) == [1, 2, 3]


def test_a_database_that_can_not_be_opened_for_writing_is_no_traceback(tmp_path):
    with pytest.raises(BusyError, match=f"can't be written now .{tmp_path}: .*unable to open"):
        record_removal(tmp_path, [1])


def test_nothing_that_cleaning_meets_makes_a_run_fail_that_is_done(nights, root, monkeypatch, capsys):
    def fail(*_):
        raise AssertionError

    monkeypatch.setattr("pipeline.clean.plan_removal", fail)
    keep_newest(nights.workdir, 2, Console(stderr=True, soft_wrap=True))
    assert capsys.readouterr().err == "run.keep: old runs can't be removed: AssertionError\n"


def age(folder: Path, seconds: float) -> None:
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (time.time() - seconds,) * 2)


@pytest.mark.parametrize(("status", "left"), [("failed", ["new"]), ("done", [])])
def test_of_trainings_that_did_not_end_only_the_one_stays_that_the_next_run_may_continue(nights, root, status, left):
    nights.add(0, status=status)
    for name, seconds in (("old", 300), ("new", 30)):
        (nights.workdir.training / name).mkdir(parents=True)
        (nights.workdir.training / name / "train.pixels").write_bytes(bytes(10**6))
        age(nights.workdir.training / name, seconds)
    size = count_bytes(root)
    assert clean(root, 5).freed == size - count_bytes(root) > 10**6
    assert [folder.name for folder in nights.workdir.training.iterdir()] == left


def test_what_killed_processes_left_half_written_goes_and_what_is_being_written_stays(nights, root):
    nights.add(0)
    serving = root / "serving" / "digits"
    killed, copying = serving / ".partial-1795000001", serving / ".partial-1795000002"
    half = root / "artifacts" / "Trainer" / "model" / "777"  # of an execution that never ended
    other = root / "artifacts" / "notes" / "model" / "777"  # of no node
    temporary = root / "artifacts" / "Trainer" / ".system" / "executor_execution" / "777"
    for folder in (killed, copying, half, other, temporary):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(bytes(5000))
    size = count_bytes(root)
    with hold_folder(copying):
        cleaning = clean(root)
    assert cleaning.freed == size - count_bytes(root)
    assert [folder.exists() for folder in (killed, half, temporary, copying, other)] == [False] * 3 + [True] * 2


def test_a_file_with_a_link_elsewhere_frees_nothing(nights, root, tmp_path):
    fill(nights, 4)
    (tmp_path / "mine").hardlink_to(root / "serving" / "digits" / version_of(0) / "saved_model.pb")
    model, graph = (Path(read_artifacts(nights.workdir, 0)[node].uri) for node in ("Trainer", "Transform"))
    (graph / "saved_model.pb").unlink()
    (graph / "saved_model.pb").hardlink_to(model / "Format-Serving" / "saved_model.pb")
    size = count_bytes(root, tmp_path / "mine")
    assert clean(root, 1).freed == size - count_bytes(root, tmp_path / "mine")


def test_the_dashboard_says_of_what_was_cleaned_that_it_was(nights, root):
    fill(nights, 4)
    clean(root, 1)
    asked = TestClient(make_app(nights.workdir, EVERYBODY, "127.0.0.1"), base_url="http://127.0.0.1")
    shown = asked.get(f"/runs/{run_id(0)}/index.html").text
    assert "removed by imagepipe clean" in shown
    assert "removed by imagepipe clean" not in asked.get(f"/runs/{run_id(3)}/index.html").text
    assert asked.get(f"/versions/digits/{version_of(0)}/index.html").status_code == 200
    assert asked.get("/").status_code == 200
    assert CliRunner().invoke(app, ["runs", str(root)], catch_exceptions=False).exit_code == 0


def test_a_run_whose_model_was_cleaned_says_so(nights, root):
    fill(nights, 4)
    for number in range(4):
        folder = root / "runs" / run_id(number)
        stored = json.loads((folder / "summary.json").read_text())
        stored["model_dir"] = f"{read_artifacts(nights.workdir, number)['Trainer'].uri}/Format-Serving"
        (folder / "summary.json").write_text(json.dumps(stored))
    clean(root, 1)
    run = root / "runs" / run_id(0)
    for read, error in ((find_model, ModelError), (load_page, ConfigError)):
        with pytest.raises(error, match=r"`imagepipe clean` removes those of old runs"):
            read(run)


def test_how_many_stay_is_in_the_configuration_of_the_newest_run(nights, root):
    fill(nights, 15)
    assert clean(root, dry_run=True).plan.keep == 10
    nights.originate(14, {"name": "digits", "deploy": {}, "run": {"keep": 4}})
    assert clean(root, dry_run=True).plan.keep == 4
    assert clean(root, 2, dry_run=True).plan.keep == 2
    assert Config.model_validate({"name": "digits", "data": {"path": "x"}}).run.keep is None
    with pytest.raises(ValueError, match=r"run\.keep"):
        Config.model_validate({"name": "digits", "data": {"path": "x"}, "run": {"keep": 0}})
