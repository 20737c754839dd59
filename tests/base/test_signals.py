"""Signals that end a process: sent to this one, and to a process that does nothing else."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from imagepipe.base import signals
from imagepipe.base.signals import Stopped, end_on_signals, hold_signals

BOTH = [signal.SIGINT, signal.SIGTERM]


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def wait() -> None:
    """Waits longer than any test takes, unless it is interrupted."""
    time.sleep(60)


@pytest.fixture(autouse=True)
def nothing_is_left():
    handlers = [signal.getsignal(number) for number in (*BOTH, signal.SIGALRM)]
    yield
    assert [signal.getsignal(number) for number in (*BOTH, signal.SIGALRM)] == handlers
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def run_until_stopped(work) -> Stopped:
    with pytest.raises(Stopped) as stopped, end_on_signals():
        work()
    return stopped.value


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_ends_the_block_and_is_named(number):
    stopped = run_until_stopped(lambda: (send(number), wait()))
    assert str(stopped) == f"stopped by {number.name}"
    assert stopped.status == 128 + number


class Swallowing:
    def __del__(self):
        send(signal.SIGTERM)


def swallow_everything() -> None:
    try:
        send(signal.SIGTERM)
    except BaseException:
        return


@pytest.mark.parametrize("swallow", [Swallowing, swallow_everything])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_whose_exception_got_lost_is_raised_again_or_at_the_end_of_the_block_at_the_latest(swallow):
    run_until_stopped(lambda: (swallow() and None, wait()))
    run_until_stopped(lambda: swallow() and None)


def test_a_signal_that_a_library_turned_into_an_error_of_its_own_is_still_a_signal():
    def work() -> None:
        try:
            send(signal.SIGTERM)
            wait()
        except BaseException as error:
            raise RuntimeError("UnknownError") from error

    assert isinstance(run_until_stopped(work).__cause__, RuntimeError)


def test_cleaning_up_on_the_way_is_not_interrupted_by_a_second_signal():
    cleaned = []

    def work() -> None:
        try:
            send(signal.SIGTERM)
            wait()
        finally:
            send(signal.SIGTERM)
            send(signal.SIGINT)
            time.sleep(1.5)  # in which it would be raised again
            cleaned.append(True)

    run_until_stopped(work)
    assert cleaned


def test_a_signal_that_comes_while_the_block_is_left_sets_no_timer_that_would_kill_the_process(monkeypatch):
    original = signal.setitimer

    def disturb(which: int, seconds: float) -> None:
        original(which, seconds)
        if not seconds:
            send(signal.SIGALRM)

    monkeypatch.setattr(signals.signal, "setitimer", disturb)
    run_until_stopped(lambda: (send(signal.SIGTERM), wait()))
    run_until_stopped(lambda: swallow_everything() and None)


def test_errors_of_the_block_stay_what_they_are():
    with pytest.raises(ZeroDivisionError), end_on_signals():
        _ = 1 / 0


def test_handlers_of_the_application_stay_in_place():
    received = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        with end_on_signals():
            send(signal.SIGTERM)
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_outside_the_main_thread_nothing_is_changed():
    entered = []

    def enter() -> None:
        with end_on_signals(), hold_signals() as is_stopped:
            entered.append(is_stopped())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [False]


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_that_is_held_back_takes_effect_after_the_block(number):
    steps = []

    def work() -> None:
        with hold_signals() as is_stopped:
            steps.append(is_stopped())
            send(number)
            steps.append(is_stopped())
        steps.append("after it")

    assert str(run_until_stopped(work)) == f"stopped by {number.name}"
    assert steps == [False, True]


def test_a_signal_that_is_held_back_takes_effect_also_if_the_block_fails():
    def work() -> None:
        with hold_signals():
            send(signal.SIGTERM)
            raise ValueError

    run_until_stopped(work)


def test_a_signal_that_is_ignored_stays_ignored():
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as for a command in the background of a script
    try:
        with end_on_signals(), hold_signals() as is_stopped:
            send(signal.SIGINT)
            assert not is_stopped()
    finally:
        signal.signal(signal.SIGINT, previous)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, -signal.SIGINT)])
def test_without_a_handler_a_signal_that_is_held_back_ends_the_process(number, status):
    code = (
        "import os, signal\nfrom imagepipe.base.signals import hold_signals\n"
        f"with hold_signals(): os.kill(os.getpid(), {int(number)}); print('saved', flush=True)\nprint('went on')"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert (process.returncode, process.stdout) == (status, "saved\n")
