"""Files that are made to harm `fire-rl inspect` and `apply`: one line that names the file."""

import io
import os
import resource
import struct
import subprocess
import sys
import zipfile

import pytest
import torch

from benchmarks.reliability.mutations import STRANGE, Trap, fault_of, packed
from fire_rl.cli import main
from fire_rl.files.formats import read_model_file
from fire_rl.utils.limits import Limits

STATE = {"a.weight": torch.ones(4, 3), "a.bias": torch.zeros(4), "b.weight": torch.eye(4)}
# What the message says of a tensor that cannot be worked on.
SAID = {
    "sparse": "is sparse_coo", "meta": "'meta'", "float8": "float8_e4m3fn", "stride 0": "clone()",
    "overlapping": "clone()", "quantized": "qint8", "conjugated": "complex64", "deep": "too deep",
    "doubling": "entries", "cycle": "too deep", "code": "nothing in it was run",
}  # fmt: skip


@pytest.mark.parametrize("what", list(STRANGE))
def test_a_strange_tensor_is_named_or_worked_on(what, tmp_path, capsys, recwarn):
    path, trap = tmp_path / "model.pt", tmp_path / "trap"
    content = {**STATE, "b.weight": STRANGE[what](STATE["b.weight"], trap)}
    path.write_bytes(packed(content))
    for words in (["inspect", path], ["apply", path, "--out", tmp_path / "new.pt"]):
        assert fault_of(words, trap, named=path) == ""
    if what in SAID:
        assert main(["inspect", str(path)]) == 2
        error = capsys.readouterr().err
        assert SAID[what] in error
        assert what in ("code", "doubling", "cycle", "deep") or "`b.weight`" in error
        assert os.listdir(tmp_path) == ["model.pt"]


def zipped(members, packing=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def lying(raw, size):
    """A zip whose table of contents declares another size of its first member."""
    at = raw.rindex(b"PK\x01\x02")
    return raw[: at + 24] + struct.pack("<I", size) + raw[at + 28 :]


POLICY = {"data": "{}", "policy.pth": packed(STATE)}
FILES = {
    "a bomb": (zipped({"policy.pth": bytes(2 * 10**7)}, zipfile.ZIP_DEFLATED), "unpack to"),
    "a bomb beside": (zipped({**POLICY, "x": bytes(2 * 10**7)}, zipfile.ZIP_DEFLATED), "unpack to"),
    "another packing": (zipped(POLICY, zipfile.ZIP_BZIP2), "by a method"),
    "a lie": (lying(zipped({"policy.pth": packed(STATE)}), 4 * 10**9), "unpack to"),
    "half": (zipped(POLICY)[:-100], "model.zip"),
    "no end": (zipped(POLICY)[:100], "no zip file"),
    "damaged policy": (zipped({"data": "{}", "policy.pth": packed(STATE)[:-60]}), "policy.pth"),
    "old pickle": (zipped({"data": "{}", "policy.pth": b"\x80\x02]q\x00."}), "policy.pth"),
    "text": (zipped({"data": "{}", "policy.pth": b"hello"}), "policy.pth"),
    "data of digits": (zipped({**POLICY, "data": f'{{"seed": {"9" * 9999}}}'}), "Roles"),
    "data deep": (zipped({**POLICY, "data": "[" * 100_000}), "Roles"),
    "data no text": (zipped({**POLICY, "data": b"\xff\xfe\x00"}), "Roles"),
    "long names": (zipped({"policy.pth": packed({"x" * 2000: torch.ones(2, 2)})}), "too deep"),
}


@pytest.mark.parametrize("what", list(FILES))
def test_hostile_zips(what, tmp_path, capsys):
    path = tmp_path / "model.zip"
    content, said = FILES[what]
    path.write_bytes(content)
    for words in (["inspect", path], ["apply", path, "--out", tmp_path / "new.zip"]):
        assert fault_of(words, tmp_path / "trap", named=path) == ""
    main(["inspect", str(path)])
    assert said in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["model.zip"]


def test_a_member_twice(tmp_path, capsys):
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("policy.pth", packed(STATE))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("policy.pth", packed(STATE))
    assert main(["inspect", str(path)]) == 2
    assert "holds `policy.pth` more than once" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".zip", ".pkl", ""])
