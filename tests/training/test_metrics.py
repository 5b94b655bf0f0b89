import numpy as np
import pytest

from raycl.training.metrics import (
    METRICS,
    average_accuracy,
    average_accuracy_by_item,
    average_incremental_accuracy,
    backward_transfer_all,
    compute,
    forgetting,
    forgetting_nonnegative,
    forward_transfer,
    learning_accuracy,
    omega,
    one_step_forgetting,
    selection_accuracy,
)
from raycl.trial.matrix import backward_transfer

NAN = float("nan")
GOLDEN = np.array(
    [[80, NAN, NAN, NAN], [86, 78, NAN, NAN], [70, 74, 82, NAN], [62, 81, 70, 84]], dtype=float
)


def random_matrices(low=0.0, high=100.0):
    rng = np.random.default_rng(0)
    return [rng.uniform(low, high, (t, t)) for t in (2, 3, 5, 10)]


def test_golden_values():
    assert forgetting(GOLDEN) == pytest.approx(11.0)
    assert forgetting_nonnegative(GOLDEN) == pytest.approx(12.0)
    assert backward_transfer(GOLDEN) == pytest.approx(-9.0)
    # by hand
    assert average_accuracy(GOLDEN) == pytest.approx((62 + 81 + 70 + 84) / 4)
    assert average_incremental_accuracy(GOLDEN) == pytest.approx(
        (80 + 82 + (70 + 74 + 82) / 3 + 74.25) / 4
    )
    assert learning_accuracy(GOLDEN) == pytest.approx(81.0)
    assert one_step_forgetting(GOLDEN) == pytest.approx((-6 + (16 + 4) / 2 + (8 - 7 + 12) / 3) / 3)


def test_golden_values_of_a_second_source():
    r = np.array([[0.9, NAN, NAN], [0.8, 0.95, NAN], [0.7, 0.9, 0.6]])
    assert average_accuracy(r) == pytest.approx(0.73333, abs=1e-5)
    assert backward_transfer(r) == pytest.approx(-0.125)
    assert backward_transfer_all(r) == pytest.approx(-0.08333, abs=1e-5)


def test_the_three_forgettings_of_continual_distillation():
    """Invariant: what the code of arXiv 2407.13911 computes, by the names that it has here."""
    r = np.array([[90, NAN, NAN], [80, 70, NAN], [85, 60, 75]], dtype=float)
    assert average_accuracy(r) == pytest.approx(73.333, abs=1e-3)
    assert -backward_transfer_all(r) == pytest.approx(5.0)  # F_N as that code has it: divided by N
    assert -backward_transfer(r) == pytest.approx(7.5)  # the usual divisor, N - 1
    assert one_step_forgetting(r) == pytest.approx(6.25)  # its second function
    assert average_incremental_accuracy(r) == pytest.approx(79.444, abs=1e-3)
    r[1, 0] = 95  # only the maximum over time, which that code does not take, sees this
    assert (-backward_transfer(r), forgetting(r)) == pytest.approx((7.5, 10.0))


def test_by_item_weighs_items():
    r = np.array([[50.0, NAN], [90.0, 60.0]])
    assert average_accuracy_by_item(r, [30, 10]) == pytest.approx((90 * 30 + 60 * 10) / 40)
    assert average_accuracy_by_item(r, [7, 7]) == pytest.approx(average_accuracy(r))
    for sizes in ([1], [1, 0], [1, 2, 3]):
        with pytest.raises(ValueError, match="sizes"):
            average_accuracy_by_item(r, sizes)


def test_forward_transfer_reads_the_first_entry_above_the_diagonal():
    r = np.array([[90, 30, 1], [80, 95, 50], [70, 80, 90]], dtype=float)
    assert forward_transfer(r, [NAN, 10, 20]) == pytest.approx((20 + 30) / 2)
    with pytest.raises(ValueError, match="NaN"):
        forward_transfer(r, [0, NAN, 20])
    with pytest.raises(ValueError, match="NaN"):
        forward_transfer(np.tril(r) + np.triu(np.full((3, 3), NAN), 1), [0, 10, 20])
    with pytest.raises(ValueError, match="shape"):
        forward_transfer(r, [0, 10])


