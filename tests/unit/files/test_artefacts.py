"""Which settings an artefact depends on: exactly those refuse it when they change, and nothing else is read
to make it.
"""

import dataclasses
import json
import os
import stat
import subprocess
import sys

import pytest
import torch

from ifcsr_lib import config, results
from ifcsr_lib.config import DEPENDS, Config, depends, hash_of, resolve

FIELDS = [f.name for f in dataclasses.fields(Config)]
KINDS = [*DEPENDS, "result"]
# another allowed value for what has no plain "one more"; two fields where one alone is not allowed
OTHER = {
    "profile": "pocket",
    "backbone": "elsewhere",
    "revision": "main",
    "features": "vgg16",
    "preset": "light",
    "heldout_preset": "light",
    "training_set": "ffhq",
    "reading": "disk",
    "schedule": "constant",
    "precision": "bf16",
    "compile": "eager",
    "colour_fix": "none",
    "patch": 96,
    "border": 20,
    "tile": 512,
    "tile_overlap": 128,
    "beta1": 0.5,
    "beta2": 0.5,
    "ema": 0.5,
    "bad_images": 0.5,
    "gradient_checkpointing": True,
}
# read while training, and without effect on what comes out
HARMLESS = {"workers", "log_every", "gradient_checkpointing", "checkpoint_every"}


def changed(cfg: Config, name: str) -> Config:
    if name == "scale":  # goes with preset="noise" alone; hash_of is asked for this field by itself
        return dataclasses.replace(cfg, scale=1)
    return dataclasses.replace(cfg, **{name: OTHER[name] if name in OTHER else getattr(cfg, name) + 1})


def made(cfg: Config, kind: str):
    """An artefact of a kind with its sidecar, where the notebooks write it."""
    place = {"pairs": "pairs", "model": "adapters", "result": "tables/gamma.csv"}
    path = cfg.results / place.get(kind, f"adapters/{kind}.safetensors")
    (path / "x.png" if kind in ("pairs", "model") else path).parent.mkdir(parents=True, exist_ok=True)
    (path / "x.png" if kind in ("pairs", "model") else path).write_bytes(b"x")
    results.write_sidecar(path, cfg)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_field_refuses_exactly_what_depends_on_it(kind):
    cfg = resolve("smoke")
    path = made(cfg, kind)
    assert results.read_json(results.sidecar(path))["kind"] == kind
    assert results.require(path, cfg, "01") == path
    for name in FIELDS:
        other = changed(cfg, name)
        assert getattr(other, name) != getattr(cfg, name)
        if name in depends(kind):
            here, there = getattr(other, name), getattr(cfg, name)
            told = f"was made with {name}={there!r}, this run has {name}={here!r}: run"
            with pytest.raises(
                ValueError, match=told.replace("(", r"\(").replace(")", r"\)").replace("+", r"\+")
            ):
                results.require(path, other, "01")
        else:
            assert results.require(path, other, "01") == path, name


def test_what_a_student_changes_after_a_full_run():
    """Notebook 05's three seeds, and the example of every parameter cell."""
    cfg = resolve("pocket")
    paths = {kind: made(cfg, kind) for kind in KINDS}
    k, seeds = resolve("pocket", overrides={"k": 3.0}), resolve("pocket", overrides={"seeds_ablation": 3})
    assert results.require(paths["pairs"], k, "01")
    for kind in ("fidelity", "realism", "model"):
        with pytest.raises(ValueError, match="was made with k=7.0, this run has k=3.0: run notebooks/0"):
            results.require(paths[kind], k, "03")
        assert results.require(paths[kind], seeds, "03")
    assert results.require(paths["pairs"], seeds, "01")
    assert results.require(
        paths["fidelity"], resolve("pocket", overrides={"border": 0, "steps_realism": 9}), "02"
    )


def test_every_field_is_named_by_a_kind_or_by_none_on_purpose():
    named = {name for kind in KINDS for name in depends(kind)}
    assert named | set(config._WITHOUT_EFFECT) == set(FIELDS) and set(DEPENDS["fidelity"]) < set(
        DEPENDS["realism"]
    )
    assert resolve("smoke").hash == hash_of(resolve("smoke"), "result")
    with pytest.raises(KeyError):
        hash_of(resolve("smoke"), "pears")


@dataclasses.dataclass(frozen=True)
class Watched(Config):
    """A Config that notes which of its fields are read, other than for its hash or as a whole."""

    def __getattribute__(self, name):
        if name in READ_AS_A_WHOLE:
            value = getattr(Config(**{f: object.__getattribute__(self, f) for f in FIELDS}), name)
            return value
        if name in FIELDS:
            SEEN.add(name)
        return object.__getattribute__(self, name)


READ_AS_A_WHOLE = ("hash", "asdict", "model")
SEEN: set[str] = set()


