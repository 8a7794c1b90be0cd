"""Turns, sums and the refusal to show speeds of contenders that did not do the same."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest

from dsmem.bench.harness import Comparison, Contender, ResultsDiffer, measure
from dsmem.bench.results import Role


def contender(name: str, role: Role = "dsmem", *, log: list[str] | None = None, answer: object = 1) -> Contender:
    def run(_: object) -> object:
        if log is not None:
            log.append(name)
        return answer

    return Contender(name, role, run, answer=lambda result: result)


def test_one_round_does_not_count() -> None:
    log: list[str] = []
    found = measure(Comparison("turns", 0, [contender(name, log=log) for name in "abc"]), runs=2)
    assert "".join(log[:3]) == "abc"
    assert len(log) == 9
    assert [one.samples for one in found.measured] == [2, 2, 2]
    assert found.runs == 2


@pytest.mark.parametrize("count", range(2, 10))
def test_each_comes_after_every_other_as_often(count: int) -> None:
    log: list[str] = []
    contenders = [contender(str(number), log=log) for number in range(count)]
    measure(Comparison("turns", 0, contenders), runs=2 * count)
    rounds = [log[start : start + count] for start in range(count, len(log), count)]
    assert all(sorted(one) == sorted(map(str, range(count))) for one in rounds)
    pairs = Counter(pair for one in rounds for pair in pairwise(one))
    assert len(pairs) == count * (count - 1) and set(pairs.values()) == {2}
    assert set(Counter(one[0] for one in rounds).values()) == {2}


@pytest.mark.parametrize("wrong", ["ours", "recipe", "limit"])
def test_a_wrong_answer_ends_it(wrong: str) -> None:
    contenders = [
        contender("ours", "dsmem", answer=1 + (wrong == "ours")),
        contender("recipe", "recipe", answer=1 + (wrong == "recipe")),
        contender("limit", "limit", answer=1 + (wrong == "limit")),
    ]
    with pytest.raises(ResultsDiffer, match="gave something else"):
        measure(Comparison("who is right", 0, contenders), runs=1)


def test_an_answer_that_goes_wrong_later_ends_it_too() -> None:
    answers = iter([1, 1, 1, 2])
    drifting = Contender("drifting", "dsmem", lambda _: next(answers), answer=int)
    with pytest.raises(ResultsDiffer, match="drifting"):
        measure(Comparison("later", 0, [contender("steady"), drifting]), runs=5)


def test_a_known_answer_must_be_met() -> None:
    with pytest.raises(ResultsDiffer, match="the known answer"):
        measure(Comparison("known", 0, [contender("ours", answer=2)], expected={"": 1}), runs=1)


def test_different_questions_have_different_answers() -> None:
    one = Contender("md5", "dsmem", lambda _: "aa", answer=str, question="md5")
    two = Contender("sha", "dsmem", lambda _: "bb", answer=str, question="sha")
    assert len(measure(Comparison("questions", 0, [one, two]), runs=1).measured) == 2


def test_what_is_around_a_turn_ends_after_an_error() -> None:
    events: list[str] = []

    @contextmanager
    def around() -> Iterator[str]:
        events.append("begin")
        try:
            yield "subject"
        finally:
            events.append("end")

    def fail(subject: str) -> None:
        events.append(subject)
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        measure(Comparison("around", 0, [Contender("fails", "dsmem", fail, around=around)]), runs=2)
    assert events == ["begin", "subject", "end"]


def scripted(monkeypatch: pytest.MonkeyPatch, **seconds: list[float]) -> Callable[[str, Role], Contender]:
    """Contenders that take, by a clock of this test, the seconds that are listed."""
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def make(name: str, role: Role) -> Contender:
        left = iter(seconds[name])

        def run(_: object) -> None:
            nonlocal now
            now += next(left)

        return Contender(name, role, run)

    return make


def test_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    make = scripted(
        monkeypatch,
        ours=[9, 1, 2, 6],
        recipe=[9, 8, 8, 8],
        other=[9, 1, 1, 1],
        slow=[9, 4, 4, 4],
        fast=[9, 1, 1, 1],
    )
    roles: dict[str, Role] = {"ours": "dsmem", "recipe": "recipe", "other": "recipe", "slow": "limit", "fast": "limit"}
    contenders = [make(name, role) for name, role in roles.items()]
    ours, recipe, other, slow, fast = measure(Comparison("sums", 100, contenders), runs=3).measured
    assert (ours.median_s, ours.min_s, ours.max_s) == (2, 1, 6)
    assert ours.bytes_per_s == 50
    assert (ours.ratio_to_recipe, recipe.ratio_to_recipe, other.ratio_to_recipe) == (4, 1, 8)
    assert (ours.percent_of_limit, slow.percent_of_limit, fast.percent_of_limit) == (50, 25, 100)
    assert ours.median_bytes is ours.times_data is ours.peak_bytes is None


def test_several_operations_and_several_samples_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    make = scripted(monkeypatch, ours=[10.0] * 7)
    plain = make("ours", "dsmem")
    many = Contender("ours", "dsmem", plain.run, repeat=3, operations=5)
    (found,) = measure(Comparison("many", 0, [many]), runs=2).measured
    assert (found.samples, found.median_s, found.bytes_per_s) == (6, 2, None)


def test_who_does_a_part_of_the_work_takes_so_many_times_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    make = scripted(monkeypatch, ours=[1.0] * 3, plain=[2.0] * 3)
    slow = Contender("plain", "recipe", make("plain", "recipe").run, part=8)
    ours, recipe = measure(Comparison("part", 160, [make("ours", "dsmem"), slow]), runs=2).measured
    assert (recipe.median_s, recipe.bytes_per_s, ours.ratio_to_recipe) == (16, 10, 16)


def test_memory_is_counted_once() -> None:
    def holding(name: str, role: Role, size_bytes: int) -> Contender:
        return Contender(name, role, lambda _: size_bytes, amount=int)

    contenders = [holding("ours", "dsmem", 105), holding("plain", "recipe", 420), holding("data", "limit", 100)]
    found = measure(Comparison("memory", 100, contenders, quantity="memory", rounds=1), runs=5)
    ours = found.measured[0]
    assert (found.runs, ours.samples) == (1, 1)
    assert (ours.median_bytes, ours.times_data, ours.ratio_to_recipe) == (105, 1.05, 4)
    assert ours.percent_of_limit == pytest.approx(95.24, abs=0.01)
    assert ours.median_s is ours.bytes_per_s is None


def test_past_the_deadline_one_round_counts() -> None:
    log: list[str] = []
    found = measure(Comparison("late", 0, [contender("a", log=log)]), runs=9, deadline=time.monotonic() - 1)
    assert (found.runs, len(log)) == (1, 2)


def test_the_peak_is_what_a_turn_took_at_most(tmp_path: Any) -> None:
    def hold(_: object) -> None:
        held = b"x" * (64 << 20)
        time.sleep(0.1)  # longer than the sampler's step, whoever else is busy
        assert held

    (found,) = measure(Comparison("peak", 0, [Contender("holds", "dsmem", hold)], watch=str(tmp_path)), runs=1).measured
    assert found.peak_bytes is not None and found.peak_bytes > 48 << 20
