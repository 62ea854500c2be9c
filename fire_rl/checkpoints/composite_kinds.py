"""Values that consist of others and have no attributes: tuples, arrays, functions, spaces.

Each kind is split into plain data and parts, and joined again. A part is whatever it is: the tables
of :mod:`~fire_rl.checkpoints.object_capture` hold each once.
"""

from __future__ import annotations

import enum
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from fire_rl.checkpoints.attributes import printed
from fire_rl.checkpoints.class_lookup import is_written_in_python, name_of
from fire_rl.checkpoints.value_kinds import (
    KINDS,
    MISSING,
    Kind,
    NotCapturable,
    describe_static,
    is_without_state,
)
from fire_rl.utils.gymnasium_internals import generator_of, set_generator, subspaces

Parts = dict[Any, Any]
Find = Callable[[type], Any]  # returns the class of the value, which must be one of this


@dataclass(frozen=True)
class Composite:
    """One kind of value.

    Attributes:
        name: What its nodes are called.
        matches: Whether a value is of this kind.
        split: From the value to plain data and parts.
        join: From what stands in its place now (or ``MISSING``), data, parts and a function that
            returns the value's class, to the value.
        in_place: Whether what stands there may be changed, because others hold on to it.
        is_kept: Whether it is always what stands there; its parts may refer to it.
    """

    name: str
    matches: Callable[[Any], bool]
    split: Callable[[Any], tuple[Any, Parts]]
    join: Callable[[Any, Any, Parts, Find], Any]
    in_place: bool = False
    is_kept: bool = False


def find_kind(value: Any) -> Composite | None:
    """Return the kind of a value, None for an object with attributes and for what is not known."""
    return next((kind for kind in COMPOSITES if kind.matches(value)), None)


def _simple(kind: Kind) -> Composite:
    return Composite(
        kind.name, kind.matches, lambda value: (kind.read(value), {}),
        lambda living, data, parts, find: kind.write(living, data), kind.in_place,
    )  # fmt: skip


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


def _numbered(items: Any) -> tuple[Any, Parts]:
    return None, dict(enumerate(items))


# --------------------------------------------------------------------- names, words and sequences


def _split_enum(value: enum.Enum) -> tuple[Any, Parts]:
    return value.value if isinstance(value, enum.Flag) else value.name, {}


def _join_enum(living: Any, data: Any, parts: Parts, find: Find) -> Any:
    kind = find(enum.Enum)
    return kind(data) if issubclass(kind, enum.Flag) else kind[data]


def _join_tuple(living: Any, data: Any, parts: Parts, find: Find) -> Any:
    kind, items = find(tuple), list(parts.values())
    return tuple.__new__(kind, items) if is_written_in_python(kind) else kind(items)


_BASES = (int, float, str, bytes)


def _base(value: Any) -> Any:
    return next(base for base in _BASES if isinstance(value, base))


def _join_subclass(living: Any, data: Any, parts: Parts, find: Find) -> Any:
    base = _base(data)
    return base.__new__(find(base), data)


def _join_static(living: Any, data: Any, parts: Parts, find: Find) -> Any:
    if data is not None and describe_static(living) != data:
        now = "missing" if living is MISSING else describe_static(living)
        raise NotCapturable(f"it was {data}, and is {now}")
    return living


# ------------------------------------------------------------------------------- arrays, tensors


def _root(value: Any) -> Any:
    while isinstance(value, np.ndarray) and type(value.base) is np.ndarray:
        value = value.base
    return value


def _is_view(value: Any) -> bool:
    is_array = type(value) is np.ndarray and _root(value) is not value and value.size > 0
    return is_array and not value.dtype.hasobject and not value.dtype.names


def _split_view(value: Any) -> tuple[Any, Parts]:
    """Others may see the same memory: what changes in one changes in all."""
    root = _root(value)
    start = value.__array_interface__["data"][0] - root.__array_interface__["data"][0]
    shape, strides = list(value.shape), list(value.strides)
    return [shape, value.dtype.str, start, strides], {"base": root}


