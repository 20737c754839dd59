"""Beam's runners for work on this machine and on a job server: ``beam.runner`` ``direct`` and ``portable``.

Beam loads them by their names in ``beam_options``; nothing imports them, as they import Beam.
"""

from typing import Any

from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import ExtendedProvisionInfo, FnApiRunner
from apache_beam.runners.portability.portable_runner import JobServiceHandle, PortableRunner
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


class ServerRunner(PortableRunner):
    """Beam's PortableRunner, for jobs that take longer than the option ``job_server_timeout``.

    Beam applies that to its connection to the server, as documented, but to the job's messages and states as well
    (2.77, ``JobServiceHandle.run``): with servers that name a job before it starts, as Prism and Beam's own in Python
    do, each longer job is then taken for a failed one.
    """

    def create_job_service_handle(self, job_service: Any, options: Any) -> JobServiceHandle:
        """Returns Beam's handle of a job, which waits for its end."""
        handle = super().create_job_service_handle(job_service, options)
        handle.timeout = None
        return handle
