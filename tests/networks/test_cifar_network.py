"""The ten networks of arXiv 2306.08593: their sizes, and what sizes do not show."""

import functools

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from raycl import registry
from raycl.errors import UserError
from raycl.networks._cifar_plain import GlobalMean, InceptionModule
from raycl.networks._cifar_residual import (
    DenseLayer,
    PreActivation,
    Residual,
    SqueezeExcitation,
    basic,
    bottleneck,
)
from raycl.networks._cifar_swin import Attention, Layer, Merge, cut, paste
from raycl.networks.base import Backbone

# model: parameters with 10 and 100 outputs at 32x32, and 200 at 64x64; features; BN; channels of BN
TABLE = {
    "lenet": (62_006, 69_656, 354_636, 84, 0, 0),
    "alexnet": (23_272_266, 23_640_996, None, 4096, 0, 0),
    "vgg16": (15_253_578, 15_299_748, None, 512, 13, 4224),
    "inception": (6_166_250, 6_258_500, None, 1024, 64, 7904),
    "resnet18": (11_173_962, 11_220_132, 11_271_432, 512, 20, 4800),
    "resnext": (9_128_778, 9_221_028, 9_323_528, 1024, 31, 12_608),
    "densenet": (6_956_298, 7_048_548, None, 1024, 120, 41_760),
    "senet": (11_260_354, 11_306_524, 11_361_920, 512, 17, 3456),
    "regnet": (2_321_946, 2_355_156, 2_392_056, 368, 44, 10_456),
    "swin": (26_601_718, 26_670_928, 26_747_828, 768, 0, 0),
}
AT_64 = [model for model, row in TABLE.items() if row[2]]
AT_28 = ["lenet", "inception", "resnet18", "resnext", "densenet", "senet", "regnet"]


def build(model, side=32, channels=3):
    cls = registry.find("raycl.networks", Backbone, "cifar")
    shape = (channels, *side) if isinstance(side, tuple) else (channels, side, side)
    return cls(cls.Config(name="cifar", model=model), shape)


@functools.cache
def blueprint(*args):
    """A network without values, for its layers and their shapes; not to be changed."""
    with torch.device("meta"):
        return build(*args)


def hollow(*args):
    """A network of zeros: to look at the shapes of its maps, faster than on ``meta``."""
    with torch.device("meta"):
        network = build(*args)
    network.to_empty(device="cpu")
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data.zero_()
    return network


def parts(network, *kinds):
    """The layers of some kinds in a network, in the order of their making."""
    return [module for module in network.modules() if isinstance(module, kinds)]


def types(layers):
    return [type(layer) for layer in layers]


def maps(network, kind, side=32):
    """Channels and height of what each layer of a kind gives."""
    found = []
    for module in parts(network, kind):
        module.register_forward_hook(lambda _, __, out: found.append(tuple(out.shape[1:3])))
    with torch.no_grad():
        features = network.eval()(torch.zeros(1, 3, side, side))
    assert features.shape == (1, network.num_features)
    return found


def total(network, outputs):
    """Parameters with a head, as HCL counts them: with the constant masks of shifted windows."""
    numbers = sum(p.numel() for p in network.parameters())
    masks = sum(module.apart.numel() for module in parts(network, Attention) if module.shifted)
    return numbers + masks + (network.num_features + 1) * outputs


def randomise(module):
    """Values other than ones and zeros for its BN layers, as after some training."""
    for bn in parts(module, nn.BatchNorm2d):
        for tensor in (bn.weight.data, bn.running_var):
            tensor.uniform_(0.5, 1.5)
        for tensor in (bn.bias.data, bn.running_mean):
            tensor.normal_()
    return module.eval()


@pytest.mark.parametrize("model", TABLE)
def test_size(model):
    ten, hundred, at_64, features, layers, channels = TABLE[model]
    network = blueprint(model)
    assert (total(network, 10), total(network, 100)) == (ten, hundred)
    assert network.num_features == features
    norms = parts(network, nn.BatchNorm2d)
    assert (len(norms), sum(norm.num_features for norm in norms)) == (layers, channels)
    assert all(p.requires_grad for p in network.parameters())
    if at_64:
        assert total(blueprint(model, 64), 200) == at_64
        assert blueprint(model, 64).num_features == features


def test_parameters_of_swin_and_its_masks():
    network = blueprint("swin")
    assert sum(p.numel() for p in network.parameters()) + 7690 == 26_598_646
    assert total(network, 0) - sum(p.numel() for p in network.parameters()) == 6 * 2 * 16 * 16
    assert not network.state_dict().keys() - dict(network.named_parameters()).keys()


