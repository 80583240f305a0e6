"""Every way to control on one backbone: IFCSR's image blend beside latent, weight and timestep control, and
one-step methods without any.

    s = control.strategies()["latent blend"](model)
    s.setup(lq); image = s.adjust(0.3); s.calls         # Counter(unet=2, encode=1, decode=1)

The ends are the model's two adapters; `fit` trains the adapters that other methods need, in trainer.train and
on the same frozen UNet. Names that end in "-like" follow a method's idea and differ where its docstring says
so. Sources: PiSA-SR (CVPR 2025), OSEDiff (NeurIPS 2024), TSD-SR (CVPR 2025), RCOD (AAAI 2026), OFTSR and CTSR
(arXiv 2412.09465, 2503.14272).
"""

from __future__ import annotations

import hashlib
from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor

from ..control import adain
from ..data import normal, uniform
from ..files.images import check_images, upsample
from ..models import ADAPTERS, IFCSR
from ..nets.latents import has_posterior
from ..nets.schedule import noise_schedule
from ..trainer import Objective, Step, run_folder, train

GROUPS = (249, 499, 749)  # RCOD's timesteps, from the mildest degradation to the worst
COSINES = (0.7, 0.5)  # RCOD's edges between them: cosine of z_L and z_H, in SD's latents


# ---------------------------------------------------------------- adapters beside the two ends


def add_adapter(model: IFCSR, name: str) -> None:
    """Put one more untrained LoRA, of the ends' shape, on the model's UNet; does nothing when it is there."""
    if name in model.lora.names:
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(model.cfg.seed)
        model.lora.add(name, model.cfg.rank, model.cfg.lora_alpha)
    model.lora.train_only()


def predict(model: IFCSR, z: Tensor, weights: dict[str, float], t: int | Tensor | None = None) -> Tensor:
    """The UNet's output for z (N, C, h, w) with the weighted sum of these adapters in every layer; {} is the
    frozen prior.

    t: timestep, 0 to 999, an integer or (N,); None takes cfg.timestep. Nothing stays switched or scaled
    afterwards.
    """
    t = model.cfg.timestep if t is None else t
    with model.lora.using(weights):
        return model.unet(z, t, model.prompt.expand(len(z), -1, -1)).sample


# ---------------------------------------------------------------- what `fit` trains: objectives for trainer.t


