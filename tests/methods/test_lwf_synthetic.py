from __future__ import annotations

import torch
import torch.nn.functional as F
from stepping import until


def test_a_step_against_the_specification(build):
    run = build(
        "lwf_synthetic",
        network={"name": "resnet32", "blocks": 1},
        power_iterations=6,
        latent=8,
    )
    task, method = until(run, 1, phase=1), run.method
    with torch.no_grad():
        method.head.weight.add_(0.1)
    method.train()
    batch = next(iter(task.train.batches(8)))
    state = run.random.method.get_state()
    found = method.objective(task)(batch)
    run.random.method.set_state(state)
    with torch.no_grad():
        images = torch.cat([batch.images, method.generator(method.noise(8))])
        q = torch.cat([method.teacher(part) for part in images.split(8)])[:, :2]
    z = method.head(method.backbone(images))
    expected = {
        "cross_entropy": F.cross_entropy(z[:8], batch.labels),
        "distillation": 0.1 * F.cross_entropy(z[:, :2] / 2, (q / 2).softmax(1)),
    }
    torch.testing.assert_close(found, expected)
