"""Asks a model online: on a server, a cluster or a cloud."""

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from imagepipe.base.errors import ModelError, UnavailableError
from imagepipe.base.features import LABEL_SEPARATOR
from imagepipe.serving import requests
from imagepipe.serving.predictions import Prediction
from imagepipe.serving.requests import Failure, Request

_TIMEOUT = httpx.Timeout(60, connect=5)  # seconds; a busy server lets an image wait for some batches
_ATTEMPTS = 6
_LONGEST_WAIT = 10.0  # seconds, whatever Retry-After says
_AT_ONCE = 8  # requests of an image each, for the server to put together
_BUSY = (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.TOO_MANY_REQUESTS)


class Endpoint:
    """A model that is asked by TensorFlow Serving's REST API, which is also KServe's, Vertex AI's and ML Engine's."""

    def __init__(
        self,
        url: str,
        auth: httpx.Auth | None = None,
        names: Sequence[str] | None = None,
        headers: Mapping[str, str] | None = None,
        taken: Iterable[str] = (),
    ):
        """Finds the model.

        Args:
            url: the model's, such as ``http://host:8080/v1/models/digits``; or the server's, if it serves one model.
            auth: adds the caller's credentials to each request.
            names: of the classes, in the order of the scores; empty where nobody knows them. By default the server is
                asked for them, which not every one can answer.
            headers: of each request, such as the ``Host`` by which a gateway finds the model.
            taken: with ``names``, what of a request the model takes; empty for all.

        Raises:
            ModelError: if there is none; UnavailableError: if there is no server, or it refuses.
        """
        if not url.startswith(("http://", "https://")):
            raise ModelError(f"{url} is no URL such as http://127.0.0.1:8080")
        limits = httpx.Limits(max_connections=_AT_ONCE)
        self._http = httpx.Client(timeout=_TIMEOUT, limits=limits, auth=auth, headers=headers)
        self.url = url.rstrip("/").removesuffix(":predict")
        self._asks = names is None
        if names is not None:
            self._described = _Described(f"{self.url}:predict", list(names), frozenset(taken))
            return
        if "/models/" not in self.url:
            served = self._get(f"{self.url}/v1/models").get("models") or []
            if len(served) != 1:
                raise ModelError(f"{url} serves {', '.join(served) or 'no model'}: give its URL, …/v1/models/NAME")
            self.url = f"{self.url}/v1/models/{served[0]}"
        self._described = self._describe()

    def _describe(self) -> "_Described":
        metadata = self._get(f"{self.url}/metadata")
        version = (metadata.get("model_spec") or {}).get("version")
        of_version = f"/versions/{version}" if version and "/versions/" not in self.url else ""
        return _Described(f"{self.url}{of_version}:predict", metadata.get("labels") or [], _inputs(metadata))

    def _get(self, url: str) -> dict[str, Any]:
        answer = self._send("GET", url)
        if isinstance(answer, str):
            raise UnavailableError(f"{url}: {answer}")
        return answer

    def _send(self, method: str, url: str, body: Any = None) -> dict[str, Any] | str:
        """What the server answers; or in words why it doesn't."""
        for attempt in itertools.count(1):
            try:
                response = self._http.request(method, url, json=body)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                return f"no answer ({error or type(error).__name__})"
            if response.status_code not in _BUSY or attempt == _ATTEMPTS:
                return _read(response)
            time.sleep(_seconds_to_wait(response, attempt))
        raise AssertionError

    def predict_all(self, asked: Iterable[Request | Failure]) -> Iterator[Prediction | Failure]:
        """Asks about images, some at a time, each by a request of its own, so that one that is refused fails alone.

        Returns:
            One result a request, in their order; failures stay what they are.
        """
        remaining = iter(asked)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            # Not all at once: the images of a large folder would be read into memory.
            while window := list(itertools.islice(remaining, 4 * _AT_ONCE)):
                yield from pool.map(self._ask, window)

    def _ask(self, request: Request | Failure) -> Prediction | Failure:
        if isinstance(request, Failure):
            return request
        described = self._described
        answer = self._predict(described, request)
        if self._asks and isinstance(answer, str) and answer.startswith(f"status {httpx.codes.NOT_FOUND}"):
            # Another version is live by now; its labels may be others.
            try:
                self._described = described = self._describe()
            except ModelError as error:
                return Failure(request.id, str(error))
            answer = self._predict(described, request)
        if isinstance(answer, str):
            return Failure(request.id, answer)
        try:
            (row,) = answer["predictions"]
            label = str(row["label"])
            known = described.names if self._asks or _fit(described.names, row["classes"], label) else []
            names = known or _numbers(row["classes"], label)
            classes = dict(sorted(zip(names, row["classes"], strict=True), key=lambda item: -item[1]))
            return Prediction(request.id, label, float(row["score"]), classes, _said(label, classes))
        except (KeyError, TypeError, ValueError) as error:
            return Failure(request.id, f"the answer is not that of a model of this pipeline: {error!r}")

    def _predict(self, described: "_Described", request: Request) -> dict[str, Any] | str:
        # A file of Examples has columns that the model does not take, and a server refuses what it does not know.
        taken = described.taken
        instance = {k: v for k, v in requests.to_instance(request).items() if not taken or k in taken}
        return self._send("POST", described.url, {"instances": [instance]})


