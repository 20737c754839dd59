"""Beam's work on a job server: what ``beam.runner: portable`` stands for.

Beam loads it by its name, ``beam_options.SERVER_RUNNER``; nothing imports it, as it imports Beam.
"""

from typing import Any

from apache_beam.runners.portability.portable_runner import JobServiceHandle, PortableRunner


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
