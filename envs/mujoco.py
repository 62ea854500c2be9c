"""MuJoCo: running normalisation of observations and rewards, drawing without a display."""

from __future__ import annotations

import ctypes.util
import importlib.util
import inspect
import os
import sys
from collections.abc import Mapping
from typing import Any

from gymnasium.envs.registration import EnvSpec, find_highest_version
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from fire_rl.utils.validation import nearest


def extra_for(spec: EnvSpec, error: Exception) -> str:
    """Say what to install for an environment that misses a package."""
    if "mujoco" in str(spec.entry_point) and importlib.util.find_spec("mujoco") is None:
        return "mujoco. Install it with: pip install 'fire-rl[mujoco]'"
    latest = find_highest_version(spec.namespace, spec.name)
    newer = latest is not None and spec.version is not None and latest > spec.version
    return f"{error}{f' Here it is {spec.name}-v{latest}.' if newer else ''}"


def choose_renderer() -> None:
    """Draw without a display, by EGL or else OSMesa, unless MUJOCO_GL says how.

    gymnasium tries GLFW first; without a display that one only warns, and drawing fails later.
    """
    has_display = sys.platform != "linux" or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    if has_display or "MUJOCO_GL" in os.environ:
        return
    for library, backend in (("EGL", "egl"), ("OSMesa", "osmesa")):
        if ctypes.util.find_library(library):
            os.environ["MUJOCO_GL"] = backend
            return


def normalize_options(normalize: bool | Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the options of VecNormalize, or None for no normalisation.

    Args:
        normalize: As in rl_zoo3: True for both observations and rewards, or a mapping such as
            ``{"norm_obs": True, "norm_reward": False}``.

    Raises:
        ValueError: If an option is unknown or of the wrong type.
    """
    if normalize is False or normalize is None:
        return None
    if normalize is True:
        return {}
    if not isinstance(normalize, Mapping):
        raise ValueError(
            "`normalize` must be true, false or a mapping such as {norm_obs: true, norm_reward: "
            f"false}}, got {normalize!r}."
        )
    parameters = inspect.signature(VecNormalize).parameters
    known = [name for name in parameters if name not in ("venv", "training")]
    faults = []
    for name, value in normalize.items():
        if name not in known:
            listed = f" Known are {', '.join(known)}."
            faults.append(
                f"`normalize` has an unknown key {name!r}.{nearest(name, known) or listed}"
            )
        elif (kind := type(parameters[name].default)) in (bool, float):
            wanted = (bool,) if kind is bool else (int, float)
            if not isinstance(value, wanted) or (kind is float and isinstance(value, bool)):
                word = "true or false" if kind is bool else "a number"
                faults.append(f"`normalize.{name}` must be {word}, got {value!r}.")
    if faults:
        raise ValueError("\n".join(faults))
    return dict(normalize)


def wrap_normalize(
    venv: VecEnv, normalize: bool | Mapping[str, Any], training: bool, gamma: float | None
) -> VecEnv:
    """Wrap in VecNormalize if asked to.

    For evaluation the statistics stand still and the rewards are raw; SB3's ``EvalCallback``
    copies the statistics over from the training environment.

    Args:
        venv: The environments.
        normalize: See :func:`normalize_options`.
        training: False for an evaluation environment.
        gamma: The agent's discount, as rl_zoo3 does: rewards are scaled by the spread of the
            discounted return. None for VecNormalize's own default.
    """
    options = normalize_options(normalize)
    if options is None:
        return venv
    if gamma is not None:
        options.setdefault("gamma", gamma)
    if not training:
        options["norm_reward"] = False
    return VecNormalize(venv, training=training, **options)
