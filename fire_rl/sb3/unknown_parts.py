"""Warn of trained layers that belong to no role, and of output layers that are not known."""

from __future__ import annotations

import warnings

from fire_rl.sb3.model_view import ModelView
from fire_rl.sb3.networks import HOW_TO_REGISTER
from fire_rl.utils.paths import attribute_at
from fire_rl.weights.layers import plain_name, weight_layers_of


def warn_of_unknown_parts(view: ModelView) -> None:
    """Warn of parts of the policy that the model's anatomy does not know.

    These are weight layers that an optimizer of the model trains and that belong to no role; and
    roles of which no output layer is found, so that options about heads do not reach them.
    """
    model, anatomy = view.model, view.anatomy
    policy = type(model.policy).__name__
    # Targets, too: up to SB3 2.3.2 the optimizer of DQN and QR-DQN holds them, without gradients.
    networks = [n for group in view.groups for n in (group.online, group.target) if n is not None]
    known = {id(tensor) for network in networks for tensor in network.tensors.values()}
    held = {id(p) for o in view.optimizers for held in o.param_groups for p in held["params"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # recurrent layers are named elsewhere
        layers = weight_layers_of(model.policy.named_modules())
    strangers = [
        plain_name(layer.name)
        for layer in layers
        if not layer.frozen
        and any(id(part) in held and id(part) not in known for part in layer.parts.values())
    ]
    if strangers:
        warnings.warn(
            f"{policy} trains `{'`, `'.join(strangers)}`, which belongs to none of the roles "
            f"{', '.join(anatomy.parts)}: left as it is, and not measured. {HOW_TO_REGISTER}",
            UserWarning,
            stacklevel=2,
        )
    for role, paths in anatomy.parts.items():
        heads = [h for h in anatomy.heads if any(f"{h}.".startswith(f"{p}.") for p in paths)]
        if heads and all(
            attribute_at(model.policy, head.removesuffix(".*")) is None for head in heads
        ):
            warnings.warn(
                f"{policy} has no `{'`, `'.join(heads)}`: the output layers of its {role} are not "
                "known and count as hidden ones, whatever an option says of heads. Name them in "
                f"`heads`. {HOW_TO_REGISTER}",
                UserWarning,
                stacklevel=2,
            )
