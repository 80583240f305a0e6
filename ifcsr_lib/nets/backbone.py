"""The frozen backbone: UNet, VAE and the embedding of the empty prompt, from a hub id, a folder or a single
file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import warnings
from pathlib import Path

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..config import Config, path_setting
from ..data import POCKET
from ..errors import one_line, out_of_memory
from ..files.checks import check_pointer
from ..files.results import atomic, read_json, sha256, write_json
from . import sd21

WANTED = [  # of a hub repository; fnmatch's * passes "/", and the single files beside cost 5 GB each
    "ifcsr.json",
    "fidelity.safetensors",
    "realism.safetensors",
    "empty_prompt.safetensors",
    *(
        f"{part}/{name}"
        for part in ("unet", "vae")
        for name in ("config.json", "diffusion_pytorch_model*.safetensors*")
    ),
    "text_encoder/config.json",
    "text_encoder/model*.safetensors*",
    "tokenizer/*",
]
UNWANTED = ["*.fp16.safetensors", "*.fp16-*.safetensors", "*.non_ema.safetensors", "*.fp16.json"]
SIDES = ("unet", "vae")


def cache() -> Path:
    """Where small things that are made once are kept: $IFCSR_CACHE, else the user's cache folder, else, for
    a user without a home folder (containers), the temporary one.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return (
        path_setting("IFCSR_CACHE") or (base if base.is_absolute() else Path(tempfile.gettempdir())) / "ifcsr"
    )


def load_backbone(cfg: Config) -> tuple[UNet2DConditionModel, nn.Module, Tensor, dict]:
    """UNet, VAE, empty-prompt embedding (1, T, D), all float32, and where they come from, of cfg.backbone.

    The fourth is {"id", "revision", "hash", "files"}: files {name: sha256}, hash 16 digits over those of UNet
    and VAE. A hub id's hashes are recorded at first use and compared at every later one (ValueError names the
    file that changed). Raises FileNotFoundError, OSError or ValueError that name cfg.backbone and what to do.
    """
    place = POCKET if cfg.backbone == "pocket" else locate(cfg.backbone, cfg.revision)
    files = fingerprint(place, cfg.backbone)
    if not Path(cfg.backbone).exists() and cfg.backbone != "pocket":
        _compare_with_first_use(cfg, files)
    unet, vae, prompt = _from_file(place) if place.is_file() else _from_folder(place, cfg.backbone)
    if prompt.shape[-1] != (width := unet.config.cross_attention_dim):
        raise ValueError(
            f"backbone {cfg.backbone!r}: its empty prompt has width {prompt.shape[-1]}, its UNet wants "
            f"{width}; they are of two models, get empty_prompt.safetensors or text_encoder/ again"
        )
    return unet, vae, prompt, source(cfg, files)


def source(cfg: Config, files: dict[str, str]) -> dict:
    """What a saved model remembers of its backbone: {"id", "revision", "hash", "files"}."""
    weights = {k: v for k, v in files.items() if k.partition("/")[0] in SIDES} or files
    digest = hashlib.sha256("".join(weights[name] for name in sorted(weights)).encode()).hexdigest()[:16]
    return {"id": cfg.backbone, "revision": cfg.revision, "hash": digest, "files": files}


