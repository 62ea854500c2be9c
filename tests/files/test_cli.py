"""`fire-rl` on real files: what SB3 would have made of them, and nothing of a stranger's is run."""

import base64
import importlib.util
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_vec_env
from torch import nn

from fire_rl import FIRE, apply_intervention, fire_
from fire_rl.cli import main
from fire_rl.files.formats import read_model_file, same_content
from tests.helpers.models import ALGORITHMS, RandomEnv, TinyExtractor, make_model

HAS_CONTRIB = importlib.util.find_spec("sb3_contrib") is not None
needs_contrib = pytest.mark.skipif(
    not HAS_CONTRIB, reason="needs sb3-contrib (https://pypi.org/project/sb3-contrib)"
)
CONTRIB = {
    "qrdqn": "QRDQN", "tqc": "TQC", "crossq": "CrossQ", "trpo": "TRPO",
    "ppo_mask": "MaskablePPO", "ppo_lstm": "RecurrentPPO",
}  # fmt: skip


def saved(folder, algo="dqn", observation="mlp", **options):
    model = make_model(algo, observation, tiny_images=False, **options)
    model.learn(24)
    path = folder / "model.zip"
    model.save(path)
    return model, path


def saved_contrib(folder, algo):
    import sb3_contrib

    discrete = algo in ("qrdqn", "ppo_mask")
    env = make_vec_env(RandomEnv, 2, env_kwargs={"observation": "mlp", "discrete": discrete})
    policy = "MlpLstmPolicy" if algo == "ppo_lstm" else "MlpPolicy"
    kwargs = {"net_arch": [16, 12]}
    settings = {"seed": 0, "device": "cpu"}
    if algo in ("qrdqn", "tqc", "crossq"):
        settings |= {"buffer_size": 400, "learning_starts": 8, "batch_size": 8, "train_freq": 1}
    else:
        settings |= {"n_steps": 8, "batch_size": 8}
    if algo == "ppo_lstm":
        kwargs["lstm_hidden_size"] = 8
    kind = getattr(sb3_contrib, CONTRIB[algo])
    model = kind(policy, env, policy_kwargs=kwargs, **settings)
    learning = {"use_masking": False} if algo == "ppo_mask" else {}
    model.learn(24, **learning)
    path = folder / "model.zip"
    model.save(path)
    return model, path


def run(*arguments):
    return main([str(argument) for argument in arguments])


def check_equals_live_surgery(model, path, out, intervention, **options):
    """The file holds the tensors that the loaded model has after the same intervention."""
    live = type(model).load(path, device="cpu")
    apply_intervention(live, intervention, **options)
    expected = path.with_name("expected.zip")
    live.save(expected)
    expected, found, before = map(read_model_file, (expected, out, path))
    assert list(expected.content) == list(found.content)
    for member, content in expected.content.items():
        assert same_content(content, found.content[member]), member
    assert not same_content(before.content["policy.pth"], found.content["policy.pth"])


def check_rest_is_untouched(path, out):
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out) as new:
        assert old.namelist() == new.namelist()
        for name in ("data", "system_info.txt", "_stable_baselines3_version"):
            assert old.read(name) == new.read(name)


@pytest.mark.parametrize("observation", ["mlp", "cnn"])
@pytest.mark.parametrize("algo", list(ALGORITHMS))
def test_apply_is_what_apply_intervention_does_to_the_loaded_model(algo, observation, tmp_path):
    model, path = saved(tmp_path, algo, observation)
    out = tmp_path / "new.zip"
    assert run("apply", path, "--out", out) == 0
    check_equals_live_surgery(model, path, out, FIRE())
    check_rest_is_untouched(path, out)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("algo", ["ppo", "sac", "td3"])
def test_shared_and_separate_extractors(algo, shared, tmp_path):
    model, path = saved(tmp_path, algo, "dict", policy_kwargs={"share_features_extractor": shared})
    out = tmp_path / "new.zip"
    assert run("apply", path, "--out", out) == 0
    check_equals_live_surgery(model, path, out, FIRE())