@pytest.fixture
def watched(monkeypatch):
    """A watched copy of a Config; records copy fields one by one, which is no use of them."""
    SEEN.clear()
    for name in ("provenance", "write_sidecar"):
        plain = getattr(results, name)

        def unseen(*args, _plain=plain, **options):
            before = set(SEEN)
            try:
                return _plain(*args, **options)
            finally:
                SEEN.intersection_update(before)

        monkeypatch.setattr(results, name, unseen)
        for module in ("ifcsr_lib.data.crops", "ifcsr_lib.trainer"):
            if hasattr(sys.modules.get(module), name):
                monkeypatch.setattr(sys.modules[module], name, unseen)
    return lambda cfg: Watched(**cfg.asdict())


def test_pairs_read_no_field_that_they_do_not_depend_on(watched):
    from ifcsr_lib import data

    data.photos  # noqa: B018  loads data.crops
    data.write_pairs(watched(resolve("smoke")), data.photos("heldout")[:1])
    assert {"seed", "heldout", "heldout_preset"} <= SEEN <= set(DEPENDS["pairs"]), SEEN


@pytest.mark.parametrize("stage, kind", [(1, "fidelity"), (2, "realism")])
def test_training_reads_no_field_that_the_adapter_does_not_depend_on(
    watched, tiny_cfg, stage, kind, tmp_path
):
    from ifcsr_lib import loss, models, trainer

    cfg = watched(tiny_cfg)
    model, crops = (
        models.new(cfg),
        [{"x_H": torch.rand(3, 64, 64), "index": i, "name": "x"} for i in range(2)],
    )
    objective = (trainer.Stage1, trainer.Stage2)[stage - 1](model, loss.feature_distance(cfg))
    trainer.train(objective, crops, cfg, tmp_path / "run", 1)
    assert {"k", "lr", "batch", "timestep"} <= SEEN <= set(DEPENDS[kind]) | HARMLESS, SEEN - set(
        DEPENDS[kind]
    )


def test_old_sidecars_are_read_field_by_field():
    """Tracked results have the whole Config of their time, with switches that were removed since, and another
    hash.
    """
    cfg = resolve("pocket")
    for kind in KINDS:
        path = made(cfg, kind)
        side = results.sidecar(path)
        record = results.read_json(side)
        del record["kind"], record["depends"]
        record["hash"] = "0" * 12
        record["config"] |= {"texture": 0.0, "grain": False, "csd_prompt": "sharp", "csd_guidance": 7.5}
        del record["config"]["ema"]  # came later
        results.write_json(record, side)
        assert results.require(path, cfg, "01") == path
        with pytest.raises(ValueError, match="was made with seed=0, this run has seed=1"):
            results.require(path, resolve("pocket", seed=1), "01")
        results.write_json(record | {"config": record["config"] | {"texture": 1.0}}, side)
        with pytest.raises(ValueError, match="by another version of this kit"):
            results.require(path, cfg, "01")
        results.write_json({**record, "config": {}}, side)
        with pytest.raises(ValueError, match="settings that its .* does not tell"):
            results.require(path, cfg, "01")
        results.write_json({**record, "kind": "pears"}, side)
        with pytest.raises(ValueError, match="by another version of this kit"):
            results.require(path, cfg, "01")


def test_tracked_results_are_still_read():
    found = sorted((results.REFERENCE / "pocket" / "tables").glob("*.json"))
    assert found
    for side in found:
        record = json.loads(side.read_text())
        known = {k: v for k, v in record["config"].items() if k in FIELDS and k not in ("profile", "seed")}
        added = {k: getattr(Config, k) for k in FIELDS if k not in record["config"]}  # it was off
        cfg = resolve(record["profile"], record["seed"], added | known)
        if not any(
            record["config"].get(k)
            for k in ("texture", "adversarial", "equivariance", "lattice", "grain", "vsd")
        ):
            assert results._differences(record, cfg, "result") == {}, side.name


def test_reading_the_umask_changes_nothing_for_others(tmp_path):
    """Importing the library leaves the process's mask alone, a later change counts, and no thread sees
    another one.
    """
    code = (
        "import os, sys; os.umask(0o027); from ifcsr_lib import results; p = os.path.join(sys.argv[1], 'a'); "
        "open(p, 'w').close();assert os.stat(p).st_mode & 0o777 == 0o640 and results._umask() == 0o027; "
        "os.umask(0o077);assert results._umask() == 0o077 == os.umask(0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=config.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    old = os.umask(0o027)
    try:
        with results.atomic(tmp_path / "b") as tmp:
            tmp.touch(0o600)
        assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o640
    finally:
        os.umask(old)


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux tells the mask without setting it"
)
def test_the_umask_is_not_set_to_be_read(monkeypatch):
    mask = results._umask()
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("os.umask was called"))
    assert results._umask() == mask
