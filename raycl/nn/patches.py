"""Patches of small images by convolutions, for the vision transformers of timm."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class ConvolutionalPatches(nn.Module):
    """Patches of small images by 3x3 convolutions of stride 2, for ``embed_layer`` of timm.

    Patches of 2^n pixels take n convolutions, each with half the channels of the next; group
    normalisation over all channels and GELU stand between them. Sides of images that are no
    multiple of the patch are rounded up: 28 pixels and patches of 8 give 4 x 4 tokens. A token
    sees ``2 * patch_size - 1`` pixels, so that neighbours overlap.

    Args:
        img_size: Height and width of images, or one number for both.
        patch_size: Pixels from one token to the next; a power of two, 2 or more.
        in_chans: Channels of images.
        embed_dim: Channels of a token, C; divisible by ``patch_size / 2``.
        bias: Whether the last convolution has one.
        device: Device of the weights.
        dtype: Number type of the weights.
        others: Arguments of timm's own patch embedding, which must be off.

    Attributes:
        grid_size: Tokens per column and per row.
        num_patches: Tokens of an image, N.

    Raises:
        ValueError: An argument is not as described.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 32,
        patch_size: int = 4,
        in_chans: int = 3,
        embed_dim: int = 192,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        **others: Any,
    ) -> None:
        super().__init__()
        unknown = sorted(name for name, value in others.items() if value)
        if unknown:
            raise ValueError(f"convolutional patches have no option '{unknown[0]}'")
        if not isinstance(patch_size, int) or patch_size < 2 or patch_size & (patch_size - 1):
            raise ValueError(
                f"convolutional patches have 2, 4, 8, 16, ... pixels a side, not {patch_size}"
            )
        if embed_dim % (patch_size // 2):
            raise ValueError(f"embed_dim {embed_dim} is not divisible by {patch_size // 2}")
        sides = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.img_size = (sides[0], sides[1])
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (-(-sides[0] // patch_size), -(-sides[1] // patch_size))
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        steps = patch_size.bit_length() - 1
        layers: list[nn.Module] = []
        before = in_chans
        for left in reversed(range(steps)):
            channels, last = embed_dim >> left, left == 0
            layers.append(nn.Conv2d(before, channels, 3, 2, 1, bias=bias and last, **where))
            if not last:
                layers += [nn.GroupNorm(1, channels, **where), nn.GELU()]
            before = channels
        self.layers = nn.Sequential(*layers)

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Pixels per token, as timm asks for them."""
        return self.patch_size[0] if as_scalar else self.patch_size

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, in_chans, height, width) to tokens (B, N, C), row by row.

        Raises:
            ValueError: Images have another size than the layer was built for.
        """
        if tuple(images.shape[2:]) != self.img_size:
            found, wanted = ("x".join(map(str, s)) for s in (images.shape[2:], self.img_size))
            raise ValueError(f"images of {found} do not fit patches for {wanted}")
        tokens: Tensor = self.layers(images)
        return tokens.flatten(2).transpose(1, 2)
