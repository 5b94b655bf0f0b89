"""A vision transformer of timm with prompts: prefixes, extra tokens, a moved class token.

The network is used as it is: no module is replaced and no name in its state changes. Shapes are
written with B images, N tokens of the network itself (class token first), K extra tokens, L rows
of a prefix, C channels of a token, H heads of d = C / H channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from raycl.errors import UserError


class KeysValues(NamedTuple):
    """Rows for the keys and as many for the values of one block.

    Attributes:
        keys: One set for all images (L, C), or one per image (B, L, C).
        values: Rows for the values, in the same shape.
    """

    keys: Tensor
    values: Tensor


def halves(prompts: Tensor) -> KeysValues:
    """Cut prompts (..., L, C) in halves: the first L/2 rows are keys, the last L/2 values.

    Raises:
        ValueError: L is odd.
    """
    length = prompts.shape[-2]
    if length % 2:
        raise ValueError(f"a prompt of {length} rows has no half: keys and values need as many")
    return KeysValues(prompts[..., : length // 2, :], prompts[..., length // 2 :, :])


@dataclass(frozen=True)
class BlockPrompts:
    """Additions to one block. Rows and vectors are used as they are: no projection, no bias.

    Attributes:
        front: Rows before the keys and values of the tokens, (L, C) or (B, L, C) each.
        behind: Rows after them; may have another L.
        class_token: Vectors added to key and value of the class token, (C) or (B, C) each.
        tokens: Tokens (K, C) or (B, K, C) that join behind all others in front of this block and
            go through it and all later blocks. They get no position.
    """

    front: KeysValues | None = None
    behind: KeysValues | None = None
    class_token: KeysValues | None = None
    tokens: Tensor | None = None


def together(*several: Mapping[int, BlockPrompts]) -> dict[int, BlockPrompts]:
    """Prompts of several makers as one: rows and tokens of the first come before the second's.

    Raises:
        ValueError: Two of them move the class token of one block.
    """
    joined: dict[int, BlockPrompts] = {}
    for prompts in several:
        for number, added in prompts.items():
            known = joined.get(number, BlockPrompts())
            if known.class_token is not None and added.class_token is not None:
                raise ValueError(f"the class token of block {number} is moved twice")
            joined[number] = BlockPrompts(
                _chained(known.front, added.front),
                _chained(known.behind, added.behind),
                known.class_token or added.class_token,
                _rows(known.tokens, added.tokens),
            )
    return joined


def _chained(first: KeysValues | None, second: KeysValues | None) -> KeysValues | None:
    """One prefix behind another."""
    if first is None or second is None:
        return first or second
    keys, values = (_rows(a, b) for a, b in zip(first, second, strict=True))
    assert keys is not None
    assert values is not None
    return KeysValues(keys, values)


def _rows(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Rows (L, C) or (B, L, C) behind others, per image where either is."""
    if first is None or second is None:
        return second if first is None else first
    if first.ndim != second.ndim:
        batch = max(first, second, key=lambda rows: rows.ndim).shape[0]
        first, second = (rows.expand(batch, -1, -1) for rows in (first, second))
    return torch.cat([first, second], -2)


class Encoding(NamedTuple):
    """Results of one pass.

    Attributes:
        features: Features that the network's classifier reads, (B, C). Extra tokens have no part
            in pooling.
        own: The network's own tokens behind the final norm, (B, N, C).
        extra: Extra tokens behind the final norm, (B, K, C), in the order in which they joined.
        kept: Outputs of the blocks asked for, by number, before the final norm: (B, N + K, C),
            with the K tokens that have joined by then.
    """

    features: Tensor
    own: Tensor
    extra: Tensor
    kept: dict[int, Tensor]


def encode(
    model: nn.Module,
    images: Tensor,
    prompts: Mapping[int, BlockPrompts] | None = None,
    keep: Collection[int] = (),
) -> Encoding:
    """Run a vision transformer with prompts in some of its blocks.

    Without prompts, ``own`` and ``features`` are bitwise what timm's ``forward_features`` and
    ``forward_head(..., pre_logits=True)`` compute. A block without prompts is called as timm calls
    it; of one with prompts the parts are called, so that hooks of the block itself do not run.

    Args:
        model: A plain ``VisionTransformer`` of timm; see ``check_model``.
        images: As the network takes them, (B, channels, height, width).
        prompts: Additions by the number of the block, from 0.
        keep: Numbers of the blocks whose outputs are wanted.

    Raises:
        UserError: The network has a feature that is not reproduced, or has no block of a number.
        ValueError: A shape does not fit.
    """
    prompts = prompts or {}
    network = check_model(model)
    check_blocks(network, {*prompts, *keep})
    x: Tensor = network.patch_drop(network._pos_embed(network.patch_embed(images)))
    count = x.shape[1]
    kept: dict[int, Tensor] = {}
    for number, block in enumerate(network.blocks):
        x = _prompted(block, x, prompts[number]) if number in prompts else block(x)
        if number in keep:
            kept[number] = x
    x = network.norm(x)
    own = x if x.shape[1] == count else x[:, :count]
    features = network.forward_head(own, pre_logits=True)
    return Encoding(features, own, x[:, count:], kept)


