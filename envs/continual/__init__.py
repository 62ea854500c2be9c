"""Tasks that change while the agent trains: the setting in which plasticity is lost.

| ``change`` | what changes | studied by |
|---|---|---|
| ``offset`` | a constant added to observations, ``N(0, std²)`` | TRAC, arXiv 2405.16642; C-CHAIN, arXiv 2506.00592 |
| ``drift`` | the same, as a random walk: neighbouring tasks are alike | ours |
| ``permutation`` | order and signs of observations | Juliani & Ash 2024, arXiv 2405.19153 (order) |
| ``dynamics`` | gravity, friction, masses, strength | Dohare et al. 2024 (slippery ant); CARL, arXiv 2110.02102 |
| ``direction`` | whether running forward or backward pays | meta-RL's HalfCheetahDir, arXiv 1703.03400 |
| ``actions`` | what each action does | ours |
| ``mode`` | mode and difficulty of an Atari game | Abbas et al. 2023, arXiv 2303.07507; Machado et al. 2018 |
| ``game`` | the game, Atari or MinAtar | Abbas et al. 2023; C-CHAIN |

There is no flip of the whole reward: where episodes can end, the agent would be paid for ending them
early, which is a different kind of task.
"""  # noqa: E501  # a table

from envs.continual.options import CHANGES, check_tasks, inner_change, outer_change
from envs.continual.sequence import TaskSequence, set_task

__all__ = [
    "CHANGES",
    "TaskSequence",
    "check_tasks",
    "inner_change",
    "outer_change",
    "set_task",
]
