"""Runs a command, and again where buildah could not start: the fault is the kernel's, and rare.

    python again.py COMMAND...

buildah starts itself from a copy in memory, which it seals. While another processor still holds a page of it, Linux
refuses that (EBUSY, fcntl(2), F_SEAL_WRITE), and buildah ends before it has done anything. It is called by its file, as
the tests run in folders of their own.
"""

import subprocess
import sys
import time

ATTEMPTS = 5
REFUSED = "sealing memfd copy"


def main(command: list[str]) -> int:
    for attempt in range(1, ATTEMPTS + 1):
        started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace")  # noqa: S603
        is_refused = False
        for line in started.stderr or ():
            is_refused = is_refused or REFUSED in line
            print(line, end="", file=sys.stderr, flush=True)
        status = started.wait()
        if not (status and is_refused and attempt < ATTEMPTS):
            break
        time.sleep(1)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