def check_model(model: nn.Module) -> VisionTransformer:
    """Return the network, if ``encode`` computes for it what timm computes.

    Supported: position embeddings of every kind, layer scale, norm of the attention's output,
    dropout and dropped paths and patches, pooling by the class token, mean or maximum.

    Raises:
        UserError: Names the first feature that is not reproduced.
    """
    for feature in _unsupported(model):
        what = f"prompts need a plain VisionTransformer of timm, but this network has {feature}"
        raise UserError("network", what, "e.g. {name: timm, model: vit_tiny_patch16_224}")
    return cast(VisionTransformer, model)


def check_blocks(model: nn.Module, numbers: Collection[int]) -> None:
    """Refuse numbers of blocks that a network does not have, or that are given twice.

    Raises:
        UserError: The network has fewer blocks, or a block would get prompts twice.
    """
    depth = len(model.blocks)  # type: ignore[arg-type]
    wrong = sorted(number for number in numbers if not 0 <= number < depth)
    if wrong:
        what = f"there is no block {wrong[0]}: the network has {depth} blocks, from 0"
        raise UserError("network", what)
    if twice := [number for number, count in Counter(numbers).items() if count > 1]:
        raise UserError("method", f"block {twice[0]} is named twice", "name each block once")


def _unsupported(model: Any) -> Iterator[str]:
    """Features of a network that ``encode`` does not reproduce, as ends of a sentence."""
    if type(model) is not VisionTransformer:
        yield f"the class {type(model).__name__}"
        return
    features = {
        "no class token": model.cls_token is None,
        "register tokens": model.reg_token is not None,
        "a norm before the blocks (pre_norm)": not isinstance(model.norm_pre, nn.Identity),
        "attention pooling": model.attn_pool is not None,
        "no pooling": not model.global_pool,
        "gradient checkpointing": model.grad_checkpointing,
    }
    yield from (name for name, found in features.items() if found)
    for number, block in enumerate(model.blocks):
        yield from (f"{feature} in block {number}" for feature in _unsupported_block(block))


def _unsupported_block(block: Any) -> Iterator[str]:
    """Features of a block that are not reproduced."""
    if type(block) is not Block:
        yield f"the class {type(block).__name__}"
    elif type(block.attn) is not Attention:
        yield f"attention of the class {type(block.attn).__name__}"
    else:
        attention = block.attn
        norms = (attention.q_norm, attention.k_norm)
        if attention.gate is not None:
            yield "an attention gate"
        if not all(isinstance(norm, nn.Identity) for norm in norms):
            yield "qk-norm (normalised queries and keys)"
        if not attention.fused_attn:
            yield "attention that is not fused (TIMM_FUSED_ATTN=0)"


def _prompted(block: Any, x: Tensor, prompts: BlockPrompts) -> Tensor:
    """The output of a block with prompts: tokens (B, M, C) to (B, M + K, C)."""
    if prompts.tokens is not None:
        x = torch.cat([x, _per_image(prompts.tokens, len(x), x.shape[2], x.dtype)], 1)
    x = x + block.drop_path1(block.ls1(_attention(block.attn, block.norm1(x), prompts)))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))  # type: ignore[no-any-return]


def _attention(attention: Any, x: Tensor, prompts: BlockPrompts) -> Tensor:
    """Attention of tokens to themselves and to rows of prefixes: (B, M, C) to (B, M, C)."""
    batch, count, _ = x.shape
    heads, width = attention.num_heads, attention.head_dim
    queries, *rest = (
        attention.qkv(x).reshape(batch, count, 3, heads, width).permute(2, 0, 3, 1, 4).unbind(0)
    )
    for prefix in (prompts.front, prompts.behind):
        if prefix is not None and prefix.keys.shape[-2:] != prefix.values.shape[-2:]:
            raise ValueError("a prompt needs as many rows for the values as for the keys")
    given = (prompts.front, prompts.class_token, prompts.behind)
    keys, values = (
        _extended(own, *(None if rows is None else rows[which] for rows in given))
        for which, own in enumerate(rest)
    )
    dropout = attention.attn_drop.p if attention.training else 0.0
    mixed = F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout)
    merged = mixed.transpose(1, 2).reshape(batch, count, attention.attn_dim)
    return attention.proj_drop(attention.proj(attention.norm(merged)))  # type: ignore[no-any-return]


def _extended(
    own: Tensor, front: Tensor | None, class_token: Tensor | None, behind: Tensor | None
) -> Tensor:
    """Keys or values of the tokens (B, H, M, d) with what is given: (B, H, L + M + L', d)."""
    rows = [own]
    if class_token is not None:
        rows = [own[:, :, :1] + _split(class_token.unsqueeze(-2), own), own[:, :, 1:]]
    if front is not None:
        rows.insert(0, _split(front, own))
    if behind is not None:
        rows.append(_split(behind, own))
    return torch.cat(rows, 2) if len(rows) > 1 else own


def _split(rows: Tensor, like: Tensor) -> Tensor:
    """Rows (L, C) or (B, L, C) as heads (B, H, L, d), each of d channels that stand together."""
    batch, heads, _, width = like.shape
    shared = _per_image(rows, batch, heads * width, like.dtype)
    return shared.reshape(batch, -1, heads, width).transpose(1, 2)


def _per_image(rows: Tensor, batch: int, width: int, dtype: torch.dtype) -> Tensor:
    """Rows (L, C) or (B, L, C) as (B, L, C) of a number type."""
    if rows.ndim not in (2, 3) or rows.shape[-1] != width or rows.shape[:-2] not in ((), (batch,)):
        shape = "x".join(map(str, rows.shape))
        raise ValueError(f"a prompt of {shape} is neither L x {width} nor {batch} x L x {width}")
    return rows.to(dtype).expand(batch, -1, -1)
