"""Methods with something of each task in the layers of a network, on networks of libraries."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from layered_making import method_on

METHODS = ["batch_ensemble", "li_adapter", "packnet", "piggyback", "pnn", "psp", "supsup"]
NETWORKS = {
    "alexnet": ({"name": "alexnet", "width": 0.1, "hidden": [20, 20]}, 32),
    "lenet": ({"name": "cifar", "model": "lenet"}, 32),
    "lite0": ({"name": "timm", "model": "tf_efficientnet_lite0"}, 32),
    "resnet32": ({"name": "resnet32", "blocks": 1}, 16),
    "shufflenet": ({"name": "torchvision", "model": "shufflenet_v2_x0_5"}, 64),
    "vit": ({"name": "timm", "model": "test_vit"}, 160),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_each_task(method, network):
    block, side = NETWORKS[network]
    made = method_on(method, block, (3, side, side))
    images = torch.randn(3, 3, side, side)
    found = []
    for info in made.context.stream.tasks:
        made.add_task(info)
        made.eval().begin_task(SimpleNamespace(info=info))
        made.zero_grad()
        made.train()
        out = made.logits(images, info.index)[:, list(info.classes)]
        out.sum().backward()
        trained = made.trainable()
        assert trained
        assert all(p.grad is not None for p in trained)
        assert all(p.grad.isfinite().all() for p in trained)
        with torch.no_grad():
            for p in trained:
                p -= 0.01 * p.grad.sign()
            if method == "packnet":
                made.prune(info.index)
            found.append(made.eval().logits(images, 0)[:, :2])
    if made.isolated:
        assert torch.equal(*found)
    assert all(out.isfinite().all() for out in found)
