"""Long runs: options that must not change the result, and what goes wrong in a night."""

import errno
import functools
import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import helpers
import numpy as np
import pandas as pd
import pytest
import torch

import ifcsr_lib as ifcsr
from ifcsr_lib import data, dry_run, models, trainer
from ifcsr_lib.cli import main
from ifcsr_lib.config import RECIPES, ROOT, resolve
from ifcsr_lib.control import blend
from ifcsr_lib.files import results
from ifcsr_lib.loss import feature_distance
from ifcsr_lib.runs import checkpoint, run


@pytest.fixture(scope="module")
def distance():
    return helpers.distance()


def train(cfg, crops, distance, folder, stage=trainer.Stage1, steps=2, **kwargs):
    """Final model and losses of a run from adapters that differ, so that a mixed-up adapter shows."""
    model = models.new(cfg)
    torch.manual_seed(1)
    with torch.no_grad():
        for name in model.adapters:
            for p in model.adapter(name).values():
                p.copy_(0.05 * torch.randn(p.shape))  # whatever its memory format
    history = trainer.train(stage(model, distance), crops, cfg, folder, steps, **kwargs)
    return model, [row["loss"] for row in history]


def weights(model):
    return torch.cat([p.detach().flatten() for name in model.adapters for p in model.adapter(name).values()])


def test_accumulation_is_the_larger_batch(tiny_cfg, crops, distance, tmp_path):
    """Two passes of one image against one of two: only the order of float32 sums differs.

    Adam moves a weight by its gradient's sign at first, and rounding decides the sign of those that are
    nearly 0: so the gradient of a step is compared, which Adam keeps as a tenth, and of two steps the whole
    move.
    """
    whole, parts, other = (
        tiny_cfg.replace(batch=2),
        tiny_cfg.replace(batch=1, gradient_accumulation=2),
        tiny_cfg.replace(batch=1),
    )

    def gradient(cfg, name):
        train(cfg, crops, distance, tmp_path / name, steps=1)
        state = torch.load(tmp_path / name / "last.pt", weights_only=True)["optimiser"]["state"]
        return torch.cat([s["exp_avg"].flatten() for s in state.values()])

    g, same, half = gradient(whole, "a"), gradient(parts, "b"), gradient(other, "c")
    assert (same - g).abs().max() < 1e-3 * g.abs().max() < 1e-2 * (half - g).abs().max()
    start, _ = train(tiny_cfg, crops, distance, tmp_path / "0", steps=0)
    (moved, losses), (moved2, losses2) = (
        train(whole, crops, distance, tmp_path / "d"),
        train(parts, crops, distance, tmp_path / "e"),
    )
    assert losses2 == pytest.approx(losses, rel=1e-5)
    assert (weights(moved2) - weights(moved)).norm() < 0.01 * (weights(moved) - weights(start)).norm()


class Interrupted(trainer.Stage2):
    """Another adapter runs between the loss and its backward pass."""

    def loss(self, batch):
        out = super().loss(batch)
        with torch.no_grad():
            self.model.one_step(self.model.encode(batch["x_H"]), "fidelity")
        return out


@pytest.mark.parametrize("stage", [trainer.Stage1, trainer.Stage2, Interrupted, trainer.Joint])
def test_checkpointed_gradients_are_the_same_gradients(stage, tiny_cfg, crops, distance, tmp_path):
    """The backward pass runs blocks again after other adapters were active: each must see its own. Bit for
    bit.
    """
    plain, losses = train(tiny_cfg, crops, distance, tmp_path / "a", stage)
    again, losses2 = train(
        tiny_cfg.replace(gradient_checkpointing=True), crops, distance, tmp_path / "b", stage
    )
    assert losses == losses2 and torch.equal(weights(plain), weights(again))
    assert not any(getattr(m, "gradient_checkpointing", False) for m in again.unet.modules())


def test_compile_sees_both_adapters(tiny_cfg, crops, distance, tmp_path):
    """Dynamo's trace, run eagerly; within 1e-6. inductor's own numbers need a compiler and minutes: not run
    here.
    """
    plain, losses = train(tiny_cfg, crops, distance, tmp_path / "a", trainer.Stage2, 1)
    compiled, losses2 = train(
        tiny_cfg.replace(compile="eager"), crops, distance, tmp_path / "b", trainer.Stage2, 1
    )
    assert (
        losses2 == pytest.approx(losses, rel=1e-6) and (weights(plain) - weights(compiled)).abs().max() < 1e-6
    )
    assert compiled.unet._compiled_call_impl is None


