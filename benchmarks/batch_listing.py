"""A million inputs of `imagepipe batch-predict` before the first is predicted: the driver's time and memory.

A folder of empty files and a manifest, each listed, compared with what is done, which is every other shard of 256, and
spooled to files for the workers, in a process of its own. Memory is what a hundredth of the inputs doesn't take.

    python -m benchmarks.batch_listing [--inputs N] [--json] [--record]
"""

import argparse
import json
import os
import sys
import tempfile
import uuid
from itertools import islice
from pathlib import Path

from benchmarks.common import measure
from benchmarks.results import at_most, make_parser, report

MEASURES = ("imagepipe/base", "imagepipe/ingest", "imagepipe/serving")
GOAL_MIB = 100.0
KINDS = ("folder", "manifest")
SHARD = 256


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--spool", type=Path, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.spool:
        spool(*map(str, arguments.spool))
        return

    rows: list[list[str]] = []
    seconds: dict[str, float] = {}
    growth: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for kind in KINDS:
            peaks = []
            for count in (arguments.inputs // 100, arguments.inputs):
                source = make_source(kind, Path(temporary, f"{kind}-{count}"), count)
                out = f"{temporary}/out-{kind}-{count}"
                write_done(str(source), out)
                usage = measure([sys.executable, "-m", "benchmarks.batch_listing", "--spool", str(source), out])
                peaks.append(usage.peak / 2**20)
                seconds[kind] = usage.seconds
                rows.append([kind, f"{count:,}", f"{usage.seconds:.1f}", f"{peaks[-1]:,.0f}"])
            growth[kind] = peaks[1] - peaks[0]
    report(
        arguments,
        "batch_listing",
        MEASURES,
        {"inputs": arguments.inputs, "seconds": seconds, "growth_mib": growth, "goal_mib": GOAL_MIB},
        ["source", "inputs", "seconds", "peak MiB"],
        rows,
        [
            at_most(
                f"{arguments.inputs:,} inputs of a {kind}, half of them done, listed: MiB more than for a hundredth",
                growth[kind],
                GOAL_MIB,
                f" ({seconds[kind]:.0f} s)",
            )
            for kind in KINDS
        ],
    )


def make_source(kind: str, path: Path, count: int) -> Path:
    names = (f"{number * 7919 % count:09}.jpg" for number in range(count))
    if kind == "manifest":
        table = path.with_suffix(".csv")
        with table.open("w", encoding="utf-8") as file:
            file.write("path,camera\n")
            file.writelines(f"photos/{name},a\n" for name in names)
        return table
    path.mkdir()
    for name in names:
        os.close(os.open(path / name, os.O_CREAT | os.O_WRONLY))
    return path


def write_done(source: str, out: str) -> None:
    """Writes records of every other shard, as a run leaves them, and the number of inputs that are left."""
    from imagepipe.serving.listing import Listing, stream_inputs

    inputs = stream_inputs(source, Listing(), ())
    done = Path(out, "done")
    done.mkdir(parents=True)
    left = 0
    is_done = False
    while keys := [item.key for item in islice(inputs, SHARD)]:
        is_done = not is_done
        if is_done:
            (done / f"{uuid.uuid4().hex}.json").write_text(json.dumps({"items": keys}), encoding="utf-8")
        else:
            left += len(keys)
    Path(out, "left").write_text(str(left), encoding="utf-8")


def spool(source: str, out: str) -> None:
    """Does what the driver does until there are files for the workers."""
    from imagepipe.base.on_disk import DiskCounter
    from imagepipe.serving.listing import Listing, stream_inputs
    from imagepipe.serving.results import recover
    from imagepipe.serving.spool import spool_items

    done, listed = recover(out, lambda: True), DiskCounter()
    inputs = stream_inputs(source, Listing(), ())
    new = (item for item in inputs if listed.add(item.key) == 1 and item.key not in done)
    if spool_items(new, f"{out}/.attempts/run").inputs != int(Path(out, "left").read_text(encoding="utf-8")):
        sys.exit("what is done was not told from what is new")


if __name__ == "__main__":
    main()
