"""Agents of the workbench: SB3 models from the names and plain values of a configuration."""

from agents.algorithms import ALGORITHMS
from agents.make import load_agent, make_agent

__all__ = ["ALGORITHMS", "load_agent", "make_agent"]
