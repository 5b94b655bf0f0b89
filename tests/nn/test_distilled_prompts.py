"""Prompts that carry what a teacher knows: where they stand, how many, and mappers by hand."""

from __future__ import annotations

import math

import pytest
import torch

from raycl.nn.distilled_prompts import (
    AttentionMapper,
    ComponentMapper,
    DistillationPrompts,
    PrefixMapper,
)
from raycl.nn.prompted_vit import BlockPrompts, KeysValues, halves


@pytest.mark.parametrize("width,count", [(192, 12_864), (384, 25_728), (768, 51_456)])
def test_trained_parameters(width: int, count: int) -> None:
    """Section 5.5: 67 C_S with 12 blocks and 6 rows; a token alone has C_S."""
    with torch.device("meta"):
        carrier, token = DistillationPrompts(width, 12, 6), DistillationPrompts(width)
    assert sum(p.numel() for p in carrier.parameters()) == count
    assert sum(p.numel() for p in token.parameters()) == width


def test_where_they_stand() -> None:
    prompts = DistillationPrompts(8, 4, 6).prompts()
    assert sorted(prompts) == [0, 1, 2, 3]
    assert prompts[0].tokens.shape == (1, 8)
    assert prompts[0].behind is None
    for block in (1, 2, 3):
        assert prompts[block].tokens is prompts[block].front is None
        assert [rows.shape for rows in prompts[block].behind] == [(3, 8)] * 2
    assert sorted(DistillationPrompts(8).prompts()) == [0]


def test_how_they_start() -> None:
    torch.manual_seed(0)
    assert not DistillationPrompts(64, uniform=False).token.any()
    for parameter in DistillationPrompts(64, 3, 6).parameters():
        assert 0 <= parameter.min() < 0.1
        assert 0.9 < parameter.max() < 1


def test_rows_by_attention_of_a_prefix_to_itself() -> None:
    mapper = AttentionMapper(2, 3).double()
    with torch.no_grad():
        for layer in (mapper.query, mapper.key):
            layer.weight.copy_(torch.eye(2))
            layer.bias.zero_()
        mapper.value.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1]]))
        mapper.value.bias.copy_(torch.tensor([0.0, 0, 1]))
    keys = torch.tensor([[1.0, 0], [0, 0]], dtype=torch.float64)
    found = mapper(KeysValues(keys, 0 * keys))
    share = 1 / (1 + math.exp(-1 / math.sqrt(2)))  # of row 0 in itself; row 1 has a half of each
    wanted = [[share, 0, share + 1], [0.5, 0, 1.5]]
    torch.testing.assert_close(found.keys, torch.tensor(wanted, dtype=torch.float64))
    assert found.values.tolist() == [[0, 0, 1]] * 2, "same weights, other rows"
    several = KeysValues(torch.stack([keys, keys + 1]), torch.zeros(2, 2, 2, dtype=torch.float64))
    assert torch.equal(mapper(several).keys[0], found.keys)


def test_components_weighted_by_the_mean_of_a_prefix() -> None:
    """g = (1, 2) has weights 0.6 and 0.894427 with keys and attention of invariant 3."""
    mapper = ComponentMapper(2, 2, 2, 2)
    with torch.no_grad():
        mapper.attention.copy_(torch.tensor([[1.0, 0], [1, 1]]))
        mapper.keys.copy_(torch.tensor([[3.0, 4], [0, 2]]))
        mapper.components.copy_(torch.tensor([[1.0, 0, 0, 1], [0, 2, 2, 0]]))
    prefix = KeysValues(torch.tensor([[0.0, 0], [2, 2]]), torch.tensor([[0.0, 2], [2, 4]]))
    found = mapper(prefix)
    assert found.keys.tolist() == [pytest.approx([0.6, 1.788854], abs=1e-6)]
    assert found.values.tolist() == [pytest.approx([1.788854, 0.6], abs=1e-6)]
    several = mapper(KeysValues(*(rows.expand(3, 2, 2) for rows in prefix)))
    assert several.keys.shape == (3, 1, 2)
    torch.testing.assert_close(several.keys[2], found.keys)


def test_components_start_orthonormal_by_the_global_seed() -> None:
    def made(seed: int) -> ComponentMapper:
        torch.manual_seed(seed)
        return ComponentMapper(6, 4, 5, 2)

    first, again, other = made(0), made(0), made(1)
    for name, rows in first.named_parameters():
        assert (rows @ rows.T - torch.eye(5)).abs().max() < 1e-5
        assert torch.equal(rows, again.get_parameter(name))
        assert not torch.equal(rows, other.get_parameter(name))


def test_a_mapper_can_be_sized_without_memory() -> None:
    with torch.device("meta"):
        mapper = ComponentMapper(768, 384, 10, 8)
    assert sum(p.numel() for p in mapper.parameters()) == 10 * (2 * 768 + 8 * 384)


def test_every_block_has_a_mapper_of_its_own() -> None:
    torch.manual_seed(0)
    mapper = PrefixMapper({block: AttentionMapper(4, 2) for block in (0, 3)})
    prefix = BlockPrompts(front=halves(torch.randn(6, 4)))
    found = mapper({0: prefix, 3: prefix})
    assert [found[block].front.keys.shape for block in (0, 3)] == [(3, 2)] * 2
    assert not torch.equal(found[0].front.keys, found[3].front.keys)
    assert sorted(mapper({3: prefix, 1: prefix})) == [3]
    assert mapper({}) == {}
