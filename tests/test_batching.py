"""Concurrent requests share a pass; nobody waits for company, and a bad request fails alone."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest

from inference.batching import Batcher, ForwardFailed, Overloaded

GOOD, BAD = ("p", "h"), ("bad", "h")


class Model:
    """Stands in for a predictor: a pass waits at `gate`, and a bad pair makes it fail."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.started = threading.Event()
        self.passes: list[int] = []

    def begin(self, pairs, *, abreast=False):
        return lambda: self.logits(pairs)

    def logits(self, pairs):
        self.passes.append(len(pairs))
        self.started.set()
        self.gate.wait(10)
        if BAD in pairs:
            raise RuntimeError("CUDA out of memory")
        return np.array([[len(p), len(h), i] for i, (p, h) in enumerate(pairs)], dtype=np.float32)


@pytest.fixture
def model():
    return Model()


def queued(batcher: Batcher, n: int) -> None:
    """Wait until n jobs are in the queue (the batcher's own condition tells of nothing earlier)."""
    deadline = threading.Event()
    for _ in range(1000):
        with batcher._lock:
            if len(batcher._queue) >= n:
                return
        deadline.wait(0.01)
    raise AssertionError("nobody queued")


def test_a_lone_request_runs_at_once(model):
    model.gate.set()
    logits = Batcher(max_pairs=8, max_waiting=8).run(model.begin, [GOOD, GOOD])
    assert logits.shape == (2, 3)
    assert model.passes == [2]


def test_requests_that_arrive_during_a_pass_share_the_next_one_and_get_their_own_rows(model):
    batcher = Batcher(max_pairs=8, max_waiting=100)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(batcher.run, model.begin, [GOOD])
        assert model.started.wait(10)
        others = [pool.submit(batcher.run, model.begin, [("x" * n, "h")] * n) for n in (1, 2, 3)]
        queued(batcher, 3)
        model.gate.set()
        assert first.result(10).shape == (1, 3)
        for n, other in zip((1, 2, 3), others, strict=True):
            assert other.result(10)[:, 0].tolist() == [n] * n
    assert model.passes == [1, 6]


def test_a_pass_holds_no_more_than_max_pairs_but_a_larger_request_still_goes(model):
    batcher = Batcher(max_pairs=4, max_waiting=100)
    with ThreadPoolExecutor(4) as pool:
        pool.submit(batcher.run, model.begin, [GOOD])
        assert model.started.wait(10)
        others = [pool.submit(batcher.run, model.begin, [GOOD] * n) for n in (3, 3, 9)]
        queued(batcher, 3)
        model.gate.set()
        for other in others:
            other.result(10)
    assert sorted(model.passes) == [1, 3, 3, 9]


def test_small_requests_wait_for_a_slice_of_a_large_one(model):
    """… whose rows come back in order all the same."""
    batcher = Batcher(max_pairs=100, max_waiting=1000)
    large = [("p" * n, "h") for n in range(200)]
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(batcher.run, model.begin, large)
        assert model.started.wait(10)
        others = [pool.submit(batcher.run, model.begin, [GOOD]) for _ in range(2)]
        queued(batcher, 2)
        model.gate.set()
        for other in others:
            assert other.result(10).shape == (1, 3)
        assert first.result(10)[:, 0].tolist() == list(range(200))
    # Alone again it speeds up.
    assert model.passes == [4, 2, 4, 4, 8, 16, 32, 64, 68]


def test_a_large_request_and_small_ones_take_turns(model):
    batcher = Batcher(max_pairs=70, max_waiting=1000)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(batcher.run, model.begin, [GOOD])
        assert model.started.wait(10)
        small = pool.submit(batcher.run, model.begin, [GOOD] * 10)
        queued(batcher, 1)
        large = pool.submit(batcher.run, model.begin, [GOOD] * 66)
        queued(batcher, 2)
        model.gate.set()
        assert [len(each.result(10)) for each in (first, small, large)] == [1, 10, 66]
    assert model.passes == [1, 4, 10, 4, 4, 8, 16, 30]


