"""A crew gives what a loop gives, in order, raises what was raised, and leaves torch's threads as they were."""

import subprocess
import sys
import threading
import time

import pytest
import torch

from jacobian_core.one_thread import one_thread_each
from jacobian_core.work.crew import Crew


@pytest.mark.parametrize("size", [1, 2, 5])
def test_results_in_order(size: int) -> None:
    def work(number: int) -> int:
        time.sleep(0.01 * (number % 3 == 0))
        return number * number

    assert list(Crew(size).map(work, range(20))) == [number * number for number in range(20)]


def test_few_results_are_held() -> None:
    begun: list[int] = []
    results = Crew(2).map(lambda number: begun.append(number), range(50))
    next(results)
    time.sleep(0.05)
    assert len(begun) <= 4
    assert len(list(results)) == 49
    assert sorted(begun) == list(range(50))


def test_an_error_comes_in_its_turn_and_nothing_runs_on() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise ValueError("three")
        return number

    results = Crew(2).map(work, range(100))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert len(begun) < 10


def test_each_thread_computes_alone_and_the_setting_comes_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        threads = list(Crew(2).map(lambda _: (torch.get_num_threads(), torch.is_grad_enabled()), range(6)))
        assert set(threads) == {(1, False)}
        assert torch.get_num_threads() == 3
        unfinished = Crew(2).map(lambda number: number, range(6))
        next(unfinished)
        assert torch.get_num_threads() == 1
        unfinished.close()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_setting_comes_back_with_the_last_of_several() -> None:
    """Whoever leaves first, and had found it otherwise, does not set it back while another is at work."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        first, second = one_thread_each(), one_thread_each()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert torch.get_num_threads() == 1
        second.__exit__(None, None, None)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_work_is_done_beside_the_caller() -> None:
    names = set(Crew(2).map(lambda _: threading.current_thread().name, range(8)))
    assert threading.current_thread().name not in names


FORKING = """
import os, signal
from jacobian_core.one_thread import one_thread_each
from jacobian_core.work.crew import Crew

crew = Crew(2)
assert list(crew.map(abs, [-1, -2])) == [1, 2]
child = os.fork()
if not child:
    signal.alarm(20)  # with the parent's threads, which it does not have, it would wait for ever
    os._exit(0 if list(crew.map(abs, [-3, -4])) == [3, 4] else 1)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_process_has_threads_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_next_turn_begins_when_all_is_handed_out_and_not_before() -> None:
    crew, events = Crew(2), list[str]()
    second = threading.Thread(target=lambda: (crew.turns.next().__enter__(), events.append("second began")))
    with crew.turns.next() as turn:
        results = crew.map(lambda number: number, range(10), turn.give_up)
        next(results)
        second.start()
        second.join(0.05)
        assert events == []  # eight items are not handed out yet
        found = [next(results) for _ in range(7)]
        second.join(10)
        assert events == ["second began"]  # while the last results are still to be used
    assert [*found, *results] == list(range(1, 10))


def test_a_turn_ends_with_an_error() -> None:
    crew = Crew(1)
    with pytest.raises(ValueError, match="broken"), crew.turns.next():
        raise ValueError("broken")
    with crew.turns.next() as turn:
        turn.give_up()
        turn.give_up()  # the second time is nobody's turn to end
        other = crew.turns.next()
        with other:
            turn.give_up()
            waiting = threading.Thread(target=lambda: crew.turns.next().__enter__(), daemon=True)
            waiting.start()
            waiting.join(0.05)
            assert waiting.is_alive()
        waiting.join(10)
        assert not waiting.is_alive()
