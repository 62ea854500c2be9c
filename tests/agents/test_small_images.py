"""Images in a mapping that are too small for NatureCNN are refused by key, not by torch."""

import numpy as np
import pytest
from gymnasium import spaces

from agents.make import make_agent
from tests.helpers.models import make_model


def observations(height, width):
    image = spaces.Box(0, 255, (1, height, width), np.uint8)
    return spaces.Dict({"camera": image, "state": spaces.Box(-1, 1, (3,), np.float32)})


@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_small_images_in_a_mapping(algo):
    kwargs = {"net_arch": [8], "features_extractor_kwargs": {"cnn_output_dim": 8}}
    agent = {"policy_kwargs": kwargs}
    env = make_model(algo, "dict").get_env()
    env.observation_space = observations(36, 35)
    with pytest.raises(ValueError, match=r"at least 36×36, got 36×35 in 'camera'"):
        make_agent(algo, env, agent)
    env.observation_space = observations(36, 36)
    make_agent(algo, env, agent)