def test_a_large_request_alone_goes_in_few_passes(model):
    model.gate.set()
    rows = Batcher(max_pairs=100, max_waiting=1000).run(model.begin, [GOOD] * 300)
    assert rows.shape == (300, 3)
    assert model.passes == [4, 4, 8, 16, 32, 64, 100, 72]


def test_a_large_request_fails_as_a_whole_and_alone(model):
    batcher = Batcher(max_pairs=100, max_waiting=1000)
    with ThreadPoolExecutor(3) as pool:
        large = pool.submit(batcher.run, model.begin, [*[GOOD] * 68, BAD, *[GOOD] * 90])
        assert model.started.wait(10)
        small = pool.submit(batcher.run, model.begin, [GOOD])
        queued(batcher, 1)
        model.gate.set()
        assert small.result(10).shape == (1, 3)
        with pytest.raises(ForwardFailed, match="out of memory"):
            large.result(10)
    # Nothing of it afterwards.
    assert model.passes == [4, 1, 4, 4, 8, 16, 32, 64]
    assert batcher.run(model.begin, [GOOD]).shape == (1, 3)


def test_different_predictors_never_share_a_pass(model):
    batcher, other = Batcher(max_pairs=8, max_waiting=100), Model()
    other.gate.set()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(batcher.run, model.begin, [GOOD])
        assert model.started.wait(10)
        second = pool.submit(batcher.run, other.begin, [GOOD])
        queued(batcher, 1)
        model.gate.set()
        first.result(10)
        second.result(10)
    assert (model.passes, other.passes) == ([1], [1])


def test_a_bad_request_fails_alone(model):
    batcher = Batcher(max_pairs=8, max_waiting=100)
    with ThreadPoolExecutor(3) as pool:
        pool.submit(batcher.run, model.begin, [GOOD])
        assert model.started.wait(10)
        good = pool.submit(batcher.run, model.begin, [GOOD])
        bad = pool.submit(batcher.run, model.begin, [BAD])
        queued(batcher, 2)
        model.gate.set()
        assert good.result(10).shape == (1, 3)
        with pytest.raises(ForwardFailed, match="out of memory"):
            bad.result(10)


def test_the_queue_is_bounded(model):
    batcher = Batcher(max_pairs=4, max_waiting=4)
    with ThreadPoolExecutor(3) as pool:
        pool.submit(batcher.run, model.begin, [GOOD])
        assert model.started.wait(10)
        waiting = pool.submit(batcher.run, model.begin, [GOOD] * 4)
        queued(batcher, 1)
        with pytest.raises(Overloaded, match="4 pairs are waiting"):
            batcher.run(model.begin, [GOOD])
        model.gate.set()
        waiting.result(10)


def test_what_is_left_of_a_request_takes_nobody_elses_place(model):
    batcher = Batcher(max_pairs=100, max_waiting=4)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(batcher.run, model.begin, [GOOD] * 200)
        assert model.started.wait(10)
        second = pool.submit(batcher.run, model.begin, [GOOD] * 4)
        queued(batcher, 1)
        with pytest.raises(Overloaded, match="4 pairs are waiting"):
            batcher.run(model.begin, [GOOD])
        model.gate.set()
        assert second.result(10).shape == (4, 3)
        assert first.result(10).shape == (200, 3)


def test_the_model_is_at_work_again_before_anybody_is_told_of_the_last_pass(model):
    batcher = Batcher(max_pairs=8, max_waiting=100)
    told = []

    class Second(Model):
        def begin(self, pairs, *, abreast=False):
            told.append(first.done())
            return super().begin(pairs)

    second = Second()
    second.gate.set()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(batcher.run, model.begin, [GOOD])
        assert model.started.wait(10)
        other = pool.submit(batcher.run, second.begin, [GOOD])
        queued(batcher, 1)
        model.gate.set()
        assert first.result(10).shape == other.result(10).shape == (1, 3)
    assert told == [False]


