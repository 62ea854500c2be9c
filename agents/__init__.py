"""Agents of the workbench: a run's configuration, and SB3 models built from it."""

from agents.algorithms import ALGORITHMS
from agents.config import RunConfig, parse_config
from agents.make import load_agent, make_agent
from agents.plain_yaml import ConfigError

__all__ = ["ALGORITHMS", "ConfigError", "RunConfig", "load_agent", "make_agent", "parse_config"]
