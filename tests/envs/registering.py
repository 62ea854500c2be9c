"""Registers an environment, as a package of one's own does; worker processes import it."""

import gymnasium as gym

gym.register("Worker-v0", "tests.envs.test_wrappers:Sized")
