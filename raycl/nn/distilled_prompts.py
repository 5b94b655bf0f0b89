"""Prompts of a student that carry what a teacher knows.

Shapes are written with B images, L rows of a prefix, and C_S and C_T channels of student and
teacher.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from raycl.nn.prompt_pools import orthonormal_rows, weighted
from raycl.nn.prompted_vit import BlockPrompts, KeysValues, halves


class DistillationPrompts(nn.Module):
    """A second class token, and prefixes behind the keys and values of later blocks.

    The token joins in front of block 0 without a position. All images and all tasks share them.

    Args:
        width: C_S.
        blocks: Blocks with something of this kind: the token for block 0, a prefix for each other.
        length: Rows of a prefix, keys and values.
        uniform: Whether the token starts uniform in (0, 1), as prefixes do, or at zero.
    """

    def __init__(self, width: int, blocks: int = 1, length: int = 0, uniform: bool = True) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.rand(1, width) if uniform else torch.zeros(1, width))
        self.prefixes = nn.ParameterList()
        for _ in range(blocks - 1):
            self.prefixes.append(nn.Parameter(torch.rand(length, width)))

    def prompts(self) -> dict[int, BlockPrompts]:
        """Prompts by block: token and prefixes."""
        prompts = {0: BlockPrompts(tokens=self.token)}
        for number, rows in enumerate(self.prefixes, start=1):
            prompts[number] = BlockPrompts(behind=halves(rows))
        return prompts


class AttentionMapper(nn.Module):
    """A teacher's prefix in the student's width, by attention of its rows to each other.

    One head: softmax(Q K^T / sqrt(C_T)) V with V of C_S channels, applied to the rows of the keys
    and, with the same weights, to those of the values.
    """

    def __init__(self, teacher: int, student: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(teacher, teacher), nn.Linear(teacher, teacher)
        self.value = nn.Linear(teacher, student)

    def forward(self, prefix: KeysValues) -> KeysValues:
        """Map rows of C_T channels to as many rows of C_S channels."""
        return KeysValues(*(self._mapped(rows) for rows in prefix))

    def _mapped(self, rows: Tensor) -> Tensor:
        scale = rows.shape[-1] ** -0.5
        weights = (self.query(rows) @ self.key(rows).transpose(-1, -2) * scale).softmax(-1)
        return weights @ self.value(rows)  # type: ignore[no-any-return]


class ComponentMapper(nn.Module):
    """A prefix for the student as a weighted sum of components; the teacher's prefix weights them.

    The mean of all rows of the teacher's prefix is the query of ``prompt_pools.weighted``. The
    components start orthonormal.

    Args:
        teacher: C_T.
        student: C_S.
        count: Components.
        length: Rows of the prefix, keys and values.
    """

    def __init__(self, teacher: int, student: int, count: int, length: int) -> None:
        super().__init__()
        self.length = length

        def drawn(width: int) -> nn.Parameter:
            start = torch.Generator().manual_seed(int(torch.randint(2**31, (), device="cpu")))
            return nn.Parameter(orthonormal_rows(torch.empty(0, width), count, start))

        self.keys, self.attention = drawn(teacher), drawn(teacher)
        self.components = drawn(length * student)

    def forward(self, prefix: KeysValues) -> KeysValues:
        """Map a prefix (L, C_T) or (B, L, C_T) to one of ``length`` / 2 rows, per image too."""
        query = torch.cat(prefix, -2).mean(-2)
        rows = self.components.unflatten(1, (self.length, -1))  # type: ignore[no-untyped-call]
        mapped = weighted(query.reshape(-1, query.shape[-1]), self.attention, self.keys, rows)
        return halves(mapped if query.ndim == 2 else mapped[0])


class PrefixMapper(nn.Module):
    """Maps a teacher's prefixes of some blocks, each by a mapper of its own."""

    def __init__(self, mappers: Mapping[int, nn.Module]) -> None:
        super().__init__()
        self.blocks = tuple(mappers)
        self.mappers = nn.ModuleList(mappers.values())

    def forward(self, prompts: Mapping[int, BlockPrompts]) -> dict[int, BlockPrompts]:
        """Map the teacher's prefixes to the student's width; without any, there are none."""
        mapped = {}
        for block, mapper in zip(self.blocks, self.mappers, strict=True):
            prefix = prompts[block].front if block in prompts else None
            if prefix is not None:
                mapped[block] = BlockPrompts(front=mapper(prefix))
        return mapped
