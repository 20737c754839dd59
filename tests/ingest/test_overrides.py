"""Decisions of people (labels.jsonl) override what a source says, by the image's hash."""

import hashlib
import json
from collections import Counter

import pytest
from typer.testing import CliRunner

from imagepipe.base.decisions import hash_given_labels, read_given_labels
from imagepipe.base.errors import IngestError
from imagepipe.ingest import dataset
from imagepipe.ingest.command import ingest
from pipeline.cli import app
from pipeline.runs.provenance import fingerprint_dataset
from tests.ingest.test_source_is_right import list_records, photos_of_two  # noqa: F401 (a fixture)


def hash_file(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_labels(path, *decisions, by="ann"):
    """Writes (hash, label) or (hash, label, by) as lines of a file."""
    lines = [
        json.dumps(
            {"sha256": sha256, "metadata": sha256[:4], "label": label, "by": who[0] if who else by, "at": "2026"}
        )
        for sha256, label, *who in decisions
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def count_effects(lines, out) -> Counter:
    return Counter(entry["effect"] for entry in lines(out / "overrides.jsonl"))


def test_corrections_exclusions_and_additions_override_the_source(photos_of_two, crops, put, records, lines, tmp_path):  # noqa: F811
    source, out = photos_of_two
    present = list_records(records, out)
    wrong, right, bad = (hash_file(source / name) for name in ("a/00.jpg", "a/02.jpg", "b/01.jpg"))
    new = hashlib.sha256(crops(14)[13]).hexdigest()
    put(f"labels.images/{new}", crops(14)[13])
    put("labels.images/notes.txt", b"no decision names it")
    decisions = ((wrong, "c"), (wrong, "b"), (right, "a"), (bad, None), (new, "d"), ("0" * 64, "a"), ("1" * 64, "x\ny"))
    labels = write_labels(tmp_path / "labels.jsonl", *decisions)
    result = ingest(source, out, labels=labels)
    assert (result.read, result.new, result.relabelled, result.already) == (13, 1, 1, 10)
    assert (result.quarantined, result.excluded, result.disputed, result.gone) == (1, 1, 0, 0)
    now = list_records(records, out)
    assert now[wrong] == (b"b", b"a/00.jpg", present[wrong][2])  # its split stays
    assert now[new][:2] == (b"d", new[:4].encode())
    assert bad not in now
    assert {sha256: record for sha256, record in now.items() if sha256 not in (wrong, new)} == {
        sha256: record for sha256, record in present.items() if sha256 not in (wrong, bad)
    }
    counts = [split.labels for split in dataset.load(str(out)).splits.values()]
    assert [sum(some.get(label, 0) for some in counts) for label in "abcd"] == [5, 6, 0, 1]
    ((reason,),) = [[entry["reason"] for entry in lines(out / "quarantine.jsonl")]]
    assert reason == f"excluded by a person: {labels}"
    effects = {"corrected": 1, "confirmed": 1, "added": 1, "excluded": 1, "nowhere": 1, "refused": 1}
    assert count_effects(lines, out) == effects
    told = next(note for note in result.notes if "overrides the source" in note)
    assert "Decisions: 6: 1 give another label than the source; 1 give the source's label; 1 add an image" in told
    assert "Classes that only decisions give, of no source: d." in result.notes


def test_a_file_that_is_named_by_the_hash_of_another_image_is_quarantined(photos_of_two, crops, put, lines, tmp_path):  # noqa: F811
    source, out = photos_of_two
    present = hash_file(source / "a/00.jpg")
    put(f"labels.images/{'a' * 64}", crops(14)[13])
    put(f"labels.images/{'b' * 64}", (source / "a/00.jpg").read_bytes())
    decisions = (("a" * 64, "a"), ("b" * 64, "b"), (present, "a"))
    result = ingest(source, out, labels=write_labels(tmp_path / "labels.jsonl", *decisions))
    assert (result.read, result.already, result.quarantined, result.new, result.relabelled) == (14, 12, 2, 0, 0)
    reasons = {entry["path"].rpartition("/")[2]: entry["reason"] for entry in lines(out / "quarantine.jsonl")}
    assert reasons.keys() == {"a" * 64, "b" * 64}
    assert reasons["b" * 64].startswith(f"its name is the hash of another image, its own is {present}: ")
    assert count_effects(lines, out) == {"nowhere": 2, "confirmed": 1}


def test_the_dataset_remembers_the_file_until_it_is_told_otherwise(photos_of_two, tmp_path, lines):  # noqa: F811
    source, out = photos_of_two
    wrong, bad = hash_file(source / "a/00.jpg"), hash_file(source / "b/01.jpg")
    labels = write_labels(tmp_path / "labels.jsonl", (wrong, "b"), (bad, None))
    ingest(source, out, labels=labels)
    again = ingest(source, out)
    assert (again.relabelled, again.already, again.quarantined, again.excluded) == (0, 11, 1, 0)
    assert count_effects(lines, out) == {"corrected": 1, "excluded": 1}
    assert read_given_labels(str(out)) == {wrong: "b"}
    write_labels(labels, (wrong, "a"))
    assert ingest(source, out).relabelled == 1
    labels.rename(tmp_path / "moved.jsonl")
    with pytest.raises(IngestError, match=r"labels\.jsonl can't be read: .*--labels none to take the source's own"):
        ingest(source, out)
    write_labels(tmp_path / "moved.jsonl", (wrong, "b"))
    assert ingest(source, out, labels=tmp_path / "moved.jsonl").relabelled == 1
    back = ingest(source, out, labels="none")
    assert (back.new, back.relabelled, back.already, back.quarantined) == (0, 1, 11, 0)
    assert lines(out / "overrides.jsonl") == []
    assert (read_given_labels(str(out)), hash_given_labels(str(out))) == ({}, "")
    assert "overrides the source" not in " ".join(ingest(source, out).notes)


def test_people_who_disagree_are_listed_and_the_newest_line_holds(photos_of_two, tmp_path, lines, records):  # noqa: F811
    source, out = photos_of_two
    one, two = hash_file(source / "a/00.jpg"), hash_file(source / "a/02.jpg")
    decisions = ((one, "b", "ann"), (one, "c", "bob"), (two, "c", "ann"), (two, "b", "ann"))
    labels = write_labels(tmp_path / "labels.jsonl", *decisions)
    with labels.open("a") as file:
        file.write('{"sha256": "' + one)  # a writer that was killed
    result = ingest(source, out, labels=labels)
    assert list_records(records, out)[one][0] == b"c"
    assert (
        f"1 images have different labels by different people, of which the newest holds: {one[:4]} (ann: b, bob: c)."
        in (result.notes)
    )
    assert f"{labels}, line 5 is passed over: it is no JSON, as when its writer was killed." in result.notes
    assert [entry.get("disputed") for entry in lines(out / "overrides.jsonl") if entry["sha256"] == one] == [
        {"ann": "b", "bob": "c"}
    ]


def test_a_decision_settles_copies_whose_labels_are_disputed(photos_of_two, tmp_path, put, lines):  # noqa: F811
    source, out = photos_of_two
    data = (source / "a/00.jpg").read_bytes()
    put("photos/b/copy.jpg", data)
    put("more/b/other.jpg", data)
    put("more/a/alone.jpg", (source / "a/02.jpg").read_bytes() + b"x")
    assert ingest(source, out).disputed == 1
    sha256 = hash_file(source / "a/00.jpg")
    labels = write_labels(tmp_path / "labels.jsonl", (sha256, "a"))
    result = ingest(source, out, labels=labels)
    assert (result.new, result.duplicates, result.quarantined) == (1, 1, 0)
    other = ingest(tmp_path / "more", out)  # of another source, where it has another label
    assert (other.new, other.disputed, other.quarantined, other.duplicates) == (1, 0, 0, 1)
    write_labels(labels, (sha256, "b"), (hash_file(tmp_path / "more/a/alone.jpg"), None))
    third = ingest(source, out)
    assert (third.relabelled, third.disputed, third.excluded) == (1, 0, 1)  # excluded whichever source has it
    assert count_effects(lines, out) == {"corrected": 1, "excluded": 1}


def test_several_labels_and_numbers_are_read_as_the_task_wants_them(put, crops, tmp_path, records):
    for number, data in enumerate(crops(4)):
        put(f"{number}.jpg", data)
    hashes = [hash_file(tmp_path / f"{number}.jpg") for number in range(4)]
    put("tags.csv", b"path,label\n0.jpg,a\n1.jpg,a|b\n2.jpg,b\n3.jpg,b\n")
    labels = write_labels(tmp_path / "labels.jsonl", (hashes[0], ["b", "a"]), (hashes[1], []), (hashes[2], 3))
    result = ingest(tmp_path / "tags.csv", tmp_path / "tags", task="multilabel", labels=labels)
    assert "1 have a label that can't be used" in " ".join(result.notes)
    by_hash = records(tmp_path / "tags")
    assert [[*by_hash[some][1]["label"].bytes_list.value] for some in hashes[:3]] == [
        [b"a", b"b"],
        [b"a", b"b"],
        [b"3"],
    ]
    put("tags.jsonl", json.dumps({"path": "0.jpg", "label": ["a|b"]}).encode())
    labels = write_labels(tmp_path / "labels.jsonl", (hashes[0], ["a", "b"]))
    result = ingest(tmp_path / "tags.jsonl", tmp_path / "barred", task="multilabel", labels=labels)
    assert "1 give another label than the source" in " ".join(result.notes)
    put("prices.csv", b"path,label\n0.jpg,1\n1.jpg,2\n2.jpg,3\n3.jpg,4\n")
    labels = write_labels(tmp_path / "prices.jsonl", (hashes[0], 2.5), (hashes[1], "dear"))
    result = ingest(tmp_path / "prices.csv", tmp_path / "prices", task="regression", labels=labels)
    assert "1 give another label than the source; 1 have a label that can't be used" in " ".join(result.notes)
    assert records(tmp_path / "prices")[hashes[0]][1]["label"].float_list.value[0] == 2.5


def test_decisions_are_listed_with_the_labels_that_the_records_have(put, crops, tmp_path):
    """DataCheck asks again about images whose labels are others than those that people decided on."""
    for number, data in enumerate(crops(4)):
        put(f"{number}.jpg", data)
    hashes = [hash_file(tmp_path / f"{number}.jpg") for number in range(4)]
    put("tags.csv", b"path,label\n0.jpg,x\n1.jpg,x\n2.jpg,x\n3.jpg,x\n")
    spelled = ["b|a", " cafe\u0301", [" b", "a"], 7]
    labels = write_labels(tmp_path / "labels.jsonl", *zip(hashes, spelled, strict=True))
    ingest(tmp_path / "tags.csv", tmp_path / "tags", task="multilabel", labels=labels)
    given = read_given_labels(str(tmp_path / "tags"))
    assert [given[some] for some in hashes] == [["a", "b"], "caf\u00e9", ["a", "b"], 7]


def test_lineage_names_the_file_of_decisions(photos_of_two, tmp_path):  # noqa: F811
    source, out = photos_of_two
    sha256, other = hash_file(source / "a/00.jpg"), hash_file(source / "a/02.jpg")
    labels = write_labels(tmp_path / "labels.jsonl", (sha256, "b"), (other, None))
    answer = CliRunner().invoke(app, ["ingest", str(source), "--out", str(out), "--labels", str(labels)])
    assert answer.exit_code == 0, answer.output
    origin = fingerprint_dataset(str(out))
    assert origin.ingests[-1] == f"1 relabelled, 1 excluded from {source}, labels overridden by {labels}"


@pytest.mark.slow
def test_beam_takes_the_same_decisions(photos_of_two, tmp_path, lines):  # noqa: F811
    source, out = photos_of_two
    labels = write_labels(tmp_path / "labels.jsonl", (hash_file(source / "a/00.jpg"), "b"))
    result = ingest(source, out, labels=labels, beam_args=["--runner=DirectRunner"])
    assert result.relabelled == 1
    assert count_effects(lines, out) == {"corrected": 1}