class PeerObjective(Objective):
    """trains: the adapters it adds; steps: its share of the budget. The loss on images is the peers' MSE + 2
    LPIPS.
    """

    steps = 1

    @property
    def name(self) -> str:
        return self.trains[0]

    def trainable(self):
        return self.model.lora.train_only(*self.trains)

    def ends(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z_fid, z_real (E7); no gradient."""
        with torch.no_grad():
            return self.model.one_step(torch.cat([z, z]), [a for a in ADAPTERS for _ in range(len(z))]).chunk(
                2
            )

    def on_images(self, z_hat: Tensor, x_H: Tensor) -> Tensor:
        d = self.distance(self.model.decode(z_hat), x_H)
        return d[0] + 2 * d[1:].sum()


class TrainSemantic(PeerObjective):
    """PiSA-SR's second stage: the semantic LoRA on top of the frozen pixel LoRA, which is the fidelity
    adapter.
    """

    trains = ("semantic",)

    def loss(self, batch):
        x_H, _, z = self.inputs(batch)
        return Step(self.on_images(z - predict(self.model, z, {"fidelity": 1.0, "semantic": 1.0}), x_H))


class TrainTimestep(PeerObjective):
    """RCOD's latent domain grouping: the closer z_L is to z_H, the smaller the timestep the LoRA sees."""

    trains = ("timestep",)
    steps = 2
    edges = COSINES

    def loss(self, batch):
        x_H, _, z = self.inputs(batch)
        with torch.no_grad():
            t = group(_cosine(z, self.model.encode(x_H)), self.edges)
        return Step(self.on_images(z - predict(self.model, z, {"timestep": 1.0}, t), x_H))


class TrainVelocity(PeerObjective):
    """CTSR-like: v(z_t, t) meets z_real - z_fid on the line z_t = (1 - t) z_fid + t z_real, t ~ U(0, 1)."""

    trains = ("velocity",)

    def loss(self, batch):
        z_fid, z_real = self.ends(self.inputs(batch)[2])
        t = self.gamma(batch)
        v = predict(
            self.model, torch.lerp(z_fid, z_real, t.view(-1, 1, 1, 1)), {"velocity": 1.0}, _unet_time(t)
        )
        return Step(F.mse_loss(v, z_real - z_fid))


class TrainDistilledTime(PeerObjective):
    """OFTSR-like: the student's points lie on the teacher's path, z(s) = z(t) + (s - t) v(z(t), t) for t < s.

    z(t) = z_L - eps(z_L, t). The right side takes no gradient; the path starts where the fidelity end is,
    z(0) = z_fid.
    """

    # DECISION D45: the teacher's path leads from the fidelity to the realism end; theirs come from noise or
    # from LQ
    trains = ("distilled_t",)

    def loss(self, batch):
        z = self.inputs(batch)[2]
        s = self.gamma(batch)
        t = s * uniform(self.cfg.seed + 1, batch["index"]).to(s)
        with torch.no_grad():
            z_fid = z - predict(self.model, z, {"fidelity": 1.0})
            z_t = z - predict(self.model, z, {"distilled_t": 1.0}, _unet_time(t))
            target = z_t + (s - t).view(-1, 1, 1, 1) * predict(
                self.model, z_t, {"velocity": 1.0}, _unet_time(t)
            )
        times = torch.cat([_unet_time(s), _unet_time(0 * s)])
        z_s, z_0 = (
            torch.cat([z, z]) - predict(self.model, torch.cat([z, z]), {"distilled_t": 1.0}, times)
        ).chunk(2)
        return Step(F.mse_loss(z_s, target) + F.mse_loss(z_0, z_fid))


class TrainOSEDiff(PeerObjective):
    """MSE + 2 LPIPS + vsd x variational score distillation: the frozen prior's score against a critic's,
    itself a LoRA.

    z_t: z_hat noised to t. The gradient on z_hat is w [(eps_prior - eps_critic) + tsm (eps_prior - eps_prior
    of z_H's z_t)], w = (sigma / alpha) / mean |z_hat - z_prior|, z_prior what the prior denoises z_t to. vsd
    = 0 leaves all of it out. The critic learns eps for z_hat's z_t in the same step; neither side trains the
    other.
    """

    # DECISION D46: the teacher is the prior with the empty prompt, t ~ U(20, 980), w from DMD as OSEDiff's
    # program has it
    trains = ("osediff", "osediff_critic")
    steps = 2
    vsd, tsm = 1.0, 0.0

    def __init__(self, model, distance):
        super().__init__(model, distance)
        self.schedule = noise_schedule()

    def loss(self, batch):
        x_H, _, z = self.inputs(batch)
        student, critic = self.trains
        z_hat = z - predict(self.model, z, {student: 1.0})
        data = self.on_images(z_hat, x_H)
        if not self.vsd:
            return Step(data)
        noise = normal(self.cfg.seed + 1, batch["index"], z.shape[1:]).to(z)
        t = (20 + 960 * uniform(self.cfg.seed + 1, batch["index"])).long().to(z.device)
        z_t = self.schedule.add_noise(z_hat.detach(), noise, t)
        eps_critic = predict(self.model, z_t, {critic: 1.0}, t)
        with torch.no_grad():
            alpha2 = self.schedule.alphas_cumprod.to(z)[t].view(-1, 1, 1, 1)
            alpha, sigma = alpha2.sqrt(), (1 - alpha2).sqrt()
            eps_prior = predict(self.model, z_t, {}, t)
            z_prior = (z_t - sigma * eps_prior) / alpha
            w = sigma / alpha / (z_hat - z_prior).abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-6)
            gradient = eps_prior - eps_critic
            if self.tsm:
                z_H_t = self.schedule.add_noise(self.model.encode(x_H), noise, t)
                gradient = gradient + self.tsm * (eps_prior - predict(self.model, z_H_t, {}, t))
        score = (w * gradient * z_hat).mean()  # its derivative, not its value, is what counts
        wrong = F.mse_loss(eps_critic, noise)
        return Step(data + self.vsd * score + wrong, {"images": data.item(), "critic": wrong.item()})


class TrainTSDSR(TrainOSEDiff):
    """TSD-SR-like: the same with target score matching, where the prior compares z_hat with z_H."""

    trains = ("tsd_sr", "tsd_sr_critic")
    tsm = 1.0