@pytest.mark.parametrize("stage", [trainer.Stage1, trainer.Stage2])
def test_bf16_keeps_images_and_frozen_weights_in_float32(stage, tiny_cfg, crops, distance, tmp_path):
    seen = []

    class Watched(stage):
        def inputs(self, batch):
            seen.append((next(self.model.vae.parameters()).dtype, super().inputs(batch)[1]))
            return super().inputs(batch)

    cfg = tiny_cfg.replace(precision="bf16")
    before = models.new(cfg).state_dict()
    model, losses = train(cfg, crops, distance, tmp_path / "a", Watched)
    _, reference = train(tiny_cfg, crops, distance, tmp_path / "b", stage)
    assert losses == pytest.approx(reference, rel=0.05) and losses != reference
    assert {dtype for dtype, _ in seen} == {torch.bfloat16}  # held so while training (D30)
    _, x_L = data.low_quality(torch.stack([crops[i]["x_H"] for i in (0, 1)]), cfg, [0, 1])
    assert torch.equal(seen[0][1], x_L)  # degraded in float32, whatever the networks run in (D31)
    after = model.state_dict()
    assert all(
        torch.equal(v, after[k]) and v.dtype == after[k].dtype for k, v in before.items() if "lora_" not in k
    )
    assert all(p.dtype == torch.float32 for p in model.parameters())
    model.endpoints(torch.rand(1, 3, 16, 16))


def test_the_run_ends_with_the_average_of_its_weights(tiny_cfg, crops, distance, tmp_path):
    """NOT from the paper. shadow = d shadow + (1 - d) w, with diffusers' d = min(ema, (1 + n) / (10 + n)), n
    updates before.
    """
    cfg, model = tiny_cfg.replace(ema=0.9, checkpoint_every=1), models.new(tiny_cfg)
    objective, shadow = trainer.Stage1(model, distance), None
    named = model.train_only("fidelity")

    def follow(row):
        nonlocal shadow
        w, n = torch.cat([p.detach().flatten() for p in named.values()]), row["step"] - 1
        d = min(0.9, (1 + n) / (10 + n)) if n else 0.0
        shadow = w.clone() if shadow is None else d * shadow + (1 - d) * w

    trainer.train(objective, crops, cfg, tmp_path, 3, follow)
    end = torch.cat([p.detach().flatten() for p in named.values()])
    assert (end - shadow).abs().max() < 1e-6
    again = models.new(cfg)
    trainer.train(trainer.Stage1(again, distance), crops, cfg, tmp_path, 3)  # finished: reads the checkpoint
    assert torch.equal(torch.cat([p.detach().flatten() for p in again.train_only("fidelity").values()]), end)


@pytest.mark.parametrize(
    "overrides, error",
    [
        ({"gradient_checkpointing": True, "compile": "inductor"}, "choose one"),
        ({"ema": 1.0}, "less than 1"),
        ({"workers": -1}, "0 or more"),
        ({"gradient_checkpointing": 1}, "pass bool"),
        ({"gradient_accumulation": 0}, "more than 0"),
        ({"compile": "yes"}, "inductor"),
    ],
)
def test_bad_options(overrides, error):
    with pytest.raises((ValueError, TypeError), match=error):
        resolve("smoke", overrides=overrides)


def test_options_without_effect_on_a_number_share_a_hash():
    assert (
        resolve("smoke").hash
        == resolve("smoke", overrides={"workers": 2, "gradient_checkpointing": True}).hash
    )
    assert resolve("smoke").hash != resolve("smoke", overrides={"ema": 0.9}).hash


def test_tensorboard_has_scalars_and_strips(tiny_cfg, crops, distance, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tiny_cfg, crops, distance, tmp_path / "off")
    assert not (tmp_path / "off" / "log").exists()
    train(tiny_cfg.replace(log_every=2), crops, distance, tmp_path / "on", trainer.Stage2, steps=3)
    log = EventAccumulator(str(tmp_path / "on" / "log")).Reload()
    assert [e.step for e in log.Scalars("loss")] == [1, 2, 3] and {"lr", "seconds"} <= set(
        log.Tags()["scalars"]
    )
    (strip,) = log.Images("x_L, gamma 0 to 1, x_H")
    assert (strip.step, strip.width, strip.height) == (2, 7 * 64, 64)


