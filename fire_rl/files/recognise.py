"""SB3 zips without their code: policies are recognised by the names of their tensors.

A stand-in is an SB3 model whose policy is a skeleton around the tensors of a file, and whose
optimizers hold the file's state: :func:`~fire_rl.apply_intervention` works on it as on the
loaded model, and nothing in the file is unpickled.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor, nn

from fire_rl.files.formats import VARIABLES, ModelFile
from fire_rl.files.rebuild import Skeleton, build_skeleton
from fire_rl.files.zips import printed
from fire_rl.sb3.internals import set_vec_normalize
from fire_rl.utils.paths import attribute_at
from fire_rl.utils.torch_internals import own_modules

_LAYER = r"\.(weight|bias)"
# CrossQ puts BatchRenorm between its layers (sb3-contrib `common/torch_layers.py`).
_MLP = r"\.\d+\.(weight|bias|scale|ra_mean|ra_var|steps)"
# NatureCNN and CombinedExtractor; FlattenExtractor has no tensors.
_EXTRACTOR = rf"features_extractor(\.extractors\.[^.]+)?\.(cnn\.[024]|linear\.0){_LAYER}"
_NATURE_CNN_KERNELS = {"0": (8, 8), "2": (4, 4), "4": (3, 3)}  # SB3 `common/torch_layers.py`
_ACTOR_CRITIC = (
    rf"((pi_|vf_)?{_EXTRACTOR}|mlp_extractor\.(policy|value)_net{_MLP}|(action|value)_net{_LAYER}"
    r"|log_std"
)
_GAUSSIAN_ACTOR = rf"actor\.({_EXTRACTOR}|latent_pi{_MLP}|(mu(\.0)?|log_std){_LAYER}|log_std)"
_Q_FUNCTIONS = rf"\.({_EXTRACTOR}|qf\d+{_MLP})"
_ON_POLICY_PARTS = (
    "features_extractor",
    "pi_features_extractor",
    "vf_features_extractor",
    "mlp_extractor.policy_net",
    "mlp_extractor.value_net",
)


@dataclass(frozen=True)
class PolicyKind:
    """One family of policies that have the same tensors by name.

    Attributes:
        algorithms: Names of the algorithms whose policies have these tensors.
        names: Pattern that the name of every tensor matches.
        needs: Prefixes; each of them begins the name of at least one tensor.
        stand_in: Module and name of the class that the stand-in has for all these algorithms.
        parts: Modules of the policy that may have no tensors.
    """

    algorithms: str
    names: str
    needs: Sequence[str]
    stand_in: tuple[str, str]
    parts: Sequence[str] = ()


_KINDS = (
    PolicyKind(
        "DQN",
        rf"q_net(_target)?\.({_EXTRACTOR}|q_net{_MLP})",
        ("q_net.", "q_net_target."),
        ("stable_baselines3", "DQN"),
    ),
    PolicyKind(
        "QR-DQN",
        rf"quantile_net(_target)?\.({_EXTRACTOR}|quantile_net{_MLP})",
        ("quantile_net.", "quantile_net_target."),
        ("sb3_contrib", "QRDQN"),
    ),
    PolicyKind(
        "TD3 or DDPG",
        rf"actor(_target)?\.({_EXTRACTOR}|mu{_MLP})|critic(_target)?{_Q_FUNCTIONS}",
        ("actor.", "actor_target.", "critic.", "critic_target."),
        ("stable_baselines3", "TD3"),
    ),
    PolicyKind(
        "SAC or TQC",
        rf"{_GAUSSIAN_ACTOR}|critic(_target)?{_Q_FUNCTIONS}",
        ("actor.mu.", "actor.log_std", "critic.", "critic_target."),
        ("stable_baselines3", "SAC"),
    ),
    PolicyKind(
        "CrossQ",
        rf"{_GAUSSIAN_ACTOR}|critic{_Q_FUNCTIONS}",
        ("actor.mu.", "actor.log_std", "critic."),
        # A SAC without target networks.
        ("stable_baselines3", "SAC"),
    ),
    PolicyKind(
        "PPO, A2C, TRPO or MaskablePPO",
        rf"{_ACTOR_CRITIC})",
        ("action_net.", "value_net."),
        ("stable_baselines3", "PPO"),
        _ON_POLICY_PARTS,
    ),
    PolicyKind(
        "RecurrentPPO",
        rf"{_ACTOR_CRITIC}|lstm_(actor|critic)\.(weight|bias)_(ih|hh)_l\d+|critic{_LAYER})",
        ("action_net.", "value_net.", "lstm_actor."),
        ("sb3_contrib", "RecurrentPPO"),
        _ON_POLICY_PARTS,
    ),
)
# Policies that are known and cannot be worked on in the zip: what the names of their tensors begin
# with, what none of them begins with, and what they are.
_FOREIGN = (
    (
        ("mlp_extractor.shared_net.",),
        (),
        "a PPO or A2C of SB3 before 1.8 whose actor and critic share layers "
        "(`mlp_extractor.shared_net`). SB3 since 1.8 cannot load it, with or without --trust",
    ),
    (
        ("action_net.",),
        ("value_net.", "mlp_extractor.", "features_extractor."),
        "an ARS of sb3-contrib, which trains without gradients: its own vector of weights "
        "overwrites the policy's, also after loading with --trust",
    ),
)
# Moments of torch's and SB3's optimizers that have the shape of their parameter.
_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "momentum_buffer", "sum")


@dataclass(frozen=True, eq=False)
class StandIn:
    """A model that is built from a file, in place of the one that was saved.

    Attributes:
        kind: The kind of policy that was recognised.
        model: What :func:`~fire_rl.apply_intervention` takes.
        file: The file; the model holds its tensors.
    """

    kind: PolicyKind
    model: Any
    file: ModelFile

    def content(self) -> dict[str, Any]:
        """Return what the members of the zip hold now."""
        members = {"policy.pth": self.file.content["policy.pth"]}
        for member in self.file.optimizers:
            members[member] = attribute_at(self.model, member.removesuffix(".pth")).state_dict()
        return members | {
            name: self.file.content[name] for name in VARIABLES if name in self.file.content
        }


class ForeignPolicyError(ValueError):
    """A policy that is known, and of which only the bare tensors can be worked on."""


def recognise(tensors: Mapping[str, Tensor]) -> PolicyKind:
    """Return the kind of policy that has tensors of these names and shapes.

    Raises:
        ForeignPolicyError: If it is one that only other versions of SB3 load, or that is not
            trained by gradients.
        ValueError: If no policy of SB3 or sb3-contrib has them; one that does not fit is named.
    """
    _check_foreign(tensors)
    strangers: list[list[str]] = []
    for kind in _KINDS:
        if not all(any(name.startswith(need) for name in tensors) for need in kind.needs):
            continue
        strange = [
            n for n, t in tensors.items() if not (re.fullmatch(kind.names, n) and _fits(n, t))
        ]
        if not strange:
            return kind
        strangers.append(strange)
    first = min(strangers, key=len)[0] if strangers else next(iter(tensors))
    raise ValueError(
        f"The file holds `{first}`, which is no tensor of a policy that comes with SB3 or "
        "sb3-contrib: the network is a custom one."
    )


def _check_foreign(tensors: Mapping[str, Tensor]) -> None:
    for begins, lacks, what in _FOREIGN:
        has = [any(name.startswith(prefix) for name in tensors) for prefix in begins]
        if all(has) and not any(name.startswith(prefix) for name in tensors for prefix in lacks):
            raise ForeignPolicyError(
                f"The file is {what}. Its weights alone can be changed: take `policy.pth` out of "
                "the zip (unzip MODEL policy.pth) and apply FIRE to that file, as to any state "
                "dict."
            )


def make_stand_in(file: ModelFile) -> StandIn:
    """Build a model around the tensors of an SB3 zip, without unpickling anything.

    Raises:
        ValueError: If the policy is not recognised, or an optimizer does not fit it.
        ModuleNotFoundError: If its algorithm is one of sb3-contrib, and that is missing.
    """
    kind = recognise(file.tensors)
    policy: Any = build_skeleton(file.tensors)
    for path in kind.parts:
        _ensure(policy, path)
    for name in ("critic", "critic_target"):
        critic = own_modules(policy).get(name)
        if isinstance(critic, Skeleton):
            # SB3 registers `qf0`, `qf1`, ... and keeps them in a list.
            networks: Any = [m for n, m in critic.named_children() if n.startswith("qf")]
            critic.q_networks = networks
    model: Any = object.__new__(_algorithm(kind))  # its own __init__ would build an agent
    model.policy = policy
    model.device = torch.device("cpu")
    model.seed = file.whole_number("seed")
    model.num_timesteps = file.num_timesteps or 0
    model.env = model.replay_buffer = model.rollout_buffer = None
    set_vec_normalize(model, None)
    _add_temperature(model, file)
    _add_optimizers(model, file)
    return StandIn(kind, model, file)


def _algorithm(kind: PolicyKind) -> type[BaseAlgorithm]:
    module, name = kind.stand_in
    try:
        algorithm: type[BaseAlgorithm] = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ModuleNotFoundError(
            f"A zip of {kind.algorithms} needs sb3-contrib: pip install 'fire-rl[contrib]'."
        ) from error
    return algorithm


def _fits(name: str, tensor: Tensor) -> bool:
    """Tell whether a tensor has the shape that its name in SB3's networks implies."""
    if not name.endswith(".weight"):
        return tensor.ndim <= 2
    if ".cnn." in name:
        index = name.split(".")[-2]
        return tensor.ndim == 4 and tuple(tensor.shape[2:]) == _NATURE_CNN_KERNELS[index]
    return tensor.ndim in (1, 2)  # one: PReLU


