"""A run's folder and what it says when it starts."""

import pytest
from helpers import distance

from ifcsr_lib import models, trainer
from ifcsr_lib.runs import checkpoint
from ifcsr_lib.runs.checkpoint import run_folder


@pytest.fixture
def cfg(tiny_cfg, tmp_path, monkeypatch):
    monkeypatch.setenv("IFCSR_RESULTS", str(tmp_path))
    return tiny_cfg.replace(checkpoint_every=1)


def start(cfg, crops, steps=2, on_step=None):
    model = models.new(cfg)
    folder = run_folder(model, "stage1")
    trainer.train(trainer.Stage1(model, distance()), crops, cfg, folder, steps, on_step)
    return folder


def stop(row):
    raise KeyboardInterrupt


def test_it_says_whether_it_continues_or_why_it_is_new(cfg, crops, capsys):
    def said():
        return capsys.readouterr().out

    with pytest.raises(KeyboardInterrupt):
        start(cfg, crops, on_step=stop)
    assert "stage1: new run, because no run of this kind is there yet" in said()
    folder = start(cfg, crops)
    assert f"stage1: continues at step 1 of 2, {folder / 'last.pt'}" in said()
    start(cfg, crops)
    assert "stage1: is finished after step 2" in said()
    assert start(cfg.replace(k=3.0, workers=1), crops) != folder
    told = said()
    assert f"stage1: new run, because k is 3.0, was {cfg.k}" in told and "workers" not in told
    (folder.parent / "stage1-damaged").mkdir()
    (folder.parent / "stage1-damaged" / "run.json").write_text("{")
    start(cfg.replace(k=2.0), crops, 1)
    assert "new run, because" in said()


def test_the_folder_depends_on_settings_backbone_and_version_alone(cfg, monkeypatch):
    model = models.new(cfg)
    folder = run_folder(model, "stage1")
    assert run_folder(models.new(cfg.replace(workers=3, log_every=5)), "stage1") == folder
    assert run_folder(models.new(cfg.replace(lr=2e-3)), "stage1") != folder
    assert run_folder(model, "stage2") != folder
    model.source = {**model.source, "hash": "another"}
    assert run_folder(model, "stage1") != folder
    monkeypatch.setattr(checkpoint, "TRAINING_VERSION", checkpoint.TRAINING_VERSION + 1)
    assert run_folder(models.new(cfg), "stage1") != folder


def test_a_new_training_version_is_said(cfg, crops, capsys, monkeypatch):
    start(cfg, crops, 1)
    monkeypatch.setattr(checkpoint, "TRAINING_VERSION", 99)
    start(cfg, crops, 1)
    assert "because training version is 99, was" in capsys.readouterr().out
