from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from stepping import until

from raycl.methods.deep_inversion import padded_distillation

OPTIONS = {
    "network": {"name": "resnet32", "blocks": 1},
    "power_iterations": 6,
    "latent": 8,
}


def test_padded_distillation_by_hand():
    student, teacher = torch.tensor([[1.0, 2.0, 0.0, 3.0]]), torch.tensor([[2.0, 0.0, 1.0]])
    found = padded_distillation(student, teacher, torch.arange(3), 2.0)
    assert found.item() == pytest.approx(1.847775, abs=1e-6)
    student = torch.tensor([[3.0, 1.0, 2.0, 0.0]])
    found = padded_distillation(student, teacher, torch.tensor([1, 2, 3]), 2.0)
    assert found.item() == pytest.approx(1.847775, abs=1e-6)


@pytest.mark.parametrize("outputs, first", [("seen", 0), ("task", 2)])
def test_a_step_against_the_specification(build, outputs, first):
    run = build("deep_inversion", outputs=outputs, mu=0.7, **OPTIONS)
    task, method = until(run, 1, phase=1), run.method
    with torch.no_grad():
        method.head.weight.add_(0.1)
    method.train()
    batch = next(iter(task.train.batches(8)))
    state = run.random.method.get_state()
    found = method.objective(task)(batch)
    run.random.method.set_state(state)
    with torch.no_grad():
        dreams = method.generator(method.noise(8))
        q, q_dreams = method.teacher(batch.images)[:, :2], method.teacher(dreams)[:, :2]
    z = method.head(method.backbone(torch.cat([batch.images, dreams])))
    target = torch.cat([(q_dreams / 2).softmax(1), torch.zeros(8, 2)], 1)
    expected = {
        "cross_entropy": F.cross_entropy(z[:8, first:4], batch.labels - first),
        "distillation": 0.7 * F.cross_entropy(z[:8, :2] / 2, (q / 2).softmax(1)),
        "synthetic_distillation": -0.7 * (target * (z[8:, :4] / 2).log_softmax(1)).sum(1).mean(),
    }
    torch.testing.assert_close(found, expected)


def test_shared_outputs_have_no_new_classes(build):
    run = build("deep_inversion", benchmark={"name": "permuted"}, **OPTIONS)
    task, method = until(run, 1, phase=1), run.method
    batch = next(iter(task.train.batches(8)))
    method.eval()  # so that student and teacher are the same
    terms = method.objective(task)(batch)
    terms["synthetic_distillation"].backward()
    assert method.head.weight.grad.abs().max() < 1e-6
