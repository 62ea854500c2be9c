"""What a report reads, who is who, and what may be compared with what."""

import json
import math
import shutil

import gymnasium
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from torch.utils.tensorboard import SummaryWriter

from fire_rl import FireCallback, PlasticityMetricsCallback
from fire_rl.reports.experiment import (
    atari_game,
    atari_scores,
    make_experiment,
    reward_threshold,
)
from fire_rl.reports.measures import score
from fire_rl.reports.runs import (
    arm_and_seed,
    by_rule,
    find_runs,
    read_rules,
    read_run,
)
from fire_rl.runs.readers import read_events, read_scalars
from tests.helpers.report_runs import constant, write_run


def only(source, target, *patterns):
    """Copy some files of a folder."""
    target.mkdir(parents=True)
    for pattern in patterns:
        for path in source.glob(pattern):
            shutil.copy(path, target)
    return target


def compare(root, **options):
    return make_experiment([read_run(path) for path in find_runs([root])], **options)


def test_tensorboard_and_csv_give_the_same_numbers(real_runs, tmp_path):
    source = real_runs / "fire" / "s0"
    events = read_run(only(source, tmp_path / "a" / "fire_1", "events*"))
    table = read_run(only(source, tmp_path / "b" / "fire_1", "progress.csv"))
    assert "time/fps" in table.scalars
    shared = {tag for tag in table.scalars if not tag.startswith("time/")} - {"train/n_updates"}
    assert {"rollout/ep_rew_mean", "plasticity/actor/dfi_per_sv"} <= shared <= set(events.scalars)
    for tag in shared:
        one, other = events.scalars[tag], table.scalars[tag]
        # Ours wait for the next row of the table; the others are written at the same steps.
        values = one.values
        if tag.startswith(("plasticity/", "live/", "intervention/", "trigger/")):
            values = values[one.steps.searchsorted(other.steps, side="right") - 1]
        else:
            assert one.steps.tolist() == other.steps.tolist(), tag
        assert values == pytest.approx(other.values, rel=1e-6, nan_ok=True), tag
    assert table.note == ""  # no row without a step: our callbacks dump none
    experiments = [make_experiment([run]) for run in (events, table)]
    assert {e.source for e in experiments} == {"rollout/ep_rew_mean"}
    scores = [score(e.runs[0], e, "mean") for e in experiments]
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)
    assert 8 < scores[0] < 200


def test_every_point_is_kept(tmp_path):
    values = np.random.default_rng(0).normal(size=10_500)
    with SummaryWriter(str(tmp_path / "PPO_1")) as writer:
        for step, value in enumerate(values):
            writer.add_scalar("rollout/ep_rew_mean", value, step)
    read = read_scalars(tmp_path / "PPO_1")[0]["rollout/ep_rew_mean"]
    assert len(read.steps) == 10_500
    assert read.values == pytest.approx(values, rel=1e-6)


@pytest.fixture(scope="module")
def plain_runs(tmp_path_factory):
    """What SB3 and our callbacks leave without train.py: fire_1, fire_2, none_1."""
    root = tmp_path_factory.mktemp("plain")
    for name, seed in (("fire", 0), ("fire", 1), ("none", 0)):
        model = PPO(
            "MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, n_epochs=1, seed=seed,
            policy_kwargs={"net_arch": [8]}, tensorboard_log=str(root), device="cpu",
        )  # fmt: skip
        metrics = PlasticityMetricsCallback(every=64, probe_size=32)
        callbacks = [FireCallback(at=128), metrics] if name == "fire" else [metrics]
        model.learn(256, callback=callbacks, tb_log_name=name)
    return root


def test_runs_of_plain_sb3(plain_runs):
    experiment = compare(plain_runs)
    found = sorted((run.arm, run.seed) for run in experiment.runs)
    assert found == [("fire", 1), ("fire", 2), ("none", 1)]
    assert experiment.control == "none"
    # The control has no events and so no episodes.csv: what all of them have is compared.
    assert experiment.source == "rollout/ep_rew_mean"
    assert experiment.games == ()
    assert "not recorded" in experiment.about_target
    fire = experiment.of("fire")[0]
    assert [event["num_timesteps"] for event in fire.events] == [128]
    assert fire.returns["episodes.csv"].steps[-1] <= 256
    assert {"plasticity/actor/dfi", "plasticity/critic/dormant_ratio"} <= set(fire.scalars)


