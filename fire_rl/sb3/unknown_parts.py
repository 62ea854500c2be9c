"""Name what a model trains and nothing here knows: parameters of no role, of no layer, no heads."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from fire_rl.sb3.model_view import ModelView
from fire_rl.sb3.networks import HOW_TO_REGISTER
from fire_rl.sb3.optimizers import find_optimizers, held_modules
from fire_rl.sb3.own_paths import unmeasured_methods
from fire_rl.sb3.warn_once import warn_once
from fire_rl.utils.paths import attribute_at
from fire_rl.weights.layers import plain_name
from fire_rl.weights.unread import unread_warnings

_LONGEST_LIST = 12


def warn_of_unknown_parts(view: ModelView) -> None:
    """Warn, once for each model, of what its anatomy or its layers leave out.

    These are parameters that an optimizer of the model trains and that belong to no role; modules
    of a role whose weight matrices are no layer's; roles of which no output layer is found, so that
    options about heads do not reach them; and methods of the policy that cannot be measured.
    """
    said = [
        *_of_no_role(view),
        *unread_warnings(pair for group in view.groups for pair in group.online.modules.items()),
        *_without_heads(view),
        *unmeasured_methods(view.model.policy),
    ]
    for message in said:
        warn_once(view.model, message)


def _of_no_role(view: ModelView) -> Iterator[str]:
    """Yield what is to be said of trained parameters that no role owns."""
    owned = [n for group in view.groups for n in (group.online, group.target) if n is not None]
    known = {id(tensor) for network in owned for tensor in network.tensors.values()}
    roots = held_modules(view.model)
    places: dict[int, tuple[str, str]] = {}  # of a parameter: what it is part of, its module
    for root, module in roots.items():
        for name, held in module.named_parameters():
            owner = plain_name(name).rpartition(".")[0] or (name if root == "policy" else "")
            inside = owner if root == "policy" else f"{root}.{owner}".rstrip(".")
            places.setdefault(id(held), (root, inside))
    inside_policy, outside = dict[str, None](), dict[str, None]()
    for optimizer_name, optimizer in find_optimizers(view.model).items():
        for parameter in _trained(optimizer.param_groups):
            if id(parameter) in known or parameter.numel() <= 1:
                continue  # a temperature or a multiplier is no network
            if id(parameter) not in places and optimizer in view.optimizers:
                continue  # replaced since, by a parametrization for example
            root, place = places.get(id(parameter), ("", f"parameters of {optimizer_name}"))
            (inside_policy if root == "policy" else outside)[place] = None
    roles = ", ".join(view.anatomy.parts)
    if inside_policy:
        yield (
            f"{type(view.model.policy).__name__} trains `{_listed(inside_policy)}`, which belongs "
            f"to none of the roles {roles}: left as it is, and not measured. {HOW_TO_REGISTER}"
        )
    if outside:
        yield (
            f"{type(view.model).__name__} trains `{_listed(outside)}` outside of its policy, which "
            f"belongs to none of the roles {roles}: left as it is, and not measured. Treat such a "
            "network yourself, with fire_rl.fire_(module), or move it into the policy and register "
            "it with fire_rl.register_anatomy."
        )


def _trained(groups: list[dict[str, list[Tensor]]]) -> Iterator[Tensor]:
    for group in groups:
        yield from (parameter for parameter in group["params"] if parameter.requires_grad)


def _listed(names: dict[str, None]) -> str:
    shown = list(names)[:_LONGEST_LIST]
    more = len(names) - len(shown)
    return "`, `".join(shown) + (f"` and `{more} more" if more else "")


def _without_heads(view: ModelView) -> Iterator[str]:
    """Yield what is to be said of roles whose output layers are not found."""
    for role, paths in view.anatomy.parts.items():
        heads = [h for h in view.anatomy.heads if any(f"{h}.".startswith(f"{p}.") for p in paths)]
        found = [attribute_at(view.model.policy, head.removesuffix(".*")) for head in heads]
        if heads and all(head is None for head in found):
            yield (
                f"{type(view.model.policy).__name__} has no `{'`, `'.join(heads)}`: the output "
                f"layers of its {role} are not known and count as hidden ones, whatever an option "
                f"says of heads. Name them in `heads`. {HOW_TO_REGISTER}"
            )
