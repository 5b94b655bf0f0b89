"""Learners of prompts: numbers of the specification, what keeps its bits, what is cached."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from prompt_making import ALONE, LEARNERS, STUDENT, alone, build, distilled, scrambled, trained_file
from stepping import until
from torch import Tensor, nn

from raycl import registry
from raycl.methods._prompted import Learner, PromptMethod, Sizes
from raycl.methods.base import Method
from raycl.nn.distilled_prompts import DistillationPrompts
from raycl.nn.prompted_vit import encode, together
from raycl.testing import finish
from raycl.training.run import Run

TASKS = 10


def learner_of(name: str, sizes: Sizes, **options: Any) -> Learner:
    cls = registry.find("raycl.methods", Method, name)
    return cls.learner(cls.Config.model_validate({"name": name, **options}), sizes)


# ------------------------------------------------------------------- numbers of the specification

COUNTS = {
    ("vit_tiny_patch16_224", 192): (120_960, 123_264, 960_000, 4_608),
    ("vit_small_patch16_224", 384): (241_920, 246_528, 1_920_000, 9_216),
    ("vit_base_patch16_224", 384): (472_320, 481_536, 3_456_000, 18_432),
    ("vit_base_patch16_224", 768): (483_840, 493_056, 3_840_000, 18_432),
    ("vit_large_patch16_224", 768): (637_440, 649_728, 4_864_000, 49_152),
}


@pytest.mark.parametrize("model,query", COUNTS)
def test_trained_parameters(model: str, query: int) -> None:
    """Section 4.5, with the options' defaults."""
    with torch.device("meta"):
        network = timm.create_model(model, num_classes=0)
        sizes = Sizes(network.embed_dim, query, len(network.blocks), TASKS)
        found = [sum(p.numel() for p in learner_of(name, sizes).parameters()) for name in LEARNERS]
    assert tuple(found) == COUNTS[model, query]


