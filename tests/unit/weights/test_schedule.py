from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.errors import DigestError, ImageError, NotFoundError
from slimgpu.weights import schedule as module
from slimgpu.weights.index import Chunk, Index
from slimgpu.weights.schedule import RANGE, Range, Schedule, ranges

pytestmark = pytest.mark.timeout(60)
_D = "sha256:" + "0" * 64


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HEDGE_AFTER", 0.1)
    monkeypatch.setattr(module, "_PAUSE", 0.01)


def some(count: int) -> list[Range]:
    return [Range(0, 10 * number, 10, [number]) for number in range(count)]


def index_of(*chunks: tuple[int, int, int]) -> Index:
    made = tuple(Chunk(blob, offset, stored, stored, "raw", 0, _D, _D) for blob, offset, stored in chunks)
    return Index("slimgpu.weights.v1", _D, (), made, ())


def test_neighbours_are_read_together_up_to_a_bound() -> None:
    mib = 2**20
    index = index_of((0, 0, 3 * mib), (0, 3 * mib, 3 * mib), (0, 6 * mib, 3 * mib), (0, 9 * mib + 9, mib), (1, 0, 5),
                     (1, 5 + 200_000, 5), (1, 0, 5), (2, 0, 20 * mib))  # fmt: skip
    found = ranges(index, range(8))
    assert [(each.blob, each.offset, each.size, each.chunks) for each in found] == [
        (0, 0, 6 * mib, [0, 1]),
        (0, 6 * mib, 4 * mib + 9, [2, 3]),
        (1, 0, 5, [4]),
        (1, 200_005, 5, [5]),
        (1, 0, 5, [6]),
        (2, 0, 20 * mib, [7]),
    ]


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 9 * 2**20), st.integers(1, 2**23)), max_size=9))
def test_ranges_hold_all_chunks(places: list[tuple[int, int, int]]) -> None:
    index = index_of(*places)
    found = ranges(index, range(len(places)))
    assert [number for each in found for number in each.chunks] == list(range(len(places)))
    for each in found:
        for number in each.chunks:
            chunk = index.chunks[number]
            assert each.blob == chunk.blob
            assert each.offset <= chunk.offset
            assert chunk.offset + chunk.stored <= each.offset + each.size
        assert each.size <= RANGE or len(each.chunks) == 1


def test_ranges_come_in_order_and_end() -> None:
    schedule = Schedule(some(3), 1)
    taken = [schedule.take(0) for _ in range(3)]
    assert [each.offset for each in taken if each] == [0, 10, 20]
    for each in taken:
        assert each is not None
        schedule.complete(each, 0)
    assert schedule.take(0) is None
    assert schedule.wait(0) == (True, 30, 0)


def test_nothing_to_fetch_is_over() -> None:
    assert Schedule([], 2).wait(0) == (True, 0, 0)
    assert Schedule([], 2).take(0) is None


def take(schedule: Schedule, source: int) -> Range:
    each = schedule.take(source)
    assert each is not None
    return each


def test_what_one_source_lacks_another_gets_at_once() -> None:
    schedule = Schedule(some(2), 2)
    first = take(schedule, 0)
    schedule.give_back(first, 0, NotFoundError("no"))
    assert take(schedule, 1) is first
    assert take(schedule, 0).offset == 10


def test_the_last_error_ends_the_fetch() -> None:
    schedule = Schedule(some(1), 2)
    schedule.give_back(take(schedule, 0), 0, NotFoundError("first"))
    for attempt in range(3):
        assert schedule.wait(0)[0] is False
        schedule.give_back(take(schedule, 1), 1, ImageError(f"attempt {attempt}"))
    with pytest.raises(ImageError, match="attempt 2"):
        schedule.wait(0)
    assert schedule.take(0) is None
    assert schedule.take(1) is None


