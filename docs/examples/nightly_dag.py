"""Airflow 3: every night ingest, run and batch-predict, each in the environment in which imagepipe is installed.

Copy this file into Airflow's folder of DAGs, and set for its scheduler and workers, if the defaults don't fit:
IMAGEPIPE (the command) and IMAGEPIPE_FOLDER (with photos/, new/ and pipeline.yaml). Airflow and imagepipe need
environments of their own, as their dependencies don't agree.
"""

import os
import shlex
from datetime import datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

IMAGEPIPE = shlex.quote(os.environ.get("IMAGEPIPE", "imagepipe"))
FOLDER = shlex.quote(os.environ.get("IMAGEPIPE_FOLDER", "/data/flowers"))

NOT_BLESSED = 3
"""Exit status of a run whose model is not pushed: what is live stays live, and nothing has failed."""

with DAG(
    "imagepipe_nightly",
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,  # a run refuses a folder that another one works in
    # A second try goes on where the first one stopped; one that is wrong use (exit status 2) is refused at once again.
    default_args={"retries": 1, "retry_delay": timedelta(minutes=10)},
    tags=["imagepipe"],
    doc_md=__doc__,
):
    ingest = BashOperator(
        task_id="ingest", bash_command=f"{IMAGEPIPE} ingest {FOLDER}/photos --out {FOLDER}/dataset", cwd="/"
    )
    # Shown as skipped if its model was not blessed.
    run = BashOperator(
        task_id="run",
        bash_command=f"{IMAGEPIPE} run {FOLDER}/pipeline.yaml",
        skip_on_exit_code=NOT_BLESSED,
        cwd="/",
    )
    # By what is live now: the model of tonight, or if that was not blessed the one before. Only about what is new.
    batch_predict = BashOperator(
        task_id="batch_predict",
        bash_command=f"{IMAGEPIPE} batch-predict {FOLDER}/serving/flowers {FOLDER}/new --out {FOLDER}/scores",
        trigger_rule="none_failed",
        cwd="/",
    )
    ingest >> run >> batch_predict
