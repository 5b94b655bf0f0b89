"""Distil, DistilBuf and QDI written out once more from their specification, in float64.

Nothing is taken from ``raycl.methods``: only the weights that a new network starts with, the raw
images, their augmentation and normalisation, and the states of the generators. Drawn are first a
permutation for statistics, then those for starting points; the reservoir's numbers item by item.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from reservoir_making import twin
from torch import Tensor, nn

from raycl import datasets
from raycl.testing import toy_data
from raycl.training.run import Run

PLAIN: dict[str, Any] = {"name": "cnn", "channels": [3], "features": 10}
NORMED: dict[str, Any] = {"name": "cnn", "channels": [4, 5], "features": 8, "batch_norm": True}
SEQUENCE: dict[str, Any] = {"name": "sequence", "of": [PLAIN, {**NORMED, "repeat": 2}]}
"""A network without batch normalisation, one with it, and that one again."""
CHANGING: dict[str, Any] = {"name": "sequence", "of": [PLAIN, NORMED]}
CONSTANT: dict[str, Any] = {"name": "sequence", "of": [NORMED, NORMED]}
SELECT = {"select": "seen_accuracy", "select_tolerance": 0.2, "epochs": 3}
PLAIN_SGD = {"outputs": "all", "label_smoothing": 0.1}
"""Options with which ``finetune`` is the lower bound of these methods."""
EPS, BETAS = 0.1, (0.5, 0.9)


@contextmanager
def float64() -> Iterator[None]:
    """Runs that are built and stepped here compute in float64 what they compute in float32."""
    set_default_dtype = torch.set_default_dtype
    set_default_dtype(torch.float64)
    torch.set_default_dtype = lambda _: None  # which a run does
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        del torch.Tensor.float
        torch.set_default_dtype = set_default_dtype
        set_default_dtype(torch.float32)


def three_tasks(method: dict[str, Any], network: Any = None, **train: Any) -> Run:
    """A run of three tasks of four classes, twelve in all; every output competes."""
    stream = {"name": "permuted", "outputs": "separate", "tasks": 3, "class_outputs": "all"}
    return Run(
        {
            "benchmark": {**stream, "dataset": "digits", "validation": 0.2},
            "method": method,
            "network": SEQUENCE if network is None else network,
            "train": {
                "epochs": 4,
                "batch_size": 16,
                "lr": 0.3,
                "select": "seen_accuracy",
                "select_tolerance": 0.2,
                **train,
            },
            "seed": 3,
        },
        toy_data(),
    )


def weights(module: nn.Module) -> list[Tensor]:
    return [value.clone() for value in module.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def scripted(run: Run, scores: Sequence[float]) -> list[list[Tensor]]:
    """Epochs get these scores, whatever they are worth; the networks that they were asked of."""
    given = iter(scores)
    epochs: list[list[Tensor]] = []

    def score() -> float:
        epochs.append(weights(run.method.network))
        return next(given)

    object.__setattr__(run.method.context, "seen_accuracy", score)
    return epochs


def smoothed(z: Tensor, y: Tensor) -> Tensor:
    """LS: mean of -(1 - eps) log p_y - eps / C sum_c log p_c."""
    log_p = z - z.exp().sum(1, keepdim=True).log()
    own = log_p[torch.arange(len(y)), y]
    return (-(1 - EPS) * own - EPS / z.shape[1] * log_p.sum(1)).mean()


def divergence(s: Tensor, r: Tensor, t: float) -> Tensor:
    """KD: T^2 / B sum q (log q - log p)."""
    p, q = (s / t).softmax(1), (r / t).softmax(1)
    return t * t * (q * (q.log() - p.log())).sum() / len(s)


def moments(network: nn.Module, images: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Logits; mean and variance of what normalisations get, or else of what convolutions give."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    maps: list[Tensor] = []
    if norms:
        hooks = [m.register_forward_pre_hook(lambda _, got: maps.append(got[0])) for m in norms]
    else:
        convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
        hooks = [m.register_forward_hook(lambda _, __, out: maps.append(out)) for m in convs]
    logits = network(images)
    for hook in hooks:
        hook.remove()
    means = [m.mean((0, 2, 3), keepdim=True) for m in maps]
    pairs = zip(maps, means, strict=True)
    return logits, [(m.flatten(), ((x - m) ** 2).mean((0, 2, 3))) for x, m in pairs]


def length(x: Tensor) -> Tensor:
    """Euclidean norm of all entries together."""
    return (x * x).sum() ** 0.5


class Reference:
    """Driver, losses, reservoir and inversion."""

    def __init__(self, run: Run) -> None:
        self.run, self.options = run, run.method.config
        self.kind = self.options.name
        self.data, self.own, self.flips = (
            twin(g) for g in (run.random.data, run.random.method, run.random.augment)
        )
        self.student: Any = None
        self.best: Any = None
        self.teacher: Any = None
        self.memory: list[tuple[Tensor, int]] = []
        self.offered = 0

    def view(self, name: str, raw: Tensor) -> Tensor:
        change = datasets.augment(name, self.flips)
        return raw if change is None else change(raw)

    # ------------------------------------------------------------------ driver

    def enter(self) -> None:
        self.task = self.run.task_index
        self.run._enter_task()
        blocks = self.run.networks
        if self.task:
            self.teacher = copy.deepcopy(self.best).eval().requires_grad_(False)
        if not self.task or blocks[self.task] != blocks[self.task - 1]:
            self.student = copy.deepcopy(self.run.method.network)
        self.ref = 0.0
        self.examples = self.run.stream.data[self.task].train
        if self.teacher is not None and self.kind == "qdi":
            self.begin_inversion()

    def epoch(self) -> float:
        """One pass over the task; the mean loss."""
        train, parameters, losses = self.run.config.train, list(self.student.parameters()), 0.0
        self.student.train()
        if self.teacher is not None and getattr(self.options, "teacher_mode", "eval") == "train":
            self.teacher.train()
        size = len(self.examples)
        for index in torch.randperm(size, generator=self.data).split(train.batch_size):
            raw, y = self.examples.raw(index), self.examples.labels[index]
            loss = self.loss(self.examples.prepare(self.view(train.augment, raw)), y)
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for p, g in zip(parameters, gradients, strict=True):
                    p -= train.lr * g
            losses += float(loss.detach()) * len(y)
            if self.kind == "distilbuf":
                numbers = torch.rand(len(y), generator=self.own, dtype=torch.float64)
                for image, label, u in zip(raw, y, numbers, strict=True):
                    self.offer(image, int(label), float(u))
        self.score = self.seen_accuracy()
        if self.score >= self.ref - 0.2:
            self.best, self.ref = copy.deepcopy(self.student), self.score
        return losses / size

    def seen_accuracy(self) -> float:
        self.student.eval()
        found = []
        for data, info in zip(self.run.stream.data, self.run.stream.info.tasks, strict=True):
            if info.index > self.task:
                break
            images, y = self.all_of(data.validation)
            with torch.no_grad():
                z = self.student(images)
            outside = [c for c in range(z.shape[1]) if c not in info.classes]
            found.append((z.argmax(1) == y).double().mean())
            found.append(
                (z.index_fill(1, torch.tensor(outside), -1e9).argmax(1) == y).double().mean()
            )
        return 100 * float(torch.stack(found).mean())

    @staticmethod
    def all_of(examples: Any) -> tuple[Tensor, Tensor]:
        return examples.prepare(examples.raw(torch.arange(len(examples)))), examples.labels

    # ------------------------------------------------------------------ losses

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        z = self.student(x)
        loss = smoothed(z, y)
        if self.teacher is not None:
            loss = loss + self.distilled(z, x)
            if self.kind == "qdi":
                xs = self.x.detach()
                if self.options.replay != "all":
                    xs = xs[torch.randperm(len(xs), generator=self.own)[: self.options.replay]]
                loss = loss + self.distilled(self.student(xs), xs)
        if self.kind == "distilbuf" and self.memory:
            order = torch.randperm(len(self.memory), generator=self.own)
            old = [self.memory[i] for i in order[: self.run.config.train.batch_size]]
            images = self.view(self.options.replay_augment, torch.stack([i for i, _ in old]))
            mean, std = (torch.tensor(s[0])[:, None, None] for s in (self.info.mean, self.info.std))
            labels = torch.tensor([label for _, label in old])
            z = self.student((images.double() / 255 - mean) / std)
            loss = loss + self.options.replay_weight * smoothed(z, labels)
        return loss

    @property
    def info(self) -> Any:
        return self.run.stream.info

    def distilled(self, z: Tensor, images: Tensor) -> Tensor:
        with torch.no_grad():
            q = self.teacher(images)
        return self.options.alpha * divergence(z, q, self.options.temperature)

    def offer(self, image: Tensor, label: int, uniform: float) -> None:
        n, size = self.offered, self.options.memory_size
        r = int(uniform * (n + 1))
        if n < size:
            self.memory.append((image, label))
        elif r < size:
            self.memory[r] = image, label
        self.offered += 1

    # ------------------------------------------------------------------ inversion

    def begin_inversion(self) -> None:
        self.k, size, s = 0, len(self.examples), self.options.synthetic_images
        n_old = 4 * self.task
        n = s // n_old
        many = n * n_old
        pool = torch.randperm(size, generator=self.own)
        again = [torch.randperm(size, generator=self.own) for _ in range(-(-many // size))]
        first = torch.cat(again)[:many].tolist()
        norms = [m for m in self.teacher.modules() if isinstance(m, nn.BatchNorm2d)]
        chosen = [] if norms else pool[: 4 * s].tolist()
        used = sorted({*chosen, *first})
        raw = self.view(self.run.config.train.augment, self.examples.raw(torch.tensor(used)))
        view = dict(zip(used, self.examples.prepare(raw), strict=True))
        self.y = torch.tensor([c for c in range(n_old) for _ in range(n)])
        self.x = torch.stack([view[i] for i in first]).requires_grad_()
        self.m, self.v = torch.zeros_like(self.x), torch.zeros_like(self.x)
        if norms:
            self.target = [(m.running_mean, m.running_var) for m in norms]
        else:
            with torch.no_grad():
                self.target = moments(self.teacher, torch.stack([view[i] for i in chosen]))[1]

    def objective(self) -> Tensor:
        o, x, (z, found) = self.options, self.x, moments(self.teacher, self.x)
        total = smoothed(z, self.y)
        for (mean, var), (m, v) in zip(found, self.target, strict=True):
            total = total + o.feature_weight * (length(v - var) + length(m - mean))
        h, w = x.shape[2:]
        right = x[:, :, :, : w - 1] - x[:, :, :, 1:]
        down = x[:, :, : h - 1] - x[:, :, 1:]
        rising = x[:, :, 1:, : w - 1] - x[:, :, : h - 1, 1:]
        falling = x[:, :, : h - 1, : w - 1] - x[:, :, 1:, 1:]
        variation = sum(length(d) for d in (right, down, rising, falling))
        return total + o.variation_weight * variation + o.magnitude_weight * length(x)

    def inversion_step(self) -> None:
        o, k = self.options, self.k
        self.teacher.eval()
        (g,) = torch.autograd.grad(self.objective(), self.x)
        lr = o.inversion_lr * (
            (k + 1) / 100
            if k < 100
            else 0.5 * (1 + math.cos(math.pi * (k - 100) / (o.inversion_steps - 100)))
        )
        self.m = BETAS[0] * self.m + (1 - BETAS[0]) * g
        self.v = BETAS[1] * self.v + (1 - BETAS[1]) * g * g
        self.k += 1
        mean, square = self.m / (1 - BETAS[0] ** self.k), self.v / (1 - BETAS[1] ** self.k)
        self.x = (self.x - lr * mean / (square.sqrt() + 1e-8)).detach().requires_grad_()


def gap(module: nn.Module, other: nn.Module) -> float:
    """The largest difference between entries of two states; counters must be the same."""
    pairs = zip(module.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a.detach() - b.detach()).abs().max()) for a, b in pairs)


def follows(run: Run, tolerance: float = 1e-9) -> list[bool]:
    """Both side by side to the end; of each task, whether its last epoch was the one kept."""
    reference, ends = Reference(run), []
    while not run.done:
        reference.enter()
        method = run.method
        while run.phase_index < len(run._phases) - 1:  # inversion
            row = run.advance()
            assert row["phase"] == "inversion"
            for _ in range(len(list(run._phases[0].batches()))):
                reference.inversion_step()
            made = method.synthetic.images
            assert made.dtype == torch.float64
            assert (made - reference.x).abs().max() < tolerance
            if run._phase is not None:
                adam = run._phase.optimizer.state[made]
                assert (adam["exp_avg"] - reference.m).abs().max() < tolerance
                assert (adam["exp_avg_sq"] - reference.v).abs().max() < tolerance
        if reference.teacher is not None and reference.kind == "qdi":
            assert reference.k == run.method.config.inversion_steps
            assert (
                method.synthetic.answers - reference.teacher(reference.x)
            ).abs().max() < tolerance
        over = False
        while not over:
            loss = reference.epoch()
            row = run.advance()
            over = row["at_task_end"]
            assert abs(row["train/loss"] - loss) < 1e-5 * max(1, loss)
            assert gap(method.network, reference.best if over else reference.student) < tolerance
            if over and method.onward is not None:
                assert gap(method.onward, reference.student) < tolerance
            if reference.teacher is not None:
                assert gap(method.teacher, reference.teacher) < tolerance
            if reference.kind == "distilbuf":
                memory = method.reservoir
                assert memory.offered == reference.offered
                images, labels = zip(*reference.memory, strict=True)
                assert torch.equal(memory.images[: len(memory)], torch.stack(images))
                assert memory.labels[: len(memory)].tolist() == list(labels)
        ends.append(reference.score == reference.ref)
    return ends
