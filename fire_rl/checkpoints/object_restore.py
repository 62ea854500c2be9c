"""Tables of plain values back into living objects, in place.

The environment that is restored has been built and reset as the saved one was: its objects are
matched with the saved ones by their place and their class, and get the saved attributes. Where
there is none, one is made, of a class that the environment itself names. No constructor, no setter
and no pickle runs. What cannot be put back stays as it is, and is named.
"""

from __future__ import annotations

import enum
import functools
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from fire_rl.checkpoints.class_lookup import (
    ClassLookup,
    base_of,
    is_readable,
    name_of,
    slots_of,
)
from fire_rl.checkpoints.object_capture import (
    Problem,
    State,
    attributes_of,
    cells_of,
    skipped,
)
from fire_rl.checkpoints.value_kinds import BY_NAME, MISSING, NotCapturable, describe_static
from fire_rl.utils.gymnasium_internals import generator_of, set_generator, subspaces

_SUBCLASSED: dict[str, Any] = {kind.__name__: kind for kind in (int, float, str, bytes)}


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
        self._problems: list[Problem] = []
        self._living: dict[int, Any] = {}  # what stands in the place of each node
        self._done: dict[int, Any] = {}  # what each node has become
        self._taken: dict[int, Any] = {}  # living objects that stand for a node already
        self._failed: set[int] = set()
        self._queue: deque[int] = deque()
        self._without: Collection[str] = ()

    def run(
        self, root: Any, number: int, without: Collection[str]
    ) -> tuple[list[Problem], set[type]]:
        self._root, self._without = number, without
        self._meet({"ref": number}, root)
        order = []
        while self._queue:
            order.append(self._queue.popleft())
            self._attempt(order[-1], self._place)
        for number in sorted(order, key=self._rank):
            if number not in self._failed:
                self._attempt(number, self._fill)
        return self._problems, set(self._lookup.seen.values())

    def _rank(self, number: int) -> int:
        """Order of filling: keys and items of sets are looked up by what is in them."""
        if self._nodes[number]["kind"] != "object":
            return 1
        return 2 * issubclass(base_of(type(self._done.get(number))), dict | set)

    def _attempt(self, number: int, action: Any) -> None:
        node = self._nodes[number]
        try:
            action(number, node, self._living[number])
        except Exception as error:  # of a foreign class's own making, too
            why = str(error) if isinstance(error, NotCapturable) else repr(error)
            self._problems.append(Problem(node["copy"], f"`{node['path']}`: {why}"))
            self._done[number] = self._living[number]
            self._failed.add(number)

    # ------------------------------------------------------------- which object stands for a node

    def _meet(self, saved: Any, living: Any) -> None:
        """Note what stands in the place of a saved value."""
        if isinstance(saved, dict):
            number = saved["ref"]
            if number not in self._living:
                self._living[number] = living
                self._queue.append(number)
            elif self._living[number] is MISSING and number not in self._done:
                self._living[number] = living

    def _place(self, number: int, node: State, living: Any) -> None:
        """Find or make the object of a node, and go on to what it refers to."""
        kind = node["kind"]
        if kind == "object":
            self._place_object(number, node, living)
        elif kind in ("tuple", "frozenset", "slice", "objects"):
            is_same = isinstance(living, tuple) or (kind == "objects" and hasattr(living, "flat"))
            now = list(living.flat if kind == "objects" else living) if is_same else []
            for k, item in enumerate(node["items"]):
                self._meet(item, now[k] if k < len(now) else MISSING)
        elif kind == "space":
            inner = list(subspaces(living)) if isinstance(living, spaces.Space) else []
            if str(living) != node["text"] or len(inner) != len(node["generators"]):
                raise NotCapturable(f"it was {node['text']}, and is {living}")
            for space, generator in zip(inner, node["generators"], strict=True):
                self._meet(generator, generator_of(space))
            self._done[number] = living
        elif kind == "function":
            if getattr(living, "__qualname__", None) != node["name"]:
                raise NotCapturable(f"it was the function {node['name']}, and is another one now")
            cells = dict(cells_of(living))
            for name, item in node["cells"].items():
                self._meet(item, cells[name].cell_contents if name in cells else MISSING)
            for name, item in node["attributes"].items():
                self._meet(item, vars(living).get(name, MISSING))
            self._done[number] = living
        elif kind in ("method", "builtin"):
            self._meet(node["self"], getattr(living, "__self__", MISSING))
        elif kind == "partial":
            names = ("func", "args", "keywords")
            for name, part in zip(names, node["parts"], strict=True):
                self._meet(part, getattr(living, name, MISSING))
        elif kind == "view":
            base = living
            while isinstance(base, np.ndarray) and isinstance(base.base, np.ndarray):
                base = base.base
            self._meet(node["of"], base)
        elif kind == "tensor":
            self._meet(node["grad"], getattr(living, "grad", MISSING))

    def _place_object(self, number: int, node: State, living: Any) -> None:
        target = self._living_object(node, living)
        if target is MISSING:
            target = self._new(node, living)
        self._taken[id(target)] = target
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
        if issubclass(kind, set) or self._lookup.is_constant(living):
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
        made = base_of(kind).__new__(kind)
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
            node, living = self._nodes[number], self._living[number]
            self._done[number] = living  # if it refers to itself
            self._done[number] = self._build(node, living)
        return self._done[number]

    def _build(self, node: State, living: Any) -> Any:
        """Return the value of a node that is no object."""
        kind = node["kind"]
        if kind in BY_NAME:
            return BY_NAME[kind].write(living, node["value"])
        if kind in ("tuple", "frozenset", "slice"):
            items = [self._value(item) for item in node["items"]]
            if any(item is MISSING for item in items):
                raise NotCapturable("not all of its items can be put back")
            if kind == "slice":
                return slice(*items)
            if kind == "frozenset":
                return frozenset(items)
            return tuple.__new__(self._class(node["class"], living, tuple), items)
        if kind == "objects":
            array = np.empty(node["shape"], object)
            for k, item in enumerate(node["items"]):
                array.flat[k] = self._value(item)
            return array
        builders = {
            "enum": self._enum, "class": self._class_value, "subclass": self._subclass,
            "array": self._array, "view": self._view, "tensor": self._tensor,
            "static": self._static, "method": self._method, "builtin": self._builtin, "partial": self._partial,
        }  # fmt: skip
        if kind == "bytearray":
            return bytearray(node["value"])
        if kind == "unreadable":  # it is named already
            return living
        if kind not in builders:
            raise NotCapturable(f"{kind!r} is no kind of value")
        return builders[kind](node, living)

    def _class(self, name: str, living: Any, base: type) -> Any:
        kind = self._lookup.find(name, living)
        if kind is None or not issubclass(kind, base):
            raise NotCapturable(f"it was a {name}, which cannot be found from here")
        return kind

    def _enum(self, node: State, living: Any) -> Any:
        kind = self._class(node["class"], living, enum.Enum)
        return kind(node["value"]) if issubclass(kind, enum.Flag) else kind[node["value"]]

    def _static(self, node: State, living: Any) -> Any:
        if node["is"] is not None and describe_static(living) != node["is"]:
            raise NotCapturable(f"it was {node['is']}, and is {describe_static(living)}")
        return living

    def _class_value(self, node: State, living: Any) -> Any:
        return self._class(node["class"], living, object)

    def _subclass(self, node: State, living: Any) -> Any:
        base = _SUBCLASSED[node["base"]]
        return base.__new__(self._class(node["class"], living, base), node["value"])

    def _array(self, node: State, living: Any) -> Any:
        back = np.argsort(node["axes"])
        value = node["value"].transpose(back)
        if node["foreign"]:  # its memory belongs to something else, which goes on using it
            is_same = isinstance(living, np.ndarray) and living.shape == value.shape
            if not is_same or not living.flags.writeable or living.dtype != value.dtype:
                raise NotCapturable("its memory belongs to something else, which is not there")
            living[...] = value
            return living
        value = node["value"].copy().transpose(back)
        value.flags.writeable = node["writeable"]
        return value

    def _view(self, node: State, living: Any) -> Any:
        of = self._value(node["of"])
        order = np.argsort([-abs(stride) for stride in of.strides], kind="stable")
        return np.ndarray(
            node["shape"], node["dtype"], of.transpose(order), node["offset"], node["strides"]
        )

    def _tensor(self, node: State, living: Any) -> Any:
        saved, grad = node["value"], self._value(node["grad"])
        is_leaf = isinstance(living, torch.Tensor) and living.is_leaf
        is_same = is_leaf and name_of(type(living)) == node["class"] and id(living) not in self._taken
        if is_same and living.shape == saved.shape and living.dtype == saved.dtype and (
            living.requires_grad or isinstance(living, torch.nn.Parameter)
        ):
            living.data.copy_(saved)  # optimizers hold on to it
            value = living
        else:
            value = saved.to(node["device"])
            if node["class"] == name_of(torch.nn.Parameter):
                value = torch.nn.Parameter(value, node["requires_grad"])
        value.requires_grad_(node["requires_grad"])
        value.grad = grad
        self._taken[id(value)] = value
        return value

    def _method(self, node: State, living: Any) -> Any:
        owner = self._value(node["self"])
        if getattr(living, "__self__", MISSING) is owner and living.__name__ == node["name"]:
            return living
        function = next(
            (vars(k)[node["name"]] for k in type(owner).__mro__ if node["name"] in vars(k)), None
        )
        if not isinstance(function, types.FunctionType):
            raise NotCapturable(f"it was the method {node['name']}, which is not there")
        return types.MethodType(function, owner)

    def _builtin(self, node: State, living: Any) -> Any:
        owner = self._value(node["self"])
        is_same = getattr(living, "__qualname__", None) == node["name"]
        if not is_same or getattr(living, "__self__", None) is not owner:
            raise NotCapturable(f"it was {node['name']}, and is another one now")
        return living

    def _partial(self, node: State, living: Any) -> Any:
        function, args, keywords = (self._value(part) for part in node["parts"])
        return functools.partial(function, *args, **keywords)

    # ------------------------------------------------------------------------ what goes into them

    def _fill(self, number: int, node: State, living: Any) -> None:
        target = self._value({"ref": number})
        if node["kind"] == "space":
            for space, generator in zip(subspaces(target), node["generators"], strict=True):
                set_generator(space, self._value(generator))
        elif node["kind"] == "function":
            cells = dict(cells_of(target))
            for name, item in node["cells"].items():
                if name in cells and (value := self._value(item)) is not MISSING:
                    cells[name].cell_contents = value
            for name, item in node["attributes"].items():
                if (value := self._value(item)) is not MISSING:
                    vars(target)[name] = value
        elif node["kind"] == "object" and target is not MISSING:
            self._fill_attributes(number, node, target)
            if "items" in node:
                self._fill_items(node, target)

    def _fill_attributes(self, number: int, node: State, target: Any) -> None:
        members = dict(slots_of(type(target)))
        left_out = {*skipped(target), *(self._without if number == self._root else ())}
        for name, item in node["attributes"].items():
            if name in left_out or (value := self._value(item)) is MISSING:
                continue
            if name in members:
                members[name].__set__(target, value)
            else:
                vars(target)[name] = value
        for name in attributes_of(target).keys() - node["attributes"].keys() - left_out:
            if name in members:
                members[name].__delete__(target)
            else:
                del vars(target)[name]

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
            fill_set(target, [item for item in items if item is not MISSING])
            return
        base.clear(target)
        base.extend(target, [None if item is MISSING else item for item in items])


def fill_set(target: set[Any], items: Sequence[Any]) -> None:
    """Fill an empty set so that its order is the one that it had.

    The order depends on how large its table is, which depends on what has been in it.
    """
    for extra in (0, 8, 32, 128, 512, 2048):
        fillers = [object() for _ in range(extra)]
        set.clear(target)
        set.update(target, fillers)
        set.difference_update(target, fillers)
        for item in items:
            set.add(target, item)
        if list(set.__iter__(target)) == list(items):
            return
    if all(isinstance(item, int | float | np.number) for item in items):  # words are never in order
        raise NotCapturable("the items of this set come in another order than before")
