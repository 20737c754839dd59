"""Which columns of a dataset a network should not see: ids, paths, dates, splits, and what gives the label away."""

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import islice

from imagepipe.base import filesystem, splits, tfrecord
from imagepipe.base.errors import IngestError
from imagepipe.base.kinds import SUFFIXES
from imagepipe.base.names import TaskName
from imagepipe.ingest import shards
from imagepipe.ingest.dataset import Dataset

_MAX_ROWS, _MAX_BYTES = 5000, 2**30  # of the train split, in the order of hashes: as good as drawn at random
_MIN_ROWS = 30  # fewer tell little: thirty people rarely have thirty ages, and twenty do
_MIN_HELD_OUT = 8
_ROWS_OF_OTHERS = 200  # of each other split
_MOST = 0.95  # a few values may be odd
_MIN_GAIN = 0.95  # of what there is to gain over the most frequent label
_MIN_RANK_CORRELATION = 0.999

_SPLITS = {*splits.NAMES, "holdout"}
_PATH = re.compile(
    rf"(?i).*\.({'|'.join(SUFFIXES)}|dcm|npy|json|xml|txt)|(/|[a-z]:\\|[a-z]+://).+"
    r"|[^/\s]+(/[^/\s]+){2,}"
)
_DATE = re.compile(
    r"\d{4}(?P<between>[-/.:])\d{1,2}(?P=between)\d{1,2}([T _].*)?"
    r"|\d{1,2}(?P<other>[-/.])\d{1,2}(?P=other)(\d{4}|\d{2})([T ,].*)?"
    r"|(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])"
    r"|(\d{1,2}\.? )?[^\W\d_]{3,9}\.? (\d{1,2}(st|nd|rd|th)?,? )?(19|20)\d\d"
    r"|\d{1,2}[-/.][^\W\d_]{3,9}[-/.](19|20)\d\d([T ,].*)?"
    r"|(?i:\d{1,2}-(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)-\d\d([T ,].*)?)"
)
_SECONDS_SINCE_1970 = (631_152_000, 4_102_444_800)  # of the years 1990 to 2100

Value = str | int | float
Example = Mapping[str, Sequence[bytes | int | float]]


def find_unsuitable_columns(folder: str, dataset: Dataset, names: Sequence[str]) -> dict[str, str]:
    """Returns why columns should not enter the network, as text by name; nothing for those that may.

    Judged by at most 5,000 images of the train split; whether it is a copy of the split, also by some of the others. A
    column gives the label away if its values, as they went with labels in one half of the images, tell the labels of
    the other half.

    Args:
        folder: of the dataset.
        dataset: its description.
        names: of side features.

    Raises:
        OSError: the dataset can't be read.
        IngestError: it is damaged.
    """
    if not names:
        return {}
    columns: dict[str, list[Value | None]] = {name: [] for name in names}
    labels: list[tuple[Value, ...]] = []
    for example in _read_sample(folder, dataset, "train", _MAX_ROWS):
        labels.append(tuple(_make_plain(value) for value in example["label"]))
        for name, values in columns.items():
            values.append(_read_value(example, name))
    others = [
        example
        for split in dataset.splits.keys() - {"train"}
        for example in _read_sample(folder, dataset, split, _ROWS_OF_OTHERS)
    ]
    problems = {}
    for name, values in columns.items():
        present = [value for value in values if value is not None]
        in_all = {*present, *(_read_value(example, name) for example in others)} - {None}
        if problem := (
            _judge_kind(present, {str(value).lower() for value in in_all})
            or _judge_values(present)
            or _judge_relation(values, labels, dataset.options.task)
        ):
            problems[name] = f"{name}: {problem}"
    return problems


def _read_sample(folder: str, dataset: Dataset, split: str, most: int) -> Iterator[Example]:
    files = (filesystem.join(folder, shard.file) for shard in dataset.splits[split].shards)
    records = (record for file in files for record in shards.read_records(file, dataset.options.compress))
    total = 0
    try:
        for record in islice(records, most):
            yield tfrecord.decode_example(record)
            total += len(record)
            if total > _MAX_BYTES:
                return
    except (EOFError, ValueError, zlib.error) as error:
        raise IngestError(f"{folder} is damaged: {error}. Ingest its source into a new folder.") from error