def test_what_is_no_file(suffix, tmp_path, capsys):
    pytest.importorskip("safetensors", reason="needs safetensors")
    for make in (os.mkdir, os.mkfifo, lambda path: os.symlink(path, path)):
        path = tmp_path / f"{make.__name__.strip('<>')}{suffix}"
        make(path)
        assert main(["inspect", str(path)]) == 2
        error = capsys.readouterr().err
        assert path.name in error
        assert error.count("\n") == 1
    assert main(["inspect", "/dev/zero"]) == 2
    assert "a pipe or a device" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a\nb.pt", "\u202e.pt", "\udcff.pt", "\x1b[2J.pt", "x" * 300])
def test_a_name_does_not_steer_the_terminal(name, tmp_path, capsys):
    path = tmp_path / name
    if len(name) < 200:
        path.write_bytes(b"x")
    assert main(["inspect", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(c.isprintable() for c in error.rstrip("\n"))


def test_the_limits(tmp_path, capsys):
    path = tmp_path / "model.pt"
    torch.save(STATE, path)
    with pytest.raises(ValueError, match=r"holds 0.0 MB.* --max-memory 1\."):
        read_model_file(path, Limits(max_memory=1e-6))
    with pytest.raises(ValueError, match="seconds of arithmetic, and the limit is 1e-12"):
        read_model_file(path, Limits(max_seconds=1e-12))
    assert main(["inspect", str(path), "--max-seconds", "0.001"]) == 2
    assert f"`{path}`: no end after 0.001 seconds" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["inspect", str(path), "--max-memory", "0"])
    assert "above 0" in capsys.readouterr().err
    for value in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="--max-seconds"):
            Limits(max_seconds=value)


def test_memory_beyond_the_limit_is_not_given():
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises((MemoryError, RuntimeError)), Limits(max_memory=0.2).enforced():
        torch.zeros(10**9)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


class Allocation:
    """Unpickling it asks for a terabyte; torch takes it for plain data."""

    def __reduce__(self):
        return bytearray, (10**12,)


def test_a_pickle_that_asks_for_a_terabyte(tmp_path, capsys):
    path = tmp_path / "model.pt"
    torch.save({"a.weight": torch.ones(2, 2), "b": Allocation()}, path)
    assert main(["inspect", str(path)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert "--max-memory" in error


@pytest.mark.full
def test_a_bomb_of_gigabytes_takes_no_memory(tmp_path):
    path = tmp_path / "model.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("policy.pth", "w", force_zip64=True) as member,
    ):
        for _ in range(3000):
            member.write(bytes(10**6))
    code = (
        "import resource, sys; from fire_rl.cli import main\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"assert main(['inspect', {str(path)!r}]) == 2\n"
        "assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 50_000"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_what_is_unexpected_is_one_line_too(tmp_path, monkeypatch, capsys):
    path = tmp_path / "model.pt"
    torch.save(STATE, path)
    monkeypatch.setattr("fire_rl.cli.inspect_file", lambda file: {}["x"])
    assert main(["inspect", str(path)]) == 2
    error = capsys.readouterr().err
    assert f"`{path}`: unexpected KeyError: 'x' (test_hostile_files.py:" in error


def test_the_trap_is_a_real_one(tmp_path):
    import pickle

    pickle.loads(pickle.dumps(Trap(tmp_path / "trap")))
    assert (tmp_path / "trap").is_dir()


@pytest.mark.parametrize("content", [3, [], {"state": 3}, {"state": {0: 5}}, {"param_groups": [1]}])
def test_an_optimizer_that_is_none(content, tmp_path):
    path = tmp_path / "model.zip"
    path.write_bytes(zipped({**POLICY, "policy.optimizer.pth": packed(content)}))
    assert fault_of(["inspect", path], tmp_path / "trap", named=path) == ""
