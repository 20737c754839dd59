import tarfile

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import DirectOptions, GoogleCloudOptions, PipelineOptions, SetupOptions
from apache_beam.runners.portability.prism_runner import PrismJobServer
from apache_beam.runners.portability.stager import Stager

from imagepipe.base.beam_options import LOCAL_RUNNER, add_setup_file, check_options, make_arguments


def test_options_are_beams_arguments():
    options = {
        "project": "p",
        "experiments": ["a", "b"],
        "save_main_session": True,
        "update": False,
        "max_num_workers": 3,
    }
    assert make_arguments("dataflow", options) == [
        "--runner=DataflowRunner",
        "--project=p",
        "--experiments=a",
        "--experiments=b",
        "--save_main_session",
        "--max_num_workers=3",
    ]
    assert PipelineOptions(make_arguments("dataflow", options)).view_as(GoogleCloudOptions).project == "p"
    direct = PipelineOptions(make_arguments("direct", {"direct_num_workers": 2}))
    assert direct.view_as(DirectOptions).direct_num_workers == 2


def test_work_on_this_machine_downloads_and_starts_no_other_program(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(PrismJobServer, "subprocess_cmd_and_endpoint", lambda _: started.append("Prism") or 1 / 0)
    with beam.Pipeline(options=PipelineOptions(make_arguments("direct", {}))) as pipeline:
        _ = pipeline | beam.Create([1, 2]) | beam.CombineGlobally(sum) | beam.io.WriteToText(str(tmp_path / "sum"))
    assert (tmp_path / "sum-00000-of-00001").read_text() == "3\n"
    with beam.Pipeline("DirectRunner") as pipeline:
        _ = pipeline | beam.Create([1])
    assert started == ["Prism"]  # by Beam's own default: the test would see it


@pytest.mark.parametrize(
    ("runner", "options", "message"),
    [
        ("dataflow", {"project": "p"}, "needs region, temp_location"),
        ("flink", {"runner": "x"}, "it is the key beam.runner"),
    ],
)
def test_what_a_runner_can_not_do_without_is_named(runner, options, message):
    with pytest.raises(ValueError, match=message):
        check_options(runner, options)


def test_workers_of_a_cluster_install_this_projects_packages(tmp_path):
    args = add_setup_file(make_arguments("flink", {"flink_master": "localhost:8081"}))
    options = PipelineOptions(args)
    assert options.view_as(SetupOptions).setup_file.endswith("/setup.py")
    Stager.create_job_resources(options, str(tmp_path))
    (package,) = tmp_path.rglob("*.tar.gz")
    with tarfile.open(package) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    rooms = ("base", "ingest", "deploy", "serving")
    folders = ("components", "imagepipe", *(f"imagepipe/{room}" for room in rooms), "pipeline", "trainer", "transform")
    assert {f"{folder}/__init__.py" for folder in folders} <= names
    assert {"pyproject.toml", "setup.py", "imagepipe/serving/page.html"} <= names


@pytest.mark.parametrize("given", [f"--runner={LOCAL_RUNNER}", "--setup_file=mine.py", "--sdk_container_image=i"])
def test_a_setup_file_is_added_only_where_it_is_needed(given):
    args = [given] if "runner" in given else ["--runner=FlinkRunner", given]
    assert add_setup_file(args) == args
