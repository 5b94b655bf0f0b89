"""Prompts and distillation once more: slow, in double precision, image by image and head by head.

Only parameters are taken from the methods; nothing of ``raycl.nn`` is called. Formulas are those of
the specification.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

State = Mapping[str, Tensor]
NOTHING = torch.zeros(0, 0, dtype=torch.float64)


class Given(NamedTuple):
    """What a block gets: rows before and behind, vectors for the class token, a token."""

    front: tuple[Tensor, Tensor] | None = None
    behind: tuple[Tensor, Tensor] | None = None
    class_token: tuple[Tensor, Tensor] | None = None
    token: Tensor | None = None


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().double() for name, value in module.state_dict().items()}


def normalised(x: Tensor, state: State, name: str, eps: float) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x: Tensor, state: State, name: str) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def softmax(x: Tensor) -> Tensor:
    return (x - x.max()).exp() / (x - x.max()).exp().sum()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())


def cut(rows: Tensor) -> tuple[Tensor, Tensor]:
    half = len(rows) // 2
    return rows[:half], rows[half:]


def transformer(
    state: State, heads: int, depth: int, image: Tensor, given: Mapping[int, Given]
) -> tuple[Tensor, list[Tensor]]:
    """Tokens behind the final norm, and outputs of all blocks, for one image (1, 8, 8)."""
    kernel, bias = state["model.patch_embed.proj.weight"], state["model.patch_embed.proj.bias"]
    size, tokens = kernel.shape[-1], [state["model.cls_token"][0, 0]]
    for top in range(0, image.shape[1], size):
        for left in range(0, image.shape[2], size):
            patch = image[:, top : top + size, left : left + size]
            tokens.append((kernel * patch).sum((1, 2, 3)) + bias)
    x, outputs = torch.stack(tokens) + state["model.pos_embed"][0], []
    for number in range(depth):
        here, prompt = f"model.blocks.{number}", given.get(number, Given())
        if prompt.token is not None:
            x = torch.cat([x, prompt.token[None]])
        x = x + attention(
            state, heads, f"{here}.attn", normalised(x, state, f"{here}.norm1", 1e-6), prompt
        )
        hidden = linear(normalised(x, state, f"{here}.norm2", 1e-6), state, f"{here}.mlp.fc1")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + linear(hidden, state, f"{here}.mlp.fc2")
        outputs.append(x)
    return normalised(x, state, "model.norm", 1e-6), outputs


def attention(state: State, heads: int, name: str, x: Tensor, given: Given) -> Tensor:
    width = x.shape[1]
    rows = linear(x, state, f"{name}.qkv")
    queries, keys, values = rows[:, :width], rows[:, width : 2 * width], rows[:, 2 * width :]
    if given.class_token is not None:
        keys = torch.cat([keys[:1] + given.class_token[0], keys[1:]])
        values = torch.cat([values[:1] + given.class_token[1], values[1:]])
    if given.front is not None:
        keys, values = torch.cat([given.front[0], keys]), torch.cat([given.front[1], values])
    if given.behind is not None:
        keys, values = torch.cat([keys, given.behind[0]]), torch.cat([values, given.behind[1]])
    per_head, size = [], width // heads
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        answers = []
        for query in queries[:, own]:
            weights = softmax(torch.stack([query @ key for key in keys[:, own]]) / math.sqrt(size))
            answers.append((weights[:, None] * values[:, own]).sum(0))
        per_head.append(torch.stack(answers))
    return linear(torch.cat(per_head, 1), state, f"{name}.proj")


# --------------------------------------------------------------------------------------- learners


def prompts(
    name: str, options: Mapping[str, Any], state: State, q: Tensor, task: int | None, index: int
) -> tuple[dict[int, Given], Tensor]:
    """Prompts of one image, and its loss of the keys; options are those of the file."""
    found: dict[int, Given] = {}
    loss = torch.zeros((), dtype=torch.float64)
    blocks = options.get("blocks", (0,))
    if name == "l2p":
        for number, block in enumerate(blocks):
            keys, pool = state[f"keys.{number}"], state[f"pools.{number}"]
            scores = [cosine(q, key) for key in keys]
            best = sorted(range(len(keys)), key=lambda row: -scores[row])[: options["top"]]
            front = [torch.cat([cut(pool[row])[half] for row in best]) for half in (0, 1)]
            found[block] = Given(front=(front[0], front[1]))
            loss = loss + sum(1 - scores[row] for row in best)
    elif name == "dual_prompt":
        for number, block in enumerate(options["general_blocks"]):
            found[block] = Given(front=cut(state[f"general.{number}"]))
        for number, block in enumerate(blocks):
            keys = state[f"keys.{number}"]
            scores = [cosine(q, key) for key in keys]
            row = max(range(len(keys)), key=lambda row: scores[row]) if task is None else task
            found[block] = Given(front=cut(state[f"experts.{number}"][row]))
            loss = loss + (1 - scores[row])
    elif name == "coda_prompt":
        used = (index + 1) * (options["size"] // 2)
        for number, block in enumerate(blocks):
            parts = [state[f"{part}.{number}"] for part in ("keys", "attention", "components")]
            keys, looks, components = parts
            rows = sum(cosine(q * looks[m], keys[m]) * components[m] for m in range(used))
            found[block] = Given(front=cut(rows))
            for part in parts:
                flat = part[:used].reshape(used, -1)
                excess = flat @ flat.T - torch.eye(used, dtype=torch.float64)
                loss = loss + options.get("mu", 0) * excess.square().mean()
    elif name == "apt":
        rows = state["average" if task is None else "vectors"]
        for block in range(len(rows) // 2):
            found[block] = Given(class_token=(rows[2 * block], rows[2 * block + 1]))
    elif name == "one_prompt":
        found = {0: Given(front=cut(state["rows.0"]))}
    return found, loss


def head(name: str, state: State, features: Tensor) -> Tensor:
    if name != "apt":
        return features @ state["weight"].T + state["bias"]
    centred = features - features.mean()
    z = centred / (centred.square().mean() + 1e-5).sqrt()
    rows = state["linear.weight"]
    logits = [z @ row / row.square().sum().sqrt() for row in rows]
    return torch.stack(logits) + state["linear.bias"]


# ------------------------------------------------------------------------------------------ losses


def cross_entropy(z: Tensor, label: int) -> Tensor:
    return -softmax(z)[label].log()


def divergence(target: Tensor, other: Tensor) -> Tensor:
    return (target * (target.log() - other.log())).sum()


def soft(z: Tensor, u: Tensor, temperature: float) -> Tensor:
    return temperature**2 * divergence(softmax(u / temperature), softmax(z / temperature))


def decoupled(z: Tensor, u: Tensor, label: int) -> Tensor:
    """1 TCKD + 4 NCKD at temperature 4."""
    p, q = softmax(z / 4), softmax(u / 4)
    pairs = [torch.stack([each[label], 1 - each[label]]) for each in (q, p)]
    rest = [torch.cat([each[:label], each[label + 1 :]]) / 4 for each in (u, z)]
    return 16 * divergence(*pairs) + 4 * 16 * divergence(*map(softmax, rest))


def squared(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().mean()


def review(state: State, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean over levels; from the deepest to the first."""
    total, deeper = torch.zeros((), dtype=torch.float64), NOTHING
    for level in reversed(range(len(student))):
        here = f"levels.{level}"
        y = normalised(
            linear(student[level], state, f"{here}.first"), state, f"{here}.first_norm", 1e-5
        )
        h = y
        if level < len(student) - 1:
            g1, g2 = (
                normalised(linear(part, state, f"{here}.gate"), state, f"{here}.gate_norm", 1e-5)
                for part in (y, deeper)
            )
            h = normalised(g1 * y + g2 * deeper, state, f"{here}.last_norm", 1e-5)
        deeper = h
        total = total + squared(linear(h, state, f"{here}.last"), teacher[level])
    return total / len(student)


