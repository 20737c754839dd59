"""The figures of `imagepipe monitor` computed again, from the files alone, and compared with its JSON and its page."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from playwright.sync_api import Browser, Page
from scipy import stats


def make_bins(expected: np.ndarray) -> list[Callable[[np.ndarray], np.ndarray]]:
    """Whether numbers are at a decile of what is expected, or between two of them."""
    edges = sorted(set(np.quantile(expected, np.linspace(0, 1, 11)[1:-1])))
    bins: list[Callable[[np.ndarray], np.ndarray]] = [lambda x, e=edge: x == e for edge in edges]
    ends = zip([-np.inf, *edges], [*edges, np.inf], strict=True)
    return bins + [lambda x, a=a, b=b: (x > a) & (x < b) for a, b in ends]


def measure_numbers(values: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Kolmogorov-Smirnov's p, and Jensen's and Shannon's divergence over the deciles of what is expected."""
    divergence = 0.0
    for is_in in make_bins(expected):
        one, other = float(is_in(values).mean()), float(is_in(expected).mean())
        divergence += sum(share * math.log2(2 * share / (one + other)) / 2 for share in (one, other) if share)
    return float(stats.kstest(values, expected, method="asymp").pvalue), divergence


def find_most_frequent(values: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Which values are of the kind that is more frequent than expected, by a larger factor than any other kind."""
    bins = make_bins(expected)
    factors = [is_in(values).mean() / max(is_in(expected).mean(), 0.5 / len(expected)) for is_in in bins]
    return bins[int(np.argmax(factors))](values)


def measure_labels(labels: list[str], expected: list[str]) -> tuple[float, float]:
    """Fisher's p of the share that differs most clearly, times their number, and the largest difference of a share."""
    ps, differences = [], []
    for name in {*labels, *expected}:
        table = [[some.count(name), len(some) - some.count(name)] for some in (labels, expected)]
        ps.append(stats.fisher_exact(table).pvalue)
        differences.append(abs(table[0][0] / len(labels) - table[1][0] / len(expected)))
    return min(1.0, min(ps) * len(ps)), max(differences)


def measure_vectors(vectors: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """The clearest of the four main directions, by another decomposition."""
    both = np.concatenate([vectors, expected]).astype(np.float64)
    both -= both.mean(axis=0)
    projected = both @ np.linalg.svd(both, full_matrices=False)[2][:4].T
    measured = [measure_numbers(column[: len(vectors)], column[len(vectors) :]) for column in projected.T]
    p, divergence = min(measured)
    return min(1.0, 4 * p), divergence


def measure_by_hand(rows: pd.DataFrame, reference: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """p and distance of each measure."""
    splits = {name: reference[reference["split"] == name] for name in ("train", "eval")}
    measured = {
        name: measure_numbers(rows[name].to_numpy(float), splits["train"][name].to_numpy(float))
        for name in ("width", "height", "aspect", "bytes", "brightness", "contrast")
    }
    for name in ("score", "novelty"):
        measured[name] = measure_numbers(rows[name].to_numpy(float), splits["eval"][name].to_numpy(float))
    measured["label"] = measure_labels([*rows["label"]], [*splits["eval"]["label"]])
    vectors = (np.stack([*side["embedding"]]).astype(np.float32) for side in (rows, splits["eval"]))
    measured["embedding"] = measure_vectors(*vectors)
    return measured


def find_moved(measured: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """p by Holm's procedure of the measures that have moved: by chance hardly, and by more than the limit."""
    moved, largest = {}, 0.0
    for rank, (name, (p, distance)) in enumerate(sorted(measured.items(), key=lambda item: item[1][0])):
        largest = max(largest, p * (len(measured) - rank))
        if largest < 0.05 and distance > (0.05 if name == "label" else 0.02):
            moved[name] = largest
    return moved


def read_titles(opened: Page) -> dict[str, dict[str, str]]:
    """Returns what the charts' points say, by chart and by what is before the colon."""
    charts = opened.locator("#days ~ .charts figure")
    return {
        chart.locator("figcaption").inner_text(): dict(
            title.rsplit(": ", 1) for title in chart.locator("circle title").all_text_contents()
        )
        for chart in charts.all()
    }


def estimate_by_hand(right: int, count: int) -> tuple[float, float, float]:
    """A share and Wilson's interval."""
    z, share = 1.959964, right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return share, middle - half, middle + half


def find_tolerance(measure: str) -> float:
    """How far a distance may be off: a direction's sign is chance, and moves images that lie on an edge."""
    return 0.02 if measure == "embedding" else 1e-6


def check_monitor(told: dict, page: str, browser: Browser, rows: pd.DataFrame, reference: Path, truth: dict) -> None:
    """Every figure of `monitor`, of its page too, of one version on one day."""
    (part,) = told["parts"]
    expected = pd.read_parquet(reference)
    measured = measure_by_hand(rows, expected)
    assert (part["images"], part["labels"]) == (len(rows), dict(Counter(rows["label"])))
    milliseconds = np.percentile(rows["milliseconds"].astype(float), (50, 95))
    assert [*part["milliseconds"].values()] == pytest.approx(milliseconds, rel=1e-4)
    assert part["comparisons"]
    for one in part["comparisons"]:
        p, distance = measured[one["measure"]]
        assert one["p"] == pytest.approx(p, rel=1e-3, abs=1e-9), one
        assert one["distance"] == pytest.approx(distance, abs=find_tolerance(one["measure"])), one
    assert told["moved"] == sorted(find_moved(measured))
    right = sum(label == truth[one] for one, label in zip(rows["metadata"], rows["label"], strict=True))
    (accuracy,) = told["feedback"]["accuracies"]
    estimated = estimate_by_hand(right, len(rows))
    assert (accuracy["value"], *accuracy["interval"]) == pytest.approx(estimated, rel=1e-4)

    opened = browser.new_page()
    opened.set_content(page)
    cells = opened.get_by_role("region", name="Traffic by day and version").locator("tbody td").all_inner_texts()
    names = [text.split()[0] for text in opened.locator("#traffic ~ * thead th").all_inner_texts()[5:]]
    assert cells[:4] == [f"{len(rows):,}", *(f"{value:.1f}" for value in milliseconds), "0"]
    shown = dict(zip(names, cells[4:], strict=True))
    moved = find_moved(measured)
    assert {name for name, text in shown.items() if "moved" in text} == moved.keys()
    verdict = "\n".join(opened.locator(".verdict li").all_inner_texts())
    sentences = re.findall(r": (\w+) differs from .*: distance (\S+), p = (\S+)$", verdict, re.MULTILINE)
    assert {name: (float(distance), float(p)) for name, distance, p in sentences} == {
        name: (
            pytest.approx(measured[name][1], abs=0.0006 + find_tolerance(name)),
            pytest.approx(p, rel=0.06, abs=1e-9 if name == "embedding" else 1e-300),
        )
        for name, p in moved.items()
    }
    assert {name: float(text.split()[0]) for name, text in shown.items()} == {
        name: pytest.approx(measured[name][1], abs=0.0006 + find_tolerance(name)) for name in shown
    }
    listed = opened.get_by_role("region", name="Accuracy by version and slice").locator("tbody tr").all_inner_texts()
    figures = {text.partition("\t")[0]: [float(x) for x in re.findall(r"\d\.\d{4}", text)] for text in listed}
    slices = {"all images": estimated}
    for name in {truth[one] for one in rows["metadata"]}:
        of = rows[rows["metadata"].map(truth) == name]
        slices[f"label: {name}"] = estimate_by_hand(int((of["label"] == name).sum()), len(of))
    assert figures == {name: pytest.approx(values, abs=0.00006) for name, values in slices.items()}
    table = opened.get_by_role("region", name="Labels by version").locator("tbody tr").all_inner_texts()
    shares = {label: (float(evaluated), float(share)) for label, evaluated, share in (row.split("\t") for row in table)}
    splits = {name: expected[expected["split"] == name] for name in ("train", "eval")}
    counts = [(Counter(some["label"]), len(some)) for some in (splits["eval"], rows)]
    assert shares == {
        label: tuple(pytest.approx(counted[label] / total, abs=0.0006) for counted, total in counts)
        for label in counts[0][0] | counts[1][0]
    }
    titles, of = read_titles(opened), f"{part['day']}, version {part['version']}"
    for name in ("width", "height", "aspect", "bytes", "brightness", "contrast", "score", "novelty"):
        split, shown_as = ("eval", "eval split") if name in ("score", "novelty") else ("train", "training images")
        assert titles[f"Mean {name}"] == {
            of: f"{rows[name].astype(float).mean():.4g} of {len(rows):,} images",
            shown_as: f"{splits[split][name].mean():.4g}",
        }, name
    opened.close()
