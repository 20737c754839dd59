import hashlib

import pytest

from imagepipe.base.splits import plan_draw
from imagepipe.ingest import policy
from imagepipe.ingest.holders import Listing
from imagepipe.ingest.policy import choose_split
from imagepipe.ingest.rows import digest_side


def row(path, label, line=None, split=None, group=None):
    return {
        "path": path, "row": line, "reason": None, "metadata": path, "labels": [label], "side": {}, "sha256": SHA256,
        "size": 1, "copies": [], "split": split, "group": group,
    }  # fmt: skip


DRAW = plan_draw({"train": 80, "eval": 10, "test": 10}, ())


TYPES = {"iso": "int64"}
LISTING = Listing("/source", 1, is_folder=True, sync=False)
CONTENT = b"an image"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """The files a and b, which are copies of one image."""
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / name).write_bytes(CONTENT)
    return tmp_path


def entry(shard="train/x.tfrecord", **copies):
    return {"sha256": SHA256, "copies": {path: [label] for path, label in copies.items()}, "shard": shard}


def decide(rows, index_entry=None):
    keep, outcomes = policy.decide(rows, index_entry, DRAW, LISTING, TYPES)
    return keep and keep["path"], sorted((outcome["kind"], outcome.get("path")) for outcome in outcomes)


def test_of_new_copies_the_first_path_is_kept_and_names_the_others():
    keep, outcomes = policy.decide([row("b", "x"), row("a", "x", 7), row("a", "x", 3)], None, DRAW, LISTING, TYPES)
    assert (keep["path"], keep["row"], keep["copies"]) == ("a", 3, [("a", 7), ("b", None)])
    assert outcomes == []


def test_copies_with_different_labels_are_all_quarantined_and_remembered():
    keep, outcomes = policy.decide([row("a", "dog"), row("b", "cat"), row("c", "cat")], None, DRAW, LISTING, TYPES)
    assert keep is None
    assert [outcome["reason"] for outcome in outcomes[:3]] == [
        "copies of one file carry different labels: cat, dog"
    ] * 3
    givers = dict.fromkeys("abc", LISTING.number)
    copies = {"a": ["dog"], "b": ["cat"], "c": ["cat"]}
    assert outcomes[3] == {"kind": "refused", "sha256": SHA256, "copies": copies, "givers": givers}


def test_what_is_in_already_stays_and_its_copies_are_duplicates():
    assert decide([row("a", "x")], entry(a="x")) == (None, [("already", None)])
    assert decide([row("a", "x"), row("b", "x")], entry(b="x")) == (None, [("already", None), ("duplicate", "a")])
    assert decide([row("moved", "x")], entry(a="x")) == (None, [("duplicate", "moved")])


def test_a_copy_with_another_label_takes_out_what_is_in():
    keep, outcomes = policy.decide([row("b", "y")], entry(a="x"), DRAW, LISTING, TYPES)
    assert keep is None
    assert [outcome["kind"] for outcome in outcomes] == ["quarantine", "removed", "refused"]
    assert outcomes[1]["unseen"] == ["a"]
    assert outcomes[2]["copies"] == {"a": ["x"], "b": ["y"]}


def test_a_corrected_label_replaces_the_record():
    assert decide([row("a", "y")], entry(a="x")) == ("a", [("replaced", None)])


def test_what_was_refused_stays_refused_until_its_labels_agree():
    refused = entry(shard=None, a="x", b="y")
    assert decide([row("a", "x")], refused) == (None, [("quarantine", "a"), ("refused", None)])
    assert decide([row("c", "x")], refused) == (None, [("quarantine", "c"), ("refused", None)])
    assert decide([row("b", "x")], refused) == ("b", [("accepted", None)])


def test_a_copy_that_is_gone_or_has_become_another_image_contradicts_nothing(files):
    (files / "a").unlink()
    assert decide([row("b", "y")], entry(a="x")) == ("b", [("replaced", None)])
    assert decide([row("b", "y")], entry(shard=None, a="x", b="x")) == ("b", [("accepted", None)])
    (files / "a").write_bytes(b"another image")
    keep, _ = policy.decide([row("b", "y")], entry(a="x"), DRAW, LISTING, TYPES)
    assert (keep["change"], keep["weights"]) == ("relabelled", {"train": 1})
    (files / "a").unlink()
    (files / "a").mkdir()  # it can't be looked at, so it counts
    assert decide([row("b", "y")], entry(a="x"))[0] is None


def test_a_copy_that_a_manifest_no_longer_names_contradicts_nothing():
    manifest = Listing("/list.csv", 1, is_folder=False, sync=False)
    keep, _ = policy.decide([row("b", "y")], {**entry(a="x"), "source": 1}, DRAW, manifest, TYPES)
    assert keep["change"] == "relabelled"
    keep, _ = policy.decide([row("b", "y")], {**entry(a="x"), "source": 0}, DRAW, manifest, TYPES)
    assert keep is None


def test_a_file_that_its_source_calls_otherwise_now_is_written_anew_and_counts_as_there():
    keep, outcomes = policy.decide(
        [row("b", "x")], {**entry("eval/x.tfrecord", a="x"), "source": 1}, DRAW, LISTING, TYPES
    )
    assert (keep["change"], keep["weights"]) == ("already", {"eval": 1})
    assert [outcome["kind"] for outcome in outcomes] == ["replaced"]
    assert decide([row("b", "x")], {**entry(a="x"), "source": 0}) == (None, [("duplicate", "b")])


