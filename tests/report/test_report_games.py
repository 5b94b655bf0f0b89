"""A report on sequences of games: tables, transfer from scratch, curves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from games_making import BEST, FRAMES, GAMES, REFERENCES, game_result, games_sweep
from report_helpers import Store

from raycl.report import curves, figures, games
from raycl.report.formats import render
from raycl.report.load import load
from raycl.report.table import Table, make_table
from raycl.rl.metrics import forward_transfer, learning_areas

METHODS = ["finetune", "online_ewc", "blip", {"name": "scratch", "label": "alone"}]


@pytest.fixture(scope="session")
def table(store: Store) -> Table:
    published = {"source": "clips", "score/KungFuMaster": {"blip": 11900}}
    games_sweep(store, "games", METHODS, published=published)
    return make_table(load("games", store.uri))


def rows(table: Table, metric: str) -> dict[str, dict[str, object]]:
    return {row["method"]: row for row in table.rows if row["metric"] == metric}


def test_raw_scores_are_those_after_the_last_game(table: Table) -> None:
    found = rows(table, "Boxing")
    assert {row["readout"] for row in found.values()} == {"score"}
    last = [game_result(0.1, seed)["matrices"]["score"][-1][1] for seed in range(3)]
    assert found["finetune"]["mean"] == pytest.approx(sum(last) / 3)
    assert found["finetune"]["n"] == 3


def test_games_learnt_alone_count_right_after_each_game(table: Table) -> None:
    found = rows(table, "KungFuMaster")["alone"]
    own = [game_result(0.0, s, speed=0.8)["matrices"]["score"][0][0] for s in range(3)]
    assert found["mean"] == pytest.approx(sum(own) / 3)
    metrics = {row["metric"] for row in table.rows if row["method"] == "alone"}
    assert metrics == {"learning_performance", "auc", *GAMES}


def test_forward_transfer_is_to_the_method_that_learns_alone_by_seed(table: Table) -> None:
    def areas(result: games.Result) -> list[float]:
        found = [games.percent(result, g, result["curves"]["training"][g]) for g in GAMES]
        return learning_areas(found, FRAMES)

    wanted = [
        forward_transfer(areas(game_result(0.8, s, speed=0.9)), areas(game_result(0, s, speed=0.8)))
        for s in range(3)
    ]
    found = rows(table, "forward_transfer")
    assert set(found) == {"finetune", "online_ewc", "blip"}
    assert found["blip"]["mean"] == pytest.approx(sum(wanted) / 3)
    assert min(wanted) > 0


def test_without_scratch_there_is_no_forward_transfer(store: Store) -> None:
    games_sweep(store, "games-two", ["finetune", "blip"], seeds=1)
    found = make_table(load("games-two", store.uri))
    assert rows(found, "forward_transfer") == {}
    assert set(rows(found, "average_performance")) == {"finetune", "blip"}


def test_the_table_says_what_percent_is_of(table: Table) -> None:
    text = render(table, "table")
    assert max(map(len, text.splitlines())) <= 100
    for part in ("normalised score · % of reference", "raw score (at the end) · points", "11900.0"):
        assert part in text
    plain = " ".join(text.split())
    assert "(random and human play) are KungFuMaster 258.5 and 22,736.3, Boxing 0.1" in plain
    assert "isolated" not in text  # not a headline
    assert "alone learns every game from fresh weights" in plain
    first = text.index("KungFuMaster ↑")
    assert first < text.index("Boxing ↑") < text.index("Jamesbond ↑"), "in the order of the games"
    assert "### atari-blip3: raw score (at the end), points" in render(table, "markdown")


def test_what_has_no_value_is_named(store: Store) -> None:
    writer = games_sweep(store, "games-unlearnt", ["finetune", "scratch"], seeds=1)
    lost = game_result(0.1, 1, learnt=False)
    writer.trial("finetune", 1, lost, benchmark="atari-blip3")
    writer.trial("scratch", 1, lost, benchmark="atari-blip3")
    found = make_table(load("games-unlearnt", store.uri))
    below = [note for note in found.notes if "leaves out" in note]
    assert below[0].startswith("retention leaves out finetune seed 1: a game ended no better than")
    assert below[1].startswith("auc leaves out finetune seed 1, scratch seed 1: no game ended in")
    assert below[2].startswith("forward_transfer leaves out finetune seed 1: scratch of that seed")
    assert len(below) == 3
    assert not [note for note in make_table(load("games", store.uri)).notes if "leaves out" in note]


def test_seeds_without_a_forward_transfer_are_named(store: Store) -> None:
    writer = games_sweep(store, "games-some", ["finetune", "scratch"], seeds=1)
    writer.trial("finetune", 2, game_result(0.1, 2), benchmark="atari-blip3")
    below = [n for n in make_table(load("games-some", store.uri)).notes if "leaves out" in n]
    assert below == [
        "forward_transfer leaves out finetune seed 2: scratch of that seed has not finished, no "
        "game ended in training, or scratch is at 100 % of a game all the time, so that nothing is "
        "left to gain"
    ]


def test_of_several_benchmarks_the_one_is_named_where_a_value_is_missing() -> None:
    def run(benchmark: str, seed: int, *metrics: str) -> Any:
        result = {
            "references": {},
            "tasks": list(GAMES),
            "metrics": {"normalised": dict.fromkeys(metrics, 1.0)},
        }
        return SimpleNamespace(benchmark=benchmark, method="blip", seed=seed, result=result)

    spec = {"methods": [{"name": "blip", "label": "blip"}, {"name": "scratch"}]}
    every = ("retention", "auc", "forward_transfer")
    runs = [run("a", 0, *every), run("a", 1, *every[1:]), run("a", 2, *every[:2]), run("b", 3)]
    runs += [run("b", seed, *every) for seed in (1, 2)]
    below = [note.partition(":")[0] for note in games._undefined(runs, spec)]
    assert below == [
        "retention leaves out blip seed 1 on a, blip seed 3 on b",
        "auc leaves out blip seed 3 on b",
        "forward_transfer leaves out blip seed 2 on a, blip seed 3 on b",
    ]
    without = [run("a", 0, *every), run("b", 0, *every[:2])]  # none alone on b: no column for it
    assert not list(games._undefined(without, spec))


def test_what_scratch_has_not_is_not_drawn(store: Store) -> None:
    games_sweep(store, "games-alone", ["scratch"], seeds=1)
    alone = make_table(load("games-alone", store.uri))
    assert not [name for name in figures.draw(alone) if name.startswith(("perf", "forg"))]
    games_sweep(store, "games-both", ["finetune", "scratch"], seeds=1)
    assert figures._forgetful(make_table(load("games-both", store.uri))) == ["finetune"]


def test_numbers_of_many_games_fit_their_cells() -> None:
    six, three = np.full((6, 6), 45_629.0), np.full((3, 3), 45_629.0)
    small, most = np.full((6, 6), 7.0), np.full((12, 12), 45_629.0)
    assert figures._room([three]) == figures._room([small]) == figures._room([most])
    assert figures._room([six, small]) == figures._room([small, six]) > figures._room([small])
    room = figures._room([six]) - 1.3
    letters = 7 / 72 * 0.64 * len("45,629")  # DejaVu Sans, 7 points: a digit is 0.64 of it wide
    assert room / 6 > letters


def test_figures(table: Table) -> None:
    drawn = figures.draw(table)
    stems = {"performance", "forgetting", "curves-atari-blip3", "training-atari-blip3"}
    stems |= {f"matrix-atari-blip3-{readout}" for readout in ("normalised", "score")}
    assert set(drawn) == {f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg")}
    assert drawn == figures.draw(table)


def test_curves_of_seeds_meet_where_all_have_points(table: Table) -> None:
    (group,) = [g for g in table.groups if g.method == "finetune"]
    at, values = curves._stack(group, "evaluation", "Boxing")
    assert at[0] == FRAMES + FRAMES / 5
    assert at[-1] == 3 * FRAMES
    assert values.shape == (3, 10)
    wanted = [score for _, score in game_result(0.1, 2)["curves"]["evaluation"]["Boxing"]]
    assert list(values[2]) == pytest.approx(wanted)
    (alone,) = [g for g in table.groups if g.method == "alone"]
    at, _ = curves._stack(alone, "evaluation", "Boxing")
    assert (at[0], at[-1]) == (FRAMES + FRAMES / 5, 2 * FRAMES), "in its own window only"


def test_colours_go_from_the_lower_reference_to_the_best(table: Table) -> None:
    groups = list(table.groups)
    means = {g.method: figures.matrices(g, "score").mean(axis=0) for g in groups}
    shades = figures._shades(means, groups, "score")
    assert max(shade[0, 0] for shade in shades.values()) == pytest.approx(100)
    low, _ = REFERENCES[0]
    best = max(mean[0, 0] for mean in means.values())
    assert best == pytest.approx(BEST[0], rel=0.05)
    mean = means["finetune"][2, 0]
    assert shades["finetune"][2, 0] == pytest.approx(100 * (mean - low) / (best - low))
    percent = {g.method: figures.matrices(g, "normalised").mean(axis=0) for g in groups}
    same = figures._shades(percent, groups, "normalised")
    assert same["blip"][2, 1] == pytest.approx(shades["blip"][2, 1])
