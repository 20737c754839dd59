"""The outcome of a run's push as text, for the command line and the dashboard."""

import json
import shlex
from pathlib import Path

from pipeline.runs import provenance
from pipeline.runs.summary import Summary


def describe_push(summary: Summary) -> str:
    """Returns what became of a blessed model; '' if it was not blessed, or the run did not get as far as the push."""
    if summary.push is None:
        return f"pushed as version {summary.pushed_version}" if summary.pushed_version else ""  # by older versions
    version = summary.push.version
    match summary.push.outcome:
        case "pushed":
            return f"pushed as version {version}"
        case "already_deployed":
            return f"not pushed again, as it is version {version} already"
        case "rolled_back":
            return f"not pushed, as it is version {version}, which was rolled back"
        case "replaced":
            return f"not pushed, as it is version {version}, which another version has replaced"


def describe_traffic(summary: Summary) -> str:
    """Returns which versions get requests, as the target said at the end of the run."""
    if summary.traffic is None:
        return "could not be asked what is live"
    if list(summary.traffic.values())[:1] == [100]:
        live, *shadows = (f"version {version}" for version in summary.traffic)
        live = ", ".join([f"{live} is live", *(f"{shadow} in shadow" for shadow in shadows)])
    else:
        shares = ", ".join(f"version {version} gets {percent}%" for version, percent in summary.traffic.items())
        live = f"{shares} of the requests" if shares else "nothing is live"
    pushed = summary.pushed_version
    return live if pushed is None or pushed in summary.traffic else f"{live}; version {pushed} gets none now"


def is_in_service(summary: Summary) -> bool:
    """Returns whether a run's model gets requests or is in shadow, as far as the target could be asked."""
    return summary.pushed_version is not None and (summary.traffic is None or summary.pushed_version in summary.traffic)


def describe_trial(summary: Summary) -> str:
    """Returns how a run's model is tried: ``a canary`` gets a part of the requests, one ``in shadow`` none; else ''."""
    traffic = (summary.traffic or {}).get(summary.pushed_version or "", 100)
    return {0: "in shadow", 100: ""}.get(traffic, "a canary")


def make_deploy_command(summary: Summary, traffic: int | None = None) -> str:
    """Returns the command that deploys a run's model whatever the gate said, to where the run would have pushed it.

    Args:
        summary: the run's summary.
        traffic: percent of the requests that the model gets; by default ``deploy.traffic``.
    """
    run = Path(summary.log).parent
    command = ["imagepipe", "deploy", str(run), "--config", str(run / provenance.CONFIG)]
    # A JSON string is one in YAML as well, whatever is in it; a path as it is might hold a comment or a mapping.
    command += ["--set", f"deploy.path={json.dumps(summary.serving_dir, ensure_ascii=False)}"]
    return shlex.join(command + ([] if traffic is None else ["--traffic", str(traffic)]))
