"""Tables of plain values back into living objects, in place.

The environment that is restored has been built and reset as the saved one was: its objects are
matched with the saved ones by their place and their class, and get the saved attributes. Where
there is none, one is made, of a class that the environment itself names. No constructor, no setter
and no pickle runs. What cannot be put back stays as it is, and is named.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import VecEnv

from fire_rl.checkpoints.attributes import check_name, may_move
from fire_rl.checkpoints.class_lookup import (
    ClassLookup,
    base_of,
    is_readable,
    name_of,
    slots_of,
)
from fire_rl.checkpoints.composite_kinds import BY_NAME
from fire_rl.checkpoints.object_capture import Problem, State, attributes_of, skipped
from fire_rl.checkpoints.value_kinds import MISSING, NotCapturable


def restore(
    nodes: Sequence[State],
    root: Any,
    number: int = 0,
    without: Collection[str] = (),
) -> tuple[list[Problem], set[type]]:
    """Put saved objects back into living ones.

    Args:
        nodes: Of :func:`~fire_rl.checkpoints.object_capture.capture`.
        root: The living object.
        number: Number of its node.
        without: Attributes of the root to leave as they are.

    Returns:
        What could not be put back, and the classes of the objects.
    """
    return _Restore(nodes).run(root, number, without)


class _Restore:
    def __init__(self, nodes: Sequence[State]) -> None:
        self._nodes = nodes
        self._lookup = ClassLookup()
        self._living: dict[int, Any] = {}  # what stands in the place of each node
        self._done: dict[int, Any] = {}  # what each node has become
        self._taken: dict[int, int] = {}  # ids of living objects, and the node of each
        self._alive: list[Any] = []  # so that no two objects have the same id
        self._joined: set[int] = set()
        self._failed: dict[int, Problem] = {}
        self._notes: list[Problem] = []
        self._met: list[tuple[int, Any]] = []  # what the last object refers to, now and then
        self._without: Collection[str] = ()

    def run(
        self, root: Any, number: int, without: Collection[str]
    ) -> tuple[list[Problem], set[type]]:
        self._root, self._without = number, without
        left = [(number, root)]
        while left:
            self._arrive(*left.pop())
            self._met.reverse()  # the last is the next
            left += sorted(self._met, key=self._is_container)
            self._met.clear()
        for number in sorted(self._living, key=self._rank):
            if number not in self._failed:
                self._attempt(number, self._fill)
        problems = [*self._failed.values(), *self._notes]
        return problems, set(self._lookup.seen.values())

    def _is_container(self, met: tuple[int, Any]) -> bool:
        """Tell what goes first: in a list each object has its own place, ``current`` has not."""
        node = self._nodes[met[0]]
        return "items" in node or node["kind"] == "tuple"

    def _arrive(self, number: int, living: Any) -> None:
        """Place a node where it is met first, or where it fits."""
        if number in self._living:
            if living is MISSING or (number in self._done and number not in self._failed):
                return
            if number not in self._failed:  # it is put together later, from what is here
                if self._living[number] is MISSING:
                    self._living[number] = living
                return
            del self._failed[number], self._done[number]
        self._living[number] = living
        self._attempt(number, self._place)

    def _rank(self, number: int) -> int:
        """Order of filling: keys and items of sets are looked up by what is in them."""
        if self._nodes[number]["kind"] != "object":
            return 1
        return 2 * issubclass(base_of(type(self._done.get(number))), dict | set)

    def _attempt(self, number: int, action: Any) -> None:
        try:
            action(number, self._nodes[number], self._living[number])
        except Exception as error:  # of a foreign class's own making, too
            self._fail(number, error)

    def _fail(self, number: int, error: Exception) -> None:
        """Name what cannot be put back; it stays as it is."""
        node = self._nodes[number]
        why = str(error) if isinstance(error, NotCapturable) else repr(error)
        self._failed[number] = Problem(node["copy"], f"`{node['path']}`: {why}")
        self._done[number] = self._living[number]

    # ------------------------------------------------------------- which object stands for a node

    def _meet(self, saved: Any, living: Any) -> None:
        """Note what stands in the place of a saved value."""
        if isinstance(saved, dict):
            self._met.append((saved["ref"], living))

    def _place(self, number: int, node: State, living: Any) -> None:
        """Find or make the object of a node, and go on to what it refers to."""
        if node["kind"] == "object":
            self._place_object(number, node, living)
        elif "parts" in node:
            kind = BY_NAME[node["kind"]]
            now: Any = kind.split(living)[1] if kind.matches(living) else {}
            for key, part in node["parts"].items():
                self._meet(part, now.get(key, MISSING))
            if kind.is_kept:
                self._done[number] = living

    def _place_object(self, number: int, node: State, living: Any) -> None:
        target = self._living_object(node, living)
        if target is MISSING:
            target = self._new(node, living)
        self._taken[id(target)] = number
        self._alive.append(target)
        self._lookup.see(type(target))
        self._done[number] = target
        now = attributes_of(target)
        for name, item in node["attributes"].items():
            if number != self._root or name not in self._without:
                self._meet(item, now.get(name, MISSING))
        if "factory" in node:
            self._meet(node["factory"], getattr(living, "default_factory", MISSING))
        if issubclass(type(target), dict):
            has = dict(living) if isinstance(living, dict) else {}
            ordered = list(has.items()) if len(has) == len(node["items"]) else []
            for k, (key, item) in enumerate(node["items"]):
                if isinstance(key, dict):  # no leaf: by its place
                    there, value = ordered[k] if ordered else (MISSING, MISSING)
                else:
                    there, value = key, has.get(key, MISSING)
                self._meet(key, there)
                self._meet(item, value)
        elif "items" in node:
            ordered = list(living) if isinstance(living, list | deque) else []
            for k, item in enumerate(node["items"]):
                self._meet(item, ordered[k] if k < len(ordered) else MISSING)

    def _living_object(self, node: State, living: Any) -> Any:
        """Return the living object if it can stand for the saved one."""
        kind = type(living)
        if living is not MISSING:
            self._lookup.see(kind)
        if living is MISSING or name_of(kind) != node["class"] or id(living) in self._taken:
            return MISSING
        if issubclass(kind, set):  # a new one, because the order of its items depends on its past
            return MISSING
        if "items" in node and self._lookup.is_constant(living) and not node["constant"]:
            return MISSING
        if issubclass(kind, deque) and living.maxlen != node["maxlen"]:
            return MISSING
        return living

    def _new(self, node: State, living: Any) -> Any:
        kind = self._lookup.find(node["class"], living)
        if kind is None:
            raise NotCapturable(f"it was a {node['class']}, which cannot be found from here")
        if issubclass(kind, gym.Env | VecEnv):
            raise NotCapturable(f"it was a {node['class']}, and is a {name_of(type(living))}")
        if not is_readable(kind) or issubclass(kind, type) or hasattr(kind, "__del__"):
            raise NotCapturable(f"it was a {node['class']}, which cannot be made")
        base: Any = base_of(kind)
        made = base.__new__(kind)
        if isinstance(made, deque):
            deque.__init__(made, (), node["maxlen"])
        return made

    # -------------------------------------------------------------------- what it has been before

    def _value(self, saved: Any) -> Any:
        """Return what a saved value has become."""
        if not isinstance(saved, dict):
            return saved
        number = saved["ref"]
        if number not in self._living:  # inside of what could not be put back, which is named
            return MISSING
        if number not in self._done:
            self._done[number] = self._living[number]  # if it refers to itself
            self._attempt(number, self._join)
        return self._done[number]

    def _join(self, number: int, node: State, living: Any) -> None:
        """Build the value of a node that is no object."""
        self._joined.add(number)
        if node["kind"] == "unreadable":  # it is named already
            return
        kind = BY_NAME[node["kind"]]
        if kind.in_place and self._taken.get(id(living), number) != number:
            living = MISSING
        parts = {key: self._value(part) for key, part in node.get("parts", {}).items()}
        if any(part is MISSING for part in parts.values()):
            raise NotCapturable("not all that it consists of can be put back")
        value = kind.join(living, node["data"], parts, partial(self._find, node, living))
        self._done[number] = value
        if kind.in_place:
            self._taken[id(value)] = number
            self._alive.append(value)

    def _find(self, node: State, living: Any, base: type) -> Any:
        kind = self._lookup.find(node["class"], living)
        if kind is None or not issubclass(kind, base):
            raise NotCapturable(f"it was a {node['class']}, which cannot be found from here")
        return kind

    # ------------------------------------------------------------------------ what goes into them

    def _fill(self, number: int, node: State, living: Any) -> None:
        target = self._value({"ref": number})
        if node["kind"] == "object":
            if target is not MISSING:
                self._fill_attributes(number, node, target)
                if "items" in node:
                    self._fill_items(node, target)
        elif number not in self._joined:
            self._join(number, node, living)

    def _fill_attributes(self, number: int, node: State, target: Any) -> None:
        members = dict(slots_of(type(target)))
        left_out = {*skipped(target), *(self._without if number == self._root else ())}
        for name, item in node["attributes"].items():
            if name in left_out or (value := self._value(item)) is MISSING:
                continue
            if name in members:
                members[name].__set__(target, value)
            elif (why := self._refusal(target, name, value)) is not None:
                self._notes.append(Problem(node["copy"], f"`{node['path']}`: {why}", is_note=True))
            else:
                vars(target)[name] = value
        for name in attributes_of(target).keys() - node["attributes"].keys() - left_out:
            if name in members:
                members[name].__delete__(target)
            else:
                del vars(target)[name]

    def _refusal(self, target: Any, name: str, value: Any) -> str | None:
        """Say why an attribute may not be set by a file; None if it may."""
        now = vars(target).get(name, MISSING)
        if value is now:
            return None
        try:
            check_name(target, name)
        except ValueError as error:
            return str(error)
        if not may_move(target, name, value) or value == now:
            return None
        return f"`{name}` says where something is on a disk, was {value!r} and is left as it is"

    def _fill_items(self, node: State, target: Any) -> None:
        base: Any = base_of(type(target))
        if issubclass(base, dict):
            pairs = [(self._value(key), self._value(item)) for key, item in node["items"]]
            base.clear(target)
            for key, item in pairs:
                if key is not MISSING and item is not MISSING:
                    base.__setitem__(target, key, item)
            if base is defaultdict and (factory := self._value(node["factory"])) is not MISSING:
                target.default_factory = factory
            return
        items = [self._value(item) for item in node["items"]]
        if base is set:
            if not fill_set(target, [item for item in items if item is not MISSING]):
                text = f"the items of the set `{node['path']}` come in another order than before"
                self._notes.append(Problem(node["copy"], text, is_note=True))
            return
        base.clear(target)
        base.extend(target, [None if item is MISSING else item for item in items])


def fill_set(target: set[Any], items: Sequence[Any]) -> bool:
    """Fill an empty set so that its items come in the order in which they came; tell whether.

    The order depends on the size of its table, which depends on what has been in it.
    """
    numbers = [item for item in items if isinstance(item, int)]
    after = max(numbers) + 1 if len(numbers) == len(items) > 0 else None
    for extra in (0, 5, 8, 20, 32, 80, 128, 320, 512, 1280):
        fillers: Any = [object() for _ in range(extra)]
        if after is not None:  # behind the items in the table, and not in their way
            fillers = range(after, after + extra)
        set.clear(target)
        set.update(target, fillers)
        set.update(target, items)
        set.difference_update(target, fillers)
        if list(set.__iter__(target)) == list(items):
            return True
    return False
