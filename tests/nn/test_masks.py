from __future__ import annotations

import pytest
import torch

from raycl.nn.masks import TaskMasks, above, largest, pack_bits, straight_through, unpack_bits


def test_bits_by_hand():
    bits = torch.tensor([1, 0, 0, 0, 0, 0, 0, 1, 0, 1, 1], dtype=torch.bool)
    packed = pack_bits(bits)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == [1 + 128, 2 + 4]
    assert torch.equal(unpack_bits(packed, 11), bits)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 64, 1001])
def test_bits_round_trip(count):
    bits = torch.rand(count, generator=torch.Generator().manual_seed(count)) < 0.5
    packed = pack_bits(bits)
    assert len(packed) == -(-count // 8)
    assert torch.equal(unpack_bits(packed, count), bits)


def test_straight_through_gives_one_value_and_the_gradient_of_another():
    soft = torch.tensor([0.3, -7.1, 1e8], requires_grad=True)
    hard = torch.tensor([1.0, 0.0, 1.0])
    value = straight_through(hard, soft**2)
    assert torch.equal(value, hard)
    value.backward(torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(soft.grad, torch.tensor([0.6, -28.4, 6e8]))


def test_above_by_hand():
    values = torch.tensor([0.005, 0.0051, -1.0, 0.01], requires_grad=True)
    mask = above(values, 0.005)
    assert mask.tolist() == [0, 1, 0, 1]
    mask.backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert values.grad.tolist() == [1, 2, 3, 4]


def test_largest_by_hand():
    scores = torch.tensor([[0.1, -0.9, 0.2], [-0.3, 0.8, 0.05]], requires_grad=True)
    mask = largest(scores, 0.5)
    assert mask.tolist() == [[0, 1, 0], [1, 1, 0]]
    mask.backward(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    assert scores.grad.tolist() == [[1, -2, 3], [-4, 5, 6]]


@pytest.mark.parametrize(
    "count, share, zeros", [(100, 0.08, 92), (7, 0.5, 3), (5, 0.01, 4), (10, 1.0, 0), (3, 0.3, 2)]
)
def test_number_of_zeros(count, share, zeros):
    for scores in (torch.arange(count) - 2.5, torch.ones(count)):  # also where all are equal
        assert int((largest(scores, share) == 0).sum()) == zeros


def masks():
    start = [torch.tensor([[0.3, -0.4], [0.1, 0.0]]), torch.tensor([-1.0, 2.0, 3.0])]
    return TaskMasks(start, lambda values: above(values, 0.05))


def test_masks_end_as_bits():
    made = masks()
    learnt = [mask.detach().clone() for mask in made.masks()]
    assert [mask.tolist() for mask in learnt] == [[[1, 0], [1, 0]], [0, 1, 1]]
    assert list(made.state_dict()) == ["real.0", "real.1"]
    made.finish()
    assert list(made.state_dict()) == ["bits"]
    assert made.bits.tolist() == [1 + 4 + 32 + 64]
    assert all(torch.equal(a, b) for a, b in zip(made.masks(), learnt, strict=True))
    assert not list(made.parameters())


def test_a_state_of_either_form_can_be_loaded():
    learning, done = masks(), masks()
    done.real[0].data.neg_()
    state = done.state_dict()
    learning.load_state_dict(state, strict=True)
    assert torch.equal(learning.real[0], done.real[0])
    done.finish()
    learning = torch.nn.ModuleList([masks()])
    learning.load_state_dict({"0.bits": done.bits}, strict=True)
    assert [mask.tolist() for mask in learning[0].masks()] == [[[0, 1], [0, 0]], [0, 1, 1]]
    again = torch.nn.ModuleList([masks()])
    again.load_state_dict(learning.state_dict(), strict=True)
