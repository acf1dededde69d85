"""Calibration: bins by hand, constructed calibrated and overconfident models, temperature."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.stats.calibration import brier, calibrate, expected_error, fit_temperature, reliability

LN3 = float(np.log(3))  # σ(ln 3) = 3/4
LN9 = float(np.log(9))  # σ(ln 9) = 9/10


def calibrated(n, scale=1.0, seed=0):
    """Margins of a model whose σ(margin / scale) is the true probability of being right."""
    random = np.random.default_rng(seed)
    size = np.abs(random.normal(scale=2.0, size=n))
    right = random.random(n) < 1 / (1 + np.exp(-size))
    return scale * np.where(right, size, -size)


def test_bins_by_hand():
    # Four pairs at confidence 3/4, two right: accuracy 1/2, gap 1/4. Four at 9/10, all right: gap 1/10.
    # ECE = (4 · 0.25 + 4 · 0.1) / 8 = 0.175.
    margins = [LN3, LN3, -LN3, -LN3, LN9, LN9, LN9, LN9]
    bins = reliability(margins, bins=2)
    assert [(each.confidence, each.accuracy, each.n) for each in bins] == [
        (pytest.approx(0.75), 0.5, 4),
        (pytest.approx(0.9), 1.0, 4),
    ]
    assert expected_error(bins) == pytest.approx(0.175)
    # Brier: (1-3/4)² = 1/16 twice, (3/4)² = 9/16 twice, (1/10)² four times: (0.125 + 1.125 + 0.04) / 8.
    assert brier(margins) == pytest.approx(0.16125)


def test_equal_confidences_share_a_bin_whatever_their_order():
    # 100 pairs, all at 3/4, 75 right, sorted by being right: calibrated, ECE 0. Bins cut through them would show
    # accuracies 0 and 1 and an ECE near 0.4.
    margins = [LN3] * 75 + [-LN3] * 25
    assert len(reliability(margins)) == 1
    assert expected_error(reliability(margins)) == pytest.approx(0, abs=1e-12)


def test_equal_mass():
    sizes = [each.n for each in reliability(np.random.default_rng(0).normal(size=1003))]
    assert len(sizes) == 10
    assert sum(sizes) == 1003
    assert set(sizes) <= {100, 101}


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=60), st.randoms())
def test_the_order_of_pairs_does_not_matter(margins, random):
    margins = [round(margin, 1) for margin in margins]
    shuffled = random.sample(margins, len(margins))
    assert expected_error(reliability(margins)) == pytest.approx(expected_error(reliability(shuffled)))
    assert sum(each.n for each in reliability(margins)) == len(margins)


def test_a_calibrated_model_shows_only_noise():
    got = calibrate(calibrated(20_000))
    assert got.ece < 2 * got.ece_noise < 0.02
    assert got.temperature == pytest.approx(1.0, abs=0.05)


def test_the_noise_of_a_calibrated_model_is_foreseen():
    # The mean ECE of 100 calibrated models of 400 pairs must be what `ece_noise` says.
    calibrations = [calibrate(calibrated(400, seed=seed)) for seed in range(100)]
    assert np.mean([each.ece for each in calibrations]) == pytest.approx(
        np.mean([each.ece_noise for each in calibrations]), rel=0.1
    )


def test_an_overconfident_model_is_found_and_mended():
    # Margins 2.8 times too large: T = 2.8 mends them.
    got = calibrate(calibrated(5_000, scale=2.8))
    assert got.ece > 0.1
    assert got.temperature == pytest.approx(2.8, rel=0.06)
    assert got.ece_after < 0.03
    assert got.brier_after < got.brier


def test_an_underconfident_model_has_a_temperature_below_one():
    got = calibrate(calibrated(5_000, scale=0.4))
    assert got.temperature == pytest.approx(0.4, rel=0.06)
    assert got.ece > 0.05
    assert got.ece_after < 0.03


def test_temperature_by_hand():
    # Three right and one wrong with margins ±m: the best probability is 3/4 = σ(m/T), so T = m / ln 3.
    assert fit_temperature([2.0, 2.0, 2.0, -2.0]) == pytest.approx(2 / LN3, rel=1e-4)


def test_temperature_at_its_bounds():
    assert fit_temperature([1.0, 2.0]) == pytest.approx(0.01)  # always right: as confident as allowed
    assert fit_temperature([-1.0, -2.0]) == pytest.approx(100.0)  # always wrong: as unsure as allowed


def test_the_temperature_is_judged_on_pairs_that_did_not_choose_it():
    # Even places always right, odd places right half of the time. Fitted on the odd half, T is huge and makes the
    # even ones unsure; fitted and judged on the same pairs they would stay sure (confidence near 1).
    margins = np.empty(200)
    margins[0::2] = 3.0
    margins[1::2] = np.where(np.arange(100) % 2, 3.0, -3.0)
    got = calibrate(margins)
    assert got.bins_after[0].confidence < 0.55
    assert got.bins_after[0].accuracy == 1.0


def test_one_pair():
    got = calibrate([LN3])
    assert got.ece == pytest.approx(0.25)
    assert len(got.bins) == 1
