"""Agents of the workbench: a run's configuration, and SB3 models built from it."""

from agents.algorithms import ALGORITHMS
from agents.config import ConfigError, RunConfig, parse_config
from agents.make import load_agent, make_agent

__all__ = ["ALGORITHMS", "ConfigError", "RunConfig", "load_agent", "make_agent", "parse_config"]