def test_monitors_of_environments_side_by_side(tmp_path):
    env = make_vec_env("CartPole-v1", 2, seed=0, monitor_dir=str(tmp_path / "fire_1"))
    env.reset()
    done = 0
    for _ in range(100):
        done += env.step([0, 1])[2].sum()
    env.close()
    run = read_run(tmp_path / "fire_1")
    assert (run.arm, run.seed, run.env) == ("fire", 1, "CartPole-v1")
    returns = run.returns["monitor.csv"]
    assert len(returns.steps) == done > 10
    assert 150 < returns.steps[-1] <= 200  # steps of both
    assert compare(tmp_path).source == "monitor.csv"


@pytest.mark.parametrize(
    ("path", "config", "expected"),
    [
        ("runs/fire/s3", {}, ("fire", 3)),
        ("runs/fire/seed_3", {}, ("fire", 3)),
        ("runs/s3/fire", {"seed": 7}, ("fire", 3)),
        ("runs/PPO_12", {}, ("PPO", 12)),
        ("runs/fire_lr3_s4", {}, ("fire_lr3", 4)),
        ("runs/mine", {}, ("mine", 0)),
        ("runs/mine", {"seed": 5}, ("none", 5)),
        ("runs/x_1", {"seed": 5, "intervention": {"name": "fire"}}, ("fire", 5)),
        ("runs/mine", {"intervention": [{"name": "redo"}, {"name": "fire"}]}, ("redo+fire", 0)),
        ("runs/mine", {"intervention": {"name": "a"}, "branch": {"arm": "half"}}, ("half", 0)),
    ],
)
def test_arms_and_seeds(tmp_path, path, config, expected):
    assert arm_and_seed(tmp_path / path, config, ()) == expected


def test_a_user_may_say_it(tmp_path):
    paths = [tmp_path / "lr_1e-4" / "s2"]
    rules = read_rules(["slow=lr_1e-4/s*", " all = *"], "--arm", paths)
    assert rules == [("slow", "lr_1e-4/s*"), ("all", "*")]
    assert arm_and_seed(tmp_path / "lr_1e-4" / "s2", {}, rules) == ("slow", 2)
    assert arm_and_seed(tmp_path / "lr_1e-3" / "s2", {}, rules) == ("all", 2)
    assert by_rule(tmp_path / "xlr_1e-4" / "s2", rules[:1]) is None
    with pytest.raises(ValueError, match=r"`--arm` must be NAME=GLOB.* got 'slow'"):
        read_rules(["slow"], "--arm", paths)
    with pytest.raises(ValueError, match=r"`--arm slow=lr_1e-4/s\*` matches none"):
        read_rules(["slow=lr_1e-4/s*"], "--arm", [tmp_path / "fire"])


def test_trunks_and_checkpoints_are_no_runs(tmp_path):
    for name in ("trunk", "none", "fire"):
        write_run(tmp_path / "s0" / name, constant((1000, 5.0)))
    write_run(tmp_path / "s0" / "none" / "checkpoints" / "500", constant((1000, 5.0)))
    assert [path.name for path in find_runs([tmp_path])] == ["fire", "none"]
    assert len(find_runs([tmp_path, tmp_path / "s0" / "fire"])) == 2
    shutil.rmtree(tmp_path / "s0" / "none")
    shutil.rmtree(tmp_path / "s0" / "fire")
    with pytest.raises(ValueError, match="holds trunks only"):
        find_runs([tmp_path])


def test_folders_without_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*elsewhere"):
        find_runs([tmp_path / "elsewhere"])
    with pytest.raises(ValueError, match=r"holds no run.*there is nothing\."):
        find_runs([tmp_path])
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"holds no run.*there is notes\.txt"):
        find_runs([tmp_path])
    with pytest.raises(ValueError, match="is a file; give the run folder"):
        find_runs([tmp_path / "notes.txt"])
    (tmp_path / "progress.csv").write_text("")
    with pytest.raises(ValueError, match="no measure of the return in common"):
        compare(tmp_path)


