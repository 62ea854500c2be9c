"""Interventions on any torch module, in one call and without an agent."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import (
    ParametrizationList,
    is_parametrized,
    type_before_parametrizations,
)

from fire_rl.interventions.base import Context, Intervention, Network, named_tensors
from fire_rl.interventions.fire import FIRE
from fire_rl.interventions.operation import Operation, check_finite
from fire_rl.interventions.registry import make_intervention
from fire_rl.interventions.report import Changes, LayerChange
from fire_rl.utils import torch_internals
from fire_rl.utils.kinds import check_module, check_tensors, describe
from fire_rl.utils.rng import isolated_rng
from fire_rl.utils.torch_internals import own_parameters
from fire_rl.utils.undo import all_or_nothing
from fire_rl.utils.validation import as_names, check_names, check_options
from fire_rl.weights.layers import old_weight_norm, plain_name
from fire_rl.weights.unread import unread_warnings

# Of interventions: what a plain module does not have.
_OF_AGENTS = ("networks", "target", "entropy_temperature", "vecnormalize", "replay_buffer")


def fire_(
    module: nn.Module,
    *,
    preset: str | None = None,
    heads: Collection[str] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    initial: Mapping[str, Tensor] | None = None,
    fresh: Callable[[], nn.Module] | None = None,
    seed: int = 0,
    **options: Any,
) -> list[LayerChange]:
    """Apply FIRE to any torch module, in place.

    Covers linear layers, convolutions (1-d to 3-d, grouped, transposed) and
    ``nn.MultiheadAttention``, also in half precision, under weight norm and inside
    ``torch.compile``. Buffers, embeddings and recurrent weights are not touched; a warning names
    the latter. An embedding that shares its weight with a linear layer changes with it:
    ``tied="keep"`` keeps both.

    Args:
        module: The module to change.
        preset: ``"paper_vision"``, ``"paper_vit"`` or ``"paper_gpt"``, see :class:`FIRE`.
        heads: Names of the output layers; by default the last weight layer.
        optimizer: If given, it forgets moments and step count as ``optimizer_state`` says.
        initial: See :func:`intervene_`; for ``"reset"`` rules.
        fresh: See :func:`intervene_`; for ``"reset"`` rules.
        seed: Of everything that is drawn.
        **options: Options of :class:`FIRE`, except those that concern agents.

    Returns:
        One :class:`~fire_rl.LayerChange` per weight layer, in order.

    Raises:
        ValueError: If an option is unknown or concerns agents only, a name matches no layer, there
            is no layer, or a weight is not finite or cannot be set; then nothing is changed.
        TypeError: If ``module`` is no module, or ``optimizer`` no optimizer.

    Example:
        >>> changes = fire_(nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2)))
        >>> [change.name for change in changes]
        ['0', '2']
    """
    check_module("module", module)
    check_options(FIRE.name, FIRE, options)
    chosen = {} if preset is None else {"preset": preset}
    fire = make_intervention({"name": FIRE.name, **chosen, **options})
    changes = intervene_(
        module, fire, heads=heads, optimizer=optimizer, initial=initial, fresh=fresh, seed=seed
    )
    return list(changes.layers)


def intervene_(
    module: nn.Module,
    intervention: Intervention | str | Mapping[str, Any],
    *,
    heads: Collection[str] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    initial: Mapping[str, Tensor] | None = None,
    fresh: Callable[[], nn.Module] | None = None,
    seed: int = 0,
) -> Changes:
    """Apply an intervention to any torch module, in place: FIRE, a reset, shrink-and-perturb, ...

    Args:
        module: The module to change.
        intervention: For example ``FIRE.paper_gpt()``, ``Reset()``, ``"reset"`` or a mapping. One
            that needs an agent, to judge units on its observations for example, is refused.
        heads: Names of the output layers; by default the last weight layer.
        optimizer: If given, it forgets moments and step counts as the intervention says.
        initial: The tensors with which the training began, by name, for ``source="initial"``: a
            ``state_dict()`` that was copied then.
        fresh: A function that makes a new module, for ``source="fresh"``. By default a copy of the
            module is drawn anew by each submodule's own ``reset_parameters``.
        seed: Of everything that is drawn; random numbers outside are untouched.

    Returns:
        How the layers and the other tensors have changed.

    Raises:
        ValueError: If an option concerns agents only, a name matches no layer, a weight is not
            finite or cannot be set, or new weights are asked for and not given; then
            nothing is changed.
        TypeError: If ``module`` is no module, or ``optimizer`` no optimizer.

    Example:
        >>> module = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> changes = intervene_(module, {"name": "reset", "layers": "heads"})
        >>> [change.action for change in changes.layers]
        ['keep', 'reset']
    """
    check_module("module", module)
    _check_optimizer(optimizer)
    intervention = make_intervention(intervention)
    _check_plain(intervention)
    network = Network.from_module(module, None if heads is None else as_names("heads", heads))
    check_names("heads", network.heads, [layer.name for layer in network.layers])
    intervention.check([network])
    check_finite(network)
    context = Context(
        fresh=lambda: _fresh_tensors(module, fresh, seed),
        initial=lambda: _remembered(initial),
        activations=dict,
        generator=torch.Generator().manual_seed(seed),
    )
    operation = Operation.plan(intervention, {network.role: network}, {}, context, seed)
    changes = operation.describe()[network.role]
    if not _is_selective(intervention):
        _warn_of_kept(network, changes)
    optimizers = [] if optimizer is None else [optimizer]
    with all_or_nothing(network.tensors.values(), optimizers):
        operation.write()
        operation.forget(optimizers)
    return changes


def _check_optimizer(optimizer: object) -> None:
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"`optimizer` must be a torch.optim.Optimizer or None, got {describe(optimizer)}."
        )


def _is_selective(intervention: Intervention) -> bool:
    """Tell whether an option names what is touched: then the rest is left on purpose."""
    return bool(getattr(intervention, "only", None) or getattr(intervention, "include", None))


def _warn_of_kept(network: Network, changes: Changes) -> None:
    """Warn of weight matrices that no layer reads and that stay as they are."""
    untouched = [
        (name, module)
        for name, module in network.modules.items()
        if any(f"{name}.{own}".lstrip(".") in changes.kept for own in own_parameters(module))
    ]
    for message in unread_warnings(untouched):
        warnings.warn(message, UserWarning, stacklevel=3)


def _check_plain(intervention: Intervention) -> None:
    """Raise ValueError for what only agents have."""
    if getattr(intervention, "only_agents", False):
        raise ValueError(
            f"`{intervention.name}` concerns agents, and a plain module is none. Use "
            "`apply_intervention(model, ...)` on an SB3 model."
        )
    kind: Any = type(intervention)
    for option in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
        if option.name in _OF_AGENTS and getattr(intervention, option.name) != option.default:
            raise ValueError(
                f"`{option.name}` concerns agents; a plain module has none. Leave it out, or use "
                "`apply_intervention(model, ...)` on an SB3 model."
            )


def _remembered(initial: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
    if initial is None:
        raise ValueError(
            "`source='initial'` needs the weights that the module began with: copy its "
            "`state_dict()` at the start and pass it as `initial=`."
        )
    check_tensors("initial", initial)
    return _Remembered((plain_name(name), tensor) for name, tensor in initial.items())


class _Remembered(dict[str, Tensor]):
    """The tensors of the beginning by name."""

    def __missing__(self, name: str) -> Tensor:
        raise ValueError(
            f"`initial` has no `{name}`; it has {', '.join(self) or 'nothing'}. Pass a copy of the "
            "same module's `state_dict()`."
        )


class _Drawn(dict[str, Tensor]):
    """New tensors by name; a missing one was not drawn."""

    def __missing__(self, name: str) -> Tensor:
        raise ValueError(
            f"`{name}` cannot be drawn anew: its module has no `reset_parameters`. Pass "
            "`fresh=`, a function that makes a new module, or use source='initial'."
        )


def _fresh_tensors(
    module: nn.Module, make: Callable[[], nn.Module] | None, seed: int
) -> Mapping[str, Tensor]:
    with isolated_rng(seed):
        if make is not None:
            return _Drawn(named_tensors(_made(make)))
        hooked = [name for name, child in module.named_modules() if old_weight_norm(child)]
        if hooked:
            raise ValueError(
                f"`{hooked[0]}` has the old torch.nn.utils.weight_norm and cannot be drawn anew: "
                "pass `fresh=`, a function that makes a new module, or use source='initial'."
            )
        drawn = copy.deepcopy(module)
        kept = {id(p) for child in drawn.modules() if not _draw(child) for p in _own(child)}
        redrawn = named_tensors(drawn).items()
    return _Drawn((name, tensor) for name, tensor in redrawn if id(tensor) not in kept)


def _made(make: Callable[[], nn.Module]) -> nn.Module:
    """Return the module that ``fresh`` makes."""
    advice = "It must be a function without arguments that makes a new module."
    if not callable(make) or isinstance(make, nn.Module):
        raise TypeError(f"`fresh` is {describe(make)}. {advice}")
    try:
        made = make()
    except TypeError as error:
        raise TypeError(
            f"`fresh` ({describe(make)}) cannot be called: {error}. {advice}"
        ) from error
    check_module("fresh()", made)
    return made


def _own(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))


@torch.no_grad()
def _draw(module: nn.Module) -> bool:
    """Let a module draw its parameters anew; return False if it does not know how to."""
    if isinstance(module, ParametrizationList):
        return True  # its parameters are its owner's
    norm: Any = None
    if is_parametrized(module, "weight"):
        norm = getattr(module.parametrizations, "weight")  # noqa: B009
    drawn = module if norm is None else _without_parametrization(module)
    draw = torch_internals.initialiser(drawn)
    if draw is None:
        return False
    draw()
    if norm is not None and isinstance(norm[0], torch_internals.WEIGHT_NORM):
        values: Any = norm[0].right_inverse(drawn.weight)
        norm.original0.copy_(values[0])
        norm.original1.copy_(values[1])
    return True


def _without_parametrization(module: nn.Module) -> nn.Module:
    """Return a module of the original class with a plain weight, which shares the other tensors.

    ``reset_parameters`` would draw into a weight that is computed, in vain. (Removing the
    parametrization would change the class, which copies of a module share.)
    """
    kind: Any = type_before_parametrizations(module)
    weight = nn.Parameter(torch.empty_like(module.weight))  # type: ignore[arg-type]
    plain: nn.Module = torch_internals.with_parameter(module, kind, weight=weight)
    return plain
