from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from raycl.nn.quantised import FrozenBits, Quantised, new_bits, quantise


def frozen(w: list[float], bound: float = 1.5, prior: float = 1.0, **options: object) -> FrozenBits:
    parameter = nn.Parameter(torch.tensor(w))
    return FrozenBits({"w": Quantised(parameter, bound, prior)}, **options)  # type: ignore[arg-type]


def push(state: FrozenBits, by: Tensor | float) -> Tensor:
    """One optimiser step and the clamp; the parameter."""
    (w,) = (q.parameter for q in state.of)
    with torch.no_grad():
        w += by
    state.clamp_(*state.limits())
    return w.detach().clone()


def set_bits(state: FrozenBits, bits: int) -> None:
    """Freeze so many bits, as if a task had done so."""
    state.bits.fill_(bits)
    state.consolidate(torch.zeros_like(state.fisher), 0)


# ---------------------------------------------------------------------- rounding


def test_quantiser_by_hand() -> None:
    w = torch.tensor([0.70, -0.10, 0.9, 0.5625, 0.1875, -1.45, 1.49])
    bits = torch.tensor([2, 2, 0, 2, 2, 1, 3], dtype=torch.uint8)
    assert quantise(w, bits, 1.5).tolist() == [0.75, 0.0, 0.0, 0.75, 0.0, -1.5, 1.5]


@pytest.mark.parametrize("bits", range(21))
def test_rounding_is_idempotent_and_close(bits: int) -> None:
    bound = 6 / math.sqrt(784)
    w = torch.empty(20_000).uniform_(-bound, bound, generator=torch.Generator().manual_seed(bits))
    b = torch.full_like(w, bits, dtype=torch.uint8)
    once = quantise(w, b, bound)
    assert torch.equal(quantise(once, b, bound), once)
    if bits:
        error = (once.double() - w.double()).abs().max()
        assert error <= bound * 2.0 ** -(bits + 1) * (1 + 1e-3) + bound * 2.0**-24
        assert len(once.unique()) <= 2 ** (bits + 1) + 1
    else:
        assert not once.any()


# ---------------------------------------------------------------------- bits


def test_bits_by_hand() -> None:
    state = frozen([0.3], prior=784e-15)
    table = [
        (1e-9, 5, 5.00392e-10),
        (1e-10, 5, 3.66928e-10),
        (1e-8, 7, 2.775196e-09),
        (5e-7, 10, 1.0222016e-07),
    ]
    for t, (fisher, bits, mean) in enumerate(table):
        state.consolidate(torch.tensor([fisher]), t)
        assert state.bits.item() == bits
        assert state.fisher.item() == pytest.approx(mean, rel=2e-6)


@pytest.mark.parametrize(
    "ratio, grown",
    [(0, 0), (0.5, 0), (1, 0), (7, 1), (7.01, 2), (31, 2), (31.1, 3), (127, 3), (128, 4)],
)  # fmt: skip
def test_ratio_to_bits_in_the_first_task(ratio: float, grown: int) -> None:
    assert new_bits(torch.tensor([ratio]), torch.ones(1), 0).item() == grown


@pytest.mark.parametrize("tasks", [0, 1, 4, 19])
def test_integer_rule_equals_the_logarithm(tasks: int) -> None:
    generator = torch.Generator().manual_seed(tasks)
    ratio = 10 ** torch.empty(200_000, dtype=torch.float64).uniform_(-3, 13, generator=generator)
    gain = 0.5 * torch.log2((ratio + tasks + 1) / (tasks + 2))
    away = (gain - gain.round()).abs() > 1e-9
    expected = gain.ceil().clamp(0, 20).long()
    got = new_bits(ratio, torch.ones_like(ratio), tasks)
    assert torch.equal(got[away], expected[away])
    assert away.float().mean() > 0.99
    assert set(got.tolist()) >= set(range(18))


