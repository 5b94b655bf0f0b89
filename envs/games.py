"""Which games there are, in which order they are learnt, and what random and humans score."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache

import ale_py
from ale_py import roms
from ale_py.registration import rom_id_to_name

_TWO_PLAYERS = {"combat", "joust", "maze_craze", "warlords"}  # ALE ends the process on these

SEQUENCES: dict[str, tuple[str, ...]] = {
    "blip6": ("KungFuMaster", "Boxing", "Jamesbond", "Krull", "Riverraid", "SpaceInvaders"),
    "blip3": ("KungFuMaster", "Boxing", "Jamesbond"),
}
"""Games in the order of BLIP (arXiv 2105.04444), and the first three of them."""

SCORES: dict[str, tuple[float, float]] = {
    "Alien": (227.8, 7127.7),
    "Amidar": (5.8, 1719.5),
    "Assault": (222.4, 742.0),
    "Asterix": (210.0, 8503.3),
    "Asteroids": (719.1, 47388.7),
    "Atlantis": (12850.0, 29028.1),
    "BankHeist": (14.2, 753.1),
    "BattleZone": (2360.0, 37187.5),
    "BeamRider": (363.9, 16926.5),
    "Berzerk": (123.7, 2630.4),
    "Bowling": (23.1, 160.7),
    "Boxing": (0.1, 12.1),
    "Breakout": (1.7, 30.5),
    "Centipede": (2090.9, 12017.0),
    "ChopperCommand": (811.0, 7387.8),
    "CrazyClimber": (10780.5, 35829.4),
    "Defender": (2874.5, 18688.9),
    "DemonAttack": (152.1, 1971.0),
    "DoubleDunk": (-18.6, -16.4),
    "Enduro": (0.0, 860.5),
    "FishingDerby": (-91.7, -38.7),
    "Freeway": (0.0, 29.6),
    "Frostbite": (65.2, 4334.7),
    "Gopher": (257.6, 2412.5),
    "Gravitar": (173.0, 3351.4),
    "Hero": (1027.0, 30826.4),
    "IceHockey": (-11.2, 0.9),
    "Jamesbond": (29.0, 302.8),
    "Kangaroo": (52.0, 3035.0),
    "Krull": (1598.0, 2665.5),
    "KungFuMaster": (258.5, 22736.3),
    "MontezumaRevenge": (0.0, 4753.3),
    "MsPacman": (307.3, 6951.6),
    "NameThisGame": (2292.3, 8049.0),
    "Phoenix": (761.4, 7242.6),
    "Pitfall": (-229.4, 6463.7),
    "Pong": (-20.7, 14.6),
    "PrivateEye": (24.9, 69571.3),
    "Qbert": (163.9, 13455.0),
    "Riverraid": (1338.5, 17118.0),
    "RoadRunner": (11.5, 7845.0),
    "Robotank": (2.2, 11.9),
    "Seaquest": (68.4, 42054.7),
    "Skiing": (-17098.1, -4336.9),
    "Solaris": (1236.3, 12326.7),
    "SpaceInvaders": (148.0, 1668.7),
    "StarGunner": (664.0, 10250.0),
    "Surround": (-10.0, 6.5),
    "Tennis": (-23.8, -8.3),
    "TimePilot": (3568.0, 5229.2),
    "Tutankham": (11.4, 167.6),
    "UpNDown": (533.4, 11693.2),
    "Venture": (0.0, 1187.5),
    "VideoPinball": (16256.9, 17667.9),
    "WizardOfWor": (563.5, 4756.5),
    "YarsRevenge": (3092.9, 54576.9),
    "Zaxxon": (32.5, 9173.3),
}
"""Raw scores of a random and of a human player: no-op starts, at most half an hour
(Wang et al., arXiv 1511.06581; mostly those of Mnih et al., 2015)."""


class UnknownGame(ValueError):
    """A name that no game and no sequence has.

    Args:
        name: The name that was asked for.
        nearest: Names like it, the likeliest first; may be empty.
    """

    def __init__(self, name: str, nearest: list[str]) -> None:
        self.name, self.nearest = name, nearest
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        super().__init__(f"unknown game {name!r}{hint}")


@cache
def _roms() -> dict[str, str]:
    ids = sorted(set(roms.get_all_rom_ids()) - _TWO_PLAYERS)
    return {rom_id_to_name(rom): rom for rom in ids}


def names() -> tuple[str, ...]:
    """All games for one player, e.g. ``"KungFuMaster"``, in alphabetical order."""
    return tuple(_roms())


def rom(name: str) -> str:
    """The name that ALE has for a game: ``rom("KungFuMaster") == "kung_fu_master"``.

    Raises:
        UnknownGame: There is no such game.
    """
    try:
        return _roms()[name]
    except KeyError:
        raise UnknownGame(name, _nearest(name, names())) from None


def _emulator(name: str) -> ale_py.ALEInterface:
    path = roms.get_rom_path(rom(name))
    assert path is not None
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # or it prints who it is
    ale = ale_py.ALEInterface()
    ale.loadROM(path)
    return ale


def num_actions(name: str) -> int:
    """Number of actions that have an effect in a game (ALE's minimal set).

    Raises:
        UnknownGame: There is no such game.
    """
    return len(action_meanings(name))


@cache
def action_meanings(name: str) -> tuple[str, ...]:
    """Meanings of the actions of a game, from ALE, e.g. ``("NOOP", "FIRE", "UP", ...)``.

    Raises:
        UnknownGame: There is no such game.
    """
    return tuple(action.name for action in _emulator(name).getMinimalActionSet())


@cache
def screen(name: str) -> tuple[int, int]:
    """Height and width of a game's screen in pixels.

    Raises:
        UnknownGame: There is no such game.
    """
    height, width = _emulator(name).getScreenDims()
    return int(height), int(width)


def sequence(games: str | Sequence[str]) -> tuple[str, ...]:
    """Names of the games of a sequence.

    Args:
        games: A sequence's name (see ``SEQUENCES``), one game, or games in order.

    Raises:
        UnknownGame: A name belongs to no game.
        ValueError: No game is given, or one is given twice.
    """
    if isinstance(games, str):
        if games in SEQUENCES:
            return SEQUENCES[games]
        if games not in _roms():
            raise UnknownGame(games, _nearest(games, (*SEQUENCES, *names())))
        return (games,)
    order = tuple(games)
    if not order:
        raise ValueError("a sequence needs at least one game")
    for i, game in enumerate(order):
        rom(game)
        if game in order[:i]:
            raise ValueError(f"game {game!r} comes twice in the sequence")
    return order


def _nearest(name: str, valid: Sequence[str]) -> list[str]:
    plain = {one.lower(): one for one in valid}
    key = str(name).lower().replace("_", "").replace(" ", "")
    return [plain[close] for close in get_close_matches(key, plain, n=3, cutoff=0.6)]