def locate(name: str, revision: str | None = None) -> Path:
    """A local folder or .safetensors file as it is; a hub id through huggingface_hub's cache, downloaded
    once.

    Raises FileNotFoundError, ValueError, or OSError with the reason (offline, gated, ...) and the three ways
    out.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.is_file() and path.suffix != ".safetensors":
        raise ValueError(
            f"{name}: of single files only .safetensors is read, a pickle can run code; convert it first"
        )
    if path.is_file():
        return path
    if path.suffix == ".safetensors" or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise FileNotFoundError(
            f"{name!r} is neither a folder nor a hub id such as owner/model, nor an existing .safetensors "
            "file, nor 'pocket'"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED)
        )
    except Exception as error:
        others = " or ".join(c for c in sd21.COPIES if c != name)
        raise OSError(
            f"backbone {name!r} (revision {revision or 'default'}) is not in the cache: {_reason(error)}. "
            f"Ways out, each as backbone=...: (1) another hub id, for SD 2.1-base {others}; (2) a local "
            "folder with unet/, vae/, text_encoder/ and tokenizer/, downloaded elsewhere; (3) a single "
            "file, such as v2-1_512-ema-pruned.safetensors"
        ) from error


def _reason(error: Exception) -> str:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return "it is gated; accept its terms on its page, then `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub has no such repository, or it is private (`hf auth login`)"
    if constants.HF_HUB_OFFLINE or isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing is downloaded"
    if isinstance(error, (errors.LocalEntryNotFoundError, ConnectionError)):
        return "the hub cannot be reached"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def fingerprint(place: Path, name: str) -> dict[str, str]:
    """{file: sha256} of the weights that a folder or single file is loaded from; `name` is for the errors."""
    if place.is_file():
        check_pointer(place)
        digest = sha256(place)
        if sd21.KNOWN_FILES.get(place.name, digest) != digest:
            raise ValueError(
                f"{place} is not the published file of that name (sha256 {digest[:16]}..., published "
                f"{sd21.KNOWN_FILES[place.name][:16]}...); get it again, or rename it if it is meant to "
                "differ"
            )
        return {place.name: digest}
    for part in SIDES:
        if not (place / part / "config.json").exists():
            raise FileNotFoundError(
                f"backbone {name!r}: no {part}/config.json; wanted a folder in diffusers' layout with unet/ "
                "and vae/"
            )
    files = [p for part in SIDES for p in _weights(place / part, "diffusion_pytorch_model", name)]
    for path in files:
        check_pointer(path)
    return {p.relative_to(place).as_posix(): sha256(p) for p in files}


def _weights(folder: Path, stem: str, name: str) -> list[Path]:
    """The files that from_pretrained reads: one, or the shards of an index; no variants beside them."""
    index = folder / f"{stem}.safetensors.index.json"
    found = []
    if index.exists():
        names = _object(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(f, str) for f in names.values()):
            raise ValueError(f"{index} has no weight_map of names; get it again")
        found = [folder / f for f in sorted(set(names.values()))]
    found = found or [folder / f"{stem}.safetensors"]
    if missing := [p for p in found if not p.exists()]:
        raise FileNotFoundError(
            f"backbone {name!r}: no {folder.name}/{missing[0].name}; wanted .safetensors weights (no .bin, "
            "no .fp16 variant)"
        )
    return found


def _compare_with_first_use(cfg: Config, files: dict[str, str]) -> None:
    record, key = cache() / "backbones.json", f"{cfg.backbone}@{cfg.revision or 'default'}"
    known = _object(record) if record.exists() else {}
    if not isinstance(known.get(key, {}), dict):
        raise ValueError(  # noqa: TRY004  the file is wrong, not the argument
            f"{record}: the entry of {key!r} is no object; delete the file, it is made again"
        )
    if key not in known:
        try:
            write_json(known | {key: files}, record)
        except OSError as error:
            warnings.warn(f"the hashes of {key} are not recorded: {error}", stacklevel=3)
        return
    changed = [n for n in sorted(known[key].keys() | files.keys()) if known[key].get(n) != files.get(n)]
    if changed:
        old, now = (str(d.get(changed[0]))[:16] for d in (known[key], files))
        raise ValueError(
            f"backbone {key}: {changed[0]} is not the file of its first use here (sha256 {now}, was {old}). "
            f"Delete the downloaded copy and get it again; if the change is meant, remove {key!r} from "
            f"{record}"
        )


def vae_class(vae_config: dict) -> type[nn.Module]:
    """diffusers' class for a vae/config.json; SD's where it names none. Raises ValueError for
    another kind.
    """
    classes = {c.__name__: c for c in (AutoencoderKL, AutoencoderTiny, AutoencoderDC)}
    kind = vae_config.get("_class_name", "AutoencoderKL")
    if kind not in classes:
        raise ValueError(f"vae is a {kind}; allowed: {', '.join(classes)}")
    return classes[kind]


def _object(path: Path) -> dict:
    """A JSON file that holds an object; ValueError for any other."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(  # noqa: TRY004  the file is wrong, not the argument
            f"{path} holds a {type(value).__name__}; allowed: an object {{...}}. Get it again"
        )
    return value


@contextlib.contextmanager
def _fitting(what: str):
    """ValueError, in one line, for the many kinds that diffusers and transformers raise for odd files."""
    try:
        yield
    except Exception as error:
        if out_of_memory(error) or isinstance(error, ImportError):
            raise
        reason = "some weights are missing" if "meta tensor" in str(error) else one_line(error)[:250]
        raise ValueError(
            f"{what} cannot be loaded ({reason}); its weights and config.json do not belong together or are "
            "damaged, get the folder again"
        ) from error


def _whole(kind, folder: Path, **options):
    """kind.from_pretrained, but ValueError where it would make up weights that the file lacks."""
    options |= {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    net, report = kind.from_pretrained(folder, **options)
    lacks = [*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])]
    if lacks:
        raise ValueError(f"{len(lacks)} weights are missing or of another shape, {lacks[0]} first")
    return net


