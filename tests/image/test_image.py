"""The image of kubeflow/Dockerfile, built and run as its own user, in its own root; and Beam's workers out of it.

The workers share with the process that submits a job nothing but the network: data is in S3, on loopback. The runner
is Prism, with which jobs go the way of Flink's: by the job API, to workers of a pool.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from tfx.utils import path_utils

from imagepipe.base.beam_options import make_arguments
from imagepipe.base.errors import UnavailableError
from imagepipe.ingest.command import ingest
from imagepipe.serving.batch import BatchResult, predict_source
from imagepipe.serving.request_files import write_requests
from imagepipe.serving.types import Request
from pipeline.config_file import read_config
from pipeline.kubeflow.compilation_check import check_and_compile
from tests.image.build import ROOT, Container, read_entrypoint
from tests.job_servers import (
    check_dataset,
    check_ingest,
    check_predictions,
    find_free_port,
    put_model,
    put_photos,
    read_rows,
    start_server,
)
from tests.pipeline.kubeflow.test_cache import Cluster, write_dataset
from tests.serving.conftest import model  # noqa: F401 (a fixture)
from tests.serving.test_server import PREDICT, b64, gray
from tests.stores import s3, s3_server  # noqa: F401 (fixtures)

pytestmark = pytest.mark.slow

POOL = 50000
"""The port that `boot` gives a pool of workers, and that these are asked for at by default."""


def run(container: Container, *command: str, options: tuple[str, ...] = ()) -> str:
    started = container.command(*command, options=options)
    done = subprocess.run(started, capture_output=True, text=True, timeout=300, check=False)  # noqa: S603
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-4000:])
    return done.stdout


def test_the_command_line_runs_as_a_user_without_rights(container):
    assert run(container, "id", "-u").strip() == "1000"
    assert "batch-predict" in run(container, "imagepipe", "--help")


def test_each_task_finds_its_code(container):
    """By the commands of the compiled pipeline, which Kubeflow's launcher runs: TFX's components, and our lookups."""
    spec = next(yaml.safe_load_all(check_and_compile(read_config(ROOT / "kubeflow" / "pipeline.yaml"), "kubeflow")))
    tasks = [executor["container"] for executor in spec["deploymentSpec"]["executors"].values()]
    option = "--executor_class_path"
    (component,), (lookup,) = (
        {tuple(task["command"]) for task in tasks if (option in task["args"]) == is_component}
        for is_component in (True, False)
    )
    assert option in run(container, *component, "--help")
    assert "--output" in run(container, *lookup, "--help")
    classes = [task["args"][task["args"].index(option) + 1] for task in tasks if option in task["args"]]
    code = "import sys; from tfx.utils import import_utils; [*map(import_utils.import_class_by_path, sys.argv[1:])]"
    run(container, "python", "-c", code, *classes)


def test_tasks_of_the_pipeline_do_their_work(container, tmp_path):
    """The lookup of what is live, and Champion, which copies it, by the commands that kfp's engine gives them."""
    cluster = Cluster(tmp_path)
    write_dataset(tmp_path)
    for epochs in (1, 2, 2):  # of which the second one pushes, too, and the third looks at that
        cluster.run(epochs=epochs)
    lookup, champion = cluster.commands["target-lookup"], cluster.commands["champion"]
    values = {Path(word): Path(word).read_bytes() for word in lookup if Path(word).is_file()}
    assert values
    for file in values:
        file.write_bytes(b"")
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o777)
    mounted = (f"--volume={tmp_path}:{tmp_path}",)
    run(container, *lookup, options=mounted)
    assert {file: file.read_bytes() for file in values} == values
    run(container, *champion, options=mounted)
    beaten = min((tmp_path / "serving").iterdir())
    invocation = json.loads(champion[champion.index("--json_serialized_invocation_args") + 1])
    copied = Path(path_utils.serving_model_path(invocation["outputs"]["artifacts"]["champion"]["artifacts"][0]["uri"]))
    assert (copied / "saved_model.pb").read_bytes() == (beaten / "saved_model.pb").read_bytes()
    assert beaten.name in Path(invocation["outputs"]["outputFile"]).read_text()


