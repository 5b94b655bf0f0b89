"""Every registered method goes through the conformance suite."""

from __future__ import annotations

from raycl import registry
from raycl.methods._prompted import PromptMethod
from raycl.methods.base import Method
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
NETWORK: dict[str, dict[str, object]] = {"clr": CNN, "li_adapter": CNN}
"""Networks other than the suite's, for methods that need convolutions."""

PROMPTED = {"apt", "cdl", "coda_prompt", "dual_prompt", "l2p", "no_prompt", "one_prompt"}
"""Methods with prompts need a transformer with weights: see methods/test_cdl_conformance.py."""


def test_methods_with_prompts() -> None:
    """Methods that are left out here are all that need such a network."""
    found = {name: registry.find("raycl.methods", Method, name) for name in NAMES}  # type: ignore[type-abstract]
    assert {name for name, cls in found.items() if issubclass(cls, PromptMethod)} == PROMPTED


NAMES = registry.names("raycl.methods")
for _name in sorted(set(NAMES) - PROMPTED):
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
