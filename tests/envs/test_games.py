"""The table of games."""

from __future__ import annotations

import pytest

from envs import games
from envs.games import SCORES, SEQUENCES, UnknownGame


def test_names_are_in_camel_case_and_lead_to_roms() -> None:
    assert len(games.names()) > 100
    assert games.rom("KungFuMaster") == "kung_fu_master"
    assert games.rom("TicTacToe3D") == "tic_tac_toe_3d"
    assert list(games.names()) == sorted(games.names())


def test_games_for_two_only_are_left_out() -> None:
    assert not {"Combat", "Joust", "MazeCraze", "Warlords"} & set(games.names())


def test_actions_of_the_reference_sequence() -> None:
    assert [games.num_actions(game) for game in SEQUENCES["blip6"]] == [14, 18, 18, 18, 18, 6]
    meanings = ("NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE")
    assert games.action_meanings("SpaceInvaders") == meanings
    assert "FIRE" not in games.action_meanings("KungFuMaster")


def test_screens() -> None:
    assert games.screen("Boxing") == (210, 160)


def test_sequences() -> None:
    assert SEQUENCES["blip3"] == SEQUENCES["blip6"][:3]
    assert games.sequence("blip6") == SEQUENCES["blip6"]
    assert games.sequence("Pong") == ("Pong",)
    assert games.sequence(["Pong", "Boxing"]) == ("Pong", "Boxing")


@pytest.mark.parametrize(
    "name,near",
    [
        ("Boxin", "Boxing"),
        ("kung_fu_master", "KungFuMaster"),
        ("space invaders", "SpaceInvaders"),
        ("blip", "blip6"),
    ],
)
def test_unknown_game_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UnknownGame, match=f"unknown game '{name}'; did you mean '{near}'") as error:
        games.sequence(name)
    assert error.value.name == name
    assert error.value.nearest[0] == near


def test_unknown_game_in_a_list_and_with_nothing_near() -> None:
    with pytest.raises(UnknownGame, match=r"unknown game 'xyzzy'$") as error:
        games.sequence(["Pong", "xyzzy"])
    assert error.value.nearest == []
    with pytest.raises(UnknownGame, match="'Boxing'"):
        games.num_actions("boxing")


@pytest.mark.parametrize(
    "order,words", [(["Pong", "Pong"], "'Pong' comes twice"), ([], "one game")]
)
def test_a_sequence_has_games_and_each_once(order: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        games.sequence(order)


def test_scores_are_of_57_games_there_are() -> None:
    assert len(SCORES) == 57
    assert set(SCORES) <= set(games.names())
    assert all(human > random for random, human in SCORES.values())


def test_scores_of_the_reference_sequence() -> None:
    assert {game: SCORES[game] for game in SEQUENCES["blip6"]} == {
        "KungFuMaster": (258.5, 22_736.3),
        "Boxing": (0.1, 12.1),
        "Jamesbond": (29.0, 302.8),
        "Krull": (1_598.0, 2_665.5),
        "Riverraid": (1_338.5, 17_118.0),
        "SpaceInvaders": (148.0, 1_668.7),
    }


def test_scores_reproduce_published_normalised_scores() -> None:
    """Human-normalised scores of CleanRL's PPO come from its raw ones."""
    published = {
        "KungFuMaster": (26_000.25, 1.15),
        "Boxing": (92.68, 7.72),
        "Jamesbond": (496.08, 1.71),
        "Krull": (9_718.09, 7.61),
        "Riverraid": (8_275.25, 0.44),
        "SpaceInvaders": (1_188.82, 0.68),
    }
    for game, (raw, normalised) in published.items():
        random, human = SCORES[game]
        assert (raw - random) / (human - random) == pytest.approx(normalised, abs=0.005)
