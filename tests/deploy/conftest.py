"""Fixtures for the tests of the targets: an account at Google, models with different labels, object stores."""

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
    """Three models: the first two have the same labels and answers; the third has other labels."""
    root = tmp_path_factory.mktemp("brightness")
    kinds = [(("dark", "light"), 0), (("dark", "light"), 1), (("night", "day"), 0)]
    return [str(save_brightness(root / f"{i}", root / f"a{i}", *kind)) for i, kind in enumerate(kinds)]


@pytest.fixture(scope="session")
def expected(brightness) -> list[Prediction]:
    """The first model's predictions for the digits."""
    return LoadedModel(Path(brightness[0])).predict(DIGITS)


@pytest.fixture
def account(tmp_path, monkeypatch) -> Iterator[google.Accounts]:
    """A Google service account that Google's libraries find."""
    with google.run_token_endpoint(tmp_path) as account:
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account.key_file))
        yield account


@pytest.fixture
def no_secrets(account, capfd) -> Iterator[None]:
    """Logs at the lowest level; fails if one of the account's secrets or an image is in the logs or on the screen."""
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
    output = "".join([log.getvalue(), *capfd.readouterr()])
    assert "Making request" in output  # google-auth
    assert "POST http://127.0.0.1" in output  # httpx
    secrets = {*account.secrets, *(base64.b64encode(digit.image).decode()[:60] for digit in DIGITS)}
    assert not [secret for secret in secrets if secret in output]
