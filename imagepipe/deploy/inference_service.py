"""Reads an InferenceService: which version it is of, what was served earlier, and how far KServe has got with it.

KServe knows revisions, not versions. Which version a specification is of, and what was served before it, is therefore
recorded in annotations. They change only when the model does: KServe hands annotations on to the pods, so that any
other change would start new ones.
"""

import json
from typing import Any, cast

VERSION = "imagepipe.dev/version"
HISTORY = "imagepipe.dev/before"
"""Annotation with the earlier versions, newest first: objects with ``version`` and ``predictor``, its specification."""
WITHDRAWN = "imagepipe.dev/withdrawn"
"""Annotation with the versions that got requests and to which no rollback returns: an object, how each ended."""
REVISIONS = "imagepipe.dev/revisions"
"""An object: the version of each revision that existed before this version's. All others are of this version."""

_MODE = "serving.kserve.io/deploymentMode"
_WITHOUT_REVISIONS = ("RawDeployment", "Standard")  # the older and the newer name of the mode

Service = dict[str, Any]
"""An InferenceService as the API returns it."""

NO_SERVICE: Service = {"metadata": {}, "spec": {"predictor": {}}}


# --- The specification and its annotations


def remove_percent(predictor: dict[str, Any]) -> dict[str, Any]:
    """Returns a predictor's specification without its share of the requests."""
    return {key: value for key, value in predictor.items() if key != "canaryTrafficPercent"}


def read_version(service: Service) -> str:
    """Returns the version that the specification is of."""
    return str(service["metadata"]["annotations"][VERSION])


def read_history(service: Service) -> list[dict[str, Any]]:
    """Returns what was served earlier, see ``HISTORY``."""
    return cast(list[dict[str, Any]], json.loads(service["metadata"]["annotations"].get(HISTORY, "[]")))


def read_withdrawn(service: Service) -> dict[str, str]:
    """Returns how the versions ended to which no rollback returns, see ``WITHDRAWN``."""
    return cast(dict[str, str], json.loads(service["metadata"]["annotations"].get(WITHDRAWN, "{}")))


def read_percent(service: Service) -> int:
    """Returns the percentage of the requests that the specification gives to its version once that runs."""
    percent = service["spec"]["predictor"].get("canaryTrafficPercent")
    return 100 if percent is None else int(percent)


def revision_template(service: Service) -> object:
    """Returns all of a specification that defines a revision: if it changes, KServe creates a new one."""
    metadata = service["metadata"]
    return remove_percent(service["spec"]["predictor"]), metadata.get("annotations"), metadata.get("labels")


# --- The status: revisions and their shares


def find_mode(service: Service) -> str | None:
    """Returns KServe's deployment mode, as far as it is known."""
    mode = service.get("status", {}).get("deploymentMode")
    return mode or (service["metadata"].get("annotations") or {}).get(_MODE)


def is_raw(service: Service) -> bool:
    """Returns whether there is a Deployment instead of Knative's revisions."""
    return find_mode(service) in _WITHOUT_REVISIONS


def is_rolled_out(service: Service) -> bool:
    """Returns whether the specification's version gets all requests, apart from a change in progress."""
    return read_percent(service) == 100 and (is_raw(service) or _is_newest_revision_ready(service))


def has_nothing_live(service: Service) -> bool:
    """Returns whether no revision has ever had all requests."""
    return not is_raw(service) and not _predictor_status(service).get("latestRolledoutRevision")


def limit_share(service: Service, share: int) -> int:
    """Returns the share that the newest revision can have: ``share``, or 100 if KServe can't split the requests."""
    return 100 if is_raw(service) or has_nothing_live(service) else share


def read_shares(service: Service) -> dict[str, int]:
    """Returns the percentage of the requests per version; only versions that get any."""
    if is_raw(service):
        return {read_version(service): 100}
    shares: dict[str, int] = {}
    for part in _predictor_status(service).get("traffic", []):
        version = _find_version(service, part["revisionName"])
        shares[version] = shares.get(version, 0) + (part.get("percent") or 0)
    return {version: share for version, share in shares.items() if share}