@pytest.mark.parametrize("model, count", [("lenet", 2), ("alexnet", 5), ("swin", 0)])
def test_convolutions(model, count):
    assert len(parts(blueprint(model), nn.Conv2d)) == count


@pytest.mark.parametrize("model", TABLE)
def test_features_and_gradients(model):
    torch.manual_seed(0)
    network = build(model)
    assert network.training
    images = torch.randn(2, 3, 32, 32)
    features = network(images)
    assert features.shape == (2, network.num_features)
    features.square().sum().backward()
    assert features.isfinite().all()
    assert all(p.grad is not None for p in network.parameters())
    with torch.no_grad():
        assert network(images[:1]).shape == (1, network.num_features)  # one image, in train mode
        both = network.eval()(images)
        assert both.shape == (2, network.num_features)
        alone = network(images[:1])
    torch.testing.assert_close(both[:1], alone, rtol=1e-4, atol=1e-5)  # images do not mix
    assert not torch.allclose(both[0], both[1])


@pytest.mark.parametrize(
    "model, side, channels",
    [
        *((model, 64, 3) for model in AT_64),
        *((model, 28, 1) for model in AT_28),
        *((model, (24, 16), 2) for model in ("lenet", "resnet18", "resnext", "senet", "regnet")),
        *(("alexnet", side, 3) for side in (31, 46)),
        *(("vgg16", side, 3) for side in (32, 63)),
        ("lenet", 16, 1),
        ("densenet", 8, 3),
        ("senet", 84, 3),
        *((model, 3, 3) for model in ("inception", "resnet18", "resnext", "senet", "regnet")),
        ("swin", (32, 96), 1),
    ],
)
def test_other_images(model, side, channels):
    network = hollow(model, side, channels)
    sides = side if isinstance(side, tuple) else (side, side)
    with torch.no_grad():
        features = network(torch.zeros(2, channels, *sides))
    assert features.shape == (2, network.num_features)


@pytest.mark.parametrize(
    "model, side, takes",
    [
        ("alexnet", 64, "31 to 46 pixels"),
        ("vgg16", 64, "32 to 63 pixels"),
        ("inception", 64, "1 to 32 pixels"),
        ("densenet", 64, "8 to 32 pixels"),
        *((model, 28, "") for model in ("alexnet", "vgg16", "swin")),
        *(("alexnet", side, "") for side in (30, 47, (32, 64), (64, 32))),
        ("vgg16", 31, ""),
        ("lenet", 15, "at least 16"),
        ("densenet", 7, ""),
        ("inception", 33, ""),
        ("swin", 48, "multiples of 32"),
    ],
)
def test_images_it_does_not_take(model, side, takes):
    height, width = side if isinstance(side, tuple) else (side, side)
    start = f"network.model: {model} does not take images of {height}x{width}, but sides of {takes}"
    with pytest.raises(UserError) as error:
        blueprint(model, side)
    line = str(error.value)
    assert line.startswith(start)
    assert "\n" not in line
    assert "resnet18" in line.partition("take one of ")[2].split(", ")


def test_networks_offered_for_large_images():
    with pytest.raises(UserError) as error:
        blueprint("vgg16", 64)
    assert error.value.hint.endswith(f"take one of {', '.join(AT_64)}")


def test_model_must_be_one_of_ten():
    with pytest.raises(ValidationError, match="'lenet', 'alexnet'"):
        build("lenet5")


def test_lenet():
    network = hollow("lenet")
    assert maps(network, nn.Conv2d) == [(6, 28), (16, 10)]
    assert maps(network, nn.MaxPool2d) == [(6, 14), (16, 5)]
    half = [nn.Conv2d, nn.ReLU, nn.MaxPool2d]
    assert types(network.layers) == [*half * 2, nn.Flatten, *[nn.Linear, nn.ReLU] * 2]
    assert [layer.out_features for layer in parts(network, nn.Linear)] == [120, 84]


def test_alexnet():
    network = hollow("alexnet")
    assert maps(network, nn.Conv2d) == [(64, 16), (192, 8), (384, 4), (256, 4), (256, 4)]
    assert maps(network, nn.MaxPool2d) == [(64, 8), (192, 4), (256, 2)]
    assert [layer.kernel_size for layer in parts(network, nn.Conv2d)] == [(3, 3)] * 5
    half, pooled = [nn.Conv2d, nn.ReLU], [nn.Conv2d, nn.ReLU, nn.MaxPool2d]
    assert types(network.layers[:13]) == pooled * 2 + half * 2 + pooled


