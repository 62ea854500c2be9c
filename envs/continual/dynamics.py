"""Tasks with other physics: gravity, friction, masses, strength."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from envs.continual.sequence import TaskChange
from fire_rl.utils.validation import check_choice

RANGE = (0.5, 2.0)  # ours; slippery ant has frictions of 0.02 to 2 (Dohare et al. 2024)
# Classic control: class -> parameter -> attributes that are multiplied.
ATTRIBUTES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "CartPoleEnv": {
        "gravity": ("gravity",),
        "pole_length": ("length",),
        "pole_mass": ("masspole",),
        "cart_mass": ("masscart",),
        "force": ("force_mag",),
    },
    "AcrobotEnv": {
        "link_length": ("LINK_LENGTH_1", "LINK_LENGTH_2", "LINK_COM_POS_1", "LINK_COM_POS_2"),
        "link_mass": ("LINK_MASS_1", "LINK_MASS_2"),
        "torque": ("AVAIL_TORQUE",),
    },
    "PendulumEnv": {"gravity": ("g",), "pole_length": ("l",), "pole_mass": ("m",)},
    "MountainCarEnv": {"gravity": ("gravity",), "force": ("force",)},
    "Continuous_MountainCarEnv": {"force": ("power",)},
}
# MuJoCo: parameter -> arrays of the model, and the columns that are multiplied.
ARRAYS: Mapping[str, Mapping[str, slice]] = {
    "gravity": {"opt.gravity": slice(None)},
    # Sliding friction; MuJoCo takes the larger one of two geoms, so all of them change.
    "friction": {"geom_friction": slice(0, 1), "pair_friction": slice(0, 2)},
    "mass": {"body_mass": slice(None), "body_inertia": slice(None)},
    # A force is gain * control + bias: both, so that a position servo gets stronger too.
    "strength": {
        "actuator_gainprm": slice(None), "actuator_biasprm": slice(None),
        "actuator_forcerange": slice(None),
    },
    "damping": {"dof_damping": slice(None)},
}  # fmt: skip
PARAMETERS = sorted({*ARRAYS, *(name for known in ATTRIBUTES.values() for name in known)})


class ChangingDynamics(TaskChange):
    """Multiply physical parameters by other factors in each task; goal and observations stay.

    Each parameter of task k gets a factor of its own, log-uniform in a range; task 0 has the
    environment's values. Tasks share their structure: a policy for one is a good start for the
    next. So this measures what an intervention forgets as much as whether learning goes on, and a
    full reset must pay for it. Friction alone over a wide range is the slippery ant of Dohare et
    al. 2024 (Nature 632, 768); pole lengths and masses are contexts of CARL (arXiv 2110.02102).

    Derived quantities follow: CartPole's ``total_mass`` and ``polemass_length``, and MuJoCo's
    constants that depend on masses (``mj_setConst``).

    Args:
        env: A MuJoCo environment, or one of gymnasium's classic control.
        seed: Of the sequence of tasks.
        parameters: Which ones change; by default all that the environment has. MuJoCo:
            ``gravity``, ``friction``, ``mass``, ``strength``, ``damping``; others: see
            :data:`ATTRIBUTES`.
        range: Smallest and largest factor.

    Raises:
        ValueError: If the environment has no such parameter.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        seed: int = 0,
        parameters: Sequence[str] | None = None,
        range: Sequence[float] | None = None,
    ) -> None:
        super().__init__(env)
        known = _known(env)
        for name in parameters or ():
            check_choice("tasks.parameters", name, known)
        self.seed = seed
        self.parameters = list(known if parameters is None else parameters)
        self.low, self.high = RANGE if range is None else range
        self._base = {
            name: [np.array(values) for values in self._values(name)] for name in self.parameters
        }

    def factors(self, variant: int) -> dict[str, float]:
        """Return what each parameter is multiplied by in a variant."""
        if variant == 0:
            return dict.fromkeys(self.parameters, 1.0)
        generator = np.random.default_rng((self.seed, variant))
        low, high = math.log(self.low), math.log(self.high)
        return {name: math.exp(generator.uniform(low, high)) for name in self.parameters}

    def reconfigure(self) -> None:
        """Multiply the environment's own values by the variant's factors."""
        inner: Any = self.unwrapped
        for name, factor in self.factors(self.variant).items():
            scaled = [base * factor for base in self._base[name]]
            if _is_mujoco(inner):
                for target, values in zip(self._values(name), scaled, strict=True):
                    target[...] = values
            else:
                for attribute, values in zip(_attributes(inner)[name], scaled, strict=True):
                    setattr(inner, attribute, values.tolist())
        if _is_mujoco(inner) and "mass" in self.parameters:
            import mujoco

            mujoco.mj_setConst(inner.model, mujoco.MjData(inner.model))
        if hasattr(inner, "polemass_length"):  # source: gymnasium's CartPoleEnv.__init__
            inner.total_mass = inner.masspole + inner.masscart
            inner.polemass_length = inner.masspole * inner.length

    def _values(self, name: str) -> list[Any]:
        """Return the present values of a parameter; MuJoCo's are views into the model."""
        inner: Any = self.unwrapped
        if not _is_mujoco(inner):
            return [getattr(inner, attribute) for attribute in _attributes(inner)[name]]
        found = []
        for path, columns in ARRAYS[name].items():
            owner = inner.model.opt if path.startswith("opt.") else inner.model
            found.append(getattr(owner, path.removeprefix("opt."))[..., columns])
        return found


def _known(env: gym.Env[Any, Any]) -> list[str]:
    """Return the parameters that an environment has.

    Raises:
        ValueError: If it has none.
    """
    known = list(ARRAYS) if _is_mujoco(env.unwrapped) else list(_attributes(env.unwrapped))
    if not known:
        raise ValueError(
            f"`tasks.change: dynamics` needs MuJoCo or one of {', '.join(ATTRIBUTES)}; this "
            f"environment is a {type(env.unwrapped).__name__}."
        )
    return known


def _attributes(inner: Any) -> Mapping[str, tuple[str, ...]]:
    names = (kind.__name__ for kind in type(inner).__mro__)
    return next((ATTRIBUTES[name] for name in names if name in ATTRIBUTES), {})


def _is_mujoco(inner: Any) -> bool:
    return type(getattr(inner, "model", None)).__name__ == "MjModel"
