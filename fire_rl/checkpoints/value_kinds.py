"""Single values that are no containers: how each kind is written as plain data, and read back.

Words and moments are written as text. Random generators, tensors, MuJoCo's data and the Atari
emulator have functions of their own for their state; pickling the last two raises no error and
restores another state.
"""

from __future__ import annotations

import ast
import datetime
import hashlib
import itertools
import logging
import pathlib
import random
import threading
import types
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.logger import Logger

MISSING: Any = object()  # there is no such value in the environment that is restored
LEAVES = (type(None), bool, int, float, str, bytes)


class NotCapturable(ValueError):
    """A state cannot be read or put back; the message says why."""


@dataclass(frozen=True)
class Kind:
    """One kind of value.

    Attributes:
        name: What its nodes are called.
        matches: Whether a value is of this kind.
        read: From the value to plain data.
        write: From what stands in its place now (or ``MISSING``) and the data to the value.
        in_place: Whether what stands there is changed, because others hold on to it.
    """

    name: str
    matches: Callable[[Any], bool]
    read: Callable[[Any], Any]
    write: Callable[[Any, Any], Any]
    in_place: bool = False


def _exactly(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: type(value) in kinds


def _named(*names: str) -> Callable[[Any], bool]:
    """By name, so that nothing is imported."""
    return lambda value: type(value).__name__ in names


# ------------------------------------------------------------------------------ words and moments


def _read_moment(value: Any) -> Any:
    zone = getattr(value, "tzinfo", None)
    if zone is not None and type(zone) is not datetime.timezone:
        raise NotCapturable(f"its time zone is a {type(zone).__name__}")
    return [type(value).__name__, value.isoformat(), getattr(value, "fold", 0)]


def _write_moment(_: Any, data: Any) -> Any:
    kinds: dict[str, Any] = {
        "datetime": datetime.datetime, "date": datetime.date, "time": datetime.time,
    }  # fmt: skip
    moment = kinds[data[0]].fromisoformat(data[1])
    return moment.replace(fold=data[2]) if data[2] else moment


def _write_path(_: Any, data: Any) -> Any:
    names = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
    kinds: dict[str, Any] = {name: getattr(pathlib, name) for name in names}
    return kinds[data[0]](data[1])


def _is_path(value: Any) -> bool:
    return isinstance(value, pathlib.PurePath) and type(value).__module__.startswith("pathlib")


def _read_count(value: Any) -> Any:
    return list(ast.literal_eval(repr(value).removeprefix("count").replace(")", ",)")))


# ------------------------------------------------------------------------------ random generators


_BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")
_SEED = ("entropy", "spawn_key", "pool_size", "n_children_spawned")


def _seed_of(bits: Any) -> Any:
    """Return what the seeds of children will be drawn from; None if it cannot be told."""
    sequence = bits.seed_seq
    if type(sequence) is not np.random.SeedSequence:
        return None
    return {name: getattr(sequence, name) for name in _SEED}


def _bits_class(name: str) -> Any:
    if name not in _BIT_GENERATORS:
        raise NotCapturable(f"{name} is no bit generator of numpy")
    return getattr(np.random, name)


def _new_bits(data: Any) -> Any:
    seed = data["seed"]
    sequence = None if seed is None else np.random.SeedSequence(**seed)
    bits = _bits_class(data["state"]["bit_generator"])(sequence)
    bits.state = data["state"]
    return bits


def _read_bits(bits: Any) -> Any:
    if type(bits).__name__ not in _BIT_GENERATORS:
        raise NotCapturable(f"its bit generator is a {type(bits).__qualname__}")
    return {"state": bits.state, "seed": _seed_of(bits)}


def _write_bits(current: Any, data: Any) -> Any:
    is_same = type(current).__name__ == data["state"]["bit_generator"]
    if not is_same or _seed_of(current) != data["seed"]:
        return _new_bits(data)
    current.state = data["state"]
    return current


def _write_generator(current: Any, data: Any) -> Any:
    bits = getattr(current, "bit_generator", None)
    written = _write_bits(bits, data)
    return current if written is bits else np.random.Generator(written)


def _write_random_state(current: Any, data: Any) -> Any:
    if type(current) is not np.random.RandomState:
        current = np.random.RandomState(_bits_class(data["bit_generator"])())
    current.set_state(data)
    return current


def _write_python_random(current: Any, data: Any) -> Any:
    current = current if type(current) is random.Random else random.Random()
    current.setstate(data)
    return current


def _write_seed_sequence(current: Any, data: Any) -> Any:
    is_same = type(current) is np.random.SeedSequence and data == _read_seed_sequence(current)
    return current if is_same else np.random.SeedSequence(**data)


def _read_seed_sequence(value: Any) -> Any:
    return {name: getattr(value, name) for name in _SEED}


def _write_torch_generator(current: Any, data: Any) -> Any:
    if not isinstance(current, torch.Generator) or str(current.device) != data["device"]:
        current = torch.Generator(data["device"])
    current.set_state(data["state"])
    return current


# ---------------------------------------------------------------------- states of other libraries


def _model_digest(model: Any) -> str:
    """Identify a MuJoCo model."""
    return hashlib.sha256(model.__getstate__()).hexdigest()


def _read_mujoco(value: Any) -> Any:
    # All of MjData: the documented state flags lack derived arrays from which rewards of Ant
    # and Humanoid are computed.
    return {"data": value.__getstate__(), "model": _model_digest(value.model)}


def _write_mujoco(current: Any, data: Any) -> Any:
    import mujoco

    if type(current).__name__ != "MjData" or _model_digest(current.model) != data["model"]:
        raise NotCapturable(
            "its MjModel is not the one of the checkpoint: it was changed in training, or it is "
            "another version of the environment"
        )
    saved = mujoco.MjData.__new__(mujoco.MjData)
    saved.__setstate__(data["data"])
    mujoco.mj_copyData(current, current.model, saved)
    return current


def _read_emulator(value: Any) -> Any:
    # Without the emulator's own random state, sticky actions would differ after some steps.
    return value.cloneState(include_rng=True).__getstate__()


def _write_emulator(current: Any, data: Any) -> Any:
    import ale_py

    if type(current).__name__ != "ALEInterface":
        raise NotCapturable("there is no emulator in its place")
    saved = ale_py.ALEState.__new__(ale_py.ALEState)
    saved.__setstate__(data)
    current.restoreState(saved)
    return current


def _read_table(value: Any) -> str:
    """Identify a pandas table: it is data that the environment was built with."""
    import pandas as pd

    digest = hashlib.sha256(f"{value.shape} {getattr(value, 'dtypes', '')}".encode())
    digest.update(repr(getattr(value, "columns", getattr(value, "name", ""))).encode())
    digest.update(pd.util.hash_pandas_object(value).to_numpy().tobytes())
    return digest.hexdigest()


def _is_table(value: Any) -> bool:
    kind = type(value)
    is_known = kind.__name__ in ("DataFrame", "Series") or kind.__name__.endswith("Index")
    return kind.__module__.split(".")[0] == "pandas" and is_known


def _write_table(current: Any, data: Any) -> Any:
    if not _is_table(current) or _read_table(current) != data:
        raise NotCapturable("the content of a pandas table is not saved, and it was another one")
    return current


KINDS = (
    Kind(
        "complex", _exactly(complex), lambda v: [v.real, v.imag], lambda _, d: complex(*d)
    ),
    Kind("range", _exactly(range), lambda v: [v.start, v.stop, v.step], lambda _, d: range(*d)),
    Kind("ellipsis", _exactly(type(...)), lambda _: None, lambda _, __: ...),
    Kind(
        "moment", _exactly(datetime.datetime, datetime.date, datetime.time), _read_moment,
        _write_moment,
    ),
    Kind(
        "timedelta", _exactly(datetime.timedelta), lambda v: [v.days, v.seconds, v.microseconds],
        lambda _, d: datetime.timedelta(*d),
    ),
    Kind("decimal", _exactly(Decimal), str, lambda _, d: Decimal(d)),
    Kind("fraction", _exactly(Fraction), str, lambda _, d: Fraction(d)),
    Kind("uuid", _exactly(uuid.UUID), str, lambda _, d: uuid.UUID(d)),
    Kind("bytearray", _exactly(bytearray), bytes, lambda _, d: bytearray(d)),
    Kind("path", _is_path, lambda v: [type(v).__name__, str(v)], _write_path),
    Kind("count", _exactly(itertools.count), _read_count, lambda _, d: itertools.count(*d)),
    Kind(
        "generator", _exactly(np.random.Generator), lambda v: _read_bits(v.bit_generator),
        _write_generator, in_place=True,
    ),
    Kind("bits", lambda v: isinstance(v, np.random.BitGenerator), _read_bits, _write_bits, True),
    Kind(
        "random_state", _exactly(np.random.RandomState), lambda v: v.get_state(legacy=False),
        _write_random_state, in_place=True,
    ),
    Kind("random", _exactly(random.Random), lambda v: v.getstate(), _write_python_random, True),
    Kind("seed", _exactly(np.random.SeedSequence), _read_seed_sequence, _write_seed_sequence),
    Kind(
        "torch_generator", _exactly(torch.Generator),
        lambda v: {"state": v.get_state(), "device": str(v.device)}, _write_torch_generator, True,
    ),
    Kind("mujoco", _named("MjData"), _read_mujoco, _write_mujoco, True),
    Kind("emulator", _named("ALEInterface"), _read_emulator, _write_emulator, True),
    Kind("table", _is_table, _read_table, _write_table),
)  # fmt: skip

# Without a state that a step changes, or known to be for drawing and for files of logs.
_WITHOUT_STATE = (
    types.ModuleType, EnvSpec, np.dtype, torch.dtype, torch.device, logging.Logger, Logger,
    random.SystemRandom, type(threading.Lock()), type(threading.RLock()), np.ufunc, types.CodeType,
    property, staticmethod, classmethod, type(NotImplemented), types.MethodDescriptorType,
    types.WrapperDescriptorType,
)  # fmt: skip
_WITHOUT_STATE_NAMES = {"MjModel", "MujocoRenderer", "ResultsWriter", "_lru_cache_wrapper"}
_WITHOUT_STATE_MODULES = ("pygame", "ale_py._ale_py", "glfw")


def is_without_state(value: Any) -> bool:
    """Tell whether a value has nothing that a step changes."""
    kind = type(value)
    is_named = kind.__name__ in _WITHOUT_STATE_NAMES
    return (
        is_named
        or kind is object
        or kind.__module__.startswith(_WITHOUT_STATE_MODULES)
        or isinstance(value, _WITHOUT_STATE)
    )


def describe_static(value: Any) -> str | None:
    """Return which one it is of the values without state; None where that makes no difference."""
    if isinstance(value, types.ModuleType):
        return f"the module {value.__name__}"
    is_one_of_many = isinstance(value, np.dtype | torch.dtype | torch.device | np.ufunc)
    return str(value) if is_one_of_many else None


def is_leaf(value: Any) -> bool:
    """Tell whether a value stands in a tree as it is: a number, a word, nothing."""
    kind = type(value)
    return kind in LEAVES or (isinstance(value, np.generic) and not value.dtype.hasobject)
