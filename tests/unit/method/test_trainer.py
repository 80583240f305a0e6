"""The loop: who moves, exact resume, what a bad loss leaves behind."""

import pytest
import torch
from helpers import distance

from ifcsr_lib import data, models, trainer
from ifcsr_lib.data import low_quality
from ifcsr_lib.runs import run


def snapshot(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def moved(model, before):
    return {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}


@pytest.mark.parametrize(
    "stage, names",
    [(trainer.Stage1, {"fidelity"}), (trainer.Stage2, {"realism"}), (trainer.Joint, {"fidelity", "realism"})],
)
def test_only_the_right_lora_moves(stage, names, tiny_cfg, crops, tmp_path):
    model = models.new(tiny_cfg)
    before = snapshot(model)
    history = trainer.train(stage(model, distance()), crops, tiny_cfg, tmp_path, steps=2)
    changed = moved(model, before)
    assert [row["step"] for row in history] == [1, 2]
    assert changed and {k.split(".")[-2] for k in changed} == names
    assert all(".lora_A." in k or ".lora_B." in k for k in changed)


@pytest.mark.parametrize("stage", [trainer.Stage1, trainer.Stage2])
def test_resume_ends_bit_for_bit_where_an_uninterrupted_run_ends(stage, tiny_cfg, crops, tmp_path):
    cfg = tiny_cfg.replace(checkpoint_every=1)

    def run(folder, stop_after=None):
        model = models.new(cfg)

        def stop(row):
            if row["step"] == stop_after:
                raise KeyboardInterrupt

        try:
            history = trainer.train(stage(model, distance()), crops, cfg, folder, steps=3, on_step=stop)
        except KeyboardInterrupt:
            history = None
        return snapshot(model), history

    whole, history = run(tmp_path / "whole")
    run(tmp_path / "cut", stop_after=1)
    torch.rand(7)  # a new process would not have the same global generator either
    resumed, history_resumed = run(tmp_path / "cut")
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    assert [r["loss"] for r in history] == [r["loss"] for r in history_resumed]


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(tiny_cfg, crops, tmp_path):
    objective = trainer.Stage1(models.new(tiny_cfg), distance())
    trainer.train(objective, crops, tiny_cfg, tmp_path, steps=1)
    with pytest.raises(ValueError, match="another run"):
        trainer.train(objective, crops, tiny_cfg.replace(k=3.0), tmp_path, steps=1)
    (tmp_path / "last.pt").write_bytes(b"half")
    with pytest.raises(ValueError, match="cannot be read"):
        trainer.train(objective, crops, tiny_cfg, tmp_path, steps=1)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tiny_cfg, crops, tmp_path):
    cfg = tiny_cfg.replace(checkpoint_every=1)

    class Breaks(trainer.Stage1):
        def loss(self, batch):
            step = super().loss(batch)
            if min(batch["index"]) >= cfg.batch:
                step.loss = step.loss * float("nan")
            return step

    model = models.new(cfg)
    with pytest.raises(FloatingPointError, match=r"step 2.*photo\d.*lower lr.*last.pt"):
        trainer.train(Breaks(model, distance()), crops, cfg, tmp_path, steps=3)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["step"] == 1 and all(v.isfinite().all() for v in state["weights"].values())
    assert all(p.isfinite().all() for p in model.parameters())


def test_stage2_gradient_is_gamma_times(tiny_cfg, crops):
    """d x_hat / d x_real = gamma: at gamma = 0 the realism adapter gets no gradient at all."""
    model = models.new(tiny_cfg)
    stage = trainer.Stage2(model, distance())
    params = stage.trainable()
    stage.gamma = lambda batch: torch.zeros(2)
    batch = {"x_H": torch.stack([crops[i]["x_H"] for i in (0, 1)]), "index": torch.tensor([0, 1])}
    stage.loss(batch).loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in params.values())


def test_worker_processes_degrade_and_change_no_bit(tiny_cfg, crops):
    cfg = tiny_cfg.replace(preset="mixed")
    samples = [data.Degraded(crops, cfg)[i] for i in (3, 4, 5)]
    _, x_L = low_quality(torch.stack([s["x_H"] for s in samples]), cfg, [3, 4, 5])
    assert torch.equal(torch.stack([s["x_L"] for s in samples]), x_L)
    stage, batch = trainer.Stage1(models.new(cfg), distance()), torch.utils.data.default_collate(samples)
    plain = {k: v for k, v in batch.items() if k != "x_L"}
    assert stage.loss(batch).loss.item() == stage.loss(plain).loss.item()
    assert torch.equal(stage.inputs({**batch, "x_L": x_L.flip(0)})[1], x_L.flip(0)), (
        "what the worker made is what is used"
    )


def test_any_error_leaves_the_last_whole_step(tiny_cfg, crops, tmp_path):
    """A server that is gone at the third of five steps: two are kept, and the run ends where an unbroken one
    ends.
    """

    class Gone:
        def __getitem__(self, i):
            if i >= 4:
                raise OSError("the server is gone")
            return crops[i]

    def run(samples, folder):
        model = models.new(tiny_cfg)
        trainer.train(trainer.Stage1(model, distance()), samples, tiny_cfg, folder, steps=5)
        return model.adapter("fidelity")

    with pytest.raises(OSError, match="server is gone"):
        run(Gone(), tmp_path / "a")
    assert torch.load(tmp_path / "a" / "last.pt", weights_only=True)["step"] == 2
    resumed, unbroken = run(crops, tmp_path / "a"), run(crops, tmp_path / "b")
    assert all(torch.equal(p, unbroken[k]) for k, p in resumed.items())


def test_processes_that_found_different_checkpoints_do_not_start(tiny_cfg, crops, tmp_path, monkeypatch):
    monkeypatch.setattr(run.Accelerator, "gather", lambda self, t: torch.cat([t, t + 2]))
    with pytest.raises(ValueError, match=r"different steps \(0, 2\).*IFCSR_RESULTS"):
        trainer.train(trainer.Stage1(models.new(tiny_cfg), distance()), crops, tiny_cfg, tmp_path, steps=1)


def test_mixed_takes_the_presets_in_turn(tiny_cfg, crops):
    x_H = torch.stack([crops[i]["x_H"] for i in (3, 4, 5)])
    mixed = low_quality(x_H, tiny_cfg.replace(preset="mixed"), [3, 4, 5])
    for i, preset in enumerate(("x4plus", "light", "camera")):
        alone = low_quality(x_H[i : i + 1], tiny_cfg.replace(preset=preset), [3 + i])
        assert all(torch.equal(a[i : i + 1], b) for a, b in zip(mixed, alone, strict=True))


def test_crops_depend_on_seed_and_index_alone(crops):
    a, b = crops[5], crops[5]
    assert torch.equal(a["x_H"], b["x_H"]) and a["name"] == b["name"]
    assert not torch.equal(a["x_H"], crops[6]["x_H"])


def test_learning_rate(tiny_cfg):
    constant = tiny_cfg.replace(schedule="constant")
    assert {trainer.learning_rate(constant, s, 100) for s in range(100)} == {constant.lr}
    cosine = [trainer.learning_rate(tiny_cfg.replace(schedule="cosine"), s, 100) for s in range(100)]
    assert max(cosine) <= tiny_cfg.lr and cosine[-1] < 0.02 * tiny_cfg.lr
