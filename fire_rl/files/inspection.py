"""Inspect the networks in a file: the state of every layer, and what stands beside them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fire_rl.files.apply import state_dict_layers
from fire_rl.files.formats import ModelFile
from fire_rl.files.layer_state import LayerState, inspect_layer
from fire_rl.files.rebuild import build_skeleton, identity
from fire_rl.files.recognise import make_stand_in
from fire_rl.files.torch_data import tensors_in
from fire_rl.sb3.model_view import ModelView
from fire_rl.weights.layers import weight_layers_of


@dataclass(frozen=True, eq=False)
class Inspection:
    """What a file holds.

    Attributes:
        file: The file as it was read.
        recognised: The algorithms whose policies look like this one; None if it is not recognised,
            or a bare state dict.
        layers: The state of each linear layer and convolution.
        others: The shapes of all other tensors, by name.
        optimizers: For each optimizer of an SB3 zip, the number of parameters that it keeps state
            of, and the number of tensors of that state.
    """

    file: ModelFile
    recognised: str | None
    layers: tuple[LayerState, ...]
    others: Mapping[str, tuple[int, ...]]
    optimizers: Mapping[str, Mapping[str, int]]

    @property
    def about(self) -> dict[str, Any]:
        """The file as a whole: its path, its format and what it says about the model."""
        return {
            "file": str(self.file.path),
            "format": self.file.format,
            "recognised_as": self.recognised,
            "sb3_version": self.file.version,
            "num_timesteps": self.file.num_timesteps,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            **self.about,
            "layers": [layer.to_dict() for layer in self.layers],
            "others": self.others,
            "optimizers": self.optimizers,
        }


def inspect_file(file: ModelFile) -> Inspection:
    """Describe the layers of a file, with their roles where the policy is recognised."""
    tensors = file.tensors
    recognised, roles, heads = None, dict[str, str](), set[str]()
    if file.format == "sb3":
        skeleton = build_skeleton(tensors)
        try:
            stand_in = make_stand_in(file)
            groups = ModelView(stand_in.model).groups
            recognised, skeleton = stand_in.kind.algorithms, stand_in.model.policy
            for group in groups:
                roles |= {layer.name: group.role for layer in group.online.layers}
                heads |= set(group.online.heads)
        except (ValueError, ImportError) as error:
            warnings.warn(f"Roles are not known. {error}", UserWarning, stacklevel=2)
    else:
        skeleton, _ = state_dict_layers(file)
    layers = weight_layers_of(skeleton.named_modules())
    states = tuple(
        inspect_layer(layer, roles.get(layer.name, _target(layer.name)), layer.name in heads)
        for layer in layers
    )
    used = {identity(layer.weight) for layer in layers}
    used |= {identity(layer.bias) for layer in layers if layer.bias is not None}
    others = {n: tuple(t.shape) for n, t in tensors.items() if identity(t) not in used}
    return Inspection(file, recognised, states, others, _optimizers(file))


def _target(name: str) -> str:
    return "target" if any(part.endswith("_target") for part in name.split(".")) else ""


def _optimizers(file: ModelFile) -> dict[str, dict[str, int]]:
    if file.format != "sb3":
        return {}
    found = {}
    for member, content in file.optimizers.items():
        if isinstance(content, dict):
            state = content.get("state")
            count = len(state) if isinstance(state, Mapping) else 0
            found[member] = {"parameters_with_state": count, "tensors": len(tensors_in(content))}
    return found
