"""Compares two versions of a model on the same captured images: which is right more often, or how often they agree."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean

import numpy as np
import pyarrow.compute as pc
from scipy import stats

from imagepipe.base.errors import ModelError
from imagepipe.base.names import TaskName
from imagepipe.monitoring.feedback import measure_error, read_id, read_truths, warn_of_other_labels
from imagepipe.monitoring.traffic import read_tables, split_label
from imagepipe.monitoring.two_samples import estimate_share

_LEVEL = 0.95
_SIGNIFICANCE = 0.05  # p-value below which a version is better


@dataclass(frozen=True)
class Judgement:
    """Two versions on images whose true label is known.

    Attributes:
        images: their number.
        values: share of right answers of either version; of a regression the mean absolute errors.
        difference: the second's value minus the first's.
        interval: its 95 % confidence interval.
        p: probability of a difference as large by chance, two-sided.
    """

    images: int
    values: tuple[float, float]
    difference: float
    interval: tuple[float, float]
    p: float


@dataclass(frozen=True)
class Pairs:
    """Two versions on the same images.

    Attributes:
        versions: the two.
        images: number of images that both were asked about; an image is known by the hash of its bytes.
        alone: number of images that only the one was asked about.
        same: number of images with the same answer; None for a regression.
        same_interval: 95 % confidence interval of their share; None for a regression.
        mean_difference: mean absolute difference of the values of a regression, else of the scores.
        in_shadow: number of images whose answer no caller got, of either version.
        milliseconds: mean time of an answer, of either version; None where no row has one. In shadow it is that of the
            lowest priority.
        judgement: which is better; None without true labels of these images.
    """

    versions: tuple[str, str]
    images: int
    alone: tuple[int, int]
    same: int | None
    same_interval: tuple[float, float] | None
    mean_difference: float
    in_shadow: tuple[int, int]
    milliseconds: tuple[float | None, float | None]
    judgement: Judgement | None


@dataclass(frozen=True)
class _Answer:
    time: datetime
    label: str
    score: float
    milliseconds: float | None
    in_shadow: bool


def compare_versions(
    capture: str, versions: tuple[str, str], task: TaskName, truth: str | None = None, since: datetime | None = None
) -> Pairs:
    """Compares the answers of two versions to the same images.

    Args:
        capture: folder of captured traffic. Of an image that a version was asked about more than once, its last answer
            counts.
        versions: the two.
        task: of the models.
        truth: file with true labels, see ``imagepipe.monitoring.feedback``; None if there are none.
        since: leaves out what was answered before.

    Raises:
        ModelError: if no image was asked of both, or a file can't be read.
    """
    key, truths, _ = read_truths(truth, task) if truth else ("metadata", {}, {})
    owners: dict[str, set[str]] = {identity: set() for identity in truths}  # hashes of images by id
    first, second = (_read_answers(capture, version, key, owners, since) for version in versions)
    common = sorted(first.keys() & second.keys())
    if not common:
        raise ModelError(
            f"{capture}: versions {versions[0]} ({len(first):,} images) and {versions[1]} ({len(second):,} images) "
            "were asked about no image in common. `imagepipe serve --shadow` and `imagepipe batch-predict --capture` "
            "ask each about the same images"
        )
    pairs = [(first[image], second[image]) for image in common]
    warn_of_other_labels(truths.values(), {a.label for answers in (first, second) for a in answers.values()}, task)
    # Of an id with several images nobody knows which of them it means.
    by_image = {image: truths[identity] for identity, images in owners.items() if len(images) == 1 for image in images}
    same = None
    if task != "regression":
        same = sum(set(split_label(a.label, task)) == set(split_label(b.label, task)) for a, b in pairs)
    return Pairs(
        versions,
        len(pairs),
        (len(first) - len(pairs), len(second) - len(pairs)),
        same,
        None if same is None else estimate_share(same, len(pairs)),
        fmean(abs(a.score - b.score) for a, b in pairs),
        (_count_shadow(first), _count_shadow(second)),
        (_measure_time(first), _measure_time(second)),
        _judge(
            [(*pair, by_image[image]) for image, pair in zip(common, pairs, strict=True) if image in by_image], task
        ),
    )


def find_shadow(capture: str, since: datetime | None = None) -> tuple[str, str]:
    """Returns the version that answered callers last, and the one that answered in the shadow of others last.

    Args:
        capture: folder of captured traffic.
        since: leaves out what was answered before.

    Raises:
        ModelError: if nothing was answered in shadow, or a file can't be read.
    """
    last: dict[tuple[bool, str], datetime] = {}
    for _, table in read_tables(capture, ["time", "version"], since, with_shadow=True):
        for group in table.group_by(["shadow", "version"]).aggregate([("time", "max")]).to_pylist():
            place = (bool(group["shadow"]), group["version"])
            last[place] = max(group["time_max"], last.get(place, group["time_max"]))
    shadow = max((place for place in last if place[0]), key=lambda place: last[place], default=None)
    others = [place for place in last if not place[0] and shadow and place[1] != shadow[1]]
    if shadow is None or not others:
        raise ModelError(
            f"{capture}: no version answered there in the shadow of another (`imagepipe serve --shadow`). Give the two "
            "versions to compare"
        )
    return max(others, key=lambda place: last[place])[1], shadow[1]


def find_better(pairs: Pairs) -> str | None:
    """Returns the version that is better; None if no difference could be shown, or no true label is known."""
    judged = pairs.judgement
    if judged is None or judged.p >= _SIGNIFICANCE:
        return None
    is_error = pairs.same is None
    return pairs.versions[0 if (judged.difference < 0) != is_error else 1]


def _read_answers(
    capture: str, version: str, key: str, owners: Mapping[str, set[str]], since: datetime | None
) -> dict[str, _Answer]:
    """Returns the last answer of a version by the image's hash, and adds the hash to those of its id's owners."""
    answers: dict[str, _Answer] = {}
    columns = dict.fromkeys(["time", "version", "sha256", "label", "score", "milliseconds", key])
    for _, table in read_tables(capture, list(columns), since, with_shadow=True):
        for row in table.filter(pc.equal(table["version"], version)).to_pylist():
            image = row["sha256"]
            if (identity := read_id(row, key)) in owners:
                owners[identity].add(image)
            answer = _Answer(row["time"], row["label"], row["score"], row["milliseconds"], bool(row["shadow"]))
            if image not in answers or answers[image].time < answer.time:
                answers[image] = answer
    return answers


def _count_shadow(answers: Mapping[str, _Answer]) -> int:
    return sum(answer.in_shadow for answer in answers.values())


def _measure_time(answers: Mapping[str, _Answer]) -> float | None:
    times = [answer.milliseconds for answer in answers.values() if answer.milliseconds is not None]
    return fmean(times) if times else None


def _judge(cases: list[tuple[_Answer, _Answer, str]], task: TaskName) -> Judgement | None:
    """Returns which version is better, by a paired test of its answers to images with true labels; None without any.

    Right and wrong answers: McNemar's exact test (Fagerland, M. W., Lydersen, S., Laake, P. (2013): The McNemar test
    for binary matched-pairs data. BMC Medical Research Methodology 13:91), and the interval of Bonett, D. G., Price,
    R. M. (2012): Adjusted Wald confidence interval for a difference of binomial proportions based on paired data.
    Journal of Educational and Behavioral Statistics 37 (4), 479-488. Errors of a regression: a paired t-test.
    """
    errors = [[measure_error(a.label, a.score, truth, task) for a in pair] for *pair, truth in cases]
    if not errors:
        return None
    count, table = len(errors), np.array(errors)
    if task != "regression":
        table = 1 - table  # right answers
    difference = float(table[:, 1].mean() - table[:, 0].mean())
    if task == "regression":
        changes = table[:, 1] - table[:, 0]
        error = float(changes.std(ddof=1)) / math.sqrt(count) if count > 1 else math.inf
        half = float(stats.t.ppf((1 + _LEVEL) / 2, max(count - 1, 1))) * error
        if 0 < error < math.inf:
            p = float(stats.ttest_1samp(changes, 0).pvalue)
        else:  # always the same change is no chance; a single one says nothing
            p = 0.0 if error == 0 and difference else 1.0
        interval = (difference - half, difference + half)
    else:
        lost, won = (int((table[:, 0] > table[:, 1]).sum()), int((table[:, 1] > table[:, 0]).sum()))
        p = float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0
        up, down = (won + 1) / (count + 2), (lost + 1) / (count + 2)
        half = float(stats.norm.ppf((1 + _LEVEL) / 2)) * math.sqrt((up + down - (up - down) ** 2) / (count + 2))
        interval = (max(up - down - half, -1.0), min(up - down + half, 1.0))
    return Judgement(count, (float(table[:, 0].mean()), float(table[:, 1].mean())), difference, interval, p)
