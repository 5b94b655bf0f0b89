import pytest
import torch
from pydantic import ValidationError
from torch import nn

from raycl import registry
from raycl.errors import UserError
from raycl.networks.base import Backbone
from raycl.networks.torchvision import Pool
from raycl.sweep.kinds import registered

GREY, COLOUR = (1, 8, 8), (3, 32, 32)


def build(name, shape, **options):
    cls = registry.find("raycl.networks", Backbone, name)
    return cls(cls.Config(name=name, **options), shape)


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_registered_names():
    names = registry.names("raycl.networks")
    assert {"cnn", "mlp", "resnet32", "timm", "torchvision"} <= set(names)


@pytest.mark.parametrize("shape", [GREY, COLOUR])
@pytest.mark.parametrize(
    "name, options",
    [
        ("mlp", {"hidden": [20, 10], "dropout": 0.1}),
        ("cnn", {"channels": [4, 8], "features": 12}),
        ("resnet32", {}),
        ("torchvision", {"model": "mobilenet_v3_small"}),
        ("timm", {"model": "mobilenetv3_small_050"}),
    ],
)
def test_features_and_gradients(name, options, shape):
    network = build(name, shape, **options)
    assert network.training
    features = network(torch.randn(3, *shape))
    assert features.shape == (3, network.num_features)
    features.square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    with torch.device("meta"):  # how its size is counted without memory
        assert count(build(name, shape, **options)) == count(network)


def test_mlp_layers():
    network = build("mlp", (1, 28, 28), hidden=[1200])
    assert count(network) == 942_000  # arXiv 2105.04444's network without heads
    assert network.num_features == 1200
    x = torch.randn(2, 1, 28, 28)
    first = network.layers[1]
    assert torch.equal(network(x), torch.relu(x.flatten(1) @ first.weight.T + first.bias))
    assert not any(isinstance(m, nn.Dropout) for m in network.modules())


@pytest.mark.parametrize("options", [{"hidden": []}, {"hidden": [0]}, {"dropout": 1.0}, {"h": 3}])
def test_mlp_bounds(options):
    with pytest.raises(ValidationError):
        build("mlp", GREY, **options)


def test_cnn_refuses_images_it_would_halve_to_nothing():
    assert build("cnn", GREY, channels=[2, 2, 2]).num_features == 128
    with pytest.raises(UserError, match="at most 3 stages"):
        build("cnn", GREY, channels=[2, 2, 2, 2])


def test_resnet32_parameters():
    network = build("resnet32", COLOUR)
    for outputs, total in ((100, 470_004), (200, 476_504), (1000, 528_504)):
        assert count(network) + count(nn.Linear(64, outputs)) == total
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()) == 31
    assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == 31


def test_resnet32_with_fewer_blocks():
    """What the ImageNet script of arXiv 2106.09701 calls a ResNet-18."""
    network = build("resnet32", COLOUR, blocks=2)
    assert count(network) + count(nn.Linear(64, 1000)) == 236_856
    assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == 13
    assert network(torch.randn(2, *COLOUR)).shape == (2, 64)
    assert [block.conv1.stride[0] for block in network.blocks] == [1, 1, 2, 1, 2, 1]
    with pytest.raises(ValidationError):
        build("resnet32", COLOUR, blocks=0)


def test_a_head_starts_as_its_network_says():
    torch.manual_seed(0)
    plain, head = nn.Linear(64, 1000), nn.Linear(64, 1000)
    bias = head.bias.detach().clone()
    build("resnet32", COLOUR).init_head(head)
    assert head.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.01)  # He, fan-in
    assert head.weight.mean().item() == pytest.approx(0, abs=0.005)
    assert torch.equal(head.bias, bias)
    before = plain.weight.detach().clone()
    build("mlp", GREY).init_head(plain)
    assert torch.equal(plain.weight, before)


