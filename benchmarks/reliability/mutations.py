"""Damage files as accidents and attackers do, by a seed, and tell what a command made of them.

A command that reads a stranger's file ends with 0, or with 2 and one line that names the file. It
runs no code of the file and writes nothing elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import pickle
import random
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fire_rl.cli import main
from fire_rl.runs.layout import MANIFEST

SECONDS = 60.0  # a command that takes longer has no bound

# Values that a field of text, CSV, JSON or YAML may hold instead of its own.
HOSTILE = (
    "", "null", "NaN", "Infinity", "-Infinity", "1e400", "-1", "0", "1e308", "9" * 10_000, "true",
    "[]", "{}", '"x"', "[[[[]]]]", '"<img src=x onerror=alert(1)>"', "=1+1", "@SUM(A1)", "\x00",
    "\ud800", "\u202e", "a" * 200_000, "[" * 5_000, "{a: " * 3_000, "!!python/name:os.system ''",
    "&a [*a, *a]", "1:1:1:1:1", "2020-99-99", "../../x", "\n", "é",
)  # fmt: skip


class Trap:
    """A value whose unpickling makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what makes the folder."""
        return os.mkdir, (str(self.path),)


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """Flip, cut, double, swap, overwrite or insert bytes."""
    data, size = bytearray(raw), len(raw)
    if not size:
        return b"\x00"
    a, b = sorted(rng.randrange(size + 1) for _ in range(2))
    b = min(b, a + rng.choice((1, 8, 64, 4096)))
    kind = rng.randrange(7)
    if kind == 0:
        for _ in range(rng.choice((1, 1, 4, 32))):
            data[rng.randrange(size)] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[a:]
    elif kind == 2:
        data[b:b] = data[a:b] * rng.choice((1, 3))
    elif kind == 3:
        middle = size // 2
        data = data[middle:] + data[:middle]
    elif kind == 4:
        data[a:b] = rng.choice((b"\x00", b"\xff")) * (b - a)
    elif kind == 5:
        data[a:a] = rng.randbytes(rng.choice((1, 4, 100)))
    else:
        del data[a:b]
    return bytes(data)


def damaged_text(raw: bytes, rng: random.Random) -> bytes:
    """Put a hostile value in the place of a word or number; or take a line away, or double it."""
    text = raw.decode("utf-8", "replace")
    kind = rng.randrange(5)
    if kind == 0:
        encoding = rng.choice(("utf-16", "latin-1", "utf-8-sig"))
        return text.encode(encoding, "replace")
    if kind == 1:
        lines = text.splitlines(keepends=True) or [""]
        k = rng.randrange(len(lines))
        lines[k : k + 1] = [lines[k]] * rng.choice((0, 2, 50))
        return "".join(lines).encode("utf-8", "replace")
    words = [k for k, c in enumerate(text) if c in ",: \n"]
    start = rng.choice(words) + 1 if words else 0
    end = start
    while end < len(text) and text[end] not in ",:}] \r\n":
        end += 1
    value = rng.choice(HOSTILE)
    return (text[:start] + value + text[end:]).encode("utf-8", "surrogatepass")


def packed(content: Any) -> bytes:
    """Return what torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _deep(tensor: Tensor, trap: Path) -> Any:
    value: Any = tensor
    for _ in range(200):
        value = {"a": value}
    return value


def _doubling(tensor: Tensor, trap: Path) -> Any:
    value: Any = [tensor]
    for _ in range(60):
        value = [value, value]
    return value


def _cycle(tensor: Tensor, trap: Path) -> Any:
    value: list[Any] = [tensor]
    value.append(value)
    return value


