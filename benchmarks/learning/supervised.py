"""FIRE on plain torch models: warm-started digits, and a small GPT that changes its text.

    python -m benchmarks.learning.supervised                      # everything, some minutes
    python -m benchmarks.learning.supervised --only gpt --seeds 1

Small demonstrations of the paper's two other fields, with its recipes as presets:

* `cnn`, `vit`: a classifier of scikit-learn's digits (8 x 8 pixels) is trained to the end on a
  tenth of the training images, then on all of them (warm start, as in Ash & Adams 2020). In
  between, one intervention. `cold` never saw the first phase; `reset` differs from it by the draw.
* `gpt`: a character model is trained on one text that comes with Python, then on another.

The optimizer starts anew in the second phase for every arm, as in FIRE's code for both fields.
Writes benchmarks/results/supervised.json.
"""

from __future__ import annotations

import argparse
import copy
import math
import pydoc_data.topics
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import write_result
from fire_rl import FIRE, ShrinkAndPerturb, intervene_
from fire_rl.interventions import Intervention

Arms = dict[str, Intervention | str]
# FIRE's authors' coefficients differ by experiment; 0.2 of the old weights is that of their agents.
SHRINK = ShrinkAndPerturb(keep=0.2, source="fresh")


class Block(nn.Module):
    """A residual block with batch norm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, half as large if the stride is 2."""
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


def make_cnn() -> nn.Module:
    """A small ResNet for 8 x 8 images."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Block(16, 16, 1),
        Block(16, 32, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


class Attention(nn.Module):
    """Self-attention; projections are separate (ViT) or fused (GPT)."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        if causal:
            self.c_attn = nn.Linear(width, 3 * width)
        else:
            self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens, ``(N, T, width)``."""
        if self.causal:
            parts = self.c_attn(x).chunk(3, -1)
        else:
            parts = (self.to_q(x), self.to_k(x), self.to_v(x))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, causal)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens of the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Sixteen patches of 2 x 2 pixels, two layers, mean pooling."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.places = nn.Parameter(0.02 * torch.randn(16, width))
        self.layers = nn.Sequential(*(Layer(width, 4, causal=False) for _ in range(2)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, ``(N, 10)``."""
        tokens = self.patches(x).flatten(2).mT + self.places
        return self.head(self.layers(tokens).mean(1))


