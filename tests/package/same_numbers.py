"""Did a change keep every number? Train every config for 1,000 steps and hash what comes out.

    python tests/package/same_numbers.py FILE              # before the change: writes FILE
    python tests/package/same_numbers.py FILE              # after it, on the same machine: compares
    python tests/package/same_numbers.py FILE --only smoke  # configs with this in their path

Each file under configs/ is shrunk (replay buffers, rollouts, tasks, schedules), so that training
learns, changes tasks and intervenes within 1,000 steps, and is trained by train.py in a process of
its own. Hashed are the weights with the optimizers' state, and what was logged of plasticity and
events without durations. pytest does not collect this file: other machines round differently.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import yaml

ROOT = Path(__file__).parent.parent.parent
STEPS = 1_000


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="where the hashes are")
    parser.add_argument("--only", default="", help="configs with this in their path")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    arguments = parser.parse_args()
    configs = [path for path in sorted(ROOT.glob("configs/**/*.yaml"))
               if arguments.only in str(path.relative_to(ROOT))]  # fmt: skip
    with ThreadPoolExecutor(arguments.jobs) as pool:
        found = dict(zip(map(_name, configs), pool.map(_report, configs), strict=True))
    if not arguments.file.exists():
        arguments.file.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{len(found)} configs: wrote {arguments.file}")
        return 0
    before = json.loads(arguments.file.read_text())
    different = [name for name in found if found[name] != before.get(name)]
    for name in different:
        print(f"DIFFERENT {name}: was {before.get(name)}, is {found[name]}")
    print(f"{len(found) - len(different)} of {len(found)} configs equal to the bit")
    return int(bool(different))


def _name(config):
    return config.relative_to(ROOT).as_posix()


def _report(config):
    result = train_and_hash(config)
    print(_name(config), result, flush=True)
    return result


def train_and_hash(config):
    """Train one config, shrunk; return its hashes, or why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        shrunk, run = Path(folder) / "config.yaml", Path(folder) / "run"
        shrunk.write_text(yaml.safe_dump(shrink(yaml.safe_load(config.read_text()))))
        command = [sys.executable, "train.py", "--config", str(shrunk), "--log-dir", str(run)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            return {"failed": done.stderr.strip().splitlines()[-1].replace(str(folder), "")}
        return {"weights": hash_weights(run / "model.zip"), "logs": hash_logs(run)}


def shrink(values):
    """Return a config's values for a run of :data:`STEPS` steps in which everything happens."""
    values = {**values, "total_timesteps": STEPS, "device": "cpu", "num_threads": 1}
    values |= {"eval": None, "checkpoint": None, "metrics": {"every": 250, "probe_size": 64}}
    values["n_envs"] = n_envs = min(values.get("n_envs", 1), 8)
    agent = values["agent"] = dict(values.get("agent") or {})
    if values["algo"] in ("a2c", "ppo", "trpo", "ppo_lstm", "recurrent_ppo", "maskable_ppo"):
        agent["n_steps"] = min(agent.get("n_steps", 128), 128 // n_envs)
        if values["algo"] != "a2c":
            agent["batch_size"] = min(agent.get("batch_size", 64), agent["n_steps"] * n_envs)
    else:
        limits = {"buffer_size": STEPS, "learning_starts": 100, "batch_size": 32}
        agent |= {name: min(float(agent.get(name, top)), top) for name, top in limits.items()}
    if values.get("tasks"):
        values["tasks"] = {**values["tasks"], "every": 256}
        if values["tasks"].get("evaluate_earlier") is not None:
            values["tasks"] |= {"evaluate_earlier": 1, "evaluate_episodes": 1}
    if values.get("schedule"):
        values["schedule"] = {"at": [400]}
    if isinstance(values.get("intervention"), list):
        values["intervention"] = [_shrink_entry(entry) for entry in values["intervention"]]
    return values


def _shrink_entry(entry):
    entry = {**entry, "schedule": {"at": [400]}}
    if "warmup_updates" in entry:
        entry["warmup_updates"] = 20
    return entry


def hash_weights(path):
    """Hash every tensor of an SB3 zip: the policy's and the optimizers'."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(path) as archive:
        for name in sorted(n for n in archive.namelist() if n.endswith(".pth")):
            content = torch.load(io.BytesIO(archive.read(name)), weights_only=True)
            for key, tensor in sorted(_tensors(name, content)):
                digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _tensors(path, content):
    if isinstance(content, torch.Tensor):
        yield path, content.detach()
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _tensors(f"{path}.{key}", value)


def hash_logs(run):
    """Hash what was logged of plasticity and events, but for durations and versions."""
    digest = hashlib.sha256()
    with (run / "progress.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            kept = {k: v for k, v in row.items() if not k.startswith(("time/", "final/"))}
            digest.update(json.dumps(sorted(kept.items())).encode())
    log = run / "interventions.jsonl"
    for line in log.read_text().splitlines() if log.exists() else ():
        entry = json.loads(line)
        entry.pop("seconds", None)
        entry.pop("training", None)
        digest.update(json.dumps(entry, sort_keys=True).encode())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(main())
