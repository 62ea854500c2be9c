"""Feature extractors as people write them: the blocks of the literature, tiny."""

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.nn.utils import parametrizations

WIDTH = 8


class _Extractor(BaseFeaturesExtractor):
    """The body is made by :meth:`build`, from the observation space."""

    def __init__(self, observation_space):
        super().__init__(observation_space, WIDTH)
        self.build(observation_space)

    def forward(self, observations):
        return self.net(observations)


class Residual(nn.Module):
    """An IMPALA block."""

    def __init__(self, channels):
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1),
        )  # fmt: skip

    def forward(self, x):
        return x + self.body(x)


class Impala(_Extractor):
    """Two stages of convolution, pooling and residual blocks (arXiv 1802.01561, figure 3)."""

    def build(self, space):
        stages = []
        for inputs, outputs in ((space.shape[0], 4), (4, 6)):
            stages += [
                nn.Conv2d(inputs, outputs, 3, stride=2, padding=1),
                nn.MaxPool2d(3, stride=2, padding=1),
                Residual(outputs),
                Residual(outputs),
            ]
        self.net = nn.Sequential(*stages, nn.ReLU(), nn.Flatten(), nn.Linear(54, WIDTH), nn.ReLU())


class BasicBlock(nn.Module):
    """A ResNet block: no biases, batch norm, a 1x1 convolution beside it."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride=2, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.downsample(x))


class ResNet(_Extractor):
    def build(self, space):
        self.net = nn.Sequential(
            nn.Conv2d(space.shape[0], 4, 5, stride=3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
            BasicBlock(4, 4), BasicBlock(4, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(6, WIDTH), nn.ReLU(),
        )  # fmt: skip


class LayerNormMlp(_Extractor):
    def build(self, space):
        self.net = nn.Sequential(
            nn.Linear(space.shape[0], 12), nn.LayerNorm(12), nn.ReLU(),
            nn.Linear(12, WIDTH), nn.LayerNorm(WIDTH), nn.ReLU(),
        )  # fmt: skip


class BatchNormMlp(_Extractor):
    def build(self, space):
        self.net = nn.Sequential(
            nn.Linear(space.shape[0], 12), nn.BatchNorm1d(12), nn.ReLU(),
            nn.Linear(12, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(),
        )  # fmt: skip


class GroupedCnn(_Extractor):
    """Depthwise separable and grouped convolutions, GroupNorm, dropout."""

    def build(self, space):
        self.net = nn.Sequential(
            nn.Conv2d(space.shape[0], 8, 5, stride=3), nn.GroupNorm(2, 8), nn.SiLU(),
            nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1), nn.GELU(),
            nn.Conv2d(8, 4, 3, stride=2, groups=2), nn.LeakyReLU(), nn.Flatten(), nn.Dropout(0.1),
            nn.LazyLinear(WIDTH), nn.Tanh(),
        )  # fmt: skip
        self.net(torch.zeros(1, *space.shape))  # initialises the lazy layer


class Embedded(_Extractor):
    """Discrete observations arrive one-hot; the embedding is that of the index."""

    def build(self, space):
        sizes = [space.n] if isinstance(space, spaces.Discrete) else list(space.nvec)
        self.sizes = [int(n) for n in sizes]
        self.places = nn.ModuleList(nn.Embedding(n, 6) for n in self.sizes)
        self.net = nn.Sequential(nn.Linear(6 * len(self.sizes), WIDTH), nn.ReLU())

    def forward(self, observations):
        parts = observations.flatten(1).split(self.sizes, dim=1)
        embedded = [e(part.argmax(1)) for e, part in zip(self.places, parts, strict=True)]
        return self.net(torch.cat(embedded, dim=1))


class Attentive(_Extractor):
    """Each number is a token; self-attention with the fused in-projection."""

    def build(self, space):
        self.places = nn.Embedding(space.shape[0], WIDTH)
        self.lift = nn.Linear(1, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.norm = nn.LayerNorm(WIDTH)
        self.net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())

    def forward(self, observations):
        tokens = self.lift(observations[..., None]) + self.places.weight
        mixed, _ = self.attention(tokens, tokens, tokens)
        return self.net(self.norm(tokens + mixed).mean(1))


class CrossAttentive(_Extractor):
    """A learned query attends to tokens of another width: three in-projections."""

    def build(self, space):
        self.lift = nn.Linear(1, 6)
        self.query = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, 2, kdim=6, vdim=6, batch_first=True)
        self.net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())

    def forward(self, observations):
        tokens = self.lift(observations[..., None])
        query = self.query.expand(len(tokens), -1, -1)
        mixed, _ = self.attention(query, tokens, tokens)
        return self.net(mixed[:, 0])


class Transformer(_Extractor):
    """torch's own encoder, whose fused kernels run no submodules in evaluation."""

    def build(self, space):
        self.lift = nn.Linear(1, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 12, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())

    def forward(self, observations):
        return self.net(self.encoder(self.lift(observations[..., None])).mean(1))