def test_what_cannot_begin_fails_alone(model):
    """Also where it is somebody else's thread that begins it."""
    batcher = Batcher(max_pairs=8, max_waiting=100)

    def begin(pairs, *, abreast=False):
        raise TypeError("of another engine")

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(batcher.run, model.begin, [GOOD])
        assert model.started.wait(10)
        bad = pool.submit(batcher.run, begin, [GOOD])
        queued(batcher, 1)
        good = pool.submit(batcher.run, model.begin, [GOOD])
        queued(batcher, 2)
        model.gate.set()
        with pytest.raises(ForwardFailed, match="another engine"):
            bad.result(10)
        assert first.result(10).shape == good.result(10).shape == (1, 3)


class Abreast:
    """Computes passes abreast; each ends when it is told to."""

    def __init__(self) -> None:
        self.passes: list[tuple[int, bool]] = []
        self.ends: list[threading.Event] = []
        self.changed = threading.Condition()

    def begin(self, pairs, *, abreast=False):
        end = threading.Event()
        with self.changed:
            self.passes.append((len(pairs), abreast))
            self.ends.append(end)
            self.changed.notify_all()

        def rows():
            assert end.wait(10)
            return np.array([[len(p)] for p, _ in pairs], dtype=np.float32)

        return rows

    def started(self, n: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.passes) >= n, 10)


def test_many_leave_in_passes_abreast_that_end_when_they_end():
    model, batcher = Abreast(), Batcher(max_pairs=64, max_waiting=100, at_once=2)
    with ThreadPoolExecutor(20) as pool:
        first = pool.submit(batcher.run, model.begin, [GOOD])
        model.started(1)
        others = [pool.submit(batcher.run, model.begin, [("p" * n, "h")]) for n in range(10)]
        queued(batcher, 10)
        model.ends[0].set()
        model.started(3)
        assert first.result(10).shape == (1, 1)
        assert model.passes == [(1, False), (5, True), (5, True)]

        # The second ends first; who comes then has its cores, and waits for nobody.
        model.ends[2].set()
        list(islice(as_completed(others, timeout=10), 5))
        later = pool.submit(batcher.run, model.begin, [GOOD])
        model.started(4)
        assert model.passes[3] == (1, True)
        waits = pool.submit(batcher.run, model.begin, [GOOD] * 3)
        queued(batcher, 1)  # there are no more than two
        model.ends[3].set()
        model.started(5)
        assert model.passes[4] == (3, True)
        for end in model.ends:
            end.set()
        assert [len(each.result(10)) for each in (later, waits)] == [1, 3]
        found = [other.result(10)[0, 0] for other in others]
        assert found == list(range(10))

        # Idle again: the next has all cores.
        alone = pool.submit(batcher.run, model.begin, [GOOD] * 40)
        model.started(6)
        assert model.passes[5] == (40, False)
        model.ends[5].set()
        alone.result(10)


def test_passes_abreast_are_of_one_size():
    """Nobody is in a long pass where the next would be short."""
    model, batcher = Abreast(), Batcher(max_pairs=64, max_waiting=100, at_once=2)
    with ThreadPoolExecutor(30) as pool:
        asked = [pool.submit(batcher.run, model.begin, [GOOD])]
        model.started(1)
        asked += [pool.submit(batcher.run, model.begin, [GOOD]) for _ in range(10)]
        queued(batcher, 10)
        model.ends[0].set()
        model.started(3)
        asked += [pool.submit(batcher.run, model.begin, [GOOD]) for _ in range(11)]
        queued(batcher, 11)
        model.ends[1].set()
        model.started(4)
        # Of the 16 that wait or are in the other pass.
        assert model.passes[1:] == [(5, True), (5, True), (8, True)]
        model.ends[2].set()
        model.started(5)
        assert model.passes[4] == (3, True)
        for end in model.ends:
            end.set()
        assert [each.result(10).shape for each in asked] == [(1, 1)] * 22


def test_few_that_wait_and_who_is_larger_than_a_share_have_all_cores():
    model, batcher = Abreast(), Batcher(max_pairs=64, max_waiting=200, at_once=2)
    with ThreadPoolExecutor(20) as pool:
        answers = []
        for n, sizes in enumerate([[1], [1, 1, 1], [1, 40]]):
            before = len(model.passes)
            answers.append(pool.submit(batcher.run, model.begin, [GOOD]))
            model.started(before + 1)
            answers += [pool.submit(batcher.run, model.begin, [GOOD] * size) for size in sizes]
            queued(batcher, len(sizes))
            model.ends[before].set()
            model.started(before + 2)
            model.ends[before + 1].set()
            for answer in answers:
                answer.result(10)
            assert model.passes[2 * n + 1] == (sum(sizes), False)