def test_a_source_that_fails_is_left_alone_while_another_does_not() -> None:
    schedule = Schedule(some(9), 2)
    for _ in range(3):
        schedule.give_back(take(schedule, 0), 0, DigestError("lies"))
        schedule.complete(take(schedule, 1), 1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(schedule.take, 0)
        for _ in range(6):
            schedule.complete(take(schedule, 1), 1)
        assert waiting.result() is None
    assert schedule.wait(0) == (True, 90, 0)


def test_sources_that_all_fail_are_all_asked_again() -> None:
    schedule = Schedule(some(5), 2)
    for _ in range(4):
        for source in (0, 1):
            schedule.give_back(take(schedule, source), source, ImageError("passing"))
    for number in range(5):
        schedule.complete(take(schedule, number % 2), number % 2)
    assert schedule.wait(0) == (True, 50, 0)


def test_one_source_is_given_time_to_recover(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads ask it, its attempts at a range are apart."""
    monkeypatch.setattr(module, "_PAUSE", 0.05)
    schedule = Schedule(some(1), 1)
    times: list[float] = []

    def work() -> None:
        while (each := schedule.take(0)) is not None:
            times.append(module.time.monotonic())
            schedule.give_back(each, 0, ImageError("passing"))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(times) == 3
    assert times[1] - times[0] >= 0.05
    assert times[2] - times[1] >= 0.1


def test_a_slow_range_is_begun_again_by_another_source() -> None:
    schedule = Schedule(some(1), 2)
    slow = take(schedule, 0)
    assert take(schedule, 1) is slow
    schedule.complete(slow, 1)
    assert schedule.wait(0) == (True, 10, 0)
    schedule.complete(slow, 0)  # later; counts once
    assert schedule.wait(0) == (True, 10, 0)


def test_the_source_that_is_slow_does_not_help_itself_when_another_can() -> None:
    schedule = Schedule(some(1), 2)
    slow = take(schedule, 0)
    with ThreadPoolExecutor(1) as pool:
        same = pool.submit(schedule.take, 0)
        threading.Event().wait(0.3)
        assert not same.done()
        assert take(schedule, 1) is slow
        schedule.complete(slow, 1)
        assert same.result() is None


def test_alone_it_does() -> None:
    schedule = Schedule(some(1), 2)
    schedule.give_back(take(schedule, 1), 1, NotFoundError("no"))
    slow = take(schedule, 0)
    assert take(schedule, 0) is slow


def test_a_slow_range_that_fails_is_left_to_the_other_thread() -> None:
    schedule = Schedule(some(1), 2)
    slow = take(schedule, 0)
    assert take(schedule, 1) is slow
    schedule.give_back(slow, 0, ImageError("at last"))
    schedule.complete(slow, 1)
    assert schedule.wait(0) == (True, 10, 0)


def test_a_source_that_hangs_does_not_keep_what_another_failed_at() -> None:
    """One passing failure of the good source must not leave its range to the one that hangs."""
    schedule = Schedule(some(3), 2)
    take(schedule, 0)  # and hangs for ever, as all threads of this source
    failed = take(schedule, 1)
    schedule.answered(1)
    schedule.give_back(failed, 1, ImageError("passing"))
    found = [take(schedule, 1), take(schedule, 1)]
    assert failed in found
    for each in found:
        schedule.complete(each, 1)
    schedule.complete(take(schedule, 1), 1)
    assert schedule.wait(0) == (True, 30, 0)


def test_who_has_never_answered_gets_one_range_at_a_time_unless_it_is_the_first() -> None:
    schedule = Schedule(some(9), 2)
    assert [take(schedule, source).offset for source in (0, 0, 1, 0)] == [0, 10, 20, 30]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(schedule.take, 1)
        assert take(schedule, 0).offset == 40
        assert not waiting.done()
        schedule.answered(1)
        found = waiting.result()
    assert found is not None
    assert found.offset == 50


def test_who_refuses_is_asked_again_and_who_lacks_a_range_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE", 1000.0)
    schedule = Schedule(some(9), 2)
    first = take(schedule, 1)
    schedule.give_back(first, 1, ImageError("refused"))
    second = take(schedule, 1)
    assert second is not first
    schedule.give_back(second, 1, NotFoundError("no"))
    assert [take(schedule, 1).offset for _ in range(2)] == [20, 30]


def test_a_dead_source_gets_no_second_range_when_its_first_was_had_elsewhere() -> None:
    schedule = Schedule(some(3), 2)
    schedule.answered(0)
    held = take(schedule, 1)
    for each in (take(schedule, 0), take(schedule, 0), take(schedule, 0)):
        schedule.complete(each, 0)
    assert held.done
    schedule.add(Range(0, 99, 1, [99]))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(schedule.take, 1)
        schedule.complete(take(schedule, 0), 0)
        assert waiting.result() is None


@pytest.mark.parametrize("dead", [0, 1])
def test_what_comes_first_does_not_wait_for_who_has_never_answered(dead: int) -> None:
    """Even while there is more to fetch."""
    schedule = Schedule(some(10_000), 2)
    held, alive = take(schedule, dead), 1 - dead
    schedule.answered(alive)
    while (each := take(schedule, alive)) is not held:
        threading.Event().wait(0.001)
        schedule.complete(each, alive)
    assert schedule.wait(0)[2] > 1


def test_stopping_and_failing_end_every_thread() -> None:
    for end in (Schedule.stop, lambda schedule: schedule.fail(OSError("full"))):
        schedule = Schedule(some(1), 2)
        each = take(schedule, 0)
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(schedule.take, number % 2) for number in range(4)]
            end(schedule)
            assert [found.result() for found in waiting if found.result() is not each] in ([None] * 4, [None] * 3)


@given(st.data())
def test_whatever_fails_all_is_delivered_or_an_error_raised(data: st.DataObject) -> None:
    sources = data.draw(st.integers(1, 3))
    count = data.draw(st.integers(1, 6))
    schedule = Schedule(some(count), sources)
    outcomes = {(s, r): data.draw(st.sampled_from(["good", "good", "passing", "gone", "bad"]))
                for s in range(sources) for r in range(count)}  # fmt: skip
    delivered: set[int] = set()
    lock = threading.Lock()
    asked: dict[tuple[int, int], int] = {}

    def work(source: int) -> None:
        while (each := schedule.take(source)) is not None:
            [number] = each.chunks
            with lock:
                times = asked[source, number] = asked.get((source, number), 0) + 1
            outcome = outcomes[source, number]
            if outcome == "good" or (outcome == "passing" and times > 2):
                with lock:
                    delivered.add(number)
                schedule.complete(each, source)
            else:
                schedule.give_back(each, source, NotFoundError("gone") if outcome == "gone" else ImageError(outcome))

    threads = [threading.Thread(target=work, args=(number % sources,)) for number in range(2 * sources)]
    for thread in threads:
        thread.start()
    possible = all(any(outcomes[s, r] in ("good", "passing") for s in range(sources)) for r in range(count))
    try:
        while not schedule.wait(1)[0]:
            pass
    except (ImageError, NotFoundError):
        assert not possible
    else:
        assert possible
        assert delivered == set(range(count))
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert all(times <= 3 + 2 for times in asked.values())