def _join_view(living: Any, data: Any, parts: Parts, find: Find) -> Any:
    shape, dtype, offset, strides = data
    root = parts["base"]
    memory = root if root.flags.c_contiguous else root.transpose(_memory_order(root))
    return np.ndarray(shape, dtype, memory, offset, strides)


def _memory_order(array: Any) -> list[int]:
    """Return the axes in the order of the memory, on which the rounding of sums depends."""
    return sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))


def _split_array(value: Any) -> tuple[Any, Parts]:
    if type(value) is not np.ndarray:
        raise NotCapturable("a class of arrays with a state of its own")
    if value.dtype.hasobject:
        if value.dtype != object:
            raise NotCapturable("a structured array with objects in it")
        return {"shape": list(value.shape)}, dict(enumerate(value.flat))
    axes = _memory_order(value)
    # Memory of something else (a simulator, other processes): it goes on using it.
    is_foreign = value.base is not None and not isinstance(value.base, np.ndarray)
    kept = {"writeable": value.flags.writeable, "foreign": is_foreign and value.flags.writeable}
    return {"axes": axes, **kept, "values": value.transpose(axes)}, {}


def _join_array(living: Any, data: Any, parts: Parts, find: Find) -> Any:
    if "values" not in data:
        array = np.empty(data["shape"], object)
        for k, item in parts.items():
            array.flat[k] = item
        return array
    array = data["values"].copy()
    if data["axes"] != sorted(data["axes"]):
        array = array.transpose(np.argsort(data["axes"]))
    is_same = type(living) is np.ndarray and living.dtype == array.dtype
    if data["foreign"] and is_same and living.shape == array.shape and living.flags.writeable:
        living[...] = array
        return living
    array.flags.writeable = data["writeable"]
    return array


def _is_tensors(value: Any) -> bool:
    """Tell whether an array is the memory of a tensor, as ``tensor.numpy()`` returns it."""
    is_array = type(value) is np.ndarray and isinstance(value.base, torch.Tensor)
    return is_array and tuple(value.base.shape) == value.shape


def _split_tensor(value: torch.Tensor) -> tuple[Any, Parts]:
    if type(value) not in (torch.Tensor, torch.nn.Parameter) or value.layout != torch.strided:
        raise NotCapturable("a special kind of tensor")
    if not value.is_leaf:
        raise NotCapturable("its gradients lead to other tensors")
    data = {"device": str(value.device), "requires_grad": value.requires_grad}
    is_parameter = isinstance(value, torch.nn.Parameter)
    return {**data, "parameter": is_parameter, "values": value.detach()}, {"grad": value.grad}


def _join_tensor(living: Any, data: Any, parts: Parts, find: Find) -> Any:
    saved, needs_grad = data["values"], data["requires_grad"]
    kind = torch.nn.Parameter if data["parameter"] else torch.Tensor
    is_same = type(living) is kind and living.is_leaf and living.requires_grad == needs_grad
    if is_same and living.shape == saved.shape and living.dtype == saved.dtype and (
        needs_grad or data["parameter"]
    ):  # fmt: skip
        living.data.copy_(saved)  # optimizers hold on to it
        tensor = living
    else:
        tensor = saved.to(data["device"])
        tensor = torch.nn.Parameter(tensor, needs_grad) if data["parameter"] else tensor
        tensor.requires_grad_(needs_grad)
    tensor.grad = parts["grad"]
    return tensor


# ------------------------------------------------------------------------------ functions, spaces


def cells_of(function: Any) -> Iterator[tuple[str, Any]]:
    """Yield the variables that a function closes over, with their cells; empty ones are not."""
    if isinstance(function, types.FunctionType):
        names = function.__code__.co_freevars
        for name, cell in zip(names, function.__closure__ or (), strict=True):
            try:
                _ = cell.cell_contents
            except ValueError:
                continue
            yield name, cell


def _split_function(value: types.FunctionType) -> tuple[Any, Parts]:
    parts = {f"<{name}>": cell.cell_contents for name, cell in cells_of(value)}
    return value.__qualname__, parts | vars(value)


