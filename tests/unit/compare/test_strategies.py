"""Every way to control: what it costs in passes, where its ends are, and that training one leaves the others
alone.
"""

from collections import Counter

import numpy as np
import pytest
import torch
from helpers import distance, randomised
from peft.tuners.lora import LoraLayer

from ifcsr_lib import control, costs, models, strategies
from ifcsr_lib.config import resolve
from ifcsr_lib.control import blend

E, U, D = (Counter([name]) for name in ("encode", "unet", "decode"))
NOTHING = Counter()
COSTS = {  # set-up, each adjustment: written down here by hand, from the methods' definitions
    "image blend (IFCSR)": (E + U + U + D + D, NOTHING),
    "latent blend": (E + U + U, D),
    "PiSA-SR-like, as released": (NOTHING, E + U + U + D),
    "PiSA-SR-like, cached": (E + U + U, D),
    "weight mix": (E, U + D),
    "timestep (RCOD-like)": (E, U + D),
    "distilled t (OFTSR-like)": (E, U + D),
    "Euler step (CTSR-like)": (E + U + U, D),
    "OSEDiff-like": (E + U + D, NOTHING),
    "TSD-SR-like": (E + U + D, NOTHING),
}
EXTRA = ("semantic", "timestep", "velocity", "distilled_t", "osediff", "tsd_sr")
LQ = torch.rand(1, 3, 16, 20, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(tiny_backbone):
    """Shared: nothing here trains it, and `predict` leaves nothing changed."""
    model = models.new(resolve("smoke", overrides={"backbone": str(tiny_backbone)}))
    for name in EXTRA:
        strategies.add_adapter(model, name)
    model.lora.train_only()
    return randomised(model, "fidelity", "realism", *EXTRA)


@pytest.fixture
def seen(model):
    """What really passes through the networks, in images."""
    seen, hooks = Counter(), []
    for name, part in (("encode", model.vae.encoder), ("unet", model.unet), ("decode", model.vae.decoder)):
        hooks.append(
            part.register_forward_pre_hook(lambda m, args, name=name: seen.update({name: len(args[0])}))
        )
    yield seen
    for hook in hooks:
        hook.remove()


def test_the_names_are_these():
    assert list(control.strategies()) == list(COSTS)


@pytest.mark.parametrize("name", COSTS)
def test_cost_is_the_one_of_its_definition(name, model, seen):
    strategy, (setup, adjust) = control.strategies()[name](model), COSTS[name]
    strategy.setup(LQ)
    assert strategy.calls == seen == setup
    images = [strategy.adjust(v) for v in (0.0, 0.5, 1.0)]
    assert strategy.calls == seen == setup + adjust + adjust + adjust
    assert all(
        x.shape == (1, 3, 64, 80) and x.dtype == torch.float32 and 0 <= x.min() and x.max() <= 1
        for x in images
    )
    assert ((images[0] - images[2]).abs().max() > 1e-3) == strategy.controls
    seen.clear()
    strategy.setup(LQ)  # again: the count starts over
    assert strategy.calls == seen == setup


def test_the_image_blend_is_e1_of_the_endpoints(model):
    strategy, ends = control.strategies()["image blend (IFCSR)"](model).setup(LQ), model.endpoints(LQ)
    for g in (0.0, 0.3, 1.0):
        assert torch.equal(strategy.adjust(g), blend(ends.x_fid, ends.x_real, g))


@pytest.mark.parametrize("name", ["latent blend", "weight mix"])
def test_ends_are_the_endpoints(name, model):
    """Other routes to the same two images: within 1e-5, a batched UNet call against separate ones; between
    they differ.
    """
    strategy, ends = control.strategies()[name](model).setup(LQ), model.endpoints(LQ)
    assert (strategy.adjust(0) - ends.x_fid).abs().max() < 1e-5
    assert (strategy.adjust(1) - ends.x_real).abs().max() < 1e-5
    assert (strategy.adjust(0.5) - ends.blend(0.5)).abs().max() > 1e-4


def test_pisa_cached_is_pisa_released(model):
    cached, released = (
        control.strategies()[f"PiSA-SR-like, {how}"](model).setup(LQ) for how in ("cached", "as released")
    )
    for v in (0.0, 0.4, 1.0):
        assert torch.equal(cached.adjust(v), released.adjust(v))
    assert (cached.adjust(0.0) - model.endpoints(LQ).x_fid).abs().max() < 1e-5


def test_the_euler_step_starts_at_the_fidelity_end(model):
    strategy = control.strategies()["Euler step (CTSR-like)"](model).setup(LQ)
    assert (strategy.adjust(0.0) - model.endpoints(LQ).x_fid).abs().max() < 1e-5


def test_a_batch_is_its_images(model):
    """Passes are counted an image, and no image sees its neighbour (1e-4: other sums in a convolution, before
    adain).
    """
    two = torch.cat([LQ, LQ.flip(3)])
    for name, kind in control.strategies().items():
        strategy = kind(model).setup(two)
        both = strategy.adjust(0.5)
        assert strategy.calls == COSTS[name][0] + COSTS[name][1], name
        assert (both[1:] - kind(model).setup(two[1:]).adjust(0.5)).abs().max() < 1e-4, name


def test_batched_prediction_equals_separate_passes(model):
    z = torch.randn(2, 4, 8, 8)
    with torch.inference_mode():
        both = model.eps(torch.cat([z, z]), ["fidelity"] * 2 + ["realism"] * 2).chunk(2)
        for name, e in zip(("fidelity", "realism"), both, strict=True):
            assert (strategies.predict(model, z, {name: 1.0}) - e).abs().max() < 1e-5


def test_predict_leaves_nothing_changed(model):
    z = torch.randn(1, 4, 8, 8)
    layers = [m for m in model.unet.modules() if isinstance(m, LoraLayer)]
    with torch.inference_mode():
        before = model.eps(z, "realism")
        prior = strategies.predict(model, z, {})
        mixed = strategies.predict(model, z, {"fidelity": 0.3, "realism": 0.7})
        after = model.eps(z, "realism")
    assert torch.equal(before, after) and not torch.equal(mixed, after) and not torch.equal(prior, mixed)
    assert len({s for layer in layers for s in layer.scaling.values()}) == 1
    with torch.inference_mode():
        # untrained adapters are the frozen prior
        assert torch.equal(prior, models.new(model.cfg).eps(z, "fidelity"))
    model.lora.train_only("timestep")
    strategies.predict(model, z, {"fidelity": 0.5, "velocity": 0.5})
    strategies.predict(model, z, {})
    assert {n.split(".")[-2] for n, p in model.unet.named_parameters() if p.requires_grad} == {"timestep"}


@pytest.mark.parametrize("name", [n for n, s in control.strategies().items() if s.trains])
def test_fit_moves_only_its_own_adapters(name, tiny_cfg, crops):
    model = randomised(models.new(tiny_cfg), "fidelity", "realism")
    with pytest.raises(ValueError, match=r"lacks; train it first with strategies.fit"):
        control.strategies()[name](model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rows = []
    trained = strategies.fit(model, name, crops, distance(), 1, rows.append)
    assert len(rows) == sum(kind.steps for kind in control.strategies()[name].trains)
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    moved = [
        a for a in trained if any(f".{a}." in k and ".lora_B." in k and v.any() for k, v in after.items())
    ]
    assert moved == trained and not any(p.requires_grad for p in model.parameters())
    control.strategies()[name](model).setup(LQ).adjust(0.5)
    # finished checkpoints are not trained again
    strategies.fit(model, name, crops, distance(), 1, rows.append)
    assert len(rows) == sum(kind.steps for kind in control.strategies()[name].trains)


def test_the_switches_of_distillation(model, crops):
    """vsd = 0 is MSE + 2 LPIPS alone; vsd moves the student's gradient and not its critic's, tsm moves it
    once more.
    """
    for name in ("osediff_critic", "osediff"):
        strategies.add_adapter(model, name)
    randomised(model, "osediff", "osediff_critic")
    batch = torch.utils.data.default_collate([crops[i] for i in range(2)])
    judge, gradients = distance(), []
    for vsd, tsm in ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0)):
        objective = strategies.TrainOSEDiff(model, judge)
        objective.vsd, objective.tsm = vsd, tsm
        params = objective.trainable()
        model.zero_grad()
        objective.loss(batch).loss.backward()
        gradients.append(
            {k: torch.zeros_like(p) if p.grad is None else p.grad.clone() for k, p in params.items()}
        )
    critics = [torch.cat([g.flatten() for k, g in each.items() if "critic" in k]) for each in gradients]
    students = [torch.cat([g.flatten() for k, g in each.items() if "critic" not in k]) for each in gradients]
    assert not critics[0].any() and critics[1].any() and torch.allclose(critics[1], critics[2], atol=1e-7)
    assert not torch.allclose(students[0], students[1]) and not torch.allclose(students[1], students[2])


