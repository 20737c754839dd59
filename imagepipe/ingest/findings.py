"""Why an ingest wrote nothing: the likely mistake, and what to do about it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from imagepipe.base import filesystem
from imagepipe.base.labels import list_names
from imagepipe.ingest.parts import ARCHIVES
from imagepipe.ingest.rows import MISSING_FILE

_MAX_REASONS = 3  # that are told in full
_MISSING_LABEL, _ARCHIVE, _PARQUET = (
    "missing label",
    "not an image, but an archive",
    "not an image, but a Parquet file",
)


def explain_nothing(source: str, lists: str, quarantined: Sequence[dict[str, Any]]) -> str:
    """Returns the message of an ingest whose rows are all quarantined.

    Args:
        source: of the rows.
        lists: path of the list of what was quarantined.
        quarantined: one or more outcomes, each with ``path``, ``row`` and ``reason``.
    """
    reasons = Counter(entry["reason"] for entry in quarantined)
    if len(reasons) > _MAX_REASONS:  # what follows a colon may be of one file only
        reasons = Counter(entry["reason"].partition(": ")[0] for entry in quarantined)
    ranked = [f"{reason} ({count:,})" for reason, count in reasons.most_common()]
    first = quarantined[0]
    is_folder = first["row"] is None
    # Else it is of a file that lies beside the class folders, such as a README, and the other reasons tell more.
    is_unlabelled = 2 * reasons[_MISSING_LABEL] > len(quarantined)
    unlabelled = next((entry for entry in quarantined if is_unlabelled and entry["reason"] == _MISSING_LABEL), None)
    parquet = next((entry["path"] for entry in quarantined if entry["reason"] == _PARQUET), None)
    if set(reasons) == {MISSING_FILE} and not is_folder:
        base = source.rpartition("/")[0]
        remedy = (
            f"None of the files is there; the first that was looked for is {first['path']}. Paths in a manifest are "
            f"relative to its own folder, {base}: correct them, or move the manifest."
        )
    elif unlabelled and (archive := _find_archive(unlabelled["path"])):
        name = unlabelled["path"][len(archive) + 1 :]
        remedy = (
            f"{name} lies in no class folder of {archive}, so it has no class. Pack the images of each class in a "
            f"folder of its own (CLASS/{PurePosixPath(name).name}), or in an archive that is called as the class is "
            "(CLASS.zip), and give the folder of the archives."
        )
    elif all(reason.startswith(_ARCHIVE) for reason in reasons):
        remedy = (
            f"Unpack {first['path']} and the others; or put one per class into a folder of nothing else, each called "
            "as its class (CLASS.zip), and give that folder."
        )
    elif parquet and is_folder and reasons.most_common(1)[0][0] == _PARQUET:
        remedy = (
            f"Of several folders with Parquet files each is a source of its own: give one, such as "
            f"{parquet.rpartition('/')[0]}."
        )
    elif unlabelled and is_folder:
        name = PurePosixPath(unlabelled["path"]).name
        remedy = (
            f"The images lie in {source} itself, so they have no classes. Put those of each class into a folder of its "
            f"own ({filesystem.join(source, 'CLASS')}/{name}), or give a manifest with the columns path and label."
        )
    else:
        remedy = f"Each has its reason in {lists}."
    return (
        f"{source}: nothing to ingest, as all of {len(quarantined):,} are quarantined: {list_names(ranked)}. {remedy}"
    )


def _find_archive(path: str) -> str | None:
    """Returns the archive that an image lies in, by its path; None if it lies in none."""
    steps = path.split("/")
    places = ["/".join(steps[:at]) for at in range(1, len(steps)) if steps[at - 1].lower().endswith(ARCHIVES)]
    return next((place for place in places if filesystem.size(place) is not None), None)
