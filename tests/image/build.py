"""The image of Beam's workers, out of kubeflow/Dockerfile, by Debian's buildah: no engine and no registry is asked.

It is the image of the components, and `boot` on top. The images that it stands on are made here: Debian by debootstrap,
with its Python for python.org's, uv from this environment, and Beam's from its Go module.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "kubeflow" / "Dockerfile"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_DEBIAN = "http://deb.debian.org/debian"
_PACKAGES = "ca-certificates,python3.11"


@dataclass(frozen=True)
class Container:
    """A container, whose processes have a root and process ids of their own, and this machine's network.

    Attributes:
        buildah: the command that knows it.
        name: of the container.
    """

    buildah: tuple[str, ...]
    name: str

    def command(self, *command: str, options: tuple[str, ...] = ()) -> list[str]:
        """Returns a command that runs another one in the container; what that one starts ends with it.

        Args:
            command: without the image's entrypoint, see ``read_entrypoint``.
            options: of ``buildah run``.
        """
        ending_together = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        return [*ending_together, *self.buildah, "run", "--isolation=chroot", *options, self.name, "--", *command]


def read_entrypoint(target: str) -> list[str]:
    """Returns what the image of a target of the Dockerfile starts."""
    (stage,) = re.findall(rf"^FROM \S+ AS {target}$(.*?)^(?:FROM|\Z)", DOCKERFILE.read_text(), re.MULTILINE | re.DOTALL)
    (entrypoint,) = re.findall(r"^ENTRYPOINT (.+)$", stage, re.MULTILINE)
    return json.loads(entrypoint)


def find_missing() -> str:
    """Returns what an image can't be built without, and isn't here; or nothing."""
    missing = [program for program in ("buildah", "debootstrap", "go") if not shutil.which(program)]
    if os.geteuid() != 0:
        missing.append("the right to (root)")
    return ", ".join(missing)


@contextmanager
def build_image(folder: Path, sdk: Path) -> Iterator[Container]:
    """Builds the target ``beam`` and makes a container of it; removes both at the end.

    Args:
        folder: an empty one, for 10 GB; for 25 where the kernel can't lay one folder over another there.
        sdk: folder with what the Dockerfile takes from Beam's own image: ``boot``, ``LICENSE``, ``NOTICE``.
    """
    again = str(Path(__file__).with_name("again.py"))
    buildah = (sys.executable, again, "buildah", f"--root={folder}/storage", f"--runroot={folder}/run")

    def build(name: str, context: Path, *options: str | Path) -> None:
        _run(*buildah, "bud", "--isolation=chroot", "--pull-never", "-q", "-t", name, *options, context)

    def build_base(name: str, files: Path, steps: str) -> None:
        (folder / "steps").write_text(f"FROM scratch\n{steps}\n")
        build(name, files, "-f", folder / "steps")

    bases = {stage: name for name, stage in re.findall(r"^FROM (\S+:\S+) AS (\S+)$", DOCKERFILE.read_text(), re.M)}
    try:
        build_base(bases["uv"], ROOT / ".uv" / "bin", "COPY uv /uv")
        build_base(bases["beam-sdk"], sdk, "COPY . /opt/apache/beam/")
        # As the Python of python.org's image: Debian 12's is of the same minor version.
        _run("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", folder / "os", _DEBIAN)
        shutil.copyfile(CERTIFICATES, f"{folder}/os{CERTIFICATES}")  # of a proxy of this machine, if it has one
        (folder / "debian").mkdir()
        _run("tar", "-C", folder / "os", "--exclude=./dev/*", "-cf", folder / "debian/os.tar", ".")
        shutil.rmtree(folder / "os")
        build_base(bases["base"], folder / "debian", f"ADD os.tar /\nENV SSL_CERT_FILE={CERTIFICATES}")
        build("imagepipe", ROOT, "-f", DOCKERFILE, "--target", "beam")
        yield Container(buildah, _run(*buildah, "from", "--pull-never", "imagepipe").strip())
    finally:
        _run(*buildah, "rm", "--all")
        shutil.rmtree(folder)


def _run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-4000:])
    return done.stdout
