"""Networks of timm: names whose weights changed, and patches by convolutions."""

from __future__ import annotations

import warnings

import pytest
import torch
from pydantic import ValidationError

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


@pytest.mark.parametrize(
    "model, arguments, message",
    [
        ("resnet18", {"features_only": True}, "gives no feature vector but several outputs"),
        ("resnet18", {"act_layer": "gelux"}, r"model_args: cannot create .*KeyError\('gelux'\)"),
        ("resnet18", {"layers": []}, "does not take images of 32x32: .* no attribute 'layer1'"),
        ("resnet18", {"output_stride": 7}, "model_args: cannot create resnet18: AssertionError"),
        ("vit_tiny_patch16_224", SMALL | {"patch_size": 0}, "model_args: cannot create .* by zero"),
    ],
)
def test_arguments_that_timm_does_not_check(model, arguments, message):
    with pytest.raises(UserError, match=message):
        TimmNetwork(config(model, model_args=arguments), (3, 32, 32))


def test_mean_and_std_of_pretrained_weights():
    described = TimmNetwork.normalisation(config("vit_tiny_patch16_224", pretrained=True))
    assert described == ((0.5,) * 3, (0.5,) * 3)
    unchanged = {"mean": [0, 0, 0], "std": [1, 1, 1]}
    options = config("vit_tiny_patch16_224", pretrained=True, **unchanged)
    assert TimmNetwork.normalisation(options) == ((0.0,) * 3, (1.0,) * 3)
    dumped = options.model_dump(mode="json")
    assert {name: dumped[name] for name in unchanged} == unchanged
    assert "mean" not in config("vit_tiny_patch16_224", pretrained=True).model_dump()
    assert options.untrained() == config("vit_tiny_patch16_224")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mean": [0, 0, 0]}, "mean and std go together"),
        ({"mean": [0, 0, 0], "std": [1, 1]}, "mean has 3 values, std 2"),
        ({"mean": [0, 0, 0], "std": [1, 1, 0]}, "std must be positive"),
        ({"mean": [0], "std": [1], "pretrained": False}, "are for pretrained weights"),
    ],
)
def test_mean_and_std_that_do_not_fit(options, message):
    with pytest.raises(ValidationError, match=message):
        config("vit_tiny_patch16_224", **{"pretrained": True} | options)
