"""All or nothing: what a block changes is put back if it fails, and signals wait for its end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# How often putting back is begun again if it is itself interrupted.
_ATTEMPTS = 10


@contextmanager
def all_or_nothing(
    tensors: Iterable[Tensor],
    optimizers: Iterable[torch.optim.Optimizer] = (),
    objects: Iterable[object] = (),
    *,
    always: bool = False,
) -> Iterator[None]:
    """Put back what a block has changed, to the bit, if it raises anything; then raise that.

    Signals that Python handles (Ctrl-C above all) wait until the block has ended, so that neither a
    first nor a second one leaves half of it done.

    Args:
        tensors: What the block writes in place.
        optimizers: Whose state it changes.
        objects: Whose attributes it replaces; lists and dictionaries among these may change in
            place, arrays may not.
        always: Whether to put everything back at the end in any case.
    """
    with signals_held():
        saved = _Saved(tensors, optimizers, objects)
        try:
            yield
            if always:
                saved.put_back()
        except BaseException:
            _insist(saved.put_back)
            raise


@contextmanager
def signals_held() -> Iterator[None]:
    """Let signals wait until the end of a block; then their handlers are called, in order.

    Outside the main thread nothing is to be done: no handler runs there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handlers: dict[int, Callable[[int, Any], Any]] = {}
    try:
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if callable(handler):
                handlers[number] = handler
                signal.signal(number, lambda number, _: came.append(number))
        yield
    finally:
        failed = None
        for each, handler in handlers.items():
            try:
                signal.signal(each, handler)
            except BaseException as error:  # of a handler that is back already
                signal.signal(each, handler)
                failed = error
        if failed is not None:
            raise failed
        for each in came:
            handlers[each](each, None)


class _Saved:
    """What tensors, optimizers and objects hold."""

    def __init__(
        self,
        tensors: Iterable[Tensor],
        optimizers: Iterable[torch.optim.Optimizer],
        objects: Iterable[object],
    ) -> None:
        self.states = [
            (optimizer.state, {key: (state, dict(state)) for key, state in optimizer.state.items()})
            for optimizer in optimizers
        ]
        self.attributes = [
            (vars(owner), dict(vars(owner)), _containers(vars(owner))) for owner in objects
        ]
        in_states = (
            value
            for _, states in self.states
            for _, items in states.values()
            for value in items.values()
            if isinstance(value, Tensor)
        )
        written = {id(tensor): tensor for tensor in (*tensors, *in_states)}
        self.tensors = [(tensor, tensor.detach().clone()) for tensor in written.values()]

    @torch.no_grad()
    def put_back(self) -> None:
        for tensor, values in self.tensors:
            tensor.copy_(values)
        for states, entries in self.states:
            states.clear()
            for key, (state, items) in entries.items():
                _refill(state, items)
                states[key] = state
        for attributes, before, containers in self.attributes:
            attributes.update(before)
            for name in attributes.keys() - before.keys():
                del attributes[name]
            for container, items in containers:
                _refill(container, items)


def _containers(attributes: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Return the lists and dictionaries among attributes, each with a copy."""
    found = (value for value in attributes.values() if type(value) in (list, dict))
    return [(value, value.copy()) for value in found]


def _refill(container: Any, items: Any) -> None:
    container.clear()
    (container.update if isinstance(container, dict) else container.extend)(items)


def _insist(action: Callable[[], None]) -> None:
    """Do what may be repeated until it was not interrupted."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return action()
        except BaseException:  # a second one, on the way back from the first
            continue
    action()
