"""A client for models online: on a server, a cluster or a cloud."""

import itertools
import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import httpx
import tenacity

from imagepipe.base.errors import ConfigError, ModelError, UnavailableError
from imagepipe.base.features import LABEL_SEPARATOR
from imagepipe.base.images import BadImage
from imagepipe.deploy.config import is_private
from imagepipe.deploy.deployment import Address
from imagepipe.serving.credentials import check_token, load_authorities
from imagepipe.serving.inputs import Image, build_requests, normalize_images
from imagepipe.serving.instances import encode_instance
from imagepipe.serving.shrinking import shrink_image
from imagepipe.serving.types import Failure, Prediction, Request, Value

_TIMEOUT = httpx.Timeout(60, connect=5)  # seconds; on a busy server an image waits for some batches
_ATTEMPTS = 6
_LONGEST_WAIT = 10.0  # seconds, whatever Retry-After says
_JITTER = tenacity.wait_random(0, 0.1)  # seconds on top: callers who were refused together don't come back together
_REASON_CHARACTERS = 200  # of an answer that is not JSON
_CONNECTIONS = 8  # requests at a time, with one image each, for the server to batch
_TYPES = {"DT_FLOAT": "float32", "DT_INT64": "int64", "DT_STRING": "string"}
_BUSY = (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.TOO_MANY_REQUESTS)


def _compute_wait(state: tenacity.RetryCallState) -> float:
    """Returns how many seconds to wait: as long as the server says, twice as long after each further refusal."""
    retry_after = state.outcome.result().headers.get("Retry-After", "") if state.outcome else ""
    seconds = float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0.5
    return min(seconds * 2 ** (state.attempt_number - 1), _LONGEST_WAIT) + _JITTER(state)


_retry_while_busy = tenacity.Retrying(
    retry=tenacity.retry_if_result(lambda response: response.status_code in _BUSY),
    wait=_compute_wait,
    stop=tenacity.stop_after_attempt(_ATTEMPTS),
    retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,  # the last refusal
)


