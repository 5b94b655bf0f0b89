from __future__ import annotations

import numpy as np
import pytest

from raycl.rl.metrics import (
    METRICS,
    UndefinedError,
    auc,
    average_performance,
    backward_transfer,
    compute,
    forgetting,
    forward_transfer,
    isolated_forgetting,
    learning_areas,
    learning_performance,
    max_forgetting,
    retention,
    zero_shot_transfer,
)

NAN = float("nan")
GOLDEN = 100 * np.array([[0.90, 0.10, 0.00], [0.60, 0.80, 0.04], [0.45, 0.70, 1.0]])
UNTRAINED = [0.0, 5.0, -2.0]
FRAMES = 1000
ENDS = [[], [], []]  # no evaluation but at the ends of games
LOWER = np.where(np.tri(3, dtype=bool), GOLDEN, NAN)


def test_the_worked_example():
    assert average_performance(GOLDEN) == pytest.approx(71.667, abs=1e-3)
    assert forgetting(GOLDEN) == pytest.approx(18.333, abs=1e-3)
    assert max_forgetting(GOLDEN) == pytest.approx(27.5)
    assert backward_transfer(GOLDEN) == pytest.approx(-27.5)
    assert isolated_forgetting(GOLDEN) == pytest.approx((30 + 15 + 10) / 3)
    assert zero_shot_transfer(GOLDEN, UNTRAINED) == pytest.approx((5 + 2 + 4) / 3)
    assert learning_performance(GOLDEN) == pytest.approx(90)
    assert forward_transfer([55], [40]) == pytest.approx(25)
    # game 1: points .90 .60 .45 over two games of training
    first = 100 * ((90 + 60) / 2 + (60 + 45) / 2) / 2 / 90
    assert first == pytest.approx(70.833, abs=1e-3)
    second = 100 * ((80 - 5) + (70 - 5)) / 2 / (80 - 5)
    mean = (first + second) / 2
    curves = [[(1000, 90), (2000, 60), (3000, 45)], [(2000, 80), (3000, 70)], [(3000, 100)]]
    for evaluation in (ENDS, curves):
        assert retention(GOLDEN, evaluation, FRAMES, UNTRAINED) == pytest.approx(mean)


def test_max_forgetting_sees_a_peak_after_the_own_training():
    r = [[50, NAN, NAN], [70, 60, NAN], [40, 55, 80]]
    assert max_forgetting(r) == pytest.approx(((70 - 40) + (60 - 55)) / 2)
    assert forgetting(r) == pytest.approx((10 + 5 + 0) / 3)


def test_retention_by_hand():
    r = [[80, NAN], [40, 100]]
    assert retention(r, [[], []], FRAMES) == pytest.approx(75)
    assert retention(r, [[], []], FRAMES, [40, 0]) == pytest.approx(50)
    # a point in the middle: lost at once, then kept; points at the ends are those of R
    dip = [[(500, 7), (1000, 99), (1500, 40), (2000, 3)], [(2000, 100)]]
    assert retention(r, dip, FRAMES) == pytest.approx(100 * (60 + 40) / 2 / 80)
    # a step, as at the end of a game that is rounded
    step = [[(1500, 80), (1500, 40)], []]
    assert retention(r, step, FRAMES) == pytest.approx(100 * (80 + 40) / 2 / 80)
    assert retention([[80, NAN], [80, 1]], [[], []], FRAMES) == pytest.approx(100)
    assert retention([[80, NAN], [120, 1]], [[], []], FRAMES) == pytest.approx(125)


def test_a_game_that_was_not_learnt_has_no_retention():
    for own, low in ((5, [10, 0]), (0, None), (-3, [-3, 0])):
        with pytest.raises(UndefinedError, match="game 1"):
            retention([[own, NAN], [4, 50]], [[], []], FRAMES, low)
    # the last game's does not matter
    assert retention([[10, NAN], [5, -50]], [[], []], FRAMES) == pytest.approx(75)


def test_learning_areas_by_hand():
    # a ramp from 0 to 100; half of it; over the top; below the floor
    ramp = [(0, 0), (1000, 100)]
    late = [(1500, 20), (2000, 60)]
    top = [(2000, 300), (2500, 300), (2500, -40), (3000, -40)]
    assert learning_areas([ramp, late, top], FRAMES) == pytest.approx([50, (20 + 40) / 2, 50])
    assert auc(GOLDEN, [ramp, late, top], FRAMES) == pytest.approx((50 + 30 + 50) / 3)
    # one point stands for the whole window; points of other windows do not count
    assert learning_areas([[(700, 30), (1200, 90)]], FRAMES) == pytest.approx([30])
    with pytest.raises(UndefinedError, match="game 2"):
        learning_areas([ramp, [(500, 3)]], FRAMES)


