from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from raycl.benchmarks.base import DataAccessError, TaskInfo
from raycl.errors import UserError
from raycl.methods._mixed import rivals
from raycl.methods.base import masked_cross_entropy
from raycl.methods.joint import Joint


def flat(run):
    return torch.cat([p.detach().flatten() for p in run.method.parameters()])


def test_starts_anew_at_every_task_but_the_first(build):
    run = build("joint")
    fresh = flat(run)
    run.method.begin_task(run.stream.open(0, "all"))
    assert torch.equal(flat(run), fresh)
    run.advance()
    trained = flat(run)
    torch.manual_seed(5)
    run.method.begin_task(run.stream.open(1, "all"))
    anew = flat(run)
    assert not (anew == trained).any()
    torch.manual_seed(5)
    backbone = run.method.context.build_network()
    network = nn.Sequential(backbone, nn.Linear(backbone.num_features, 4))
    assert torch.equal(anew, torch.cat([p.detach().flatten() for p in network.parameters()]))


def test_its_new_head_starts_as_the_network_says(build):
    """The head of a resnet32 is He-normal: standard deviation sqrt(2 / 64), not U(-1/8, 1/8)."""
    run = build("joint", network={"name": "resnet32", "blocks": 1})
    for _ in range(2):
        assert run.method.head.weight.std().item() == pytest.approx(0.177, abs=0.03)
        assert run.method.head.weight.abs().max() > 0.3
        run.method.head.weight.data.zero_()
        run.method.begin_task(run.stream.open(1, "all"))


def test_new_weights_are_on_the_device_of_the_run(build):
    run = build("joint")
    elsewhere = replace(run.method.context, device=torch.device("meta"))
    method = Joint(run.method.config, elsewhere).to("meta")
    method.begin_task(run.stream.open(1, "all"))
    assert {value.device.type for value in method.state_dict().values()} == {"meta"}


def test_running_statistics_start_anew(build):
    run = build("joint", network={"name": "resnet32"})
    running = dict(run.method.named_buffers())["backbone.stem.1.running_mean"]
    run.advance()
    assert running.any()
    run.method.begin_task(run.stream.open(1, "all"))
    assert not dict(run.method.named_buffers())["backbone.stem.1.running_mean"].any()


def test_trains_on_all_data_so_far(build):
    run = build("joint")
    first, second = (d.train for d in run.stream.data)
    batches = list(run.method.train_batches(run.stream.open(1, "all")))
    labels = torch.cat([batch.labels for batch in batches])
    assert len(labels) == len(first) + len(second)
    assert torch.equal(labels.sort().values, torch.cat([first.labels, second.labels]).sort().values)
    assert not labels.equal(torch.cat([first.labels, second.labels]))
    with pytest.raises(DataAccessError):
        list(run.method.train_batches(run.stream.open(1, None)))


def test_images_keep_the_statistics_of_their_task(build):
    run = build("joint", benchmark={"name": "permuted"})
    batches = list(run.method.train_batches(run.stream.open(1, "all")))
    got = torch.cat([batch.images for batch in batches]).flatten(1)
    every = [next(d.train.batches(1000)).images for d in run.stream.data]
    assert torch.equal(got.sum(1).sort().values, torch.cat(every).flatten(1).sum(1).sort().values)


def test_own_task_outputs_for_every_image(build):
    run = build("joint", outputs="task")
    run.advance()
    task = run.stream.open(1, "all")
    loss = run.method.objective(task)
    batch = next(iter(run.method.train_batches(task)))
    z = run.method.logits(batch.images, None)
    by_task = [
        masked_cross_entropy(z[rows], batch.labels[rows], torch.tensor(outputs)) * rows.sum()
        for outputs in ([0, 1], [2, 3])
        if (rows := torch.isin(batch.labels, torch.tensor(outputs))).any()
    ]
    assert len(by_task) == 2
    torch.testing.assert_close(loss(batch), sum(by_task) / len(batch))
    loss(batch).backward()
    assert all(p.grad.isfinite().all() for p in run.method.parameters())


def test_rivals():
    tasks = (TaskInfo(0, "a", (0, 2)), TaskInfo(1, "b", (1, 3)), TaskInfo(2, "again", (2, 0)))
    even = torch.tensor([True, False, True, False, False])
    odd = torch.tensor([False, True, False, True, False])
    expected = torch.stack([even, odd, even, odd, torch.zeros(5, dtype=torch.bool)])
    assert torch.equal(rivals(tasks, 5), expected)
    with pytest.raises(UserError, match=r"method\.outputs.*ambiguous"):
        rivals((TaskInfo(0, "a", (0, 1)), TaskInfo(1, "b", (1, 2))), 3)


def test_batches_are_full_and_augmented_if_the_train_block_says_so(build):
    plain = build("joint", train={"batch_size": 50}, benchmark={"validation": 0})
    run = build(
        "joint",
        train={"batch_size": 50, "drop_last": True, "augment": "flip"},
        benchmark={"validation": 0},
    )
    kept, full = (list(r.method.train_batches(r.stream.open(1, "all"))) for r in (plain, run))
    assert [len(batch) for batch in kept] == [50, 50, 32]  # 4 classes of 33 images
    assert [len(batch) for batch in full] == [50, 50]
    assert not torch.equal(full[0].images, kept[0].images)  # the same ones in the same order
    assert torch.equal(full[0].labels, kept[0].labels)
