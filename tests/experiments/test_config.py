"""Configurations of runs: every fault at once, with the nearest name; YAML and flags."""

import re

import pytest

from experiments.config import RunConfig, dump_yaml, parse_config
from experiments.plain_yaml import ConfigError, read_yaml, set_value
from fire_rl import InterventionCallback, Threshold, make_schedule

MINIMAL = {"algo": "dqn", "env": "CartPole-v1"}


def faults_of(values):
    with pytest.raises(ConfigError) as caught:
        parse_config(values)
    return caught.value.faults


@pytest.mark.parametrize(
    ("given", "algo"),
    [("ppo_lstm", "recurrent_ppo"), ("ppo_mask", "maskable_ppo"), ("qrdqn", "qrdqn")],
)
def test_rl_zoo3s_names_of_algorithms(given, algo):
    assert parse_config({**MINIMAL, "algo": given}).algo == algo


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ars", r"`algo` 'ars' is not trained here\. .*without gradients"),
        ("recurent_ppo", r"is no algorithm here\. Did you mean 'recurrent_ppo'"),
        ("ppo_lst", r"is no algorithm here"),
    ],
)
def test_algorithms_that_are_not_here(given, message):
    (fault,) = faults_of({**MINIMAL, "algo": given})
    assert re.search(message, fault)


def test_all_faults_at_once():
    faults = faults_of(
        {
            "alg": "dqn",
            "env": "CartPole-v1",
            "n_timesteps": 100,
            "total_timesteps": "many",
            "seed": -1,
            "vec_env": "dumy",
            "normalize": 3,
            "intervention": {"name": "fyre"},
            "schedule": {"every": 0},
            "metrics": {"evry": 3},
            "eval": {"episodes": 0},
            "device": "gpu",
        }
    )
    for expected in (
        "`algo` is missing",
        "Did you mean 'algo'?",
        "`n_timesteps` is called `total_timesteps` here.",
        "`total_timesteps` must be a valid integer, got 'many'.",
        "`seed` must be greater than or equal to 0, got -1.",
        "`vec_env` must be 'dummy' or 'subproc', got 'dumy'.",
        "`normalize` must be true, false or a mapping",
        "Did you mean 'fire'?",
        "`every` must be a whole number of at least 1, got 0.",
        "`metrics.evry` is no known key. Did you mean 'every'?",
        "`eval.episodes` must be greater than or equal to 1, got 0.",
        "`device` must be 'auto', 'cpu' or 'cuda', got 'gpu'.",
    ):
        assert any(expected in fault for fault in faults), (expected, faults)
    assert len(faults) == 12


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"algo": "dqnn"}, "Did you mean 'dqn'"),
        ({"intervention": "fire"}, "`schedule` is missing"),
        ({"schedule": {"every": 5}}, "`intervention` is missing"),
        ({"intervention": {"name": "fire", "strenth": 1}, "schedule": {"every": 5}}, "'strength'"),
        ({"intervention": "fire", "schedule": {"evry": 5}}, "'every'"),
        ({"intervention": "fire", "schedule": {"at": [20, 10]}}, "ascending"),
        ({"intervention": 3, "schedule": {"at": 1}}, "`intervention` must be a name"),
        ({"agent": {"gama": 1, "lr": 2}}, "Did you mean 'gamma'"),
    ],
)
def test_bad_run_is_refused(values, message):
    assert any(message in fault for fault in faults_of({**MINIMAL, **values}))


def test_checks_of_others_are_collected_too(monkeypatch):
    def check(env_id, options, imports):
        raise ImportError(f"{env_id} needs a package")

    monkeypatch.setattr("envs.check_env", check)
    faults = faults_of({**MINIMAL, "seed": -1})
    assert "CartPole-v1 needs a package" in faults
    assert len(faults) == 2


