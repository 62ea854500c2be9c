"""Names of checkpoints, seeds and models in a run folder."""

import pytest

from fire_rl.runs import layout


@pytest.mark.parametrize(
    ("name", "expected"), [("0", (0, 0)), ("50000", (50_000, 0)), ("50000.2", (50_000, 2))]
)
def test_a_checkpoint_is_named_by_its_step(name, expected):
    path = f"runs/mine/checkpoints/{name}"
    assert layout.checkpoint_order(path) == expected
    assert layout.checkpoint_step(path) == expected[0]
    assert layout.checkpoint_name(*expected) == name


@pytest.mark.parametrize("name", ["replay", "500.", "500.x", "-5", "500.1.2", ".500.tmp"])
def test_other_folders_are_no_checkpoints(name):
    with pytest.raises(ValueError, match=r"named STEP or STEP\.AGAIN.* got"):
        layout.checkpoint_step(f"checkpoints/{name}")


def test_complete_checkpoints_in_the_order_of_their_steps(tmp_path):
    for name in ("1000", "200", "1000.1", "1000.10", "1000.9", "5.x", "replay"):
        (tmp_path / name).mkdir()
        (tmp_path / name / layout.MANIFEST).write_text("{}")
    (tmp_path / "3000").mkdir()  # killed while it was written
    names = [path.name for path in layout.checkpoint_paths(tmp_path)]
    assert names == ["200", "1000", "1000.1", "1000.9", "1000.10"]
    assert layout.checkpoint_paths(tmp_path / "elsewhere") == []


def test_arms_and_seeds_of_an_experiment(tmp_path):
    folder = layout.arm_folder(tmp_path, 12, "fire")
    assert folder == tmp_path / "s12" / "fire"
    assert layout.arm_folder(tmp_path, 2, layout.TRUNK) == layout.seed_folder(tmp_path, 2) / "trunk"
    for name in ("s12", "s2", "summary", "s", "sx1"):
        (tmp_path / name).mkdir()
    assert layout.seeds_of(tmp_path) == [2, 12]


def test_the_normalisation_of_a_model():
    assert layout.vecnormalize_of("runs/a/model.zip").as_posix() == "runs/a/vecnormalize.pkl"
    best = layout.vecnormalize_of("runs/a/best_model.zip")
    assert best.as_posix() == "runs/a/best_vecnormalize.pkl"
    checkpoint = layout.vecnormalize_of("runs/a/checkpoints/500/model.zip")
    assert checkpoint.as_posix() == "runs/a/checkpoints/500/vecnormalize.pkl"
