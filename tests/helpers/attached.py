"""Train a real model with both callbacks attached, and check all that they promise.

The oracle knows nothing of fire_rl: it walks the policy by torch's own classes, and takes the
nearest isometry from a singular value decomposition in double precision.
"""

import math
from dataclasses import dataclass

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

from fire_rl import FireCallback, InterventionReport, PlasticityMetricsCallback

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
ONLINE = ("q_net", "quantile_net", "actor", "critic")
TRAINED_AT_LEAST = 24  # environment steps between the last event and the end


@dataclass
class Attached:
    """What a training with the callbacks has left."""

    model: BaseAlgorithm
    reports: list[InterventionReport]
    metrics: dict[str, float]  # of the last measurement
    checked: set[str]  # names of the weights that were compared with the oracle


def attach(model, total=96, *, every=32, still=(), **options):
    """Train ``model`` with FIRE and metrics, and check every event, the metrics and the end.

    Args:
        model: Any SB3 model.
        total: Environment steps.
        every: Steps between events.
        still: Parts of names of weights that may stand still in training (a dead unit).
        **options: Of FireCallback.
    """
    start = model.num_timesteps
    planned = range(start + every, start + total - TRAINED_AT_LEAST + 1, every)
    fire = FireCallback(at=list(planned), **{"method": "exact", **options})
    metrics = PlasticityMetricsCallback(every=16, probe_size=32)
    before, after = _Before(), _After(fire)
    after.before = before
    ordered = [before, fire, after, metrics]
    model.learn(total, callback=ordered, reset_num_timesteps=False)
    assert len(fire.reports) == len(planned) >= 2
    assert model.num_timesteps > fire.reports[-1].num_timesteps
    _check_that_training_went_on(model, after, still)
    _check_reports(fire.reports)
    return Attached(model, fire.reports, _checked(metrics.history), after.checked)


def weights_of(policy):
    """Every linear, convolutional and attention weight of online networks: (module, attribute)."""
    found, seen = {}, set()
    for name, module in policy.named_modules():
        if any(part.endswith("_target") for part in name.split(".")):
            continue
        for attribute in _attributes(module):
            held = module._parameters.get(attribute)
            if id(held if held is not None else module) in seen:
                continue  # tied
            seen.add(id(held if held is not None else module))
            found[_plain(f"{name}.{attribute}")] = (module, attribute)
    return found


def effective(module, attribute):
    """The weight as the next pass will use it."""
    if hasattr(module, f"{attribute}_v"):  # the old weight norm, whose `weight` is out of date
        (hook,) = module._forward_pre_hooks.values()
        return hook.compute_weight(module).detach()
    return getattr(module, attribute).detach()


def _attributes(module):
    if isinstance(module, nn.MultiheadAttention):
        fused = module.in_proj_weight is not None
        return ("in_proj_weight",) if fused else [f"{p}_proj_weight" for p in "qkv"]
    return ("weight",) if isinstance(module, (nn.Linear, *CONVS)) else ()


def _parameters(module, attribute):
    """The parameters that make up a weight."""
    if attribute in module._parameters:
        return [module._parameters[attribute]]
    if hasattr(module, f"{attribute}_v"):
        return [module._parameters[f"{attribute}_{part}"] for part in "gv"]
    return list(getattr(module.parametrizations, attribute).parameters())


@torch.no_grad()
def nearest_isometry(module, attribute, weight):
    """FIRE by its definition, one matrix after the other."""
    weight = weight.double()
    if attribute == "in_proj_weight":
        return torch.cat([_isometry(block) for block in weight.chunk(3)])
    if not isinstance(module, CONVS):
        return _isometry(weight)
    taps = math.prod(weight.shape[2:])
    flat, groups = weight.flatten(2).clone(), []
    for group in flat.chunk(module.groups):
        per_tap = [_isometry(group[:, :, k]) / taps for k in range(taps)]
        groups.append(torch.stack(per_tap, dim=2))
    return torch.cat(groups).reshape(weight.shape)


def _isometry(matrix):
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    left = left * (values > 1e-7 * values.max())  # what is zero stays zero
    return left @ right * math.sqrt(matrix.shape[0] / matrix.shape[1])


def _plain(name):
    return name.replace("_orig_mod.", "")


