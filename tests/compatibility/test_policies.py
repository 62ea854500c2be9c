"""Both callbacks attached to what people have: algorithms, policies, extractors, settings."""

import itertools

import pytest
import torch
from torch import nn

from fire_rl import FIRE, FireCallback, PlasticityMetricsCallback, apply_intervention
from fire_rl.sb3.model_view import ModelView
from tests.helpers import extractors
from tests.helpers.attached import attach
from tests.helpers.models import (
    CONTRIB_OFF_POLICY,
    EVERY_ALGORITHM,
    IGNORE_LSTM,
    OFF_POLICY,
    ON_POLICY,
    Q_NETWORKS,
    TinyExtractor,
    changed,
    make_model,
    state_of,
)
from tests.helpers.rows import rows

pytestmark = pytest.mark.filterwarnings(IGNORE_LSTM)
WITH_CRITICS = [algo for algo in {**OFF_POLICY, **CONTRIB_OFF_POLICY} if algo not in Q_NETWORKS]


# ----------------------------------------------------------------------- algorithms and policies


@pytest.mark.compat(
    section="Algorithms and policies", policy="{observation}", setting="as it comes"
)
@pytest.mark.parametrize(
    ("algo", "observation"),
    rows(
        [*((algo, "mlp") for algo in EVERY_ALGORITHM), ("ppo", "cnn"), ("dqn", "dict")],
        EVERY_ALGORITHM,
        ["mlp", "cnn", "dict"],
        missing=[("crossq", "dict")],  # which it has no policy for
    ),
)
def test_attached(algo, observation):
    """Attached."""
    attach(make_model(algo, observation))


# ------------------------------------------------------------------------------------ extractors


def _kept(reason):
    def check(found):
        for report in found.reports:
            reasons = {r for changes in report.networks.values() for r in changes.kept.values()}
            assert reason in reasons

    return check


def _fused(found):
    layers = [c for c in found.reports[-1].layers if c.name.endswith("attention.in_proj")]
    assert layers
    assert all(change.blocks == ("project",) * 3 for change in layers)


def _moving_statistics(found):
    norms = [
        m for m in found.model.policy.modules() if isinstance(m, nn.modules.batchnorm._NormBase)
    ]
    assert norms
    assert all(norm.running_mean.any() and norm.num_batches_tracked for norm in norms)


def _tied(found):
    for module in found.model.policy.modules():
        if isinstance(module, extractors.Tied):
            assert module.net[4].weight is module.net[2].weight
    assert not any("extractor.net.4" in change.name for change in found.reports[-1].layers)


def _unseen(found):
    """A layer whose activation no hook sees has no dormant ratio, and above all not 0."""
    groups = {group.role: group for group in ModelView(found.model).groups}
    for role, group in groups.items():
        hidden = [layer.name for layer in group.online.layers if not layer.is_head]
        if all("features_extractor" in name for name in hidden):
            assert f"plasticity/{role}/dormant_ratio" not in found.metrics


# name: (extractor, observations, a check of its own)
EXTRACTORS = {
    "IMPALA residual blocks": (extractors.Impala, "cnn", None),
    "ResNet blocks, batch norm, in-place ReLU": (extractors.ResNet, "cnn", _moving_statistics),
    "grouped and depthwise convolutions, GroupNorm, dropout": (
        extractors.GroupedCnn, "cnn", None,
    ),
    "convolutions along a vector": (extractors.OneDimensional, "mlp", None),
    "LayerNorm": (extractors.LayerNormMlp, "mlp", None),
    "BatchNorm": (extractors.BatchNormMlp, "mlp", _moving_statistics),
    "embedding, fused self-attention": (
        extractors.Attentive, "mlp", lambda found: (_fused(found), _kept("embedding")(found)),
    ),
    "cross-attention, separate in-projections": (extractors.CrossAttentive, "mlp", None),
    "nn.TransformerEncoder": (extractors.Transformer, "mlp", None),
    "weight norm": (extractors.WeightNormed, "mlp", None),
    "weight norm on convolutions": (extractors.WeightNormedCnn, "cnn", None),
    "weight norm by hooks (before torch 2.0)": (extractors.OldWeightNormed, "mlp", None),
    "tied weights": (extractors.Tied, "mlp", _tied),
    "frozen layers": (extractors.Frozen, "mlp", _kept("frozen")),
    "GRU, which is kept and named": (extractors.Recurrent, "mlp", _kept("GRU")),
    "activations called as functions, which are named": (extractors.Functional, "mlp", _unseen),
}  # fmt: skip
# sb3-contrib's TRPO wants a gradient of everything, twice; see test_sb3_itself_cannot.
NOT_TRPO = ["frozen layers", "nn.TransformerEncoder"]
QUICK = zip(["ppo", "dqn", "sac"] * len(EXTRACTORS), EXTRACTORS, strict=False)
OLD_WEIGHT_NORM = "ignore:.*weight_norm. is deprecated:FutureWarning"


