"""Beam's runners for work on this machine and on a job server: ``beam.runner`` ``direct`` and ``portable``.

Beam loads them by their names in ``beam_options``; nothing imports them, as they import Beam.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from typing import Any, ClassVar

import grpc
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_fn_api_pb2, beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import ExtendedProvisionInfo, FnApiRunner
from apache_beam.runners.portability.fn_api_runner.worker_handlers import SubprocessSdkWorkerHandler, WorkerHandler
from apache_beam.runners.portability.portable_runner import JobServiceHandle, PortableRunner
from apache_beam.runners.runner import PipelineRunner
from google.protobuf import json_format, text_format

_AGAIN_SECONDS = 0.1  # until what is asked of dead workers meanwhile is answered


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

        Raises:
            RuntimeError: if a worker process was killed.
        """
        _WorkerProcess.death = ""
        # As in DirectRunner: processes that are started learn the options from this.
        encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
        info = ExtendedProvisionInfo(beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded))
        try:
            return FnApiRunner(provision_info=info).run_pipeline(pipeline, options)
        except Exception as error:
            if _WorkerProcess.death:  # of which this may be a consequence
                raise RuntimeError(_WorkerProcess.death) from error
            raise


@WorkerHandler.register_environment(python_urns.SUBPROCESS_SDK, bytes)
class _WorkerProcess(SubprocessSdkWorkerHandler):
    """A worker process, whose death fails the job. Beam's own waits for an answer of it for ever (2.77).

    Attributes:
        death: how a worker died in the present job; "" if none did.
    """

    death: ClassVar[str] = ""
    _running: ClassVar[set["_WorkerProcess"]] = set()

    def start_worker(self) -> None:
        """Starts it, as Beam does."""
        descriptors = {
            "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(self.control_api_service_descriptor()),
            "LOGGING_API_SERVICE_DESCRIPTOR": text_format.MessageToString(self.logging_api_service_descriptor()),
            "PIPELINE_OPTIONS": json_format.MessageToJson(self.provision_info.provision_info.pipeline_options),
            "WORKER_ID": self.worker_id,
        }
        command = f"exec {self._worker_command_line.decode()}"  # so that a signal is for it, not for a shell
        self._process = subprocess.Popen(command, shell=True, env=os.environ | descriptors)  # noqa: S602 (Beam's own)
        self._is_closing = False
        self._running.add(self)
        threading.Thread(target=self._watch, name="watch_worker", daemon=True).start()

    def close(self) -> None:
        """Ends it."""
        self._is_closing = True
        with contextlib.suppress(grpc.RpcError):  # of its connections, if it has died
            super().close()
        self._running.discard(self)

    def stop_worker(self) -> None:
        """Waits for its end."""
        self._process.wait()

    def _watch(self) -> None:
        status = self._process.wait()
        if not self._is_closing and not self.death:  # the first, of which the others' are a consequence
            _WorkerProcess.death = _describe_death(status)
        while not self._is_closing:
            for worker in list(self._running):
                if worker._grpc_server is self._grpc_server:  # of the same job
                    worker._give_up()
            time.sleep(_AGAIN_SECONDS)

    def _give_up(self) -> None:
        """Ends it at once, and answers in its place."""
        self._process.kill()
        for future in list(self.control_conn._futures_by_id.values()):
            future.set(beam_fn_api_pb2.InstructionResponse(instruction_id=future.instruction_id, error=self.death))


def _describe_death(status: int) -> str:
    if status == -signal.SIGKILL:
        return "a worker process was killed (SIGKILL), as the system does if memory is short: use fewer workers"
    how = f"by signal {-status} ({signal.strsignal(-status)})" if status < 0 else f"with status {status}"
    return f"a worker process was ended {how}"


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
