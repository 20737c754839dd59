"""The Kubernetes API for InferenceServices, its errors in words."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import urllib3
import yaml
from kubernetes import client as kubernetes
from kubernetes import config as kubeconfig

from imagepipe.base.errors import DeployError
from imagepipe.deploy.config import DeployConfig, KServeConfig, is_private
from imagepipe.deploy.inference_service import VERSION, Service
from imagepipe.deploy.kserve_library import constants

_REQUEST_SECONDS = (5, 30)  # to connect, to answer
_CONFLICTS = 10


class UnreachableError(DeployError):
    """Kubernetes does not answer, or not now."""


class _MissingError(DeployError):
    """There is no such object."""


class _ConflictError(DeployError):
    """The object was written since it was read."""


class ChangedError(DeployError):
    """Someone else has changed the specification, which is therefore left as it is."""


class Services:
    """The InferenceServices of a namespace, of which it is about one."""

    def __init__(self, config: DeployConfig):
        """Finds the cluster.

        Args:
            config: with the service's name, and where it is.

        Raises:
            DeployError: if there is no way to one.
        """
        settings = config.kserve or KServeConfig()
        self.name, self.namespace, self.timeout = str(config.name), settings.namespace, settings.timeout
        self.named = f"InferenceService {self.name} in namespace {self.namespace}"
        configuration = _connection(settings.context)
        configuration.retries = False  # a repeated PUT would look like a conflict with someone else
        self._host = configuration.host
        self._api = kubernetes.CustomObjectsApi(kubernetes.ApiClient(configuration))
        self._where = {
            "group": constants.KSERVE_GROUP,
            "version": constants.KSERVE_V1BETA1_VERSION,
            "namespace": self.namespace,
            "plural": constants.KSERVE_PLURAL_INFERENCESERVICE,
            "_request_timeout": _REQUEST_SECONDS,
        }

    def get(self) -> Service | None:
        """The service; None if there is none of that name."""
        try:
            with self._errors_in_words():
                return cast(Service, self._api.get_namespaced_custom_object(name=self.name, **self._where))
        except _MissingError:
            return None

    def ours(self) -> Service | None:
        """The same.

        Raises:
            DeployError: if it is not one that ``deploy`` made.
        """
        service = self.get()
        if service and VERSION not in service["metadata"].get("annotations", {}):
            raise DeployError(
                f"{self.named} was not made by imagepipe: give another deploy.name, or delete it with "
                f"kubectl delete inferenceservice {self.name} --namespace {self.namespace}"
            )
        return service

    def create(self, service: Service) -> Service:
        """Makes it, and returns it as the API gives it back."""
        with self._errors_in_words():
            return cast(Service, self._api.create_namespaced_custom_object(body=service, **self._where))

    def delete(self) -> None:
        """Deletes it, and thereby all that KServe made of it."""
        with self._errors_in_words():
            self._api.delete_namespaced_custom_object(name=self.name, **self._where)

    def replace(self, service: Service) -> Service:
        """Replaces a service's specification and annotations.

        Args:
            service: as it was read, changed.

        Returns:
            The service as the API gives it back.

        Raises:
            DeployError: if it is refused, or another one has changed the specification since it was read.
        """
        for _ in range(_CONFLICTS):
            try:
                with self._errors_in_words():
                    return cast(
                        Service, self._api.replace_namespaced_custom_object(name=self.name, body=service, **self._where)
                    )
            except _ConflictError:  # mostly with KServe, which writes the status
                now = self.get()
                if now is None or now["metadata"]["generation"] != service["metadata"]["generation"]:
                    break
                service["metadata"]["resourceVersion"] = now["metadata"]["resourceVersion"]
        raise self.changed_meanwhile()

    def changed_meanwhile(self) -> ChangedError:
        """The error for what someone else has changed."""
        return ChangedError(f"{self.named} was changed by someone else meanwhile: see `imagepipe status`")

    @contextmanager
    def _errors_in_words(self) -> Iterator[None]:
        try:
            yield
        except kubernetes.ApiException as error:
            raise self._in_words(error) from None  # it has the headers of the answer
        except urllib3.exceptions.HTTPError as error:
            raise UnreachableError(f"Kubernetes at {self._host} does not answer: {error}") from None

    def _in_words(self, error: kubernetes.ApiException) -> DeployError:
        try:
            answer = json.loads(error.body or "")
        except ValueError:
            answer = {}
        message, kind = answer.get("message") or error.reason, (answer.get("details") or {}).get("kind")
        if error.status == 401:
            return DeployError(
                f"Kubernetes at {self._host} does not take the credentials (401): log in to the cluster again; "
                "`kubectl get inferenceservices` shows whether it works"
            )
        if error.status == 404 and not answer:
            return DeployError(
                f"Kubernetes at {self._host} has no InferenceServices of {constants.KSERVE_V1BETA1}: install KServe"
            )
        if error.status == 404 and kind == "namespaces":
            return DeployError(
                f"there is no namespace {self.namespace} at {self._host}: make it with kubectl create namespace "
                f"{self.namespace}, or give deploy.kserve.namespace"
            )
        if error.status == 404:
            return _MissingError(f"{self.named} does not exist")
        if error.status == 409:
            return _ConflictError(str(message))
        if error.status >= 500 or error.status == 429:
            return UnreachableError(f"Kubernetes at {self._host} can't answer now ({error.status}): {message}")
        return DeployError(f"Kubernetes refuses {self.named} ({error.status}): {message}")


def _connection(context: str | None) -> kubernetes.Configuration:
    """How Kubernetes is reached: what the kubeconfig says, or inside a cluster its service account."""
    configuration = kubernetes.Configuration()
    try:
        kubeconfig.load_kube_config(
            config_file=os.environ.get("KUBECONFIG"), context=context, client_configuration=configuration
        )
    except (kubeconfig.ConfigException, yaml.YAMLError) as error:
        if context or not _inside_cluster(configuration):
            words = " ".join(str(error).split())
            raise DeployError(
                f"no way to a Kubernetes cluster: {words}. Set KUBECONFIG, or run where `kubectl get pods` works"
            ) from None
    if not is_private(configuration.host):
        raise DeployError(f"the kubeconfig's server is {configuration.host}: credentials go to https:// only")
    return configuration


def _inside_cluster(configuration: kubernetes.Configuration) -> bool:
    try:
        kubeconfig.load_incluster_config(client_configuration=configuration)
    except kubeconfig.ConfigException:
        return False
    return True
