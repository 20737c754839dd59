"""What the tests of Google's clouds share: an account, and models that say different things."""

import base64
import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagepipe.deploy.deployment import Address
from imagepipe.serving.client import Client
from imagepipe.serving.loaded_model import LoadedModel
from imagepipe.serving.types import Prediction, Request
from tests.conftest import make_digit_images
from tests.serving.conftest import model, save_brightness  # noqa: F401 (model is a fixture)
from tests.standins import google
from tests.stores import memory, s3, s3_server, store  # noqa: F401 (fixtures)

DIGITS = [Request(f"digit-{number}", png) for number, (_, png) in enumerate(make_digit_images(20))]


def connect(address: Address) -> Client:
    """Returns a client for a deployed model, as ``imagepipe predict --target`` makes it."""
    return Client.from_address(address)


@pytest.fixture(scope="session")
def brightness(tmp_path_factory) -> list[str]:
    """Three models: the first two answer alike, by the same names; the third has others."""
    root = tmp_path_factory.mktemp("brightness")
    kinds = [(("dark", "light"), 0), (("dark", "light"), 1), (("night", "day"), 0)]
    return [str(save_brightness(root / f"{i}", root / f"a{i}", *kind)) for i, kind in enumerate(kinds)]


@pytest.fixture(scope="session")
def expected(brightness) -> list[Prediction]:
    """What the first model says of the digits."""
    return LoadedModel(Path(brightness[0])).predict(DIGITS)


@pytest.fixture
def account(tmp_path, monkeypatch) -> Iterator[google.Accounts]:
    """A service account of Google's, which its libraries find, and whose secrets get into no log, nor onto a screen."""
    with google.accounts(tmp_path) as account:
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account.key_file))
        yield account


@pytest.fixture
def no_secrets(account, capfd) -> Iterator[None]:
    """Everything logs all that it can; afterwards none of the account's secrets must be in it, nor any image."""
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    loggers = [logging.getLogger(name) for name in ("", "google", "google.auth", "urllib3", "httpx", "imagepipe")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.addHandler(handler)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
        logger.removeHandler(handler)
    said = "".join([log.getvalue(), *capfd.readouterr()])
    assert "Making request" in said  # google-auth
    assert "POST http://127.0.0.1" in said  # httpx
    secrets = {*account.secrets, *(base64.b64encode(digit.image).decode()[:60] for digit in DIGITS)}
    assert not [secret for secret in secrets if secret in said]
