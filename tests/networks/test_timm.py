"""Networks of timm: names whose weights changed, and patches by convolutions."""

from __future__ import annotations

import warnings

import pytest
import torch

from raycl.errors import UserError
from raycl.networks.base import find_network
from raycl.networks.timm import TimmNetwork
from raycl.nn.patches import ConvolutionalPatches

BASE = "vit_base_patch16_224"
SMALL = {"img_size": 32, "patch_size": 4, "depth": 1, "embed_dim": 24}


def config(model: str, **options):
    return find_network({"name": "timm", "model": model, **options})[1]


def test_a_bare_name_warns_and_names_both_tags():
    with pytest.warns(UserWarning, match="network.model") as caught:
        config(BASE, pretrained=True)
    for tag in ("augreg2_in21k_ft_in1k", "augreg_in21k_ft_in1k"):
        assert f"{BASE}.{tag}" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config(BASE)
        config(f"{BASE}.augreg_in21k_ft_in1k", pretrained=True)
        config("vit_tiny_patch16_224", pretrained=True)


def test_patches_by_convolutions():
    options = config("vit_tiny_patch16_224", model_args=SMALL | {"embed_layer": "convolutions"})
    network = TimmNetwork(options, (1, 32, 32))
    assert isinstance(network.model.patch_embed, ConvolutionalPatches)
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 24)
    with pytest.raises(UserError, match="does not take images of 28x28"):
        TimmNetwork(options, (1, 28, 28))


@pytest.mark.parametrize(
    "changed, message",
    [
        (
            {"embed_layer": "convolution"},
            "model_args.embed_layer: there is no .* mean 'convolutions'",
        ),
        ({"embed_layer": "convolutions", "patch_size": 5}, "cannot create .*2, 4, 8.* not 5"),
    ],
)
def test_refusals(changed, message):
    options = config("vit_tiny_patch16_224", model_args=SMALL | changed)
    with pytest.raises(UserError, match=message):
        TimmNetwork(options, (3, 32, 32))
