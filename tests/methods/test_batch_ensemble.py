"""BatchEnsemble: rank one by hand, two tasks done again both ways, what is fixed when."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from layered_making import CNN, RESNET, Reference, float64, run_of
from torch.func import functional_call

from raycl.testing import MethodConformance, finish


class TestFirstTask(MethodConformance):
    """W is trained on the first task, normalisations go on from there."""

    method = "batch_ensemble"
    options = {"weights": "first_task"}
    network = CNN
    second = RESNET
    learns = 60.0


def test_weights_are_scaled_by_a_matrix_of_rank_one(build):
    run = build("batch_ensemble", network=CNN)
    run._enter_task()
    values = run.method.own(0).values
    assert [len(s) for s in values.inputs] == [1, 4, 20]
    assert [len(t) for t in values.outputs] == [4, 5, 8]
    for vector in (*values.inputs, *values.outputs):
        assert set(vector.tolist()) <= {-1.0, 1.0}
        vector.data.normal_()
    convolution, linear = run.method.backbone.layers[4], run.method.backbone.layers[9]
    weights = run.method.weights(0)
    s, t = values.inputs[2], values.outputs[2]
    torch.testing.assert_close(weights[2], linear.weight * torch.outer(t, s))
    x, s, t = torch.randn(2, 4, 6, 6), values.inputs[1], values.outputs[1]
    by_hand = t[:, None, None] * convolution(s[:, None, None] * x)
    found = functional_call(convolution, {"weight": weights[1]}, (x,))
    torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", ["fixed", "first_task"])
def test_two_tasks_done_again(which):
    with float64():
        run = run_of("batch_ensemble", weights=which)
        run._enter_task()
        layers = Reference(run, 0).layers()
        shared = [p.requires_grad_() for layer in layers for p in layer]
        for task in (0, 1):
            run._enter_task()
            reference = Reference(run, task)
            values = run.method.own(task).values
            inputs, outputs = (
                [p.detach().clone().requires_grad_() for p in ps]
                for ps in (values.inputs, values.outputs)
            )
            trained = [*inputs, *outputs]
            if task == 0 and which == "first_task":
                trained += shared
            for _ in range(2):
                for x, y in reference.epoch():
                    for s, t, (w, b) in zip(inputs, outputs, layers, strict=True):
                        x = F.relu(t * ((s * x) @ w.T) + b)
                    reference.descend(reference.loss(x, y), trained)
            run.advance()
            run.advance()
            ours = [*values.inputs, *values.outputs, *run.method.backbone.parameters()]
            pairs = zip(ours, [*inputs, *outputs, *shared], strict=True)
            assert max((a - b).abs().max() for a, b in pairs) < 1e-7
            assert reference.head_difference() < 1e-7


def backbone(run):
    return {k: v.clone() for k, v in run.method.backbone.state_dict().items()}


def test_fixed_weights_are_those_of_the_network(build):
    run = build("batch_ensemble", network=CNN)
    before = backbone(run)
    assert run.method.fixed == ("backbone.",)
    finish(run)
    assert all(torch.equal(value, before[name]) for name, value in backbone(run).items())


def test_the_first_task_trains_all_and_later_ones_start_from_its_normalisations(build):
    run = build("batch_ensemble", network=CNN, weights="first_task")
    before = backbone(run)
    assert run.method.fixed == ()
    run.advance()
    first, norms = backbone(run), run.method.own(0).norms.named()
    assert all(not torch.equal(value, before[name]) for name, value in first.items())
    assert all(torch.equal(value, first[name]) for name, value in norms.items())
    run._enter_task()
    assert all(torch.equal(v, first[n]) for n, v in run.method.own(1).norms.named().items())
    finish(run)
    assert all(torch.equal(value, first[name]) for name, value in backbone(run).items())


def test_the_penalty_sums_the_network_while_that_is_trained(build):
    for options, counts in (({"weights": "first_task"}, [4, 0]), ({}, [0, 0])):
        run = build("batch_ensemble", network=CNN, penalty=0.1, **options)
        network = {id(p) for p in run.method.backbone.parameters()}
        for info, count in zip(run.stream.info.tasks, counts, strict=True):
            run.method.add_task(info)
            penalised = [id(p) for p in run.method.penalised()]
            assert len(network & set(penalised)) == count
            assert len(penalised) == count + 2 * 3 + 2 * 2 + 2  # s and t, affine, head


def test_what_a_task_costs(build):
    run = build("batch_ensemble", network=CNN)
    total = sum(p.numel() for p in run.method.backbone.parameters())
    for _ in range(2):
        row = run.advance()
        vectors = (1 + 4 + 20) + (4 + 5 + 8)
        assert row["cost/task_percent"] == pytest.approx(100 * vectors / total)
        assert row["cost/task_percent_affine"] == pytest.approx(100 * (vectors + 18) / total)
        assert row["cost/task_percent_statistics"] == pytest.approx(100 * (vectors + 36) / total)