@pytest.mark.filterwarnings("ignore:No activation module follows", "ignore:.*GRU.*left as they are")
@pytest.mark.filterwarnings(OLD_WEIGHT_NORM)
@pytest.mark.compat(
    section="Feature extractors and kinds of layers", policy="custom extractor", setting="{kind}"
)
@pytest.mark.parametrize(
    ("algo", "kind"),
    rows(
        list(QUICK),
        EVERY_ALGORITHM,
        EXTRACTORS,
        missing=[("trpo", kind) for kind in NOT_TRPO],
    ),
)
def test_extractors(algo, kind):
    """Attached; what is kept is named, what is tied stays tied, norm statistics stay at events."""
    extractor, observation, check = EXTRACTORS[kind]
    kwargs = {"features_extractor_class": extractor, "features_extractor_kwargs": {}}
    found = attach(make_model(algo, observation, policy_kwargs=kwargs))
    if check is not None:
        check(found)


@pytest.mark.compat(
    section="Feature extractors and kinds of layers",
    policy="custom extractor",
    setting="activations called as functions, which are named",
)
@pytest.mark.parametrize("algo", ["ppo"])
def test_functional_activations_are_named(algo):
    """A warning names the layers, once."""
    kwargs = {"features_extractor_class": extractors.Functional, "features_extractor_kwargs": {}}
    model = make_model(algo, policy_kwargs=kwargs)
    message = r"No activation module follows features_extractor\.first, features_extractor\.second"
    with pytest.warns(UserWarning, match=message) as caught:
        model.learn(64, callback=PlasticityMetricsCallback(every=16, probe_size=32))
    assert len(caught) == 1


@pytest.mark.filterwarnings(OLD_WEIGHT_NORM, "ignore:.*spectral_norm. is deprecated:FutureWarning")
@pytest.mark.compat(
    section="Refused, with the reason", policy="custom extractor", setting="spectral norm, {kind}"
)
@pytest.mark.parametrize(
    ("algo", "kind"),
    rows([("ppo", "parametrised")], ["ppo", "dqn", "sac"], ["parametrised", "by hooks"]),
)
def test_spectral_norm_is_refused_before_training(algo, kind):
    """FIRE names the layer before the first step; excluded by name it trains; metrics work."""
    extractor = {
        "parametrised": extractors.SpectralNormed, "by hooks": extractors.OldSpectralNormed,
    }[kind]  # fmt: skip
    kwargs = {"features_extractor_class": extractor, "features_extractor_kwargs": {}}
    model = make_model(algo, policy_kwargs=kwargs)
    with pytest.raises(ValueError, match=r"Layer `.*features_extractor\.net\.0` has spectral norm"):
        model.learn(64, callback=FireCallback(every=16))
    assert model.num_timesteps == 0
    fire = FireCallback(every=16, exclude=["*features_extractor.net.0"])
    metrics = PlasticityMetricsCallback(every=16, probe_size=32)
    model.learn(64, callback=[fire, metrics])
    assert fire.reports
    assert all(value == value for value in metrics.history[-1][1].values())


# ------------------------------------------------------------------------------- policy settings


@pytest.mark.compat(section="Policy settings", setting="n_critics={n_critics}")
@pytest.mark.parametrize(("algo", "n_critics"), rows([("sac", 3)], WITH_CRITICS, [1, 2, 3]))
def test_any_number_of_critics(algo, n_critics):
    """Attached; each critic has a head."""
    model = make_model(algo, policy_kwargs={"n_critics": n_critics})
    attach(model)
    (critic,) = (group for group in ModelView(model).groups if group.role == "critic")
    assert len(critic.online.heads) == n_critics


