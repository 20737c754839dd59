import psutil

from serving import memory


def test_what_was_freed_between_what_stays_goes_back_to_the_system():
    process = psutil.Process()
    freed = [bytearray(100_000) for _ in range(2000)]  # glibc maps larger ones, and unmaps them at once
    stays = bytearray(100_000)
    for each in freed:
        each[::4096] = bytes(len(each[::4096]))  # only a page that was written counts
    held = process.memory_info().rss
    each = None
    freed.clear()
    memory.give_back()
    assert held - process.memory_info().rss > 150_000_000
    assert stays