def read_revisions(service: Service) -> dict[str, str]:
    """Returns the version of each revision that can get requests, for ``REVISIONS`` of the next version."""
    status = _predictor_status(service)
    names = {status.get("latestReadyRevision"), *(part["revisionName"] for part in status.get("traffic", []))}
    return {name: _find_version(service, name) for name in sorted(filter(None, names))}


def _predictor_status(service: Service) -> dict[str, Any]:
    return cast(dict[str, Any], service.get("status", {}).get("components", {}).get("predictor", {}))


def _is_newest_revision_ready(service: Service) -> bool:
    status = _predictor_status(service)
    created = status.get("latestCreatedRevision")
    return bool(created) and status.get("latestReadyRevision") == created


def _read_newest_share(service: Service) -> int:
    """Returns the percentage of the requests that the newest revision gets."""
    if not _is_newest_revision_ready(service):
        return 0
    status = _predictor_status(service)
    newest = status["latestReadyRevision"]
    return sum(part.get("percent") or 0 for part in status.get("traffic", []) if part.get("revisionName") == newest)


def _find_version(service: Service, revision: str) -> str:
    recorded = json.loads(service["metadata"]["annotations"].get(REVISIONS, "{}"))
    return cast(str, recorded.get(revision, read_version(service)))


# --- The status: whether a change is in effect, pending or failed


def is_ready(service: Service) -> bool:
    """Returns whether the specification is in effect."""
    return _is_true(service, "Ready") and (is_raw(service) or _is_newest_revision_ready(service))


def describe_problem(service: Service) -> str:
    """Returns why a service is not ready, in KServe's words."""
    conditions = _read_conditions(service)
    reasons = []
    for name in ("PredictorConfigurationReady", "PredictorReady", "IngressReady", "Ready"):
        condition = conditions.get(name, {})
        if condition.get("status") in ("False", "Unknown") and (condition.get("message") or condition.get("reason")):
            reasons.append(f"{name}: {condition.get('message') or condition['reason']}")
            break
    if _read_transition(service) in ("BlockedByFailedLoad", "InvalidSpec"):  # else it is about an earlier failure
        failure = service["status"]["modelStatus"].get("lastFailureInfo", {})
        reasons.append(f"{failure.get('reason', 'failure')}: {failure.get('message') or 'no message'}")
    return "; ".join(reasons) or "KServe has not reported on it yet"


def is_in_effect(service: Service, old: Service, new_revision: bool, share: int) -> bool:
    """Returns whether a change is in effect.

    KServe's ``observedGeneration`` counts the objects that it makes of the service, so it can only be compared with
    itself.

    Args:
        service: the service now.
        old: the service before the change.
        new_revision: whether the change makes a new revision.
        share: percent of the requests that the newest revision is to get.
    """
    if is_raw(service):
        is_seen = not new_revision or _read_generation(service) != _read_generation(old)
        return is_seen and _is_true(service, "Ready") and _read_transition(service) in (None, "", "UpToDate")
    is_created = not new_revision or _has_new_revision(service, old)
    return is_created and is_ready(service) and _read_newest_share(service) == share


def has_failed(service: Service, old: Service) -> bool:
    """Returns whether KServe has given up a change; reports on the previous revision don't count."""
    if _read_transition(service) == "InvalidSpec":
        return _read_transition(old) != "InvalidSpec"
    conditions = _read_conditions(service)
    if is_raw(service):
        return bool(conditions.get("PredictorReady", {}).get("reason") == "ProgressDeadlineExceeded")
    failed = conditions.get("PredictorConfigurationReady", {}).get("status") == "False"
    return failed and _has_new_revision(service, old)


def _has_new_revision(service: Service, old: Service) -> bool:
    created = "latestCreatedRevision"
    return bool(_predictor_status(service).get(created) != _predictor_status(old).get(created))


def _is_true(service: Service, condition: str) -> bool:
    return bool(_read_conditions(service).get(condition, {}).get("status") == "True")


def _read_conditions(service: Service) -> dict[str, dict[str, Any]]:
    return {condition["type"]: condition for condition in service.get("status", {}).get("conditions", [])}


def _read_generation(service: Service) -> int | None:
    return cast(int | None, service.get("status", {}).get("observedGeneration"))


def _read_transition(service: Service) -> str | None:
    return cast(str | None, service.get("status", {}).get("modelStatus", {}).get("transitionStatus"))
