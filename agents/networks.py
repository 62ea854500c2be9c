"""Networks of the papers, as SB3 policies and extractors that a configuration can name."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.dqn.policies import CnnPolicy
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import Tensor, nn

_EXPANSION = 4  # source: Lee et al. 2024, arXiv 2410.09754, §4: inverted bottleneck
_LAYER_NORM_EPS = 1e-6  # source: flax's LayerNorm, which the published code uses


class MinAtarCNN(BaseFeaturesExtractor):
    """The hidden layers of MinAtar's DQN: 16 filters of 3×3, then a linear layer, ReLU after both.

    Young & Tian 2019, arXiv 1903.03176, §3. Initialised as torch does, like theirs.

    Args:
        observation_space: Images, channels first.
        features_dim: Units of the linear layer.
    """

    def __init__(self, observation_space: spaces.Box, features_dim: int = 128) -> None:
        if not is_image_space(observation_space, normalized_image=True):
            raise ValueError(f"MinAtarCNN needs images (C×H×W), got {observation_space}.")
        super().__init__(observation_space, features_dim)
        channels, height, width = observation_space.shape
        self.cnn = nn.Sequential(
            nn.Conv2d(channels, 16, kernel_size=3, stride=1), nn.ReLU(), nn.Flatten()
        )
        self.linear = nn.Sequential(
            nn.Linear(16 * (height - 2) * (width - 2), features_dim), nn.ReLU()
        )

    def forward(self, observations: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, features_dim)``."""
        features: Tensor = self.linear(self.cnn(observations))
        return features


class XavierCnnPolicy(CnnPolicy):
    """DQN's CnnPolicy with Xavier-uniform weights in every convolution and linear layer.

    ``U(-a, a)``, ``a = sqrt(6 / (fan_in + fan_out))`` (Glorot & Bengio 2010), as in FIRE's DQN
    experiments. Biases stay as torch draws them: nothing public says otherwise. The target begins
    as a copy. With another extractor than NatureCNN, SB3 adds hidden layers of 64 and 64 units
    unless ``net_arch`` says otherwise.
    """

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        for module in self.q_net.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
        self.q_net_target.load_state_dict(self.q_net.state_dict())


class ResidualBlock(nn.Module):
    """``x + W₂ ReLU(W₁ LayerNorm(x))`` with ``4·width`` hidden units.

    Args:
        width: Size of ``x``.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.LayerNorm(width, eps=_LAYER_NORM_EPS),
            _he_normal(nn.Linear(width, _EXPANSION * width)),
            nn.ReLU(),
            _he_normal(nn.Linear(_EXPANSION * width, width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, width)`` to ``(N, width)``."""
        output: Tensor = x + self.residual(x)
        return output


class SimBaActor(Actor):
    """SAC's actor with SimBa's encoder as ``latent_pi``; ``net_arch`` has one width per block."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.latent_pi = nn.Sequential(*_encoder(self.features_dim, self.net_arch))
        for head in (self.mu, self.log_std):
            for module in head.modules() if isinstance(head, nn.Module) else ():
                if isinstance(module, nn.Linear):
                    _orthogonal(module)


class SimBaCritic(ContinuousCritic):
    """SAC's critics with SimBa's encoder; ``net_arch`` has one width per block."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            observation_space, action_space, [], features_extractor, features_dim, **kwargs
        )
        inputs = features_dim + spaces.flatdim(action_space)
        for index in range(self.n_critics):
            head = _orthogonal(nn.Linear(net_arch[-1], 1))
            q_network = nn.Sequential(*_encoder(inputs, net_arch), head)
            self.q_networks[index] = q_network
            self.add_module(f"qf{index}", q_network)


class SimBaPolicy(SACPolicy):
    """SAC with SimBa networks: a linear layer, pre-norm residual blocks, LayerNorm, a linear head.

    Lee et al. 2024, arXiv 2410.09754. Initialised as their code does (SonyResearch/simba,
    ``scale_rl/networks/layers.py``): He-normal in the blocks (not truncated
    as flax does), orthogonal with gain 1 in the first
    layer and in the heads, biases 0. SimBa's normalisation of observations by running statistics is
    the run's ``normalize: {norm_obs: true, norm_reward: false}``. Two things are as in SB3 and not
    as there: ``log_std`` is clipped to [-20, 2] instead of squashed by tanh into [-10, 2], and the
    entropy temperature has SAC's own optimizer.

    Args:
        observation_space: Of the environment.
        action_space: Of the environment.
        lr_schedule: Learning rate over the remaining progress.
        actor_width: Width of the actor's residual stream.
        actor_blocks: Its number of residual blocks, at least 1.
        critic_width: Width of each critic's residual stream.
        critic_blocks: Its number of residual blocks, at least 1.
        use_sde, log_std_init, use_expln, clip_mean, features_extractor_class,
            features_extractor_kwargs, normalize_images, n_critics, share_features_extractor: As in
            SB3's SACPolicy.
        optimizer_class: AdamW by default, as in SimBa, with torch's default weight decay of 0.01.
        optimizer_kwargs: Its arguments without the learning rate.

    Raises:
        ValueError: If a width or a number of blocks is less than 1.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        actor_width: int = 128,  # source: SonyResearch/simba configs/agent/sac_simba.yaml
        actor_blocks: int = 1,  # the same, and the next two
        critic_width: int = 512,
        critic_blocks: int = 2,
        use_sde: bool = False,
        log_std_init: float = -3,
        use_expln: bool = False,
        clip_mean: float = 2.0,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.AdamW,
        optimizer_kwargs: dict[str, Any] | None = None,
        n_critics: int = 2,
        share_features_extractor: bool = False,
    ) -> None:
        self._sizes = {
            "actor_width": actor_width,
            "actor_blocks": actor_blocks,
            "critic_width": critic_width,
            "critic_blocks": critic_blocks,
        }
        for name, size in self._sizes.items():
            if size < 1:
                raise ValueError(f"`policy_kwargs.{name}` must be at least 1, got {size}.")
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch={"pi": [actor_width] * actor_blocks, "qf": [critic_width] * critic_blocks},
            use_sde=use_sde,
            log_std_init=log_std_init,
            use_expln=use_expln,
            clip_mean=clip_mean,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            n_critics=n_critics,
            share_features_extractor=share_features_extractor,
        )

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Actor:
        """Build the actor."""
        kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return SimBaActor(**kwargs).to(self.device)

    def make_critic(
        self, features_extractor: BaseFeaturesExtractor | None = None
    ) -> ContinuousCritic:
        """Build the critics, online or target."""
        kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        return SimBaCritic(**kwargs).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        for name in ("net_arch", "activation_fn"):  # SimBa has its own
            data.pop(name)
        return {**data, **self._sizes}


def _encoder(inputs: int, widths: list[int]) -> list[nn.Module]:
    width = widths[0]
    blocks = [ResidualBlock(width) for _ in widths]
    return [
        _orthogonal(nn.Linear(inputs, width)),
        *blocks,
        nn.LayerNorm(width, eps=_LAYER_NORM_EPS),
    ]


def _orthogonal(layer: nn.Linear) -> nn.Linear:
    nn.init.orthogonal_(layer.weight, gain=1.0)
    nn.init.zeros_(layer.bias)
    return layer


def _he_normal(layer: nn.Linear) -> nn.Linear:
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer
