"""Folder to TFRecord: how many files a reader has to follow, and in which order."""

from imagepipe.ingest.command import ingest
from tests.walks import walk

# In docs/architecture.md too. All work is seen, as threads do it: Beam is imported, so that no process is forked.
WALK = [
    "imagepipe/ingest/command.py",
    "imagepipe/ingest/dataset.py",
    "imagepipe/ingest/sources.py",
    "imagepipe/ingest/commit.py",
    "imagepipe/ingest/rows.py",
    "imagepipe/ingest/steps.py",
    "imagepipe/ingest/records.py",
    "imagepipe/ingest/policy.py",
    "imagepipe/ingest/outcomes.py",
    "imagepipe/ingest/shards.py",
]


def test_from_folder_to_tfrecord_in_at_most_ten_files(put, crops, tmp_path):
    import apache_beam  # noqa: F401

    for i, data in enumerate(crops(3)):
        put(f"source/{'ab'[i % 2]}/{i}.jpg", data)
    files = walk(lambda: ingest(str(tmp_path / "source"), str(tmp_path / "out"), workers=1))
    assert files == WALK
    assert len(files) <= 10
