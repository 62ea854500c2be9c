"""Zips of older versions and of other libraries: worked on, or named as what they are."""

import io
import json
import zipfile

import pytest
import torch

from benchmarks.reliability.mutations import packed
from fire_rl.cli import main
from fire_rl.files.formats import read_model_file
from tests.files.test_cli import replaced, saved, saved_contrib


def run(*words):
    return main([str(word) for word in words])


@pytest.mark.parametrize("algo", ["dqn", "qrdqn"])
def test_an_optimizer_that_holds_the_target_too(algo, tmp_path, capsys):
    """Up to SB3 2.3.2; the target has no gradients, and is copied."""
    if algo == "qrdqn":
        pytest.importorskip("sb3_contrib", reason="needs sb3-contrib")
    model, path = (saved if algo == "dqn" else saved_contrib)(tmp_path, algo)
    online = model.policy.quantile_net if algo == "qrdqn" else model.policy.q_net
    optimizer = torch.optim.Adam(model.policy.parameters())
    for parameter in online.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    old, out = tmp_path / "old.zip", tmp_path / "new.zip"
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(old, "w") as new:
        for name in archive.namelist():
            is_optimizer = name == "policy.optimizer.pth"
            new.writestr(
                name, packed(optimizer.state_dict()) if is_optimizer else archive.read(name)
            )
    assert run("apply", old, "--out", out) == 0
    assert capsys.readouterr().err == ""
    tensors = read_model_file(out).tensors
    for name, tensor in tensors.items():
        if "_target" in name:
            assert torch.equal(tensor, tensors[name.replace("_target", "", 1)]), name


def renamed(path, out, change):
    """Write a zip with other names of its weights."""
    with zipfile.ZipFile(path) as archive:
        state = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
    changed = {change(name): tensor for name, tensor in state.items()}
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, packed(changed) if name == "policy.pth" else old.read(name))
    return out


@pytest.mark.parametrize(
    "change",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: name.replace("q_net.q_net", "q_net._orig_mod.q_net"),
        lambda name: name.replace("q_net.0", "q_net.0._orig_mod"),
    ],
)
def test_compiled_parts_are_read_as_the_uncompiled(change, tmp_path, capsys):
    _, path = saved(tmp_path)
    compiled = renamed(path, tmp_path / "compiled.zip", change)
    outs = [tmp_path / name for name in ("a.zip", "b.zip")]
    for source, out in zip((path, compiled), outs, strict=True):
        assert run("apply", source, "--out", out) == 0
    assert capsys.readouterr().err == ""
    assert run("inspect", compiled) == 0
    shown = capsys.readouterr().out
    assert "recognised_as: DQN" in shown
    assert "_orig_mod" not in shown
    plain, found = (read_model_file(out) for out in outs)
    assert list(found.tensors) == list(plain.tensors)
    assert list(found.content["policy.pth"]) == [*map(change, plain.content["policy.pth"])]
    for name, tensor in plain.tensors.items():
        assert torch.equal(found.tensors[name], tensor), name


def test_a_compiled_state_dict(tmp_path, capsys):
    path, out = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save({"_orig_mod.0.weight": torch.randn(3, 4), "1._orig_mod.weight": torch.eye(3)}, path)
    assert run("apply", path, "--out", out) == 0
    assert "_orig_mod" not in capsys.readouterr().out
    assert list(torch.load(out)) == ["_orig_mod.0.weight", "1._orig_mod.weight"]


def test_layers_that_actor_and_critic_share_before_sb3_1_8(tmp_path, capsys):
    _, path = saved(tmp_path, "ppo")
    old = tmp_path / "old.zip"
    with zipfile.ZipFile(path) as archive:
        state = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
    state = {"mlp_extractor.shared_net.0.weight": torch.ones(4, 4), **state}
    replaced(path, old, policy=packed(state))
    assert run("apply", old, "--out", tmp_path / "new.zip") == 2
    error = capsys.readouterr().err
    assert "SB3 before 1.8" in error
    assert "unzip MODEL policy.pth" in error
    assert "--trust --algo NAME" not in error
    assert run("inspect", old) == 0
    assert "SB3 before 1.8" in capsys.readouterr().err
    # The next step that the message names works.
    with zipfile.ZipFile(old) as archive:
        archive.extract("policy.pth", tmp_path)
    assert run("apply", tmp_path / "policy.pth", "--out", tmp_path / "new.pth") == 0


def test_ars(tmp_path, capsys):
    contrib = pytest.importorskip("sb3_contrib", reason="needs sb3-contrib")
    path = tmp_path / "ars.zip"
    for policy in ("LinearPolicy", "MlpPolicy"):
        contrib.ARS(policy, "CartPole-v1", n_delta=1).save(path)
        assert run("apply", path, "--out", tmp_path / "new.zip") == 2
        error = capsys.readouterr().err
        assert "ARS of sb3-contrib" in error
        assert "--algo" not in error


def test_stable_baselines_2(tmp_path, capsys):
    path = tmp_path / "sb2.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps({"gamma": 0.99}))
        archive.writestr("parameters", b"PK")
        archive.writestr("parameter_list", json.dumps(["model/pi_fc0/w:0"]))
    old = tmp_path / "sb2.pkl"
    old.write_bytes(b"\x80\x03}q\x00.")
    for file in (path, old):
        assert run("inspect", file) == 2
        error = capsys.readouterr().err
        assert "Stable Baselines 2" in error
        assert str(file) in error
