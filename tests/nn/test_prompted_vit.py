"""Prompts in a vision transformer: timm's own bits without any, attention by hand with some."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from timm.layers import LayerScale
from timm.layers.attention import Attention
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import Tensor, nn

from raycl.errors import UserError
from raycl.nn.patches import ConvolutionalPatches
from raycl.nn.prompted_vit import (
    BlockPrompts,
    KeysValues,
    check_blocks,
    check_model,
    encode,
    halves,
)

WIDTH, HEADS, DEPTH, TOKENS = 32, 4, 2, 65
SMALL = {"img_size": 32, "patch_size": 4, "depth": DEPTH, "embed_dim": WIDTH, "num_heads": HEADS}
RATES = {"drop_rate": 0.1, "pos_drop_rate": 0.1, "patch_drop_rate": 0.2, "proj_drop_rate": 0.1}
DROPOUT = RATES | {"attn_drop_rate": 0.1, "drop_path_rate": 0.2}


def small(**options) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(**{"num_classes": 0, **SMALL, **options})
    for parameter in model.parameters():  # biases, scales and class tokens start at 0 or 1
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def draw(*shape: int, seed: int = 1, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*(shape or (3, 3, size, size)), generator=generator)


def rows(length: int, *batch: int, seed: int = 2) -> KeysValues:
    return halves(draw(*batch, 2 * length, WIDTH, seed=seed))


def theirs(model: VisionTransformer, images: Tensor) -> tuple[Tensor, Tensor]:
    tokens = model.forward_features(images)
    return tokens, model.forward_head(tokens, pre_logits=True)


def equal_bits(model: VisionTransformer, images: Tensor) -> None:
    """Features, tokens and gradients, with blocks called whole and in parts."""
    found = []
    for parts in (None, {}, {n: BlockPrompts() for n in range(len(model.blocks))}):
        model.zero_grad()
        torch.manual_seed(5)
        if parts is None:
            own, features = theirs(model, images)
        else:
            features, own, extra, kept = encode(model, images, parts)
            assert extra.shape == (len(images), 0, own.shape[2])
            assert kept == {}
        features.square().sum().backward()
        found.append([own, features, *(p.grad for p in model.parameters() if p.grad is not None)])
    for other in found[1:]:
        assert len(other) == len(found[0]) > 10
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


# ------------------------------------------------------------------------------- without prompts


@pytest.mark.parametrize("train", [False, True])
def test_tiny_bits(train):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0).train(train)
    equal_bits(model, draw(2, 3, 224, 224))


VARIANTS = [
    {},
    DROPOUT,
    {"init_values": 0.1},
    {"scale_attn_norm": True, "scale_mlp_norm": True},
    {"qkv_bias": False, "proj_bias": False},
    {"no_embed_class": True},
    {"pos_embed": "none"},
    {"dynamic_img_size": True},
    {"global_pool": "avg"},
    {"global_pool": "avgmax", "pool_include_prefix": True},
    {"global_pool": "max", "fc_norm": False},
    {"final_norm": False},
    {"embed_layer": ConvolutionalPatches},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("train", [False, True])
def test_small_bits(options, train):
    equal_bits(small(**options).train(train), draw())


def test_kept_blocks_are_those_of_timm():
    model, images = small(), draw()
    wanted = model.forward_intermediates(
        images, intermediates_only=True, norm=False, output_fmt="NLC", return_prefix_tokens=True
    )
    kept = encode(model, images, keep=(0, 1)).kept
    assert sorted(kept) == [0, 1]
    for number, (patches, first) in enumerate(wanted):
        assert torch.equal(kept[number], torch.cat([first, patches], 1))
    assert sorted(encode(model, images, keep=(1,)).kept) == [1]
    joined = {1: BlockPrompts(tokens=draw(2, WIDTH))}
    kept = encode(model, images, joined, keep=(0, 1)).kept
    assert [kept[n].shape[1] for n in (0, 1)] == [TOKENS, TOKENS + 2]


# ------------------------------------------------------------------------------------- prefixes


def by_hand(queries, keys, values):
    """Softmax attention (heads, rows, channels), written out."""
    scores = queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1])
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    return weights @ values


def copied(model: VisionTransformer, images: Tensor, prompts: dict[int, BlockPrompts]) -> Tensor:
    """Tokens behind the final norm of the first image: a slow reference, head by head."""
    x = model._pos_embed(model.patch_embed(images[:1]))[0]
    for number, block in enumerate(model.blocks):
        given = prompts.get(number, BlockPrompts())
        if given.tokens is not None:
            x = torch.cat([x, given.tokens])
        heads = block.attn.num_heads
        q, k, v = (block.norm1(x) @ block.attn.qkv.weight.T + block.attn.qkv.bias).chunk(3, -1)
        both = [k.clone(), v.clone()]
        for which in (0, 1):
            if given.class_token is not None:
                both[which][0] += given.class_token[which]
            if given.front is not None:
                both[which] = torch.cat([given.front[which], both[which]])
            if given.behind is not None:
                both[which] = torch.cat([both[which], given.behind[which]])
        mixed = [
            by_hand(*(each.chunk(heads, -1)[head] for each in (q, *both))) for head in range(heads)
        ]
        x = x + block.attn.proj(torch.cat(mixed, -1))
        x = x + block.mlp(block.norm2(x))
    return model.norm(x)


def test_numbers_of_the_specification():
    """Keys (1, 0) and prefix (0, 1) for query (1, 0); a zero prefix is not no prefix."""
    model = small(img_size=4, embed_dim=2, num_heads=1, depth=1).double()
    (block,) = model.blocks
    block.norm1, block.mlp = nn.Identity(), nn.Sequential(nn.Identity(), Zero())
    with torch.no_grad():
        block.attn.qkv.weight.zero_()
        block.attn.qkv.bias.copy_(torch.tensor([1.0, 0, 1, 0, 1, 1]))
        block.attn.proj.weight.copy_(torch.eye(2))
        block.attn.proj.bias.zero_()
    images = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    start = model._pos_embed(model.patch_embed(images))

    def attended(prompt: Tensor) -> list[float]:
        # twice as many rows as the specification, as there are two tokens with the same key
        front = KeysValues(*(half.repeat(2, 1) for half in halves(prompt)))
        kept = encode(model, images, {0: BlockPrompts(front=front)}, keep=(0,)).kept
        return (kept[0] - start)[0, 0].tolist()

    prompt = torch.tensor([[0.0, 1], [3, -1]], dtype=torch.float64)
    assert attended(prompt) == pytest.approx([1.660477, 0.339523], abs=1e-6)
    assert attended(0 * prompt) == pytest.approx([0.669762, 0.669762], abs=1e-6)


class Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


EVERYTHING = {
    0: BlockPrompts(
        front=rows(5, seed=3),
        behind=rows(2, seed=4),
        class_token=KeysValues(draw(WIDTH, seed=5), draw(WIDTH, seed=6)),
        tokens=draw(1, WIDTH, seed=7),
    ),
    1: BlockPrompts(front=rows(1, seed=8), tokens=draw(2, WIDTH, seed=9)),
}
SEPARATE = [
    {1: BlockPrompts(front=rows(3))},
    {0: BlockPrompts(behind=rows(3))},
    {1: BlockPrompts(class_token=KeysValues(draw(WIDTH), draw(WIDTH, seed=5)))},
    {0: BlockPrompts(tokens=draw(2, WIDTH))},
]


def doubled(prompts: dict[int, BlockPrompts]) -> dict[int, BlockPrompts]:
    def to(value):
        if value is None or isinstance(value, Tensor):
            return value if value is None else value.double()
        return KeysValues(*(to(each) for each in value))

    return {n: BlockPrompts(**{k: to(v) for k, v in vars(p).items()}) for n, p in prompts.items()}


@pytest.mark.parametrize("heads", [1, HEADS])
@pytest.mark.parametrize("prompts", [{}, EVERYTHING, *SEPARATE], ids=lambda p: str(len(p)))
def test_against_attention_by_hand(prompts, heads):
    model, images, prompts = small(num_heads=heads).double(), draw().double(), doubled(prompts)
    wanted = copied(model, images, prompts)
    features, own, extra, _ = encode(model, images, prompts)
    torch.testing.assert_close(torch.cat([own, extra], 1)[0], wanted, rtol=1e-10, atol=1e-10)
    assert own.shape == (3, TOKENS, WIDTH)
    assert torch.equal(features, own[:, 0])
    if prompts:
        assert (own - encode(model, images).own).abs().max() > 1e-3


def test_single_precision_and_train_mode():
    model, images = small(), draw()
    found = encode(model, images, EVERYTHING)
    exact = copied(small().double(), images.double(), doubled(EVERYTHING))[0].float()
    torch.testing.assert_close(found.features[0], exact, rtol=1e-4, atol=1e-5)
    assert torch.equal(encode(model.train(), images, EVERYTHING).own, found.own)


def test_place_and_order_of_rows_do_not_matter():
    model, images, given = small(), draw(), rows(6)
    wanted = encode(model, images, {0: BlockPrompts(front=given)})
    turned = KeysValues(given.keys.flip(0), given.values.flip(0))
    parts = [KeysValues(*(each[part] for each in given)) for part in (slice(2), slice(2, 6))]
    for other in (
        BlockPrompts(behind=given),
        BlockPrompts(front=turned),
        BlockPrompts(front=parts[0], behind=parts[1]),
    ):
        found = encode(model, images, {0: other})
        torch.testing.assert_close(found.own, wanted.own, rtol=1e-5, atol=1e-5)
    mixed = KeysValues(given.keys.flip(0), given.values)
    assert (
        encode(model, images, {0: BlockPrompts(front=mixed)}).own - wanted.own
    ).abs().max() > 0.1


def test_prompts_of_each_image():
    """A batch with prompts of its own gives what each image gives alone, with its row."""
    model, images = small(), draw()
    given = BlockPrompts(
        front=rows(5, 3, seed=3),
        behind=rows(2, seed=4),
        class_token=KeysValues(draw(3, WIDTH, seed=5), draw(WIDTH, seed=6)),
        tokens=draw(3, 1, WIDTH, seed=7),
    )
    together = encode(model, images, {0: given}).features
    for n in range(3):
        alone = BlockPrompts(
            front=KeysValues(*(each[n] for each in given.front)),
            behind=given.behind,
            class_token=KeysValues(given.class_token.keys[n], given.class_token.values),
            tokens=given.tokens[n],
        )
        found = encode(model, images[n : n + 1], {0: alone}).features[0]
        torch.testing.assert_close(found, together[n], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prompts", [EVERYTHING, *SEPARATE], ids=lambda p: str(len(p)))
def test_gradients_reach_prompts_only(prompts):
    model = small().requires_grad_(False)
    leaves = []
    for given in prompts.values():
        for value in vars(given).values():
            each = () if value is None else (value,) if isinstance(value, Tensor) else value
            leaves += [leaf.requires_grad_() for leaf in each]
    try:
        encode(model, draw(), prompts).features.square().sum().backward()
        assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves)
        assert all(parameter.grad is None for parameter in model.parameters())
    finally:
        for leaf in leaves:
            leaf.requires_grad_(False).grad = None


def test_the_state_stays_as_it_is():
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    encode(model, draw(), EVERYTHING)
    assert [*model.state_dict()] == [*before]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("prompts, counts", [(EVERYTHING, (73, 69)), (SEPARATE[1], (68, 65))])
def test_keys_seen(prompts, counts, monkeypatch):
    seen = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def watched(queries, keys, values, **options):
        seen.append((queries.shape[2], keys.shape[2], values.shape[2]))
        return attend(queries, keys, values, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    encode(small(), draw(), prompts)
    assert tuple(keys for _, keys, _ in seen) == counts
    assert all(keys == values for _, keys, values in seen)


# --------------------------------------------------------------------------------- extra tokens


def test_extra_tokens_stand_behind():
    """The class token stays first; wherever the extra one stands, it has no position."""
    model, images, token = small(), draw(), draw(1, WIDTH, seed=7)
    found = encode(model, images, {0: BlockPrompts(tokens=token)})
    assert found.extra.shape == (3, 1, WIDTH)
    x = model._pos_embed(model.patch_embed(images))
    x = model.norm(model.blocks(torch.cat([token.expand(3, 1, -1), x], 1)))
    torch.testing.assert_close(found.extra, x[:, :1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.own, x[:, 1:], rtol=1e-5, atol=1e-5)
    assert torch.equal(found.features, found.own[:, 0])
    assert (found.features - found.extra[:, 0]).abs().max() > 0.1


def test_extra_tokens_have_no_part_in_pooling():
    model, images = small(global_pool="avg", fc_norm=False), draw()
    found = encode(model, images, {1: BlockPrompts(tokens=draw(2, WIDTH))})
    torch.testing.assert_close(found.features, found.own[:, 1:].mean(1))


def test_order_of_extra_tokens():
    model, images, tokens = small(), draw(), draw(2, WIDTH)
    both = encode(model, images, {0: BlockPrompts(tokens=tokens)}).extra
    turned = encode(model, images, {0: BlockPrompts(tokens=tokens.flip(0))}).extra
    torch.testing.assert_close(both, turned.flip(1), rtol=1e-5, atol=1e-5)
    later = encode(model, images, EVERYTHING).extra
    first = encode(model, images, {0: EVERYTHING[0], 1: BlockPrompts(front=EVERYTHING[1].front)})
    assert later.shape[1] == 3
    assert (later[:, 0] - first.extra[:, 0]).abs().max() > 1e-3  # others see the new tokens


# ------------------------------------------------------------------------------------- refusals


class OwnAttention(Attention):
    pass


def unfused() -> VisionTransformer:
    model = small()
    model.blocks[1].attn.fused_attn = False
    return model


def gated() -> VisionTransformer:
    model = small()
    model.blocks[1].attn.gate = nn.Linear(WIDTH, WIDTH)
    return model


def checkpointed() -> VisionTransformer:
    model = small()
    model.set_grad_checkpointing()
    return model


REFUSED = [
    (lambda: nn.Linear(2, 2), "the class Linear"),
    (lambda: timm.create_model("resnet18"), "the class ResNet"),
    (lambda: timm.create_model("deit_tiny_distilled_patch16_224"), "VisionTransformerDistilled"),
    (lambda: small(reg_tokens=2), "register tokens"),
    (lambda: small(class_token=False, global_pool="avg"), "no class token"),
    (lambda: small(pre_norm=True), "a norm before the blocks"),
    (lambda: small(global_pool="map"), "attention pooling"),
    (lambda: small(global_pool=""), "no pooling"),
    (lambda: small(qk_norm=True), r"qk-norm \(normalised queries and keys\) in block 0"),
    (lambda: small(block_fn=ResPostBlock), "the class ResPostBlock in block 0"),
    (lambda: small(attn_layer=OwnAttention), "attention of the class OwnAttention in block 0"),
    (lambda: small(attn_layer="diff"), "attention of the class DiffAttention in block 0"),
    (gated, "an attention gate in block 1"),
    (unfused, "not fused .* in block 1"),
    (checkpointed, "gradient checkpointing"),
]


@pytest.mark.parametrize("build, message", REFUSED, ids=[message for _, message in REFUSED])
def test_refusals(build, message):
    model = build()
    for call in (lambda: check_model(model), lambda: encode(model, draw())):
        with pytest.raises(UserError, match=f"^network: .*this network has .*{message}") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_layer_scale_is_not_refused():
    model = small(init_values=0.5)
    assert isinstance(model.blocks[0].ls1, LayerScale)
    assert check_model(model) is model


def test_blocks_beyond_the_depth():
    model = small()
    check_blocks(model, [0, 1])
    for numbers in ([2], [0, 7, 2]):
        with pytest.raises(UserError, match="no block 2: the network has 2 blocks"):
            check_blocks(model, numbers)
    with pytest.raises(UserError, match="no block -1"):
        encode(model, draw(), {-1: BlockPrompts()})
    with pytest.raises(UserError, match="no block 5"):
        encode(model, draw(), keep=[5])


def test_wrong_shapes():
    with pytest.raises(ValueError, match="a prompt of 3 rows has no half"):
        halves(draw(3, WIDTH))
    uneven = KeysValues(draw(2, WIDTH), draw(3, WIDTH))
    wide = KeysValues(draw(2, WIDTH + 1), draw(2, WIDTH + 1))
    for given, message in [
        (BlockPrompts(front=uneven), "as many rows for the values as for the keys"),
        (BlockPrompts(behind=wide), "2x33 is neither L x 32 nor 3 x L x 32"),
        (BlockPrompts(front=rows(1, 2)), "2x1x32 is neither"),
        (BlockPrompts(tokens=draw(WIDTH)), "a prompt of 32 is neither"),
        (BlockPrompts(class_token=KeysValues(draw(2, WIDTH), draw(2, WIDTH))), "2x1x32 is neither"),
    ]:
        with pytest.raises(ValueError, match=message):
            encode(small(), draw(), {0: given})


def test_halves():
    keys, values = halves(torch.arange(24.0).reshape(2, 4, 3))
    assert keys[0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert values[1].tolist() == [[18, 19, 20], [21, 22, 23]]
