"""Train deep-RL agents with Stable-Baselines3, intervene for plasticity, and watch them play.

Examples:
  python train.py --config configs/quickstart.yaml
  python train.py --config configs/atari/dqn_fire.yaml --seed 1 --set agent.gamma=0.98
  python train.py --algo sac --env HalfCheetah-v5 --intervention fire --every 100000
  python train.py --resume runs/RUN
  python train.py --branch-from runs/RUN/checkpoints/STEP --intervention fire
  python train.py --config configs/paper/small/dqn_minatar.yaml --arms none,fire,reset --seeds 3
  python train.py --play runs/RUN --video videos

Flags override the file.
"""

from __future__ import annotations

import sys

try:
    from experiments.flags import parse_flags
    from experiments.launch import launch
except ModuleNotFoundError as error:
    sys.exit(f"train.py needs {error.name}. Install all that it uses: pip install -e '.[train]'")


def main() -> int:
    """Run the command line; return the exit code."""
    return launch(parse_flags(__doc__))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("Interrupted before training began: nothing to save.", file=sys.stderr)
        sys.exit(130)