@dataclass(frozen=True)
class _Described:
    """What a server says of a version: where it is asked, the names of its classes, and what it takes."""

    url: str
    names: list[str]
    taken: frozenset[str]


def predict(url: str, images: Iterable[Path | str | bytes]) -> list[Prediction | Failure]:
    """Asks a server about images.

    Args:
        url: see ``Endpoint``.
        images: paths of images, or their bytes, whose ids are their numbers.

    Returns:
        One result an image, in their order.

    Raises:
        ModelError: if there is no such model; UnavailableError: if there is no server, or it refuses.
    """

    def asked() -> Iterator[Request | Failure]:
        for number, image in enumerate(images):
            if isinstance(image, bytes):
                yield Request(str(number), image)
            else:
                yield from requests.of_images([Path(image)])

    return list(Endpoint(url).predict_all(requests.normalized(asked())))


def _read(response: httpx.Response) -> dict[str, Any] | str:
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if response.is_success and isinstance(answer, dict):
        return answer
    words = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(words, dict):  # as Google's services say it
        words = words.get("message")
    if response.is_success:
        words = "the answer is no object of JSON"
    return f"status {response.status_code}: {words or response.reason_phrase}"


def _inputs(metadata: dict[str, Any]) -> frozenset[str]:
    """What the model takes; empty where the server does not say it as TensorFlow Serving does."""
    try:
        signatures = metadata["metadata"]["signature_def"]["signature_def"]
        return frozenset(signatures["serving_default"]["inputs"])
    except (KeyError, TypeError):
        return frozenset()


def _fit(names: list[str], classes: list[float], label: str) -> bool:
    """Whether names can be those of the version that answered, where several may be live."""
    said = {label} if label in names else set(label.split(LABEL_SEPARATOR))
    # A regression's label is its value; a multilabel's may be empty.
    return len(names) == len(classes) and (len(names) == 1 or not label or said <= set(names))


def _numbers(classes: list[float], label: str) -> list[str]:
    """Names of classes for a server that does not tell them: of the best one the label is known."""
    names = [str(number) for number in range(len(classes))]
    if len(classes) > 1 and LABEL_SEPARATOR not in label:
        names[classes.index(max(classes))] = label
    return names


def _seconds_to_wait(response: httpx.Response, attempt: int) -> float:
    told = response.headers.get("Retry-After", "")
    seconds = float(told) if told.isascii() and told.isdigit() else 0.5
    return min(seconds * 2 ** (attempt - 1), _LONGEST_WAIT)


def _said(label: str, classes: dict[str, float]) -> tuple[str, ...]:
    names = {label} if label in classes else set(label.split(LABEL_SEPARATOR))
    if label and not names & classes.keys():  # a regression's label is its value
        names = set(classes)
    return tuple(name for name in classes if name in names)
