from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call

from raycl.nn.task_tensors import TaskTensors


def test_copies_are_used_and_updated_and_the_network_is_not():
    network = nn.Sequential(nn.Linear(3, 2), nn.Sequential(nn.BatchNorm1d(2), nn.ReLU()))
    nn.init.constant_(network[1][0].running_mean, 5.0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    own = TaskTensors(network)
    names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert set(own.named()) == {f"1.0.{name}" for name in names}
    assert [t.tolist() for t in own.statistics().values()] == [[5, 5], [1, 1]]
    with torch.no_grad():
        own.named()["1.0.bias"].fill_(2.0)
    x = torch.randn(8, 3)
    z = functional_call(network, own.named(), (x,))
    inner = network[0](x)
    by_hand = (inner - inner.mean(0)) / (inner.var(0, unbiased=False) + 1e-5).sqrt() + 2
    torch.testing.assert_close(z, by_hand.relu())
    mean, var = own.statistics().values()
    torch.testing.assert_close(mean, 0.9 * 5 + 0.1 * inner.mean(0))
    torch.testing.assert_close(var, 0.9 + 0.1 * inner.var(0))
    assert own.named()["1.0.num_batches_tracked"] == 1
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    z.sum().backward()
    assert network[1][0].bias.grad is None
    own.hand_over(network)
    assert torch.equal(network[1][0].running_mean, mean)
    assert network[1][0].bias.tolist() == [2, 2]
    assert torch.equal(network[0].weight, before["0.weight"])


def test_a_state_has_all_of_it():
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    own, other = TaskTensors(network, nn.Linear), TaskTensors(network, nn.Linear)
    own(network, torch.randn(8, 3))
    with torch.no_grad():
        for value in own.parameters():
            value.add_(1)
    other.load_state_dict(own.state_dict())
    assert all(torch.equal(value, other.named()[name]) for name, value in own.named().items())


def test_a_network_without_normalisations_gives_nothing():
    assert TaskTensors(nn.Linear(3, 2)).named() == {}
