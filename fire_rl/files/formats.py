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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fire_rl.files.torch_data import check_content, load_tensors, tensors_in
from fire_rl.files.zips import Archive, open_zip, printed
from fire_rl.utils.limits import Limits

Format = Literal["sb3", "torch", "safetensors"]

# SB3 before 0.9 called it "tensors.pth" (`common/save_util.py`).
VARIABLES = ("pytorch_variables.pth", "tensors.pth")
# Stable Baselines 2 (TensorFlow) has these members in its zips.
_SB2 = {"parameters", "parameter_list"}
_VERSION = "_stable_baselines3_version"


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
        limits: How much may be read of it, and of files beside it.
    """

    path: Path
    format: Format
    content: Mapping[str, Any]
    data: Mapping[str, Any] = field(default_factory=dict)
    version: str | None = None
    metadata: Mapping[str, str] | None = None
    limits: Limits = field(default_factory=Limits)

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
        if not isinstance(value, int) or isinstance(value, bool):
            return None
        return value if abs(value) < 2**63 else None


def read_model_file(path: str | Path, limits: Limits | None = None) -> ModelFile:
    """Read the tensors and plain values of a file.

    Args:
        path: An SB3 or sb3-contrib zip, a torch file with a state dict (also inside a mapping, as
            in a checkpoint), or a ``.safetensors`` file.
        limits: How much it may hold; by default what :class:`~fire_rl.utils.limits.Limits` says.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is none of these, is damaged or too large, or holds more than plain
            data.
        ModuleNotFoundError: If safetensors is needed and missing.
    """
    path, limits = Path(path), limits or Limits()
    if not path.is_file():
        raise FileNotFoundError(f"There is no file `{path}`.{_nearest_file(path)}")
    file = _read(path, limits)
    matrices = [tensor for tensor in file.tensors.values() if tensor.ndim >= 2]
    limits.check_work(sum(m.numel() * min(m.shape[:2]) for m in matrices), f"`{path}`")
    return file


def _read(path: Path, limits: Limits) -> ModelFile:
    if path.suffix == ".safetensors":
        return _read_safetensors(path, limits)
    if zipfile.is_zipfile(path):
        with open_zip(path, str(path), limits) as archive:
            if "policy.pth" in archive.names:
                return _read_sb3(path, archive)
            _check_no_other_zip(path, archive.names)
    elif path.suffix == ".zip":
        raise ValueError(f"`{path}` is no zip file, or a damaged one.")
    elif path.suffix == ".pkl":
        raise ValueError(
            f"`{path}` is a pickle, as Stable Baselines 2 wrote its models, and reading it would "
            "run code. Expected a zip of Stable-Baselines3 or a state dict of torch (.pt, .pth, "
            ".safetensors)."
        )
    content = load_tensors(path, str(path), limits)
    if not tensors_in(content):
        raise ValueError(f"`{path}` holds no tensors by name: expected a state dict.")
    return ModelFile(path, "torch", {"": content}, limits=limits)


def _check_no_other_zip(path: Path, names: list[str]) -> None:
    """Raise ValueError for zips that hold something else than a torch file."""
    if {*names} >= _SB2:
        raise ValueError(
            f"`{path}` is a zip of Stable Baselines 2: its weights are TensorFlow's. Copy them "
            "into a policy of Stable-Baselines3 first: https://stable-baselines3.readthedocs.io/"
            "en/master/guide/migration.html"
        )
    if "data" in names:
        raise ValueError(f"`{path}` is a zip of SB3 without `policy.pth`: no weights.")
    if path.suffix == ".zip" and not any(name.endswith("data.pkl") for name in names):
        raise ValueError(
            f"`{path}` is no zip of SB3: it has no `policy.pth`. Expected what "
            "`model.save(...)` writes."
        )


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
            _write_sb3(file, changed, temporary)
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


def _read_sb3(path: Path, archive: Archive) -> ModelFile:
    weights = [name for name in archive.names if name.endswith(".pth")]
    archive.check()  # all of them: `apply` copies what it does not read
    content = {}
    for name in weights:
        member = f"{path}: {printed(name)}"
        content[name] = load_tensors(archive.read(name), member, archive.limits)
    if not tensors_in(content["policy.pth"]):
        raise ValueError(f"`{path}: policy.pth` holds no tensors: expected a state dict.")
    version = None
    if _VERSION in archive.names:
        version = printed(archive.read(_VERSION).decode(errors="replace").strip())
    data = _plain_data(archive)
    return ModelFile(path, "sb3", content, data, version, limits=archive.limits)


def _plain_data(archive: Archive) -> dict[str, Any]:
    """Return the values of SB3's ``data`` that are plain JSON; pickles are left out."""
    if "data" not in archive.names:
        return {}
    try:
        values = json.loads(archive.read("data"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {key: value for key, value in values.items() if not isinstance(value, dict)}


def _write_sb3(file: ModelFile, changed: Mapping[str, Any], temporary: Path) -> None:
    source = open_zip(file.path, str(file.path), file.limits)
    with source as old, zipfile.ZipFile(temporary, "x") as new:
        new.comment = old.comment
        for info in old.members:
            if info.filename in changed:
                buffer = io.BytesIO()
                torch.save(changed[info.filename], buffer)
                new.writestr(info, buffer.getvalue())
            else:
                new.writestr(info, old.read(info))


def _read_safetensors(path: Path, limits: Limits) -> ModelFile:
    limits.check_size(path.stat().st_size, f"`{path}`")
    module = _safetensors()
    try:
        with module.safe_open(path, framework="pt") as opened:
            metadata = opened.metadata()
        content = module.torch.load_file(path)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes the package raise anything
        raise ValueError(
            f"`{path}` is no safetensors file, or a damaged one: {printed(str(error))}"
        ) from error
    if not content:
        raise ValueError(f"`{path}` holds no tensors.")
    check_content(content, str(path), limits)
    return ModelFile(path, "safetensors", {"": content}, metadata=metadata, limits=limits)


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


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f" The folder `{path.parent}` does not exist, either."
    if path.is_dir():
        return " It is a folder."
    if path.exists():
        return " It is a pipe or a device."
    zipped = path.with_name(path.name + ".zip")
    names = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    close = [zipped.name] if zipped.is_file() else difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean `{path.with_name(close[0])}`?" if close else ""
