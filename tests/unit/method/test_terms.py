"""A term from outside the paper: one function, added without an edit to the method."""

import pytest
import torch
from helpers import distance

from ifcsr_lib import models, trainer
from ifcsr_lib.extras.terms import weave, with_terms


def l1(step):
    return (step.x_hat - step.x_H).abs().mean()


class Learned:
    """A term with a weight of its own, as a discriminator has."""

    name = "learned"

    def __init__(self):
        self.net = torch.nn.Linear(1, 1)

    def modules(self):
        return [self.net]

    def trainable(self):
        return dict(self.net.named_parameters())

    def __call__(self, step):
        return self.net(step.x_hat.mean().view(1, 1)).square().mean()


def run(cfg, crops, folder, terms, steps=3, on_step=None):
    model = models.new(cfg)
    objective = with_terms(trainer.Stage2(model, distance()), terms)
    history = trainer.train(objective, crops, cfg, folder, steps, on_step)
    return torch.cat([p.detach().flatten() for p in objective.trainable().values()]), history


def test_the_loss_is_the_papers_plus_the_weighted_terms(tiny_cfg, crops, tmp_path):
    _, plain = run(tiny_cfg, crops, tmp_path / "plain", {}, 1)
    _, history = run(tiny_cfg, crops, tmp_path / "terms", {l1: 0.5}, 1)
    row = history[0]
    assert row["paper"] == pytest.approx(plain[0]["loss"], abs=0) and row["l1"] > 0
    assert row["loss"] == pytest.approx(row["paper"] + 0.5 * row["l1"], rel=1e-6)


def test_a_term_changes_what_is_learned(tiny_cfg, crops, tmp_path):
    plain, _ = run(tiny_cfg, crops, tmp_path / "plain", {})
    other, _ = run(tiny_cfg, crops, tmp_path / "terms", {l1: 0.5})
    assert not torch.equal(plain, other)


@pytest.mark.parametrize("term", [l1, Learned()], ids=["function", "with weights"])
def test_a_stopped_run_with_a_term_ends_bit_for_bit_where_a_whole_one_does(tiny_cfg, crops, tmp_path, term):
    cfg = tiny_cfg.replace(checkpoint_every=1)

    def fresh():
        if isinstance(term, Learned):
            torch.manual_seed(0)
            return Learned()
        return term

    def stop(row):
        if row["step"] == 2:
            raise KeyboardInterrupt

    whole, losses = run(cfg, crops, tmp_path / "whole", {fresh(): 0.1})
    with pytest.raises(KeyboardInterrupt):
        run(cfg, crops, tmp_path / "parts", {fresh(): 0.1}, on_step=stop)
    parts, losses2 = run(cfg, crops, tmp_path / "parts", {fresh(): 0.1})
    assert torch.equal(whole, parts)
    assert [r["loss"] for r in losses] == [r["loss"] for r in losses2]


def test_another_weight_is_another_run(tiny_cfg, crops, tmp_path):
    run(tiny_cfg, crops, tmp_path, {l1: 0.1}, 1)
    with pytest.raises(ValueError, match=r"objective is 'stage2\+0.2l1', was 'stage2\+0.1l1'"):
        run(tiny_cfg, crops, tmp_path, {l1: 0.2}, 1)


def test_no_terms_is_the_objective_itself_and_names_are_told_apart(tiny_cfg):
    stage = trainer.Stage2(models.new(tiny_cfg), distance())
    assert with_terms(stage, {}) is stage
    with pytest.raises(ValueError, match="one name"):
        with_terms(stage, {l1: 1.0, (lambda: l1).__call__: 1.0, Learned(): 1.0, Learned(): 2.0})


def test_a_weave_of_four_pixels_is_seen_and_noise_is_not():
    def of(error):
        return weave(trainer.Step(torch.zeros(()), x_H=torch.zeros_like(error), x_real=error)).item()

    noise = 0.1 * torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    grid = torch.zeros(1, 3, 96, 96)
    grid[..., ::4, ::4] = 0.8
    assert of(grid) == pytest.approx(0.8 / 16)
    assert of(noise) < 0.02 and of(noise + grid) > 0.05