@pytest.fixture
def keys_seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of the keys in each call of attention."""
    seen: list[int] = []
    attend = F.scaled_dot_product_attention

    def watched(queries: Tensor, keys: Tensor, values: Tensor, **options: Any) -> Tensor:
        seen.append(keys.shape[2])
        assert values.shape == keys.shape
        return attend(queries, keys, values, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    return seen


def test_keys_seen(keys_seen: list[int]) -> None:
    """Invariant 14: tokens of 224 pixels, and the rows of the defaults."""
    with torch.device("meta"):
        arguments = {"embed_dim": 24, "num_heads": 1, "depth": 12}
        network = timm.create_model("vit_tiny_patch16_224", num_classes=0, **arguments)
        images, query = torch.empty(1, 3, 224, 224), torch.empty(1, 100)
        sizes, carrier = Sizes(24, 100, 12, TASKS), DistillationPrompts(24, 12, 6).prompts()
        for name, wanted in {
            "l2p": [247] + [197] * 11,
            "coda_prompt": [201] * 5 + [197] * 7,
            "dual_prompt": [200] * 2 + [207] * 3 + [197] * 7,
            "apt": [197] * 12,
        }.items():
            learner = learner_of(name, sizes)
            learner.index = 0
            prompts, _ = learner.prompts(query, 0)
            encode(network, images, prompts)
            assert keys_seen == wanted
            keys_seen.clear()
            encode(network, images, together(carrier, prompts))
            assert keys_seen == [wanted[0] + 1, *(each + 4 for each in wanted[1:])]
            keys_seen.clear()


def filled(learner: Learner, **values: Any) -> Learner:
    for name, value in values.items():
        getattr(learner, name)[0].data = torch.tensor(value)
    return learner


def test_coda_weights_a_prompt() -> None:
    """Invariant 3."""
    learner = learner_of("coda_prompt", Sizes(2, 2, 1, 2), size=2, length=2, blocks=[0])
    looks, keys = [[1.0, 0], [1, 1]], [[3.0, 4], [0, 2]]
    filled(learner, attention=looks, keys=keys, components=[[[1.0, 0], [0, 1]], [[0, 2], [2, 0]]])
    learner.index = 1
    for task in (1, None):
        prompts, loss = learner.prompts(torch.tensor([[1.0, 2]]), task)
        assert loss is None
        rows = torch.cat(prompts[0].front, 1)[0]
        wanted = torch.tensor([[0.6, 1.788854], [1.788854, 0.6]])
        torch.testing.assert_close(rows, wanted, rtol=0, atol=1e-6)


def test_coda_penalises_rows_that_are_not_orthonormal() -> None:
    """Invariant 7, of K alone and then of K and A."""
    sizes = Sizes(2, 2, 1, 2)
    learner = learner_of("coda_prompt", sizes, size=2, length=2, blocks=[0], mu=0.5)
    straight = [[[1.0, 0], [0, 0]], [[0, 1], [0, 0]]]
    eye, bent = [[1.0, 0], [0, 1]], [[1.0, 0], [1, 1]]
    learner.index = 1
    for looks, wanted in ((eye, 0.75), (bent, 1.5)):
        filled(learner, keys=bent, attention=looks, components=straight)
        loss = learner.prompts(torch.ones(1, 2), 1)[1]
        assert loss.item() == pytest.approx(0.5 * wanted)
    assert learner.prompts(torch.ones(1, 2), None)[1] is None


def test_coda_begins_with_orthonormal_rows() -> None:
    """Invariant 7, for both tasks as long as nothing is learnt; rows beyond are zero."""
    learner = learner_of("coda_prompt", Sizes(8, 12, 2, 2), size=9, length=2, blocks=[0, 1])
    generator = torch.Generator().manual_seed(0)
    for index, used in ((0, 4), (1, 8)):
        learner.index = index
        before = [p.detach().clone() for p in learner.parameters()]
        learner.begin(generator)
        for old, new in zip(before, learner.parameters(), strict=True):
            flat = new.detach()[:used].flatten(1)
            assert (flat @ flat.T - torch.eye(used)).abs().max() < 1e-5
            assert torch.equal(new[: used - 4], old[: used - 4])
            assert not new[used:].any()


def test_losses_of_keys() -> None:
    """Invariant 4: cosines 0.6, 0.8 and 0.989950."""
    keys, query = [[1.0, 0], [0, 1], [1, 1]], torch.tensor([[3.0, 4]])
    pool = filled(learner_of("l2p", Sizes(2, 2, 1, 2), size=3, top=2, length=2), keys=keys)
    assert pool.prompts(query, 0)[1].item() == pytest.approx(0.210050, abs=1e-6)
    options = {"size": 3, "length": 2, "blocks": [0], "general_blocks": []}
    experts = filled(learner_of("dual_prompt", Sizes(2, 2, 1, 2), **options), keys=keys)
    assert experts.prompts(query, 0)[1].item() == pytest.approx(0.4)
    assert experts.prompts(query, 1)[1].item() == pytest.approx(0.2)
    rows = experts.experts[0]
    chosen = experts.prompts(query, None)[0][0].front
    assert torch.equal(torch.cat(chosen, 1)[0], rows[2]), "rows of tasks to come are chosen, too"


def test_all_pairs_of_the_first_revision() -> None:
    """B x B x 2 terms: of each image to what any image has chosen."""
    keys, queries = [[1.0, 0], [0, 1], [1, 1]], torch.tensor([[3.0, 4], [4, 3]])
    options = {"size": 3, "top": 2, "length": 2, "key_loss": "all_pairs"}
    pool = filled(learner_of("l2p", Sizes(2, 2, 1, 2), **options), keys=keys)
    near, middle, far = 1 - 0.989950, 1 - 0.8, 1 - 0.6
    wanted = 2 * (near + middle) + 2 * (near + far)
    assert pool.prompts(queries, 0)[1].item() == pytest.approx(wanted, abs=1e-5)


def test_apt_averages() -> None:
    """Invariant 11; before any average there is no prompt."""
    learner = learner_of("apt", Sizes(4, 4, 2, 3), ema=0.7)

    def shown() -> Tensor:
        pairs = [p.class_token for p in learner.prompts(torch.empty(1, 0), None)[0].values()]
        return torch.stack([row for pair in pairs for row in pair])

    assert not shown().any()
    for index, (value, wanted) in enumerate([(1.0, 1.0), (2.0, 1.3), (0.0, 0.91)]):
        learner.index = index
        learner.vectors.data.fill_(value)
        learner.end()
        torch.testing.assert_close(shown(), torch.full((4, 4), wanted))


# ------------------------------------------------------------------------- bits that are to be kept

HEAD = ("head.weight", "head.bias", "head.linear.weight", "head.linear.bias")
OWN_ROWS = {"dual_prompt": ("keys", "experts"), "coda_prompt": ("keys", "attention", "components")}


def changed_rows(before: Tensor, after: Tensor) -> list[int]:
    return [
        row for row, pair in enumerate(zip(before, after, strict=True)) if not torch.equal(*pair)
    ]


def trained_rows(run: Run) -> tuple[dict[str, list[int]], dict[str, Tensor]]:
    """Rows of the student that the second task's training changes, from its redrawing on."""
    until(run, 1)
    before = {n: v.clone() for n, v in run.method.state_dict().items()}
    finish(run)
    after = run.method.state_dict()
    return {
        name: changed_rows(old, after[name]) for name, old in before.items() if old.ndim
    }, before