# ---------------------------------------------------------------- the strategies


class Strategy:
    """What the strategies share: x_L, the networks with their passes counted, and the way back to an image.

    setup(lq) does what no value changes; adjust(value) returns the image at a value from 0 (fidelity) to 1
    (realism).
    calls: Counter of the encode, unet and decode passes since setup began, one per image (two adapters: two
        passes).
    budget: optimiser steps behind it, in units of cfg.steps_ablation. trains: the objectives that `fit` runs
        for it.
    """

    name = ""
    needs: tuple[str, ...] = ADAPTERS
    trains: tuple[type, ...] = ()
    budget = 2
    controls = True

    def __init__(self, model: IFCSR):
        if lacks := [a for a in self.needs if a not in model.unet.peft_config]:
            raise ValueError(
                f"{self.name} needs the adapter {lacks[0]!r}, which this model lacks; train it first with "
                f"strategies.fit(model, {self.name!r}, ...)"
            )
        self.model, self.calls, self.x_L = model, Counter(), None

    @torch.inference_mode()
    def setup(self, lq: Tensor) -> Strategy:
        """lq: (N, 3, h, w) float32 RGB in [0, 1], sides of at least 16. Returns self."""
        check_images(lq, "lq")
        self.calls.clear()
        self.x_L = upsample(lq.to(self.model.prompt.device), self.model.cfg.scale)
        self._setup(lq)
        return self

    @torch.inference_mode()
    def adjust(self, value: float) -> Tensor:
        """The image at value, 0 to 1: (N, 3, 4h, 4w) float32 RGB in [0, 1]. Raises ValueError
        before setup.
        """
        if self.x_L is None:
            raise ValueError(f"{self.name}: nothing is set up; call setup(lq) before adjust(value)")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise ValueError(f"value={value!r}; allowed: a number from 0 (fidelity) to 1 (realism)")
        return self._adjust(float(value))

    def _setup(self, lq: Tensor) -> None:
        self.z = self._encode()

    def _encode(self) -> Tensor:
        h, w = self.x_L.shape[-2:]
        b, m = self.model.cfg.border, self.model.multiple
        # as `endpoints` does
        x = F.pad(self.x_L, (b, b + -(w + 2 * b) % m, b, b + -(h + 2 * b) % m), mode="reflect")
        self.calls["encode"] += 1
        return self.model.encode(x)

    def _predict(self, z: Tensor, weights: dict[str, float], t: int | None = None) -> Tensor:
        self.calls["unet"] += 1
        return predict(self.model, z, weights, t)

    def _both(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """e_fid, e_real, in turn on a CPU and in one batch on a GPU, whichever is faster there (as
        `restore_both` does).
        """
        self.calls["unet"] += 2
        if z.device.type == "cpu":
            return tuple(predict(self.model, z, {name: 1.0}) for name in ADAPTERS)
        names = [a for a in ADAPTERS for _ in range(len(z))]
        return self.model.eps(torch.cat([z, z]), names).chunk(2)

    def _decode(self, z: Tensor) -> Tensor:
        self.calls["decode"] += 1
        b, (h, w) = self.model.cfg.border, self.x_L.shape[-2:]
        x = self.model.decode(z)[..., b : b + h, b : b + w].clamp(0, 1)
        return adain(x, self.x_L) if self.model.cfg.colour_fix == "adain" else x


class ImageBlend(Strategy):
    """IFCSR: (1 - g) Dec(z - e_fid) + g Dec(z - e_real) (E1). Set-up E + 2U + 2D, an adjustment nothing.

    Above cfg.tile x cfg.tile output pixels this one alone works in tiles; compare at or below that.
    """

    name = "image blend (IFCSR)"

    def _setup(self, lq):
        self.ends = self.model.endpoints(lq)
        self.x_L = self.ends.x_L
        self.calls.update(encode=1, unet=2, decode=2)

    def _adjust(self, value):
        return self.ends.blend(value)


class LatentBlend(Strategy):
    """Dec(z - [(1 - g) e_fid + g e_real]), predictions kept. Set-up E + 2U, an adjustment D."""

    name = "latent blend"

    def _setup(self, lq):
        self.z = self._encode()
        self.e_fid, self.e_real = self._both(self.z)

    def _adjust(self, value):
        return self._decode(self.z - torch.lerp(self.e_fid, self.e_real, value))


class PiSACached(Strategy):
    """PiSA-SR's guidance e = l_pix e_pix + l_sem (e_full - e_pix), Dec(z - e), both predictions kept. E + 2U,
    then D.

    e_pix: the fidelity adapter; e_full: it and "semantic" together. Differs: no CSD in the training of
        "semantic".
    """

    # DECISION D47: one value from 0 to 1 for all; in PiSA-SR's two it is l_pix = 1, l_sem = value
    name = "PiSA-SR-like, cached"
    needs = ("fidelity", "semantic")
    trains = (TrainSemantic,)

    def _setup(self, lq):
        self.z, self.e_pix, self.e_full = self._predictions()

    def _predictions(self):
        z = self._encode()
        return z, self._predict(z, {"fidelity": 1.0}), self._predict(z, {"fidelity": 1.0, "semantic": 1.0})

    def _adjust(self, value):
        return self._decode(self.z - torch.lerp(self.e_pix, self.e_full, value))


class PiSAReleased(PiSACached):
    """The same guidance as its authors' program runs it: every adjustment is a whole pass, E + 2U + D."""

    name = "PiSA-SR-like, as released"

    def _setup(self, lq):
        pass

    def _adjust(self, value):
        self.z, self.e_pix, self.e_full = self._predictions()
        image = super()._adjust(value)
        del self.z, self.e_pix, self.e_full
        return image


class WeightMix(Strategy):
    """LoRA weights (1 - g, g) in one UNet pass: mixes weights, not outputs. Set-up E, an adjustment U + D."""

    name = "weight mix"

    def _adjust(self, value):
        return self._decode(self.z - self._predict(self.z, {"fidelity": 1 - value, "realism": value}))


class Timestep(Strategy):
    """RCOD: one LoRA trained with t by degradation; a user raises t for realism. Set-up E, an adjustment U +
    D.

    Differs: E7's subtraction instead of SD's formula at t, one empty prompt instead of visual prompts, no
        VSD.
    """

    name = "timestep (RCOD-like)"
    needs = ("timestep",)
    trains = (TrainTimestep,)

    def _adjust(self, value):
        t = round(GROUPS[0] + value * (GROUPS[-1] - GROUPS[0]))
        return self._decode(self.z - self._predict(self.z, {"timestep": 1.0}, t))


class DistilledTime(Strategy):
    """OFTSR: a student that jumps from z_L to any point of its teacher's path, t is its input. Set-up E, then
    U + D.

    Differs: the path is the one `Velocity` learned between the ends, not a flow from noised LQ to HQ.
    """

    name = "distilled t (OFTSR-like)"
    needs = ("distilled_t",)
    trains = (TrainVelocity, TrainDistilledTime)
    budget = 4  # its teacher, and the teacher's two ends

    def _adjust(self, value):
        return self._decode(self.z - self._predict(self.z, {"distilled_t": 1.0}, _unet_time(value)))


class EulerStep(Strategy):
    """CTSR: Dec(z0 + g v(z0)), z0 the fidelity end, v a velocity towards the realism end. Set-up E + 2U, then
    D.

    Differs: the two teachers are this model's own ends, and the step starts from one of them.
    """

    name = "Euler step (CTSR-like)"
    needs = ("fidelity", "velocity")
    trains = (TrainVelocity,)
    budget = 3

    def _setup(self, lq):
        z = self._encode()
        self.z = z - self._predict(z, {"fidelity": 1.0})
        self.v = self._predict(self.z, {"velocity": 1.0}, 0)

    def _adjust(self, value):
        return self._decode(self.z + value * self.v)


class OSEDiffLike(Strategy):
    """One step, one image, no control: adjust returns it for every value. Set-up E + U + D, an adjustment
    nothing.

    Differs from OSEDiff: E7's step at t = 1 instead of x0 from eps at 999, VAE frozen, no text prompt, no
        guidance.
    """

    name = "OSEDiff-like"
    needs = ("osediff",)
    trains = (TrainOSEDiff,)
    controls = False

    def _setup(self, lq):
        z = self._encode()
        self.image = self._decode(z - self._predict(z, {self.needs[0]: 1.0}))

    def _adjust(self, value):
        return self.image.clone()


class TSDSRLike(OSEDiffLike):
    """The same with target score matching in training. Differs from TSD-SR also in its sampling of
    timesteps.
    """

    name = "TSD-SR-like"
    needs = ("tsd_sr",)
    trains = (TrainTSDSR,)


STRATEGIES = {
    s.name: s
    for s in (
        ImageBlend,
        LatentBlend,
        PiSAReleased,
        PiSACached,
        WeightMix,
        Timestep,
        DistilledTime,
        EulerStep,
        OSEDiffLike,
        TSDSRLike,
    )
}


def fit(
    model: IFCSR, name: str, samples, distance, steps: int, on_step=None, switches: dict | None = None
) -> list[str]:
    """Train what strategy `name` needs beside the model's ends, which stay as they are; continues its own
    checkpoints.

    steps: optimiser steps an end had (cfg.steps_ablation). switches: {"vsd": 0.0} leaves the distillation
    losses of OSEDiff and TSD-SR out, {"tsm": 1.0} sets the weight of target score matching; default each
    method's own. Returns the adapters it trained. ValueError for an unknown strategy or switch.
    """
    # DECISION D43: equal budgets: 2 x steps in all for IFCSR, PiSA-SR, RCOD, OSEDiff and TSD-SR; a distilled
    # method adds its own
    if name not in STRATEGIES:
        raise ValueError(f"strategy {name!r} is unknown; allowed: {', '.join(STRATEGIES)}")
    done, switches, trains = [], switches or {}, STRATEGIES[name].trains
    for switch in switches:
        if switch not in ("vsd", "tsm") or not any(hasattr(kind, switch) for kind in trains):
            raise ValueError(
                f"switch {switch!r} is not one of {name!r}; allowed: 'vsd' and 'tsm', for OSEDiff-like and "
                "TSD-SR-like"
            )
    for kind in trains:
        for adapter in kind.trains:
            add_adapter(model, adapter)
        objective = kind(model, distance)
        for switch, weight in switches.items():
            setattr(objective, switch, float(weight))
        if kind is TrainTimestep:
            objective.edges = cosine_edges(model, samples)
        chosen = "".join(f"-{switch}{weight:g}" for switch, weight in sorted(switches.items()))
        folder = run_folder(model, f"control-{objective.name}{chosen}-{_fingerprint(model)}")
        train(objective, samples, model.cfg, folder, kind.steps * steps, on_step)
        done += kind.trains
    model.lora.train_only()
    return done


def _fingerprint(model: IFCSR) -> str:
    """Of the ends that these trainings start from."""
    digest = hashlib.sha256()
    for name in ADAPTERS:
        for p in model.adapter(name).values():
            digest.update(p.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:8]


def group(cosine: Tensor, edges: tuple[float, float] = COSINES) -> Tensor:
    """RCOD's timestep for each cosine (N,): at least edges[0] -> 249, at least edges[1] -> 499, else 749."""
    return torch.tensor(GROUPS, device=cosine.device)[sum((cosine < edge).long() for edge in edges)]


def cosine_edges(model: IFCSR, samples, count: int = 48) -> tuple[float, float]:
    """The edges between RCOD's groups: its own in SD's latents, else the terciles of the first `count`
    samples.
    """
    # DECISION D44: pocket latents of x_L and x_H have cosines of 0.9 to 1, so RCOD's 0.7 and 0.5 would leave
    # one group
    if has_posterior(model.vae):
        return COSINES
    from ..data import low_quality

    cosines = []
    for i in range(count):
        x_H = samples[i]["x_H"][None].to(model.prompt.device)
        with torch.inference_mode():
            cosines.append(_cosine(model.encode(low_quality(x_H, model.cfg, [i])[1]), model.encode(x_H)))
    low, high = torch.cat(cosines).quantile(torch.tensor([1 / 3, 2 / 3], device=x_H.device)).tolist()
    return high, low


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a.flatten(1), b.flatten(1))


def _unet_time(t: float | Tensor) -> int | Tensor:
    """A path's time, 0 to 1, as the UNet's timestep, 0 to 999."""
    return (999 * t).round().long() if isinstance(t, Tensor) else round(999 * t)


def strategies() -> dict[str, type]:
    """Every strategy on one backbone, {name: class}: s = strategies()[name](model); s.setup(lq);
    s.adjust(value).

    The image blend first; then latent, weight and timestep control, and one-step methods without control.
    """
    return dict(STRATEGIES)