@pytest.mark.parametrize("scores", [(0, 100), (-20, 5000)])  # percent, and scores of games
def test_identities(scores):
    for r in random_matrices(*scores):
        t = len(r)
        # the last row is the diagonal plus what came back later
        assert average_accuracy(r) == pytest.approx(
            learning_accuracy(r) + backward_transfer(r) * (t - 1) / t
        )
        assert average_accuracy(r) == pytest.approx(learning_accuracy(r) + backward_transfer_all(r))
        assert forgetting_nonnegative(r) >= max(0.0, forgetting(r))
        assert forgetting(r) >= -backward_transfer(r) - 1e-9
        # adding a constant moves averages and leaves differences alone
        up, m, moved = 7.5, compute(r, baseline=r[0]), compute(r + 7.5, baseline=r[0] + 7.5)
        for name, value in m.items():
            shift = up if name.endswith("accuracy") else 0.0
            assert moved[name] == pytest.approx(value + shift)
        # no forgetting at all when every row repeats the diagonal
        frozen = np.tile(np.diag(r), (t, 1))
        for name in ("forgetting", "forgetting_nonnegative", "backward_transfer"):
            assert compute(frozen)[name] == pytest.approx(0.0)
        assert one_step_forgetting(frozen) == pytest.approx(0.0)


def test_two_tasks_make_the_differences_equal():
    r = np.array([[90.0, NAN], [70.0, 80.0]])
    assert forgetting(r) == one_step_forgetting(r) == -backward_transfer(r) == 20.0


def test_entries_above_the_diagonal_do_not_matter():
    filled = np.where(np.isnan(GOLDEN), 99.0, GOLDEN)
    assert compute(filled) == compute(GOLDEN)


def test_one_task_has_no_forgetting():
    assert compute(np.array([[42.0]]), sizes=[3], baseline=[10.0]) == {
        "average_accuracy": 42.0,
        "average_accuracy_by_item": 42.0,
        "average_incremental_accuracy": 42.0,
        "learning_accuracy": 42.0,
    }
    with pytest.raises(ValueError, match="at least 2"):
        forgetting([[42.0]])


def test_selection_accuracy_is_that_of_the_other_matrix_right_after_each_task():
    chosen = np.array([[60.0, NAN], [10.0, 80.0]])
    r = np.array([[50.0, NAN], [20.0, 30.0]])
    assert selection_accuracy(r, chosen) == 70.0
    found = compute(r, selection=chosen)
    assert found.pop("selection_accuracy") == 70.0
    assert found == compute(r)
    with pytest.raises(ValueError, match="NaN"):
        selection_accuracy(r, np.full((2, 2), NAN))


def test_compute_gives_everything_that_is_defined():
    r = random_matrices()[1]
    found = compute(r, sizes=[1, 2, 3], baseline=[0, 0, 0], selection=r)
    assert set(found) == set(METRICS)
    names = set(compute(GOLDEN))
    assert set(METRICS) - names == {
        "average_accuracy_by_item",
        "forward_transfer",
        "selection_accuracy",
    }


@pytest.mark.parametrize(
    "name, entry",
    [
        ("average_accuracy", (3, 1)),
        ("average_incremental_accuracy", (1, 0)),
        ("forgetting", (2, 1)),
        ("forgetting_nonnegative", (1, 0)),
        ("backward_transfer", (1, 1)),
        ("backward_transfer_all", (3, 1)),
        ("learning_accuracy", (2, 2)),
        ("one_step_forgetting", (2, 0)),
    ],
)
def test_a_needed_nan_is_refused(name, entry):
    r = GOLDEN.copy()
    r[entry] = NAN
    with pytest.raises(ValueError, match="NaN"):
        METRICS[name].function(r)
    with pytest.raises(ValueError, match="NaN"):
        compute(r)


def test_an_unneeded_nan_is_not():
    r = GOLDEN.copy()
    r[2, 1] = NAN  # neither the last row nor the diagonal
    assert average_accuracy(r) == average_accuracy(GOLDEN)
    assert backward_transfer(r) == backward_transfer(GOLDEN)


def test_shapes_are_checked():
    for bad in (np.zeros((2, 3)), np.zeros(3), np.zeros((0, 0))):
        with pytest.raises(ValueError, match="square"):
            compute(bad)


def test_omega():
    own, upper = (
        [[a, NAN, NAN], [b - 5, b + 5, NAN], [c + 1, c - 3, c + 2]]
        for a, b, c in ((80, 60, 45), (82, 75, 70))
    )
    assert omega(own, upper) == pytest.approx(80.6156, abs=1e-4)
    assert omega(upper, upper) == 100
    assert omega(upper, own) > 100
    with pytest.raises(ValueError, match="the upper bound has 2 tasks, and not 3"):
        omega(own, [row[:2] for row in upper[:2]])
    with pytest.raises(ValueError, match="the upper bound is 0"):
        omega([[5.0]], [[0.0]])
    with pytest.raises(ValueError, match="NaN"):
        omega(own, [[82, NAN, NAN], [NAN, 75, NAN], [70, 70, 70]])
    assert "omega" not in METRICS, "it needs a second run"
