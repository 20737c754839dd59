"""A job server of Beam's, whose workers share nothing with who submits the job but a bucket in S3, on loopback."""

import sys

import pytest

from imagepipe.base.beam_options import make_arguments
from tests.job_servers import check_ingest, check_predictions, find_free_port, start_server
from tests.serving.conftest import model  # noqa: F401 (a fixture)
from tests.stores import s3, s3_server  # noqa: F401 (fixtures)

pytestmark = pytest.mark.slow

BEAM = [sys.executable, "-m"]


@pytest.fixture
def job_server(s3, tmp_path):  # noqa: F811
    """Beam's arguments for a job server, with a pool of workers, which know of S3 by their environment."""
    jobs, pool = find_free_port(), find_free_port()
    server = [*BEAM, "apache_beam.runners.portability.local_job_service_main", f"--port={jobs}"]
    workers = [*BEAM, "apache_beam.runners.worker.worker_pool_main", f"--service_port={pool}"]
    with start_server(server, jobs, tmp_path / "jobs/log"), start_server(workers, pool, tmp_path / "workers/log"):
        yield make_arguments(
            "portable", {"job_endpoint": f"localhost:{jobs}", "environment_config": f"localhost:{pool}"}
        )


def test_a_job_server_makes_from_s3_to_s3_the_dataset_that_this_process_makes(job_server, s3):  # noqa: F811
    check_ingest(s3, job_server)


def test_a_job_server_predicts_from_s3_to_s3_what_this_process_predicts(job_server, s3, model):  # noqa: F811
    check_predictions(s3, job_server, model)
