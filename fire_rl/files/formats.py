"""Files that hold weights: read as data only, written atomically, never over another file.

SB3's zip holds torch files (``policy.pth``, ``*.optimizer.pth``) beside a JSON file, ``data``, some
of whose values are pickles. The torch files are read with ``weights_only=True`` and the pickles
never: reading a stranger's file runs no code from it.
"""

from __future__ import annotations

import difflib
import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from torch import Tensor

Format = Literal["sb3", "torch", "safetensors"]

# SB3 before 0.9 called it "tensors.pth" (`common/save_util.py`).
VARIABLES = ("pytorch_variables.pth", "tensors.pth")
# What a damaged torch file raises, besides what `weights_only` refuses.
_DAMAGED = (RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError)


@dataclass(frozen=True, eq=False)
class ModelFile:
    """What a file holds, pickles left out.

    Attributes:
        path: The path of the file.
        format: ``"sb3"`` for a zip of SB3 or sb3-contrib, ``"torch"`` or ``"safetensors"``.
        content: For ``"sb3"`` the content of each torch file in the zip, by its name
            (``"policy.pth"``, ...); for other formats one entry, whose name is ``""``.
        data: The plain values of SB3's ``data``: numbers, words and lists of them; no pickle.
        version: The SB3 version that saved it.
        metadata: The metadata of a safetensors file.
    """

    path: Path
    format: Format
    content: Mapping[str, Any]
    data: Mapping[str, Any] = field(default_factory=dict)
    version: str | None = None
    metadata: Mapping[str, str] | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the networks by dotted name, in order."""
        return tensors_in(self.content["policy.pth" if self.format == "sb3" else ""])

    @property
    def optimizers(self) -> dict[str, Any]:
        """Content of the optimizers of an SB3 zip, by member."""
        return {
            name: content
            for name, content in self.content.items()
            if name != "policy.pth" and name not in VARIABLES
        }

    @property
    def num_timesteps(self) -> int | None:
        """Steps of the model of an SB3 zip."""
        return self.whole_number("num_timesteps")

    def whole_number(self, name: str) -> int | None:
        """Return a value of SB3's ``data`` if it is a whole number."""
        value = self.data.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def tensors_in(content: Any) -> dict[str, Tensor]:
    """List the tensors in nested mappings and lists by dotted name, in order."""
    return dict(_walk("", content))


def read_model_file(path: str | Path) -> ModelFile:
    """Read the tensors and plain values of a file.

    Args:
        path: An SB3 or sb3-contrib zip, a torch file with a state dict (also inside a mapping, as
            in a checkpoint), or a ``.safetensors`` file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is none of these, is damaged or holds more than plain data.
        ModuleNotFoundError: If safetensors is needed and missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file `{path}`.{_nearest_file(path)}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if "policy.pth" in names:
                return _read_sb3(path, archive)
            if "data" in names:
                raise ValueError(f"`{path}` is a zip of SB3 without `policy.pth`: no weights.")
        if path.suffix == ".zip" and not any(name.endswith("data.pkl") for name in names):
            raise ValueError(
                f"`{path}` is no zip of SB3: it has no `policy.pth`. Expected what "
                "`model.save(...)` writes."
            )
    elif path.suffix == ".zip":
        raise ValueError(f"`{path}` is no zip file, or a damaged one.")
    content = load_tensors(path.read_bytes(), str(path))
    if not tensors_in(content):
        raise ValueError(f"`{path}` holds no tensors by name: expected a state dict.")
    return ModelFile(path, "torch", {"": content})


def load_tensors(raw: bytes, name: str) -> Any:
    """Read a torch file from its bytes, as data only, onto the CPU.

    Raises:
        ValueError: If it is damaged or holds more than tensors and plain values.
    """
    try:
        return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            f"`{name}` is no torch file, is damaged, or holds more than tensors and plain values. "
            "It was not read any further, and nothing in it was run."
        ) from error
    except _DAMAGED as error:
        raise ValueError(f"`{name}` is no torch file, or a damaged one: {error}") from error


def check_output(out: Path, source: Path, force: bool) -> None:
    """Raise ValueError unless the new file may be written.

    Raises:
        ValueError: If it is the source, exists (unless ``force``), has another suffix than the
            source, or its folder is missing.
    """
    if out.exists() and out.samefile(source):
        raise ValueError(f"`--out` is the input itself, `{source}`: name another file.")
    if os.path.lexists(out) and (out.is_dir() or not force):
        hint = "it is a folder" if out.is_dir() else "name another file, or add --force"
        raise ValueError(f"`--out` must not exist, and `{out}` does: {hint}.")
    kinds = [{".pt", ".pth"} if s in (".pt", ".pth") else {s} for s in (out.suffix, source.suffix)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"`--out` must have the suffix of the input, {source.suffix or 'none'!r}, got "
            f"{out.suffix or 'none'!r}: the format stays as it is."
        )
    if not out.parent.is_dir():
        raise ValueError(f"`--out` lies in a folder that does not exist, `{out.parent}`.")


def write_model_file(file: ModelFile, changed: Mapping[str, Any], out: Path, force: bool) -> None:
    """Write a copy of a file with new content: whole, or not at all.

    Args:
        file: The file that was read.
        changed: New content by name, as in :attr:`ModelFile.content`; every other member of a zip
            is copied byte for byte.
        out: See :func:`check_output`.
        force: Whether an existing file is replaced.
    """
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        if file.format == "sb3":
            _write_sb3(file.path, changed, temporary)
        elif file.format == "safetensors":
            content = changed.get("", file.content[""])
            _safetensors().torch.save_file(content, temporary, metadata=file.metadata)
        else:
            torch.save(changed.get("", file.content[""]), temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        check_output(out, file.path, force)  # somebody may have written it in the meantime
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def same_content(a: Any, b: Any) -> bool:
    """Tell whether two contents are equal to the bit, tensors and all."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        alike = a.dtype == b.dtype and a.shape == b.shape
        return alike and bool(((a == b) | ((a != a) & (b != b))).all())  # NaN is NaN
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return list(a) == list(b) and all(same_content(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same_content, a, b))
    return bool(a == b)