def test_the_strip_is_the_slider(tiny_cfg, crops, distance):
    stage = trainer.Stage2(models.new(tiny_cfg), distance)
    batch = torch.utils.data.default_collate([crops[0]])
    with torch.no_grad():
        parts = stage.strip(batch).split(64, -1)
    assert torch.equal(parts[6], crops[0]["x_H"])
    assert torch.allclose(parts[3], blend(parts[1][None], parts[5][None], 0.5)[0])


def test_a_full_disk_leaves_the_old_checkpoint_whole_and_nothing_is_lost(
    tiny_cfg, crops, distance, tmp_path, monkeypatch
):
    cfg, real, written = tiny_cfg.replace(checkpoint_every=1), Path.write_bytes, []

    def write_bytes(path, content):
        written.append(path)
        if len(written) >= 3:  # run.json, the first last.pt; and it stays full
            real(path, bytes(content)[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, content)

    cut = tmp_path / "cut"
    with monkeypatch.context() as full:
        full.setattr(Path, "write_bytes", write_bytes)
        with pytest.raises(OSError, match=r"no disk space: .*last\.pt was not written"):
            train(cfg, crops, distance, cut, steps=3)
    assert {p.name for p in cut.iterdir()} == {"run.json", "last.pt"}
    assert torch.load(cut / "last.pt", weights_only=True)["step"] == 1
    whole, losses = train(cfg, crops, distance, tmp_path / "whole", steps=3)
    resumed, losses2 = train(cfg, crops, distance, cut, steps=3)
    assert losses == losses2 and torch.equal(weights(whole), weights(resumed))


class Dies(torch.utils.data.Dataset):
    """Crops whose reader is killed, as the kernel does when memory runs out, on asking for sample `at`."""

    def __init__(self, crops, at):
        self.crops, self.at = crops, at

    def __len__(self):
        return len(self.crops)

    def __getitem__(self, i):
        if i == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.crops[i]


def test_a_killed_worker_is_told_and_nothing_is_lost(tiny_cfg, crops, distance, tmp_path):
    whole, losses = train(tiny_cfg, crops, distance, tmp_path / "whole", steps=6)
    with pytest.raises(
        ChildProcessError, match=r"stage1: a process that reads images died.*kept.*fewer workers \(now 1\)"
    ):
        train(tiny_cfg, Dies(crops, at=8), distance, tmp_path / "cut", steps=6, workers=1)
    assert torch.load(tmp_path / "cut" / "last.pt", weights_only=True)["step"] >= 1
    resumed, losses2 = train(tiny_cfg, crops, distance, tmp_path / "cut", steps=6, workers=1)
    assert losses == losses2 and torch.equal(weights(whole), weights(resumed))


def test_a_checkpoint_of_another_profile_is_refused_by_name(tiny_cfg, crops, distance, tmp_path, monkeypatch):
    train(tiny_cfg, crops, distance, tmp_path, steps=1)
    other = resolve("pocket", overrides={"backbone": tiny_cfg.backbone, "patch": 64, "batch": 2})
    with pytest.raises(
        ValueError,
        match=r"of another run: profile is 'pocket', was 'smoke'.*steps_fidelity is 240, was 4",
    ):
        train(other, crops, distance, tmp_path, steps=1)

    def stop(row):
        raise KeyboardInterrupt

    cfg = tiny_cfg.replace(checkpoint_every=1)
    with pytest.raises(KeyboardInterrupt):
        train(cfg, crops, distance, tmp_path / "b", on_step=stop)
    # as two processes would see it
    monkeypatch.setattr(run, "Checkpoint", lambda *args: checkpoint.Checkpoint(*args[:-1], 4))
    with pytest.raises(ValueError, match="images per step is 4, was 2.*number of processes"):
        train(cfg, crops, distance, tmp_path / "b")


def test_sigterm_finishes_the_step_checkpoints_and_goes_on(tiny_backbone, tmp_path):
    long = ("steps_fidelity=3000", "checkpoint_every=3000")
    command = helpers.train_command(sys.executable, backbone=tiny_backbone, settings=long)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "IFCSR_RESULTS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=env, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert "stage1: new run, because" in run.stdout.readline()
        assert "stage1 step 1/3000" in run.stdout.readline()
        run.send_signal(signal.SIGTERM)
        _, text = run.communicate(timeout=120)
    assert run.returncode == 143 and "stopped by SIGTERM after step" in text and "Traceback" not in text
    (last,) = tmp_path.glob("smoke/runs/stage1-*/last.pt")
    done = torch.load(last, weights_only=True)["step"]
    assert 1 <= done < 3000
    assert not (tmp_path / "smoke" / "adapters").exists()

    cfg = resolve(
        "smoke", overrides={"backbone": str(tiny_backbone), "steps_fidelity": 3000, "checkpoint_every": 3000}
    )

    def until(step, folder):
        """(first step run here, weights after `step`, that step's loss) of the same run of 3000, in this
        process.
        """
        model, rows = models.new(cfg), []

        def on_step(row):
            rows.append(row)
            if row["step"] == step:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            trainer.train(
                trainer.Stage1(model, feature_distance(cfg)),
                data.training_crops(cfg),
                cfg,
                folder,
                3000,
                on_step,
            )
        return rows[0]["step"], weights(model), rows[-1]["loss"]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the process above
    whole, resumed = until(done + 2, tmp_path / "whole"), until(done + 2, last.parent)
    torch.set_num_threads(threads)
    assert (whole[0], resumed[0]) == (1, done + 1)
    assert whole[2] == resumed[2] and torch.equal(whole[1], resumed[1])


def test_train_is_what_the_notebooks_do(tiny_backbone, tmp_path, monkeypatch, capsys):
    """Both stages by the command; then the notebook's own call finds the training finished."""
    monkeypatch.setenv("IFCSR_RESULTS", str(tmp_path))
    argv = ["train", "--profile", "smoke", "-o", f"backbone={tiny_backbone}", "--stage"]
    assert main([*argv, "2"]) == 2 and "02_stage1_fidelity.ipynb" in capsys.readouterr().err
    assert main([*argv, "1"]) == 0 and main([*argv, "2"]) == 0
    assert "stage2+6weave step 4/4" in capsys.readouterr().out
    ends = ifcsr.load(tmp_path / "smoke" / "adapters", device="cpu").endpoints(torch.rand(1, 3, 16, 16))
    assert not torch.equal(ends.x_fid, ends.x_real)
    cfg = resolve("smoke", overrides={"backbone": str(tiny_backbone)})
    model, called = models.new(cfg), []
    stage = trainer.Stage1(model, feature_distance(cfg))
    folder = trainer.run_folder(model, "stage1")
    assert (
        len(trainer.train(stage, data.training_crops(cfg), cfg, folder, 4, called.append)) == 4 and not called
    )


def test_computed_memory_is_what_the_profiler_sees(tiny_cfg, distance, monkeypatch):
    """Peak of the activations of one step: counted on fake tensors, against torch.profiler on real ones;
    within 10 %.
    """
    cfg = tiny_cfg.replace(batch=2)
    # the loss network of `distance`, which is narrow
    monkeypatch.setattr(dry_run, "PocketFeatures", lambda: helpers.distance().net)
    counted = dry_run.cost(cfg, 1)
    objective = trainer.Stage1(models.new(cfg), distance)
    x, noise = torch.zeros(2, 3, 64, 64), torch.zeros(2, 4, 8, 8)
    objective.inputs = lambda batch: (x, x, noise)
    for p in objective.trainable().values():
        p.grad = torch.zeros_like(p)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as prof:
        objective.loss({"x_H": x, "index": torch.arange(2)}).loss.backward()
    events = sorted(
        (e.start_ns(), e.nbytes()) for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"
    )
    peak = np.cumsum([size for _, size in events]).max()
    assert counted["peak"] - counted["weights"] == pytest.approx(peak, rel=0.1)
    assert dry_run.cost(cfg.replace(gradient_checkpointing=True), 1)["peak"] < counted["peak"]


counted = functools.cache(dry_run.cost)  # twenty seconds each, and several tests ask for the same one


@pytest.fixture
def no_download(monkeypatch):
    """An empty cache, and an error at what would fill it."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"a download: {args}")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **kwargs: None)
    monkeypatch.setattr("torchvision.models.vgg16", refuse)
    monkeypatch.setattr(dry_run, "cost", counted)


def test_dry_run_of_the_paper_counts_without_a_download(capsys, tmp_path, no_download):
    """E + 2U + 2D + 3V multiply-adds an image (peers' E 558, U 402, D 1257 G; V 80 G of VGG16 at 512x512)
    within 8 %.
    """
    argv = [
        "train",
        "--profile",
        "paper",
        "--stage",
        "1",
        "--recipe",
        "24 GB",
        "--dry-run",
        "--cards",
        "8x A100",
    ]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "949,564,587 frozen parameters" in text and "4,055,712 parameters" in text and "32 images" in text
    operations = float(text.split(" cards), ")[1].split("e12")[0]) * 1e12
    assert operations == pytest.approx(4 * 2 * (558 + 2 * 402 + 2 * 1257 + 3 * 80) * 1e9, rel=0.08)
    memory = float(text.split("memory a card:")[1].split(" GB")[0])
    assert 2.0 < memory + dry_run.RESERVE / 1e9 < 24 and text.count("computed, not measured") == 2
    assert not (tmp_path / "results").exists()


def test_recipes_are_the_papers_batch_and_cards_are_named():
    for recipe in RECIPES.values():
        cfg = resolve("paper", overrides=recipe)
        assert cfg.batch * cfg.gradient_accumulation == 4 and cfg.patch == 512
    with pytest.raises(ValueError, match="H100, A100"):
        dry_run.dry_run(resolve("smoke"), 1, "1x abacus")


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_fits_its_card_and_docs_have_its_numbers(recipe, stage, no_download):
    """The table of docs/training.md is made from the reference training_cost.csv; peak and operations there
    within 0.1 %.
    """
    one = dry_run.cost(resolve("paper", overrides=RECIPES[recipe]), stage)
    assert one["peak"] + dry_run.RESERVE < float(recipe.split()[0]) * 1e9
    kept = pd.read_csv(results.REFERENCE / "paper" / "tables" / "training_cost.csv")
    kept = kept.query("recipe == @recipe and stage == @stage").iloc[0]
    for name, value in one.items():
        assert kept[name] == pytest.approx(value, rel=1e-3), "python tools/readme_tables.py --count"


@pytest.mark.parametrize("cards, recipe", [("1x H100", "80 GB"), ("1x 24 GB", "24 GB"), ("8x A100", "80 GB")])
def test_docs_show_what_the_dry_run_prints(cards, recipe, no_download, capsys, monkeypatch):
    """docs/training.md's transcripts are made by tools/readme_tables.py; the command prints the same."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    transcript = importlib.import_module("readme_tables").transcript(cards, recipe)
    capsys.readouterr()
    assert (
        main(
            ["train", "--profile", "paper", "--stage", "1", "--recipe", recipe, "--dry-run", "--cards", cards]
        )
        == 0
    )
    assert capsys.readouterr().out == transcript.partition("\n")[2]


@pytest.fixture(scope="module")
def proof():
    spec = importlib.util.spec_from_file_location("gpu_proof", ROOT / "benchmarks" / "gpu_proof.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_gpu_proof_runs_whole_on_a_cpu(proof, tmp_path):
    assert proof.main(["--tiny", "--steps", "1"]) == 0
    table = pd.read_csv(tmp_path / "results" / "smoke" / "tables" / "gpu_proof.csv")
    assert len(table) == 8 and (table["seconds"] > 0).all()
    for text in table["dominates"][:4]:  # "backward 50%, decode 20%, ...", the longest first
        shares = {name: int(share) for name, share in re.findall(r"(\w+) (\d+)%", text)}
        assert {"encode", "one_step", "decode", "features", "backward"} <= set(shares)
        assert abs(sum(shares.values()) - 100) <= len(shares) / 2 and list(shares.values()) == sorted(
            shares.values(), reverse=True
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_gpu_proof_says_not_run_without_a_gpu(proof, tmp_path, capsys):
    assert proof.main([]) == 0 and "not run: no CUDA device" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()