def test_bits_never_shrink_and_never_pass_the_most() -> None:
    state = frozen([0.1] * 50, prior=1e-6, max_bits=7)
    generator = torch.Generator().manual_seed(0)
    before = state.bits.clone()
    for t in range(8):
        state.consolidate(10 ** torch.empty(50).uniform_(-8, 0, generator=generator), t)
        assert (state.bits >= before).all()
        before = state.bits.clone()
    assert state.bits.max() == 7
    assert state.bits.min() < 7


def test_mean_fisher_does_not_depend_on_the_order_of_tasks() -> None:
    fishers = [torch.tensor([f]) for f in (1.0, 10.0, 0.1, 3.0)]
    means = []
    for order in ((0, 1, 2, 3), (3, 2, 0, 1)):
        state = frozen([0.1], prior=0.5)
        for t, i in enumerate(order):
            state.consolidate(fishers[i], t)
        means.append(state.fisher.item())
    assert means == pytest.approx([(0.5 + 14.1) / 5] * 2)


def test_a_network_that_diverged_freezes_nothing() -> None:
    state = frozen([0.1, 0.2])
    with pytest.raises(ValueError, match="not finite"):
        state.consolidate(torch.tensor([1.0, torch.nan]), 0)
    assert not state.bits.any()


# ---------------------------------------------------------------------- moving


@pytest.mark.parametrize("wanted, got", [(2.0, 1.125), (1.2, 1.125), (0.5, 0.5), (-3.0, 0.375)])
def test_clip_by_hand(wanted: float, got: float) -> None:
    state = frozen([0.70])
    set_bits(state, 2)
    assert state.of[0].parameter.item() == state.previous.item() == 0.75
    assert push(state, wanted - 0.75).item() == pytest.approx(got, abs=1e-7)


def test_full_steps_drift_and_cells_do_not() -> None:
    drifting = frozen([0.70])
    set_bits(drifting, 2)
    for expected in (1.125, 1.5):
        push(drifting, 5.0)
        drifting.consolidate(torch.zeros(1), 1)
        assert drifting.of[0].parameter.item() == expected
    for bits in range(1, 21):
        w = torch.empty(1000).uniform_(-1.4, 1.4, generator=torch.Generator().manual_seed(bits))
        state = frozen(w.tolist(), drift="cell")
        set_bits(state, bits)
        rounded = state.previous.clone()
        for way in (5.0, -5.0):
            moved = push(state, way)
            if bits < 20:
                assert (moved != rounded).all()
            state.consolidate(torch.zeros(1000), 1)
            assert torch.equal(state.of[0].parameter, rounded)