def test_a_panic_where_a_pass_begins_is_told_and_holds_up_nobody():
    """Tokenizers panic with what is no Exception; some other thread may be starting the pass."""

    class PanicError(BaseException):
        pass

    def begin(items, *, abreast=False):
        if BAD in items:
            raise PanicError
        return model.begin(items, abreast=abreast)

    model, batcher = Abreast(), Batcher(max_pairs=64, max_waiting=1000, at_once=2)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(batcher.run, begin, [GOOD])
        model.started(1)
        bad = pool.submit(batcher.run, begin, [BAD] * 70)
        queued(batcher, 1)
        model.ends[0].set()
        assert first.result(10).shape == (1, 1)
        assert isinstance(bad.exception(10), PanicError)
        later = pool.submit(batcher.run, begin, [GOOD])
        model.started(2)
        model.ends[1].set()
        assert later.result(10).shape == (1, 1)


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_everybody_gets_their_own_rows(at_once):
    """Large and small requests from many threads, some of which the model fails on."""
    batcher = Batcher(max_pairs=32, max_waiting=100_000, at_once=at_once)
    seen = SimpleNamespace(running=0, most=0, abreast=0)
    lock, started, gate = threading.Lock(), threading.Event(), threading.Event()

    def begin(items, *, abreast=False):
        with lock:
            seen.running += 1
            seen.abreast += abreast
            seen.most = max(seen.most, seen.running)
        started.set()

        def rows():
            assert gate.wait(10)
            with lock:
                seen.running -= 1
            if any(item < 0 for item in items):
                raise ValueError("negative")
            return np.array(items, dtype=np.int64)[:, None]

        return rows

    def ask(thread: int) -> int:
        draw, answered = random.Random(thread), 0
        for _ in range(60):
            size = draw.choice([1, 1, 1, 3, 9, 40, 64, 65, 150])
            items = [draw.randrange(10**9) for _ in range(size)]
            if draw.random() < 0.1:
                items[draw.randrange(size)] = -1
                with pytest.raises(ForwardFailed, match="negative"):
                    batcher.run(begin, items)
            else:
                assert batcher.run(begin, items)[:, 0].tolist() == items
            answered += 1
        return answered

    with ThreadPoolExecutor(17) as pool:
        first = pool.submit(batcher.run, begin, [7])
        assert started.wait(10)
        asked = pool.map(ask, range(16), timeout=120)
        queued(batcher, 16)
        gate.set()
        assert list(asked) == [60] * 16
        assert first.result(10).tolist() == [[7]]
    assert batcher.run(begin, [7]).tolist() == [[7]]
    assert seen.most <= at_once
    assert bool(seen.abreast) == (at_once > 1)


def test_nothing_is_answered_with_nothing(model):
    model.gate.set()
    batcher = Batcher(max_pairs=8, max_waiting=8)
    assert len(batcher.run(model.begin, [])) == 0
    assert batcher.run(model.begin, [GOOD]).shape == (1, 3)


def test_a_crash_of_the_pass_leaves_nobody_waiting(model):
    """Even what nobody foresaw (here: an interrupt) frees the others."""

    class Interrupted(Model):
        def logits(self, pairs):
            if self.started.is_set():
                raise KeyboardInterrupt
            return super().logits(pairs)

    fragile = Interrupted()
    batcher = Batcher(max_pairs=8, max_waiting=100)
    with ThreadPoolExecutor(3) as pool:
        pool.submit(batcher.run, fragile.begin, [GOOD])
        assert fragile.started.wait(10)
        others = [pool.submit(batcher.run, fragile.begin, [GOOD]) for _ in range(2)]
        queued(batcher, 2)
        fragile.gate.set()
        errors = {type(other.exception(10)) for other in others}
    assert errors == {KeyboardInterrupt, ForwardFailed}
