"""A Swin transformer for small images: windows of 4x4 and patches of 2x2 pixels.

Maps have their channels last: (B, H, W, C).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raycl.networks._cifar_plain import Shape

WINDOW = 4
"""Side of the windows of attention, in vectors of the map."""

SHIFT = WINDOW // 2
"""Distance by which every second layer moves its windows."""

HEAD = 32
"""Width of a head of attention."""

STAGES = ((2, 96, 2), (2, 192, 2), (2, 384, 6), (1, 768, 2))
"""Side of the patches that are merged, width and number of layers, for every stage."""


class Merge(nn.Module):
    """Joins every square of vectors to one and maps it linearly."""

    def __init__(self, fan_in: int, fan_out: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.linear = nn.Linear(fan_in * side**2, fan_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, fan_in) to (B, H / side, W / side, fan_out)."""
        return self.linear(cut(x, self.side).flatten(3))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention inside windows of 4x4, with one number added for each relative position.

    All heads share the table of these 7x7 numbers. Shifted windows start two vectors further down
    and to the right, and wrap around at the edges of the map; vectors that the wrapping brings
    together do not see each other. A map that is one window in all is shifted like any other.
    """

    index: Tensor
    apart: Tensor

    def __init__(self, width: int, *, shifted: bool) -> None:
        super().__init__()
        self.shifted = shifted
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn(2 * WINDOW - 1, 2 * WINDOW - 1))
        place = torch.arange(WINDOW**2)
        row, column = place // WINDOW, place % WINDOW
        down, right = (at[None, :] - at[:, None] + WINDOW - 1 for at in (row, column))
        self.register_buffer("index", down * (2 * WINDOW - 1) + right, persistent=False)
        if shifted:
            wrapped = (row >= WINDOW - SHIFT, column >= WINDOW - SHIFT)
            apart = torch.stack([at[None, :] != at[:, None] for at in wrapped])
            self.register_buffer("apart", apart, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, width) to the same shape."""
        if self.shifted:
            x = x.roll((-SHIFT, -SHIFT), (1, 2))
        # (3, B, H / 4, W / 4, heads, 16, 32)
        q, k, v = self.qkv(cut(x, WINDOW)).unflatten(-1, (3, -1, HEAD)).permute(4, 0, 1, 2, 5, 3, 6)
        scores = q @ k.transpose(-2, -1) * HEAD**-0.5 + self.table.flatten()[self.index]
        if self.shifted:
            scores = scores.masked_fill(self.blocked(*scores.shape[1:3]), -torch.inf)
        seen = scores.softmax(-1) @ v
        x = self.out(paste(seen.transpose(-3, -2).flatten(-2), WINDOW))
        return x.roll((SHIFT, SHIFT), (1, 2)) if self.shifted else x

    def blocked(self, rows: int, columns: int) -> Tensor:
        """Mark the pairs of vectors that do not see each other: bool (rows, columns, 1, 16, 16)."""
        last_row, last_column = (
            torch.arange(n, device=self.apart.device) == n - 1 for n in (rows, columns)
        )
        down = last_row[:, None, None, None] & self.apart[0]
        right = last_column[:, None, None] & self.apart[1]
        return (down | right)[:, :, None]


class Layer(nn.Module):
    """Attention, then an MLP four times as wide; each reads a LayerNorm and is added."""

    def __init__(self, width: int, *, shifted: bool) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width, shifted=shifted))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            *(nn.Linear(width, 4 * width), nn.GELU()),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, width) to the same shape."""
        x = x + self.attention(x)
        return x + self.mlp(x)  # type: ignore[no-any-return]


class Swin(nn.Module):
    """Swin-T with patches of 2, 2, 2 and 1 and windows of 4: 768 features."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        fan_in = shape[0]
        for side, width, depth in STAGES:
            layers.append(Merge(fan_in, width, side))
            layers += [Layer(width, shifted=bool(position % 2)) for position in range(depth)]
            fan_in = width
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(fan_in)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to (B, 768)."""
        return self.norm(self.layers(images.movedim(1, -1)).mean((1, 2)))  # type: ignore[no-any-return]


def cut(x: Tensor, side: int) -> Tensor:
    """Cut a map (B, H, W, C) into squares (B, H / side, W / side, side * side, C)."""
    batch, height, width, channels = x.shape
    squares = x.reshape(batch, height // side, side, width // side, side, channels)
    return squares.transpose(2, 3).flatten(3, 4)


def paste(x: Tensor, side: int) -> Tensor:
    """Put the squares that ``cut`` made together again."""
    batch, rows, columns, _, channels = x.shape
    squares = x.reshape(batch, rows, columns, side, side, channels)
    return squares.transpose(2, 3).reshape(batch, rows * side, columns * side, channels)
