"""Every registered method goes through the conformance suite."""

from __future__ import annotations

from raycl import registry
from raycl.testing import MethodConformance

OPTIONS: dict[str, dict[str, object]] = {
    "abd": {"power_iterations": 6, "latent": 8},
    "bic": {"memory_size": 20},
    "deep_inversion": {"power_iterations": 6, "latent": 8},
    "der": {"memory_size": 12},
    "derpp": {"memory_size": 12},
    "dgr": {"latent": 16, "width": 0.1},
    "e2e": {"memory_size": 12},
    "er": {"memory_size": 12},
    "imm_mode": {"merge": "mode"},
    "lwf_coreset": {"memory_size": 12, "replay": "list_with_duplicates"},
    "lwf_synthetic": {"power_iterations": 6, "latent": 8},
    "naive_rehearsal": {"memory_size": 12},
    "qdi": {"inversion_steps": 6, "synthetic_images": 20},
    "online_ewc": {"fisher_samples": 20},
    "regress_features": {"source": {"name": "mlp", "hidden": [24]}},
    "si": {"c": 5.0},
}

TRAIN: dict[str, dict[str, object]] = {
    "dgr": {"epochs": 6, "lr": 0.2},  # images in [0, 1] make small gradients
}

CNN = {"name": "cnn", "channels": [8, 8], "features": 24, "batch_norm": True}
VIT: dict[str, object] = {
    "name": "timm",
    "model": "vit_tiny_patch16_224",
    "model_args": {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
}
NETWORK: dict[str, dict[str, object]] = {"clr": CNN, "li_adapter": CNN}
"""Networks other than the suite's, for methods that need convolutions or a transformer."""

ANCHOR = {"anchor": "first_task"}
PROMPTED: dict[str, dict[str, object]] = {
    "apt": ANCHOR,
    "cdl": {**ANCHOR, "learner": {"name": "l2p", "size": 5, "length": 4}, "teacher_network": VIT},
    "coda_prompt": {**ANCHOR, "size": 6, "length": 4, "blocks": [0, 1]},
    "dual_prompt": {**ANCHOR, "size": 3, "length": 4, "blocks": [1], "general_blocks": [0]},
    "l2p": {**ANCHOR, "size": 5, "length": 4},
    "no_prompt": ANCHOR,
    "one_prompt": {**ANCHOR, "length": 4},
}
"""Methods with prompts, whose network the first task trains."""
for _name, _options in PROMPTED.items():
    OPTIONS[_name], NETWORK[_name] = _options, VIT
    TRAIN[_name] = {"epochs": 4, "lr": 0.01, "optimizer": "adam"}

for _name in registry.names("raycl.methods"):
    _class = f"Test_{_name}"
    globals()[_class] = type(
        _class,
        (MethodConformance,),
        {
            "method": _name,
            "network": NETWORK.get(_name, MethodConformance.network),
            "options": OPTIONS.get(_name, {}),
            "train": {**MethodConformance.train, **TRAIN.get(_name, {})},
        },
    )
