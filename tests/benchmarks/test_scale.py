"""The tables of the page of scale, from the recorded results and from others."""

import json
import re

import pytest

from benchmarks import results, scale
from tools.docs_hooks import on_page_markdown


def test_each_stage_is_computed_from_a_recorded_benchmark_and_only_training_ends_to_grow():
    hours = scale.compute_hours()
    for name, by_count in hours.items():
        few, many = by_count[10**6], by_count[10**9]
        assert many == pytest.approx(few if name == "training on a sample" else 1000 * few), name
        assert few > 0


def test_the_tables_follow_the_records(tmp_path, monkeypatch):
    records = {
        "ingest": {"images_per_second": {"ingest": 1000}},
        "beam_steps": {"cpu_milliseconds_per_image": {"ImportExampleGen": 0.9, "StatisticsGen": 0.18}},
        "data_check_rows": {"100": {"cpu_seconds": 5}, "1100": {"cpu_seconds": 41}},
        "transfer": {"seconds": {"ours": 81}},
        "batch_predict": {"images_per_second": {"ours, OpenVINO, small": 20}},
    }
    for name, figures in records.items():
        record = {"date": "2026-01-01", "processor": "one", "cores": 2, "claims": [], "figures": figures}
        (tmp_path / f"{name}.json").write_text(json.dumps({"records": [record]}))
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    rows = dict(re.findall(r"^\| ([^|]+) \| [^|]* \| ([^|]+) \|", scale.render(), re.MULTILINE))
    assert {name: float(rows[name]) for name in ("ingest", "ImportExampleGen", "StatisticsGen", "DataCheck")} == {
        "ingest": 0.56,  # 10^6 images times 2 cores / 1000 images a second, in hours
        "ImportExampleGen": 0.25,
        "StatisticsGen": 0.05,
        "DataCheck": 10,
    }
    assert (rows["training on a sample"], rows["batch prediction"]) == ("100", "28")
    (tmp_path / "ingest.json").unlink()
    with pytest.raises(SystemExit, match=r"ingest\.json is missing"):
        scale.render()


def test_the_page_has_the_tables():
    page = type("Page", (), {"file": type("File", (), {"src_uri": "scale.md"})})
    text = (results.ROOT / "docs" / "scale.md").read_text()
    assert scale.render() in on_page_markdown(text, page)
    with pytest.raises(ValueError, match=r"docs/scale\.md has no"):
        on_page_markdown("nothing", page)