def test_the_score_vanishes_where_critic_and_prior_agree(tiny_cfg, crops):
    """An untrained critic is the prior, so vsd adds nothing to the student's gradient at the start."""
    gradients = []
    for vsd in (0.0, 1.0):
        model = models.new(tiny_cfg)
        for name in strategies.TrainOSEDiff.trains:
            strategies.add_adapter(model, name)
        objective = strategies.TrainOSEDiff(model, distance())
        objective.vsd = vsd
        params = objective.trainable()
        objective.loss(torch.utils.data.default_collate([crops[i] for i in range(2)])).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for k, p in params.items() if "critic" not in k]))
    assert gradients[0].any() and torch.allclose(*gradients, atol=1e-6)


def test_rcod_groups():
    t = strategies.group(torch.tensor([0.2, 0.499, 0.5, 0.699, 0.7, 0.99]))
    assert t.tolist() == [749, 749, 499, 499, 249, 249]


def test_edges_are_rcods_in_sd_latents_and_terciles_in_pocket_ones(tiny_cfg, crops):
    from diffusers import AutoencoderTiny

    model = models.new(tiny_cfg)
    assert strategies.cosine_edges(model, crops) == (0.7, 0.5)
    torch.manual_seed(0)
    model.vae = AutoencoderTiny(
        encoder_block_out_channels=(8,) * 3,
        decoder_block_out_channels=(8,) * 3,
        num_encoder_blocks=(1,) * 3,
        num_decoder_blocks=(1,) * 3,
    ).requires_grad_(False)
    high, low = strategies.cosine_edges(model, crops, count=6)
    assert -1 <= low < high <= 1


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), "0.5", None, True, torch.tensor(0.5)])
def test_bad_values(value, model):
    with pytest.raises(ValueError, match="0 .fidelity. to 1"):
        control.strategies()["latent blend"](model).setup(LQ).adjust(value)