def test_vgg16():
    network = hollow("vgg16")
    sizes = [(64, 32)] * 2 + [(128, 16)] * 2 + [(256, 8)] * 3 + [(512, 4)] * 3 + [(512, 2)] * 3
    assert maps(network, nn.Conv2d) == sizes
    assert maps(network, nn.MaxPool2d) == [(64, 16), (128, 8), (256, 4), (512, 2), (512, 1)]
    convolutions = parts(network, nn.Conv2d)
    assert all(layer.bias is not None for layer in convolutions)
    assert all(layer.kernel_size == (3, 3) for layer in convolutions)


@pytest.mark.parametrize("model, width", [("alexnet", 4096), ("vgg16", 512)])
def test_dropout_comes_before_each_linear_layer(model, width):
    network = blueprint(model)
    assert types(network.layers[-7:]) == [nn.Flatten, *[nn.Dropout, nn.Linear, nn.ReLU] * 2]
    assert [layer.p for layer in parts(network, nn.Dropout)] == [0.5, 0.5]
    assert [layer.out_features for layer in parts(network, nn.Linear)] == [width, width]


def test_inception():
    network = hollow("inception")
    outputs = [256, 480, 512, 512, 512, 528, 832, 832, 1024]
    sides = [32] * 2 + [16] * 5 + [8] * 2
    assert maps(network, InceptionModule) == list(zip(outputs, sides, strict=True))
    stem = network.layers[0]
    assert types(stem) == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert (stem[0].kernel_size, stem[0].stride, stem[0].out_channels) == ((3, 3), (1, 1), 192)
    assert all(layer.bias is not None for layer in parts(network, nn.Conv2d))
    pools = [layer for layer in network.layers if isinstance(layer, nn.MaxPool2d)]
    assert [(pool.kernel_size, pool.stride, pool.padding) for pool in pools] == [(3, 2, 1)] * 2


def test_inception_module():
    module = randomise(InceptionModule(5, (1, 2, 3, 4, 6, 7)))
    branches = [[(1, 5, 1)], [(1, 5, 2), (3, 2, 3)], [(1, 5, 4), (3, 4, 6), (3, 6, 6)], [(1, 5, 7)]]
    for branch, sizes in zip(module.branches, branches, strict=True):
        convolutions = parts(branch, nn.Conv2d)
        assert [(c.kernel_size[0], c.in_channels, c.out_channels) for c in convolutions] == sizes
        assert types(parts(branch, nn.Conv2d, nn.BatchNorm2d, nn.ReLU)) == (
            [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * len(sizes)
        )
    x = torch.randn(2, 5, 6, 6)
    out = module(x)
    assert torch.equal(out[:, :1], module.branches[0](x))
    assert torch.equal(out[:, 1:4], module.branches[1](x))
    assert torch.equal(out[:, 4:10], module.branches[2](x))
    pooled = F.max_pool2d(x, 3, 1, padding=1)
    assert torch.equal(out[:, 10:], module.branches[3][1](pooled))


@pytest.mark.parametrize(
    "model, side, window",
    [
        ("inception", 32, 8),
        ("resnext", 32, 8),
        ("resnext", 64, 8),
        ("densenet", 32, 4),
        ("senet", 32, 4),
        ("senet", 64, 4),
        ("resnet18", 64, 8),
        ("regnet", 64, 16),
    ],
)
def test_last_map(model, side, window):
    """The mean, at 32 and at 64, is what an average over HCL's windows gives."""
    network = hollow(model, side)
    seen = []
    pool = network.layers[-1]
    assert isinstance(pool, GlobalMean)
    pool.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[2:]))
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, side, side))
    assert seen == [(window, window)]
    x = torch.randn(2, 5, window, window)
    torch.testing.assert_close(pool(x), F.avg_pool2d(x, window).flatten(1))


@pytest.mark.parametrize("model", ["resnet18", "resnext", "senet", "regnet"])
def test_stem(model):
    kernel = 1 if model == "resnext" else 3
    (stem, norm), activation = blueprint(model, 32, 2).layers[:2]
    assert (stem.kernel_size, stem.stride, stem.in_channels) == ((kernel, kernel), (1, 1), 2)
    assert (stem.out_channels, stem.bias) == (64, None)
    assert types([norm, activation]) == [nn.BatchNorm2d, nn.ReLU]


