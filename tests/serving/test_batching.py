"""Which requests share a batch, and what each caller gets of it."""

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from imagepipe.serving.batching import SharedNetwork, SharedThreads
from imagepipe.serving.limits import MAX_BATCH_PIXELS
from imagepipe.serving.types import Request

SECONDS = 60  # after which something that should happen has not


class BrokenError(Exception):
    pass


class Network:
    """Doubles numbers; keeps the sizes of its batches, and can be held up. Negative ones break it."""

    def __init__(self):
        self.sizes, self.started, self.may_go_on = [], threading.Semaphore(0), threading.Event()
        self.may_go_on.set()

    def compute(self, inputs):
        numbers = inputs["x"]
        self.sizes.append(len(numbers))
        self.started.release()
        assert self.may_go_on.wait(SECONDS)
        if numbers.min() < 0:
            raise BrokenError(f"{numbers.min():g} is negative")
        return {"y": 2 * numbers}

    def hold_up(self, calls):
        """Holds up calls, until ``may_go_on`` is set; ``sizes`` has those that come later."""
        self.may_go_on.clear()
        for call in calls:
            call()
        for _ in calls:
            assert self.started.acquire(timeout=SECONDS)
        self.sizes.clear()


def decode(requests):
    """Makes the network's inputs of requests; those without an image are broken."""
    for request in requests:
        if not request.image:
            raise BrokenError(f"{request.id} has no image")
    return number(*(float(request.id) for request in requests))


@pytest.fixture
def network():
    return Network()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(16) as pool:
        yield pool


def number(*values):
    return {"x": np.array(values, np.float64)}


def requests(*numbers):
    return [Request(str(number), b"image") for number in numbers]


def wait_until_asked(waiting, count):
    deadline = time.monotonic() + SECONDS
    while len(waiting) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_calls_that_come_while_the_network_is_busy_share_its_next_batch(network, pool):
    observed = []
    shared = SharedNetwork(network.compute, 1, range(1, 9), observed.append)
    network.hold_up([lambda: pool.submit(shared, number(0))])
    calls = [pool.submit(shared, number(value, 0)) for value in range(3)]
    wait_until_asked(shared._waiting, 3)
    network.may_go_on.set()
    assert [call.result(SECONDS)["y"].tolist() for call in calls] == [[2 * value, 0] for value in range(3)]
    assert network.sizes == [6]
    assert observed == [1, 6]


def test_a_batch_has_a_size_that_is_allowed_and_takes_no_part_of_a_call(network, pool):
    shared = SharedNetwork(network.compute, 1, (1, 2, 4), lambda size: None)
    network.hold_up([lambda: pool.submit(shared, number(0))])
    calls = []
    for values in ([1, 2], [3], [4, 5], [6], [7, 8, 9, 10]):
        calls.append(pool.submit(shared, number(*values)))
        wait_until_asked(shared._waiting, len(calls))
    network.may_go_on.set()
    assert [call.result(SECONDS)["y"].tolist() for call in calls] == [[2, 4], [6], [8, 10], [12], [14, 16, 18, 20]]
    assert network.sizes == [2, 4, 4]  # not 3, of the next two


def test_as_many_batches_are_computed_at_once_as_the_network_can(network, pool):
    shared = SharedNetwork(network.compute, 2, range(1, 9), lambda size: None)
    network.hold_up([lambda: pool.submit(shared, number(0))] * 2)
    third = pool.submit(shared, number(3))
    wait_until_asked(shared._waiting, 1)
    assert not third.done()
    network.may_go_on.set()
    assert third.result(SECONDS)["y"].tolist() == [6]


def test_an_error_of_the_network_reaches_the_callers_of_its_batch_alone(network, pool):
    shared = SharedNetwork(network.compute, 1, range(1, 9), lambda size: None)
    network.hold_up([lambda: pool.submit(shared, number(0))])
    calls = [pool.submit(shared, number(value)) for value in (1, -1)]
    wait_until_asked(shared._waiting, 2)
    network.may_go_on.set()
    for call in calls:
        with pytest.raises(BrokenError, match="-1 is negative"):
            call.result(SECONDS)
    assert shared(number(4))["y"].tolist() == [8]


def test_requests_that_come_while_all_threads_are_busy_share_a_batch(network, pool):
    shared = SharedThreads(decode, network.compute, 2, 2, range(1, 9))
    network.hold_up([lambda: pool.submit(shared, requests(0), 1)] * 2)
    calls = [pool.submit(shared, requests(value), 1) for value in range(5)]
    wait_until_asked(shared._queue._waiting, 5)
    network.may_go_on.set()
    assert [call.result(SECONDS)["y"].tolist() for call in calls] == [[2 * value] for value in range(5)]
    assert len(network.sizes) <= 2