@pytest.mark.parametrize(
    ("path", "side", "source", "change"),
    [
        ("a", {"iso": "200"}, 1, "edited"),
        ("a", {}, 1, "edited"),
        ("a", {"iso": "100", "lens": "x"}, 1, None),  # a column without a type is not written
        ("b", {"iso": "100"}, 1, "already"),
        ("b", {"iso": "200"}, 1, "edited"),
        ("a", {"iso": "200"}, 0, "edited"),
        ("a", {}, 0, None),  # as a folder has no columns, it says nothing about those that a manifest gave
        ("b", {"iso": "200"}, 0, None),
    ],
)
def test_edited_columns_are_told_from_those_that_another_source_has(path, side, source, change):
    present = {**entry(a="x"), "side": digest_side({"iso": 100}, TYPES), "source": source}
    keep, outcomes = policy.decide([{**row(path, "x"), "side": side}], present, DRAW, LISTING, TYPES)
    assert (keep and keep["change"]) == change
    assert [outcome["kind"] for outcome in outcomes] == (
        ["replaced"] if change else ["already" if path == "a" else "duplicate"]
    )


def test_a_record_that_is_written_again_is_still_known_to_be_in_other_sources():
    present = {**entry(a="x"), "source": 0, "holders": {"0": "a", "1": "b", "2": "c"}}
    keep, _ = policy.decide([row("b", "x"), row("a", "x", group="p1")], present, DRAW, LISTING, TYPES)
    assert (keep["change"], keep["holders"]) == ("edited", {"0": "a", "2": "c"})


def test_a_source_whose_copy_is_gone_no_longer_has_a_record_that_another_one_writes_again(files):
    (files / "a").unlink()
    keep, _ = policy.decide([row("b", "y")], {**entry(a="x"), "source": 0}, DRAW, LISTING, TYPES)
    assert (keep["change"], keep["holders"]) == ("relabelled", {})


def test_of_one_path_in_two_rows_the_same_one_is_compared_every_time():
    rows = [{**row("a", "x", i, split), "side": {"iso": i}} for i, split in enumerate(("train", "test"))]
    keep, _ = policy.decide(rows, None, DRAW, LISTING, TYPES)
    present = {**entry("test/x.tfrecord", a="x"), "side": digest_side(keep["side"], TYPES), "source": 1}
    keep, outcomes = policy.decide(rows, present, DRAW, LISTING, TYPES)
    assert (keep, [outcome["kind"] for outcome in outcomes]) == (None, ["duplicate", "already"])


def test_a_source_without_groups_takes_none_from_what_another_one_gave():
    present = {**entry(a="x"), "group": "p1", "source": 0}
    assert decide([row("b", "x")], present) == (None, [("duplicate", "b")])
    keep, _ = policy.decide([row("a", "y")], present, DRAW, LISTING, TYPES)
    assert keep["group"] == "p1"


def test_copies_in_different_groups_are_quarantined():
    keep, outcomes = policy.decide([row("a", "x", group="p1"), row("b", "x", group="p2")], None, DRAW, LISTING, TYPES)
    assert keep is None
    assert outcomes[0]["reason"] == "copies of one file are in different groups: p1, p2"
    keep, _ = policy.decide([row("a", "x"), row("b", "x", group="p2")], None, DRAW, LISTING, TYPES)
    assert keep["group"] == "p2"


def test_one_path_listed_twice_with_two_labels_is_a_contradiction():
    assert decide([row("a", "x", 2), row("a", "y", 3)]) == (
        None, [("quarantine", "a"), ("quarantine", "a"), ("refused", None)],
    )  # fmt: skip


def test_splits_follow_the_weights_and_the_hash_alone():
    splits = {"train": 80, "eval": 10, "test": 10}
    hashes = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(4000)]
    chosen = [choose_split(sha256, splits) for sha256 in hashes]
    assert chosen.count("train") == pytest.approx(3200, abs=100)
    assert chosen.count("eval") == pytest.approx(400, abs=60)
    assert choose_split("0" * 64, splits) == "train"
    assert choose_split("f" * 64, splits) == "test"
    assert {choose_split(sha256, {"train": 1, "eval": 0}) for sha256 in hashes} == {"train"}
    assert [choose_split(sha256, {"train": 8, "eval": 1, "test": 1}) for sha256 in hashes] == chosen


def test_the_reason_why_thousands_of_copies_are_quarantined_is_short():
    """As of a placeholder image that stands for each product: in the square of their number it would take hours."""
    _, outcomes = policy.decide(
        [row(f"{number:05}.jpg", f"product {number:05}") for number in range(20_000)], None, DRAW, LISTING, TYPES
    )
    *quarantined, refused = outcomes
    assert len(quarantined) == len(refused["copies"]) == 20_000
    assert refused["copies"]["00007.jpg"] == ["product 00007"]
    assert {outcome["reason"] for outcome in quarantined} == {
        "copies of one file carry different labels: "
        + ", ".join(f"product {number:05}" for number in range(10))
        + " and 19,990 more"
    }
