"""Pictures of games: what goes in comes out of the file, at the right place and pace."""

from __future__ import annotations

import io
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from envs.base import Finished
from envs.vector import SequentialAtari
from raycl.gif.clip import Clip, play
from raycl.gif.encode import COLOURS, encode, fitted
from raycl.gif.sheet import GAP, HEADER, LEFT, LEVELS, PAPER, STRIP, TOP, Sheet, Tile, number
from raycl.rl.benchmarks.base import GamesConfig, GameSequence, build_games
from raycl.rl.config import SequenceConfig
from raycl.rl.seeds import EVALUATION, VALIDATION, first_seed, game_seeds

PALETTE = np.random.default_rng(1).integers(0, 256, (40, 3)).astype(np.uint8)


def frames(count: int, height: int = 9, width: int = 12, colours: int = 40) -> list[np.ndarray]:
    """A few pixels of each differ from the one before."""
    generator = np.random.default_rng(0)
    made = [generator.integers(0, colours, (height, width)).astype(np.uint8)]
    for _ in range(count - 1):
        frame = made[-1].copy()
        y, x = generator.integers(0, height - 2), generator.integers(0, width - 3)
        frame[y : y + 2, x : x + 3] = generator.integers(0, colours, (2, 3))
        made.append(frame)
    return made


def decode(data: bytes) -> tuple[list[np.ndarray], list[int]]:
    """Every frame as RGB, and its milliseconds."""
    image = Image.open(io.BytesIO(data))
    shown, times = [], []
    for i in range(image.n_frames):
        image.seek(i)
        shown.append(np.array(image.convert("RGB")))
        times.append(image.info["duration"])
    return shown, times


def local_palettes(data: bytes) -> int:
    """Frames with a palette of their own, found by walking through the file's blocks."""
    assert data[:6] == b"GIF89a"
    at, found = 13 + 3 * 256, 0
    while data[at : at + 1] != b";":
        if data[at : at + 1] == b"!":
            at += 2
        else:
            assert data[at : at + 1] == b","
            found += bool(data[at + 9] & 0x80)
            at += 11
        while data[at]:
            at += data[at] + 1
        at += 1
    return found


# ---------------------------------------------------------------------- the file


def test_what_is_encoded_is_what_is_shown() -> None:
    made = frames(30)
    data = encode([(frame, 0.1) for frame in made], PALETTE)
    shown, times = decode(data)
    assert len(shown) == 30
    for frame, rgb in zip(made, shown, strict=True):
        assert np.array_equal(PALETTE[frame], rgb)
    assert set(times) == {100}
    assert local_palettes(data) == 0
    assert Image.open(io.BytesIO(data)).info["loop"] == 0, "for ever"


def test_the_same_array_may_be_handed_over_again() -> None:
    made = frames(5)

    def one_array() -> Any:
        canvas = np.empty_like(made[0])
        for frame in made:
            canvas[:] = frame
            yield canvas, 0.1

    assert encode(one_array(), PALETTE) == encode([(frame, 0.1) for frame in made], PALETTE)


def test_the_pace_is_kept_though_durations_are_hundredths() -> None:
    _, times = decode(encode([(frame, 1 / 30) for frame in frames(91)], PALETTE))
    assert set(times) == {30, 40}
    assert sum(times) == pytest.approx(91 / 30 * 1000, abs=10)


def test_what_does_not_change_is_shown_longer() -> None:
    first, second = frames(2)
    shown, times = decode(encode([(f, 0.1) for f in (first, first, second, second)], PALETTE))
    assert len(shown) == 2
    assert times == [200, 200]


def test_browsers_show_no_frame_for_less_than_two_hundredths() -> None:
    _, times = decode(encode([(frame, 0.004) for frame in frames(4)], PALETTE))
    assert min(times) == 20


