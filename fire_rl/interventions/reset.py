"""Reset: put weights back to the initialisation (Nikishin et al. 2022)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from fire_rl.interventions.base import Context, Network, Update, check_chosen
from fire_rl.interventions.options import Options
from fire_rl.utils.validation import check_choice
from fire_rl.weights.layers import WeightLayer, check_assignable


@dataclass(frozen=True)
class Reset(Options):
    """Initialise networks or their last layers anew: ``W ← W₀``.

    "The Primacy Bias in Deep Reinforcement Learning" (Nikishin et al. 2022). The new weights are
    those of SB3's own initialisation of the same policy: orthogonal with its gains for PPO and
    A2C, torch's default elsewhere. The replay buffer is kept, as in the paper; so are the entropy
    temperature and VecNormalize statistics, unless asked for. Frozen parameters are kept.

    Args:
        layers: ``"all"``: every tensor of the networks, biases, norm layers with their running
            statistics, and ``log_std`` included; ``"heads"``: output layers with their biases; or
            ``"last:<k>"``: the last k layers of each network, such as ``"last:3"``.
        source: ``"fresh"``, a new draw, or ``"initial"``, the weights the run began with.
        networks, target, optimizer_state, entropy_temperature, vecnormalize, replay_buffer: See
            :class:`~fire_rl.interventions.options.Options`.

    Raises:
        ValueError: If an option is no known choice.
    """

    layers: str = "all"
    source: Literal["fresh", "initial"] = "fresh"

    name: ClassVar[str] = "reset"
    # Environment steps, as published (Nikishin et al. 2022, section 5 and appendix).
    schedules: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "nikishin_sac": {"every": 200_000},
        "nikishin_drq": {"every": 100_000},
        "nikishin_spr": {"every": 20_000},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("source", self.source, ("fresh", "initial"))
        if self.layers not in ("all", "heads") and self._last() is None:
            raise ValueError(
                "`layers` must be 'all', 'heads' or 'last:<k>' with k of at least 1, such as "
                f"'last:3', got {self.layers!r}."
            )

    @classmethod
    def nikishin_sac(cls, **options: Any) -> Reset:
        """Return the reset of SAC: the whole agent, optimizers and temperature included.

        Published every 200,000 environment steps.
        """
        return cls(**{"optimizer_state": "all", "entropy_temperature": "reset", **options})

    @classmethod
    def nikishin_drq(cls, **options: Any) -> Reset:
        """Return the reset of DrQ: the three layers behind the encoder, which keeps its optimizer.

        Published every 100,000 environment steps of 2 million.
        """
        return cls(**{"layers": "last:3", **options})

    @classmethod
    def nikishin_spr(cls, **options: Any) -> Reset:
        """Return the reset of SPR: the last layer. Published every 20,000 of 100,000 steps."""
        return cls(**{"layers": "last:1", **options})

    def check(self, networks: Sequence[Network]) -> None:
        """Raise ValueError if there are fewer layers than asked for, or one cannot be written."""
        last = self._last()
        for network in networks:
            for chain in _chains(network):
                if last is not None and last > len(chain):
                    raise ValueError(
                        f"`layers` is {self.layers!r}, but the {network.role} has only "
                        f"{len(chain)} layers of its own: use 'last:{len(chain)}' or 'all'."
                    )
        chosen = [layer for network in networks for layer in self._layers(network)]
        if self.layers != "all":
            check_chosen(self.name, chosen, networks)
        for layer in chosen:
            check_assignable(layer)

    @torch.no_grad()
    def plan(self, network: Network, context: Context) -> dict[str, Update]:
        """Compute the new tensors of a network."""
        if self.layers == "all":
            names = list(network.tensors)
        else:
            layers = self._layers(network)
            names = [layer.tensor_name(part) for layer in layers for part in layer.parts]
        names = [name for name in names if not network.is_frozen(name)]
        if not names:
            return {}
        new = context.source(self.source)
        return {name: Update(new[name], "reset") for name in names}

    def _last(self) -> int | None:
        """Return the k of ``"last:<k>"``."""
        found = re.fullmatch(r"last:([1-9]\d*)", str(self.layers))
        return int(found[1]) if found else None

    def _layers(self, network: Network) -> Iterator[WeightLayer]:
        if self.layers == "all":
            yield from network.layers
        for chain in _chains(network) if self.layers != "all" else ():
            for level in chain[-(self._last() or 1) :]:
                yield from level


def _chains(network: Network) -> list[list[list[WeightLayer]]]:
    """Split a network into chains that end with a head, each a list of levels.

    Twin critics are two chains; an actor's mean and standard deviation are one level. Layers
    behind the last head (or of a shared extractor, which has none) belong to no chain.
    """
    chains: list[list[list[WeightLayer]]] = [[]]
    for layer in network.layers:
        closed = bool(chains[-1]) and chains[-1][-1][0].is_head
        if closed and layer.is_head:
            chains[-1][-1].append(layer)
        elif closed:
            chains.append([[layer]])
        else:
            chains[-1].append([layer])
    return [chain for chain in chains if chain and chain[-1][0].is_head]
