"""Sorting and counting of more than fits into memory: the same results."""

import pytest

from imagepipe.base import on_disk
from imagepipe.base.on_disk import DiskCounter, sort_on_disk


@pytest.mark.parametrize("count", [0, 9, 10, 95])
def test_items_are_sorted_whether_or_not_they_fit_into_memory(monkeypatch, count):
    monkeypatch.setattr(on_disk, "_IN_MEMORY", 10)
    items = [(f"é\udce9{number * 7919 % 1000:03}\n", False, None) for number in range(count)]
    assert [tuple(item) for item in sort_on_disk(items, key=lambda item: item[0])] == sorted(items)


def test_texts_are_counted_and_known_again():
    counter = DiskCounter()
    assert [counter.add(text) for text in ("a", "b", "a", "\udce9", "a")] == [1, 1, 2, 1, 3]
    assert "b" in counter
    assert "c" not in counter
