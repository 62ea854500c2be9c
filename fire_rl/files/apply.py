"""Apply FIRE to files: to SB3 zips, with or without the code in them, and to bare state dicts."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import get_device
from torch import Tensor, nn

from fire_rl.files.formats import (
    VARIABLES,
    ModelFile,
    read_model_file,
    same_content,
)
from fire_rl.files.rebuild import Hint, build_skeleton, identity
from fire_rl.files.recognise import ForeignPolicyError, make_stand_in
from fire_rl.interventions import FIRE, make_intervention
from fire_rl.interventions.on_modules import intervene_
from fire_rl.interventions.report import InterventionReport, LayerChange
from fire_rl.sb3.surgery import apply_intervention
from fire_rl.utils.validation import check_choice
from fire_rl.weights.layers import weight_layers

# Algorithm by the name that rl_zoo3 gives it.
ALGORITHMS: Mapping[str, tuple[str, str]] = {
    **{
        name: ("stable_baselines3", name.upper())
        for name in ("a2c", "ddpg", "dqn", "ppo", "sac", "td3")
    },
    "crossq": ("sb3_contrib", "CrossQ"),
    "ppo_lstm": ("sb3_contrib", "RecurrentPPO"),
    "ppo_mask": ("sb3_contrib", "MaskablePPO"),
    "qrdqn": ("sb3_contrib", "QRDQN"),
    "tqc": ("sb3_contrib", "TQC"),
    "trpo": ("sb3_contrib", "TRPO"),
}
_LAYER_RULES = ("hidden", "conv", "head", "biases", "norm_layers", "log_std")
# Options that need what a bare state dict does not say.
_OF_ZIPS = ("networks", "target", "entropy_temperature", "norm_layers", "log_std")
# Names of embeddings (tables of vectors, without a bias) in torch, timm and Hugging Face's models.
_EMBEDDING = re.compile(r"(^|[._])(\w*emb\w*|wte|wpe|lookup\w*|codebook\w*)($|[._])", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class FileSurgery:
    """The result of an intervention on a file.

    Attributes:
        file: The file as it was read; its tensors may have changed since.
        content: New content of the members that differ now.
        layers: The change of each layer.
        report: The report of the whole intervention; None for a bare state dict.
        recognised: The algorithms whose policies look like this one, or ``"state dict"``.
        kept: For a bare state dict, each tensor of two or more dimensions that belongs to no layer,
            with the reason.
    """

    file: ModelFile
    content: Mapping[str, Any]
    layers: tuple[LayerChange, ...]
    report: InterventionReport | None
    recognised: str
    kept: Mapping[str, str]

    def to_dict(self, out: Path | None) -> dict[str, Any]:
        """Return plain values, ready for JSON; ``out`` is the file that was written, if any."""
        return {
            "file": str(self.file.path),
            "out": None if out is None else str(out),
            "recognised_as": self.recognised,
            "changed_members": sorted(self.content),
            "kept": dict(self.kept),
            "layers": [asdict(layer) for layer in self.layers],
            "report": None if self.report is None else self.report.to_dict(),
        }


def operate_on_file(
    file: ModelFile,
    options: Mapping[str, Any],
    *,
    algorithm: type[BaseAlgorithm] | None = None,
    initial: Path | None = None,
    seed: int | None = None,
) -> FileSurgery:
    """Apply FIRE to the content of a file; nothing is written.

    Args:
        file: The file that was read; its tensors change in place.
        options: Options of FIRE, and ``preset``.
        algorithm: If given, the zip is loaded with this class, which unpickles what it holds.
        initial: A file of the same network before training, for ``source="initial"``.
        seed: Seed of new draws; by default the model's seed plus its steps.

    Raises:
        ValueError: If the file is not recognised, or an option is not possible for it.
    """
    fire = make_intervention({"name": "fire", **options})
    assert isinstance(fire, FIRE)
    _check_options(fire, options, file, algorithm is not None, initial)
    began = None if initial is None else _initial_tensors(initial, file)
    with _named(file.path):
        if file.format != "sb3":
            return _operate_on_state_dict(file, fire, began, 0 if seed is None else seed)
        return _operate_on_zip(file, fire, began, algorithm, seed)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in an error that does not; torch's of singular matrices are among them."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if str(path) in str(error) and isinstance(error, ValueError):
            raise
        raise ValueError(f"`{path}`: {str(error).partition(chr(10))[0]}") from error


def _operate_on_zip(
    file: ModelFile,
    fire: FIRE,
    began: Mapping[str, Tensor] | None,
    algorithm: type[BaseAlgorithm] | None,
    seed: int | None,
) -> FileSurgery:
    content: Callable[[], Mapping[str, Any]]
    if algorithm is None:
        try:
            stand_in = make_stand_in(file)
        except ForeignPolicyError:
            raise
        except ValueError as error:
            raise ValueError(
                f"{error} The tensors alone do not say what it computes. If you trust whoever made "
                "the file, --trust --algo NAME loads it with SB3, which runs code from it."
            ) from error
        model, recognised, content = stand_in.model, stand_in.kind.algorithms, stand_in.content
    else:
        model, recognised = _load(file.path, algorithm), algorithm.__name__
        content = partial(_saved, model, file)
    report = apply_intervention(model, fire, initial=began, seed=seed)
    before = read_model_file(file.path, file.limits).content
    changed = {
        member: new
        for member, new in content().items()
        if member in before and not same_content(before[member], new)
    }
    return FileSurgery(file, changed, report.layers, report, recognised, {})


def find_algorithm(name: str) -> type[BaseAlgorithm]:
    """Return the class of an algorithm, by rl_zoo3's name or as ``"module:Class"``.

    Raises:
        ValueError: If there is no such algorithm.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        check_choice("--algo", name, (*ALGORITHMS, "module:Class"))
        module, attribute = ALGORITHMS[name]
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        hint = " Install it: pip install 'fire-rl[contrib]'." if module == "sb3_contrib" else ""
        raise ValueError(f"`--algo {name}`: {error}.{hint}") from error
    except AttributeError as error:
        raise ValueError(f"`--algo {name}`: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, BaseAlgorithm)):
        raise ValueError(
            f"`--algo {name}` must be a subclass of SB3's BaseAlgorithm, is {found!r}."
        )
    return found


def state_dict_layers(file: ModelFile) -> tuple[nn.Module, Mapping[str, str]]:
    """Build the layers of a bare state dict; also return which tensors are no layer's, and why."""
    tensors = file.tensors
    recurrent = {n.rpartition(".")[0] for n in tensors if n.endswith("weight_ih_l0")}

    def hint(name: str) -> Hint | None:
        if name in recurrent or name in depthwise:
            return "other"
        return "embedding" if _EMBEDDING.search(name) else None

    depthwise: set[str] = set()
    skeleton = build_skeleton(tensors, hint)
    convs = [layer for layer in weight_layers(skeleton) if layer.kind == "conv"]
    # One input channel: a first convolution on grey images, or else a depthwise convolution.
    depthwise = {layer.name for layer in convs[1:] if layer.weight.shape[1] == 1}
    if depthwise:
        skeleton = build_skeleton(tensors, hint)
    used = {identity(layer.weight) for layer in weight_layers(skeleton)}
    kept = {
        name: _why_kept(name, depthwise)
        for name, tensor in tensors.items()
        if tensor.ndim >= 2 and identity(tensor) not in used
    }
    return skeleton, kept


def _why_kept(name: str, depthwise: Collection[str]) -> str:
    layer, _, part = name.rpartition(".")
    if layer in depthwise:
        return "looks like a depthwise convolution, and the file does not hold its number of groups"
    if _EMBEDDING.search(layer):
        return "its name says embedding"
    if part == "weight":
        return "not the weight of a plain layer: its module holds other tensors, too"
    return "not the `weight` of a linear layer or convolution"


def _operate_on_state_dict(
    file: ModelFile, fire: FIRE, began: Mapping[str, Tensor] | None, seed: int
) -> FileSurgery:
    skeleton, kept = state_dict_layers(file)
    if not weight_layers(skeleton):
        raise ValueError(f"`{file.path}` holds no weight of a linear layer or convolution.")
    changes = intervene_(skeleton, fire, initial=began, seed=seed)
    return FileSurgery(file, {"": file.content[""]}, changes.layers, None, "state dict", kept)


def _check_options(
    fire: FIRE, given: Mapping[str, Any], file: ModelFile, trusted: bool, initial: Path | None
) -> None:
    """Raise ValueError for an option that is not possible for a file."""
    if fire.vecnormalize != "keep":
        raise ValueError(
            "`--vecnormalize reset` is not possible: the statistics of VecNormalize are in another "
            "file, vecnormalize.pkl. Leave that file out when you go on."
        )
    if fire.replay_buffer != "keep":
        raise ValueError(
            "`--replay-buffer clear` is not possible: no zip holds a replay buffer. Do not load "
            "the old one when you go on."
        )
    if file.format != "sb3":
        _check_state_dict_options(fire, given, trusted)
    reset = [rule for rule in _LAYER_RULES if getattr(fire, rule) == "reset"]
    flags = " and ".join(f"`--{rule.replace('_', '-')} reset`" for rule in reset)
    if fire.source == "initial" and reset and initial is None:
        raise ValueError(
            f"{flags} with `--source initial` needs the weights that the run began with, which the "
            "file does not hold: give one saved at the start with --initial FILE."
        )
    if initial is not None and (fire.source != "initial" or not reset):
        raise ValueError("`--initial` is for `--source initial` and rules that `reset`.")
    if file.format != "sb3" or trusted:
        return
    if fire.source == "fresh" and reset:
        raise ValueError(
            f"{flags} needs a new draw of the policy's own initialisation, and the policy's class "
            "and arguments are pickled in the zip. Take old weights (--source initial --initial "
            "FILE), or load the zip with SB3 (--trust --algo NAME) if you trust whoever made it."
        )
    if fire.norm_layers == "reset":
        raise ValueError(
            "`--norm-layers reset` needs the policy's modules, which the zip holds in pickles: add "
            "--trust --algo NAME if you trust whoever made it."
        )


def _check_state_dict_options(fire: FIRE, given: Mapping[str, Any], trusted: bool) -> None:
    default = FIRE()
    differs = [name for name in _OF_ZIPS if getattr(fire, name) != getattr(default, name)]
    # A preset may set it, too; that has no effect, since a state dict holds no optimizer state.
    differs += [name for name in ("optimizer_state",) if name in given]
    for name in differs:
        raise ValueError(
            f"`--{name.replace('_', '-')}` is not possible for a bare state dict: it does not say "
            "which tensors belong to which role, to target networks, to norm layers or to an "
            "optimizer. Leave the flag out; --include and --exclude choose layers by name."
        )
    if trusted:
        raise ValueError("`--trust` is for zips of SB3: leave it out.")


def _initial_tensors(path: Path, file: ModelFile) -> dict[str, Tensor]:
    initial = read_model_file(path, file.limits)
    if (initial.format == "sb3") != (file.format == "sb3"):
        raise ValueError(f"`--initial` must be of the same kind as `{file.path}`, got `{path}`.")
    found = initial.tensors
    for name, tensor in file.tensors.items():
        if name not in found or found[name].shape != tensor.shape:
            raise ValueError(
                f"`--initial` must hold the same tensors as `{file.path}`; `{name}` is missing in "
                f"`{path}` or has another shape."
            )
    return found


def _load(path: Path, algorithm: type[BaseAlgorithm]) -> BaseAlgorithm:
    """Load a zip with SB3, which unpickles what it holds; no replay buffer is allocated."""
    unneeded: dict[str, Any] = {
        "buffer_size": 1,
        "replay_buffer_class": None,
        "replay_buffer_kwargs": {},
        "optimize_memory_usage": False,
    }
    try:
        return algorithm.load(path, device=get_device("cpu"), custom_objects=unneeded)
    except Exception as error:  # code in the file, or its absence, may raise anything
        raise ValueError(
            f"{algorithm.__name__}.load could not read `{path}`: {type(error).__name__}: {error}. "
            "Is --algo right, and can the policy's code be imported here?"
        ) from error


def _saved(model: BaseAlgorithm, file: ModelFile) -> dict[str, Any]:
    """Return what SB3 would save of the model, by member of the zip."""
    content = {f"{name}.pth": value for name, value in model.get_parameters().items()}
    for member in VARIABLES:
        if member in file.content:
            content[member] = {
                name: getattr(model, name, value) for name, value in file.content[member].items()
            }
    return content