def _read_value(example: Example, name: str) -> Value | None:
    return next(map(_make_plain, example.get(name, [])), None)


def _make_plain(value: bytes | int | float) -> Value:
    return tfrecord.to_text(value) if isinstance(value, bytes) else value


def _judge_kind(values: Sequence[Value], in_all: Set[str]) -> str | None:
    """Returns why a column's values are of a kind that may not enter, None if they aren't.

    Args:
        values: of the train split, without those that are missing.
        in_all: the different values in all splits, in lower case: a copy of the split is constant in one of them.
    """
    if not values:
        return None
    example, texts = _write_example(values), [_spell(value) for value in set(values)]
    if len(in_all) > 1 and in_all <= _SPLITS:
        return f"its values are splits, {example}"
    numbers = _list_numbers(values)
    if not numbers and _are_most(_PATH, texts):
        return f"its values are paths or file names, {example}"
    start, end = _SECONDS_SINCE_1970
    seconds = any(all(start * unit <= value < end * unit for value in numbers) for unit in (1, 1000))
    if (numbers and seconds) or _are_most(_DATE, texts):
        return f"its values are dates, {example}, and new images have later ones"
    return None


def _judge_values(values: Sequence[Value]) -> str | None:
    """Returns why a column tells images apart, whatever the labels are; None if it doesn't, or values are too few."""
    if len(values) < _MIN_ROWS:
        return None
    example, distinct, numbers = _write_example(values), len(set(values)), _list_numbers(values)
    is_whole = all(float(value).is_integer() for value in numbers)
    if is_whole and distinct >= _MOST * len(values):
        which = "each image" if distinct == len(values) else "nearly each image"
        return f"{which} has a value of its own, {example}, as an id is"
    # In a sample even values that are frequent in the whole of the data may be rare.
    fewest = 3 if len(values) < _MAX_ROWS else 2
    if not numbers and distinct * fewest > len(values):
        return f"it has {distinct:,} values for {len(values):,} images, {example}: new images have others"
    return None


def _list_numbers(values: Sequence[Value]) -> list[int | float]:
    return [value for value in values if not isinstance(value, str)]


def _spell(value: Value) -> str:
    return value if isinstance(value, str) else f"{value:.15g}"


def _write_example(values: Sequence[Value]) -> str:
    return f"such as {min(map(str, values))}"


def _are_most(pattern: re.Pattern[str], texts: Sequence[str]) -> bool:
    return sum(pattern.fullmatch(text) is not None for text in texts) >= _MOST * len(texts)


def _judge_relation(values: Sequence[Value | None], labels: Sequence[tuple[Value, ...]], task: TaskName) -> str | None:
    """Returns how a column gives the label away on images held out from finding that, None if it doesn't."""
    if task == "regression":
        return _judge_numbers(values, [float(label) for (label,) in labels])
    by_value: dict[Value | None, Counter[tuple[Value, ...]]] = defaultdict(Counter)
    for value, label in zip(values[::2], labels[::2], strict=True):
        by_value[value][label] += 1
    told = {value: counts.most_common(1)[0][0] for value, counts in by_value.items()}
    held_out = [(told[value], label) for value, label in zip(values[1::2], labels[1::2], strict=True) if value in told]
    if len(held_out) < _MIN_HELD_OUT:
        return None
    right = sum(guess == label for guess, label in held_out)
    usual = Counter(label for _, label in held_out).most_common(1)[0][1]
    if right - usual <= _MIN_GAIN * (len(held_out) - usual) or usual == len(held_out):
        return None
    return f"its value alone tells the label of {right:,} of {len(held_out):,} images held out from finding that"


def _judge_numbers(values: Sequence[Value | None], labels: Sequence[float]) -> str | None:
    import numpy as np
    from scipy import stats

    pairs = [(value, label) for value, label in zip(values, labels, strict=True) if isinstance(value, int | float)]
    if len(pairs) < _MIN_ROWS or min(len({pair[i] for pair in pairs}) for i in (0, 1)) < 3:
        return None
    correlation = abs(stats.spearmanr(*np.array(pairs).T).statistic)
    if correlation < _MIN_RANK_CORRELATION:
        return None
    return f"its value alone tells the label: their rank correlation is {correlation:.4f}"