@pytest.mark.parametrize("name", ALONE)
def test_rows_that_keep_their_bits(name: str) -> None:
    """Invariant 8: heads by class, experts and components by task; the network everywhere."""
    rows, _ = trained_rows(build(alone(name)))
    for entry, changed in rows.items():
        part = entry.removeprefix("student.")
        kind = part.removeprefix("learner.").partition(".")[0]
        if part in HEAD:
            assert changed == [2, 3], entry
        elif kind in OWN_ROWS.get(name, ()):
            assert changed == ([1] if name == "dual_prompt" else [3, 4, 5]), entry
        elif entry.startswith("backbone."):
            assert not changed, entry
        elif kind == "keys":  # of a shared pool: at least those that were chosen
            assert changed, entry
        else:
            assert changed or kind in ("pools",), entry


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("method", [*map(alone, OWN_ROWS), distilled("coda_prompt", "kd")], ids=str)
def test_rows_of_other_tasks_have_no_decay(method: dict[str, Any], optimizer: str) -> None:
    run = build(method, weight_decay=0.1, optimizer=optimizer, momentum=0.0)
    for entry, changed in trained_rows(run)[0].items():
        whose, _, part = entry.partition(".")
        kind = part.removeprefix("learner.").partition(".")[0]
        name = method.get("learner", method)["name"]
        if whose in ("student", "teacher") and kind in OWN_ROWS[name]:
            assert changed == ([1] if name == "dual_prompt" else [3, 4, 5]), entry


def test_only_the_learner_and_its_head_get_gradients() -> None:
    """Keys learn from their own loss alone, queries carry nothing, the network is frozen."""
    for name in ("l2p", "dual_prompt"):
        run = build(alone(name))
        until(run, 1)
        run.advance()
        method = run.method
        task = run._task
        phase = run._phases[0]
        assert {p for p in method.parameters() if p.requires_grad} == set(method.trainable())
        batch = next(iter(task.train.batches(8)))
        method.train()
        assert not method.query(batch.images, None).requires_grad
        keys = list(method.student.learner.keys)
        terms = phase.loss(batch)
        found = torch.autograd.grad(
            terms["cross_entropy"], keys, retain_graph=True, allow_unused=True
        )
        assert all(g is None for g in found)
        assert all(g.any() for g in torch.autograd.grad(terms["keys"], keys))
        assert not any(p.requires_grad for p in method.backbone.parameters())