@pytest.mark.compat(
    section="Policy settings", policy="CnnPolicy", setting="share_features_extractor={share}"
)
@pytest.mark.parametrize(
    ("algo", "share"),
    rows([("td3", True), ("ppo", False)], [*ON_POLICY, *WITH_CRITICS], [True, False]),
)
def test_shared_and_separate_extractors(algo, share):
    """Attached; a shared extractor has a role of its own and changes once."""
    model = make_model(algo, "cnn", policy_kwargs={"share_features_extractor": share})
    attach(model)
    assert ("shared" in {group.role for group in ModelView(model).groups}) == share


GSDE = {
    "gSDE": {},
    "gSDE, resampled, use_expln": {"sde_sample_freq": 4, "policy_kwargs": {"use_expln": True}},
    "gSDE, full_std=False": {"policy_kwargs": {"full_std": False}},
    "gSDE, squash_output": {"policy_kwargs": {"squash_output": True}},
    "gSDE, clip_mean=0": {"policy_kwargs": {"clip_mean": 0.0}},
}
SQUASHED = ("sac", "tqc", "crossq")


@pytest.mark.compat(section="Policy settings", setting="{kind}")
@pytest.mark.parametrize(
    ("algo", "kind"),
    rows(
        [("ppo", "gSDE"), ("sac", "gSDE, resampled, use_expln")],
        ["ppo", "a2c", "trpo", "recurrent_ppo", *SQUASHED],
        GSDE,
        missing=[
            *itertools.product(SQUASHED, ["gSDE, full_std=False", "gSDE, squash_output"]),
            *itertools.product(["ppo", "a2c", "trpo", "recurrent_ppo"], ["gSDE, clip_mean=0"]),
            ("crossq", "gSDE, clip_mean=0"),
        ],
    ),
)
def test_gsde(algo, kind):
    """Attached; `log_std`, a matrix that is no weight, stays what it is."""
    attach(make_model(algo, use_sde=True, **GSDE[kind]))


ARCHITECTURES = {
    "net_arch pi and vf": {"net_arch": {"pi": [8], "vf": [6, 6]}},
    "net_arch vf only": {"net_arch": {"vf": [6, 6]}},
    "net_arch empty": {"net_arch": []},
    "ELU": {"activation_fn": nn.ELU},
    "GELU": {"activation_fn": nn.GELU},
    "LeakyReLU": {"activation_fn": nn.LeakyReLU},
    "SiLU": {"activation_fn": nn.SiLU},
    "AdamW": {"optimizer_class": torch.optim.AdamW},
    "RMSprop": {"optimizer_class": torch.optim.RMSprop},
    "SGD with momentum": {
        "optimizer_class": torch.optim.SGD, "optimizer_kwargs": {"momentum": 0.9},
    },
}  # fmt: skip


@pytest.mark.compat(section="Policy settings", setting="{kind}")
@pytest.mark.parametrize(
    ("algo", "kind"),
    rows(
        [("ppo", "net_arch pi and vf"), ("dqn", "net_arch empty")],
        ["ppo", "dqn", "sac"],
        ARCHITECTURES,
        missing=itertools.product(["dqn", "sac"], ["net_arch pi and vf", "net_arch vf only"]),
    ),
)
def test_architectures_activations_and_optimizers(algo, kind):
    """Attached."""
    attach(make_model(algo, policy_kwargs=ARCHITECTURES[kind]))


@pytest.mark.compat(section="Policy settings", policy="CnnPolicy", setting="frozen extractor")
@pytest.mark.parametrize("algo", rows([("dqn",)], [a for a in EVERY_ALGORITHM if a != "trpo"]))
def test_a_frozen_extractor_stays(algo):
    """Attached; at the end of training it is what it was, and it was reported as frozen."""
    model = make_model(algo, "cnn")
    for module in model.policy.modules():
        if isinstance(module, TinyExtractor):
            module.requires_grad_(False)
    before = state_of(model)
    found = attach(model)
    after = state_of(model)
    for name in changed(before, after):
        if "features_extractor" in name:  # a target, by the rounding of SB3's polyak updates
            assert "_target" in name
            torch.testing.assert_close(after[name], before[name])
    _kept("frozen")(found)


def _tie(model, algo):
    if algo == "ppo":  # the first layers of actor and critic
        trunk = model.policy.mlp_extractor
        trunk.value_net[0].weight = trunk.policy_net[0].weight
        holder = model.policy
    else:
        for critic in (model.critic, model.critic_target):
            critic.qf1[0].weight = critic.qf0[0].weight
        holder = model.critic
    holder.optimizer = torch.optim.Adam(holder.parameters(), 1e-3)
    return model