# What may stand in the place of a tensor of a state dict.
STRANGE: Mapping[str, Callable[[Tensor, Path], Any]] = {
    "sparse": lambda t, trap: t.to_sparse(),
    "meta": lambda t, trap: t.to("meta"),
    "float8": lambda t, trap: t.float().to(torch.float8_e4m3fn),
    "stride 0": lambda t, trap: torch.ones(1).expand(10**5, 10**4),
    "overlapping": lambda t, trap: torch.ones(64).as_strided((32, 32), (1, 1)),
    "float16": lambda t, trap: t.half(),
    "float64, huge": lambda t, trap: torch.full_like(t, 1e300, dtype=torch.float64),
    "float32, huge": lambda t, trap: torch.full_like(t, 3e38),
    "NaN": lambda t, trap: torch.full_like(t, torch.nan),
    "complex": lambda t, trap: t.to(torch.complex64),
    "conjugated": lambda t, trap: t.to(torch.complex64).conj(),
    "integers": lambda t, trap: t.long(),
    "quantized": lambda t, trap: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "another shape": lambda t, trap: t.flatten(),
    "six dimensions": lambda t, trap: t.reshape(1, 1, 1, 1, 1, -1),
    "empty": lambda t, trap: t[:0],
    "scalar": lambda t, trap: torch.tensor(1.0),
    "a number": lambda t, trap: 3,
    "text": lambda t, trap: "x",
    "nothing": lambda t, trap: None,
    "deep": _deep,
    "doubling": _doubling,
    "cycle": _cycle,
    "code": lambda t, trap: Trap(trap),
}
_NAMES = (
    "", ".", "a..b", "_orig_mod.weight", "\x1b[2J", "\n", "<b>", "weight", "forward", "__class__",
    "training", "q_networks", "a." * 500, "x" * 5000, "é\u202e", 7, 10**30, (1, 2), None, b"x", 1.5,
)  # fmt: skip


def strange_state(state: Mapping[Any, Any], rng: random.Random, trap: Path) -> tuple[str, Any]:
    """Change one entry of a state dict, or of an optimizer's state: its value or its name."""
    changed: Any = OrderedDict(state)
    key = rng.choice(list(changed) or [""])
    inner = changed.get(key)
    if isinstance(inner, Mapping) and rng.random() < 0.7:
        what, changed[key] = strange_state(inner, rng, trap)
        return what, changed
    if rng.random() < 0.25:
        name = rng.choice(_NAMES)
        changed[name] = changed.pop(key, torch.ones(2, 2))
        return f"the name {name!r:.40}", changed
    what = rng.choice(list(STRANGE))
    tensor = inner if isinstance(inner, Tensor) and inner.ndim and inner.numel() else None
    tensor = torch.ones(3, 4) if tensor is None else tensor
    changed[key] = STRANGE[what](tensor, trap)
    return what, changed


def mutated_state_dict(raw: bytes, rng: random.Random, trap: Path) -> tuple[str, bytes]:
    """Return what was done to a torch file, and its new content."""
    kind = rng.random()
    if kind < 0.25:
        return "bytes", damaged(raw, rng)
    if kind < 0.5:
        return "a member's bytes", _with_damaged_member(raw, rng)
    if kind < 0.55:
        return "a pickle", pickle.dumps(Trap(trap))
    what, state = strange_state(torch.load(io.BytesIO(raw), weights_only=True), rng, trap)
    buffer = io.BytesIO()
    try:
        torch.save(state, buffer, _use_new_zipfile_serialization=rng.random() < 0.7)
    except (RuntimeError, NotImplementedError, RecursionError, AttributeError):
        return "bytes", damaged(raw, rng)  # torch itself cannot write it
    return what, buffer.getvalue()


