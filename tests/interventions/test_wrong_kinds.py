"""Things of a wrong kind: the error names the argument, what came and what to pass."""

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from torch import nn

import fire_rl
from fire_rl import FIRE, anatomy_of, apply_intervention, fire_, intervene_
from tests.helpers.models import make_model

MODEL = make_model("ppo")
WRONG = {
    "model": (MODEL, "an agent of class PPO"),
    "policy": (MODEL.policy, r"a torch module \(ActorCriticPolicy\)"),
    "state dict": (MODEL.policy.state_dict(), r"a mapping \(OrderedDict\)"),
    "none": (None, "None"),
    "text": ("fire", "'fire'"),
    "class": (PPO, "the class PPO"),
    "array": (np.ones((3, 3)), "an object of class ndarray"),
}
SQUARE = torch.ones(3, 3)
CALLS = {
    "fire_": ("module", fire_),
    "intervene_": ("module", lambda value: intervene_(value, "fire")),
    "apply_intervention": ("model", lambda value: apply_intervention(value, "fire")),
    "anatomy_of": ("model", anatomy_of),
    "squared_frobenius_error": ("new", lambda v: fire_rl.squared_frobenius_error(v, SQUARE)),
    "squared_frobenius_error, old": (
        "old", lambda v: fire_rl.squared_frobenius_error(SQUARE, v),
    ),
    "isometry_scale": ("weight_shape", fire_rl.isometry_scale),
    "deviation_from_isometry": ("weight", fire_rl.deviation_from_isometry),
    **{
        n: ("matrix", getattr(fire_rl, n))
        for n in ("newton_schulz", "polar_factor", "stable_rank")
    },
    **{
        n: ("features", getattr(fire_rl, n))
        for n in ("effective_rank", "srank", "approximate_rank", "feature_rank", "feature_norm")
    },
    **{
        n: ("activations", getattr(fire_rl, n))
        for n in ("dormant_ratio", "zero_activation_ratio", "saturation_ratio")
    },
}  # fmt: skip
RIGHT = {
    ("fire_", "policy"), ("intervene_", "policy"), ("apply_intervention", "model"),
    ("anatomy_of", "model"),
    *((n, "state dict") for n in ("dormant_ratio", "zero_activation_ratio", "saturation_ratio")),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_kind_is_named(call, kind):
    if (call, kind) in RIGHT:
        return
    argument, function = CALLS[call]
    value, described = WRONG[kind]
    text = (call, kind) == ("isometry_scale", "text")
    with pytest.raises(
        TypeError, match=f"^`{argument}` must be .*{described}" if not text else "`"
    ):
        function(value)


def test_the_next_step_is_offered():
    with pytest.raises(TypeError, match=r"apply_intervention\(model, FIRE\(\)\).*model\.policy"):
        fire_(MODEL)
    with pytest.raises(TypeError, match=r"the model that it belongs to, or use `fire_\(module\)`"):
        apply_intervention(MODEL.policy, "fire")
    with pytest.raises(TypeError, match=r"Pass one of its weights, such as `module\.weight`"):
        fire_rl.deviation_from_isometry(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"must be a torch\.optim\.Optimizer or None, got 'adam'"):
        fire_(nn.Linear(2, 2), optimizer="adam")


def test_other_arguments():
    module = nn.Linear(2, 2)
    reset = {"name": "reset", "source": "initial"}
    with pytest.raises(TypeError, match=r"`initial` must map names to tensors, got a torch module"):
        intervene_(module, reset, initial=module)
    with pytest.raises(ValueError, match=r"`initial` has no `weight`; it has other"):
        intervene_(module, reset, initial={"other": SQUARE})
    for fresh in (module, "new", nn.Linear, lambda: None):
        with pytest.raises(TypeError, match=r"`fresh(\(\))?`"):
            intervene_(module, "reset", fresh=fresh)
    with pytest.raises(TypeError, match=r"`initial` must map names to tensors"):
        apply_intervention(MODEL, reset, initial=MODEL)
    with pytest.raises(TypeError, match=r"`probe` must be a Probe .* got a mapping"):
        apply_intervention(MODEL, FIRE(), probe={})


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(0, 3), lambda: nn.Linear(3, 0), lambda: nn.Conv1d(0, 4, 3),
        lambda: nn.Embedding(4, 2), lambda: nn.Identity(), lambda: nn.LSTM(2, 3),
    ],
)  # fmt: skip
@pytest.mark.parametrize("spec", ["fire", "random_orthogonal"])
def test_a_module_without_any_layer_is_an_error(make, spec):
    with pytest.raises(ValueError, match="finds no linear, convolutional or attention layer"):
        intervene_(make(), spec)
    intervene_(make(), "reset")


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_zero_width_layers_are_kept_beside_others():
    module = nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 3), nn.Linear(3, 2))
    changes = intervene_(module, "fire")
    assert [change.name for change in changes.layers] == ["2"]
    assert changes.kept == {"0.weight": "empty", "1.weight": "empty"}


def test_matrices_of_ones_own_are_named_unless_they_change():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix, self.vector = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3))
            self.layer = nn.Linear(3, 3)

    with pytest.warns(UserWarning, match=r"`Own` \(Own\) holds weights .*\(`matrix`, `vector`\)"):
        changes = intervene_(Own(), "fire")
    assert changes.kept == {"matrix": "Own", "vector": "Own"}
    intervene_(Own(), {"name": "shrink_and_perturb"}, fresh=Own)