def test_configuration_survives_its_yaml():
    values = {
        **MINIMAL,
        "env_options": {"frame_stack": 4, "sutton_barto_reward": True},
        "agent": {"learning_rate": "lin_1e-4", "policy_kwargs": {"net_arch": [8]}},
        "intervention": "fire",
        "schedule": {"fractions": [0.5]},
        "checkpoint": {"every": "1e3"},
        "metrics": None,
    }
    config = parse_config(values)
    assert config.frame_stack == 4
    assert config.env_options == {"sutton_barto_reward": True}
    assert config.intervention == {"name": "fire"}
    assert config.checkpoint.every == 1000
    assert parse_config(read_yaml(dump_yaml(config))) == config


def test_yaml_numbers_are_those_that_people_write():
    values = read_yaml("{a: 1e-3, b: 1e6, c: 1_000, d: 3E-4, e: 1.5e3, f: lin_1e-4, g: -2e0}")
    assert values == {
        "a": 1e-3,
        "b": 10**6,
        "c": 1000,
        "d": 3e-4,
        "e": 1500,
        "f": "lin_1e-4",
        "g": -2,
    }
    assert isinstance(values["b"], int)
    with pytest.raises(ConfigError, match="not YAML"):
        read_yaml("a: [1, 2")
    with pytest.raises(ConfigError, match="not YAML"):
        read_yaml("a: !!python/object/apply:os.system ['true']")


def test_set_value():
    values = {"agent": {"gamma": 0.9}, "intervention": "fire", "eval": None}
    for assignment in (
        "agent.gamma=0.98",
        "agent.policy_kwargs.net_arch=[8, 8]",
        "intervention.strength=0.5",
        "eval.every=1e3",
        "seed=7",
    ):
        set_value(values, assignment)
    assert values == {
        "agent": {"gamma": 0.98, "policy_kwargs": {"net_arch": [8, 8]}},
        "intervention": {"name": "fire", "strength": 0.5},
        "eval": {"every": 1000},
        "seed": 7,
    }
    for bad in ("agent.gamma", "=3", "agent.=3"):
        with pytest.raises(ConfigError, match=r"--set must be section\.key=value"):
            set_value(values, bad)


def test_config_is_frozen_and_has_the_zoo_defaults():
    config = RunConfig(**MINIMAL)
    assert (config.eval.every, config.eval.episodes) == (25_000, 5)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3


# --- schedules


def configuration(schedule):
    values = {"algo": "dqn", "env": "CartPole-v1", "intervention": "fire"}
    return parse_config({**values, "schedule": read_yaml(schedule)})


def test_a_threshold_is_made_from_yaml():
    text = "{metric: dormant_ratio, above: 0.3, every: 1e4, patience: 2, network: critic, stop: 1}"
    callback = InterventionCallback("fire", configuration(text).schedule)
    expected = Threshold("dormant_ratio", 0.3, None, 10_000, 2, 0, "critic", 1.0)
    assert callback.clock.schedule == expected
    assert make_schedule(configuration("{every: 5, at: null}").schedule) == make_schedule(
        {"every": 5}
    )


def test_all_faults_of_a_schedule_at_once():
    text = "{metric: dorment, above: 1, abov: 3, every: 0, patience: 0, cooldown: -1, at: 3,"
    with pytest.raises(ConfigError) as error:
        configuration(text + " network: actr, stop: 2}")
    for expected in ("'dormant_ratio'", "'above'", "`every`", "`patience`", "`cooldown`",
                     "`at` does not go", "'actor'", "`stop`"):  # fmt: skip
        assert any(expected in fault for fault in error.value.faults), expected
    assert len(error.value.faults) == 8
    for text, expected in (
        ("{metric: dormant_ratio, above: 30, every: 0}", "below 1 for dormant_ratio, got 30"),
        ("{metric: srank, every: 0}", "exactly one of `above` and `below`"),
        ("{metric: srank, above: 2, below: 1, every: 0}", "got both"),
    ):
        with pytest.raises(ConfigError) as error:
            configuration(text)
        assert any(expected in fault for fault in error.value.faults)
        assert len(error.value.faults) == 2


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"schedule": {"every": 2e5}}, "`schedule` {every: 200000.0} of 'fire' holds no event"),
        ({"schedule": {"every": 900}}, "`total_timesteps` 1,000, of which `stop` leaves 0.8"),
        ({"schedule": {"at": [1000]}}, "`schedule` {at: [1000]} of 'fire' holds no event within"),
        (
            {"intervention": [{"name": "reset", "schedule": {"at": 2000}}]},
            "`schedule` {at: 2000} of 'reset' holds no event within",
        ),
    ],
)
def test_a_run_is_not_labelled_with_what_never_happens(values, fault):
    given = {"algo": "ppo", "env": "CartPole-v1", "total_timesteps": 1000, "intervention": "fire"}
    with pytest.raises(ConfigError) as error:
        parse_config({**given, **values, "seed": -1})
    assert len(error.value.faults) == 2  # among all others
    assert any(fault in line for line in error.value.faults), error.value.faults


