import math

import numpy as np
import pytest

from bench.client import NO_ANSWER, Sample
from bench.measures import Forwards, alone, bars, measured, percentile
from bench.workload import Asked

KIND = (20, True)
ASKED = Asked("a red circle", seed=1, steps=20, guidance=7.5)


def sample(planned: float, finished: float, status: int = 200) -> Sample:
    return Sample(ASKED, planned, finished, status, b"")


def result(samples, system="ours", load="1.5x"):
    return measured(system, load, 1.0, samples, {KIND: 1.0}, Forwards(10, 40), 0.0)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95, 0.99, 1.0])
def test_percentiles_are_those_of_numpy(share):
    values = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6]
    assert percentile(values, share) == pytest.approx(np.quantile(values, share))


def test_the_percentile_of_nothing_is_not_a_number():
    assert math.isnan(percentile([], 0.5))


def test_latency_counts_from_when_a_request_was_due():
    assert result([sample(planned=1.0, finished=3.5)]).mean == 2.5


def test_goodput_is_the_share_of_all_requests_that_was_answered_in_three_times_its_own_time():
    found = result([sample(0, 2.9), sample(0, 3.1), sample(0, 0.1, status=429), sample(0, 0.1, NO_ANSWER)])
    assert found.goodput == 0.25
    assert (found.errors, found.refused) == (1, 1)
    assert found.p50 == 3.0  # of pictures alone
    assert found.images_per_second == pytest.approx(2 / 3.1)
    assert found.rows_per_forward == 4


def test_time_alone_is_the_median_of_its_kind():
    assert alone([sample(0, 1), sample(1, 3), sample(3, 12)]) == {KIND: 2}


def test_bars_compare_ours_with_the_baselines_of_the_same_load():
    slow, fast = [sample(0, 10), sample(0, 10)], [sample(0, 1), sample(0, 1)]
    results = [result(slow, "serial"), result(slow, "grouped"), result(fast, "ours")]
    found = {bar.what: bar for bar in bars(results, noise=0.0)}
    assert found["1.5x: mean of ours / serial"].value == pytest.approx(0.1)
    assert all(bar.passed for bar in found.values())
    assert not any("saturation" in what for what in found)  # was not measured


def test_bars_that_are_missed_say_so():
    results = [result([sample(0, 1)], system, load) for load in ("saturation", "0.6x") for system in ("serial", "ours")]
    found = {bar.what: bar.passed for bar in bars([*results, result([sample(0, 1, 500)], "grouped")], noise=0.05)}
    assert found == {
        "saturation: images_per_second of ours / serial": False,
        "0.6x: p50 of ours / serial": True,
        "requests without a picture": False,
    }
