"""What an InferenceService says: of which version it is, what it was before, and how far KServe has got with it.

KServe knows revisions, not versions. Which version a specification is of, and what was served before it, is therefore
recorded in annotations. They change only when the model does: KServe hands annotations on to the pods, so that any
other change would start new ones.
"""

import json
from typing import Any, cast

VERSION = "imagepipe.dev/version"
BEFORE = "imagepipe.dev/before"
"""What was served before, newest first: objects with ``version`` and ``predictor``, its specification."""
REVISIONS = "imagepipe.dev/revisions"
"""The versions of the revisions that there were before this version's: an object. All others are of this version."""

_MODE = "serving.kserve.io/deploymentMode"
_WITHOUT_REVISIONS = ("RawDeployment", "Standard")  # the older and the newer name of the mode

Service = dict[str, Any]
"""An InferenceService as the API gives it."""

NOTHING: Service = {"metadata": {}, "spec": {"predictor": {}}}


def without_percent(predictor: dict[str, Any]) -> dict[str, Any]:
    """A predictor's specification, whatever share it has."""
    return {key: value for key, value in predictor.items() if key != "canaryTrafficPercent"}


def annotated(service: Service) -> str:
    """The version that the specification is of."""
    return str(service["metadata"]["annotations"][VERSION])


def before(service: Service) -> list[dict[str, Any]]:
    """What was served before it, see ``BEFORE``."""
    return cast(list[dict[str, Any]], json.loads(service["metadata"]["annotations"].get(BEFORE, "[]")))


def percent(service: Service) -> int:
    """The share that the specification gives to its version once it runs."""
    given = service["spec"]["predictor"].get("canaryTrafficPercent")
    return 100 if given is None else int(given)


def _predictor_status(service: Service) -> dict[str, Any]:
    return cast(dict[str, Any], service.get("status", {}).get("components", {}).get("predictor", {}))


def mode(service: Service) -> str | None:
    """KServe's deployment mode, as far as it is known."""
    told = service.get("status", {}).get("deploymentMode")
    return told or (service["metadata"].get("annotations") or {}).get(_MODE)


def is_raw(service: Service) -> bool:
    """Whether there is a Deployment in place of Knative's revisions."""
    return mode(service) in _WITHOUT_REVISIONS


def _has_newest_revision(service: Service) -> bool:
    """Whether the revision that was made last is one that requests can go to."""
    told = _predictor_status(service)
    return bool(told.get("latestCreatedRevision")) and told.get("latestReadyRevision") == told["latestCreatedRevision"]


def is_rolled_out(service: Service) -> bool:
    """Whether the specification's version is what gets all requests, apart from what is being changed."""
    return percent(service) == 100 and (is_raw(service) or _has_newest_revision(service))


def nothing_live(service: Service) -> bool:
    """Whether no revision has ever had all requests."""
    return not is_raw(service) and not _predictor_status(service).get("latestRolledoutRevision")


def held(service: Service, share: int) -> int:
    """A share for the newest revision; where KServe splits nothing, all."""
    return 100 if is_raw(service) or nothing_live(service) else share


def _share(service: Service) -> int:
    """Percent of the requests that the newest revision gets."""
    if not _has_newest_revision(service):
        return 0
    told = _predictor_status(service)
    newest = told["latestReadyRevision"]
    return sum(part.get("percent") or 0 for part in told.get("traffic", []) if part.get("revisionName") == newest)


def shares(service: Service) -> dict[str, int]:
    """By version, percent of the requests; only those that get any."""
    if is_raw(service):
        return {annotated(service): 100}
    found: dict[str, int] = {}
    for part in _predictor_status(service).get("traffic", []):
        version = _of_revision(service, part["revisionName"])
        found[version] = found.get(version, 0) + (part.get("percent") or 0)
    return {version: share for version, share in found.items() if share}


def revisions(service: Service) -> dict[str, str]:
    """The versions of the revisions that requests can go to, for ``REVISIONS`` of the next version."""
    told = _predictor_status(service)
    names = {told.get("latestReadyRevision"), *(part["revisionName"] for part in told.get("traffic", []))}
    return {name: _of_revision(service, name) for name in sorted(filter(None, names))}


def _of_revision(service: Service, name: str) -> str:
    recorded = json.loads(service["metadata"]["annotations"].get(REVISIONS, "{}"))
    return cast(str, recorded.get(name, annotated(service)))


def _conditions(service: Service) -> dict[str, dict[str, Any]]:
    return {condition["type"]: condition for condition in service.get("status", {}).get("conditions", [])}


def _is_true(service: Service, condition: str) -> bool:
    return bool(_conditions(service).get(condition, {}).get("status") == "True")


def is_ready(service: Service) -> bool:
    """Whether the specification is in effect."""
    return _is_true(service, "Ready") and (is_raw(service) or _has_newest_revision(service))


def reason(service: Service) -> str:
    """Why a service is not ready, in KServe's words."""
    conditions = _conditions(service)
    words = []
    for name in ("PredictorConfigurationReady", "PredictorReady", "IngressReady", "Ready"):
        condition = conditions.get(name, {})
        if condition.get("status") in ("False", "Unknown") and (condition.get("message") or condition.get("reason")):
            words.append(f"{name}: {condition.get('message') or condition['reason']}")
            break
    if _transition(service) in ("BlockedByFailedLoad", "InvalidSpec"):  # else it tells of an earlier failure
        failure = service["status"]["modelStatus"].get("lastFailureInfo", {})
        words.append(f"{failure.get('reason', 'failure')}: {failure.get('message') or 'no message'}")
    return "; ".join(words) or "KServe has said nothing of it yet"


def template(service: Service) -> object:
    """All of a specification that makes a revision: a change of it is a new one."""
    metadata = service["metadata"]
    return without_percent(service["spec"]["predictor"]), metadata.get("annotations"), metadata.get("labels")


def has_arrived(service: Service, old: Service, anew: bool, share: int) -> bool:
    """Whether a change is in effect.

    KServe's ``observedGeneration`` is that of what it made of the service, so it can only be compared with itself.

    Args:
        service: as it is now.
        old: as it was before the change.
        anew: whether the change makes a new revision.
        share: percent of the requests that the newest revision is to get.
    """
    if is_raw(service):
        is_seen = not anew or _observed(service) != _observed(old)
        return is_seen and _is_true(service, "Ready") and _transition(service) in (None, "", "UpToDate")
    return (not anew or _has_new_revision(service, old)) and is_ready(service) and _share(service) == share


def _observed(service: Service) -> int | None:
    return cast(int | None, service.get("status", {}).get("observedGeneration"))


def _has_new_revision(service: Service, old: Service) -> bool:
    created = "latestCreatedRevision"
    return bool(_predictor_status(service).get(created) != _predictor_status(old).get(created))


def has_failed(service: Service, old: Service) -> bool:
    """Whether KServe has given a change up; what it says of the revision before, which may be broken, is no sign."""
    if _transition(service) == "InvalidSpec":
        return _transition(old) != "InvalidSpec"
    conditions = _conditions(service)
    if is_raw(service):
        return bool(conditions.get("PredictorReady", {}).get("reason") == "ProgressDeadlineExceeded")
    failed = conditions.get("PredictorConfigurationReady", {}).get("status") == "False"
    return failed and _has_new_revision(service, old)


def _transition(service: Service) -> str | None:
    return cast(str | None, service.get("status", {}).get("modelStatus", {}).get("transitionStatus"))
