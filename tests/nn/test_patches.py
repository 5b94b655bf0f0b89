"""Convolutional patches: shapes, what a token sees, and what is refused."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from raycl.nn.patches import ConvolutionalPatches


@pytest.mark.parametrize(
    "side, patch, width, grid, steps",
    [(28, 8, 48, 4, 3), (32, 4, 96, 8, 2), (32, 2, 5, 16, 1), (33, 16, 64, 3, 4)],
)
def test_shapes(side, patch, width, grid, steps):
    layer = ConvolutionalPatches(side, patch, 1, width)
    convolutions = [m for m in layer.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in layer.modules() if isinstance(m, nn.GroupNorm)]
    assert (len(convolutions), len(norms)) == (steps, steps - 1)
    assert [m.out_channels for m in convolutions] == [width >> n for n in reversed(range(steps))]
    assert layer(torch.zeros(2, 1, side, side)).shape == (2, grid * grid, width)
    assert (layer.num_patches, layer.grid_size) == (grid * grid, (grid, grid))
    assert (layer.feat_ratio(), layer.feat_ratio(as_scalar=False)) == (patch, (patch, patch))


def test_tokens_row_by_row():
    layer = ConvolutionalPatches((8, 16), 4, 1, 8)
    images = torch.zeros(1, 1, 8, 16)
    assert layer.grid_size == (2, 4)
    assert torch.equal(layer(images), layer.layers(images).flatten(2).mT)


def test_a_token_sees_its_neighbourhood():
    layer = ConvolutionalPatches(32, 8, 1, 16)
    for part in layer.layers:  # the normalisation sees the whole image
        if isinstance(part, nn.GroupNorm):
            part.forward = lambda x: x
    images = torch.zeros(1, 1, 32, 32, requires_grad=True)
    layer(images)[0, 5].sum().backward()  # second row, second column
    (sees,) = images.grad[0, 0].any(0).nonzero().T.tolist()
    assert len(sees) == 15
    assert sees == [*range(1, 16)]


def test_in_a_transformer():
    model = VisionTransformer(
        img_size=28, patch_size=8, in_chans=1, num_classes=0, embed_dim=48, depth=1, num_heads=2,
        embed_layer=ConvolutionalPatches,
    )  # fmt: skip
    assert model.pos_embed.shape == (1, 17, 48)
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 48)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"patch_size": 7}, "2, 4, 8, 16, ... pixels a side, not 7"),
        ({"patch_size": 1}, "not 1"),
        ({"patch_size": 16, "embed_dim": 12}, "embed_dim 12 is not divisible by 8"),
        ({"output_fmt": "NHWC"}, "no option 'output_fmt'"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        ConvolutionalPatches(**options)


def test_images_of_another_size():
    with pytest.raises(ValueError, match="images of 28x32 do not fit patches for 32x32"):
        ConvolutionalPatches(32, 4, 3, 8)(torch.zeros(1, 3, 28, 32))
