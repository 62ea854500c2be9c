"""Where SB3's logger writes, and how TensorBoard shows it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import CSVOutputFormat, Logger, TensorBoardOutputFormat


def summary_writer(logger: Logger) -> Any | None:
    """Return the logger's TensorBoard ``SummaryWriter``, or None if it has none."""
    for output in logger.output_formats:
        if isinstance(output, TensorBoardOutputFormat):
            return output.writer
    return None


def log_folder(logger: Logger) -> Path | None:
    """Return the folder of the logger's TensorBoard or CSV files, or None if it writes none."""
    writes = any(
        isinstance(output, TensorBoardOutputFormat | CSVOutputFormat)
        for output in logger.output_formats
    )
    folder = logger.get_dir()
    return Path(folder) if writes and folder is not None else None


def custom_scalars_layout(roles: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    """Lay out the Custom Scalars tab: returns and plasticity together, one category a network.

    Args:
        roles: Of the model's networks, such as ``["actor", "critic"]``.
    """
    return {
        role: {
            "return": ["Multiline", ["rollout/ep_rew_mean", "eval/mean_reward"]],
            "dormant ratio": ["Multiline", [f"plasticity/{role}/dormant_ratio$"]],
            "effective rank": ["Multiline", [f"plasticity/{role}/effective_rank$"]],
            "deviation from isometry per singular value": [
                "Multiline",
                [f"plasticity/{role}/dfi_per_sv$", f"intervention/{role}/dfi_after$"],
            ],
        }
        for role in roles
    }