class WeightNormed(_Extractor):
    def build(self, space):
        self.net = nn.Sequential(
            parametrizations.weight_norm(nn.Linear(space.shape[0], 12)), nn.ReLU(),
            parametrizations.weight_norm(nn.Linear(12, WIDTH), dim=None), nn.ReLU(),
        )  # fmt: skip


class WeightNormedCnn(_Extractor):
    def build(self, space):
        self.net = nn.Sequential(
            parametrizations.weight_norm(nn.Conv2d(space.shape[0], 4, 8, stride=8)), nn.ReLU(),
            nn.Flatten(), nn.Linear(64, WIDTH), nn.ReLU(),
        )  # fmt: skip


class SpectralNormed(_Extractor):
    def build(self, space):
        self.net = nn.Sequential(
            parametrizations.spectral_norm(nn.Linear(space.shape[0], WIDTH)), nn.ReLU()
        )


class OldWeightNormed(_Extractor):
    """As before torch 2.0: hooks that compute the weight at each pass."""

    def build(self, space):
        self.net = nn.Sequential(nn.utils.weight_norm(nn.Linear(space.shape[0], WIDTH)), nn.ReLU())


class OldSpectralNormed(_Extractor):
    def build(self, space):
        layer = nn.utils.spectral_norm(nn.Linear(space.shape[0], WIDTH))
        self.net = nn.Sequential(layer, nn.ReLU())


class Tied(_Extractor):
    """Two layers with one weight."""

    def build(self, space):
        self.net = nn.Sequential(
            nn.Linear(space.shape[0], WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(),
            nn.Linear(WIDTH, WIDTH), nn.ReLU(),
        )  # fmt: skip
        self.net[4].weight = self.net[2].weight


class Frozen(_Extractor):
    """Of somebody else's pretrained layers."""

    def build(self, space):
        self.net = nn.Sequential(
            nn.Linear(space.shape[0], 12), nn.ReLU(), nn.Linear(12, WIDTH), nn.ReLU()
        )
        self.net[:2].requires_grad_(False)


class OneDimensional(_Extractor):
    """A convolution along the vector, and a transposed one."""

    def build(self, space):
        self.net = nn.Sequential(
            nn.Unflatten(1, (1, -1)), nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(4 * (space.shape[0] - 2), WIDTH), nn.ReLU(),
        )  # fmt: skip


class Recurrent(_Extractor):
    """A GRU over the numbers of one observation: no layer that FIRE knows."""

    def build(self, space):
        self.gru = nn.GRU(1, WIDTH, batch_first=True)
        self.net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())

    def forward(self, observations):
        output, _ = self.gru(observations[..., None])
        return self.net(output[:, -1])


class Functional(_Extractor):
    """Activations are called as functions, so that no hook sees them."""

    def build(self, space):
        self.first, self.second = nn.Linear(space.shape[0], 12), nn.Linear(12, WIDTH)

    def forward(self, observations):
        return torch.relu(self.second(torch.relu(self.first(observations))))
