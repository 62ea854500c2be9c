"""Recognise noisy linear layers by their parameters: a mean and a scale of noise for each weight.

"Noisy Networks for Exploration" (Fortunato et al. 2018): ``y = (μ + σ ∘ ε) x``. Torch has no class
for them, and every library has its own. The mean is what the layer computes without noise: it is
the layer's weight. The scale of the noise is a learned amount of exploration and no weight matrix.
"""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import UninitializedParameter

from fire_rl.utils.torch_internals import own_parameters

_MEAN, _SCALE = "mu", "sigma"


def noisy_means(module: nn.Module) -> tuple[str, str | None] | None:
    """Return what a noisy linear layer calls the means of its weight and bias.

    It is one if it holds a matrix whose name has ``mu``, and one of the same shape by the same name
    with ``sigma``: ``weight_mu`` and ``weight_sigma``, ``mu_weight`` and ``sigma_weight``, ``mu_W``
    and ``sigma_W``. Its rows are outputs: as many as the bias has or the module says
    (``out_features``). Where neither is there the matrix is square, or it is not recognised.

    Args:
        module: Any module.

    Returns:
        The names of the weight and, if there is one, of the bias; None for all other modules.
    """
    own = {
        name: parameter
        for name, parameter in own_parameters(module).items()
        if parameter is not None and not isinstance(parameter, UninitializedParameter)
    }
    means = {
        name: mean
        for name, mean in own.items()
        if (scale := own.get(name.replace(_MEAN, _SCALE))) is not None
        and scale is not mean
        and scale.shape == mean.shape
    }
    weights = [name for name, mean in means.items() if mean.ndim == 2]
    biases = [name for name, mean in means.items() if mean.ndim == 1]
    if len(weights) != 1 or len(biases) > 1:
        return None
    rows, columns = means[weights[0]].shape
    outputs = getattr(module, "out_features", None)
    if biases:
        outputs = len(means[biases[0]])
    if outputs != rows and not (outputs is None and rows == columns):
        return None
    return weights[0], biases[0] if biases else None


def noise_scales(module: nn.Module) -> tuple[str, ...]:
    """Return what a subclass of ``nn.Linear`` with noise calls the scales of it.

    Its weight is the mean: ``sigma_weight`` and ``sigma_bias`` have the shapes of ``weight`` and
    ``bias``.
    """
    if not isinstance(module, nn.Linear):
        return ()
    own = {n: parameter for n, parameter in own_parameters(module).items() if parameter is not None}
    shapes = {own[name].shape for name in ("weight", "bias") if name in own}
    return tuple(name for name, p in own.items() if _SCALE in name and p.shape in shapes)