def _add_temperature(model: Any, file: ModelFile) -> None:
    variables = next((file.content[name] for name in VARIABLES if name in file.content), None)
    learned = variables.get("log_ent_coef") if isinstance(variables, Mapping) else None
    model.log_ent_coef = learned if isinstance(learned, Tensor) else None
    model.ent_coef_optimizer = None
    model.ent_coef = file.data.get("ent_coef")
    if model.log_ent_coef is not None and not isinstance(model.ent_coef, str):
        model.ent_coef = "auto"


def _add_optimizers(model: Any, file: ModelFile) -> None:
    policy = model.policy
    networks = [policy, *(m for n, m in policy.named_children() if n in ("actor", "critic"))]
    for network in networks:  # a zip may come without
        network.optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    model.actor, model.critic = (own_modules(policy).get(name) for name in ("actor", "critic"))
    for member, content in file.optimizers.items():
        path = member.removesuffix(".pth")
        owner_path, _, name = path.rpartition(".")
        owner = attribute_at(model, owner_path) if owner_path else model
        known = name == "optimizer" if owner_path else name == "ent_coef_optimizer"
        if owner is None or not known:
            raise ValueError(f"The zip holds `{member}`, which SB3's own algorithms do not save.")
        setattr(owner, name, _optimizer(member, content, list(_candidates(model, path))))