@pytest.mark.parametrize("drift, share", [("full_step", 1.0), ("half_step", 0.5), ("cell", 0.5)])
def test_every_scalar_stays_within_its_reach(drift: str, share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = nn.Parameter(torch.zeros(40, 30)), nn.Parameter(torch.zeros(40))
    state = FrozenBits(
        {"w": Quantised(weight, 0.4, 1e-6), "b": Quantised(bias, 1.0, 1e-6)},
        drift=drift,  # type: ignore[arg-type]
    )
    for t in range(4):
        limits = state.limits()
        for _ in range(5):
            with torch.no_grad():
                for p in (weight, bias):
                    p += torch.randn(p.shape, generator=generator)
            state.clamp_(*limits)
            for p, bound, previous, bits in (
                (weight, 0.4, state.previous[:1200], state.bits[:1200]),
                (bias, 1.0, state.previous[1200:], state.bits[1200:]),
            ):
                reach = torch.where(bits == 0, 2.0, share * 0.5 ** bits.double()) * bound
                moved = (p.detach().flatten() - previous).abs()
                assert (moved <= reach + 1e-7).all()
                assert p.abs().max() <= bound * (1 - 2**-20) + 1e-7
        state.consolidate(10 ** torch.empty(1240).uniform_(-8, 2, generator=generator), t)
        assert torch.equal(weight.flatten(), state.previous[:1200])
    assert 0 in state.bits
    assert state.bits.max() > 10


def test_without_bits_only_the_bound_holds() -> None:
    assert push(frozen([0.0]), 5.0).item() == pytest.approx(1.5 * (1 - 2**-20), abs=1e-7)
    assert push(frozen([0.0], bound=1.0), 3.0).item() == pytest.approx(0.9999990, abs=1e-7)


def test_all_bits_frozen_move_by_one_quantum() -> None:
    bound = 6 / math.sqrt(784)
    state = frozen([0.05], bound=bound)
    set_bits(state, 20)
    start = state.of[0].parameter.item()
    assert start == pytest.approx(0.0500000566, abs=2e-9)
    push(state, 1.0)
    state.consolidate(torch.zeros(1), 1)
    end = state.of[0].parameter.item()
    assert end == pytest.approx(0.0500002578, abs=4e-9)
    assert end - start == pytest.approx(bound * 2**-20, rel=0.03)


def test_frozen_bits_stay_while_more_are_frozen() -> None:
    """Rounding to the bits of any earlier task gives, in a cell, what it gave then."""
    generator = torch.Generator().manual_seed(0)
    w = torch.empty(2000).uniform_(-1.4, 1.4, generator=generator)
    state = frozen(w.tolist(), prior=1e-6, drift="cell")
    history: list[tuple[Tensor, Tensor]] = []
    for t in range(8):
        push(state, torch.randn(2000, generator=generator).sign() * 5)
        fisher = state.fisher * 10 ** torch.empty(2000).uniform_(-1, 2, generator=generator)
        state.consolidate(fisher, t)
        now = state.previous.clone()
        assert torch.equal(now, quantise(now, state.bits, 1.5))
        for bits, then in history:
            some = bits > 0
            assert torch.equal(quantise(now, bits, 1.5)[some], then[some])
        history.append((state.bits.clone(), now))
    assert state.bits.min() > 0
    assert (history[-1][1] != history[2][1]).float().mean() > 0.3, "lower bits go on learning"
    loose = frozen([0.70])
    set_bits(loose, 2)
    push(loose, 5.0)
    loose.consolidate(torch.zeros(1), 1)
    assert quantise(loose.previous, torch.tensor([2]), 1.5).item() != 0.75  # a full step carries


@pytest.mark.parametrize("drift", ["full_step", "half_step", "cell"])
@pytest.mark.parametrize("zero_bits", ["reset", "keep"])
def test_without_bits_a_scalar_is_free(drift: str, zero_bits: str) -> None:
    state = frozen([1.2], drift=drift, zero_bits=zero_bits)
    for t in range(3):
        state.consolidate(torch.zeros(1), t)
        assert push(state, -9.0).item() == pytest.approx(-1.5, abs=2e-6)
        assert push(state, 9.0).item() == pytest.approx(1.5, abs=2e-6)


def test_fewer_bits_have_a_nearer_edge() -> None:
    state = frozen([0.0], max_bits=3)
    assert push(state, 5.0).item() == pytest.approx(1.5 * 7 / 8)
    assert push(state, -5.0).item() == pytest.approx(-1.5 * 7 / 8)


def test_zero_bits_are_reset_or_kept() -> None:
    for option, expected in (("reset", 0.0), ("keep", 0.7)):
        state = frozen([0.7], zero_bits=option)
        state.consolidate(torch.zeros(1), 0)
        assert state.bits.item() == 0
        assert state.of[0].parameter.item() == state.previous.item() == pytest.approx(expected)
        assert push(state, -0.9).item() == pytest.approx(expected - 0.9)


# ---------------------------------------------------------------------- what is said of it


def test_capacity_and_counts() -> None:
    weight, bias = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3))
    state = FrozenBits(
        {"w": Quantised(weight, 2.0, 1.0), "b": Quantised(bias, 1.0, 1.0)}, max_bits=4
    )
    state.bits.copy_(torch.tensor([0, 1, 1, 4, 4, 2, 0, 0, 3]))
    assert state.capacity() == 15 / 36
    assert state.counts() == {"w": [1, 2, 1, 0, 2], "b": [2, 0, 0, 1, 0]}


def test_nine_bytes_for_a_scalar() -> None:
    state = frozen([0.0] * 100)
    assert sum(t.numel() * t.element_size() for t in state.state_dict().values()) == 900


def test_too_many_bits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.\.20"):
        frozen([0.0], max_bits=21)
