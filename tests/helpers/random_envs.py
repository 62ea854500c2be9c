"""Environments that are put together of parts, each with a state of another kind."""

import collections
import copy
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import itertools
import random
import types

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces


class Color(enum.Enum):
    RED = "r"
    BLUE = "b"


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Cell(enum.IntEnum):
    EMPTY = 0
    FULL = 1


Point = collections.namedtuple("Point", "x y")
START = [0, 0]  # a constant that episodes begin with


@dataclasses.dataclass
class Enemy:
    x: float = 0.0
    seen: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Card:
    color: Color
    rank: int


class Slotted:
    __slots__ = ("late", "value")


class Board(list):
    moves = 0


class Level(int):
    pass


class Box:
    """Holds a part, instead of the environment."""


# Each part: what it is at the start of an episode, and what a step does to its owner `o`. A step
# returns a number that depends on all of the state.


def rng(kind):
    def begin(o, draw):
        o.rng = np.random.Generator(kind(draw))
        o.same = o.rng

    def act(o, a, t):
        if t % 7 == 3:
            o.child = o.rng.spawn(1)[0]
        return o.same.random() + (o.child.random() if hasattr(o, "child") else 0)

    return begin, act


def numbers(o, draw):
    o.n, o.level, o.c, o.half, o.name = draw, Level(1), 1j, np.float32(0.5), "a"


def numbers_act(o, a, t):
    o.n, o.level, o.c, o.half = o.n + a, Level(o.level + a), o.c * (1 + a), np.float32(o.half * 1.1)
    o.name += str(a)
    return o.n + o.level + o.c.imag + float(o.half) + len(o.name)


def enums(o, draw):
    o.color, o.right, o.cells, o.by = None, Right.READ, [Cell.EMPTY] * 3, {Color.RED: [0]}


def enums_act(o, a, t):
    o.color = (Color.RED, Color.BLUE, None)[(t + a) % 3]
    o.right = Right.READ | Right.WRITE if a else Right.WRITE
    o.cells[t % 3] = Cell(a)
    o.by[Color.RED].append(a)
    kind = 0 if o.color is None else len(o.color.name)
    return kind + o.right.value + sum(c is Cell.FULL for c in o.cells) + sum(o.by[Color.RED])


def objects(o, draw):
    o.enemies, o.hand, o.slotted, o.board = [Enemy()], set(), Slotted(), Board([0] * 3)
    o.slotted.value, o.target = 0, o.enemies[0]


def objects_act(o, a, t):
    if a:
        o.enemies.append(Enemy(float(t), [t]))
        o.target = o.enemies[-1]
    o.enemies = o.enemies[-3:]
    for enemy in o.enemies:
        enemy.x += 0.5
    o.target.seen.append(a)
    o.hand ^= {Card(Color.BLUE, t % 4)}
    o.slotted.value += a
    o.slotted.late = t
    o.board[t % 3] += a
    o.board.moves += 1
    total = sum(e.x + len(e.seen) for e in o.enemies) + len(o.hand) + o.target.x
    return total + o.slotted.value * o.slotted.late + sum(o.board) + o.board.moves


def containers(o, draw):
    o.log, o.q = START, collections.deque([0.0], maxlen=3)
    o.count, o.by = collections.Counter(), collections.defaultdict(list)
    o.order, o.pair = collections.OrderedDict(a=1, b=2), {(1, 2): 0, None: 1}
    o.point, o.frozen, o.data, o.numbers = Point(0, [0]), frozenset(), bytearray(2), {3, 1}
    o.ring = {"me": None, "q": o.q}
    o.ring["me"] = o.ring
    o.space = types.SimpleNamespace(x=0)


def containers_act(o, a, t):
    o.log = [*o.log, a][-4:]
    o.q.append(t * a)
    o.count[a] += 1
    o.by[a].append(t)
    o.order.move_to_end("a" if a else "b")
    o.pair[(1, 2)] += a
    o.point = Point(o.point.x + 1, [*o.point.y, a])
    o.frozen, o.data[0] = frozenset([a, t]), t % 256
    o.numbers ^= {t % 5}
    o.space.x += a
    total = (
        sum(o.log)
        + sum(o.ring["me"]["q"])
        + o.count[1]
        + len(o.by[1])
        + next(iter(o.order.values()))
    )
    return (
        total
        + o.pair[(1, 2)]
        + sum(o.point.y)
        + max(o.frozen)
        + o.data[0]
        + sum(o.numbers)
        + o.space.x
    )


def arrays(o, draw):
    o.x, o.zero = np.zeros((2, 3), order="F" if draw % 2 else "C"), np.zeros(())
    o.row, o.back = o.x[1], o.x.T[::-1]
    o.table, o.mixed = np.zeros(2, [("a", "i4"), ("b", "f8")]), np.array([{}, [1], None], object)
    o.date = np.datetime64("2020-01-01")


def arrays_act(o, a, t):
    o.x += 0.1 * t
    o.row *= 0.5
    o.back[0] += a
    o.zero += a
    o.table["b"] += a
    o.mixed[0][t % 3] = a
    o.mixed[1].append(a)
    o.date += np.timedelta64(a, "D")
    total = o.x.sum() + o.row.sum() + o.zero + o.table["b"].sum() + sum(o.mixed[0].values())
    return float(total) + len(o.mixed[1]) + o.date.astype(int)


