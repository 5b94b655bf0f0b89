"""Choice of prompts by keys: the numbers of the specification (section 12, invariants 4 and 14)."""

from __future__ import annotations

import pytest
import torch

from raycl.nn.prompt_pools import (
    all_pairs_key_loss,
    choose,
    cosines,
    joined,
    key_loss,
    orthogonality_penalty,
    orthonormal_rows,
    weighted,
)

QUERY = torch.tensor([[3.0, 4.0]])
KEYS = torch.tensor([[1.0, 0], [0, 1], [1, 1]])


def test_numbers_of_the_specification():
    scores = cosines(QUERY, KEYS)
    assert scores.tolist() == [pytest.approx([0.6, 0.8, 0.989950], abs=1e-6)]
    best = choose(scores, 2)
    assert best.rows.tolist() == [[2, 1]]
    assert key_loss(best.scores).item() == pytest.approx(0.210050, abs=1e-6)
    assert key_loss(scores[:, :1]).item() == pytest.approx(0.4)  # the expert prompt of task 0


def test_the_loss_is_a_mean_over_images_of_a_sum_over_prompts():
    assert key_loss(torch.tensor([[1.0, 0.5], [0.0, -1.0]])).item() == pytest.approx((0.5 + 3) / 2)


def test_prefixes():
    pool = torch.arange(3 * 4 * 2.0).reshape(3, 4, 2)
    keys, values = joined(pool, torch.tensor([[2, 0], [1, 1]]))
    assert keys[0].tolist() == [[16, 17], [18, 19], [0, 1], [2, 3]]
    assert values[0].tolist() == [[20, 21], [22, 23], [4, 5], [6, 7]]
    assert values[1].tolist() == [[12, 13], [14, 15]] * 2
    big = joined(torch.zeros(30, 20, 8), torch.zeros(4, 5, dtype=torch.long))
    assert big.keys.shape == big.values.shape == (4, 50, 8)


def test_gradients():
    keys, pool = KEYS.clone().requires_grad_(), torch.ones(3, 2, 2, requires_grad=True)
    best = choose(cosines(QUERY, keys), 2)
    key_loss(best.scores).backward()
    assert keys.grad.abs().sum(1).gt(0).tolist() == [False, True, True]
    joined(pool, best.rows).keys.sum().backward()
    assert pool.grad.sum((1, 2)).tolist() == [0, 2, 2]


@pytest.mark.parametrize("count", [0, 4])
def test_more_than_the_pool_has(count):
    with pytest.raises(ValueError, match=f"cannot take {count} prompts from a pool of 3"):
        choose(cosines(QUERY, KEYS), count)


def test_loss_over_all_pairs():
    """Sum over 2 images and the 2 x 1 prompts that were chosen."""
    scores = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.5, 0.1]])
    chosen = choose(scores, 1)
    assert chosen.rows.tolist() == [[0], [1]]
    assert all_pairs_key_loss(scores, chosen).item() == pytest.approx(0.1 + 0.9 + 0.8 + 0.5)


def test_weights_may_be_negative_and_do_not_sum_to_one():
    prompts = torch.tensor([[[1.0, 0]], [[0, 1]]])
    found = weighted(
        torch.tensor([[1.0, 2]]), torch.ones(2, 2), torch.tensor([[-2.0, -4], [2, 4]]), prompts
    )
    torch.testing.assert_close(found, torch.tensor([[[-1.0, 1.0]]]))


def test_orthonormal_rows():
    generator = torch.Generator().manual_seed(0)
    first = orthonormal_rows(torch.empty(0, 12), 5, generator)
    rows = torch.cat([first, orthonormal_rows(first, 7, generator)])
    assert (rows @ rows.T - torch.eye(12)).abs().max() < 1e-5
    assert orthogonality_penalty(rows).item() < 1e-10
    again = orthonormal_rows(torch.empty(0, 12), 5, torch.Generator().manual_seed(0))
    assert torch.equal(first, again)
    skewed = torch.tensor([[3.0, 0, 0], [3, 4, 0]])  # not of length 1, as after training
    new = orthonormal_rows(skewed[:1], 2, generator)
    assert new[:, 0].abs().max() < 1e-6
    torch.testing.assert_close(new.norm(dim=1), torch.ones(2))


def test_projections_are_those_of_the_drawn_vector_itself():
    """Classical Gram-Schmidt: with earlier rows that are not orthogonal it is no projection."""
    earlier = torch.tensor([[1.0, 0, 0], [1, 1, 0]])
    drawn = torch.randn(1, 3, generator=torch.Generator().manual_seed(4))[0]
    wanted = drawn - drawn[0] * earlier[0] - (drawn[0] + drawn[1]) / 2 * earlier[1]
    found = orthonormal_rows(earlier, 1, torch.Generator().manual_seed(4))[0]
    torch.testing.assert_close(found, wanted / wanted.norm())


def test_penalty_of_rows():
    assert orthogonality_penalty(torch.tensor([[1.0, 0], [1, 1]])).item() == 0.75
    assert orthogonality_penalty(torch.eye(3)).item() == 0


def test_choices_and_losses_are_not_rounded():
    """Where layers compute in bfloat16, training chooses the prompts that evaluation chooses."""
    generator = torch.Generator().manual_seed(0)
    queries, keys, attention = (torch.randn(n, 16, generator=generator) for n in (5, 4, 4))
    prompts = torch.randn(4, 2, 3, generator=generator)

    def found() -> list[torch.Tensor]:
        ones = torch.eye(4).unsqueeze(1)  # prompts that tell their weights
        return [
            cosines(queries, keys),
            cosines(queries.bfloat16(), keys),
            weighted(queries, attention, keys, ones),
            orthogonality_penalty(keys),
        ]

    exact = found()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = found()
        assert weighted(queries, attention, keys, prompts).dtype == torch.bfloat16
    assert all(torch.equal(exact[i], rounded[i]) for i in (0, 1, 3))
    assert all(rounded[i].dtype == torch.float32 for i in (0, 1, 3))
    assert torch.equal(exact[2].bfloat16(), rounded[2])