def test_options_of_the_losses_of_keys() -> None:
    once, twice = (build(alone("l2p", aux_loss_scale=scale)) for scale in (1, 2))
    first, second = (
        run.method.objective(task)(batch)
        for run, (task, batch) in ((run, scrambled(run)) for run in (once, twice))
    )
    assert torch.equal(second["keys"], 2 * first["keys"])
    assert torch.equal(second["cross_entropy"], first["cross_entropy"])


# ------------------------------------------------------------------------------ resume and caches


def test_components_drawn_anew_survive_a_kill() -> None:
    """Before, in and after the phase that draws them, of the second task."""
    reference = build(alone("coda_prompt"))
    finish(reference)
    wanted = reference.method.state_dict()
    run = build(alone("coda_prompt"))
    until(run, 1)
    while not run.done:
        saved = run.state_dict()
        run = build(alone("coda_prompt"))
        run.load_state_dict(saved)
        run.advance()
    found = run.method.state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A student with weights."""
    return trained_file(tmp_path_factory.mktemp("weights") / "w.safetensors", STUDENT)


@pytest.mark.parametrize("name", ["l2p", "dual_prompt", "coda_prompt", "no_prompt"])
def test_cached_queries_change_no_bit(name: str, network: dict[str, Any]) -> None:
    method = alone(name, anchor="weights")
    kept, computed = (build(method, network, evaluate={"cache_mb": mb}) for mb in (100, 0))
    assert finish(kept)["matrices"] == finish(computed)["matrices"]
    pairs = zip(kept.method.parameters(), computed.method.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("augment,passes", [("none", 1), ("flip", 2)])
def test_queries_are_computed_once(
    network: dict[str, Any], monkeypatch: pytest.MonkeyPatch, augment: str, passes: int
) -> None:
    """A query is computed for each image; twice for training images in two augmented epochs."""
    counts = [0]
    plain = PromptMethod.frozen_values

    def counted(self: PromptMethod, images: Tensor) -> Tensor:
        counts[0] += len(images)
        return plain(self, images)

    monkeypatch.setattr(PromptMethod, "frozen_values", counted)
    run = build(alone("l2p", anchor="weights"), network, augment=augment)
    finish(run)
    others = (each for one in run.stream.data for each in (one.test, one.validation) if each)
    trained = passes * sum(len(one.train) for one in run.stream.data)
    assert counts[0] == trained + sum(map(len, others))


def test_no_network_in_a_checkpoint(network: dict[str, Any]) -> None:
    run = build(alone("l2p", anchor="weights"), network)
    names = run.state_dict()["method"]
    assert names
    assert not [name for name in names if name.startswith("backbone.")]
    assert build(alone("l2p")).state_dict()["method"].keys() > names.keys()


def test_networks_stay_in_eval_mode(network: dict[str, Any]) -> None:
    dropping = {**network, "model_args": {**network["model_args"], "proj_drop_rate": 0.5}}
    run = build(alone("l2p", anchor="weights"), dropping)
    _, batch = scrambled(run)
    run.method.requires_grad_(False).train()
    twice = [run.method.logits(batch.images, None) for _ in (0, 1)]
    assert torch.equal(*twice)
    assert not any(m.training for m in run.method.backbone.modules() if isinstance(m, nn.Dropout))


@pytest.mark.parametrize("block", [alone("l2p"), distilled("l2p", "kd")], ids=["l2p", "cdl"])
def test_a_query_is_not_rounded_while_layers_are(block: dict[str, Any]) -> None:
    """A network that the first task has trained is asked in every step, under autocast."""
    run = build(block)
    assert run.method.fixed == ()
    run.method.eval()
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    exact = run.method.query(images, None)[:, : run.method.backbone.num_features]
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(run.method.backbone(images), exact)
        assert torch.equal(run.method.query(images, None)[:, : exact.shape[1]], exact)
