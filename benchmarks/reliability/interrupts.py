"""Exceptions and signals in the middle of an event: the model is as before, or wholly operated."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm

from benchmarks.reliability.trial import Trial
from fire_rl import FIRE, Reset, ShrinkAndPerturb, apply_intervention

MODELS: dict[str, Callable[[], BaseAlgorithm]] = {
    "PPO": lambda: PPO("MlpPolicy", "CartPole-v1", n_steps=32, device="cpu", seed=0).learn(64),
    "SAC": lambda: SAC("MlpPolicy", "Pendulum-v1", learning_starts=8, device="cpu", seed=0).learn(
        24
    ),
    "DQN": lambda: DQN("MlpPolicy", "CartPole-v1", learning_starts=8, device="cpu", seed=0).learn(
        40
    ),
}
INTERVENTIONS: dict[str, Callable[[], Any]] = {
    "fire": FIRE,
    "fire exact, all moments": lambda: FIRE(method="exact", optimizer_state="all"),
    "reset": Reset,
    "shrink_and_perturb": ShrinkAndPerturb,
}
ERRORS: tuple[type[BaseException], ...] = (RuntimeError, KeyboardInterrupt, MemoryError, SystemExit)
SIGNALS = 10  # real ones, for each model and intervention


def trials() -> Iterator[tuple[str, Trial]]:
    """Yield every place of an event at which an exception is raised, and real signals."""
    for model in MODELS:
        for intervention in INTERVENTIONS:
            for error in ERRORS:
                run = partial(_everywhere, model, intervention, error)
                yield (
                    "exceptions in surgery",
                    Trial(f"{model} {intervention} {error.__name__}", run),
                )
            run = partial(_signals, model, intervention)
            yield "Ctrl-C in surgery", Trial(f"{model} {intervention}", run)


def _state(model: BaseAlgorithm) -> list[torch.Tensor]:
    """Return a copy of all weights, buffers and optimizer states, in a fixed order."""
    found: list[torch.Tensor] = []

    def walk(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.append(value.detach().clone())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                walk(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                walk(item)

    walk(model.get_parameters())
    return found


def _equal(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    same = len(one) == len(two)
    return same and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def _operate(model: BaseAlgorithm, intervention: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no observations for a probe
        apply_intervention(model, INTERVENTIONS[intervention](), seed=0)


def _after(model: str, intervention: str) -> list[torch.Tensor]:
    whole = MODELS[model]()
    _operate(whole, intervention)
    return _state(whole)


def _everywhere(
    model: str, intervention: str, error: type[BaseException], folder: Path
) -> str | None:
    """Raise at the first write to a tensor, at the second, ... until an event comes through."""
    after, agent = _after(model, intervention), MODELS[model]()
    before = _state(agent)
    copy = torch.Tensor.copy_
    for place in range(1, 10_000):
        count = 0

        def raising(self: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
            nonlocal count
            count += 1
            if count == place:  # noqa: B023
                raise error("injected")
            return copy(self, *args, **options)

        torch.Tensor.copy_ = raising  # type: ignore[method-assign]
        try:
            _operate(agent, intervention)
        except (error, RuntimeError):  # `load_state_dict` makes a RuntimeError of any Exception
            torch.Tensor.copy_ = copy  # type: ignore[method-assign]
            now = _state(agent)
            if not _equal(now, before):
                whole = "wholly operated" if _equal(now, after) else "half operated"
                return f"raised at write {place}: {whole}"
        else:
            return None if count < place else "the exception was swallowed"
        finally:
            torch.Tensor.copy_ = copy  # type: ignore[method-assign]
    return "the event never came through"


def _signals(model: str, intervention: str, folder: Path) -> str | None:
    """Send SIGINT at random moments of an event, every other time a second one just after."""
    after = _after(model, intervention)
    generator = random.Random(f"{model} {intervention}")
    begun = time.perf_counter()
    _operate(MODELS[model](), intervention)
    seconds = time.perf_counter() - begun
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in range(SIGNALS):
        agent = MODELS[model]()
        before = _state(agent)
        waits = [generator.uniform(0.0, seconds)]
        if number % 2:
            waits.append(generator.uniform(0.0, 0.002))
        sender = threading.Thread(target=_send, args=(waits,))
        try:
            sender.start()
            _operate(agent, intervention)
            sender.join()
            time.sleep(0.01)
        except KeyboardInterrupt:
            while True:  # the second one may come while the thread is awaited
                try:
                    sender.join()
                    time.sleep(0.01)
                    break
                except KeyboardInterrupt:
                    continue
        now = _state(agent)
        if not (_equal(now, before) or _equal(now, after)):
            return f"signal {number} at {waits}: half operated"
    return None


def _send(waits: list[float]) -> None:
    for wait in waits:
        time.sleep(wait)
        os.kill(os.getpid(), signal.SIGINT)
