import dataclasses
import logging
import re
import shutil

import pytest

from imagepipe.base import progress
from imagepipe.base.errors import IngestError, UnavailableError
from imagepipe.ingest import steps
from imagepipe.ingest.command import ingest


@pytest.mark.parametrize("group", [None, r"[abc]/(\d)"])
def test_a_runner_of_beam_makes_the_same_dataset_as_this_process(group, folders, put, crops, tree, tmp_path):
    source, out = folders
    beam, options = tmp_path / "beam", {"group": group, "sync": True}

    def ingest_twice():
        here = ingest(str(source), str(out), **options)
        there = ingest(str(source), str(beam), **options, beam_args=["--direct_num_workers=1"])
        assert dataclasses.replace(here, overview=None) == dataclasses.replace(there, overview=None)
        present, expected = tree(beam), tree(out)
        assert {name: data for name, (data, _) in present.items()} == {
            name: data for name, (data, _) in expected.items()
        }
        return here

    put("source/a/bad.jpg", b"no image")
    shutil.copy(source / "a/00.jpg", source / "a/00 copy.jpg")
    assert (first := ingest_twice()).new == 30
    assert (first.quarantined, first.duplicates) == (1, 1)

    for i, data in enumerate(crops(40)[30:]):
        put(f"source/new/{i:02}.jpg", data)
    (source / "a/03.jpg").rename(source / "b/03.jpg")
    (source / "a/06.jpg").unlink()
    shutil.copy(source / "a/09.jpg", source / "b/09.jpg")
    second = ingest_twice()
    assert (second.new, second.relabelled, second.removed, second.disputed) == (10, 1, 1, 1)


def test_progress_of_a_runner_outside_this_process_comes_from_its_metrics(folders, monkeypatch):
    source, out = folders
    (source / "a" / "bad.jpg").write_bytes(b"no image")
    asked = []
    shown = progress.show_progress
    monkeypatch.setattr(progress, "show_progress", lambda *arguments: asked.extend(arguments) or shown(*arguments))
    # It is taken for one that reports from elsewhere.
    ingest(str(source), str(out), beam_args=["--runner=FnApiRunner"])
    total, _, counts = asked
    assert total == 31
    assert counts() == {"read": 31, "checked and written": 31}


def test_beam_logs_as_it_did_after_an_ingest(put, crops, tmp_path, monkeypatch, caplog):
    from imagepipe.ingest import beam_pipeline

    put("source/a/1.png", crops(1)[0])
    logger = logging.getLogger("apache_beam.runners.common")
    monkeypatch.setattr(beam_pipeline, "build", lambda *_: logger.error("raised as well"))
    with caplog.at_level(logging.INFO, logger=logger.name):
        with pytest.raises(IngestError, match="don't add up"):
            ingest(tmp_path / "source", tmp_path / "out", beam_args=["--direct_num_workers=1"])
        assert logger.level == logging.INFO
    assert "raised as well" not in caplog.text


def test_an_error_of_ours_in_a_step_of_beam_keeps_its_words(folders):
    source, out = folders
    ingest(str(source), str(out))
    index = next(out.glob("index/train-*.jsonl"))
    index.write_text("{\n")
    with pytest.raises(IngestError) as raised:
        ingest(str(source), str(out), beam_args=["--direct_num_workers=1"])
    assert re.fullmatch(rf"{index}, line 1 is damaged: restore .* into a new folder\.", str(raised.value))


def test_a_job_that_fails_elsewhere_is_one_message_and_nothing_is_written(folders, monkeypatch):
    source, out = folders

    def fail(*_: object) -> None:
        raise KeyError("the client's own trouble\nin two lines")

    monkeypatch.setattr(steps, "write", fail)
    # It is taken for a runner that is elsewhere.
    with pytest.raises(
        UnavailableError, match=r"^The job on FnApiRunner failed: .*in two lines.*\. Nothing was written"
    ):
        ingest(str(source), str(out), beam_args=["--runner=FnApiRunner"])
    assert [path.name for path in out.iterdir()] == [".lock"]
    with pytest.raises(KeyError, match="own trouble"):  # a defect of ours, which shows where it is
        ingest(str(source), str(out), beam_args=["--direct_num_workers=1"])
