"""Hours of damaged bytes for one target, guided by coverage: ``python -m tests.faults.fuzz TARGET [OPTIONS]``.

Needs the dependency group ``fuzz`` (``.uv/bin/uv sync --group fuzz``). Stops at the first error that a target must not
raise, and writes its input into the current folder. Options are libFuzzer's: ``-max_total_time=600`` ends it after ten
minutes.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import atheris

with atheris.instrument_imports(include=["imagepipe", "trainer", "PIL", "json"]):
    from tests.faults.targets import TARGETS


def main() -> None:
    """Fuzzes the target that the command line names."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"Give one of: {', '.join(map(repr, TARGETS))}")
    target = TARGETS[sys.argv.pop(1)]

    def read(data: bytes) -> None:
        try:
            target.read(data)
        except target.errors as error:
            if not str(error).strip():
                raise

    with TemporaryDirectory() as corpus:
        for number, seed in enumerate(target.seeds):
            (Path(corpus) / str(number)).write_bytes(seed)
        atheris.Setup([*sys.argv, "-timeout=20", "-rss_limit_mb=4096", corpus], read)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
