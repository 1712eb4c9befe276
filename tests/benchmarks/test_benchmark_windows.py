"""Intervals of rates hold what they claim, and stages get the time that is theirs."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from statistics import fmean, stdev

import pytest

from benchmarks.stopwatch import Stopwatch
from benchmarks.windows import Spread, WindowOptions, in_turns, paired_ratio, ratio_of, repeat, spread_of
from saccade.errors import ConfigError
from tests.benchmarks.virtual_time import VirtualTime


def noisy_work(seed: int, variation: float) -> Callable[[], tuple[float, float]]:
    """One unit of work that takes 0.01 s, more or less."""
    rng = random.Random(seed)
    return lambda: (1.0, 0.01 * max(rng.gauss(1, variation), 0.1))


def test_mean_interval_and_variation_are_those_of_a_textbook() -> None:
    found = spread_of([9.0, 10.0, 11.0, 10.0])
    assert found.mean == 10
    # s = sqrt(2/3), t(3) = 3.182
    assert found.variation == pytest.approx(0.08165, rel=1e-3)
    assert (found.low, found.high) == pytest.approx((10 - 3.182 * 0.8165 / 2, 10 + 3.182 * 0.8165 / 2), rel=1e-3)


def test_a_steady_rate_takes_the_least_windows_and_an_unsteady_one_the_most() -> None:
    options = WindowOptions(seconds=0.1, least=4, most=9)
    steady = repeat(lambda: (2.0, 0.05), options)
    assert (len(steady.windows), steady.mean, steady.half_width) == (4, 40, 0)
    assert len(repeat(noisy_work(0, 0.8), options).windows) == 9


def test_a_window_ends_with_the_work_that_is_begun() -> None:
    found = repeat(lambda: (3.0, 0.4), WindowOptions(seconds=1.0, least=2, most=2))
    assert found.windows == pytest.approx((7.5, 7.5))  # three pieces, 1.2 s


def test_windows_take_turns_until_all_rates_are_known() -> None:
    order: list[str] = []
    noise = random.Random(0)

    def steady() -> float:
        order.append("steady")
        return 5.0

    def unsteady() -> float:
        order.append("unsteady")
        return noise.gauss(100, 30)

    done: list[int] = []
    found = in_turns([steady, unsteady], WindowOptions(least=2, most=6), progress=done.append)
    assert order == ["steady", "unsteady"] * 6  # one of them never gets narrow
    assert done == list(range(1, 13))
    assert found[0] == spread_of([5.0] * 6)
    assert len(in_turns([steady, steady], WindowOptions(least=2, most=6))[1].windows) == 2


def test_a_ratio_of_rates_in_turns_leaves_out_what_slowed_a_turn() -> None:
    one, other = spread_of([1.0, 2.0, 1.0]), spread_of([4.0, 6.0, 2.0])
    value, low, high = paired_ratio(one, other)
    logs = [math.log(4), math.log(3), math.log(2)]
    middle, half = fmean(logs), 4.303 * stdev(logs) / math.sqrt(3)
    assert (value, low, high) == pytest.approx((24 ** (1 / 3), math.exp(middle - half), math.exp(middle + half)))
    assert paired_ratio(other, one) == pytest.approx((1 / value, 1 / high, 1 / low))
    assert paired_ratio(spread_of([1.0, 4.0, 2.0]), spread_of([3.0, 12.0, 6.0])) == pytest.approx((3, 3, 3))


def test_ten_runs_of_one_configuration_agree_within_their_intervals() -> None:
    runs = [repeat(noisy_work(seed, 0.3), WindowOptions(seconds=0.2)) for seed in range(10)]
    mean = fmean(run.mean for run in runs)
    assert sum(run.low <= mean <= run.high for run in runs) >= 9
    assert sum(ratio_of(one, other).differs for one in runs for other in runs) <= 0.1 * 100


@pytest.mark.slow
@pytest.mark.parametrize("variation", [0.1, 0.4])
def test_intervals_hold_the_truth_about_as_often_as_they_say(variation: float) -> None:
    truth = repeat(noisy_work(1, variation), WindowOptions(seconds=2000.0, least=2, most=2)).mean
    runs = [repeat(noisy_work(seed, variation), WindowOptions(seconds=0.1)) for seed in range(400)]
    share = sum(run.low <= truth <= run.high for run in runs) / len(runs)
    assert 0.90 <= share <= 0.99


def drifting(seed: int, *, slow: float, windows: int) -> list[float]:
    """Rates of a machine whose speed changes over about three windows, beside the noise of every window."""
    rng, speed, found = random.Random(seed), 0.0, []
    for _ in range(50 + windows):
        speed = 0.7 * speed + rng.gauss(0, slow)
        found.append(100 + speed + rng.gauss(0, 4))
    return found[50:]


@pytest.mark.parametrize(("slow", "wider"), [(0.0, 1.1), (10.0, 1.6)])
def test_intervals_of_a_machine_that_drifts_are_wider(slow: float, wider: float) -> None:
    runs = [drifting(seed, slow=slow, windows=32) for seed in range(400)]
    found = [spread_of(rates) for rates in runs]
    textbook = [2.042 * stdev(rates) / math.sqrt(32) for rates in runs]
    widths = sorted((one.high - one.low) / 2 / half for one, half in zip(found, textbook, strict=True))
    assert widths[0] >= 0.99  # never narrower
    assert (widths[200] > wider) == (slow > 0)
    if slow:
        held = fmean(one.low <= 100 <= one.high for one in found)
        bare = fmean(abs(fmean(rates) - 100) <= half for rates, half in zip(runs, textbook, strict=True))
        assert bare < 0.65 < 0.85 < held


def test_few_windows_have_students_interval_whatever_their_order() -> None:
    climbing = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert spread_of(climbing).half_width == spread_of([3.0, 7.0, 1.0, 5.0, 2.0, 6.0, 4.0]).half_width
    longer = [*climbing, 8.0, 9.0]
    assert spread_of(longer).half_width > 1.5 * spread_of([1.0, 9.0, 2.0, 8.0, 3.0, 7.0, 4.0, 6.0, 5.0]).half_width


def test_a_ratio_differs_only_where_the_windows_show_it() -> None:
    one = spread_of([99.0, 100.0, 101.0, 100.0, 100.0])
    found = ratio_of(one, spread_of([198.0, 200.0, 202.0, 200.0, 200.0]))
    assert found.value == pytest.approx(2)
    assert found.differs
    assert 1.95 < found.low < 2 < found.high < 2.05
    assert not ratio_of(one, spread_of([90.0, 112.0, 95.0, 108.0, 100.0])).differs


def test_rates_that_never_vary_have_an_exact_ratio() -> None:
    assert ratio_of(spread_of([4.0, 4.0]), spread_of([2.0, 2.0])) == (0.5, 0.5, 0.5)


def test_windows_without_an_interval_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"seconds must be above 0.*one window has no interval"):
        WindowOptions(seconds=0, least=1, most=1)


def test_a_spread_of_nothing_has_no_width() -> None:
    assert Spread(mean=0, low=0, high=0, variation=0, windows=(0.0, 0.0)).half_width == 0


def test_time_inside_an_inner_stage_is_none_of_the_outer_one() -> None:
    time = VirtualTime()
    watch = Stopwatch(time)
    with watch.stage("outer"):
        time.sleep(1)
        for _ in range(2):
            with watch.stage("inner"):
                time.sleep(2)
        time.sleep(0.5)
    time.sleep(8)  # in no stage
    assert dict(watch.spent) == {"outer": 1.5, "inner": 4}
    assert watch.calls == {"outer": 1, "inner": 2}


def test_a_stage_that_fails_is_counted_and_left() -> None:
    time = VirtualTime()
    watch = Stopwatch(time)

    def fail() -> None:
        with watch.stage("inner"):
            time.sleep(1)
            raise ValueError("broken")

    with watch.stage("outer"):
        with pytest.raises(ValueError, match="broken"):
            fail()
        time.sleep(2)
    assert dict(watch.spent) == {"outer": 2, "inner": 1}