def test_options_reach_the_intervention(tmp_path, capsys):
    model, path = saved(tmp_path, "sac")
    out = tmp_path / "new.zip"
    flags = (
        "--method exact --strength 0.5 --scale frobenius_optimal --head keep --networks critic "
        "--exclude critic.qf1.* --target same --optimizer-state all --biases zero"
    )
    assert run("apply", path, "--out", out, *flags.split()) == 0
    check_equals_live_surgery(
        model, path, out,
        FIRE(
            method="exact", strength=0.5, scale="frobenius_optimal", head="keep",
            networks=("critic",), exclude=("critic.qf1.*",), target="same", optimizer_state="all",
            biases="zero",
        ),
    )  # fmt: skip
    # The whole pytorch file of the actor's optimizer has stayed, byte for byte.
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out) as new:
        assert old.read("actor.optimizer.pth") == new.read("actor.optimizer.pth")
        assert old.read("critic.optimizer.pth") != new.read("critic.optimizer.pth")
    assert "critic.optimizer.pth, policy.pth" in capsys.readouterr().out


@pytest.mark.parametrize("ent_coef", ["auto_0.3", 0.1])
def test_the_published_sac_preset_resets_a_learned_temperature(ent_coef, tmp_path):
    model, path = saved(tmp_path, "sac", ent_coef=ent_coef)
    out = tmp_path / "new.zip"
    assert run("apply", path, "--out", out, "--preset", "paper_sac") == 0
    check_equals_live_surgery(model, path, out, FIRE.paper_sac())


def test_gsde_and_other_optimizers(tmp_path):
    for algo, options in (
        ("sac", {"use_sde": True}),
        ("ppo", {"use_sde": True}),
        ("ppo", {"policy_kwargs": {"optimizer_class": torch.optim.Adagrad}}),
        ("a2c", {"use_rms_prop": False}),
    ):
        model, path = saved(tmp_path, algo, **options)
        out = tmp_path / "new.zip"
        assert run("apply", path, "--out", out, "--force") == 0
        check_equals_live_surgery(model, path, out, FIRE())


def test_the_weights_the_run_began_with_from_another_zip(tmp_path):
    model = make_model("dqn", "cnn", tiny_images=False)
    first = tmp_path / "first.zip"
    model.save(first)
    initial = {name: tensor.clone() for name, tensor in model.policy.named_parameters()}
    model.learn(24)
    path, out = tmp_path / "model.zip", tmp_path / "new.zip"
    model.save(path)
    flags = ("--preset", "paper_dqn", "--initial", first)
    assert run("apply", path, "--out", out, *flags) == 0
    check_equals_live_surgery(model, path, out, FIRE.paper_dqn(), initial=initial)


# RecurrentPPO has LSTMs, of which the live surgery warns.
@pytest.mark.filterwarnings("ignore:.*are left as they are:UserWarning")
@needs_contrib
@pytest.mark.parametrize("algo", list(CONTRIB))
def test_sb3_contrib(algo, tmp_path):
    model, path = saved_contrib(tmp_path, algo)
    out = tmp_path / "new.zip"
    assert run("inspect", path) == 0
    assert run("apply", path, "--out", out) == 0
    check_equals_live_surgery(model, path, out, FIRE())
    if algo == "ppo_lstm":
        assert run("apply", path, "--out", out, "--recurrent", "project", "--force") == 0
        check_equals_live_surgery(model, path, out, FIRE(recurrent="project"))


def custom_model(folder):
    model = make_model("dqn", "cnn", policy_kwargs={"features_extractor_class": TinyExtractor})
    model.learn(24)
    path = folder / "model.zip"
    model.save(path)
    return model, path


def test_a_custom_policy_needs_trust(tmp_path, capsys):
    model, path = custom_model(tmp_path)
    out = tmp_path / "new.zip"
    assert run("apply", path, "--out", out) == 2
    error = capsys.readouterr().err
    assert "features_extractor.net.0.weight" in error
    assert "--trust --algo NAME" in error
    assert run("apply", path, "--out", out, "--trust") == 2
    assert "needs --algo" in capsys.readouterr().err
    assert run("apply", path, "--out", out, "--trust", "--algo", "dqnn") == 2
    assert "Did you mean 'dqn'" in capsys.readouterr().err
    assert not out.exists()
    assert run("apply", path, "--out", out, "--trust", "--algo", "dqn") == 0
    assert "runs code" in capsys.readouterr().err
    check_equals_live_surgery(model, path, out, FIRE())
    check_rest_is_untouched(path, out)