def _with_damaged_member(raw: bytes, rng: random.Random) -> bytes:
    """Damage what is in a zip, most often its pickle; the zip itself is whole."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(buffer, "w") as new:
        names = old.namelist()
        pickles = [name for name in names if name.endswith("data.pkl")]
        chosen = rng.choice(pickles if pickles and rng.random() < 0.8 else names)
        for name in names:
            content = old.read(name)
            new.writestr(name, damaged(content, rng) if name == chosen else content)
    return buffer.getvalue()


def mutated_zip(raw: bytes, rng: random.Random, trap: Path) -> tuple[str, bytes]:
    """Return what was done to a zip of SB3, and its new content."""
    if rng.random() < 0.25:
        return "bytes of the zip", damaged(raw, rng)
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = rng.choice(list(members))
    what, content, packing = _member(name, members[name], rng, trap)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as new:
        for member, old in members.items():
            if content is not None or member != name:
                new.writestr(member, content if member == name and content is not None else old)
        if rng.random() < 0.1:
            what = "a member elsewhere"
            new.writestr("../outside.pth", b"x")
    return f"{name}: {what}", buffer.getvalue()


def _member(name: str, raw: bytes, rng: random.Random, trap: Path) -> tuple[str, bytes | None, int]:
    if rng.random() < 0.1:
        return "missing", None, zipfile.ZIP_STORED
    if rng.random() < 0.1:
        packing = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
        size = 11_000_000 if packing == zipfile.ZIP_DEFLATED else 1000  # others are slow to pack
        return "a bomb", bytes(size), packing
    if name.endswith(".pth"):
        return *mutated_state_dict(raw, rng, trap), zipfile.ZIP_DEFLATED
    if name != "data" or rng.random() < 0.5:
        return "text", damaged_text(raw, rng), zipfile.ZIP_STORED
    data = json.loads(raw)
    evil = base64.b64encode(pickle.dumps(Trap(trap))).decode()
    for value in data.values():
        if isinstance(value, dict) and ":serialized:" in value:
            value[":serialized:"] = evil
    return "pickles", json.dumps(data).encode(), zipfile.ZIP_STORED


def mutate_folder(folder: Path, rng: random.Random, trap: Path) -> str:
    """Change one file of a run folder, or several; return what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    path = rng.choice(files)
    raw = path.read_bytes()
    is_text = path.suffix in (".csv", ".json", ".jsonl", ".yaml", ".md")
    kind = rng.choice(("text", "text", "text", "bytes", "bytes", "other", "pickle"))
    if kind == "text" and is_text:
        path.write_bytes(damaged_text(raw, rng))
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Trap(trap)))
    elif kind == "other":
        kind = rng.choice(("folder", "pipe", "dead link", "link to itself", "empty", "missing"))
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind in ("dead link", "link to itself"):
            path.symlink_to(path.name if kind == "link to itself" else "nowhere")
        elif kind == "empty":
            path.touch()
    else:
        kind = "bytes"
        path.write_bytes(damaged(raw, rng))
    return f"{path.name}: {kind}"


def fault_of(arguments: Sequence[str | Path], trap: Path, *, named: Path) -> str:
    """Run `fire-rl` on what is hostile; say how it broke its promise, nothing if it kept it.

    Args:
        arguments: The words of the command.
        trap: What code in a file would have made.
        named: The file or folder that an error has to name.
    """
    out, error = io.StringIO(), io.StringIO()
    began = time.monotonic()
    try:
        with redirect_stdout(out), redirect_stderr(error):
            code = main([str(word) for word in arguments])
    except BaseException as raised:  # whatever it is, it is a fault
        return f"raised {type(raised).__name__}: {raised}"
    lines = [line for line in error.getvalue().splitlines() if ": error: " in line]
    if trap.exists():
        return "ran code of the file"
    if time.monotonic() - began > SECONDS:
        return f"took {time.monotonic() - began:.0f} seconds"
    if code not in (0, 2) or len(lines) != (code == 2):
        return f"ended with {code} and {len(lines)} lines: {error.getvalue()[:300]}"
    if code == 2 and ("unexpected" in lines[0] or named.name not in error.getvalue()):
        return f"said: {error.getvalue()[:500]}"
    return ""


def mutate_checkpoint(path: Path, rng: random.Random, trap: Path) -> tuple[str, bool]:
    """Change one file of a checkpoint; return what was done, and whether it was sealed again.

    A sealed one has checksums that fit: only what it holds tells that it is hostile.
    """
    manifest = path / MANIFEST
    files = sorted(one for one in path.rglob("*") if one.is_file() and one != manifest)
    one, seal = rng.choice(files), rng.random() < 0.6
    what = "bytes"
    raw = one.read_bytes()
    if one.suffix in (".pt", ".pth") and rng.random() < 0.7:
        what, raw = mutated_state_dict(raw, rng, trap)
    elif one.suffix == ".json" and rng.random() < 0.7:
        what, raw = "text", damaged_text(raw, rng)
    else:
        raw = damaged(raw, rng)
    one.write_bytes(raw)
    if seal:
        entries = json.loads(manifest.read_text())
        for entry in entries["files"]:
            if entry["file"] == one.name:
                entry["sha256"] = hashlib.sha256(raw).hexdigest()
                entry["bytes"] = len(raw)
        entries.pop("checksum")
        text = json.dumps(entries, sort_keys=True)
        entries["checksum"] = hashlib.sha256(text.encode()).hexdigest()
        manifest.write_text(json.dumps(entries))
    return f"{one.name}: {what}", seal
