"""Where a backbone comes from: hub layout, folder, single file; what is remembered, compared, cached and
refused.
"""

import importlib.util
import json
import shutil
import types

import huggingface_hub
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from huggingface_hub import constants, errors
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import ifcsr_lib as ifcsr
from ifcsr_lib import backbone, models, sd21
from ifcsr_lib.cli import main
from ifcsr_lib.cli.describe import describe
from ifcsr_lib.config import ROOT, resolve
from ifcsr_lib.data import POCKET
from ifcsr_lib.errors import one_line, own
from ifcsr_lib.files.checks import POINTER

# by its path: the plain names of benchmarks/ must not become importable here
spec = importlib.util.spec_from_file_location("random_sd", ROOT / "benchmarks" / "random_sd.py")
random_sd = importlib.util.module_from_spec(spec)
spec.loader.exec_module(random_sd)


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("IFCSR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def write_backbone(folder, shape):
    """A tiny backbone of an SD shape in diffusers' layout, text encoder and tokenizer included."""
    return random_sd.write_folder(folder, shape, tiny=True)


@pytest.fixture(params=["sd21", "sd15"])
def folder(request, tmp_path):
    return write_backbone(tmp_path / "sd", request.param)


def in_hub_cache(tmp_path, name, source):
    """`source` as snapshot_download leaves a repository: refs/main and snapshots/<commit>/."""
    repo, commit = tmp_path / "hub" / f"models--{name.replace('/', '--')}", "c" * 40
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots").mkdir()
    source.rename(repo / "snapshots" / commit)
    return repo / "snapshots" / commit


def cfg_of(place):
    return resolve("paper", overrides={"backbone": str(place)})


# the published shapes


def count(cls, config):
    with torch.device("meta"):
        return sum(
            p.numel() for p in (cls(**config) if isinstance(config, dict) else cls(config)).parameters()
        )


@pytest.mark.parametrize(
    "shape, unet, vae, text",
    [("sd21", 865_910_724, 83_653_863, 340_387_840), ("sd15", 859_520_964, 83_653_863, 123_060_480)],
)
def test_published_shapes(shape, unet, vae, text):
    assert count(UNet2DConditionModel, sd21.unet_config(shape)) == unet
    assert count(AutoencoderKL, sd21.vae_config(shape)) == vae
    assert count(CLIPTextModel, CLIPTextConfig(**sd21.text_config(shape))) == text


def no_download(*_, **__):
    raise AssertionError("something was downloaded")


def test_describe_paper(capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_download)
    assert main(["describe", "--profile", "paper"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["parameters"] == {"unet": 865_910_724, "vae": 83_653_863, "adapter": 4_055_712}
    assert (told["lora"]["modules"], told["lora"]["rank"], told["multiple"]) == (258, 4, 64)
    assert told["backbone"]["hash"] is None and told["config_hash"] == resolve("paper").hash


def test_describe_sd15_and_pocket(capsys):
    """SD 1.5 adapts as many modules; pocket is here, so its hash is told."""
    assert (
        main(
            [
                "describe",
                "--profile",
                "paper",
                "--set",
                "backbone=stable-diffusion-v1-5/stable-diffusion-v1-5",
            ]
        )
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert (
        told["parameters"]["unet"] == 859_520_964
        and told["lora"]["modules"] == 258
        and told["prompt_width"] == 768
    )
    assert main(["describe", "--profile", "pocket"]) == 0
    told, model = json.loads(capsys.readouterr().out), models.new(resolve("pocket"))
    assert told["backbone"] == model.source and len(told["backbone"]["files"]) == 2
    assert told["parameters"]["adapter"] == sum(p.numel() for p in model.adapter("fidelity").values())
    card = json.loads((POCKET / "adapters" / "ifcsr.json").read_text())
    # hashed as it was when these adapters were trained
    assert card["backbone"]["hash"] == told["backbone"]["hash"]


def test_describe_an_unknown_backbone(capsys):
    assert main(["describe", "--profile", "paper", "--set", "backbone=owner/nothing"]) == 2
    assert "owner/nothing" in (text := capsys.readouterr().err) and sd21.COPIES[0] in text


def test_default_is_a_known_copy():
    assert resolve("paper").backbone == sd21.COPIES[0]


# folder, hub id, empty prompt, hashes


def test_hub_layout(folder, tmp_path, monkeypatch):
    """A hub id through huggingface_hub's cache; the prompt is the text encoder's, which is loaded once."""
    snapshot = in_hub_cache(tmp_path, "owner/tiny", folder)
    encoder, tokenizer = (
        CLIPTextModel.from_pretrained(snapshot / "text_encoder"),
        CLIPTokenizer.from_pretrained(snapshot / "tokenizer"),
    )
    ids = tokenizer("", padding="max_length", max_length=77, return_tensors="pt").input_ids
    model = ifcsr.load("owner/tiny", device="cpu")
    with torch.inference_mode():
        assert torch.equal(model.prompt, encoder(ids)[0])
    assert model.source["id"] == "owner/tiny" and set(model.source["files"]) == {
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
    ends = model.endpoints(torch.rand(1, 3, 16, 16))
    assert torch.equal(ends.x_fid, ends.x_real) and ends.x_fid.shape == (1, 3, 64, 64)  # untrained adapters

    def again(*_, **__):
        raise AssertionError("the text encoder was loaded again")

    monkeypatch.setattr(CLIPTextModel, "from_pretrained", again)
    assert torch.equal(ifcsr.load("owner/tiny", device="cpu").prompt, model.prompt)
    (cached,) = (tmp_path / "cache" / "empty_prompt").iterdir()
    cached.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="loaded again"):
        ifcsr.load("owner/tiny", device="cpu")


def test_changed_hub_files_are_told(tmp_path):
    snapshot = in_hub_cache(tmp_path, "owner/tiny", write_backbone(tmp_path / "sd", "sd21"))
    cfg = cfg_of("owner/tiny")
    first = backbone.load_backbone(cfg)[3]
    record = tmp_path / "cache" / "backbones.json"
    assert json.loads(record.read_text()) == {"owner/tiny@default": first["files"]}
    weights = snapshot / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["quant_conv.bias"] += 1
    save_file(state, weights)
    with pytest.raises(
        ValueError, match="owner/tiny.*vae/diffusion_pytorch_model.safetensors.*remove 'owner/tiny@default'"
    ):
        backbone.load_backbone(cfg)
    record.unlink()
    assert backbone.load_backbone(cfg)[3]["hash"] != first["hash"]


def test_another_backbone_names_the_file(tmp_path):
    folder = write_backbone(tmp_path / "sd", "sd21")
    saved = models.new(cfg_of(folder)).save(tmp_path / "saved")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["conv_out.bias"] += 1
    save_file(state, weights)
    with pytest.raises(ValueError, match="unet/diffusion_pytorch_model.safetensors differs"):
        ifcsr.load(saved, device="cpu")


def remove_tree(folder):
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


@pytest.mark.parametrize("part, error", [("vae", "no vae/config.json"), ("text_encoder", "no text_encoder/")])
def test_missing_parts_are_named(tmp_path, part, error):
    folder = write_backbone(tmp_path / "sd", "sd21")
    remove_tree(folder / part)
    with pytest.raises(FileNotFoundError, match=error):
        backbone.load_backbone(cfg_of(folder))


def test_only_variants_are_no_weights(tmp_path):
    folder = write_backbone(tmp_path / "sd", "sd21")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(
        folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    )
    with pytest.raises(FileNotFoundError, match="no unet/diffusion_pytorch_model.safetensors"):
        backbone.load_backbone(cfg_of(folder))


def test_what_is_downloaded():
    """Of a repository such as SD 2.1-base's: what is read, once, and none of the 5 GB single files."""
    read = [
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "tokenizer/vocab.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "ifcsr.json",
        "fidelity.safetensors",
    ]
    left = [
        "v2-1_512-ema-pruned.safetensors",
        "v2-1_512-ema-pruned.ckpt",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "text_encoder/model.fp16.safetensors",
        "safety_checker/model.safetensors",
        "vae/diffusion_pytorch_model.fp16.bin",
        "README.md",
    ]
    chosen = huggingface_hub.utils.filter_repo_objects(
        read + left, allow_patterns=backbone.WANTED, ignore_patterns=backbone.UNWANTED
    )
    assert list(chosen) == read


# errors of the hub


def hub_error(kind):
    answer = types.SimpleNamespace(headers={}, request=None)
    return (
        kind("text of the hub", response=answer) if issubclass(kind, errors.HfHubHTTPError) else kind("text")
    )


@pytest.mark.parametrize(
    "kind, reason",
    [
        (errors.GatedRepoError, "gated.*hf auth login"),
        (errors.RepositoryNotFoundError, "no such repository"),
        (errors.RevisionNotFoundError, "no such revision"),
        (errors.LocalEntryNotFoundError, "cannot be reached"),
        (ConnectionError, "cannot be reached"),
        (OSError, "OSError: text"),
    ],
)
def test_hub_errors(monkeypatch, kind, reason):
    def fail(*_, **__):
        raise hub_error(kind)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    ways = r"\(1\) another hub id.*sd2-community.*\(2\) a local folder.*\(3\) a single file"
    with pytest.raises(OSError, match=f"owner/gone.*{reason}.*{ways}"):
        ifcsr.load("owner/gone")


def test_offline(capsys, tmp_path):
    """HF_HUB_OFFLINE, through the command line: one whole line."""
    photo = tmp_path / "a.png"
    ifcsr.images.write_image(torch.rand(1, 3, 16, 16), photo)
    assert main(["upscale", str(photo), str(tmp_path / "out"), "--model", sd21.COPIES[0]]) == 2
    text = capsys.readouterr().err
    assert sd21.COPIES[0] in text and sd21.COPIES[1] in text and "HF_HUB_OFFLINE is set" in text
    assert text.count("\n") == 1 and text.endswith("v2-1_512-ema-pruned.safetensors\n")


# single files


@pytest.mark.parametrize("shape", ["sd21", "sd15"])
def test_single_file_equals_its_folder(tmp_path, shape):
    """The same weights as one LDM file, its configurations beside it, give the same network and the same
    prompt.
    """
    folder = write_backbone(tmp_path / "sd", shape)
    path = random_sd.write_file(folder, folder / "tiny.safetensors", shape)
    a, b = ifcsr.load(folder, device="cpu"), ifcsr.load(path, device="cpu")
    assert torch.allclose(a.prompt, b.prompt, atol=1e-6)
    lq = torch.rand(1, 3, 16, 16)
    assert (a.endpoints(lq).x_fid - b.endpoints(lq).x_fid).abs().max() < 1e-5
    assert list(b.source["files"]) == ["tiny.safetensors"]
    told = describe(cfg_of(path))
    assert told["backbone"] == b.source


def test_the_single_file_of_the_true_shape_has_the_published_names():
    """diffusers' own converters lead from the names of a full-size file back to every key and shape. On the
    meta device, so that nothing is computed.
    """
    config = random_sd.shapes("sd21")
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config["unet"]).state_dict()
        vae = AutoencoderKL(**config["vae"]).state_dict()
        text = CLIPTextModel(CLIPTextConfig(**config["text_encoder"]))
    ldm = random_sd.unet_to_ldm(unet, levels=4, layers=2) | random_sd.vae_to_ldm(vae, levels=4)
    ldm |= random_sd.text_to_ldm(text.state_dict(), "sd21")
    found = single_file_utils.convert_ldm_unet_checkpoint(dict(ldm), config["unet"])
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in unet.items()}
    found = single_file_utils.convert_ldm_vae_checkpoint(dict(ldm), config["vae"])
    # diffusers makes Linear of the attention's convolutions as it loads them
    assert {k: tuple(v.shape[:2]) for k, v in found.items() if "attentions" in k} == {
        k: tuple(v.shape) for k, v in vae.items() if "attentions" in k
    }
    assert found.keys() == vae.keys()
    found = single_file_utils.convert_open_clip_checkpoint(text, ldm)
    plain = {k.removeprefix("text_model."): v.shape for k, v in text.state_dict().items()}
    assert {k.removeprefix("text_model."): v.shape for k, v in found.items()} == plain


@pytest.mark.parametrize("width, shape", [(1024, "sd21"), (768, "sd15")])
def test_the_shape_of_a_single_file(tmp_path, width, shape):
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    save_file({key: torch.zeros(1, width)}, tmp_path / "a.safetensors")
    assert backbone.file_shape(tmp_path / "a.safetensors") == shape
    with pytest.raises(ValueError, match="a.safetensors does not fit the backbone's shape"):
        backbone.load_backbone(cfg_of(tmp_path / "a.safetensors"))


def lose(key):
    def change(state):
        for k in [k for k in state if key in k]:
            del state[k]

    return change


@pytest.mark.parametrize(
    "change, error",
    [
        (lose("output_blocks.0.0.in_layers.0"), "some weights are missing"),
        (lose("first_stage_model"), "tiny.safetensors does not fit.*AutoencoderKL"),
        (lose("cond_stage_model"), "no text encoder"),
    ],
)
def test_single_files_that_lack_something(tmp_path, change, error):
    folder = write_backbone(tmp_path / "sd", "sd21")
    path = random_sd.write_file(folder, folder / "tiny.safetensors", "sd21")
    state = load_file(path)
    change(state)
    save_file(state, path)
    with pytest.raises(ValueError, match=error):
        backbone.load_backbone(cfg_of(path))


def test_single_files_that_are_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "v1-5-pruned-emaonly.safetensors")
    with pytest.raises(ValueError, match="not the published file of that name"):
        backbone.load_backbone(cfg_of(tmp_path / "v1-5-pruned-emaonly.safetensors"))
    save_file({"a": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match="lora.safetensors: no model.diffusion_model"):
        backbone.load_backbone(cfg_of(tmp_path / "lora.safetensors"))
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(ValueError, match="whole safetensors"):
        backbone.load_backbone(cfg_of(tmp_path / "broken.safetensors"))
    (tmp_path / "old.ckpt").write_bytes(b"x")
    with pytest.raises(ValueError, match="only .safetensors is read"):
        backbone.load_backbone(cfg_of(tmp_path / "old.ckpt"))
    with pytest.raises(FileNotFoundError, match="models/gone.safetensors"):
        backbone.load_backbone(cfg_of("models/gone.safetensors"))


PARTS = [
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "empty_prompt.safetensors",
]
DAMAGE = {
    "pointer": lambda path, folder: POINTER + b"\noid sha256:00\nsize 1\n",
    "empty": lambda path, folder: b"",
    "cut": lambda path, folder: path.read_bytes()[: path.stat().st_size // 2],
    "noise": lambda path, folder: bytes(range(256)) * 9,
    "a list": lambda path, folder: b"[1]",
    "an empty object": lambda path, folder: b"{}",
    "of the other part": lambda path, folder: (
        folder / ("vae" if path.parent.name == "unet" else "unet") / path.name.replace("empty_prompt", NAME)
    ).read_bytes(),
}
NAME = "diffusion_pytorch_model"


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_part_of_a_folder_is_one_line(tiny_backbone, tmp_path, part, damage):
    """Whatever stands in its place: the line names the part, and says what to do."""
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_backbone, folder)
    path = folder / part
    path.write_bytes(DAMAGE[damage](path, folder))
    with pytest.raises(ValueError) as info:
        backbone.load_backbone(resolve("paper", overrides={"backbone": str(folder)}))
    assert own(info.value)
    text = one_line(info.value)
    assert part.partition("/")[0].removesuffix(".safetensors") in text and str(folder) in text, text
    assert ("git lfs pull" in text) == (damage == "pointer"), text
    assert "again" in text or "allowed" in text or damage == "pointer", text


@pytest.mark.parametrize("damage", [d for d in DAMAGE if d != "of the other part"])
def test_a_damaged_single_file_is_one_line(tmp_path, damage):
    (tmp_path / "a.safetensors").write_bytes(bytes(range(256)) * 9)
    path = tmp_path / "a.safetensors"
    path.write_bytes(DAMAGE[damage](path, tmp_path))
    with pytest.raises(ValueError, match="lfs pull" if damage == "pointer" else "allowed|whole") as info:
        backbone.load_backbone(resolve("paper", overrides={"backbone": str(path)}))
    assert own(info.value) and str(path) in str(info.value)


@pytest.mark.parametrize("part", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["pointer", "empty", "noise", "a list", "of the other part"])
def test_a_damaged_text_encoder_is_one_line(tmp_path, part, damage):
    write_backbone(tmp_path / "a", "sd21")
    path = tmp_path / "a" / "text_encoder" / part
    other = tmp_path / "a" / "unet" / path.name.replace("model", NAME)
    path.write_bytes(other.read_bytes() if "part" in damage else DAMAGE[damage](path, tmp_path / "a"))
    with pytest.raises(ValueError, match="text_encoder") as info:
        backbone.load_backbone(resolve("paper", overrides={"backbone": str(tmp_path / "a")}))
    assert own(info.value) and ("git lfs pull" in str(info.value)) == (damage == "pointer")


def test_a_prompt_of_another_width(tiny_backbone, tmp_path):
    shutil.copytree(tiny_backbone, tmp_path / "a")
    for prompt, words in (
        (torch.zeros(1, 3, 24), "width 24, its UNet wants 16"),
        (torch.zeros(3), "allowed"),
    ):
        save_file({"prompt": prompt}, tmp_path / "a" / "empty_prompt.safetensors")
        with pytest.raises(ValueError, match=words):
            backbone.load_backbone(resolve("paper", overrides={"backbone": str(tmp_path / "a")}))


@pytest.mark.parametrize("text", ["[]", "3", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "{"])
def test_a_damaged_index_and_record(tmp_path, tiny_backbone, text, monkeypatch):
    shutil.copytree(tiny_backbone, tmp_path / "a")
    index = tmp_path / "a" / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(ValueError, match="index.json"):
        backbone.load_backbone(resolve("paper", overrides={"backbone": str(tmp_path / "a")}))
    index.unlink()
    monkeypatch.setattr(backbone, "locate", lambda *args: tiny_backbone)
    record = tmp_path / "cache" / "backbones.json"
    record.parent.mkdir()
    record.write_text(text if text[1:2] != '"' else '{"owner/name@default": 3}')
    with pytest.raises(ValueError, match=r"backbones\.json"):
        backbone.load_backbone(resolve("paper", overrides={"backbone": "owner/name"}))