class Client:
    """A client of a model that answers by TensorFlow Serving's REST API, also KServe's, Vertex AI's and ML Engine's.

    A context manager, which closes its connections at the end.

    Examples:
        >>> with imagepipe.Client("http://127.0.0.1:8080") as client:
        ...     for answer in client.predict(["photos/1.jpg", jpeg_bytes]):
        ...         print(answer)

    Attributes:
        url: the model's URL.
        max_bytes: size of a request that the server takes; None for no limit.
        shrunk: images that were shrunk so far, as the server takes small requests only.
    """

    def __init__(
        self,
        url: str,
        auth: httpx.Auth | None = None,
        labels: Sequence[str] | None = None,
        headers: Mapping[str, str] | None = None,
        inputs: Mapping[str, str] | None = None,
        token: str | None = None,
        ca: str | Path | None = None,
        max_bytes: int | None = None,
        image_size: tuple[int, int] | None = None,
    ):
        """Finds the model.

        Args:
            url: the model's, such as ``http://host:8080/v1/models/digits``; or the server's, if it serves one model.
            auth: adds the caller's credentials to each request.
            labels: names of the model's outputs, in the order of the scores; empty if unknown. By default the server
                is asked for them, which not every server can answer.
            headers: headers of each request, such as the ``Host`` by which a gateway finds the model.
            inputs: with ``labels``, types of the inputs that the model takes (``string``, ``float32``, ``int64``), by
                name; None if unknown: all are sent.
            token: the token that the server asks for (``imagepipe serve --token-file``). It is sent to ``https://`` or
                to this machine only.
            ca: a file with the certificates, in PEM, of the authorities that the server's certificate may be from; or
                the server's own. By default those that everybody trusts.
            max_bytes: size of a request that the server takes; larger images are shrunk.
            image_size: height and width that the model sees: no image is shrunk below. None if unknown: none is
                shrunk.

        Raises:
            ModelError: if there is no such model; UnavailableError: if there is no server, or it refuses.
            ConfigError: if the token or ``ca`` can't be used.
        """
        if not url.startswith(("http://", "https://")):
            raise ModelError(f"{url} is no URL such as http://127.0.0.1:8080")
        if token is not None:
            if not is_private(url):
                raise ConfigError(f"{url}: the token would go there unencrypted. Give an https:// URL")
            headers = {**(headers or {}), "Authorization": f"Bearer {check_token(token, 'the token')}"}
        self._http = httpx.Client(
            timeout=_TIMEOUT,
            limits=httpx.Limits(max_connections=_CONNECTIONS),
            auth=auth,
            headers=headers,
            verify=load_authorities(Path(ca)) if ca else True,
        )
        self.url = url.rstrip("/").removesuffix(":predict")
        self.max_bytes, self._image_size = max_bytes, image_size
        self.shrunk, self._counting = 0, threading.Lock()  # in as many threads as requests are sent at a time
        self._asks_server = labels is None
        if labels is not None:
            self._version = _ServedVersion(f"{self.url}:predict", list(labels), dict(inputs or {}))
            return
        try:
            self._version = self._describe_version()
        except BaseException:
            self.close()
            raise

    @classmethod
    def from_address(cls, address: Address) -> Self:
        """Makes a client for a deployed model."""
        return cls(
            address.url,
            address.auth,
            address.labels,
            address.headers,
            address.inputs,
            max_bytes=address.max_bytes,
            image_size=address.image_size,
        )

    @property
    def side_types(self) -> dict[str, str] | None:
        """Type of each side feature that the model takes by name; None if the server doesn't say."""
        inputs = self._version.inputs
        return {name: inputs[name] for name in inputs if name not in ("input", "metadata")} if inputs else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all connections."""
        self._http.close()

    def predict(
        self, images: Iterable[Image], side: Iterable[Mapping[str, Value]] | None = None
    ) -> list[Prediction | Failure]:
        """Asks about images.

        Args:
            images: paths, encoded images (any format that ``imagepipe ingest`` takes) or arrays uint8
                ``[height, width, 3]`` in RGB. The id of an answer is the path, or the image's number as text, from 0.
            side: side features of each image by name, None or NaN for a number that is missing; None if the model
                needs none.

        Returns:
            One answer per image, in their order; an image that can't be read, or that the server refuses, is a
            ``Failure`` with the reason, and the others are answered.

        Raises:
            ValueError: if ``images`` and ``side`` have different lengths.
            TypeError: if ``images`` is a single image, or one of them is of another type.
        """
        return list(self.predict_requests(normalize_images(build_requests(images, side))))

    def predict_requests(self, requests: Iterable[Request | Failure]) -> Iterator[Prediction | Failure]:
        """Sends requests, some at a time, with one image each, so that an image that is refused fails alone.

        Returns:
            One answer per request, in their order; failures are passed through.
        """
        remaining = iter(requests)
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            # In windows, not all at once: else the images of a large folder would all be read into memory.
            while window := list(itertools.islice(remaining, 4 * _CONNECTIONS)):
                yield from pool.map(self._predict_one, window)

    def _describe_version(self) -> "_ServedVersion":
        """Asks the server for the live version, and for its only model if the URL names none."""
        if "/models/" not in self.url:
            models = self._get(f"{self.url}/v1/models").get("models") or []
            if len(models) != 1:
                raise ModelError(f"{self.url} serves {', '.join(models) or 'no model'}: give its URL, …/v1/models/NAME")
            self.url = f"{self.url}/v1/models/{models[0]}"
        metadata = self._get(f"{self.url}/metadata")
        version = (metadata.get("model_spec") or {}).get("version")
        suffix = f"/versions/{version}" if version and "/versions/" not in self.url else ""
        try:
            signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
            inputs = {name: _TYPES.get(tensor["dtype"], "string") for name, tensor in signature["inputs"].items()}
        except (KeyError, TypeError, AttributeError):  # the server does not describe it as TensorFlow Serving does
            inputs = {}
        return _ServedVersion(f"{self.url}{suffix}:predict", metadata.get("labels") or [], inputs)

    def _get(self, url: str) -> dict[str, Any]:
        answer = self._send("GET", url)
        if isinstance(answer, str):
            raise UnavailableError(f"{url}: {answer}")
        return answer

    def _send(self, method: str, url: str, body: Any = None) -> dict[str, Any] | str:
        """Returns the server's answer; or as text why there is none."""
        try:
            response = _retry_while_busy(self._http.request, method, url, json=body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return f"no answer ({error or type(error).__name__})"
        return _parse_response(response)

    def _predict_one(self, request: Request | Failure) -> Prediction | Failure:
        if isinstance(request, Failure):
            return request
        version = self._version
        if isinstance(request := self._fit(request), Failure):
            return request
        answer = self._post(version, request)
        if self._asks_server and isinstance(answer, str) and answer.startswith(f"status {httpx.codes.NOT_FOUND}"):
            # Another version is live by now; its labels may differ.
            try:
                self._version = version = self._describe_version()
            except ModelError as error:
                return Failure(request.id, str(error))
            answer = self._post(version, request)
        if isinstance(answer, str):
            return Failure(request.id, answer)
        try:
            (row,) = answer["predictions"]
            label = str(row["label"])
            fits = self._asks_server or _fits(version.labels, row["classes"], label)
            names = (version.labels if fits else []) or _number_classes(row["classes"], label)
            classes = dict(sorted(zip(names, row["classes"], strict=True), key=lambda item: -item[1]))
            novelty = None if row.get("novelty") is None else float(row["novelty"])
            return Prediction(request.id, label, float(row["score"]), classes, _split_label(label, classes), novelty)
        except (KeyError, TypeError, ValueError) as error:
            return Failure(request.id, f"the answer is not that of a model of this pipeline: {error!r}")

    def _fit(self, request: Request) -> Request | Failure:
        """Returns a request that the server takes by its size: with the image shrunk if it has to be."""
        limit = self.max_bytes
        if not limit:
            return request
        others = len(json.dumps({"instances": [encode_instance(replace(request, image=b""))]}))
        size = others + _count_base64(request.image)
        if size <= limit:
            return request
        room = (limit - others) // 4 * 3
        try:
            image = shrink_image(request.image, room, self._image_size) if self._image_size and room > 0 else None
        except BadImage as error:
            return Failure(request.id, str(error))
        if image is None:
            seen = "" if self._image_size is None else " at the size that the model sees"
            return Failure(request.id, f"the request has {size:,} bytes, and {limit:,} are taken: too large{seen}")
        with self._counting:
            self.shrunk += 1
        return replace(request, image=image)

    def _post(self, version: "_ServedVersion", request: Request) -> dict[str, Any] | str:
        # A file of Examples has columns that the model does not take, and a server refuses unknown ones.
        inputs = version.inputs
        instance = {name: x for name, x in encode_instance(request).items() if not inputs or name in inputs}
        return self._send("POST", version.url, {"instances": [instance]})


@dataclass(frozen=True)
class _ServedVersion:
    """A version as the server describes it: its URL, the names of its outputs, and the types of its inputs by name."""

    url: str
    labels: list[str]
    inputs: dict[str, str]


def _count_base64(data: bytes) -> int:
    return -(-len(data) // 3) * 4


def _parse_response(response: httpx.Response) -> dict[str, Any] | str:
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if response.is_success and isinstance(answer, dict):
        return answer
    reason = answer.get("error") if isinstance(answer, dict) else None
    if answer is None and response.headers.get("Content-Type", "").startswith("text/plain"):
        reason = response.text[:_REASON_CHARACTERS]
    if isinstance(reason, dict):  # the form of Google's services
        reason = reason.get("message")
    if response.is_success:
        reason = "the answer is no object of JSON"
    return f"status {response.status_code}: {reason or response.reason_phrase}"


def _fits(names: list[str], classes: list[float], label: str) -> bool:
    """Returns whether names can be those of the version that answered, as several may be live."""
    answer = {label} if label in names else set(label.split(LABEL_SEPARATOR))
    # A regression's label is its value; a multilabel's may be empty.
    return len(names) == len(classes) and (len(names) == 1 or not label or answer <= set(names))


def _number_classes(classes: list[float], label: str) -> list[str]:
    """Returns numbers as names, for a server that does not give any; only the best class is known, by the label."""
    names = [str(number) for number in range(len(classes))]
    if len(classes) > 1 and LABEL_SEPARATOR not in label:
        names[classes.index(max(classes))] = label
    return names


def _split_label(label: str, classes: dict[str, float]) -> tuple[str, ...]:
    """Returns the names in a label, in the order of ``classes``."""
    names = {label} if label in classes else set(label.split(LABEL_SEPARATOR))
    if label and not names & classes.keys():  # a regression's label is its value
        names = set(classes)
    return tuple(name for name in classes if name in names)