@pytest.mark.parametrize(
    "made, colours, text", [(frames(1), COLOURS + 1, "256 colours"), ([], 3, "needs a frame")]
)
def test_what_cannot_be_encoded_is_refused(made: Any, colours: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        encode([(frame, 0.1) for frame in made], np.zeros((colours, 3), np.uint8))


def test_steps_are_left_out_until_the_file_is_small_enough() -> None:
    made = [*np.random.default_rng(0).integers(0, 40, (401, 20, 30)).astype(np.uint8)]
    asked: list[int] = []

    def every(stride: int) -> Any:
        asked.append(stride)
        return ((frame, 0.1 * stride) for frame in made[::stride])

    whole = encode(((frame, 0.1) for frame in made), PALETTE)
    small = fitted(every, PALETTE, 400, limit=len(whole) // 2)
    assert len(small.data) <= len(whole) // 2
    assert small.stride == asked[-1] > 1
    assert asked == sorted(set(asked))
    hopeless = fitted(every, PALETTE, 400, limit=10, fewest=40)
    assert hopeless.stride == 10, "forty frames are kept whatever the size"
    assert fitted(every, PALETTE, 400, limit=10**9, most=100).stride == 4


# ---------------------------------------------------------------------- a game


class FakeEnv:
    """Draws its step; ends after ``length`` steps, by the clock if ``timed``."""

    def __init__(self, length: int, timed: bool) -> None:
        self.length, self.timed, self.steps, self.closed = length, timed, 0, False

    def set_task(self, index: int) -> None:
        self.task = index

    def reset(self, *, seed: list[int]) -> Any:
        self.seed = seed
        return np.zeros((1, 1, 2, 2), np.uint8), {}

    def step(self, actions: Any) -> Any:
        assert actions.shape == (1,)
        assert actions.dtype == np.int64
        self.steps += 1
        end = self.steps == self.length
        flags = np.array([end and not self.timed]), np.array([end and self.timed])
        return np.full((1, 1, 2, 2), self.steps, np.uint8), np.array([2.5]), *flags, {}

    def finished_games(self) -> Any:
        end = self.steps == self.length
        return [Finished(0, 2.5 * self.steps, self.steps, self.timed)] if end else []

    def screen(self, step: int) -> np.ndarray:
        rgb = np.zeros((5, 4, 3), np.uint8)
        rgb[step % 5, :, self.task] = 10 * step
        return rgb

    def render(self) -> Any:
        assert self.steps != self.length, "that is the next game"
        return (self.screen(self.steps),)

    def close(self) -> None:
        self.closed = True


class FakeGames(GameSequence):
    """One fake environment."""

    env: FakeEnv
    games = ("A", "B")
    num_actions = (3, 3)
    input_shape = (1, 2, 2)
    frames_per_step = 4
    references = ((0.0, 1.0), (0.0, 1.0))

    def default_label(self) -> str:
        return "fake"

    def make(
        self, num_envs: int, *, training: bool, num_threads: int = 1, render: bool = False
    ) -> Any:
        assert (num_envs, training, render) == (1, False, True)
        return self.env


class Counting:
    """A player that notes what it sees."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def actions(self, obs: torch.Tensor, game: int) -> torch.Tensor:
        self.seen.append(int(obs[0, 0, 0, 0]))
        return torch.zeros(1, dtype=torch.int64)


@pytest.mark.parametrize(
    "timed, most, over, steps", [(False, 50, True, 7), (True, 50, False, 7), (False, 4, False, 4)]
)
def test_a_game_is_kept_frame_by_frame(timed: bool, most: int, over: bool, steps: int) -> None:
    games, player = FakeGames(GamesConfig(name="fake")), Counting()
    games.env = FakeEnv(7, timed)
    clip = play(player, games, 1, seed=5, max_steps=most)
    assert (clip.over, clip.steps, clip.score) == (over, steps, 2.5 * steps)
    assert clip.scores.tolist() == [2.5 * t for t in range(steps + 1)]
    assert (games.env.task, games.env.seed, games.env.closed) == (1, [5], True)
    assert player.seen == list(range(steps))
    kept = [clip.colours[frame] for frame in clip.frames()]
    expected = [games.env.screen(t) for t in range(steps + 1)]
    if steps == 7:  # the game's last screen is gone when its end is known
        expected[-1] = expected[-2]
    assert np.array_equal(kept, expected)
    assert clip.counts.sum() == 20 * (steps + (steps != 7))


def test_more_colours_than_a_palette_has_become_their_neighbours() -> None:
    pixel = np.arange(400).reshape(20, 20)
    wanted = np.stack([pixel // 2, pixel % 2 * 9, 0 * pixel], 2)
    games = FakeGames(GamesConfig(name="fake"))
    games.env = FakeEnv(3, False)
    games.env.screen = lambda step: wanted.astype(np.uint8)  # type: ignore[method-assign]
    clip = play(Counting(), games, 0, seed=0, max_steps=2)
    assert len(clip.colours) == COLOURS
    off = np.abs(clip.colours[next(clip.frames())].astype(int) - wanted).sum(2)
    assert (off == 0).sum() == COLOURS
    assert off.max() == 73, "red 199, green 9 is shown as red 126, green 9"


def test_the_real_emulator_is_drawn_and_scored() -> None:
    games = build_games({"name": "atari", "games": ["Boxing", "KungFuMaster"]})

    class Player:
        def actions(self, obs: torch.Tensor, game: int) -> torch.Tensor:
            return obs[:, 3].sum((1, 2)) % games.num_actions[game]

    for index, name in enumerate(games.games):
        clip = play(Player(), games, index, seed=11, max_steps=60)
        env = SequentialAtari([name], 1, training=False, render_mode="rgb_array")
        obs, _ = env.reset(seed=[11])
        score, kept = 0.0, clip.frames()
        assert np.array_equal(clip.colours[next(kept)], env.render()[0])
        for step, frame in enumerate(kept, 1):
            obs, rewards, *_ = env.step(Player().actions(torch.from_numpy(obs), index).numpy())
            score += rewards[0]
            assert clip.scores[step] == score
            assert np.array_equal(clip.colours[frame], env.render()[0])
        env.close()
        assert step == 60
        assert clip.shape == (210, 160)


# ---------------------------------------------------------------------- a sheet


def clip(steps: int, seed: int = 0, over: bool = True, colours: int = 6, scale: float = 10) -> Clip:
    """Noise in a few colours."""
    generator = np.random.default_rng(seed)
    palette = generator.integers(60, 256, (colours, 3)).astype(np.uint8)
    screens = generator.integers(0, colours, (steps + 1, 60, 90))
    games = FakeGames(GamesConfig(name="fake"))
    games.env = FakeEnv(steps if over else steps + 1, False)
    games.env.screen = lambda step: palette[screens[step]]  # type: ignore[method-assign]
    made = play(Counting(), games, 0, seed=0, max_steps=steps)
    return Clip(made.colours, made.shape, made.scores * scale / 2.5, over, made.counts, made.packed)


def screen(picture: np.ndarray, row: int, column: int, left: int = LEFT) -> np.ndarray:
    """What a tile shows of its game."""
    y, x = TOP + HEADER + row * (60 + STRIP + GAP), GAP + left + column * (90 + GAP)
    return picture[y : y + 60, x : x + 90]


def strip(picture: np.ndarray, row: int, column: int) -> np.ndarray:
    y, x = TOP + HEADER + row * (60 + STRIP + GAP) + 60, GAP + LEFT + column * (90 + GAP)
    return picture[y : y + STRIP, x : x + 90]


def sheet(tiles: dict[tuple[int, int], Tile], fps: float = 10) -> Sheet:
    return Sheet("title", ["after\nA", "after\nB"], ["A", "B"], tiles, fps)


def test_each_game_is_in_its_place_and_stops_at_its_own_end() -> None:
    short, long = clip(4, 0), clip(9, 1, over=False)
    made = sheet({(0, 0): Tile(short), (1, 1): Tile(long)})
    gif = made.gif(10**7)
    assert gif.stride == 1
    shown, times = decode(gif.data)
    assert len(shown) == 10
    assert times == [100] * 9 + [2000]
    for step, (a, b) in enumerate(
        zip([frame.copy() for frame in short.frames()] + [None] * 5, long.frames(), strict=True)
    ):
        if step < 4:
            assert np.array_equal(screen(shown[step], 0, 0), short.colours[a])
        if step < 9:
            assert np.array_equal(screen(shown[step], 1, 1), long.colours[b])
    for picture in shown[4:]:
        assert np.array_equal(screen(picture, 0, 0), screen(shown[4], 0, 0)), "it stands still"
    ends = screen(shown[9], 0, 0), screen(shown[9], 1, 1)
    for end in ends:
        assert (end[..., 0] == end[..., 1]).all(), "grey"
        assert (end[..., 1] == end[..., 2]).all()
    banner = slice(18, 42)
    assert not np.array_equal(ends[0][banner], ends[1][banner]), "game over is not a cut"


def test_a_place_without_a_game_stays_empty() -> None:
    shown, _ = decode(sheet({(0, 0): Tile(clip(3)), (1, 1): Tile(clip(3))}).gif(10**7).data)
    assert all((screen(picture, 0, 1) == 17 * PAPER).all() for picture in shown)
    assert not (screen(shown[0], 1, 1) == 17 * PAPER).all()


def test_a_problem_is_written_where_the_game_would_be() -> None:
    one = sheet({(0, 0): Tile(None, problem="after-00.pt is damaged"), (1, 1): Tile(clip(2))})
    two = sheet({(0, 0): Tile(None, problem="after-00.pt is missing"), (1, 1): Tile(clip(2))})
    pictures = [screen(decode(s.gif(10**7).data)[0][0], 0, 0) for s in (one, two)]
    assert not np.array_equal(*pictures)
    assert all(len(np.unique(picture)) > 2 for picture in pictures), "letters"
    alone = Sheet("t", [""], ["A"], {(0, 0): Tile(None, problem="x")}, 10)
    assert len(decode(alone.gif(10**7).data)[0]) == 1


def test_score_step_and_mean_are_burnt_in() -> None:
    poor, rich = clip(5, scale=1), clip(5, scale=1000)
    poor_shown, _ = decode(
        sheet({(0, 0): Tile(poor, "mean 3"), (1, 0): Tile(rich, "mean 4")}).gif(10**7).data
    )
    at = [strip(picture, 0, 0) for picture in poor_shown[:5]]
    assert all(not np.array_equal(a, b) for a, b in pairwise(at)), "they count"
    other = strip(poor_shown[3], 1, 0)
    assert not np.array_equal(at[3][:16], other[:16]), "score"
    assert not np.array_equal(at[3][16:], other[16:]), "mean"
    assert np.array_equal(at[2][16:], at[3][16:]), "the mean stays"


def test_a_game_not_learnt_yet_is_pale() -> None:
    made = clip(3)
    shown, _ = decode(sheet({(0, 0): Tile(made), (0, 1): Tile(made, faded=True)}).gif(10**7).data)
    plain, pale = (screen(shown[0], 0, column).astype(int) for column in (0, 1))
    assert np.ptp(pale, axis=2).mean() < 0.5 * np.ptp(plain, axis=2).mean()
    assert len(np.unique(pale.reshape(-1, 3), axis=0)) > 1


def test_when_colours_run_out_the_common_ones_are_exact() -> None:
    many = [clip(2, seed, colours=90) for seed in range(4)]
    few = clip(2, 9, colours=4)
    tiles = {(i // 2, i % 2): Tile(made) for i, made in enumerate(many)}
    made = Sheet("t", ["", "", ""], ["A", "B"], tiles | {(2, 0): Tile(few)}, 10)
    assert len(made.palette) == COLOURS
    assert np.array_equal(made.palette[:LEVELS, 0], np.arange(LEVELS) * 17)
    shown, _ = decode(made.gif(10**8).data)
    frame = few.colours[next(few.frames())]
    assert np.array_equal(screen(shown[0], 2, 0, left=0), frame)
    other = many[0].colours[next(many[0].frames())].astype(int)
    off = np.abs(screen(shown[0], 0, 0, left=0).astype(int) - other).sum(2)
    assert 0 < off.max() < 200, "what does not fit is shown as something near"


@pytest.mark.parametrize(
    "score, text",
    [
        (26600.0, "26,600"),
        (-3.0, "-3"),
        (0.25, "0.2"),
        (123.4, "123"),
        (0.0, "0"),
        (-0.04, "0.0"),
    ],
)
def test_numbers(score: float, text: str) -> None:
    assert number(score) == text


# ---------------------------------------------------------------------- seeds


def config(**changes: Any) -> SequenceConfig:
    blocks = {"benchmark": {"name": "atari"}, "method": {"name": "finetune"}}
    return SequenceConfig.model_validate(
        blocks | {"network": {"name": "atari_cnn"}, "seed": 3} | changes
    )


def test_seeds_are_stable_and_disjoint() -> None:
    ten = game_seeds(7, EVALUATION, 0, 10)
    assert game_seeds(7, EVALUATION, 0, 3) == ten[:3]
    assert len({*ten, *game_seeds(7, VALIDATION, 0, 10), *game_seeds(7, EVALUATION, 1, 10)}) == 30
    assert all(0 <= seed < 2**31 for seed in ten)
    assert first_seed(config(), 2) != first_seed(config(seed=4), 2)
    fixed = config(fixed_seeds={"data": 7})
    assert first_seed(fixed, 0) == ten[0]


def test_the_game_drawn_is_the_first_of_those_scored() -> None:
    from raycl.rl.sequence import SequenceRun
    from raycl.trial.randomness import Seeds

    asked: list[Any] = []

    def scores(jobs: Any, weights: Any) -> Any:
        asked.extend(jobs)
        return {job: [0.0] for job in jobs}

    run: Any = SimpleNamespace(
        seeds=Seeds.derive(3),
        benchmark=build_games({"name": "atari", "games": "blip3"}),
        algorithm=SimpleNamespace(split=lambda job, parts: [job], scores=scores),
    )
    SequenceRun._play(run, [0, 2], EVALUATION)
    assert [(job.game, job.seeds[0]) for job in asked] == [
        (game, first_seed(config(), game)) for game in (0, 2)
    ]