def _read_sb3(path: Path, archive: zipfile.ZipFile) -> ModelFile:
    content = {}
    for name in archive.namelist():
        if name.endswith(".pth"):
            content[name] = load_tensors(_member(archive, name), f"{path}: {name}")
    if not tensors_in(content["policy.pth"]):
        raise ValueError(f"`{path}: policy.pth` holds no tensors: expected a state dict.")
    version = None
    if "_stable_baselines3_version" in archive.namelist():
        version = _member(archive, "_stable_baselines3_version").decode(errors="replace").strip()
    return ModelFile(path, "sb3", content, _plain_data(archive), version)


def _plain_data(archive: zipfile.ZipFile) -> dict[str, Any]:
    """Return the values of SB3's ``data`` that are plain JSON; pickles are left out."""
    if "data" not in archive.namelist():
        return {}
    try:
        values = json.loads(_member(archive, "data"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {key: value for key, value in values.items() if not isinstance(value, dict)}


def _member(archive: zipfile.ZipFile, name: str | zipfile.ZipInfo) -> bytes:
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, EOFError) as error:
        raise ValueError(f"`{archive.filename}` is damaged or encrypted: {error}") from error


def _write_sb3(source: Path, changed: Mapping[str, Any], temporary: Path) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(temporary, "x") as new:
        new.comment = old.comment
        for info in old.infolist():
            raw = _member(old, info)
            if info.filename in changed:
                buffer = io.BytesIO()
                torch.save(changed[info.filename], buffer)
                raw = buffer.getvalue()
            new.writestr(info, raw)


def _read_safetensors(path: Path) -> ModelFile:
    module = _safetensors()
    try:
        with module.safe_open(path, framework="pt") as opened:
            metadata = opened.metadata()
        content = module.torch.load_file(path)
    except (module.SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"`{path}` is no safetensors file, or a damaged one: {error}") from error
    if not content:
        raise ValueError(f"`{path}` holds no tensors.")
    return ModelFile(path, "safetensors", {"": content}, metadata=metadata)


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ModuleNotFoundError(
            "Files that end in .safetensors need the package safetensors: pip install "
            "'fire-rl[safetensors]'."
        ) from error
    return safetensors


def _walk(path: str, content: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield path, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _walk(f"{path}.{key}" if path else str(key), value)
    elif isinstance(content, list | tuple):
        for index, value in enumerate(content):
            yield from _walk(f"{path}.{index}" if path else str(index), value)


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f" The folder `{path.parent}` does not exist, either."
    if path.is_dir():
        return " It is a folder."
    zipped = path.with_name(path.name + ".zip")
    names = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    close = [zipped.name] if zipped.is_file() else difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean `{path.with_name(close[0])}`?" if close else ""