def test_the_images_of_one_request_are_divided_among_the_threads(network):
    shared = SharedThreads(decode, network.compute, 2, 2, (1, 2, 4, 8))
    assert shared(requests(*range(8)), 1)["y"].tolist() == [2 * value for value in range(8)]
    assert network.sizes == [4, 4]
    network.sizes.clear()
    assert shared(requests(*range(37)), 1)["y"].tolist() == [2 * value for value in range(37)]
    assert max(network.sizes) == 8
    assert sum(network.sizes) == 37


def test_a_network_that_computes_one_batch_gets_all_that_wait(network, pool):
    shared = SharedThreads(decode, network.compute, 2, 1, range(1, 9))
    assert shared(requests(*range(8)), 1)["y"].tolist() == [2 * value for value in range(8)]
    assert network.sizes == [8]


def test_a_broken_image_fails_alone_and_the_network_computes_the_others_together(network, pool):
    shared = SharedThreads(decode, network.compute, 1, 1, (1, 2, 4, 8))
    network.hold_up([lambda: pool.submit(shared, requests(0), 1)])
    asked = [requests(1), [*requests(2), Request("3", b"")], requests(4), requests(5)]
    calls = []
    for one in asked:
        calls.append(pool.submit(shared, one, 1))
        wait_until_asked(shared._queue._waiting, len(calls))
    network.may_go_on.set()
    with pytest.raises(BrokenError, match="3 has no image"):
        calls[1].result(SECONDS)
    assert [calls[n].result(SECONDS)["y"].tolist() for n in (0, 2, 3)] == [[2], [8], [10]]
    assert network.sizes == [2, 1]  # the first three calls have as many images as a batch may have


def test_a_caller_with_many_images_leaves_turns_to_others(network, pool):
    shared = SharedThreads(decode, network.compute, 1, 1, (1, 2))
    network.hold_up([lambda: pool.submit(shared, requests(0), 1)])
    many = pool.submit(shared, requests(*range(20)), 1)
    wait_until_asked(shared._queue._waiting, 2)
    one = pool.submit(shared, requests(7), 1)
    wait_until_asked(shared._queue._waiting, 3)
    network.may_go_on.set()
    assert one.result(SECONDS)["y"].tolist() == [14]
    assert many.result(SECONDS)["y"].tolist() == [2 * value for value in range(20)]
    assert network.sizes.index(1) == 2


@pytest.mark.parametrize("broken", ["image", "network"])
def test_an_error_holds_nothing_once_it_was_raised(network, broken):
    """It would keep the images of a refused request in memory until a garbage collection, and a replaced model."""
    shared = SharedThreads(decode, SharedNetwork(network.compute, 1, (1, 2, 4), lambda size: None), 2, 2, (1, 2, 4))
    asked = requests(1, 2, -3) if broken == "network" else [*requests(1, 2), Request("3", b"")]
    errors = []

    def ask():
        try:
            shared(asked, 1)
        except BrokenError as error:
            errors.append(weakref.ref(error))

    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            ask()
        assert shared(requests(1, 2), 1)["y"].tolist() == [2, 4]  # the threads are through with it
        deadline = time.monotonic() + SECONDS
        while any(error() for error in errors):
            assert time.monotonic() < deadline
            time.sleep(0.001)
    finally:
        gc.enable()
    assert len(errors) == 5


def test_a_thread_outlives_outputs_that_can_not_be_handed_out(network):
    answers = iter([{"y": None}, {"y": np.array([4.0])}])
    shared = SharedThreads(decode, lambda inputs: next(answers), 1, 1, (1, 2))
    with pytest.raises(TypeError):
        shared(requests(1), 1)
    assert shared(requests(2), 1)["y"].tolist() == [4]


def test_large_photos_are_decoded_one_by_one(network, pool):
    shared = SharedThreads(decode, network.compute, 1, 1, range(1, 9))
    network.hold_up([lambda: pool.submit(shared, requests(0), 1)])
    calls = [pool.submit(shared, requests(value), MAX_BATCH_PIXELS * 2 // 3) for value in range(3)]
    wait_until_asked(shared._queue._waiting, 3)
    network.may_go_on.set()
    assert [call.result(SECONDS)["y"].tolist() for call in calls] == [[0], [2], [4]]
    assert network.sizes == [1, 1, 1]