@pytest.mark.parametrize(
    "values",
    [
        {"schedule": {"every": 800}},
        {"schedule": {"at": [999, 5000]}},
        {"schedule": {"every": 5000}, "intervention": "none"},
        {"schedule": {"metric": "dfi", "above": 1, "every": 5000}},
        {"schedule": {"every": 5000}, "intervention": {"name": "fire", "unit": "gradient_updates"}},
        {"intervention": {"name": "fire", "preset": "paper_dqn"}},
    ],
)
def test_what_happens_or_may_happen_is_accepted(values):
    given = {"algo": "ppo", "env": "CartPole-v1", "total_timesteps": 1000, "intervention": "fire"}
    assert parse_config({**given, **values})


# --- at the door


CARTPOLE = ["--algo", "ppo", "--env", "CartPole-v1", "-n", "64", "--set", "eval=null"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["agent.policy_kwargs.optimizer_kwargs.foo=1"], "unexpected keyword argument 'foo'"),
        (["agent.policy_kwargs.features_extractor_kwargs.foo=1"], "unexpected keyword"),
        (["agent.policy=MultiInputPolicy"], "AttributeError"),
        (["device=mps"], "`device` must be 'auto', 'cpu' or 'cuda'"),
        (["agent.stats_window_size=-1"], "maxlen must be non-negative"),
        (["normalize.gamma=abc"], "`normalize.gamma` must be a number, got 'abc'"),
        (["normalize.nrom=1", "normalize.foo=2"], "found 2 faults"),
        (["agent.batch_size=true"], "`agent.batch_size` must be a whole number, got True"),
        (["agent.gamma=.nan"], "`agent.gamma` must be a number, got nan"),
        (["total_timesteps=true"], "`total_timesteps` must be a whole number, got True"),
        (["metrics=5"], "`metrics` must be a mapping"),
        (["learning_rate=3"], "stand under `agent`: `agent.learning_rate`"),
        (["intervention.strength=0.5"], "needs a `name`"),
        (["agent.gama=1", "--seeds", "0"], "found 2 faults"),
        (["--algo", "dqn", "--env", "ALE/Pong-v5", "--set", "agent.buffer_size=1e8"],
         "`agent.buffer_size` 100,000,000 needs 706 GB"),
        (["--env", "Blackjack-v1"], "observation space is not supported"),
        (["--algo", "td3", "--env", "Pendulum-v1", "--set", "agent.noise_type=normal",
          "agent.noise_std=-1"], "`agent.noise_std` must be at least 0"),
        (["--env", "ALE/Pong-v5", "--set", "env_options.sticky_actions=5"], "from 0 to 1, got 5"),
    ],
)  # fmt: skip
def test_bad_values_get_a_message_and_leave_nothing_behind(flags, message, main, tmp_path):
    code, _, err = main(*CARTPOLE, *flags, "--log-dir", tmp_path / "run")
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_key_that_stands_there_twice_is_refused(main, tmp_path):
    (tmp_path / "twice.yaml").write_text("algo: ppo\nenv: CartPole-v1\nalgo: dqn\n")
    code, _, err = main("--config", tmp_path / "twice.yaml")
    assert code == 2
    assert "the key 'algo' is given twice" in err
