"""Settings: one place makes them, and says clearly what it will not take."""

import dataclasses
import hashlib

import numpy as np
import pytest

from ifcsr_lib import config
from ifcsr_lib.config import MODEL_FIELDS, PROFILES, Config, resolve, resolve_model


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


def test_the_hash_is_of_what_differs_from_the_defaults(monkeypatch):
    """sha256 of JSON that can be written by hand: the profile, and fields that are not at their default, in
    order.
    """
    text = '{"k":3.0,"profile":"paper","rank":8,"seed":5}'
    cfg = resolve("paper", seed=5, overrides={"rank": 8, "k": 3, "workers": 4})
    assert cfg.hash == hashlib.sha256(text.encode()).hexdigest()[:12]
    assert resolve("paper").hash == hashlib.sha256(b'{"profile":"paper"}').hexdigest()[:12]
    hashes = {
        resolve("pocket", overrides=o).hash
        for o in ({}, {"patch": 512}, {"heldout": 512}, {"heldout": 320}, {"border": 0})
    }
    assert len(hashes) == 5  # back to the class's default is not the profile's own value

    more = dataclasses.make_dataclass("More", [("new", float, 0.0)], bases=(Config,), frozen=True)
    plain = [resolve(profile) for profile in PROFILES]
    monkeypatch.setattr(config, "_FIELDS", {f.name: f for f in dataclasses.fields(more)})
    for cfg in plain:
        assert more(**cfg.asdict()).hash == cfg.hash != more(**cfg.asdict(), new=1.0).hash


def test_what_makes_a_model_is_read_from_any_version():
    cfg = resolve("pocket", seed=2, overrides={"rank": 8, "k": 2.0, "tile": 0})
    again = resolve_model(cfg.model)
    assert (
        again == resolve("pocket", seed=2, overrides={"rank": 8, "tile": 0})
        and tuple(cfg.model) == MODEL_FIELDS
    )
    # a whole Config, of an older version
    assert resolve_model({**cfg.asdict(), "texture": 1.0, "csd_prompt": "sharp"}) == again
    assert resolve_model({"profile": "paper"}) == resolve("paper")
    noise = resolve("pocket", overrides={"preset": "noise", "scale": 1})
    assert resolve_model(noise.model).scale == 1
    with pytest.raises(KeyError, match="profile"):
        resolve_model({"rank": 4})
    with pytest.raises(TypeError, match="pass int"):
        resolve_model({**cfg.model, "rank": "8"})


def test_replace_checks_too():
    cfg = resolve("smoke")
    assert isinstance(cfg.replace(k=1.0), Config)
    with pytest.raises(ValueError, match="unknown"):
        cfg.replace(kk=1.0)


@pytest.mark.parametrize("text", ['"/data"', "'/data'", "/data\r", " /data", "/data "])
def test_a_setting_as_env_files_leave_it(monkeypatch, text):
    """Docker's --env-file keeps quotes, a file of Windows its line ends; nobody wants such a folder."""
    for name in ("IFCSR_RESULTS", "IFCSR_DATA"):
        monkeypatch.setenv(name, text)
        with pytest.raises(ValueError, match=f"{name} is .*leave out quotes and blanks"):
            config.path_setting(name)
        monkeypatch.setenv(name, "/my data's")
        assert str(config.path_setting(name)) == "/my data's"


def test_numbers_of_numpy_are_settings():
    """Of the types that they mean, so that neither hash, nor record, nor message shows their origin."""
    cfg = resolve("smoke", overrides={"k": np.float64(3), "rank": np.int64(8), "lr": np.float32(0.5)})
    assert cfg == resolve("smoke", overrides={"k": 3.0, "rank": 8, "lr": 0.5}) and "np." not in repr(cfg)
    assert {type(cfg.k), type(cfg.rank), type(cfg.lr)} == {float, int}
    assert resolve("smoke", seed=np.int64(3)) == resolve("smoke", seed=3)
    with pytest.raises(TypeError, match=r"rank=8.0 came as float; pass int"):
        resolve("smoke", overrides={"rank": np.float64(8)})