def _from_folder(folder: Path, name: str) -> tuple[UNet2DConditionModel, nn.Module, Tensor]:
    try:
        kind = vae_class(_object(folder / "vae" / "config.json"))
    except ValueError as error:
        raise ValueError(f"backbone {name!r}: {error}") from error
    _object(folder / "unet" / "config.json")
    with _fitting(f"backbone {name!r}: {folder / 'vae'}"):
        vae = _whole(kind, folder / "vae", torch_dtype=torch.float32)
    with _fitting(f"backbone {name!r}: {folder / 'unet'}"):
        unet = _whole(UNet2DConditionModel, folder / "unet", torch_dtype=torch.float32)
    return unet, vae, _empty_prompt(folder, name)


def _stored_prompt(path: Path) -> Tensor:
    """(1, T, D) float32 of an empty_prompt.safetensors; ValueError when it holds no such tensor."""
    prompt = read_safetensors(path).get("prompt")
    if prompt is None or prompt.ndim != 3 or len(prompt) != 1 or not prompt.isfinite().all():
        came = "none" if prompt is None else f"{tuple(prompt.shape)} with NaN or of that shape"
        raise ValueError(f"{path}: its tensor 'prompt' is {came}; allowed: (1, T, D), finite. Get it again")
    return prompt.float()


def _empty_prompt(folder: Path, name: str) -> Tensor:
    """The stored embedding of "" (empty_prompt.safetensors), else made once by the folder's own
    text encoder.
    """
    stored = folder / "empty_prompt.safetensors"
    if stored.exists():
        return _stored_prompt(stored)
    if not (folder / "text_encoder" / "config.json").exists() or not (folder / "tokenizer").is_dir():
        raise FileNotFoundError(
            f"backbone {name!r}: no text_encoder/ and tokenizer/ to make the empty prompt with, and no "
            "empty_prompt.safetensors"
        )
    parts = [*_weights(folder / "text_encoder", "model", name), folder / "text_encoder" / "config.json"]
    parts += sorted(p for p in (folder / "tokenizer").iterdir() if p.is_file())
    for path in parts:
        check_pointer(path)
    key = hashlib.sha256("".join(sha256(p) for p in parts).encode()).hexdigest()

    def make() -> Tensor:
        with _fitting(f"backbone {name!r}: {folder / 'text_encoder'} with tokenizer/"):
            return _embed(folder, "")

    return _once(key, make)


