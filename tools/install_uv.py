"""Installs uv into a folder, with nothing but the standard library and what of pip there is.

Debian's python3 has neither pip nor ensurepip; there uv's wheel, which holds a static binary, is taken from PyPI.
"""

import hashlib
import io
import json
import platform
import subprocess
import sys
import urllib.request
import venv
import zipfile
from pathlib import Path
from urllib.parse import urljoin

_INDEX = "https://pypi.org/pypi/uv/json"


def main(folder: Path) -> None:
    """Makes ``folder/bin/uv``, unless it is there."""
    binary = folder / "bin" / "uv"
    if binary.exists():
        return
    try:
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", "uv"], check=True)  # noqa: S603
    except (subprocess.CalledProcessError, ImportError):
        print("No pip here; fetching uv's wheel", file=sys.stderr)
        binary.parent.mkdir(parents=True, exist_ok=True)
        binary.write_bytes(_from_wheel())
        binary.chmod(0o755)


def _from_wheel() -> bytes:
    """The binary in the newest wheel for this machine, its hash checked against the index."""
    with urllib.request.urlopen(_INDEX, timeout=60) as answer:
        files = json.load(answer)["urls"]
    machine = f"manylinux_2_17_{platform.machine()}"
    wheel = next((f for f in files if f["filename"].endswith(".whl") and machine in f["filename"]), None)
    if wheel is None:
        sys.exit(
            f"uv has no wheel for {machine}. Install pip (Debian, Ubuntu: apt install python3-venv), and try again."
        )
    with urllib.request.urlopen(urljoin(_INDEX, wheel["url"]), timeout=300) as answer:  # noqa: S310 (from the index, checked below)
        content = answer.read()
    if hashlib.sha256(content).hexdigest() != wheel["digests"]["sha256"]:
        sys.exit(f"{wheel['filename']} is not what the index says; try again.")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/scripts/uv")]
        return archive.read(name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
