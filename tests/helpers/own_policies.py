"""Policies as users write them: after SB3's documentation, and a little beside it."""

import torch
from stable_baselines3.common.policies import ActorCriticPolicy, ContinuousCritic
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from stable_baselines3.sac.policies import Actor, SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import nn


def mlp(inputs, outputs=None):
    head = [] if outputs is None else [nn.Linear(8, outputs)]
    return nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), *head)


class TwoNets(nn.Module):
    """The custom network of SB3's documentation."""

    latent_dim_pi = latent_dim_vf = 8

    def __init__(self, features_dim):
        super().__init__()
        self.policy_net, self.value_net = mlp(features_dim), mlp(features_dim)

    def forward(self, features):
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features):
        return self.policy_net(features)

    def forward_critic(self, features):
        return self.value_net(features)


class TrunkAndNets(TwoNets):
    """A trunk that both use, as SB3 itself had it before version 1.8."""

    def __init__(self, features_dim):
        super().__init__(8)
        self.shared_net = mlp(features_dim)

    def forward_actor(self, features):
        return super().forward_actor(self.shared_net(features))

    def forward_critic(self, features):
        return super().forward_critic(self.shared_net(features))


class OtherNames(nn.Module):
    """The same as :class:`TwoNets`, by other names."""

    latent_dim_pi = latent_dim_vf = 8

    def __init__(self, features_dim):
        super().__init__()
        self.pi, self.vf = mlp(features_dim), mlp(features_dim)

    def forward(self, features):
        return self.pi(features), self.vf(features)

    def forward_actor(self, features):
        return self.pi(features)

    def forward_critic(self, features):
        return self.vf(features)


class DocumentedPolicy(ActorCriticPolicy):
    def _build_mlp_extractor(self):
        self.mlp_extractor = TwoNets(self.features_dim)


class TrunkPolicy(ActorCriticPolicy):
    def _build_mlp_extractor(self):
        self.mlp_extractor = TrunkAndNets(self.features_dim)


class OtherNamesPolicy(ActorCriticPolicy):
    def _build_mlp_extractor(self):
        self.mlp_extractor = OtherNames(self.features_dim)


class DeepHeadPolicy(ActorCriticPolicy):
    """A value head of two layers."""

    def _build(self, lr_schedule):
        super()._build(lr_schedule)
        self.value_net = mlp(self.mlp_extractor.latent_dim_vf, 1)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1))


class AuxiliaryPolicy(ActorCriticPolicy):
    """A layer for an auxiliary task, in the policy's optimizer."""

    def _build(self, lr_schedule):
        super()._build(lr_schedule)
        self.auxiliary = nn.Linear(self.features_dim, 3)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1))


class Dueling(QNetwork):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        del self.q_net
        self.value = mlp(self.features_dim, 1)
        self.advantage = mlp(self.features_dim, int(self.action_space.n))

    def forward(self, obs):
        features = self.extract_features(obs, self.features_extractor)
        advantage = self.advantage(features)
        return self.value(features) + advantage - advantage.mean(1, keepdim=True)


class DuelingPolicy(DQNPolicy):
    def make_q_net(self):
        options = self._update_features_extractor(self.net_args, features_extractor=None)
        return Dueling(**options).to(self.device)


class TwinCritic(ContinuousCritic):
    """Two critics by names of their own."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        inputs = self.qf0[0].in_features
        del self.qf0, self.qf1, self.q_networks
        self.first, self.second = mlp(inputs, 1), mlp(inputs, 1)

    def forward(self, obs, actions):
        seen = torch.cat([self.extract_features(obs, self.features_extractor), actions], dim=1)
        return self.first(seen), self.second(seen)

    def q1_forward(self, obs, actions):
        return self(obs, actions)[0]


class DeepMeanActor(Actor):
    """A mean of two layers."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.mu = mlp(self.mu.in_features, self.mu.out_features)


class _OwnCritic:
    def make_critic(self, features_extractor=None):
        options = self._update_features_extractor(self.critic_kwargs, features_extractor)
        return TwinCritic(**options).to(self.device)


class TwinCriticSacPolicy(_OwnCritic, SACPolicy):
    pass


class TwinCriticTd3Policy(_OwnCritic, TD3Policy):
    pass


class DeepMeanSacPolicy(SACPolicy):
    def make_actor(self, features_extractor=None):
        options = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return DeepMeanActor(**options).to(self.device)