def _embed(folder: Path, text: str) -> Tensor:
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    encoder = _whole(CLIPTextModel, folder / "text_encoder")
    length = tokenizer.model_max_length
    return _encode(
        encoder,
        tokenizer(
            text, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids,
    )


def _encode(encoder: nn.Module, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        return encoder.float().eval()(ids)[0].clone()


def _once(key: str, make) -> Tensor:
    """The cached embedding of a text encoder with this hash, else what `make` returns, which is
    then cached.
    """
    path = cache() / "empty_prompt" / f"{key[:32]}.safetensors"
    with contextlib.suppress(OSError, SafetensorError, KeyError):  # absent or damaged: it is made again
        return load_file(path)["prompt"]
    prompt = make()
    try:
        with atomic(path) as tmp:
            save_file({"prompt": prompt.contiguous()}, tmp)
    except OSError as error:
        warnings.warn(f"the empty prompt is not cached and will be made again: {error}", stacklevel=2)
    return prompt


def file_shape(path: Path) -> str:
    """ "sd21" or "sd15" by the width of the prompts a single file (LDM layout) attends to; only its header is
    read.

    SD 2.1 at 768 pixels (v-prediction) has the shape of SD 2.1-base and cannot be told from it here.
    """
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    try:
        with safe_open(path, framework="pt") as file:
            width = file.get_slice(key).get_shape()[1] if key in file.keys() else None  # noqa: SIM118
    except SafetensorError as error:
        check_pointer(path)
        raise ValueError(f"{path} is not a whole safetensors file ({error}); get it again") from error
    shapes = {1024: "sd21", 768: "sd15"}
    if width not in shapes:
        raise ValueError(
            f"{path}: {'prompts of width ' + str(width) if width else 'no ' + key}; allowed: a checkpoint in "
            "LDM layout of SD 2.1-base (1024) or SD 1.5 (768), or one with unet/, vae/ and "
            "text_encoder/config.json in the same folder"
        )
    return shapes[width]


def _from_file(path: Path) -> tuple[UNet2DConditionModel, AutoencoderKL, Tensor]:
    """A checkpoint in LDM layout, converted by diffusers; configurations from beside the file, else the
    published ones.
    """
    from diffusers.loaders.single_file_utils import (
        SingleFileComponentError,
        create_diffusers_clip_model_from_ldm,
    )
    from transformers import CLIPTextModel

    with tempfile.TemporaryDirectory() as made:
        folder = path.parent
        if not (folder / "unet" / "config.json").exists():
            folder, shape = Path(made), file_shape(path)
            for part, config in (
                ("unet", sd21.unet_config),
                ("vae", sd21.vae_config),
                ("text_encoder", sd21.text_config),
            ):
                write_json(config(shape), folder / part / "config.json")
        state = {k: v.float() if v.is_floating_point() else v for k, v in read_safetensors(path).items()}
        options = {"config": str(folder), "local_files_only": True}
        try:
            unet = UNet2DConditionModel.from_single_file(state, subfolder="unet", **options)
            vae = AutoencoderKL.from_single_file(state, subfolder="vae", **options)
        except (SingleFileComponentError, ValueError, KeyError, IndexError, OSError, RuntimeError) as error:
            # what diffusers found no weights for is still on the meta device when it moves the model
            text = (
                "some weights are missing"
                if "meta tensor" in str(error)
                else " ".join(str(error).split())[:300]
            )
            raise ValueError(
                f"{path} does not fit the backbone's shape: {text}; get the file again, or another"
            ) from error
        if (path.parent / "empty_prompt.safetensors").exists():
            return unet, vae, _stored_prompt(path.parent / "empty_prompt.safetensors")

        def make() -> Tensor:
            try:
                encoder = create_diffusers_clip_model_from_ldm(
                    CLIPTextModel, state, "text_encoder", str(folder), torch.float32, True
                )
            except (ValueError, OSError) as error:
                raise ValueError(
                    f"{path} holds no text encoder to make the empty prompt with ({error}); get the full "
                    "checkpoint, or put empty_prompt.safetensors beside it"
                ) from error
            # a single file has no tokenizer: "" is <start> <end> and padding, "!" (0) for OpenCLIP and <end>
            # for CLIP
            vocabulary, length = encoder.config.vocab_size, encoder.config.max_position_embeddings
            padding = 0 if any(k.startswith("cond_stage_model.model.") for k in state) else vocabulary - 1
            return _encode(
                encoder, torch.tensor([[vocabulary - 2, vocabulary - 1] + [padding] * (length - 2)])
            )

        return unet, vae, _once(sha256(path), make)


def shapes(cfg: Config) -> tuple[dict, dict, dict | None, str]:
    """UNet and VAE configurations of cfg.backbone without its weights, its `source` (None when it is not
    here), and where the configurations were read. Downloads nothing.
    """
    from huggingface_hub import try_to_load_from_cache

    place = Path(cfg.backbone)
    if cfg.backbone == "pocket":
        place = POCKET
    elif not place.exists():
        found = (
            [try_to_load_from_cache(cfg.backbone, f"{p}/config.json", revision=cfg.revision) for p in SIDES]
            if re.fullmatch(r"[\w.-]+/[\w.-]+", cfg.backbone)
            else []
        )
        if not found or not all(isinstance(f, str) for f in found):
            if cfg.backbone not in sd21.SHAPES:
                raise FileNotFoundError(
                    f"backbone {cfg.backbone!r} is not here and its shape is not known; known: "
                    f"{', '.join(sd21.SHAPES)}"
                )
            shape = sd21.SHAPES[cfg.backbone]
            return (
                sd21.unet_config(shape),
                sd21.vae_config(shape),
                None,
                f"published shape {shape}, not downloaded",
            )
        place = Path(found[0]).parent.parent
    folder = place.parent if place.is_file() else place
    if place.is_file() and not (folder / "unet" / "config.json").exists():
        shape = file_shape(place)
        configs, where = [sd21.unet_config(shape), sd21.vae_config(shape)], f"shape {shape} of {place.name}"
    else:
        configs, where = [_object(folder / p / "config.json") for p in SIDES], "config.json files"
    try:
        return *configs, source(cfg, fingerprint(place, cfg.backbone)), where
    except FileNotFoundError:
        return *configs, None, f"{where}, weights not here"


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors file. ValueError or FileNotFoundError when it is another kind, damaged or
    absent.
    """
    if path.suffix != ".safetensors":
        raise ValueError(f"{path.name}: only .safetensors is read, a pickle can run code; convert it first")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as f:
            return {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
    except SafetensorError as e:
        check_pointer(path)
        raise ValueError(f"{path} is not a whole safetensors file ({e}); get it again") from e
