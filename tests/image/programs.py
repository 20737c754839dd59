"""Beam's programs in Go, built from its module at the version of uv.lock: ``boot``, and the runner Prism.

Go keeps the module and compiled packages in its own caches, so that only the first build takes minutes.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import apache_beam

_MODULE = "github.com/apache/beam/sdks/v2"
_PACKAGES = {"boot": "python/container", "prism": "go/cmd/prism"}
_GO = "1.26.8"  # the module wants 1.26


def build_program(name: str, folder: Path) -> Path:
    """Builds ``boot`` or ``prism`` into a folder, and returns the program."""
    go = _find_go(folder)  # an older one can't read what follows
    (folder / "go.mod").write_text(f"module programs\n\ngo {_GO}\n\nrequire {_MODULE} v{apache_beam.__version__}\n")
    _go(go, "build", "-mod=mod", "-o", name, f"{_MODULE}/{_PACKAGES[name]}", folder=folder)
    return folder / name


def _find_go(folder: Path) -> str:
    """Returns a Go that takes the module: since 1.21 Go fetches newer ones itself, for an older one it is done here."""
    go = shutil.which("go") or "go"
    minor = re.match(r"go1\.(\d+)", _go(go, "env", "GOVERSION", folder=folder))
    if minor and int(minor[1]) >= 21:
        return go
    toolchain = f"golang.org/toolchain@v0.0.1-go{_GO}.linux-amd64"
    newer = Path(json.loads(_go(go, "mod", "download", "-json", toolchain, folder=folder))["Dir"])
    for program in (*(newer / "bin").iterdir(), *(newer / "pkg/tool/linux_amd64").iterdir()):
        program.chmod(0o555)  # the module's archive keeps no modes
    return str(newer / "bin/go")


def _go(go: str, *arguments: str, folder: Path) -> str:
    environment = os.environ | {"CGO_ENABLED": "0", "GOTOOLCHAIN": "auto"}
    done = subprocess.run(  # noqa: S603
        [go, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (arguments, done.stderr[-4000:])
    return done.stdout