def _join_function(living: Any, data: Any, parts: Parts, find: Find) -> Any:
    if not isinstance(living, types.FunctionType) or living.__qualname__ != data:
        raise NotCapturable(f"it was the function {data}, and is another one now")
    cells = dict(cells_of(living))
    for name, value in parts.items():
        if not name.startswith("<"):
            vars(living)[name] = value
        elif name[1:-1] in cells:
            cells[name[1:-1]].cell_contents = value
    return living


def _join_method(living: Any, data: Any, parts: Parts, find: Find) -> Any:
    owner = parts["self"]
    if getattr(living, "__self__", MISSING) is owner and living.__name__ == data:
        return living
    levels = type(owner).__mro__
    function = next((vars(level)[data] for level in levels if data in vars(level)), None)
    if not isinstance(function, types.FunctionType):
        raise NotCapturable(f"it was the method {data}, which is not there")
    return types.MethodType(function, owner)


def _join_builtin(living: Any, data: Any, parts: Parts, find: Find) -> Any:
    is_same = getattr(living, "__self__", MISSING) is parts["self"]
    if not is_same or living.__name__ != data:
        raise NotCapturable(f"it was {data}, and is another one now")
    return living


def _join_partial(living: Any, data: Any, parts: Parts, find: Find) -> Any:
    return functools.partial(parts["func"], *parts["args"], **parts["keywords"])


def _split_partial(value: Any) -> tuple[Any, Parts]:
    if type(value) is not functools.partial:
        raise NotCapturable("a class of partial calls with a state of its own")
    return None, {name: getattr(value, name) for name in ("func", "args", "keywords")}


def _split_space(value: Any) -> tuple[Any, Parts]:
    return printed(value), dict(enumerate(map(generator_of, subspaces(value))))


def _join_space(living: Any, data: Any, parts: Parts, find: Find) -> Any:
    if not isinstance(living, spaces.Space) or printed(living) != data:
        now = "missing" if living is MISSING else printed(living)
        raise NotCapturable(f"it was {data}, and is {now}")
    for space, generator in zip(subspaces(living), parts.values(), strict=True):
        set_generator(space, generator)
    return living


def _split_bound(value: Any) -> tuple[Any, Parts]:
    return value.__name__, {"self": value.__self__}


COMPOSITES = (
    Composite("enum", _is(enum.Enum), _split_enum, _join_enum),
    *map(_simple, KINDS),
    Composite("space", _is(spaces.Space), _split_space, _join_space, True, True),
    Composite("view", _is_view, _split_view, _join_view),
    Composite(
        "tensors", _is_tensors, lambda v: (None, {"tensor": v.base}),
        lambda _, __, parts, ___: parts["tensor"].detach().numpy(),
    ),
    Composite("array", _is(np.ndarray), _split_array, _join_array, True),
    Composite("tensor", _is(torch.Tensor), _split_tensor, _join_tensor, True),
    Composite("class", _is(type), lambda v: (None, {}), lambda _, __, ___, find: find(object)),
    Composite("function", _is(types.FunctionType), _split_function, _join_function, True, True),
    Composite("static", is_without_state, lambda v: (describe_static(v), {}), _join_static),
    Composite("method", _is(types.MethodType), _split_bound, _join_method),
    Composite(
        "builtin", _is(types.BuiltinFunctionType, types.MethodWrapperType), _split_bound,
        _join_builtin,
    ),
    Composite("partial", _is(functools.partial), _split_partial, _join_partial),
    Composite("subclass", _is(*_BASES), lambda v: (_base(v)(v), {}), _join_subclass),
    Composite("tuple", _is(tuple), _numbered, _join_tuple),
    Composite(
        "frozenset", lambda v: type(v) is frozenset, _numbered,
        lambda _, __, parts, ___: frozenset(parts.values()),
    ),
    Composite(
        "slice", _is(slice), lambda v: _numbered((v.start, v.stop, v.step)),
        lambda _, __, parts, ___: slice(*parts.values()),
    ),
)  # fmt: skip
BY_NAME: Mapping[str, Composite] = {kind.name: kind for kind in COMPOSITES}


def class_name(value: Any) -> str:
    """Return the name of the class that a value's node keeps."""
    return name_of(value if isinstance(value, type) else type(value))