@pytest.mark.parametrize("model", ["resnet18", "resnext", "densenet", "senet", "regnet"])
def test_no_max_pooling_and_no_biases(model):
    network = blueprint(model)
    assert not parts(network, nn.MaxPool2d, nn.Linear)
    squeezed = {layer for part in parts(network, SqueezeExcitation) for layer in part.children()}
    for layer in parts(network, nn.Conv2d):
        assert (layer.bias is not None) == (layer in squeezed)


def test_resnet18():
    sizes = [(64, 32)] * 2 + [(128, 16)] * 2 + [(256, 8)] * 2 + [(512, 4)] * 2
    network = hollow("resnet18")
    assert maps(network, Residual) == sizes
    for block in parts(network, Residual):
        convolutions = parts(block.path, nn.Conv2d)
        assert [layer.kernel_size for layer in convolutions] == [(3, 3)] * 2
        assert convolutions[1].stride == (1, 1)
        assert types(parts(block.path, nn.Conv2d, nn.BatchNorm2d, nn.ReLU)) == (
            [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d, nn.BatchNorm2d]
        )


@pytest.mark.parametrize("side, first", [(32, 32), (28, 28), (64, 32)])
def test_resnext(side, first):
    """The first stage halves the map at 64."""
    network = hollow("resnext", side)
    sides = [first, first // 2, first // 4]
    widths = [width for width in (256, 512, 1024) for _ in range(3)]
    assert maps(network, Residual, side) == list(
        zip(widths, [s for s in sides for _ in range(3)], strict=True)
    )
    for block, width in zip(parts(network, Residual), widths, strict=True):
        check_bottleneck(block, width // 2, groups=2)


@pytest.mark.parametrize("side", [32, 64])
def test_regnet(side):
    network = hollow("regnet", side)
    sizes = [(24, 1), (56, 1), *[(152, 2)] * 4, *[(368, 4)] * 7]
    assert maps(network, Residual, side) == [(width, side // step) for width, step in sizes]
    for block, (width, _) in zip(parts(network, Residual), sizes, strict=True):
        check_bottleneck(block, width, groups=width // 8)


def check_bottleneck(block, width, groups):
    """The grouped 3x3 convolution in the middle carries the stride."""
    convolutions = parts(block.path, nn.Conv2d)
    assert [c.kernel_size[0] for c in convolutions] == [1, 3, 1]
    assert [c.out_channels for c in convolutions[:2]] == [width, width]
    assert [c.groups for c in convolutions] == [1, groups, 1]
    assert convolutions[0].stride == convolutions[2].stride == (1, 1)
    assert types(parts(block.path, nn.Conv2d, nn.BatchNorm2d, nn.ReLU)) == (
        [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 2 + [nn.Conv2d, nn.BatchNorm2d]
    )
    if convolutions[1].stride == (2, 2):
        assert block.shortcut[0].stride == (2, 2)


@pytest.mark.parametrize("model", ["resnet18", "resnext", "regnet"])
def test_shortcuts(model):
    """Only where the shape changes, as it also does in the first block of resnext and regnet."""
    network = blueprint(model)
    fan_in = 64
    for block in parts(network, Residual):
        first, *_, last = parts(block.path, nn.Conv2d)
        changes = fan_in != last.out_channels
        assert first.in_channels == fan_in
        assert isinstance(block.shortcut, nn.Sequential if changes else nn.Identity)
        fan_in = last.out_channels


@pytest.mark.parametrize(
    "block, changes",
    [
        (basic(8, 8, 1), False),
        (basic(8, 16, 1), True),
        (basic(8, 8, 2), True),
        (bottleneck(8, 4, 8, 1, 2), False),
        (bottleneck(8, 4, 8, 2, 2), True),
        (bottleneck(8, 4, 16, 1, 2), True),
    ],
)
def test_shortcut(block, changes):
    """A block whose path is silent is its shortcut, then ReLU."""
    last = parts(randomise(block).path, nn.BatchNorm2d)[-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    x = kept = torch.randn(2, 8, 6, 6)
    if changes:
        convolution, norm = block.shortcut
        stride = block.path(x).shape[-1] == 3
        kept = norm(F.conv2d(x, convolution.weight, stride=1 + stride))
        assert convolution.kernel_size == (1, 1)
    torch.testing.assert_close(block(x), torch.relu(kept))


def test_densenet():
    network = hollow("densenet")
    stem, first = network.layers[:2]
    assert (stem.kernel_size, stem.stride, stem.out_channels) == ((3, 3), (1, 1), 64)
    assert isinstance(first, DenseLayer)  # no BN in the stem
    starts = {32: (64, 6), 16: (128, 12), 8: (256, 24), 4: (512, 16)}
    assert maps(network, DenseLayer) == [
        (start + 32 * (layer + 1), side)
        for side, (start, depth) in starts.items()
        for layer in range(depth)
    ]
    transition = [nn.BatchNorm2d, nn.ReLU, nn.Conv2d, nn.AvgPool2d]
    between = [layer for layer in network.layers[1:] if not isinstance(layer, DenseLayer)]
    assert types(between) == transition * 3 + [nn.BatchNorm2d, nn.ReLU, GlobalMean]
    assert [layer.kernel_size for layer in between[3:12:4]] == [2, 2, 2]


def test_densenet_puts_new_features_before_old_ones():
    layer = randomise(DenseLayer(64))
    x = torch.randn(2, 64, 5, 5)
    out = layer(x)
    assert torch.equal(out[:, 32:], x)
    assert torch.equal(out[:, :32], layer.path(x))
    half = [nn.BatchNorm2d, nn.ReLU, nn.Conv2d]
    assert types(layer.path) == half * 2
    convolutions = parts(layer.path, nn.Conv2d)
    assert [(c.kernel_size[0], c.out_channels) for c in convolutions] == [(1, 128), (3, 32)]


@pytest.mark.parametrize("side, first", [(32, 32), (28, 28), (64, 32)])
def test_senet(side, first):
    """The first stage halves the map at 64, through a shortcut with parameters."""
    network = hollow("senet", side)
    sides = [first]
    for _ in range(3):
        sides.append(-(-sides[-1] // 2))
    found = maps(network, PreActivation, side)
    assert found == [
        size for size in zip((64, 128, 256, 512), sides, strict=True) for _ in range(2)
    ]
    shortcuts = [block.shortcut is not None for block in parts(network, PreActivation)]
    assert shortcuts == [side == 64, False, *[True, False] * 3]
    assert isinstance(network.layers[-2], PreActivation)  # no BN at the end


@pytest.mark.parametrize("fan_out, stride", [(32, 1), (32, 2), (64, 1)])
def test_senet_block(fan_out, stride):
    block = randomise(PreActivation(32, fan_out, stride))
    x = torch.randn(2, 32, 6, 6)
    norm, other = parts(block, nn.BatchNorm2d)
    one, two = (layer for layer in parts(block.path, nn.Conv2d) if layer.kernel_size == (3, 3))
    activated = F.relu(norm(x))
    out = F.conv2d(activated, one.weight, stride=stride, padding=1)
    out = F.conv2d(F.relu(other(out)), two.weight, padding=1)
    down, up = (part for scale in parts(block, SqueezeExcitation) for part in scale.children())
    assert down.weight.shape == (fan_out // 16, fan_out, 1, 1)
    hidden = F.relu(F.linear(out.mean((2, 3)), down.weight[..., 0, 0], down.bias))
    scale = F.linear(hidden, up.weight[..., 0, 0], up.bias).sigmoid()
    kept = x
    if fan_out != 32 or stride != 1:
        kept = F.conv2d(activated, block.shortcut.weight, stride=stride)
    assert (block.shortcut is None) == (kept is x)
    torch.testing.assert_close(block(x), out * scale[..., None, None] + kept)
    assert (block(x) < 0).any()  # nothing follows the sum


@pytest.mark.parametrize("side", [32, 64])
def test_swin(side):
    network = hollow("swin", side)
    stages = [(side // 2, 96, 2), (side // 4, 192, 2), (side // 8, 384, 6), (side // 8, 768, 2)]
    assert maps(network, Merge, side) == [(height, height) for height, _, _ in stages]
    assert [merge.side for merge in parts(network, Merge)] == [2, 2, 2, 1]
    widths = [width for _, width, depth in stages for _ in range(depth)]
    layers = parts(network, Attention)
    assert [layer.out.out_features for layer in layers] == widths
    assert [layer.shifted for layer in layers] == [False, True] * 6
    assert all(layer.table.shape == (7, 7) for layer in layers)
    assert all(layer.qkv.bias is None and layer.out.bias is not None for layer in layers)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("rows, columns", [(4, 4), (8, 4), (8, 12)])
@pytest.mark.parametrize("heads", [1, 2])
def test_swin_attention(shifted, rows, columns, heads):
    """Every vector sees those of its window, one head after the other."""
    torch.manual_seed(0)
    width = 32 * heads
    layer = Attention(width, shifted=shifted)
    x = torch.randn(2, rows, columns, width)
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    row, column = places.T
    shift = 2 if shifted else 0  # windows start at 2, 6, ...: the first two are on their own
    windows = (places - shift).div(4, rounding_mode="floor")
    together = (windows[:, None] == windows[None, :]).all(-1)
    down, right = ((at[None, :] - at[:, None]).clamp(-3, 3) + 3 for at in (row, column))
    q, k, v = (x.flatten(1, 2) @ layer.qkv.weight.T).split(width, -1)
    seen = []
    for head in range(heads):
        own = slice(32 * head, 32 * head + 32)
        scores = q[..., own] @ k[..., own].mT / 32**0.5 + layer.table[down, right]
        seen.append(scores.masked_fill(~together, -torch.inf).softmax(-1) @ v[..., own])
    expected = layer.out(torch.cat(seen, -1)).view_as(x)
    torch.testing.assert_close(layer(x), expected)


def test_swin_cuts_maps_into_squares():
    x = torch.arange(4 * 6.0).view(1, 4, 6, 1)
    squares = cut(x, 2)
    assert squares.shape == (1, 2, 3, 4, 1)
    assert squares[0, 1, 2, :, 0].tolist() == [16, 17, 22, 23]
    assert torch.equal(paste(squares, 2), x)
    merge = Merge(1, 5, 2)
    patch = torch.tensor([16.0, 17, 22, 23])
    torch.testing.assert_close(merge(x)[0, 1, 2], merge.linear(patch))


def test_swin_layer():
    layer = Layer(32, shifted=True)
    norm, attention = layer.attention
    x = torch.randn(2, 4, 4, 32)
    middle = x + attention(norm(x))
    norm, first, _, last = layer.mlp
    assert first.out_features == 128
    torch.testing.assert_close(layer(x), middle + last(F.gelu(first(norm(middle)))))


def test_swin_end_and_initial_tables():
    torch.manual_seed(0)
    network = build("swin").layers
    tables = torch.stack([layer.table for layer in parts(network, Attention)])
    assert spread(tables) == pytest.approx(1, rel=0.1)
    assert tables.mean().item() == pytest.approx(0, abs=0.1)
    ends = []
    network.layers.register_forward_hook(lambda _, __, out: ends.append(out))
    with torch.no_grad():
        features = network(torch.randn(2, 3, 32, 32))
    assert ends[0].shape == (2, 4, 4, 768)
    torch.testing.assert_close(features, F.layer_norm(ends[0].mean((1, 2)), (768,)))


def spread(weight):
    """Standard deviation around 0."""
    return weight.square().mean().sqrt().item()


def test_initial_weights_of_resnet18():
    torch.manual_seed(0)
    for layer in parts(build("resnet18"), nn.Conv2d):  # also where fan-in is another number
        expected = (2 / (layer.out_channels * layer.kernel_size[0] ** 2)) ** 0.5
        assert spread(layer.weight) == pytest.approx(expected, rel=0.06)
    assert layer.weight.abs().max() > 3 * expected  # normal, not uniform


def test_initial_weights_of_vgg16():
    torch.manual_seed(0)
    network = build("vgg16")
    for layer in parts(network, nn.Conv2d):
        expected = (2 / (9 * layer.out_channels)) ** 0.5
        assert spread(layer.weight) == pytest.approx(expected, rel=0.06)
        assert not layer.bias.any()
    assert layer.weight.abs().max() > 3 * expected
    for layer in parts(network, nn.Linear):  # PyTorch's: uniform
        assert layer.weight.abs().max().item() == pytest.approx(512**-0.5, rel=0.01)
        assert layer.bias.any()


@pytest.mark.parametrize("model", ["lenet", "inception", "resnext", "senet", "regnet"])
def test_initial_weights_of_others_are_pytorchs(model):
    torch.manual_seed(0)
    for layer in parts(build(model), nn.Conv2d, nn.Linear):
        fan_in = layer.weight[0].numel()
        largest = layer.weight.abs().max().item()
        assert largest <= fan_in**-0.5
        assert layer.weight.numel() < 400 or largest > 0.95 * fan_in**-0.5
