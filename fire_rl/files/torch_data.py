"""Torch files as data only: no code is run, and only tensors that can be worked on come out."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from fire_rl.files.zips import open_zip, printed
from fire_rl.utils.limits import Limits
from fire_rl.utils.torch_internals import COMPILED

_MAX_DEPTH, _MAX_ENTRIES, _MAX_NAME = 100, 200_000, 1000
_DTYPES = {
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
}  # fmt: skip


def load_tensors(file: Path | bytes, name: str, limits: Limits) -> Any:
    """Read a torch file as data only, onto the CPU.

    Args:
        file: The path or the content of the file.
        name: What messages call it.
        limits: How much it may hold.

    Raises:
        ValueError: If it is damaged, or holds more than plain values and plain tensors.
    """
    source: Any = io.BytesIO(file) if isinstance(file, bytes) else file
    size = len(file) if isinstance(file, bytes) else file.stat().st_size
    limits.check_size(size, f"`{name}`")
    if zipfile.is_zipfile(source):
        with open_zip(source, name, limits) as archive:
            archive.check()
    if isinstance(file, bytes):
        source.seek(0)
    content = _load(source, name)
    check_content(content, name, limits)
    return content


def _load(source: Any, name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about old formats
            return torch.load(source, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            f"`{name}` is no torch file, is damaged, or holds more than tensors and plain values. "
            "It was not read any further, and nothing in it was run."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes torch raise anything
        if "can't allocate memory" in str(error):
            raise MemoryError from error
        what = printed(str(error).partition("\n")[0]) or type(error).__name__
        raise ValueError(f"`{name}` is no torch file, or a damaged one: {what}") from error


def check_content(content: Any, name: str, limits: Limits) -> None:
    """Raise ValueError unless all of a content can be walked, and every tensor in it worked on."""
    size, entries, tensors = 0, 0, dict[int, Tensor]()
    stack: list[Iterator[tuple[str, Any]]] = [iter([("", content)])]
    while stack:
        path, value = next(stack[-1], (None, None))
        if path is None:
            stack.pop()
            continue
        entries += 1
        depth = max(len(stack), path.count("."))  # of containers, and of the modules of a name
        if depth > _MAX_DEPTH or len(path) > _MAX_NAME:
            raise ValueError(
                f"`{name}`: `{printed(path)}` is nested too deep, or its name is long."
            )
        if entries > _MAX_ENTRIES:
            raise ValueError(f"`{name}` holds more than {_MAX_ENTRIES:,} entries.")
        if isinstance(value, Tensor) and id(value) not in tensors:
            if fault := _fault(value):
                raise ValueError(f"`{name}`: the tensor `{printed(path)}` {fault}.")
            tensors[id(value)] = value
            size += value.nbytes
        elif isinstance(value, Mapping | list | tuple):
            stack.append(iter(_entries(path, value)))
    limits.check_size(size, f"`{name}`")


def _fault(tensor: Tensor) -> str:
    """Say why a tensor cannot be worked on, in a few words; empty if it can."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        return f"is {kind}: only dense tensors are read"
    if tensor.device.type != "cpu":
        return f"is on the device {tensor.device.type!r}, and holds no values"
    if type(tensor) not in (Tensor, nn.Parameter):
        return f"is a {type(tensor).__name__}: only plain tensors are read"
    if tensor.dtype not in _DTYPES or tensor.is_conj() or tensor.is_neg():
        return f"is of {str(tensor.dtype).removeprefix('torch.')}: save it as float32"
    end = 1
    for stride, count in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if count > 1 and stride < end and tensor.numel():
            return "is expanded: several of its elements are one number in memory; clone() it"
        end += stride * (count - 1)
    return ""


def tensors_in(content: Any) -> dict[str, Tensor]:
    """List the tensors in nested mappings and lists by dotted name, in order.

    A part that ``torch.compile`` has wrapped has the names that it had before.
    """
    found = dict(_walk("", content))
    plain = {name: _uncompiled(name) for name in found}
    unique = len(set(plain.values())) == len(plain)
    return {plain[name] if unique else name: tensor for name, tensor in found.items()}


def _uncompiled(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != COMPILED)


def _walk(path: str, content: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield path, content
    elif isinstance(content, Mapping | list | tuple):
        for inner, value in _entries(path, content):
            yield from _walk(inner, value)


def _entries(path: str, content: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a container holds by dotted name; keys that are neither words nor numbers: `?`."""
    items = content.items() if isinstance(content, Mapping) else enumerate(content)
    for key, value in items:
        known = isinstance(key, str) or (isinstance(key, int) and abs(key) < 2**63)
        name = str(key) if known else "?"
        yield f"{path}.{name}" if path else name, value
