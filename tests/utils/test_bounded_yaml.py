"""YAML of strangers: what a few lines stand for is counted before it is built."""

import time

import pytest
import yaml

from experiments.plain_yaml import ConfigError, read_yaml
from fire_rl.utils.bounded_yaml import load_yaml

LEVELS = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{k + 1}: &a{k + 1} [{','.join([f'*a{k}'] * 10)}]\n" for k in range(12)
)
MERGED = "m0: &m0 {a: 1}\n" + "".join(
    f"m{k + 1}: &m{k + 1} {{<<: [{','.join([f'*m{k}'] * 10)}]}}\n" for k in range(12)
)
BAD = (
    LEVELS, MERGED, "&a [*a]", "a: &a {b: *a}", "[" * 10_000, "{a: " * 60 + "1" + "}" * 60,
    "a: 2020-99-99", f"a: {'9' * 10_000}", "? [1]\n: 2", "a: !!python/name:os.system x", "a: *b",
    "a: [1", "\x00", "a: " + ":".join(["59"] * 9000),
)  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_what_has_no_bounds_is_refused_at_once(text):
    began = time.process_time()
    with pytest.raises(ValueError, match=r"."):
        load_yaml(text, yaml.SafeLoader)
    with pytest.raises(ConfigError, match="This is not YAML"):
        read_yaml(text)
    assert time.process_time() - began < 10


def test_aliases_of_a_configuration_are_read():
    text = "base: &base {lr: 1, net: [64, 64]}\nother: {<<: *base, lr: 2}\nagain: *base\n"
    expected = {"lr": 1, "net": [64, 64]}
    found = load_yaml(text, yaml.SafeLoader)
    assert found == {"base": expected, "other": {**expected, "lr": 2}, "again": expected}
    assert read_yaml(text) == found
    assert load_yaml("", yaml.SafeLoader) is None