def test_resnet32_maps():
    network = build("resnet32", COLOUR).eval()
    shapes = []
    for block in network.blocks:
        block.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
    network(torch.randn(1, *COLOUR))
    assert shapes == [(16, 32, 32)] * 5 + [(32, 16, 16)] * 5 + [(64, 8, 8)] * 5
    assert build("resnet32", (1, 7, 5))(torch.randn(2, 1, 7, 5)).shape == (2, 64)  # odd sides


def test_resnet32_shortcut():
    block = build("resnet32", COLOUR).blocks[5]
    x = torch.randn(2, 16, 8, 8)
    out = block.shortcut(x)
    assert out.shape == (2, 32, 4, 4)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()
    nn.init.zeros_(block.bn2.weight)  # the residual branch is silent: the block is its shortcut
    assert torch.equal(block.eval()(x), torch.relu(out))


def test_resnet32_initial_weights():
    torch.manual_seed(0)
    blocks = build("resnet32", COLOUR).blocks
    weight = blocks[-1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert weight.mean().item() == pytest.approx(0.0, abs=0.001)
    wider = blocks[10].conv1.weight  # fan-in, not fan-out: 32 channels to 64
    assert wider.std().item() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.03)


def test_torchvision_repeats_grey_images():
    network = build("torchvision", (1, 32, 32), model="mobilenet_v3_small").eval()
    grey = torch.randn(2, 1, 32, 32)
    assert torch.equal(network(grey), network.model(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(UserError, match="1 or 3 channels"):
        build("torchvision", (2, 32, 32))


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
def test_torchvision_has_no_auxiliary_heads():
    with torch.device("meta"):  # shapes only: its random weights take seconds
        network = build("torchvision", (3, 64, 64), model="googlenet")
        assert network.train()(torch.zeros(2, 3, 64, 64)).shape == (2, 1024)
    assert not any("aux" in name for name, _ in network.named_parameters())


@pytest.mark.parametrize(
    "name, options, shape, message",
    [
        ("torchvision", {"model": "resnet17"}, COLOUR, "did you mean 'resnet18'"),
        ("torchvision", {"model": "resnet18", "weights": "x"}, COLOUR, "IMAGENET1K_V1"),
        ("torchvision", {"model": "squeezenet1_0"}, COLOUR, "not linear"),
        ("torchvision", {"model": "vit_b_16"}, COLOUR, "32x32.*Expected 224"),
        ("timm", {"model": "resnet17"}, COLOUR, "did you mean 'resnet18'"),
        ("timm", {"model": "resnet18.nope"}, COLOUR, "Invalid pretrained tag"),
        ("timm", {"model": "vit_tiny_patch16_224"}, COLOUR, r"32x32.*224"),
    ],
)
def test_wrong_names_and_sizes(name, options, shape, message):
    with pytest.raises(UserError, match=message):
        build(name, shape, **options)


def test_timm_adapts_its_stem_to_the_channels():
    network = build("timm", GREY, model="mobilenetv3_small_050")
    assert next(network.parameters()).shape[1] == 1


def test_a_sequence_is_for_images_only():
    kinds = {name: kinds for kinds, name, _ in registered("network")}
    assert kinds["sequence"] == "images"
    assert kinds["cnn"] == "images, games"


def test_cnn_with_batch_norm():
    network = build("cnn", GREY, channels=[4, 8], features=12, batch_norm=True)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [norm.num_features for norm in norms] == [4, 8]
    assert all(m.bias is None for m in network.modules() if isinstance(m, nn.Conv2d))
    plain = build("cnn", GREY, channels=[4, 8], features=12)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())


@pytest.mark.parametrize("size", [(1, 1), (2, 4), (6, 6), (7, 7), (12, 6), (13, 9)])
@pytest.mark.parametrize("to", [(6, 6), (2, 3), 7])
def test_pools_of_torchvision_say_what_torch_says(size, to):
    """The same averages, by operations that are deterministic on CUDA where sides allow it."""
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Pool(to)(images), nn.AdaptiveAvgPool2d(to)(images))


def test_alexnet_has_such_a_pool():
    network = build("torchvision", (3, 64, 64), model="alexnet")
    assert type(network.model.avgpool) is Pool
    assert "avgpool" not in "".join(network.state_dict())