def tensors(o, draw):
    o.generator, o.x = torch.Generator().manual_seed(draw), torch.zeros(3)
    o.part = o.x[:2]
    if not hasattr(o, "net"):  # goes on over the episodes
        with torch.random.fork_rng():
            torch.manual_seed(0)
            o.net = torch.nn.Linear(3, 1)
        o.adam = torch.optim.Adam(o.net.parameters(), 0.01)


def tensors_act(o, a, t):
    o.x += a * torch.rand(3, generator=o.generator)
    o.part *= 0.9
    loss = (o.net(o.x) ** 2).mean()
    o.adam.zero_grad()
    loss.backward()
    o.adam.step()
    return float(loss.detach()) + float(o.x.sum())


def moments(o, draw):
    o.when, o.day = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC), datetime.date(2020, 1, 1)
    o.price, o.part = decimal.Decimal("1.1"), fractions.Fraction(1, 3)
    o.steps, o.cut, o.span = itertools.count(3, 2), slice(0, 1), range(2)


def moments_act(o, a, t):
    o.when += datetime.timedelta(hours=a)
    o.day += datetime.timedelta(days=a)
    o.price, o.part = o.price * 2 % 7, o.part + fractions.Fraction(a, 7)
    o.cut, o.span = slice(a, t), range(t)
    number = o.when.hour + o.day.day + float(o.price) + float(o.part)
    return number + next(o.steps) + o.cut.stop + len(o.span)


def old_generators(o, draw):
    o.python, o.numpy = random.Random(draw), np.random.RandomState(draw)
    o.sampled = spaces.Dict(a=spaces.Discrete(9), b=spaces.Tuple([spaces.Box(0, 1)]))
    o.sampled.seed(draw)


def old_generators_act(o, a, t):
    sample = o.sampled.sample()
    return o.python.random() + o.numpy.normal() + sample["a"] + float(sample["b"][0][0])


def functions(o, draw):
    box, n = [0.0], 0

    def remember(a):
        nonlocal n
        n += 1
        box[0] += a
        return box[0] * n

    o.remember, o.add = remember, functools.partial(max, 3)
    o.keep, o.box = box.append, box


def functions_act(o, a, t):
    o.keep(a)
    return o.remember(a) + o.add(t) + sum(o.box)


def inner(o, draw):
    if not hasattr(o, "games"):
        o.games = [gym.make("CartPole-v1"), gym.make("Blackjack-v1")]
    for game in o.games:
        game.reset(seed=draw)
    o.current = o.games[0]


def inner_act(o, a, t):
    observation, reward, over, cut, _ = o.current.step(a)
    if over or cut:
        o.current.reset()
        o.current = o.games[t % 2]
    return float(np.sum(observation)) + float(reward)


def lazily(o, draw):
    for name in ("late", "gone"):
        vars(o).pop(name, None)
    o.gone = 1


def lazily_act(o, a, t):
    o.late = [*getattr(o, "late", []), a]
    if t == 3:
        del o.gone
    return sum(o.late) + 5 * hasattr(o, "gone")


PARTS = {
    **{
        kind.__name__: rng(kind)
        for kind in (
            np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox,
            np.random.SFC64,
        )
    },
    "numbers": (numbers, numbers_act), "enums": (enums, enums_act),
    "objects": (objects, objects_act), "containers": (containers, containers_act),
    "arrays": (arrays, arrays_act), "tensors": (tensors, tensors_act),
    "moments": (moments, moments_act), "old_generators": (old_generators, old_generators_act),
    "functions": (functions, functions_act), "inner": (inner, inner_act),
    "lazily": (lazily, lazily_act),
}  # fmt: skip


class Puzzle(gym.Env):
    """Parts in boxes, some of which are the environment itself, a list's or a mapping's items.

    Args:
        parts: Names of :data:`PARTS`.
        homes: Where each is kept: "self", "box", "list", "dict".
        length: Steps of an episode.
        continuous: Whether actions are numbers from -1 to 1.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)

    def __init__(self, parts, homes, length=20, continuous=False):
        self.parts, self.homes, self.length = tuple(parts), tuple(homes), length
        self.action_space = spaces.Box(-1, 1, (1,)) if continuous else spaces.Discrete(2)
        self.shelf, self.drawer = [Box() for _ in parts], {}
        self.episodes = 0

    def owner(self, k):
        home = self.homes[k]
        if home == "list":
            return self.shelf[k]
        if home == "dict":
            return self.drawer.setdefault((k, Color.RED), Box())
        if home == "box":
            return vars(self).setdefault(f"box{k}", Box())
        return self

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.value = 0, 0.0
        self.episodes += 1
        for k, part in enumerate(self.parts):
            PARTS[part][0](self.owner(k), int(self.np_random.integers(1000)))
        return np.array([0.0, self.episodes]), {}

    def step(self, action):
        a = int(np.sum(action) > 0)
        self.t += 1
        self.value = sum(PARTS[p][1](self.owner(k), a, self.t) for k, p in enumerate(self.parts))
        seen = np.array([self.value, self.episodes])
        return seen, float(np.tanh(self.value)), False, self.t >= self.length, {}


def play(env, steps, seed):
    """Take random steps; return what was seen and paid."""
    choose, seen = copy.deepcopy(env.action_space), []
    choose.seed(seed)
    for _ in range(steps):
        observation, reward, over, cut, _ = env.step(choose.sample())
        seen.append((*np.ravel(observation), reward))
        if over or cut:
            observation, _ = env.reset()
            seen.append((*np.ravel(observation), 0.0))
    return np.array(seen)
