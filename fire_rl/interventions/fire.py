"""FIRE: Frobenius-isometry reinitialization (ICLR 2026, arXiv 2602.08040).

Each weight matrix moves to the nearest matrix with isometric columns, times a scale. It keeps as
much of what was learned as the constraint allows (smallest squared Frobenius error) and brings the
deviation from isometry to zero, which is what lets the network learn on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fire_rl.interventions.base import (
    Context,
    Network,
    Update,
    check_chosen,
    check_patterns,
    select_layers,
    weight_updates,
)
from fire_rl.interventions.options import RulesByKind
from fire_rl.utils.torch_internals import own_parameters
from fire_rl.utils.validation import as_number, check_choice, check_int, check_positive
from fire_rl.weights.attention import QUERY_KEY_NAMES, BlockRule, as_split, blocks_by_name
from fire_rl.weights.layers import WeightLayer, check_assignable
from fire_rl.weights.orthogonal import NullDirections, newton_schulz, polar_factor

LayerRule = Literal["project", "reset", "keep"]

_RULES = ("project", "reset", "keep")
_SCALES = ("published", "frobenius_optimal")


@dataclass(frozen=True)
class FIRE(RulesByKind):
    """Move weights to the nearest scaled isometry: ``W ← (1-β) W + β · s · polar(W)``.

    ``FIRE()`` is the paper's Algorithm 1: every linear and convolutional layer, heads included, by
    ten Newton-Schulz steps, at the published scale. Every choice that published code leaves hidden
    is an argument. Biases, norm layers, ``log_std``, the entropy temperature, VecNormalize
    statistics and the replay buffer are kept unless asked for.

    Args:
        method: ``"newton_schulz"`` as published, or ``"exact"``, which reaches the constraint also
            on square and ill-conditioned layers, where ten steps do not.
        num_steps: Newton-Schulz steps; the paper takes 10 (5 for language models).
        scale: ``"published"``: ``sqrt(d_out / d_in)``, for convolutions
            ``sqrt(c_out / c_in) / (kh · kw)`` per tap; ``"frobenius_optimal"``: per matrix, the
            factor that minimises the squared Frobenius error; or a positive number.
        strength: β in (0, 1]. 1 is the paper; less keeps more of what was learned.
        hidden: What happens to linear layers that are no heads: ``"project"``, ``"reset"`` (weight
            and bias anew, see ``source``) or ``"keep"``.
        conv: The same for convolutions.
        head: The same for output layers.
        include: Names or shell patterns of the only layers to touch; empty means all.
        exclude: Names or shell patterns of layers to leave alone.
        networks: Roles to act on, such as ``["critic"]``; None means all.
        source: Where ``"reset"`` takes weights from: ``"fresh"``, a new draw of the policy's own
            initialisation, or ``"initial"``, the weights the run began with.
        null_directions: For ``method="exact"``, see :func:`~fire_rl.polar_factor`.
        biases: Of projected layers: ``"keep"``, ``"reset"`` or ``"zero"``.
        norm_layers: ``"keep"``, or ``"reset"`` scales, shifts and running statistics.
        log_std: ``"keep"``, or ``"reset"`` a state-independent log standard deviation (PPO, gSDE).
        split: Layers that are several matrices on top of one another, such as fused query, key and
            value projections: name pattern to the number of equal blocks of rows, or to a list
            with ``"project"`` or ``"keep"`` for each (``{"*.qkv": ["project", "project",
            "keep"]}``); or ``"by_name"``: those with customary names (``c_attn``, ``qkv``,
            ``to_qkv``, ``to_kv``). The in-projection of ``nn.MultiheadAttention`` is three blocks
            anyway. Each block has its own scale.
        only: ``"query_key"``: nothing but the query and key projections of attention, by their
            customary names (``to_q``, ``to_k``, ``q_proj``, ``query``, ...), and those blocks of
            fused ones.
        recurrent: Weights of LSTMs, GRUs and RNNs: ``"keep"``, or ``"project"`` each of their gates
            as a matrix of its own, at its own scale. The layers are called as torch calls the
            weights, such as ``lstm_actor.weight_hh_l0``; ``split`` can keep single gates.
        tied: A linear layer that shares its weight with an embedding: ``"project"`` both, or
            ``"keep"`` both.
        target, optimizer_state, entropy_temperature, vecnormalize, replay_buffer: See
            :class:`~fire_rl.interventions.base.Aftermath`.

    Raises:
        ValueError: If an option is out of range or no known choice.

    Example:
        >>> FIRE(strength=0.5, head="keep", networks=["critic"])  # doctest: +ELLIPSIS
        FIRE(networks=('critic',), ...)
    """

    method: Literal["newton_schulz", "exact"] = "newton_schulz"
    num_steps: int = 10
    scale: Literal["published", "frobenius_optimal"] | float = "published"
    strength: float = 1.0
    hidden: LayerRule = "project"
    conv: LayerRule = "project"
    head: LayerRule = "project"
    null_directions: NullDirections = "keep"
    biases: Literal["keep", "reset", "zero"] = "keep"
    norm_layers: Literal["keep", "reset"] = "keep"
    log_std: Literal["keep", "reset"] = "keep"
    split: Literal["by_name"] | Mapping[str, Any] = field(default_factory=dict)
    only: Literal["query_key"] | None = None
    tied: Literal["project", "keep"] = "project"
    recurrent: Literal["keep", "project"] = "keep"

    name: ClassVar[str] = "fire"
    # FIRE's authors intervene once, at the midpoint (FIRE repository, `rl/`).
    schedules: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper_dqn": {"fractions": [0.5]},
        "paper_sac": {"fractions": [0.5]},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("method", self.method, ("newton_schulz", "exact"))
        self._set(scale=as_number(self.scale))
        if isinstance(self.scale, str):
            check_choice("scale", self.scale, _SCALES)
        else:
            check_positive("scale", self.scale)
        for rule in ("hidden", "conv", "head"):
            check_choice(rule, getattr(self, rule), _RULES)
        check_choice("null_directions", self.null_directions, ("keep", "complete"))
        check_choice("biases", self.biases, ("keep", "reset", "zero"))
        check_choice("norm_layers", self.norm_layers, ("keep", "reset"))
        check_choice("log_std", self.log_std, ("keep", "reset"))
        check_choice("tied", self.tied, ("project", "keep"))
        check_choice("recurrent", self.recurrent, ("keep", "project"))
        if self.only is not None:
            check_choice("only", self.only, ("query_key",))
        self._set(
            num_steps=check_int("num_steps", self.num_steps, 1),
            strength=check_positive("strength", self.strength, 1.0),
            split=as_split(self.split),
        )

    @classmethod
    def paper_dqn(cls, **options: Any) -> FIRE:
        """Return FIRE as in the authors' DQN code (FIRE repository, ``rl/dqn``).

        Convolutions are projected, linear layers and their biases go back to the weights the run
        began with, Adam's state is kept. The target network is a full copy; the published code
        forgets its convolution biases.
        """
        preset: dict[str, Any] = {
            "hidden": "reset",
            "head": "reset",
            "source": "initial",
            "optimizer_state": "keep",
        }
        return cls(**{**preset, **options})

    @classmethod
    def paper_sac(cls, **options: Any) -> FIRE:
        """Return FIRE as in the authors' SAC code (FIRE repository, ``rl/sac``).

        Every dense layer is projected; optimizers and the entropy temperature start anew.
        """
        preset: dict[str, Any] = {"optimizer_state": "all", "entropy_temperature": "reset"}
        return cls(**{**preset, **options})

    @classmethod
    def paper_vision(cls, **options: Any) -> FIRE:
        """Return FIRE as in the authors' ResNet and VGG code (FIRE repository, ``vision``).

        Every convolution and linear layer is projected, the head included; biases and norm layers
        are kept with their statistics; the optimizer starts anew.
        """
        return cls(**{"optimizer_state": "all", **options})

    @classmethod
    def paper_vit(cls, **options: Any) -> FIRE:
        """Return FIRE as in the authors' ViT code: query and key projections, nothing else.

        The optimizer starts anew. The published code knows layers called ``to_q`` and ``to_k``; the
        same blocks of fused projections are this library's reading of that rule.
        """
        return cls(**{"only": "query_key", "optimizer_state": "all", **options})

    @classmethod
    def paper_gpt(cls, **options: Any) -> FIRE:
        """Return FIRE as in the authors' GPT code (FIRE repository, ``language``).

        Five Newton-Schulz steps on every linear layer, fused query, key and value projections
        block by block; a head that is tied to the token embedding takes it along
        (``tied="keep"`` leaves both). The optimizer starts anew.
        """
        preset: dict[str, Any] = {"num_steps": 5, "split": "by_name", "optimizer_state": "all"}
        return cls(**{**preset, **options})

    def check(self, networks: Sequence[Network]) -> None:
        """Raise ValueError if a name matches no layer, or a layer cannot be split or written."""
        super().check(networks)
        if isinstance(self.split, Mapping):
            layers = [layer for network in networks for layer in self.candidates(network)]
            check_patterns("split", list(self.split), layers)
        chosen = [layer for network in networks for layer in self._chosen(network)]
        if self.only is not None and not chosen:
            raise ValueError(
                "`only='query_key'` finds no query or key projection; it knows layers called "
                f"{', '.join(QUERY_KEY_NAMES)}. Name yours in `include` instead, and in `split` if "
                "they are fused."
            )
        if self.norm_layers == "keep" and self.log_std == "keep":
            check_chosen(self.name, chosen, networks)
        for layer in chosen:
            if not layer.frozen:
                check_assignable(layer)
            blocks = len(self._blocks(layer))
            if layer.weight.shape[0] % blocks or (blocks > 1 and layer.groups > 1):
                raise ValueError(
                    f"`split` of `{layer.name}` must divide its {layer.weight.shape[0]} rows (and "
                    f"it must not be a grouped convolution), got {blocks} blocks."
                )

    @torch.no_grad()
    def plan(self, network: Network, context: Context) -> dict[str, Update]:
        """Compute the new tensors of a network. Frozen weights and biases are kept."""
        updates: dict[str, Update] = {}
        for layer in self._chosen(network):
            rule = "keep" if layer.frozen else self.rule(layer)
            bias = layer.tensor_name("bias")
            if rule == "project":
                updates |= weight_updates(layer, self._project(layer))
            if rule == "reset":
                updates |= self._reset(layer.weight_names, network, context)
            if layer.bias is None or not layer.bias.requires_grad:
                continue
            if rule == "reset" or (rule == "project" and self.biases == "reset"):
                updates |= self._reset([bias], network, context)
            if rule == "project" and self.biases == "zero":
                updates[bias] = Update(torch.zeros_like(layer.bias), "zero")
            if rule == "project" and bias in updates and "keep" in self._blocks(layer):
                updates[bias] = self._of_blocks(updates[bias], layer)
        if self.norm_layers == "reset":
            updates |= self._reset(network.norm_tensors, network, context)
        if self.log_std == "reset":
            names = [name for name in network.tensors if name.split(".")[-1] == "log_std"]
            updates |= self._reset(names, network, context)
        return updates

    def _chosen(self, network: Network) -> Iterator[WeightLayer]:
        """Yield the layers that the options are about and do not keep."""
        embeddings = {
            id(own_parameters(module).get("weight"))
            for module in network.modules.values()
            if isinstance(module, nn.Embedding)
        }
        for layer in select_layers(self.candidates(network), self.include, self.exclude):
            tied = id(own_parameters(layer.module).get(layer.weight_attribute)) in embeddings
            if self.rule(layer) == "keep" or (tied and self.tied == "keep"):
                continue
            if "project" in self._blocks(layer):
                yield layer

    def _blocks(self, layer: WeightLayer) -> tuple[BlockRule, ...]:
        """Return what happens to each block of rows of a layer that is projected."""
        if isinstance(self.split, Mapping):
            for pattern, named in self.split.items():
                if fnmatchcase(layer.name, pattern):
                    return tuple(named)
        names = blocks_by_name(layer.name)
        if self.only == "query_key":
            rules: dict[str, BlockRule] = {"q": "project", "k": "project", "v": "keep"}
            return tuple(rules[name] for name in names)
        blocks = layer.blocks if self.split != "by_name" else max(len(names), layer.blocks)
        project: BlockRule = "project"
        return (project,) * blocks

    def _project(self, layer: WeightLayer) -> Update:
        blocks = self._blocks(layer)
        layer = replace(layer, blocks=len(blocks))
        # Half-precision weights are rounded once, at the end.
        old = layer.matrices().to(torch.promote_types(layer.weight.dtype, torch.float32))
        if self.method == "exact":
            factor = polar_factor(old, self.null_directions)
        else:
            factor = newton_schulz(old, self.num_steps)
        scale = self._scale(layer, factor)
        factor = factor * scale
        if self.strength < 1:
            factor = torch.lerp(old, factor, self.strength)
        if len(blocks) == 1:
            return Update(layer.from_matrices(factor), "project", scale)
        touched = torch.tensor([rule == "project" for rule in blocks], device=old.device)
        touched = touched.repeat(len(old) // len(blocks))[:, None, None].expand_as(old)
        return Update(
            layer.from_matrices(torch.where(touched, factor, old)),
            "project",
            scale,
            entries=None if bool(touched.all()) else layer.from_matrices(touched),
            blocks=blocks,
        )

    def _of_blocks(self, update: Update, layer: WeightLayer) -> Update:
        """Restrict the update of a bias to the blocks that are projected."""
        assert layer.bias is not None
        touched = torch.tensor([rule == "project" for rule in self._blocks(layer)])
        entries = touched.repeat_interleave(len(layer.bias) // len(touched)).to(layer.bias.device)
        value = torch.where(entries, update.value, layer.bias.detach())
        return replace(update, value=value, entries=entries)

    def _scale(self, layer: WeightLayer, factor: Tensor) -> float | Tensor:
        if self.scale == "published":
            return layer.scale
        if isinstance(self.scale, str):
            squared = factor.square().sum(dim=(-2, -1), keepdim=True)
            # The minimiser of ‖W - s Q‖²; for an isometry the mean singular value of W.
            best = (layer.matrices() * factor).sum(dim=(-2, -1), keepdim=True) / squared
            return best.nan_to_num(1.0)  # zero matrices stay zero
        return float(self.scale)

    def _reset(self, names: Sequence[str], network: Network, context: Context) -> dict[str, Update]:
        present = [
            name for name in names if name in network.tensors and not network.is_frozen(name)
        ]
        if not present:
            return {}
        source = context.source(self.source)
        return {name: Update(source[name], "reset") for name in present}
