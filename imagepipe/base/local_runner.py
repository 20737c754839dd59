"""Beam's work on this machine: what ``beam.runner: direct`` stands for.

Beam loads it by its name, ``beam_options.LOCAL_RUNNER``; nothing imports it, as it imports Beam.
"""

from typing import Any

from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import ExtendedProvisionInfo, FnApiRunner
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from apache_beam.runners.runner import PipelineRunner


class LocalRunner(PipelineRunner):
    """Runs pipelines in this process, or in processes that it starts: the option ``direct_running_mode``.

    Beam's DirectRunner did so until 2.67. Since then it first downloads a program, Prism, and has that run them:
    https://github.com/apache/beam/pull/34612.
    """

    def run_pipeline(self, pipeline: Any, options: Any) -> Any:
        """Runs a pipeline to its end.

        Args:
            pipeline: a beam.Pipeline.
            options: its PipelineOptions.

        Returns:
            Beam's PipelineResult.
        """
        # As in DirectRunner: processes that are started learn the options from this.
        encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
        info = ExtendedProvisionInfo(beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded))
        return FnApiRunner(provision_info=info).run_pipeline(pipeline, options)
