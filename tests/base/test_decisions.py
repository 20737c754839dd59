"""Decisions of people in a file: none is lost, whoever writes at the same time or is killed."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from imagepipe.base.decisions import Decision, append_decision, read_decisions

HASHES = [f"{number:064x}" for number in range(400)]


def test_decisions_of_several_writers_are_all_there_and_whole(tmp_path):
    path = tmp_path / "labels.jsonl"

    def decide(number):
        append_decision(path, Decision(HASHES[number], f"é{number}", "id", by=f"person {number % 3}", model="7"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decide, range(400)))
    decisions = read_decisions(str(path))
    assert {sha256: decision.label for sha256, decision in decisions.newest.items()} == {
        sha256: f"é{number}" for number, sha256 in enumerate(HASHES)
    }
    assert (decisions.problems, decisions.disputes) == ([], {})
    assert json.loads(path.read_text().splitlines()[0]).keys() == {
        "sha256", "metadata", "label", "was", "by", "at", "model", "source",
    }  # fmt: skip


def test_what_a_killed_writer_left_costs_its_line_only(tmp_path):
    path = tmp_path / "labels.jsonl"
    append_decision(path, Decision(HASHES[0], "a"))
    whole = path.read_bytes()
    for cut in (1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole + whole.replace(b'"a"', b'"b"')[:cut])
        torn = read_decisions(str(path))
        assert torn.newest[HASHES[0]].label == ("b" if cut == len(whole) - 1 else "a")
        append_decision(path, Decision(HASHES[1], "c"))
        after = read_decisions(str(path))
        assert after.newest[HASHES[1]].label == "c"
        assert len(after.problems) == len(torn.problems) == (0 if cut == len(whole) - 1 else 1)


def test_the_newest_line_holds_and_can_be_undone(tmp_path):
    path = tmp_path / "labels.jsonl"
    first, second = Decision(HASHES[0], "a", by="ann"), Decision(HASHES[0], ["b", "c"], by="bob")
    for decision in (first, second, Decision(HASHES[1], None), Decision(HASHES[2], 2.5)):
        append_decision(path, decision)
    decisions = read_decisions(str(path))
    assert decisions.newest[HASHES[0]] == second
    assert decisions.disputes == {HASHES[0]: [first, second]}
    append_decision(path, Decision(HASHES[0], None, by="bob", undone=True))
    decisions = read_decisions(str(path))
    assert decisions.newest[HASHES[0]] == first
    assert decisions.newest.keys() == {*HASHES[:3]}
    assert decisions.disputes == {}


def test_who_takes_a_decision_back_takes_back_no_one_elses(tmp_path):
    path = tmp_path / "labels.jsonl"
    ann, bob = Decision(HASHES[0], "a", by="ann"), Decision(HASHES[0], "b", by="bob")
    undone_by_ann, undone_by_bob = (Decision(HASHES[0], None, by=by, undone=True) for by in ("ann", "bob"))
    holding = []
    for line in (ann, bob, undone_by_ann, undone_by_ann, undone_by_bob, bob, ann, undone_by_ann):
        append_decision(path, line)
        holding.append(read_decisions(str(path)).newest.get(HASHES[0]))
    assert holding == [ann, bob, bob, bob, None, bob, ann, bob]


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"{}",
        b'{"sha256": "x", "label": "a"}',
        b'{"sha256": "' + b"0" * 64 + b'"}',
        b'{"sha256": "' + b"0" * 64 + b'", "label": {}}',
        b'{"sha256": "' + b"0" * 64 + b'", "label": true}',
        b'{"sha256": "' + b"0" * 64 + b'", "label": [1]}',
        *(
            b'{"sha256": "' + b"0" * 64 + b'", "label": ' + label + b"}"
            for label in (b"NaN", b"-Infinity", b"1e999", b"9" * 400, rb'"\ud800"', rb'["a", "\udfff"]')
        ),
        b"[" * 100_000,
        b"x" * 3_000_000,
        b"\xff\xfe",
    ],
)
def test_a_line_that_is_no_decision_is_named_and_passed_over(line, tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_bytes(line + b"\n")
    append_decision(path, Decision(HASHES[0], "a"))
    decisions = read_decisions(str(path))
    assert [*decisions.newest] == [HASHES[0]]
    (problem,) = decisions.problems
    assert problem.startswith(f"{path}, line 1 is passed over: it")