def test_forward_transfer_by_hand():
    assert forward_transfer([55, 20], [40, 20]) == pytest.approx(12.5)
    assert forward_transfer([40, 0], [40, 50]) == pytest.approx(-50)
    with pytest.raises(UndefinedError, match="100 %"):
        forward_transfer([100, 50], [100, 40])
    for areas, reference in (([], []), ([1], [1, 2])):
        with pytest.raises(ValueError, match="go together"):
            forward_transfer(areas, reference)
    with pytest.raises(ValueError, match="NaN"):
        forward_transfer([NAN], [1])


def test_identities():
    rng = np.random.default_rng(0)
    for tasks in (2, 3, 6):
        r = rng.uniform(-30, 300, (tasks, tasks))
        t = tasks
        assert forgetting(r) == pytest.approx(-backward_transfer(r) * (t - 1) / t)
        assert average_performance(r) == pytest.approx(learning_performance(r) - forgetting(r))
        assert max_forgetting(r) >= -backward_transfer(r) - 1e-9
        # what single games do to a game adds up to all that happened to it
        total = sum(r[i, i] - r[-1, i] for i in range(t - 1))
        assert isolated_forgetting(r) * t * (t - 1) / 2 == pytest.approx(total)
        gains = sum(r[i - 1, i] - 9.0 for i in range(1, t))
        assert zero_shot_transfer(r, [9.0] * t) * t * (t - 1) / 2 == pytest.approx(gains)
        moved = compute(r + 7.5, baseline=r[0] + 7.5)
        for name, value in compute(r, baseline=r[0]).items():
            shift = 7.5 if name.endswith("performance") else 0.0
            assert moved[name] == pytest.approx(value + shift)


def test_compute_gives_what_is_defined():
    training = [[(500, 10)], [(1500, 20)], [(2500, 60)]]
    everything = compute(
        GOLDEN, baseline=UNTRAINED, evaluation=ENDS, training=training, frames=FRAMES
    )
    assert list(everything) == list(METRICS)
    assert everything["auc"] == pytest.approx(30)
    assert everything["retention"] == pytest.approx(
        retention(GOLDEN, ENDS, FRAMES, UNTRAINED), abs=1e-9
    )
    plain = compute(LOWER)
    assert set(METRICS) - set(plain) == {"zero_shot_transfer", "retention", "auc"}
    assert all(plain[name] == everything[name] for name in plain)
    assert compute([[12.0]]) == {"average_performance": 12.0, "learning_performance": 12.0}
    with pytest.raises(ValueError, match="need the frames"):
        compute(GOLDEN, training=training)


def test_compute_leaves_out_what_is_undefined():
    r = [[-1, NAN], [5, 60]]
    found = compute(r, evaluation=[[], []], training=[[], []], frames=FRAMES)
    assert set(found) == set(METRICS) - {"zero_shot_transfer", "retention", "auc"}


@pytest.mark.parametrize(
    "name, entry",
    [
        ("average_performance", (2, 1)),
        ("forgetting", (0, 0)),
        ("max_forgetting", (1, 0)),
        ("backward_transfer", (2, 0)),
        ("isolated_forgetting", (1, 1)),
        ("learning_performance", (1, 1)),
    ],
)
def test_a_needed_nan_is_refused(name, entry):
    r = LOWER.copy()
    assert METRICS[name].function(r) == compute(r)[name]
    r[entry] = NAN
    with pytest.raises(ValueError, match="NaN"):
        METRICS[name].function(r)
    with pytest.raises(ValueError, match="NaN"):
        compute(r)


def test_bad_shapes_and_curves_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        zero_shot_transfer(LOWER, UNTRAINED)
    with pytest.raises(ValueError, match="shape"):
        zero_shot_transfer(GOLDEN, [1.0])
    for r, curve in ((GOLDEN, [(1500, NAN)]), (np.where(GOLDEN == 60, NAN, GOLDEN), [])):
        with pytest.raises(ValueError, match="NaN"):
            retention(r, [curve, [], []], FRAMES)
    with pytest.raises(ValueError, match="curves"):
        retention(GOLDEN, [[]], FRAMES)
    with pytest.raises(ValueError, match="curves"):
        auc(GOLDEN, [[]], FRAMES)
    for bad in (np.zeros((2, 3)), np.zeros(3), np.zeros((0, 0))):
        with pytest.raises(ValueError, match="square"):
            compute(bad)
    for name in ("forgetting", "max_forgetting", "isolated_forgetting"):
        with pytest.raises(ValueError, match="at least 2"):
            METRICS[name].function([[1.0]])
