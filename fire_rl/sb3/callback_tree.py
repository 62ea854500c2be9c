"""Walk SB3's callbacks: lists of callbacks, and callbacks inside of callbacks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback


def callback_paths(
    callback: BaseCallback, above: tuple[BaseCallback, ...] = ()
) -> Iterator[tuple[BaseCallback, ...]]:
    """Yield every callback with those around it: the outermost first, itself last."""
    path = (*above, callback)
    yield path
    children = [
        *(getattr(callback, "callbacks", None) or ()),
        *(getattr(callback, name, None) for name in ("callback", "callback_on_new_best")),
    ]
    distinct = {id(child): child for child in children if isinstance(child, BaseCallback)}
    for child in distinct.values():
        yield from callback_paths(child, path)


def walk_callbacks(callbacks: Iterable[BaseCallback]) -> Iterator[BaseCallback]:
    """Yield callbacks, those inside of lists and of other callbacks too.

    Not the lists themselves and not SB3's progress bar: a resumed run may have another one.
    """
    for callback in callbacks:
        for path in callback_paths(callback):
            if not isinstance(path[-1], CallbackList | ProgressBarCallback):
                yield path[-1]
