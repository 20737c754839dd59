"""The steps of an ingest as a pipeline of Beam's, for its runners: work for more than one machine."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from imagepipe.base import progress
from imagepipe.base.beam_options import LOCAL_ARGUMENTS, explain_job_errors, hide_step_errors, query_metrics
from imagepipe.ingest import policy, steps
from imagepipe.ingest.steps import Plan


def run(plan: Plan, row_files: list[str], rows: int, index_files: list[str], beam_args: Sequence[str]) -> None:
    """Has a runner take all steps, and shows progress on stderr; in one process only at the end.

    Args:
        plan: for the workers.
        row_files: JSON lines of Row.
        rows: number of rows.
        index_files: JSON lines of IndexEntry.
        beam_args: Beam pipeline options; without a runner among them, the work is done on this machine.

    Raises:
        UnavailableError: if the job fails, or the runner can't be reached.
    """
    job: list[Any] = []  # once the runner has accepted it

    def count() -> dict[str, int]:
        read, done = query_metrics(job[0]) if job else (0, 0)
        return {"read": read, "checked and written": done}

    options = PipelineOptions([*LOCAL_ARGUMENTS, *beam_args])
    runner = options.view_as(StandardOptions).runner
    with explain_job_errors(runner, "Nothing was written: run it again."), hide_step_errors():
        pipeline = beam.Pipeline(options=options)
        build(pipeline, plan, row_files, index_files)
        with progress.show_progress(rows, "images", count):
            job.append(pipeline.run())
            job[0].wait_until_finish()


def build(pipeline: Any, plan: Plan, row_files: list[str], index_files: list[str]) -> None:
    """Adds all steps to a beam.Pipeline; the arguments are those of ``run``."""
    rows = pipeline | "Rows" >> beam.Create(row_files) | "Hash" >> beam.ParDo(_Hash(plan))
    if index_files:
        index = pipeline | "Index" >> beam.Create(index_files)
        entries = index | "Entries" >> beam.FlatMap(steps.read_index, plan.buckets)
        rows = (rows, entries) | beam.Flatten()
    decided = (
        rows | "Group copies" >> beam.GroupByKey() | "Decide" >> beam.ParDo(_Decide(plan)).with_outputs(main="rows")
    )
    if plan.options.group is None:
        units = decided.rows | "Units" >> beam.Map(lambda element: (element[0], [element[1]]))
    else:
        units = decided.rows | "Group units" >> beam.GroupByKey()
    drawn = units | "Draw" >> beam.ParDo(_Draw(plan)).with_outputs("cells", "sizes", main="rows")
    present = pipeline | "Present" >> beam.Create(list(plan.present.items()))
    cells = (present, decided.cells, drawn.cells) | "All cells" >> beam.Flatten()
    cells |= "Cells" >> beam.CombinePerKey(policy.add_cells)
    moves = (
        pipeline
        | "Once" >> beam.Create([plan.splits])
        | "Moves" >> beam.FlatMap(lambda splits, cells: policy.plan_moves(cells, splits), beam.pvalue.AsDict(cells))
    )
    split_bytes = drawn.sizes | "Bytes of splits" >> beam.CombinePerKey(sum)
    (
        drawn.rows
        | "Assign to shards" >> beam.FlatMap(steps.assign, beam.pvalue.AsDict(moves), beam.pvalue.AsDict(split_bytes))
        | "Group shards" >> beam.GroupByKey()
        | "Write" >> beam.ParDo(_Write(plan))
    )


class _Step(beam.DoFn):
    def __init__(self, plan: Plan) -> None:
        self.plan = plan


class _PooledStep(_Step):
    """A step with threads to read and decode in."""

    def setup(self) -> None:
        self.pool = ThreadPoolExecutor(self.plan.workers)

    def teardown(self) -> None:
        self.pool.shutdown(cancel_futures=True)


class _Hash(_PooledStep):
    def process(self, path: str) -> Iterator[tuple[int, bytes]]:
        return steps.hash_file(self.plan, self.pool, _count, path)


class _Decide(_Step):
    """Its further output ``cells`` has the Cells of what leaves the dataset."""

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[Any]:
        decision = steps.decide(self.plan, _count, *element)
        yield from decision.rows
        for cell in decision.cells:
            yield beam.pvalue.TaggedOutput("cells", cell)


class _Draw(_Step):
    """Its further outputs are ``cells`` by label and split, and ``sizes``, the bytes of files by split."""

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[Any]:
        lot = steps.draw(self.plan, *element)
        yield lot.rows
        for cell in lot.cells.items():
            yield beam.pvalue.TaggedOutput("cells", cell)
        for size in lot.sizes.items():
            yield beam.pvalue.TaggedOutput("sizes", size)


class _Write(_PooledStep):
    def process(self, element: tuple[tuple[str, int], Iterable[bytes]]) -> None:
        steps.write(self.plan, self.pool, _count, *element)


def _count(read: int = 0, done: int = 0) -> None:
    """Adds to the metrics, which another process can ask for."""
    beam.metrics.Metrics.counter("ingest", "read").inc(read)
    beam.metrics.Metrics.counter("ingest", "done").inc(done)