def test_a_switch_has_its_own_run(tiny_cfg, crops):
    """vsd = 0 leaves the critic alone, and neither setting continues the other's checkpoint."""
    model, rows = randomised(models.new(tiny_cfg), "fidelity", "realism"), []
    strategies.fit(model, "OSEDiff-like", crops, distance(), 1, rows.append, {"vsd": 0.0})
    critic = [v for k, v in model.state_dict().items() if ".osediff_critic." in k and ".lora_B." in k]
    assert len(rows) == 2 and critic and not any(v.any() for v in critic)
    strategies.fit(model, "OSEDiff-like", crops, distance(), 1, rows.append)
    assert len(rows) == 4 and any(v.any() for v in critic)
    for name, switch in (("OSEDiff-like", "lr"), ("timestep (RCOD-like)", "vsd")):
        with pytest.raises(ValueError, match="allowed: 'vsd' and 'tsm'"):
            strategies.fit(model, name, crops, distance(), 1, switches={switch: 1.0})


def test_bad_use(model, crops):
    with pytest.raises(ValueError, match=r"call setup\(lq\) before"):
        control.strategies()["weight mix"](model).adjust(0.5)
    with pytest.raises(ValueError, match="16 or more"):
        control.strategies()["weight mix"](model).setup(torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="strategy 'blend' is unknown; allowed: image blend"):
        strategies.fit(model, "blend", crops, distance(), 1)
    with pytest.raises(ValueError, match="without a dot"):
        strategies.add_adapter(model, "a.b")