def _optimizers(policy):
    holders = [policy, *(getattr(policy, name, None) for name in ("actor", "critic"))]
    found = [getattr(holder, "optimizer", None) for holder in holders]
    return [optimizer for optimizer in found if optimizer is not None]


def _tensors(policy):
    # The same tensor may be registered twice, and a state dict names it twice.
    return {_plain(name): tensor for name, tensor in policy.state_dict().items()}


class _Before(BaseCallback):
    def _on_step(self):
        return True

    def _on_rollout_start(self):
        policy = self.model.policy
        found = weights_of(policy)
        self.weights = {n: effective(*held).clone() for n, held in found.items()}
        self.tensors = {name: tensor.clone() for name, tensor in _tensors(policy).items()}
        self.memory = [set(map(id, optimizer.state)) for optimizer in _optimizers(policy)]


class _After(BaseCallback):
    def __init__(self, fire):
        super().__init__()
        self.fire, self.events, self.checked = fire, 0, set()

    def _on_step(self):
        return True

    def _on_rollout_start(self):
        if len(self.fire.reports) > self.events:
            self.events = len(self.fire.reports)
            with torch.no_grad():
                self._check()

    def _check(self):
        policy, before = self.model.policy, self.before
        found = weights_of(policy)
        frozen = {
            name
            for name, (module, attribute) in found.items()
            if not all(p.requires_grad for p in _parameters(module, attribute))
        }
        report = self.fire.reports[-1]
        reported = {c.name for c in report.layers if c.action == "project"}
        for name, (module, attribute) in found.items():
            now, old = effective(module, attribute), before.weights[name]
            if name in frozen:
                assert torch.equal(now, old), name
                continue
            expected = nearest_isometry(module, attribute, old).to(now)
            torch.testing.assert_close(now, expected, rtol=1e-3, atol=1e-5, msg=name)
            assert not torch.equal(now, old), name
            assert name.removesuffix("weight").rstrip("._") in reported, name
        self.checked = set(found) - frozen
        assert len(reported) == len(self.checked)

        touched = {
            parameter.data_ptr(): parameter
            for name in self.checked
            for parameter in _parameters(*found[name])
        }
        for online in ONLINE:
            target = getattr(policy, f"{online}_target", None)
            if target is not None:
                one, two = _tensors(getattr(policy, online)), _tensors(target)
                assert all(torch.equal(one[name], tensor) for name, tensor in two.items())
        for name, tensor in _tensors(policy).items():
            if tensor.data_ptr() not in touched and "_target" not in name:
                assert torch.equal(tensor, before.tensors[name]), name
        forgotten = set(map(id, touched.values()))
        for optimizer, memory in zip(_optimizers(policy), before.memory, strict=True):
            assert set(map(id, optimizer.state)) == memory - forgotten
        self.now = {n: effective(*held).clone() for n, held in found.items()}


def _check_that_training_went_on(model, after, still):
    for name, held in weights_of(model.policy).items():
        weight = effective(*held)
        assert bool(torch.isfinite(weight).all()), name
        if name in after.checked and not any(part in name for part in still):
            assert not torch.equal(weight, after.now[name]), f"{name} learns no more"


def _check_reports(reports):
    for report in reports:
        assert all(value >= 0 and math.isfinite(value) for value in report.policy_change.values())
        assert report.policy_change["value_shift"] > 0
        assert report.probe_observations >= 8
        assert report.optimizer_entries_forgotten > 0
        assert all(
            c.dfi_after / c.num_singular_values < 1e-6 for c in report.layers if not c.frozen
        )


def _checked(history):
    assert len(history) >= 2
    values = history[-1][1]
    roles = {key.split("/")[1] for key in values}
    for role in roles:
        for name in ("dfi", "dfi_per_sv", "weight_norm", "spectral_norm"):
            assert values[f"plasticity/{role}/{name}"] > 0, (role, name)
    for key, value in values.items():
        assert math.isfinite(value), key
        if key.endswith("rank"):
            assert value >= 1, key
        if key.endswith("feature_norm"):
            assert value > 0, key
        if "dormant" in key or "ratio" in key or "zero_activation" in key:
            assert 0 <= value <= 1, key
    return values
