"""FIRE on vision, ViT and GPT models as published, against an independent computation."""

import numpy as np
import pytest
import torch
from torch import nn

from fire_rl import FIRE, fire_, intervene_


def reference(weight, num_steps):
    """FIRE of one matrix or convolution: the polynomial on singular values, in numpy, by SVD."""
    weight = weight.detach().double().numpy()
    if weight.ndim == 4:
        scale = (weight.shape[0] / weight.shape[1]) ** 0.5 / (weight.shape[2] * weight.shape[3])
        taps = [[_step(weight[:, :, i, j], num_steps) for j in range(weight.shape[3])]
                for i in range(weight.shape[2])]  # fmt: skip
        result = np.stack([np.stack(row, -1) for row in taps], 2)
    else:
        scale = (weight.shape[0] / weight.shape[1]) ** 0.5
        result = _step(weight, num_steps)
    return torch.from_numpy(scale * result).float()


def _step(matrix, num_steps):
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.sqrt((values**2).sum())
    for _ in range(num_steps):
        values = 1.5 * values - 0.5 * values**3
    return (left * values) @ right


def close(actual, expected):
    torch.testing.assert_close(actual.detach(), expected, rtol=1e-4, atol=1e-5)


class Block(nn.Module):
    """A residual block with batch norm."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(out + self.shortcut(x))


def make_resnet():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(), Block(8, 12, 2), Block(12, 16, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


def make_vgg():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3),
        nn.ReLU(), nn.Flatten(), nn.Linear(16 * 4, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10),
    )  # fmt: skip


class Attention(nn.Module):
    """Projections as parts of one module, in one of three layouts."""

    def __init__(self, width, layout):
        super().__init__()
        if layout == "separate":
            self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        else:
            setattr(self, layout, nn.Linear(width, 3 * width))
        self.to_out = nn.Linear(width, width)


class Transformer(nn.Module):
    def __init__(self, layout, width=12, tied=False):
        super().__init__()
        self.wte = nn.Embedding(20, width)
        self.attn = Attention(width, layout)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.lm_head = nn.Linear(width, 20, bias=False)
        if tied:
            self.lm_head.weight = self.wte.weight


def tensors(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def changed(module, before):
    return {n for n, tensor in module.state_dict().items() if not torch.equal(tensor, before[n])}


def stepped(module):
    optimizer = torch.optim.Adam(module.parameters())
    sum(parameter.sum() for parameter in module.parameters()).backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("make", [make_resnet, make_vgg])
def test_paper_vision_projects_every_convolution_and_linear_layer(make):
    torch.manual_seed(0)
    module = make()
    optimizer = stepped(module)
    before = tensors(module)
    changes = fire_(module, preset="paper_vision", optimizer=optimizer)
    weights = {
        f"{name}.weight" for name, m in module.named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
    }  # fmt: skip
    assert changed(module, before) == weights == {f"{change.name}.weight" for change in changes}
    for name in weights:
        close(module.state_dict()[name], reference(before[name], 10))
    assert not optimizer.state


def test_paper_vit_projects_separate_queries_and_keys_only():
    torch.manual_seed(0)
    module = nn.Sequential(Transformer("separate"), Transformer("separate"))
    optimizer = stepped(module)
    before = tensors(module)
    changes = intervene_(module, FIRE.paper_vit(), optimizer=optimizer)
    touched = {f"{i}.attn.to_{part}.weight" for i in range(2) for part in "qk"}
    assert changed(module, before) == touched
    for name in touched:
        close(module.state_dict()[name], reference(before[name], 10))
    assert not optimizer.state
    assert {change.name for change in changes.layers if change.action == "project"} == {
        name.removesuffix(".weight") for name in touched
    }


@pytest.mark.parametrize("layout", ["qkv", "to_qkv", "c_attn"])
def test_paper_vit_projects_query_and_key_blocks_of_fused_layers(layout):
    torch.manual_seed(0)
    module = Transformer(layout)
    before = tensors(module)
    changes = fire_(module, preset="paper_vit")
    name = f"attn.{layout}.weight"
    assert changed(module, before) == {name}
    new, old = module.state_dict()[name].split(12), before[name].split(12)
    for block in (0, 1):
        close(new[block], reference(old[block], 10))
    assert torch.equal(new[2], old[2])
    (change,) = (change for change in changes if change.action == "project")
    assert change.blocks == ("project", "project", "keep")
    assert change.sfe == pytest.approx(
        float((torch.cat(new) - torch.cat(old)).square().sum()), 1e-4
    )


def test_kept_blocks_keep_their_moments_and_biases():
    torch.manual_seed(0)
    module = Transformer("qkv")
    optimizer = stepped(module)
    fire_(module, preset="paper_vit", optimizer=optimizer, optimizer_state="changed", biases="zero")
    moments = optimizer.state[module.attn.qkv.weight]["exp_avg"].split(12)
    assert [bool(moment.any()) for moment in moments] == [False, False, True]
    assert [bool(bias.any()) for bias in module.attn.qkv.bias.split(12)] == [False, False, True]
    assert len(optimizer.state) == len(list(module.parameters()))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [{}, {"kdim": 6, "vdim": 5}])
def test_multihead_attention_is_three_projections(sizes, bias):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(12, 3, bias=bias, **sizes)
    before = tensors(module)
    changes = fire_(module)
    names = ["q_proj", "k_proj", "v_proj"] if sizes else ["in_proj"]
    assert [change.name for change in changes] == [*names, "out_proj"]
    if sizes:
        for name in names:
            close(getattr(module, f"{name}_weight"), reference(before[f"{name}_weight"], 10))
    else:
        blocks = zip(module.in_proj_weight.split(12), before["in_proj_weight"].split(12), strict=1)
        for new, old in blocks:
            close(new, reference(old, 10))
        assert changes[0].blocks == ("project",) * 3
    close(module.out_proj.weight, reference(before["out_proj.weight"], 10))
    before = tensors(module)
    fire_(module, preset="paper_vit")
    if sizes:
        assert changed(module, before) == {"q_proj_weight", "k_proj_weight"}
    else:
        new, old = module.in_proj_weight.split(12), before["in_proj_weight"].split(12)
        assert [torch.equal(a, b) for a, b in zip(new, old, strict=True)] == [False, False, True]
        assert changed(module, before) == {"in_proj_weight"}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layout", ["c_attn", "separate"])
def test_paper_gpt_projects_every_linear_layer_in_five_steps(layout, tied):
    torch.manual_seed(0)
    module = Transformer(layout, tied=tied)
    optimizer = stepped(module)
    before = tensors(module)
    changes = fire_(module, preset="paper_gpt", optimizer=optimizer)
    linear = {f"{n}.weight" for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    assert changed(module, before) == linear | ({"wte.weight"} if tied else set())
    for name in linear:
        blocks = 3 if name.endswith("c_attn.weight") else 1
        pairs = zip(
            module.state_dict()[name].chunk(blocks), before[name].chunk(blocks), strict=True
        )
        for new, old in pairs:
            close(new, reference(old, 5))
    assert module.lm_head.weight.shape == (20, 12)
    assert (module.lm_head.weight is module.wte.weight) == tied
    assert [change.action for change in changes] == ["project"] * len(changes)
    assert not optimizer.state


def test_a_tied_embedding_may_be_kept():
    module = Transformer("c_attn", tied=True)
    before = tensors(module)
    changes = intervene_(module, FIRE.paper_gpt(tied="keep"))
    assert changes.layers[-1].action == "keep"
    assert changes.kept == {"wte.weight": "embedding"}
    assert not {"wte.weight", "lm_head.weight"} & changed(module, before)
    assert "wte.weight" not in intervene_(module, FIRE.paper_gpt()).kept


def test_fused_layers_are_split_by_pattern():
    torch.manual_seed(0)
    module = Transformer("fused")
    before = tensors(module)["attn.fused.weight"].split(12)
    fire_(module, include="attn.fused", split={"*.fused": ["keep", "project", "project"]})
    new = module.attn.fused.weight.split(12)
    assert torch.equal(new[0], before[0])
    for block in (1, 2):
        close(new[block], reference(before[block], 10))
    whole = Transformer("fused")
    old = tensors(whole)["attn.fused.weight"]
    assert fire_(whole, include="attn.fused")[0].blocks == ()
    close(whole.attn.fused.weight, reference(old, 10))  # the default: one matrix


def test_a_convolution_may_be_split_too():
    torch.manual_seed(0)
    module = nn.Conv2d(4, 6, (2, 1))
    old = module.weight.detach().clone()
    fire_(nn.Sequential(module), split={"0": 3})
    for new, before in zip(module.weight.split(2), old.split(2), strict=True):
        close(new, reference(before, 10))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": {"*.c_atn": 3}}, r"`split` pattern '\*\.c_atn' matches no layer; .*"),
        ({"split": {"*.qkv": 7}}, r"`split` of `attn\.qkv` must divide its 36 rows .*, got 7"),
        ({"split": {"*.qkv": 0}}, r"`split\['\*\.qkv'\]` must be a whole number of at least 1"),
        ({"split": {"*.qkv": ["drop"]}}, r"must be a number of blocks or a list of 'project'"),
        ({"split": "thirds"}, "`split` must be 'by_name' or map a name pattern"),
        ({"only": "query"}, "`only` must be one of 'query_key', got 'query'"),
        ({"only": "query_key", "exclude": "attn.*"}, "finds no query or key projection"),
        ({"tied": "drop"}, "`tied` must be one of 'project', 'keep'"),
        ({"preset": "paper_vt"}, "Did you mean 'paper_vit'"),
    ],
)
def test_bad_options_are_named(options, message):
    module = Transformer("qkv")
    before = tensors(module)
    with pytest.raises(ValueError, match=message):
        fire_(module, **options)
    assert not changed(module, before)