def test_mixed_environments_are_refused_by_name(tmp_path):
    write_run(tmp_path / "none" / "s0", constant((1000, 5.0)), env="CartPole-v1")
    write_run(tmp_path / "fire" / "s0", constant((1000, 5.0)), env="Acrobot-v1")
    with pytest.raises(ValueError, match=r"different environments") as error:
        compare(tmp_path)
    assert "Acrobot-v1: fire/s0" in str(error.value)
    assert "CartPole-v1: none/s0" in str(error.value)


@pytest.mark.parametrize(
    "change", [{"tasks": {"change": "offset", "every": 500}}, {"env_options": {"g": 1}}]
)
def test_so_are_other_tasks_and_options(tmp_path, change):
    tasks = {"change": "permutation", "every": 500}
    write_run(tmp_path / "none" / "s0", constant((1000, 5.0)), tasks=tasks)
    write_run(tmp_path / "none" / "s1", constant((1000, 5.0)), tasks={**tasks, "seed": 1}, seed=1)
    assert len(compare(tmp_path).runs) == 2
    write_run(tmp_path / "fire" / "s0", constant((1000, 5.0)), **{"tasks": tasks, **change})
    with pytest.raises(ValueError, match="different environments"):
        compare(tmp_path)


def test_atari_games_are_compared_together(tmp_path):
    for arm in ("none", "fire"):
        for game in ("Breakout", "Pong"):
            episodes = constant((1000, 5.0))
            write_run(tmp_path / arm / game / "s0", episodes, env=f"ALE/{game}-v5")
    paths = find_runs([tmp_path])
    rules = [("fire", "fire/*"), ("none", "none/*")]
    experiment = make_experiment([read_run(path, rules) for path in paths])
    assert experiment.games == ("ALE/Breakout-v5", "ALE/Pong-v5")
    assert experiment.human
    some = [read_run(path, rules) for path in paths if "none/Pong" not in path.as_posix()]
    with pytest.raises(
        ValueError, match="Every arm needs runs of every game: ALE/Pong-v5 lacks none"
    ):
        make_experiment(some)
    write_run(tmp_path / "other" / "s0", constant((1000, 5.0)))
    with pytest.raises(ValueError, match=r"not recorded; say it with --env GAME=GLOB: other/s0"):
        make_experiment([read_run(path, rules) for path in find_runs([tmp_path])])
    envs = [("ALE/Asterix-v5", "other/s0")]
    assert read_run(tmp_path / "other" / "s0", (), envs).env == "ALE/Asterix-v5"


def test_runs_of_other_lengths(tmp_path):
    write_run(tmp_path / "none" / "s0", constant((1000, 5.0)))
    write_run(tmp_path / "none" / "s1", constant((980, 5.0)))
    assert compare(tmp_path).end == 980  # the last episode ends somewhere
    write_run(tmp_path / "none" / "s2", constant((500, 5.0)))
    with pytest.raises(ValueError, match=r"same length.*--until 500") as error:
        compare(tmp_path)
    assert "500 steps: s2" in str(error.value)
    assert compare(tmp_path, until=400).end == 400
    with pytest.raises(ValueError, match="at least 600 steps long"):
        compare(tmp_path, until=600)
    (tmp_path / "none" / "s2" / "result.json").write_text('{"num_timesteps": 990}')
    assert compare(tmp_path).end == 980


def test_a_run_counts_once(tmp_path):
    write_run(tmp_path / "a" / "fire" / "s0", constant((1000, 5.0)))
    write_run(tmp_path / "b" / "fire" / "s0", constant((1000, 5.0)))
    with pytest.raises(ValueError, match=r"'fire' has seed 0 2 times.*a/fire/s0.*b/fire/s0"):
        compare(tmp_path)