def test_the_server_answers(container, model, tmp_path):  # noqa: F811
    """By the entrypoint of its own target, which has the same files."""
    port = find_free_port()
    command = [*read_entrypoint("serve"), "/models/brightness", "--name=brightness", f"--port={port}"]
    mounted = (f"--volume={model.parent}:/models/brightness:ro",)
    with (
        start_server(container.command(*command, options=mounted), port, tmp_path / "server/log"),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http,
    ):
        response = http.post(PREDICT, json={"instances": [{"input": b64(gray(250)), "metadata": "x"}]})
    assert [row["label"] for row in response.json()["predictions"]] == ["light"], response.text


@pytest.fixture
def workers(container, s3, tmp_path):  # noqa: F811
    """The image as the manifest starts it: a pool of workers, which know of S3 by their environment."""
    keys = tuple(f"--env={name}={value}" for name, value in os.environ.items() if name.startswith("AWS_"))
    command = container.command(*read_entrypoint("beam"), "--worker_pool", options=keys)
    with start_server(command, POOL, tmp_path / "workers/log") as process:
        yield process


@pytest.fixture
def beam_args(prism, workers, tmp_path):
    """Beam's arguments for Prism, with workers of the pool."""
    port = find_free_port()
    with start_server([prism, f"--job_port={port}", "--serve_http=false"], port, tmp_path / "jobs/log"):
        yield make_arguments("portable", {"job_endpoint": f"localhost:{port}"})


def test_prism_and_the_images_workers_make_the_dataset_that_this_process_makes(beam_args, s3):  # noqa: F811
    check_ingest(s3, beam_args)


def test_prism_and_the_images_workers_predict_what_this_process_predicts(beam_args, s3, model):  # noqa: F811
    check_predictions(s3, beam_args, model)


def kill_worker_at_work(pool: subprocess.Popen, server: str, is_time: Callable[[], bool] = lambda: True) -> None:
    """Kills a worker as soon as it is time, and it has a connection to the store, whose server's address is given."""
    port = int(server.rpartition(":")[2])
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for process in psutil.Process(pool.pid).children(recursive=True) if is_time() else ():
            with suppress(psutil.NoSuchProcess):
                if any(link.raddr and link.raddr.port == port for link in process.connections("tcp")):
                    process.kill()
                    return
        time.sleep(0.01)
    raise TimeoutError("no worker has asked the store")


@pytest.mark.long
def test_a_job_whose_worker_is_killed_writes_nothing_and_the_next_one_everything(beam_args, workers, s3, s3_server):  # noqa: F811
    photos = put_photos(s3, 300)
    with ThreadPoolExecutor(1) as thread:
        killing = thread.submit(kill_worker_at_work, workers, s3_server)
        with pytest.raises(UnavailableError, match="The job failed on Beam's job server"):
            ingest(photos, f"{s3.uri}/there", beam_args=beam_args)
        killing.result()
    assert s3.content("there") == {".lock": b""}  # given back
    assert ingest(photos, f"{s3.uri}/there", beam_args=beam_args).written == 300
    check_dataset(s3, photos)


def test_what_a_killed_worker_has_predicted_is_kept_and_the_next_job_does_the_rest(
    beam_args,
    workers,
    s3,  # noqa: F811
    s3_server,  # noqa: F811
    model,  # noqa: F811
    tmp_path,
):
    models = put_model(s3, model)
    ids = [[f"{shard}-{number}" for number in range(5)] for shard in range(60)]
    for shard, names in enumerate(ids):
        file = tmp_path / f"{shard:02}.jsonl"
        write_requests([Request(name, gray(shard)) for name in names], file, "jsonl")
        s3.put(f"questions/{file.name}", file.read_bytes())

    def predict() -> BatchResult:
        return predict_source(models, f"{s3.uri}/questions/*", f"{s3.uri}/there", beam_args=beam_args)

    def has_begun() -> bool:
        return any(name.endswith(".json") and "inputs-" not in name for name in s3.names("there"))

    with ThreadPoolExecutor(1) as thread:
        killing = thread.submit(kill_worker_at_work, workers, s3_server, has_begun)
        with pytest.raises(UnavailableError, match="The job failed on Beam's job server"):
            predict()
        killing.result()
    result = predict()
    assert result.already > 0
    assert result.predicted == 5 * (60 - result.already)
    assert [row["metadata"] for row in read_rows(s3, "there")] == sorted(name for names in ids for name in names)