def test_fresh_weights_need_trust(tmp_path, capsys):
    model, path = saved(tmp_path, "sac")
    out = tmp_path / "new.zip"
    flags = ("--hidden", "reset", "--seed", "3")
    assert run("apply", path, "--out", out, *flags) == 2
    assert "--source initial --initial" in capsys.readouterr().err
    flags += ("--trust", "--algo", "stable_baselines3:SAC")
    assert run("apply", path, "--out", out, *flags) == 0
    check_equals_live_surgery(model, path, out, FIRE(hidden="reset"), seed=3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--vecnormalize", "reset"], "vecnormalize.pkl"),
        (["--replay-buffer", "clear"], "no zip holds a replay buffer"),
        (["--log-std", "reset"], "--log-std reset"),
        (["--norm-layers", "reset"], "--norm-layers reset"),
        (["--preset", "paper_dqn"], "--initial FILE"),
        (["--preset", "paper_dqm"], "Did you mean 'paper_dqn'"),
        (["--hidden", "projct"], "Did you mean 'project'"),
        (["--strength", "2"], "at most 1"),
        (["--networks", "actor"], "roles of this model (critic)"),
        (["--include", "q_nett.*"], "matches no layer"),
        (["--algo", "dqn"], "--trust"),
    ],
)
def test_options_that_cannot_hold_are_refused_by_name(flags, message, tmp_path, capsys):
    _, path = saved(tmp_path)
    assert run("apply", path, "--out", tmp_path / "new.zip", *flags) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert os.listdir(tmp_path) == ["model.zip"]


def test_nothing_is_overwritten(tmp_path, capsys):
    _, path = saved(tmp_path)
    before = path.read_bytes()
    other = tmp_path / "other.zip"
    other.write_bytes(b"precious")
    (tmp_path / "link.zip").symlink_to(path)
    for out in (path, tmp_path / "link.zip", tmp_path / "." / "model.zip"):
        assert run("apply", path, "--out", out, "--force") == 2
        assert "input itself" in capsys.readouterr().err
    for out, message in (
        (other, "--force"),
        (tmp_path / "new.pt", "suffix"),
        (tmp_path / "no" / "new.zip", "folder"),
    ):
        assert run("apply", path, "--out", out) == 2
        assert message in capsys.readouterr().err
    assert run("apply", path) == 2
    assert "--dry-run" in capsys.readouterr().err
    assert run("apply", path, "--dry-run") == 0
    assert "Nothing was written" in capsys.readouterr().out
    assert path.read_bytes() == before
    assert other.read_bytes() == b"precious"
    assert run("apply", path, "--out", other, "--force") == 0
    assert read_model_file(other).format == "sb3"
    assert sorted(os.listdir(tmp_path)) == ["link.zip", "model.zip", "other.zip"]


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch, capsys):
    _, path = saved(tmp_path)

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    assert run("apply", path, "--out", tmp_path / "new.zip") == 2
    assert "disk full" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["model.zip"]


class Evil:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def replaced(path, out, **members):
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            new.writestr(info, members.get(info.filename.partition(".")[0], old.read(info)))


def test_a_strangers_zip_runs_nothing(tmp_path, capsys):
    _, path = saved(tmp_path)
    trap, evil, out = tmp_path / "trap", tmp_path / "evil.zip", tmp_path / "new.zip"
    with zipfile.ZipFile(path) as archive:
        data = json.loads(archive.read("data"))
    pickled = base64.b64encode(pickle.dumps(Evil(trap))).decode()
    for value in data.values():
        if isinstance(value, dict) and ":serialized:" in value:
            value[":serialized:"] = pickled
    replaced(path, evil, data=json.dumps(data))
    assert run("inspect", evil) == 0
    assert run("apply", evil, "--out", out) == 0
    assert not trap.exists()
    check_rest_is_untouched(evil, out)
    with pytest.raises(Exception, match=r"."):  # the trap is a real one: SB3 walks into it
        DQN.load(evil)
    assert trap.exists()
    trap.rmdir()
    capsys.readouterr()

    for content in (Evil(trap), {"q_net.q_net.0.weight": Evil(trap)}):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        replaced(path, evil, policy=buffer.getvalue())
        for command in (["inspect", evil], ["apply", evil, "--out", tmp_path / "n.zip"]):
            assert run(*command) == 2
            assert "nothing in it was run" in capsys.readouterr().err
        bare = tmp_path / "evil.pt"
        bare.write_bytes(buffer.getvalue())
        assert run("inspect", bare) == 2
        assert not trap.exists()