def test_an_arm_is_one_method(tmp_path):
    fire = {"name": "fire", "strength": 1.0}
    write_run(tmp_path / "fire" / "s0", constant((1000, 5.0)), intervention=fire)
    write_run(tmp_path / "fire" / "s1", constant((1000, 5.0)), intervention=fire, device="cpu")
    assert len(compare(tmp_path).runs) == 2
    half = {"name": "fire", "strength": 0.5}
    write_run(tmp_path / "fire" / "s2", constant((1000, 5.0)), intervention=half)
    with pytest.raises(ValueError, match=r"`intervention.strength` is 1.0 and 0.5 in s1 and s2"):
        compare(tmp_path)


def test_the_returns_that_all_runs_have_are_compared(tmp_path):
    write_run(tmp_path / "none" / "s0", constant((1000, 5.0)))
    table = "time/total_timesteps,rollout/ep_rew_mean\n500,4\n1000,5\n"
    (tmp_path / "none" / "s0" / "progress.csv").write_text(table)
    (tmp_path / "none" / "s1").mkdir()
    (tmp_path / "none" / "s1" / "progress.csv").write_text(table)
    assert compare(tmp_path).source == "rollout/ep_rew_mean"
    (tmp_path / "none" / "s1" / "progress.csv").write_text(table.replace("rollout", "train"))
    with pytest.raises(ValueError, match="in common") as error:
        compare(tmp_path)
    assert "no return at all: s1" in str(error.value)


def test_the_control(tmp_path):
    for arm in ("baseline", "fire", "none"):
        write_run(tmp_path / arm / "s0", constant((1000, 5.0)))
    assert compare(tmp_path).arms == ("none", "baseline", "fire")
    assert compare(tmp_path, control="fire").arms == ("fire", "none", "baseline")
    with pytest.raises(ValueError, match=r"`--control` must be one of.*Did you mean 'fire'"):
        compare(tmp_path, control="fir")


def test_what_counts_as_solved(tmp_path):
    path = write_run(tmp_path / "fire" / "s0", constant((1000, 5.0)), env="CartPole-v1")
    run = read_run(path)
    known = make_experiment([run])
    assert (known.target, known.floor) == (gymnasium.spec("CartPole-v1").reward_threshold, 0)
    given = make_experiment([run], target=-100, floor=-500)
    assert (given.target, given.floor) == (-100, -500)
    with pytest.raises(ValueError, match=r"must lie above --floor, 0, got -100"):
        make_experiment([run], target=-100)
    acrobot = write_run(tmp_path / "a" / "s0", constant((1000, 5.0)), env="Acrobot-v1")
    about = make_experiment([read_run(acrobot)])
    assert about.target is None
    assert "does not lie above the floor 0; give --floor" in about.about_target


def test_a_log_that_was_cut_off_and_other_lines(tmp_path):
    report = {"num_timesteps": 8, "networks": {}, "options": {"seed": None}, "seconds": None}
    lines = [report, {"recovery": "fire", "step": 8}, {**report, "dry_run": True}]
    text = "\n".join(map(json.dumps, lines)) + '\n{"num_timesteps": 9, "netw'
    (tmp_path / "interventions.jsonl").write_text(text)
    (event,) = read_events(tmp_path)
    assert event["options"] == {"seed": None}
    assert math.isnan(event["seconds"])


def test_a_config_that_is_no_mapping(tmp_path):
    path = write_run(tmp_path / "run", constant((1000, 5.0)), seed=0)
    for text in ("- a\n", "a: [\n"):
        (path / "config.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"config\.yaml"):
            read_run(path)


@pytest.mark.parametrize(
    ("env", "game"),
    [
        ("ALE/SpaceInvaders-v5", "SpaceInvaders"),
        ("BreakoutNoFrameskip-v4", "Breakout"),
        ("PongDeterministic-v4", "Pong"),
        ("Pong-ramNoFrameskip-v4", "Pong"),
        ("MinAtar/Breakout-v1", None),
        ("CartPole-v1", None),
        (None, None),
    ],
)
def test_atari_games_by_name(env, game):
    assert atari_game(env) == game


def test_human_scores():
    scores = atari_scores()
    assert len(scores) == 57
    assert scores["Breakout"] == (1.7, 30.5)
    assert all(human > random for random, human in scores.values())
    assert reward_threshold("CartPole-v1") == 475
    assert reward_threshold("NoSuch-v0") is None
    assert reward_threshold("os:NoSuch-v0") is None
