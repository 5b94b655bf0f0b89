"""Arithmetic in bfloat16: what it rounds, and where it is fast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import nn

Precision = Literal["float32", "bfloat16"]


def autocast(device: torch.device) -> torch.autocast:
    """A context, or a decorator, in which layers compute in bfloat16.

    Linear layers, convolutions and matrix products take their inputs and their weights rounded to 8
    bits of significand and give such numbers; the backward pass follows. Parameters, and gradients
    of parameters, stay float32.
    """
    # The cache of rounded weights would hand weights rounded without gradients to a later pass with
    # gradients in the same loss, which then trains nothing.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def exactly(device: torch.device) -> AbstractContextManager[object]:
    """A context in which nothing is rounded to bfloat16, whatever surrounds it."""
    # torch has no autocast for meta, where nothing is computed
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def round_weights(module: nn.Module) -> None:
    """Put those weights into bfloat16, in place, that ``autocast`` would round at every call.

    Under ``autocast`` the module gives the same bits as before, and sooner. Weights that it loads
    later are rounded, too. It cannot learn any more: small steps would be lost.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            layer.to(torch.bfloat16)


def emulated(device: torch.device) -> bool:
    """Whether a device lacks units for bfloat16: results are the same there, but come later."""
    if device.type == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return not any(found.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