def mapped(state: State, number: int, given: Given, kind: str, length: int) -> Given:
    """A teacher's prefix in the student's width."""
    here = f"mappers.{number}"
    assert given.front is not None
    if kind == "attention":
        halves = []
        for rows in given.front:
            q, k, v = (linear(rows, state, f"{here}.{part}") for part in ("query", "key", "value"))
            weights = [
                softmax(torch.stack([a @ b for b in k]) / math.sqrt(rows.shape[1])) for a in q
            ]
            halves.append(torch.stack(weights) @ v)
        return Given(front=(halves[0], halves[1]))
    g = torch.cat(given.front).mean(0)
    keys, looks, flat = (state[f"{here}.{part}"] for part in ("keys", "attention", "components"))
    rows = sum(cosine(g * looks[m], keys[m]) * flat[m] for m in range(len(keys)))
    return Given(front=cut(rows.reshape(length, -1)))


def added(first: Mapping[int, Given], second: Mapping[int, Given]) -> dict[int, Given]:
    """Rows of the first before those of the second."""
    found = dict(second)
    for block, one in first.items():
        other = second.get(block, Given())
        front = one.front or other.front
        if one.front and other.front:
            front = tuple(torch.cat([a, b]) for a, b in zip(one.front, other.front, strict=True))
        found[block] = Given(
            front, one.behind or other.behind, one.class_token or other.class_token, one.token
        )
    return found