def _candidates(model: Any, path: str) -> Iterator[list[Tensor]]:
    """Yield the lists of parameters that an optimizer may hold, in its order."""
    if path == "ent_coef_optimizer":
        yield [model.log_ent_coef] if model.log_ent_coef is not None else []
        return
    network = attribute_at(model, path.removesuffix(".optimizer"))
    yield list(network.parameters())
    for name in ("q_net", "quantile_net"):  # since SB3 2.4 without the target's
        online = own_modules(network).get(name)
        if path == "policy.optimizer" and online is not None:
            yield list(online.parameters())
    if path == "critic.optimizer":  # SAC's critic does not train an extractor that it shares
        yield [p for n, p in network.named_parameters() if "features_extractor" not in n]


def _optimizer(
    member: str, content: Any, candidates: Sequence[Sequence[Tensor]]
) -> torch.optim.Optimizer:
    """Build an optimizer with the state of a file, over those parameters that it fits."""
    try:
        groups = [dict(group) for group in content["param_groups"]]
        keys = [key for group in groups for key in group["params"]]
        entries = {keys.index(key): entry for key, entry in content["state"].items()}
        parameters = next((c for c in candidates if _holds(c, keys, entries)), None)
        if parameters is None:
            expected = " or ".join(str(len(c)) for c in candidates)
            raise ValueError(
                f"state of {len(keys)} parameters, expected {expected} of their shapes"
            )
        remaining = iter(parameters)
        parts = [{"params": [next(remaining) for _ in group["params"]]} for group in groups]
        optimizer: torch.optim.Optimizer
        if "initial_accumulator_value" in groups[0]:  # state that exists before the first step
            names = ("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps")
            options = {name: groups[0][name] for name in names}
            optimizer = torch.optim.Adagrad(parts, **options)
        else:
            optimizer = torch.optim.Optimizer(parts, {})
        optimizer.load_state_dict(content)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        what = printed(str(error).partition("\n")[0]) or type(error).__name__
        raise ValueError(f"`{member}` is not the state of an optimizer of SB3: {what}.") from error
    return optimizer


def _holds(
    parameters: Sequence[Tensor], keys: Sequence[Any], entries: Mapping[int, Mapping[str, Any]]
) -> bool:
    return len(parameters) == len(keys) and all(
        entry[name].shape == parameters[index].shape
        for index, entry in entries.items()
        for name in _MOMENTS
        if isinstance(entry.get(name), Tensor)
    )


def _ensure(policy: nn.Module, path: str) -> None:
    """Put an empty module where a module without tensors has been."""
    for part in path.split("."):
        if part not in own_modules(policy):
            own_modules(policy)[part] = Skeleton()
        child = own_modules(policy)[part]
        assert child is not None
        policy = child