class GPT(nn.Module):
    """A character model; its head is tied to the token embedding."""

    def __init__(self, num_characters: int, width: int = 64, context: int = 64) -> None:
        super().__init__()
        self.wte = nn.Embedding(num_characters, width)
        self.wpe = nn.Embedding(context, width)
        self.layers = nn.Sequential(*(Layer(width, 4, causal=True) for _ in range(2)))
        self.norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, num_characters, bias=False)
        nn.init.normal_(self.wte.weight, std=0.02)  # as GPT-2
        nn.init.normal_(self.wpe.weight, std=0.02)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits, ``(N, T, characters)``."""
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        return self.lm_head(self.norm(self.layers(x)))


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's digits in random order: 1,297 images to train on, 500 to test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SystemExit("This benchmark needs scikit-learn: pip install -e '.[bench]'") from error
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return images[order[500:]], labels[order[500:]], images[order[:500]], labels[order[:500]]


def train_classifier(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    epochs: int,
    seed: int,
) -> None:
    """Batches of 64, gradient norm at most 0.5 (FIRE's vision recipe, smaller)."""
    generator = torch.Generator().manual_seed(seed)
    module.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels), generator=generator).split(64):
            loss = F.cross_entropy(module(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            optimizer.step()


@torch.no_grad()
def accuracy(module: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Percentage of images that are classified rightly."""
    module.eval()
    return 100 * float((module(images).argmax(1) == labels).float().mean())


def warm_start(make: Callable[[], nn.Module], arms: Arms, seed: int) -> dict[str, Any]:
    """Train on a tenth, intervene, train on everything; report test accuracies."""
    images, labels, test_images, test_labels = digits(seed)
    torch.manual_seed(seed)
    module = make()
    cold = copy.deepcopy(module)
    part = len(labels) // 10
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    train_classifier(module, optimizer, images[:part], labels[:part], 100, seed)
    results = {}
    for name, arm in {**arms, "cold": "none"}.items():
        branch = copy.deepcopy(cold if name == "cold" else module)
        intervene_(branch, arm, fresh=make, seed=seed + 1)
        numbers = {"just_after": accuracy(branch, test_images, test_labels)}
        optimizer = torch.optim.Adam(branch.parameters(), lr=1e-3)
        for epochs in (1, 4, 15):
            train_classifier(branch, optimizer, images, labels, epochs, seed + epochs)
            done = {1: 1, 4: 5, 15: 20}[epochs]
            numbers[f"epoch_{done}"] = accuracy(branch, test_images, test_labels)
        results[name] = numbers
    return results


def texts() -> tuple[str, str]:
    """Python's documentation of its language, and source code of its library."""
    topics = "\n".join(pydoc_data.topics.topics[key] for key in sorted(pydoc_data.topics.topics))
    folder = Path(statistics.__file__).parent
    names = ("argparse.py", "statistics.py", "fractions.py", "textwrap.py", "heapq.py", "bisect.py")
    code = "\n".join((folder / name).read_text(encoding="utf-8") for name in names)
    return topics[:200_000], code[:200_000]


def train_gpt(
    module: nn.Module, optimizer: torch.optim.Optimizer, data: Tensor, steps: int, seed: int
) -> None:
    """16 windows of 64 characters a step."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(len(data) - 65, (16, 1), generator=generator)
        windows = data[starts + torch.arange(65)]
        loss = F.cross_entropy(module(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()


@torch.no_grad()
def held_out_loss(module: nn.Module, data: Tensor) -> float:
    """Mean cross-entropy in nats per character."""
    windows = data[: len(data) // 65 * 65].reshape(-1, 65)[:100]
    logits = module(windows[:, :-1]).flatten(0, 1)
    return float(F.cross_entropy(logits, windows[:, 1:].flatten()))


def continued_pretraining(arms: Arms, steps: int, seed: int) -> dict[str, Any]:
    """Train on one text, intervene, train on the other; report its held-out losses."""
    one, two = texts()
    characters = {c: i for i, c in enumerate(sorted(set(one + two)))}
    first, second = (torch.tensor([characters[c] for c in text]) for text in (one, two))
    held_out, second = second[-20_000:], second[:-20_000]

    def make() -> nn.Module:
        return GPT(len(characters))

    torch.manual_seed(seed)
    module = make()
    cold = copy.deepcopy(module)
    train_gpt(module, torch.optim.AdamW(module.parameters(), lr=1e-3), first, steps, seed)
    results = {}
    for name, arm in {**arms, "cold": "none"}.items():
        branch = copy.deepcopy(cold if name == "cold" else module)
        intervene_(branch, arm, fresh=make, seed=seed + 1)
        numbers = {"just_after": held_out_loss(branch, held_out)}
        optimizer = torch.optim.AdamW(branch.parameters(), lr=1e-3)
        for quarter in (1, 2, 3, 4):
            train_gpt(branch, optimizer, second, steps // 4, seed + quarter)
            numbers[f"step_{quarter * (steps // 4)}"] = held_out_loss(branch, held_out)
        results[name] = numbers
    return results


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, beside the single values."""
    table: dict[str, Any] = {}
    for arm in runs[0]:
        table[arm] = {}
        for moment in runs[0][arm]:
            values = [run[arm][moment] for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else math.nan
            table[arm][moment] = {
                "mean": round(statistics.fmean(values), 3),
                "std": round(spread, 3) if math.isfinite(spread) else None,
                "seeds": [round(value, 3) for value in values],
            }
    return table


def main() -> None:
    """Run, print tables, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--gpt-steps", type=int, default=400)
    parser.add_argument("--only", nargs="+", choices=["cnn", "vit", "gpt"])
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    rivals: Arms = {"shrink_and_perturb": SHRINK, "reset": "reset"}
    experiments: dict[str, Callable[[int], dict[str, Any]]] = {
        "cnn": lambda seed: warm_start(
            make_cnn, {"none": "none", "fire": FIRE.paper_vision(), **rivals}, seed
        ),
        "vit": lambda seed: warm_start(
            ViT,
            {
                "none": "none",
                "fire": FIRE.paper_vit(),
                "fire_all_layers": FIRE.paper_vision(),
                **rivals,
            },
            seed,
        ),
        "gpt": lambda seed: continued_pretraining(
            {
                "none": "none",
                "fire": FIRE.paper_gpt(),
                "fire_embedding_kept": FIRE.paper_gpt(tied="keep"),
                **rivals,
            },
            options.gpt_steps,
            seed,
        ),
    }
    tables, seconds = {}, {}
    for name in options.only or experiments:
        started = time.perf_counter()
        tables[name] = summarise([experiments[name](seed) for seed in range(options.seeds)])
        seconds[name] = round(time.perf_counter() - started, 1)
        print(f"{name} ({seconds[name]} s)")
        for arm, row in tables[name].items():
            cells = (f"{m} {v['mean']} ± {v['std']}" for m, v in row.items())
            print(f"  {arm:20}", "  ".join(cells))
        sys.stdout.flush()
    if not options.no_write:
        settings = {"seeds": options.seeds, "gpt_steps": options.gpt_steps, "seconds": seconds}
        print(write_result("supervised", {**settings, "results": tables}))


if __name__ == "__main__":
    main()