def test_names_in_a_strangers_file_do_not_steer_the_terminal(tmp_path, capsys):
    path = tmp_path / "model.pt"
    torch.save({"\x1b[2Jlayer.weight": torch.ones(2, 2), "\x1b]0;x.y": torch.ones(1)}, path)
    assert run("inspect", path) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.zip", b"no zip", "no zip file"),
        ("model.pt", b"", "no torch file"),
        ("model.safetensors", b"12", "no safetensors file"),
        ("model", b"x", "no torch file"),
    ],
)
def test_damaged_files(name, content, message, tmp_path, capsys):
    path = tmp_path / name
    path.write_bytes(content)
    assert run("inspect", path) == 2
    assert message in capsys.readouterr().err


def test_missing_and_strange_files(tmp_path, capsys):
    saved(tmp_path)
    assert run("inspect", tmp_path / "model") == 2  # SB3's users leave .zip away
    assert "model.zip" in capsys.readouterr().err
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("cat.jpg", b"x")
    assert run("inspect", tmp_path / "photos.zip") == 2
    assert "no `policy.pth`" in capsys.readouterr().err
    torch.save([1, 2], tmp_path / "numbers.pt")
    assert run("inspect", tmp_path / "numbers.pt") == 2
    assert "state dict" in capsys.readouterr().err
    deep = {"a." * 3000 + "weight": torch.ones(2, 2)}
    torch.save(deep, tmp_path / "deep.pt")
    assert run("inspect", tmp_path / "deep.pt") == 2
    assert "deep" in capsys.readouterr().err


def test_inspect_tells_roles_targets_and_optimizers_apart(tmp_path, capsys):
    _, path = saved(tmp_path, "sac")
    assert run("inspect", path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["recognised_as"] == "SAC or TQC"
    assert found["num_timesteps"] == 24
    roles = {layer["name"]: layer["role"] for layer in found["layers"]}
    assert roles["actor.mu"] == "actor"
    assert roles["critic.qf0.0"] == "critic"
    assert roles["critic_target.qf1.4"] == "target"
    heads = {layer["name"] for layer in found["layers"] if layer["is_head"]}
    assert heads == {"actor.mu", "actor.log_std", "critic.qf0.4", "critic.qf1.4"}
    assert set(found["optimizers"]) == {
        "actor.optimizer.pth", "critic.optimizer.pth", "ent_coef_optimizer.pth",
    }  # fmt: skip
    assert found["optimizers"]["actor.optimizer.pth"]["parameters_with_state"] == 8
    assert run("inspect", path) == 0
    out = capsys.readouterr().out
    assert "critic_target.qf1.4  target" in out
    assert "Optimizer actor.optimizer.pth: state of 8 parameters." in out


def test_the_numbers_of_inspect_agree_with_svd_and_the_verdicts_with_their_rules(tmp_path, capsys):
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(8, 4))
    dead = torch.randn(6, 6)
    dead[2] = 0
    weights = {
        "isometric": left * (8 / 4) ** 0.5,
        "stretched": left * 9,
        "low": torch.outer(torch.ones(6), torch.ones(6)) / 20,
        "dead": dead,
        "zero": torch.zeros(3, 3),
        "broken": torch.full((2, 2), torch.nan),
        "near": left * 2**0.5 * 1.1,
        "ordinary": left,
        "conv": torch.randn(4, 3, 2, 2),
    }
    path = tmp_path / "model.pth"
    torch.save({f"{name}.weight": weight for name, weight in weights.items()}, path)
    assert run("inspect", path, "--json") == 0
    layers = {row["name"]: row for row in json.loads(capsys.readouterr().out)["layers"]}
    verdicts = {name: row["verdict"] for name, row in layers.items()}
    assert verdicts == {
        "isometric": "isometric", "stretched": "above scale", "low": "low rank",
        "dead": "dead rows", "zero": "zero", "broken": "broken", "near": "near",
        "ordinary": "off scale", "conv": verdicts["conv"],
    }  # fmt: skip
    assert layers["dead"]["zero_rows"] == 1
    assert layers["broken"]["dfi_per_sv"] is None
    assert layers["low"]["effective_rank"] == pytest.approx(1, abs=1e-3)
    taps = weights["conv"].permute(2, 3, 0, 1).reshape(4, 4, 3)
    values = torch.linalg.svdvals(taps.double())
    assert layers["conv"]["largest"] == pytest.approx(float(values.max()), rel=1e-5)
    assert layers["conv"]["smallest"] == pytest.approx(float(values.min()), rel=1e-4)
    scale = (4 / 3) ** 0.5 / 4
    dfi = float(((values / scale).square() - 1).square().mean())
    assert layers["conv"]["dfi_per_sv"] == pytest.approx(dfi, rel=1e-4)
    assert layers["conv"]["norm"] == pytest.approx(float(weights["conv"].norm()), rel=1e-5)


