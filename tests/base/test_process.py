import psutil

from imagepipe.base.process import release_memory


def test_what_was_freed_between_what_stays_goes_back_to_the_system():
    process = psutil.Process()
    freed = [bytearray(100_000) for _ in range(2000)]  # glibc maps larger ones, and unmaps them at once
    stays = bytearray(100_000)
    for block in freed:
        block[::4096] = bytes(len(block[::4096]))  # only a page that was written counts
    size = process.memory_info().rss
    del block
    freed.clear()
    release_memory()
    assert size - process.memory_info().rss > 150_000_000
    assert stays
