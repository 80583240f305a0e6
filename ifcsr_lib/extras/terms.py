"""Terms beside the paper's loss, added from outside:

    def l1(step):
        return (step.x_hat - step.x_H).abs().mean()

    objective = with_terms(trainer.Stage2(model, distance), {l1: 0.1})

A term is a function of trainer.Step, or an object that is called like one. Stage1 and Stage2 do not know of
it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ..loss import FeatureDistance
from ..models import IFCSR
from ..trainer import Objective, Stage2, Step

Term = Callable[[Step], Tensor]


class WithTerms:
    """loss = objective.loss + sum_i weight_i term_i(step); the history has "paper" and every term,
    unweighted.

    A term with parameters of its own (a discriminator) has modules() -> list and trainable() -> dict as
    objectives have; they train with the adapters, in one optimiser.
    """

    def __init__(self, objective: Objective, terms: dict[Term, float]):
        self.objective, self.terms = objective, {_name(term): (term, w) for term, w in terms.items()}
        # the name tells runs apart: another weight is another run, and no checkpoint is continued by mistake
        self.name = "+".join([objective.name, *(f"{w:g}{name}" for name, (_, w) in self.terms.items())])
        self.model = objective.model

    def modules(self) -> list[nn.Module]:
        return self.objective.modules() + [m for part in self._parts("modules").values() for m in part]

    def trainable(self) -> dict[str, nn.Parameter]:
        parts = self._parts("trainable")
        return self.objective.trainable() | {f"{n}.{k}": p for n, ps in parts.items() for k, p in ps.items()}

    def loss(self, batch: dict) -> Step:
        step = self.objective.loss(batch)
        step.logs["paper"] = step.loss.item()
        for name, (term, weight) in self.terms.items():
            value = term(step)
            step.logs[name], step.loss = value.item(), step.loss + weight * value
        return step

    def strip(self, batch: dict) -> Tensor:
        return self.objective.strip(batch)

    def _parts(self, method: str) -> dict:
        return {n: getattr(term, method)() for n, (term, _) in self.terms.items() if hasattr(term, method)}


def with_terms(objective: Objective, terms: dict[Term, float]) -> Objective | WithTerms:
    """objective with these weighted terms added to its loss; objective itself when there are none.

    terms: {term: weight}. Raises ValueError for two terms of one name, which the history could not tell
        apart.
    """
    names = [_name(term) for term in terms]
    if len(set(names)) < len(names):
        raise ValueError(f"two terms have one name ({', '.join(names)}); name each differently")
    return WithTerms(objective, terms) if terms else objective


def weave(step: Step) -> Tensor:
    """Mean size of what repeats every 4 pixels in the error of x_real, in windows of 24 pixels; a scalar.

    0 for an error that averages out at each place of the 4 x 4 grid. The pocket decoder rearranges pixels, so
    a UNet can paint such a pattern, and the deep layers of a loss network hardly see it. Sides of x_H:
    multiples of 4, at least 24 pixels.
    """
    error = step.x_real.float() - step.x_H
    return F.avg_pool2d(F.pixel_unshuffle(error, 4), 6).abs().mean()


def stage2(model: IFCSR, distance: FeatureDistance) -> Objective | WithTerms:
    """Stage 2 as a profile trains it: E3, and cfg.weave times `weave` where that is above 0."""
    return with_terms(Stage2(model, distance), {weave: model.cfg.weave} if model.cfg.weave else {})


def _name(term: Term) -> str:
    return getattr(term, "name", None) or getattr(term, "__name__", type(term).__name__)