def plain_network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8, bias=False),
        nn.LayerNorm(8), nn.BatchNorm1d(8), nn.Linear(8, 3),
    )  # fmt: skip


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_bare_state_dict_is_what_fire_does_to_the_module(suffix, tmp_path):
    network, (path, out) = plain_network(), (tmp_path / f"{n}{suffix}" for n in ("a", "b"))
    if suffix == ".safetensors":
        safetensors = pytest.importorskip("safetensors.torch", reason="needs safetensors")
        safetensors.save_file(network.state_dict(), path, metadata={"format": "pt"})
    else:
        torch.save(network.state_dict(), path)
    assert run("apply", path, "--out", out, "--strength", "0.7", "--exclude", "3") == 0
    fire_(network, strength=0.7, exclude=("3",))
    expected, found = network.state_dict(), read_model_file(out)
    assert list(expected) == list(found.tensors) or suffix == ".safetensors"
    for name, tensor in expected.items():
        assert torch.equal(found.tensors[name], tensor), name
    if suffix == ".safetensors":
        assert found.metadata == {"format": "pt"}


def test_what_is_no_layer_is_kept_and_listed(tmp_path, capsys):
    module = nn.ModuleDict(
        {
            "token_embedding": nn.Embedding(7, 4),
            "first": nn.Conv2d(1, 4, 3),
            "depthwise": nn.Conv2d(4, 4, 3, groups=4),
            "lstm": nn.LSTM(4, 4),
            "attention": nn.MultiheadAttention(4, 2),
            "head": nn.Linear(4, 2),
        }
    )
    path, out = tmp_path / "a.pt", tmp_path / "b.pt"
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    torch.save({"epoch": 3, "model": module.state_dict()}, path)  # a checkpoint
    assert run("apply", path, "--out", out, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    changed = {layer["name"] for layer in found["layers"]}
    assert changed == {
        "model.first", "model.attention.in_proj", "model.attention.out_proj", "model.head",
    }  # fmt: skip
    weights = {f"{layer}.weight" for layer in changed} | {"model.attention.in_proj_weight"}
    assert set(found["kept"]) == {
        "model.token_embedding.weight", "model.depthwise.weight", "model.lstm.weight_ih_l0",
        "model.lstm.weight_hh_l0",
    }  # fmt: skip
    after = torch.load(out, weights_only=True)
    assert after["epoch"] == 3
    for name, tensor in before.items():
        same = torch.equal(after["model"][name], tensor)
        assert same == (f"model.{name}" not in weights), name
    for flags in (["--networks", "actor"], ["--optimizer-state", "all"], ["--trust"]):
        assert run("apply", path, "--out", tmp_path / "c.pt", *flags) == 2
        assert flags[0] in capsys.readouterr().err


class Tiny(nn.Module):
    """A language model with fused projections and a tied head, after GPT-2's names."""

    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(11, 4)
        self.c_attn = nn.Linear(4, 12)
        self.lm_head = nn.Linear(4, 11, bias=False)
        self.lm_head.weight = self.wte.weight


@pytest.mark.parametrize(
    "flags", [[], ["--tied", "keep"], ["--split", "c_attn=project,project,keep"]]
)
def test_the_published_gpt_preset(flags, tmp_path):
    torch.manual_seed(0)
    network, path, out = Tiny(), tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save(network.state_dict(), path)
    assert run("apply", path, "--out", out, "--preset", "paper_gpt", *flags) == 0
    options = {"tied": "keep"} if "--tied" in flags else {}
    if "--split" in flags:
        options = {"split": {"c_attn": ["project", "project", "keep"]}}
    fire_(network, preset="paper_gpt", **options)
    after = torch.load(out, weights_only=True)
    for name, tensor in network.state_dict().items():
        assert torch.equal(after[name], tensor), name
    assert after["wte.weight"].data_ptr() == after["lm_head.weight"].data_ptr()


def test_safetensors_is_optional(tmp_path, monkeypatch, capsys):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert run("inspect", path) == 2
    assert "pip install 'fire-rl[safetensors]'" in capsys.readouterr().err


def test_the_command_by_subprocess(tmp_path):
    _, path = saved(tmp_path)
    command = [sys.executable, "-m", "fire_rl.cli", "inspect", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path.cwd())
    assert result.returncode == 0, result.stderr
    assert "q_net.q_net.0" in result.stdout
