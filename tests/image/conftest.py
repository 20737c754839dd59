"""The image and Prism, made once for the tests, which are in one file, and gone after them: they take gigabytes."""

import os

import pytest

from tests.image.build import build_image, find_missing
from tests.image.programs import build_program


@pytest.fixture(scope="module", autouse=True)
def programs():
    """Skips the tests where a program is missing that they need; in the gate they fail there."""
    if missing := find_missing():
        required = os.environ.get("IMAGEPIPE_REQUIRE_IMAGE")
        (pytest.fail if required else pytest.skip)(f"an image can't be built here without {missing}")


@pytest.fixture(scope="module")
def container(tmp_path_factory):
    """A container of the image of Beam's workers, which is the components' with `boot`."""
    sdk = tmp_path_factory.mktemp("sdk")
    build_program("boot", tmp_path_factory.mktemp("boot")).rename(sdk / "boot")
    for name in ("LICENSE", "NOTICE"):
        (sdk / name).write_text("as in Beam's image")
    with build_image(tmp_path_factory.mktemp("image"), sdk) as built:
        yield built


@pytest.fixture(scope="module")
def prism(tmp_path_factory):
    """Beam's runner in Go, a program."""
    return build_program("prism", tmp_path_factory.mktemp("prism"))