@pytest.mark.compat(section="Policy settings", setting="weights tied across networks")
@pytest.mark.parametrize("algo", ["ppo", pytest.param("sac", marks=pytest.mark.full)])
def test_weights_tied_across_networks(algo):
    """Attached; the tied weight changes once, and belongs to all networks that use it."""
    model = _tie(make_model(algo), algo)
    untied = len(apply_intervention(make_model(algo), FIRE(), dry_run=True).layers)
    found = attach(model)
    assert len(found.reports[-1].layers) == untied - 1
    if algo == "ppo":
        shared = found.reports[-1].networks["shared"].layers
        assert [change.name for change in shared] == ["mlp_extractor.policy_net.0"]
        before = state_of(model)
        apply_intervention(model, FIRE(networks=["actor"]))
        assert not [n for n in changed(before, state_of(model)) if "_net.0" in n]
        apply_intervention(model, FIRE(networks=["shared"], biases="zero"))
        trunk = model.policy.mlp_extractor
        assert not trunk.policy_net[0].bias.any()
        assert trunk.value_net[0].weight is trunk.policy_net[0].weight


# ------------------------------------------------------------------------------ compiled networks


class Counting:
    """A backend of torch.compile that counts the graphs that run."""

    def __init__(self):
        self.runs = 0

    def __call__(self, graph, inputs):
        def run(*args):
            self.runs += 1
            return graph(*args)

        return run


PARTS = {
    "ppo": ("mlp_extractor",), "a2c": ("mlp_extractor",), "trpo": ("mlp_extractor",),
    "maskable_ppo": ("mlp_extractor",), "recurrent_ppo": ("action_net", "value_net"),
    "dqn": ("q_net", "q_net_target"), "qrdqn": ("quantile_net", "quantile_net_target"),
    "sac": ("actor", "critic", "critic_target"), "tqc": ("actor", "critic", "critic_target"),
    "td3": ("actor", "actor_target", "critic", "critic_target"),
    "ddpg": ("actor", "actor_target", "critic", "critic_target"), "crossq": ("actor", "critic"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo's own
@pytest.mark.compat(section="Compiled networks", setting="torch.compile(model.policy)")
@pytest.mark.parametrize("algo", rows([("ppo",)], EVERY_ALGORITHM))
def test_a_compiled_policy(algo):
    """Attached; names are as without it. What SB3 runs compiled (on-policy) has the new weights."""
    model, backend = make_model(algo), Counting()
    names = [change.name for change in apply_intervention(model, FIRE(), dry_run=True).layers]
    model.policy = torch.compile(model.policy, backend=backend)
    found = attach(model)
    assert [change.name for change in found.reports[-1].layers] == names
    if algo in ON_POLICY:  # the others call parts of the policy, which stay as they were
        assert backend.runs > 0


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.compat(section="Compiled networks", setting="torch.compile of its networks")
@pytest.mark.parametrize("algo", rows([("dqn",)], EVERY_ALGORITHM))
def test_compiled_parts(algo):
    """Attached; compiled code goes on with the new weights, targets included."""
    model, backend = make_model(algo), Counting()
    for name in PARTS[algo]:
        compiled = torch.compile(getattr(model.policy, name), backend=backend)
        setattr(model.policy, name, compiled)
        if hasattr(model, name):
            setattr(model, name, compiled)
    attach(model)
    before = backend.runs
    apply_intervention(model, FIRE(hidden="reset"))
    model.learn(32, reset_num_timesteps=False)
    assert backend.runs > before > 0


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # inductor's own
@pytest.mark.compat(section="Compiled networks", setting="torch.compile with its default backend")
@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_the_default_backend(algo):
    """Attached; machine code goes on with the new weights."""
    inductor = pytest.importorskip("torch._inductor.cpp_builder")
    try:
        inductor.get_cpp_compiler()
    except Exception as error:
        pytest.skip(f"torch.compile finds no C++ compiler here: {error}")
    model = make_model(algo)
    if algo == "ppo":
        model.policy = torch.compile(model.policy)
    else:
        model.policy.q_net = model.q_net = torch.compile(model.q_net)
    attach(model)