def test_break_even_by_hand():
    """Against the definition itself, tried one N after another; and the counts of SD 2.1-base for E1 and its
    rivals.
    """
    for a in [(10, 0), (3, 2), (0, 5), (4, 4)]:
        for b in [(2, 3), (4, 4), (0, 2.5), (7, 0)]:
            holds = [a[0] + n * a[1] <= b[0] + n * b[1] for n in range(1, 200)]
            want = next((n for n in range(1, 200) if all(holds[n - 1 :])), None)
            assert costs.break_even(*a, *b) == want, (a, b)
    work = {name: [costs.macs(c) for c in both] for name, both in COSTS.items()}
    ours = work["image blend (IFCSR)"]
    assert ours == [3876, 0] and work["latent blend"] == [1362, 1257]
    found = {name: costs.break_even(*ours, *other) for name, other in work.items()}
    assert found["latent blend"] == 2 and found["PiSA-SR-like, as released"] == 2 and found["weight mix"] == 2
    assert found["OSEDiff-like"] is None


def test_measure_counts_what_happens(model):
    strategy = control.strategies()["latent blend"](model)
    other = control.strategies()["weight mix"](model)
    table = costs.measure({"latent blend": strategy, "weight mix": other}, LQ, counts=(1, 2))
    assert list(table["calls at N = 2"]) == [5, 5]  # 1 + 2 + 2 decodes; 1 + 2 x (1 + 1)
    row = table.loc["latent blend"]
    assert row["set-up"] == "E + 2U" and row["adjustment"] == "D"
    assert 0 < row["set-up (s)"] < row["N = 1 (s)"] < row["N = 2 (s)"]
    padded = (64 + 32) * (80 + 32)
    latents = 3 * 4 * 4 * padded // 64  # z, e_fid, e_real: 4 channels, float32, at an eighth of the size
    x_L = 4 * 3 * 64 * 80
    held = row["kept (MB)"] * 1e6
    assert latents + x_L <= held <= latents + x_L + 1024  # two predictions share a storage
    assert (
        row["peak of set-up (MB)"] * 1e6 > 4 * 3 * padded
        and row["peak of adjustment (MB)"] * 1e6 > 4 * 3 * padded
    )
    with pytest.raises(ValueError, match="allowed: one number"):
        costs.measure({"latent blend": strategy}, LQ, counts=())
    assert costs.formula(NOTHING) == "0"


def test_peak_sees_what_is_freed_again():
    if torch.cuda.is_available():
        pytest.skip("CUDA counts in blocks")

    def run():
        for _ in range(3):
            torch.zeros(1000, 250)

    assert costs.peak(run) == 1_000_000 and costs.peak(lambda: None) == 0


def test_path_of_a_straight_line(model):
    """Blending in pixels moves evenly and straight: equal jumps up to float rounding, 1e-4."""
    row = costs.path(control.strategies()["image blend (IFCSR)"](model), LQ, steps=5)
    assert abs(row["largest / mean"] - 1) < 1e-4 and abs(row["detour"] - 1) < 1e-4 and row["ends apart"] > 0.1
    other = costs.path(control.strategies()["weight mix"](model), LQ, steps=5)
    assert other["largest / mean"] > 1 and other["detour"] > 1


def test_spectrum_is_the_sweep_of_the_endpoints(model):
    from ifcsr_lib import evaluate

    hr = [torch.rand(1, 3, 64, 80)]
    table = costs.spectrum(
        control.strategies()["image blend (IFCSR)"](model), [LQ], hr, (0, 0.5, 1), ["psnr", "ssim"]
    )
    same = evaluate.sweep(model.endpoints(LQ), hr[0], (0, 0.5, 1), ["psnr", "ssim"])
    assert list(table.index) == [0, 0.5, 1] and np.allclose(
        table.astype(float), same.astype(float), atol=1e-5
    )
    single = costs.spectrum(control.strategies()["OSEDiff-like"](model), [LQ], hr, (0, 0.5, 1), ["psnr"])
    assert len(single) == 1
