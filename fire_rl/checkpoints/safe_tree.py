"""Trees of plain values, arrays and tensors as files that hold data only: no pickle, no code.

``tree.json`` has the structure and the numbers, ``arrays.npz`` the numpy arrays, ``tensors.pt`` the
tensors (read with ``weights_only=True``). What comes back has the same types.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_TREE, _ARRAYS, _TENSORS = "tree.json", "arrays.npz", "tensors.pt"
_TAG = "~"  # marks what JSON has no form for: {"~": kind, "v": value}
_SCALARS = (bool, int, float, str, type(None))


def is_plain(value: Any) -> bool:
    """Tell whether a value consists of numbers, words, containers, arrays and tensors only."""
    kind = type(value)
    if kind in _SCALARS or kind in (bytes, torch.Tensor) or isinstance(value, np.generic):
        return True
    if kind is np.ndarray:
        return bool(value.dtype.kind in "biufcSU")
    if kind in (list, tuple, set, frozenset, deque) or is_record(value):
        return all(map(is_plain, value))
    if isinstance(value, Mapping):
        return kind.__module__ in ("builtins", "collections") and all(
            is_plain(key) and is_plain(item) for key, item in value.items()
        )
    return False


def is_record(value: Any) -> bool:
    """Tell whether a value is a named tuple; it is read back as a plain one."""
    return isinstance(value, tuple) and hasattr(value, "_fields")


def write_tree(folder: Path, tree: Any) -> None:
    """Write a tree to the three files in a folder.

    Raises:
        OSError: If a file cannot be written.
        TypeError: If something in it is not plain.
    """
    arrays: dict[str, NDArray[Any]] = {}
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_encode(tree, arrays, tensors))
    (folder / _TREE).write_text(text, encoding="utf-8")
    np.savez(folder / _ARRAYS, **arrays)  # type: ignore[arg-type]  # numpy's stub
    with (folder / _TENSORS).open("wb") as file:  # by its name, a full disk is no OSError
        torch.save(tensors, file)


def read_tree(folder: Path) -> Any:
    """Read what :func:`write_tree` has written; tensors are on the CPU.

    Raises:
        OSError or ValueError: If a file is missing or damaged.
    """
    text = (folder / _TREE).read_text(encoding="utf-8")
    try:
        with (folder / _ARRAYS).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        tensors = torch.load(folder / _TENSORS, map_location="cpu", weights_only=True)
        return _decode(json.loads(text), arrays, tensors)
    except OSError:
        raise
    except UnpicklingError as error:
        raise ValueError(f"tensors.pt holds something else than tensors: {error}") from error
    except Exception as error:  # a damaged file makes zipfile, numpy, torch or json raise anything
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"{folder.name} holds files that are damaged: {what}") from error


def _encode(value: Any, arrays: dict[str, NDArray[Any]], tensors: dict[str, torch.Tensor]) -> Any:
    def encode(item: Any) -> Any:
        return _encode(item, arrays, tensors)

    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is list:
        return [encode(item) for item in value]
    if kind is dict and all(type(key) is str and key != _TAG for key in value):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, Mapping):
        return {_TAG: "dict", "v": [[encode(k), encode(item)] for k, item in value.items()]}
    if kind in (tuple, set, frozenset) or is_record(value):
        name = "tuple" if isinstance(value, tuple) else kind.__name__
        return {_TAG: name, "v": [encode(item) for item in value]}
    if kind is deque:
        return {_TAG: "deque", "v": [encode(item) for item in value], "maxlen": value.maxlen}
    if kind is bytes:
        value = np.frombuffer(value, np.uint8)
        return {**encode(value), _TAG: "bytes"}
    if kind is np.ndarray or isinstance(value, np.generic):
        name = str(len(arrays))
        arrays[name] = np.asarray(value)
        return {_TAG: "array" if kind is np.ndarray else "scalar", "v": name}
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach()
        return {_TAG: "tensor", "v": name}
    raise TypeError(f"{kind.__module__}.{kind.__qualname__} is not plain data: {value!r}")


def _decode(
    value: Any, arrays: Mapping[str, NDArray[Any]], tensors: Mapping[str, torch.Tensor]
) -> Any:
    def decode(item: Any) -> Any:
        return _decode(item, arrays, tensors)

    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _TAG not in value:
        return {key: decode(item) for key, item in value.items()}
    kind, content = value[_TAG], value["v"]
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return arrays[content]
    if kind == "scalar":
        return arrays[content][()]
    if kind == "bytes":
        return arrays[content].tobytes()
    if kind == "dict":
        return {decode(key): decode(item) for key, item in content}
    items = [decode(item) for item in content]
    if kind == "deque":
        return deque(items, value["maxlen"])
    containers = {"tuple": tuple, "set": set, "frozenset": frozenset}
    if kind not in containers:
        raise ValueError(f"unknown kind of value {kind!r}")
    return containers[kind](items)
