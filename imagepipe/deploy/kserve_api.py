"""The Kubernetes API for InferenceServices, with its errors as messages for the user."""

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

_TIMEOUT = (5, 30)  # seconds to connect, and to answer
_MAX_CONFLICTS = 10


class UnreachableError(DeployError):
    """Kubernetes does not answer, or not now."""


class _MissingError(DeployError):
    """The object does not exist."""


class _ConflictError(DeployError):
    """The object was written since it was read."""


class ChangedError(DeployError):
    """Someone else has changed the specification meanwhile; it is left unchanged."""


class ServiceClient:
    """A client for the InferenceService of one name in one namespace.

    Attributes:
        name: name of the service.
        namespace: its namespace.
        timeout: seconds until a change has to be in effect.
        title: the service's kind, name and namespace, for messages.
    """

    def __init__(self, config: DeployConfig):
        """Finds the cluster.

        Args:
            config: name, namespace and cluster of the service.

        Raises:
            DeployError: if there is no way to the cluster.
        """
        settings = config.kserve or KServeConfig()
        self.name, self.namespace, self.timeout = str(config.name), settings.namespace, settings.timeout
        self.title = f"InferenceService {self.name} in namespace {self.namespace}"
        configuration = _find_cluster(settings.context)
        configuration.retries = False  # a repeated PUT would look like a conflict with someone else
        self._host = configuration.host
        self._api = kubernetes.CustomObjectsApi(kubernetes.ApiClient(configuration))
        self._arguments = {
            "group": constants.KSERVE_GROUP,
            "version": constants.KSERVE_V1BETA1_VERSION,
            "namespace": self.namespace,
            "plural": constants.KSERVE_PLURAL_INFERENCESERVICE,
            "_request_timeout": _TIMEOUT,
        }

    def get(self) -> Service | None:
        """Returns the service; None if it does not exist."""
        try:
            with self._explain_errors():
                return cast(Service, self._api.get_namespaced_custom_object(name=self.name, **self._arguments))
        except _MissingError:
            return None

    def get_own(self) -> Service | None:
        """Returns the service; None if it does not exist.

        Raises:
            DeployError: if it is not one that ``deploy`` created.
        """
        service = self.get()
        if service and VERSION not in service["metadata"].get("annotations", {}):
            raise DeployError(
                f"{self.title} was not made by imagepipe: give another deploy.name, or delete it with "
                f"kubectl delete inferenceservice {self.name} --namespace {self.namespace}"
            )
        return service

    def create(self, service: Service) -> Service:
        """Creates the service, and returns it as the API returns it."""
        with self._explain_errors():
            return cast(Service, self._api.create_namespaced_custom_object(body=service, **self._arguments))

    def delete(self) -> None:
        """Deletes the service, and with it everything that KServe made of it."""
        with self._explain_errors():
            self._api.delete_namespaced_custom_object(name=self.name, **self._arguments)

    def replace(self, service: Service) -> Service:
        """Replaces the service's specification and annotations.

        Args:
            service: the service as it was read, with changes.

        Returns:
            The service as the API returns it.

        Raises:
            ChangedError: if someone else has changed the specification since it was read.
            DeployError: if it is refused.
        """
        for _ in range(_MAX_CONFLICTS):
            try:
                with self._explain_errors():
                    answer = self._api.replace_namespaced_custom_object(name=self.name, body=service, **self._arguments)
                    return cast(Service, answer)
            except _ConflictError:  # mostly with KServe, which writes the status
                current = self.get()
                if current is None or current["metadata"]["generation"] != service["metadata"]["generation"]:
                    break
                service["metadata"]["resourceVersion"] = current["metadata"]["resourceVersion"]
        raise self.create_changed_error()

    def create_changed_error(self) -> ChangedError:
        """Returns the error for what someone else has changed."""
        return ChangedError(f"{self.title} was changed by someone else meanwhile: see `imagepipe status`")

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except kubernetes.ApiException as error:
            raise self._explain(error) from None  # it has the headers of the answer
        except urllib3.exceptions.HTTPError as error:
            raise UnreachableError(f"Kubernetes at {self._host} does not answer: {error}") from None

    def _explain(self, error: kubernetes.ApiException) -> DeployError:
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
            return _MissingError(f"{self.title} does not exist")
        if error.status == 409:
            return _ConflictError(str(message))
        if error.status >= 500 or error.status == 429:
            return UnreachableError(f"Kubernetes at {self._host} can't answer now ({error.status}): {message}")
        return DeployError(f"Kubernetes refuses {self.title} ({error.status}): {message}")


def _find_cluster(context: str | None) -> kubernetes.Configuration:
    """Returns how Kubernetes is reached: by the kubeconfig, or inside a cluster by its service account."""
    configuration = kubernetes.Configuration()
    try:
        kubeconfig.load_kube_config(
            config_file=os.environ.get("KUBECONFIG"), context=context, client_configuration=configuration
        )
    except (kubeconfig.ConfigException, yaml.YAMLError) as error:
        if context or not _load_service_account(configuration):
            message = " ".join(str(error).split())
            raise DeployError(
                f"no way to a Kubernetes cluster: {message}. Set KUBECONFIG, or run where `kubectl get pods` works"
            ) from None
    if not is_private(configuration.host):
        raise DeployError(f"the kubeconfig's server is {configuration.host}: credentials go to https:// only")
    return configuration


def _load_service_account(configuration: kubernetes.Configuration) -> bool:
    """Fills in a pod's service account; returns False outside of a cluster."""
    try:
        kubeconfig.load_incluster_config(client_configuration=configuration)
    except kubeconfig.ConfigException:
        return False
    return True
