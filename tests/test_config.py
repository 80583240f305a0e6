"""Settings: one place makes them, and says clearly what it will not take."""

import pytest

from ifcsr_lib.config import PROFILES, Config, resolve


def test_every_profile_resolves_and_hashes_differ():
    hashes = {resolve(p).hash for p in PROFILES}
    assert len(hashes) == len(PROFILES)
    assert resolve("pocket").hash == resolve("pocket").hash != resolve("pocket", seed=1).hash


def test_paper_settings_are_the_stated_ones():
    cfg = resolve("paper")
    stated = dict(rank=4, k=7.0, patch=512, batch=4, lr=5e-5, beta1=0.9, beta2=0.999, scale=4)
    assert {k: getattr(cfg, k) for k in stated} == stated


def test_profile_from_the_environment(monkeypatch):
    monkeypatch.setenv("IFCSR_PROFILE", "smoke")
    assert resolve().profile == "smoke" and resolve("pocket").profile == "pocket"


@pytest.mark.parametrize(
    "kwargs, error",
    [
        (dict(profile="pockt"), "did you mean 'pocket'"),
        (dict(overrides={"lrr": 1e-4}), "did you mean 'lr'"),
        (dict(overrides={"lr": "1e-4"}), "1.0e-4"),
        (dict(overrides={"batch": 2.0}), "pass int"),
        (dict(overrides={"batch": True}), "pass int"),
        (dict(seed="0"), "pass int"),
        (dict(seed=-1), "0 or more"),
        (dict(overrides={"k": 0.5}), "1 or more"),
        (dict(overrides={"lr": float("nan")}), "finite"),
        (dict(overrides={"lr": 0}), "more than 0"),
        (dict(overrides={"patch": 100}), "multiples of 32"),
        (dict(overrides={"preset": "heavy"}), "x4plus, light, camera, mixed"),
        (dict(overrides={"seed": 3}), "own parameter"),
        (dict(overrides=["k"]), "dict"),
    ],
)
def test_bad_settings(kwargs, error):
    with pytest.raises((ValueError, TypeError), match=error):
        resolve(**{"profile": "smoke", **kwargs})


def test_replace_checks_too():
    cfg = resolve("smoke")
    assert isinstance(cfg.replace(k=1.0), Config)
    with pytest.raises(ValueError, match="unknown"):
        cfg.replace(kk=1.0)
