import time

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import DirectOptions, GoogleCloudOptions, PipelineOptions, PortableOptions
from apache_beam.runners.portability.local_job_service import LocalJobServicer
from apache_beam.runners.portability.prism_runner import PrismJobServer
from apache_beam.runners.runner import PipelineState

from imagepipe.base.beam_options import (
    LOCAL_ARGUMENTS,
    LOCAL_RUNNER,
    check_options,
    explain_job_errors,
    hide_step_errors,
    make_arguments,
)
from imagepipe.base.errors import UnavailableError


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
        ("dataflow", {"project": "p"}, "needs region, temp_location, sdk_container_image"),
        ("portable", {}, "needs job_endpoint"),
        ("portable", {"runner": "x"}, "it is the key beam.runner"),
    ],
)
def test_what_a_runner_can_not_do_without_is_named(runner, options, message):
    with pytest.raises(ValueError, match=message):
        check_options(runner, options)


@pytest.mark.parametrize(
    ("options", "workers"),
    [
        ({}, ("EXTERNAL", "localhost:50000")),
        ({"environment_config": "pool:1"}, ("EXTERNAL", "pool:1")),
        ({"environment_type": "DOCKER", "environment_config": "image"}, ("DOCKER", "image")),
        ({"environment_type": "LOOPBACK"}, ("LOOPBACK", None)),
    ],
)
def test_workers_of_a_job_server_are_those_of_a_sidecar_unless_others_are_given(options, workers):
    args = make_arguments("portable", {"job_endpoint": "jobs:8099", **options})
    portable = PipelineOptions(args).view_as(PortableOptions)
    assert (portable.environment_type, portable.environment_config) == workers


def test_a_job_may_take_longer_than_its_server_has_to_answer(tmp_path):
    server = LocalJobServicer(str(tmp_path))
    endpoint = f"localhost:{server.start_grpc_server(0)}"
    options = {"job_endpoint": endpoint, "environment_type": "LOOPBACK", "job_server_timeout": 1}
    with beam.Pipeline(options=PipelineOptions(make_arguments("portable", options))) as pipeline:
        _ = pipeline | beam.Create([2]) | beam.Map(time.sleep)
    assert pipeline.result.state == PipelineState.DONE
    server.stop()


def test_a_job_server_that_does_not_answer_is_an_error_in_one_line(tmp_path):
    args = make_arguments("portable", {"job_endpoint": "127.0.0.1:1", "job_server_timeout": 1})
    with (
        pytest.raises(UnavailableError, match=r"does not answer .*: is it at beam\.options\.job_endpoint"),
        hide_step_errors(),
    ):
        beam.Pipeline(options=PipelineOptions(args)).run()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("Traceback\n  File x\nOSError: s3://b/x: no rights\n", r"\(OSError: s3://b/x: no rights\)"),
        ("", "without a reason"),
    ],
)
def test_a_job_that_fails_on_its_server_says_why_in_one_line(error, message):
    with pytest.raises(UnavailableError, match=message), hide_step_errors():
        raise RuntimeError(f"Pipeline job-1 failed in state FAILED: {error}")
    with pytest.raises(RuntimeError, match="ours"), hide_step_errors():
        raise RuntimeError("ours")


@pytest.mark.parametrize(
    ("death", "reason"),
    [("SIGKILL", r"killed \(SIGKILL\).*"), ("SIGSEGV", r"ended by signal 11 \(.*\)\.")],
)
def test_a_workers_death_fails_the_job_at_once_whatever_others_are_at(tmp_path, death, reason):
    mark = str(tmp_path / "dead")

    def work(number: int) -> int:
        import os
        import signal
        import time

        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))  # the first of all to be worked on
            os.kill(os.getpid(), getattr(signal, death))
        except FileExistsError:
            time.sleep(600)
        return number

    arguments = [*LOCAL_ARGUMENTS, "--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    start = time.monotonic()
    with (
        pytest.raises(UnavailableError, match=rf"^a worker process was {reason} Run it again\.$"),
        explain_job_errors(LOCAL_RUNNER, "Run it again."),
        hide_step_errors(),
        beam.Pipeline(options=PipelineOptions(arguments)) as pipeline,
    ):
        _ = pipeline | beam.Create(range(20)) | beam.Reshuffle() | beam.Map(work)
    assert time.monotonic() - start < 300
