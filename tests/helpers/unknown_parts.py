"""Networks, policies and buffers of a kind that nothing in the library has heard of."""

import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import nn


class NoisyLinear(nn.Module):
    """Of Rainbow; ``always`` draws noise in evaluation mode too."""

    def __init__(self, inputs, outputs, always=False):
        super().__init__()
        self.always = always
        self.weight_mu = nn.Parameter(torch.randn(outputs, inputs) * inputs**-0.5)
        self.weight_sigma = nn.Parameter(torch.full((outputs, inputs), 0.1))
        self.bias_mu = nn.Parameter(torch.zeros(outputs))
        self.bias_sigma = nn.Parameter(torch.full((outputs,), 0.1))

    def forward(self, x):
        weight, bias = self.weight_mu, self.bias_mu
        if self.training or self.always:
            weight = weight + self.weight_sigma * torch.randn_like(weight)
            bias = bias + self.bias_sigma * torch.randn_like(bias)
        return nn.functional.linear(x, weight, bias)


class NoisySubclass(nn.Linear):
    """A linear layer with scales of noise beside weight and bias, of the same shapes."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.sigma_weight = nn.Parameter(torch.full((outputs, inputs), 0.017))
        self.sigma_bias = nn.Parameter(torch.full((outputs,), 0.017))

    def forward(self, x):
        weight = self.weight + self.sigma_weight * torch.randn_like(self.weight)
        bias = self.bias + self.sigma_bias * torch.randn_like(self.bias)
        return nn.functional.linear(x, weight, bias)


class Product(nn.Module):
    """A matrix that no class of torch owns."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(inputs, outputs) * inputs**-0.5)
        self.gain = nn.Parameter(torch.ones(outputs))

    def forward(self, x):
        return (x @ self.matrix) * self.gain


def q_policy(layer):
    """A policy for DQN whose Q-network is built of ``layer(inputs, outputs)``."""

    class Net(QNetwork):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            widths = (self.features_dim, 16, int(self.action_space.n))
            self.q_net = nn.Sequential(
                layer(widths[0], widths[1]), nn.ReLU(), layer(widths[1], widths[2])
            )

    class Policy(DQNPolicy):
        def make_q_net(self):
            options = self._update_features_extractor(self.net_args, features_extractor=None)
            return Net(**options).to(self.device)

    return Policy


class ProductExtractor(BaseFeaturesExtractor):
    def __init__(self, space):
        super().__init__(space, 8)
        self.product, self.activation = Product(space.shape[0], 8), nn.ReLU()

    def forward(self, observations):
        return self.activation(self.product(observations))


class Unsteady(BaseFeaturesExtractor):
    """Draws noise and keeps statistics in every pass, in evaluation mode too."""

    def __init__(self, space):
        super().__init__(space, 8)
        self.net = nn.Sequential(nn.Linear(space.shape[0], 8), nn.ReLU())
        self.register_buffer("mean", torch.zeros(space.shape[0]))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, observations):
        self.count = self.count + len(observations)
        self.mean.mul_(0.9).add_(0.1 * observations.mean(0).detach())
        features = self.net(observations - self.mean)
        return features + 0.1 * torch.randn_like(features)


class CostCriticPolicy(ActorCriticPolicy):
    """A critic of costs with an optimizer of its own, as in Lagrangian PPO."""

    def _build(self, lr_schedule):
        super()._build(lr_schedule)
        self.cost_net = nn.Sequential(nn.Linear(self.features_dim, 8), nn.Tanh(), nn.Linear(8, 1))
        self.cost_optimizer = torch.optim.Adam(self.cost_net.parameters())


class SecondExtractorPolicy(ActorCriticPolicy):
    """The critic sees features of its own, in all of the policy's methods."""

    def _build(self, lr_schedule):
        super()._build(lr_schedule)
        self.second = nn.Sequential(nn.Linear(self.features_dim, self.features_dim), nn.Tanh())
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1))

    def latent_of_critic(self, obs):
        return self.mlp_extractor.forward_critic(self.second(3 * obs))

    def predict_values(self, obs):
        return self.value_net(self.latent_of_critic(obs))

    def forward(self, obs, deterministic=False):
        distribution = self.get_distribution(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self.predict_values(obs), distribution.log_prob(actions)

    def evaluate_actions(self, obs, actions):
        distribution = self.get_distribution(obs)
        return self.predict_values(obs), distribution.log_prob(actions), distribution.entropy()


class CountedReplay(ReplayBuffer):
    """``size`` is a number."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.size = 0

    def add(self, *args):
        super().add(*args)
        self.size = self.buffer_size if self.full else self.pos

    def sample(self, batch_size, env=None):
        rows = torch.randint(self.size, (batch_size,)).numpy()
        return self._get_samples(rows, env=env)


class HiddenReplay(ReplayBuffer):
    """Its observations are elsewhere between two calls."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.secret = self.__dict__.pop("observations")

    def add(self, *args):
        self.observations = self.secret
        super().add(*args)
        del self.observations

    def _get_samples(self, *args, **options):
        self.observations = self.secret
        samples = super()._get_samples(*args, **options)
        del self.observations
        return samples
