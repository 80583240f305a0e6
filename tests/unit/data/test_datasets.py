"""The paper's data: downloads that continue, sets from folders and archives, manifests, shards, and lazily
read crops.
"""

import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import types
import urllib.parse
import zipfile
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ifcsr_lib import data, datasets, remote, streams, trainer
from ifcsr_lib.cli import main
from ifcsr_lib.config import ROOT, resolve
from ifcsr_lib.data import training_crops
from ifcsr_lib.degradation import degrade
from ifcsr_lib.files.checks import POINTER
from ifcsr_lib.files.images import read_image, write_image
from ifcsr_lib.files.results import sha256
from ifcsr_lib.runs import run


def png(side=64, seed=0, kind="PNG", size=None) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*(size or (side, side)), 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def tar(path: Path, files: dict[str, bytes], mode="w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tree(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty $IFCSR_DATA, and the data sets at toy size: three pairs of 16 and 64 pixels, four faces, five
    photographs.
    """
    import dataclasses

    for name, count, hr, lr in (
        ("realsr", 3, 64, 16),
        ("drealsr", 3, 64, 16),
        ("div2k_val", 6, 64, 16),
        ("ffhq", 4, 64, None),
        ("lsdir", 5, None, None),
    ):
        toy = dataclasses.replace(
            datasets.DATASETS[name], count=count, hr=hr, lr=lr, crops=3 if name == "div2k_val" else 0
        )
        monkeypatch.setitem(datasets.DATASETS, name, toy)
    monkeypatch.setattr(datasets, "PUBLISHED", tmp_path / "none")
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("IFCSR_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A local web server of tmp_path/web with byte ranges; `cut` closes answers early, `ranges` False ignores
    Range.
    """
    state = types.SimpleNamespace(root=tmp_path / "web", log=[], cut=[], ranges=True, tag='"one"', refuse=0)
    state.root.mkdir()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state.log.append((self.path.split("?")[0], self.headers["Range"], self.headers["If-Range"]))
            path = state.root / urllib.parse.unquote(self.path.split("?")[0]).lstrip("/")
            if state.refuse or not path.is_file():
                return self.send_error(state.refuse or 404)
            body, wanted = path.read_bytes(), self.headers["Range"]
            whole, part = len(body), state.ranges and wanted and self.headers["If-Range"] in (None, state.tag)
            if part:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                if int(first) >= whole:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{whole}")
                    return self.end_headers()
                body = body[int(first) : int(last) + 1 if last else whole]
            self.send_response(206 if part else 200)
            if part:
                self.send_header("Content-Range", f"bytes {first}-{int(first) + len(body) - 1}/{whole}")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", state.tag)
            self.end_headers()
            self.wfile.write(body[: state.cut.pop(0)] if state.cut else body)

        def log_message(self, *args):
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(remote, "WAIT", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    state.url = f"http://127.0.0.1:{web.server_port}"
    yield state
    web.shutdown()
    web.server_close()


# --- downloads ---


def test_a_download_that_is_cut_continues_where_it_stopped(server, tmp_path):
    write(server.root, {"a b.zip": (content := os.urandom(5000))})
    server.cut = [1000, 1500]
    path = remote.download(f"{server.url}/a%20b.zip?download=1", tmp_path / "d")
    assert (
        path.name == "a b.zip"
        and path.read_bytes() == content
        and [p.name for p in path.parent.iterdir()] == ["a b.zip"]
    )
    assert [r for _, r, _ in server.log] == [None, "bytes=1000-", "bytes=2500-"]
    assert remote.download(f"{server.url}/a%20b.zip", tmp_path / "d") == path and len(server.log) == 3


def test_a_killed_download_continues_in_the_next_run(server, tmp_path, monkeypatch):
    """Never more than TRIES requests; what came is kept under .part, never under the final name."""
    write(server.root, {"f.tar": (content := os.urandom(4000))})
    monkeypatch.setattr(remote, "TRIES", 1)
    server.cut = [700]
    with pytest.raises(OSError, match=r"no success in 1 tries.*kept"):
        remote.download(f"{server.url}/f.tar", tmp_path)
    assert not (tmp_path / "f.tar").exists() and (tmp_path / "f.tar.part").stat().st_size == 700
    assert remote.download(f"{server.url}/f.tar", tmp_path).read_bytes() == content
    assert server.log[-1][1:] == ("bytes=700-", '"one"')


@pytest.mark.parametrize("change", ["file changed", "no ranges", "all there", "too long"])
def test_old_bytes_are_never_mixed_with_new_ones(server, tmp_path, change):
    write(server.root, {"f": (content := os.urandom(3000))})
    write(
        tmp_path,
        {
            "f.part": {"all there": content, "too long": bytes(9999)}.get(change, b"old"),
            "f.version": b'"one"',
        },
    )
    server.tag, server.ranges = '"two"' if change == "file changed" else '"one"', change != "no ranges"
    assert remote.download(f"{server.url}/f", tmp_path).read_bytes() == content
    assert {p.name for p in tmp_path.iterdir()} == {"f", "web"}


def test_a_refusal_ends_at_once_and_a_busy_server_is_asked_again(server, tmp_path):
    with pytest.raises(OSError, match=r"answers 404 .*access"):
        remote.download(f"{server.url}/none.zip", tmp_path)
    assert len(server.log) == 1
    server.refuse = 503
    with pytest.raises(OSError, match=r"6 tries \(.*503"):
        remote.download(f"{server.url}/none.zip", tmp_path)
    assert len(server.log) == 1 + remote.TRIES


def test_a_remote_file_reads_and_seeks_like_a_local_one(server):
    write(server.root, {"f": (content := os.urandom(3000))})
    file = io.BufferedReader(remote.Remote(f"{server.url}/f"), 64)
    assert (
        file.read(10) == content[:10] and file.seek(-5, io.SEEK_END) == 2995 and file.read() == content[-5:]
    )
    assert file.seek(4000) == 4000 and file.read(1) == b""
    server.cut = [3]
    assert remote.read_range(f"{server.url}/f", 100, 50)[0] == content[100:150], (
        "a cut answer is asked for again"
    )
    server.ranges = False
    with pytest.raises(OSError, match="no byte ranges; download"):
        remote.read_range(f"{server.url}/f", 0, 10)


# --- preparing and verifying ---


def pairs(root="", sides=("test_LR", "test_HR"), count=3) -> dict[str, bytes]:
    return {
        f"{root}{side}/photo{n}.png": png(side_px, seed=n)
        for side, side_px in zip(sides, (16, 64), strict=True)
        for n in range(count)
    }


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz", "http"])
def test_pairs_from_every_kind_of_source(kind, home, tmp_path, server):
    """The whole repository may be named: another set's crops, outputs and other files in it are
    passed over.
    """
    files = pairs("OSEDiff-main/preset/datasets/benchmark_realsr/")
    other = {
        "OSEDiff-main/preset/datasets/benchmark_drealsr/test_LR/x.png": png(16),
        "OSEDiff-main/preset/datasets/benchmark_realsr/results_osediff/photo0.png": png(64),
        "OSEDiff-main/a.py": b"",
        "__MACOSX/test_LR/._photo0.png": b"",
        "OSEDiff-main/.git/test_LR/.photo.png": b"",
    }
    source = {
        "folder": lambda: write(tmp_path / "src", files | other),
        "zip": lambda: zipped(tmp_path / "a.zip", files | other),
        "tar": lambda: tar(tmp_path / "a.tar", files | other),
        "tar.gz": lambda: tar(tmp_path / "a.tar.gz", files | other, "w:gz"),
        "http": lambda: zipped(server.root / "main.zip", files | other) and f"{server.url}/main.zip",
    }[kind]()
    assert main(["data", "realsr", "--from", str(source)]) == 0
    there = {
        f"{side}/photo{n}.png": files[
            f"OSEDiff-main/preset/datasets/benchmark_realsr/test_{side}/photo{n}.png"
        ]
        for side in ("LR", "HR")
        for n in range(3)
    }
    assert {
        p.relative_to(home / "realsr").as_posix(): p.read_bytes() for p in (home / "realsr").glob("*/*")
    } == there
    assert [name for name, _, _ in data.pairs(home / "realsr")] == ["photo0", "photo1", "photo2"]
    names, lq, hr = data.read_pairs(home / "realsr")
    assert names == ["photo0", "photo1", "photo2"] and len(lq) == len(hr) == 3
    for (_, low, high), x, y in zip(data.pairs(home / "realsr"), lq, hr, strict=True):
        assert torch.equal(x, read_image(low).rgb) and torch.equal(y, read_image(high).rgb)
    state = datasets.verify("realsr")
    assert state.complete and state.manifest == "recorded" and main(["data", "realsr"]) == 0


def test_pairs_of_one_stem_are_matched_by_their_full_name(tmp_path):
    """photo.jpg and photo.png are two pairs; by stem one would get the other's reference."""
    colours = {"photo.jpg": 40, "photo.png": 200, "z.png": 90}
    for name, level in colours.items():
        for side, size in (("LR", 16), ("HR", 64)):
            (tmp_path / side).mkdir(exist_ok=True)
            Image.new("RGB", (size, size), (level,) * 3).save(tmp_path / side / name)
    found = data.pairs(tmp_path)
    assert [(name, low.name, high.name) for name, low, high in found] == [
        (n, f, f) for n, f in (("photo.jpg", "photo.jpg"), ("photo.png", "photo.png"), ("z", "z.png"))
    ]
    (tmp_path / "HR/photo.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 files have no partner in LR/HR, first \['photo.jpg'\]"):
        data.pairs(tmp_path)
    (tmp_path / "HR/photo.png").rename(tmp_path / "HR/photo.bmp")
    with pytest.raises(ValueError, match="all are called 'photo'"):
        data.pairs(tmp_path)


def test_photographs_of_one_stem_become_two_pairs(tmp_path, tiny_cfg):
    for name, level in (("a.jpg", 40), ("a.png", 200)):
        Image.new("RGB", (64, 64), (level,) * 3).save(tmp_path / name)
    folder = data.write_pairs(tiny_cfg, [tmp_path / "a.jpg", tmp_path / "a.png"], "two", 64)
    found = data.pairs(folder)
    assert [name for name, _, _ in found] == ["a.jpg", "a.png"]
    assert [round(read_image(high).rgb.mean().item() * 255) for _, _, high in found] == [40, 200]


def test_verify_names_what_is_missing_changed_or_strange(home, tmp_path, capsys):
    datasets.prepare("realsr", [write(tmp_path / "src", pairs())])
    folder = home / "realsr"
    content = bytearray((folder / "LR/photo0.png").read_bytes())
    content[-20] ^= 1  # same size
    (folder / "LR/photo0.png").unlink()
    (folder / "LR/photo0.png").write_bytes(content)
    (folder / "HR/photo1.png").unlink()
    write(folder, {"HR/new.png": png(64)})
    state = datasets.verify("realsr")
    assert (state.missing, state.different, state.unknown) == (
        ["HR/photo1.png"],
        ["LR/photo0.png"],
        ["HR/new.png"],
    )
    assert datasets.verify("realsr", hashes=False).different == []
    assert main(["data", "realsr"]) == 1
    said = capsys.readouterr().out
    assert "missing   1, first HR/photo1.png" in said and "differ    1, first LR/photo0.png" in said
    assert "unknown   1, first HR/new.png" in said and "not complete" in said and "research use" in said


def test_the_published_manifest_is_the_one_that_counts(home, tmp_path, monkeypatch):
    """Pairs that agree with the first prepare but not with the repository's manifest differ."""
    monkeypatch.setattr(datasets, "PUBLISHED", tmp_path / "published")
    source = write(tmp_path / "src", pairs())
    datasets.prepare("realsr", [source])
    (tmp_path / "published").mkdir()
    lines = (home / "manifests/realsr.csv").read_text().splitlines()
    lines[1] = lines[1][:-1] + ("0" if lines[1][-1] != "0" else "1")
    (tmp_path / "published/realsr.csv").write_text("\n".join(lines) + "\n")
    state = datasets.verify("realsr")
    assert state.manifest == "published" and len(state.different) == 1 and not state.complete


def test_the_committed_manifest_lists_100_pairs():
    rows = datasets._read_manifest(ROOT / "data/paper/manifests/realsr.csv")
    assert {(r["file"][:2], r["width"], r["height"]) for r in rows.values()} == {
        ("LR", 128, 128),
        ("HR", 512, 512),
    }
    names = {side: {f[3:] for f in rows if f.startswith(side)} for side in ("LR", "HR")}
    assert (
        len(names["LR"]) == 100
        and names["LR"] == names["HR"]
        and len({r["sha256"] for r in rows.values()}) == 200
    )


def test_the_field_s_realsr_crops_verify(shared_data, monkeypatch):
    monkeypatch.setenv("IFCSR_DATA", str(shared_data))
    state = datasets.verify("realsr")
    assert state.complete and state.manifest == "published", datasets.report(state)


@pytest.mark.parametrize("kind", ["folder", "tar.gz"])
def test_a_killed_prepare_continues_and_ends_the_same(kind, home, tmp_path, monkeypatch):
    files = pairs("benchmark_realsr/")
    source = write(tmp_path / "src", files) if kind == "folder" else tar(tmp_path / "a.tar.gz", files, "w:gz")
    store, count = datasets._store, []

    def killed(content, path, origin):
        count.append(path)
        if len(count) == 4:
            raise KeyboardInterrupt
        store(content, path, origin)

    monkeypatch.setattr(datasets, "_store", killed)
    with pytest.raises(KeyboardInterrupt):
        datasets.prepare("realsr", [source])
    assert len(list((home / "realsr").glob("*/*.png"))) == 3 and not (home / "manifests/realsr.csv").exists()
    with open(home / "manifests/realsr.part.csv", "a") as file:
        file.write("LR/photo1.png,12")  # a line that the kill has torn
    assert datasets.prepare("realsr", [source]).complete
    assert len(count) == 4 + 3, "three were there and are not stored again"
    assert sorted(p.name for p in (home / "manifests").iterdir()) == ["realsr.csv"]
    whole = tree(home)
    for path in sorted(home.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    datasets.prepare("realsr", [source])
    assert tree(home) == whole


def test_a_folder_on_the_same_disk_is_linked_and_one_in_place_is_recorded(home, tmp_path):
    source = write(tmp_path / "src", pairs())
    datasets.prepare("realsr", [source])
    assert os.path.samefile(source / "test_HR/photo0.png", home / "realsr/HR/photo0.png")
    write(home / "drealsr", pairs(sides=("LR", "HR")))
    assert datasets.verify("drealsr").manifest == "none" and datasets.verify("drealsr").complete
    assert datasets.prepare("drealsr", [home / "drealsr"]).manifest == "recorded"


def test_training_sets_take_what_the_paper_takes(home, tmp_path):
    """FFHQ's numbers below 10,000 at full size; LSDIR without its validation and low-resolution images; twice
    in one go.
    """
    faces = {f"images1024x1024/00000/0000{n}.png": png(64, n) for n in range(4)}
    other = {"thumbnails128x128/00000/00000.png": png(16), "images1024x1024/10000/10000.png": png(64)}
    assert datasets.prepare("ffhq", [write(tmp_path / "ffhq-dataset", faces | other)]).complete
    assert sorted(p.name for p in (home / "ffhq").iterdir()) == [f"0000{n}.png" for n in range(4)]
    photos = {f"0001000/000000{n}.png": png(0, n, size=(64 + n, 80)) for n in range(1, 6)}
    first, second = list(photos)[:2], list(photos)[2:]
    other = {"X4/0001000/0000001x4.png": png(16), "val1/HR/val/0000001.png": png(64), "readme.txt": b""}
    archives = [
        tar(tmp_path / f"shard-0{n}.tar.gz", {k: photos[k] for k in keys} | other, "w:gz")
        for n, keys in enumerate((first, second))
    ]
    state = datasets.prepare("lsdir", archives[:1])
    assert state.found == 2 and not state.complete
    assert datasets.prepare("lsdir", archives[1:]).complete, "archives may come one at a time"
    with pytest.raises(ValueError, match="would both become 0000001.png"):
        datasets.prepare("lsdir", [archives[0], write(tmp_path / "again", {"0000001.png": png(64)})])


def test_unfit_images_are_counted_left_out_and_refused_above_the_share(home, tmp_path):
    good = {f"0000{n}.png": png(64, n) for n in range(3)}
    # no end mark, and it does not decode
    source = write(tmp_path / "src", good | {"00003.png": png(64, 9)[:-30]})
    with pytest.raises(
        ValueError, match=r"1 of 4 images of ffhq are unfit, first src/00003.png: cannot be read.*0.01"
    ):
        datasets.prepare("ffhq", [source])
    state = datasets.prepare("ffhq", [source], bad_images=0.3)
    assert state.found == 3 and not state.complete and "00003.png: cannot be read" in datasets.report(state)
    write(source, {"00003.png": png(64, 3)})
    assert datasets.prepare("ffhq", [source]).complete
    with pytest.raises(ValueError, match=r"LR/photo1.png: 20x20, not 16x16; allowed: none"):
        datasets.prepare(
            "realsr", [write(tmp_path / "p", pairs() | {"test_LR/photo1.png": png(20)})], bad_images=0.9
        )


@pytest.mark.parametrize("kind", ["zip", "tar", "tar at a header", "tar.gz", "zip member", "text"])
def test_an_archive_cut_short_is_named_and_what_came_is_kept(kind, home, tmp_path):
    files = {f"0000{n}.png": png(64, n) for n in range(4)}
    make = {"zip": zipped, "zip member": zipped, "tar.gz": lambda p, f: tar(p, f, "w:gz")}.get(kind, tar)
    path = make(tmp_path / f"ffhq.{kind.split()[0]}", files)
    content = path.read_bytes()
    if kind == "zip member":
        at = content.index(files["00002.png"]) + 300
        path.write_bytes(content[:at] + b"damage" + content[at + 6 :])
    elif kind == "tar at a header":
        path.write_bytes(content[: content.index(files["00003.png"]) - 512])
    else:
        path.write_bytes(b"no archive at all" if kind == "text" else content[: len(content) * 2 // 3])
    with pytest.raises(ValueError, match=r"ffhq\.\S+ is (damaged, cut short|cut short or damaged).*again"):
        datasets.prepare("ffhq", [path])
    kept = list((home / "ffhq").glob("*.png"))
    assert len(kept) >= (0 if kind in ("zip", "text") else 2) and all(
        p.read_bytes() == files[p.name] for p in kept
    )
    make(path, files)
    assert datasets.prepare("ffhq", [path]).complete


def test_div2k_crops_are_made_with_a_fixed_seed(home, tmp_path, monkeypatch):
    """Crop and degradation are functions of (seed, image, crop): the same after a kill, in any order."""
    monkeypatch.setattr(datasets, "CROPS_INDEX", 7)
    images = {
        f"DIV2K_valid_HR/{stem}.png": png(0, n, size=(70, 90)) for n, stem in enumerate(("0801", "0802"))
    }
    source = write(tmp_path / "d", images)
    assert datasets.prepare("div2k_val", [source]).complete
    found = data.pairs(home / "div2k_val")
    assert [name for name, _, _ in found] == [f"{stem}_0{k}" for stem in ("0801", "0802") for k in range(3)]
    x_H, lq = read_image(found[4][2]).rgb, read_image(found[4][1]).rgb
    expected = degrade(x_H, 0, "x4plus", index=7 + 4).mul(255).round() / 255
    assert torch.equal(lq, expected) and lq.shape == (1, 3, 16, 16)
    windows = read_image(source / "DIV2K_valid_HR/0802.png").rgb.unfold(2, 64, 1).unfold(3, 64, 1)
    assert any(
        torch.equal(windows[:, :, i, j], x_H)
        for i in range(windows.shape[2])
        for j in range(windows.shape[3])
    )
    before = tree(home)
    found[4][1].unlink()  # as if killed between the two
    (home / "manifests/div2k_val.csv").unlink()
    assert datasets.prepare("div2k_val", [source]).complete and tree(home) == before
    published = pairs("StableSR_testsets/DIV2K_V2_val/", ("lq", "gt"), 6) | pairs(
        "StableSR_testsets/RealSRVal_crop128/"
    )
    for folder in ("div2k_val", "manifests"):
        for path in (p for p in (home / folder).rglob("*") if p.is_file()):
            path.unlink()
    assert datasets.prepare("div2k_val", [zipped(tmp_path / "t.zip", published)]).complete
    assert data.pairs(home / "div2k_val")[0][0] == "photo0"


def test_wrong_use_is_told_in_one_line(home, tmp_path, monkeypatch, capsys):
    def error(*argv):
        assert main(["data", *map(str, argv)]) == 2
        return capsys.readouterr().err

    assert "did you mean 'drealsr'" in error("drealrs")
    assert "does not exist; pass a folder" in error("ffhq", "--from", tmp_path / "none")
    assert "no file of ffhq in" in error("ffhq", "--from", write(tmp_path / "s", {"a.png": png()}))
    assert "need NAME" in error("--shards", 4)
    assert "allowed: a training set that is prepared" in error("ffhq", "--shards", 4)
    assert "same file name (a.zip, a.zip)" in error("ffhq", "--from", "http://h/1/a.zip", "http://h/2/a.zip")
    monkeypatch.delenv("IFCSR_DATA")
    assert "IFCSR_DATA is not set; set it" in error("ffhq")
    assert main(["data"]) == 0
    said = capsys.readouterr().out
    assert "not set" in said and all(name in said for name in datasets.DATASETS) and "0 of" in said


def test_a_tilde_is_the_home_folder(home, tmp_path, monkeypatch, capsys):
    """In $IFCSR_DATA, as an env file or a notebook sets it, and in --from; no folder named ~ appears."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("IFCSR_DATA", "~/home")
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "src", pairs())
    assert main(["data", "realsr", "--from", "~/src"]) == 0
    assert (
        datasets.home() == home
        and data.user_data("realsr") == home / "realsr"
        and not (tmp_path / "~").exists()
    )


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_no_utf_8(home, tmp_path):
    """Prepared, verified, packed and read back as any other."""
    files = {name.replace("photo", "ph\udcff"): content for name, content in pairs().items()}
    assert datasets.prepare("realsr", [write(tmp_path / "src", files)]).complete
    assert datasets.verify("realsr").complete and len(data.pairs(home / "realsr")) == 3
    write(home / "lsdir", {f"\udcfe{n}.png": png(80, n) for n in range(5)})
    datasets.write_shards("lsdir", 3)
    folder = lazy("lsdir")
    assert (
        all(same(folder[i], lazy("lsdir_shards")[i]) for i in range(3))
        and (home / "lsdir" / streams.INDEX).exists()
    )


def test_the_list_of_all_sets(home, tmp_path, capsys):
    datasets.prepare("realsr", [write(tmp_path / "src", pairs())])
    assert main(["data"]) == 0
    said = capsys.readouterr().out
    assert (
        "6 of 6 files (3 pairs, LR 16 x 16 and HR 64 x 64), complete" in said
        and said.count("not complete") == 4
    )
    assert said.count("licence") == said.count("get it") == 5


def test_help_is_light():
    code = (
        "import runpy, sys\nsys.argv[1:] = ['data', '--help']\n"
        "try:\n    runpy.run_module('ifcsr_lib', run_name='__main__')\n"
        "finally:\n    print('HEAVY', sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0 and "HEAVY []" in done.stdout and "--shards N" in done.stdout


# --- shards and lazily read crops ---


@pytest.fixture
def ffhq(home, tmp_path, monkeypatch):
    """Twelve images of ffhq as a folder and as three shards of five, five and two."""
    import dataclasses

    monkeypatch.setitem(
        datasets.DATASETS, "ffhq", dataclasses.replace(datasets.DATASETS["ffhq"], count=12, hr=None)
    )
    images = {f"{n:05d}.png": png(0, n, size=(70 + n, 80)) for n in range(12)}
    datasets.prepare("ffhq", [write(tmp_path / "faces", images)])
    datasets.write_shards("ffhq", 5)
    return home


def lazy(training_set, **changes):
    return training_crops(resolve("paper", overrides={"training_set": training_set, "patch": 64, **changes}))


def same(a, b) -> bool:
    return torch.equal(a["x_H"], b["x_H"]) and (a["name"], a["index"]) == (b["name"], b["index"])


def test_shards_are_webdataset_s_and_a_killed_run_continues(ffhq):
    """Its rules: regular files without folders, the key up to the first dot, all of a key in a row."""
    folder = ffhq / "ffhq_shards"
    before = tree(folder)
    paths = sorted(folder.glob("*.tar"))
    read = []
    for path in paths:
        with tarfile.open(path) as archive:
            members = archive.getmembers()
            assert all(m.isreg() and m.name.partition(".")[2] == "png" for m in members)
            read += [(m.name.partition(".")[0], archive.extractfile(m).read()) for m in members]
    assert read == [(p.stem, p.read_bytes()) for p in sorted((ffhq / "ffhq").glob("*.png"))]
    record = json.loads((folder / "shards.json").read_text())
    del record["shards"][paths[1].name]
    (folder / "shards.json").write_text(json.dumps(record))
    paths[2].unlink()
    kept = paths[0].stat().st_mtime_ns
    assert datasets.write_shards("ffhq", 5) == paths and paths[0].stat().st_mtime_ns == kept
    assert {k: v for k, v in tree(folder).items() if k.endswith("tar")} == {
        k: v for k, v in before.items() if k.endswith("tar")
    }
    assert datasets.verify("ffhq").complete and datasets.verify("ffhq").shards == 3
    with pytest.raises(ValueError, match="delete the folder"):
        datasets.write_shards("ffhq", 4)
    paths[1].write_bytes(paths[1].read_bytes()[:-1000])
    assert datasets.verify("ffhq", hashes=False).different == ["../ffhq_shards/ffhq-000001.tar"]


def test_a_shard_is_the_one_that_webdataset_writes(tmp_path, home):
    """The sha256 is that of webdataset 1.0.2, TarWriter(encoder=False, mtime=0), of the same two files."""
    write(home / "lsdir", {"00000.png": b"first", "00001.JPG": bytes(range(256)) * 7})
    (path,) = datasets.write_shards("lsdir", 2)
    assert sha256(path) == "962c79aaf6b06c21c928baa08d4826eebbf4ad24e84d1e04eb0a3c3dcdb47d81"


def test_braces_name_shards():
    assert streams._expand("a-{008..011}.tar") == [f"a-{n:03d}.tar" for n in range(8, 12)]
    assert streams._expand("{a,b}-{0..1}.tar") == ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]
    assert streams._expand("plain.tar") == ["plain.tar"]
    for text, reason in (
        ("a{3..1}", "neither a range"),
        ("a{x}", "neither a range"),
        ("a{0..1", "no partner"),
        ("a}", "no partner"),
    ):
        with pytest.raises(ValueError, match=reason):
            streams._expand(text)


def test_folder_shards_and_server_give_the_same_crops(ffhq, server):
    """Bit for bit; a lost connection in between changes nothing."""
    folder = lazy("ffhq")
    for path in (ffhq / "ffhq_shards").glob("*.tar"):
        write(server.root, {path.name: path.read_bytes()})
    others = [
        lazy("ffhq_shards"),
        lazy("ffhq_shards/ffhq-{000000..000002}.tar"),
        lazy(server.url + "/ffhq-{000000..000002}.tar"),
    ]
    for i in (0, 1, 77, 10**6):
        server.cut = [500]
        assert all(same(folder[i], other[i]) for other in others)
    assert len({folder[i]["name"] for i in range(60)}) == 12, "every image is drawn"
    x = folder[3]["x_H"]
    assert x.shape == (3, 64, 64) and x.dtype == torch.float32 and 0 <= x.min() and x.max() <= 1
    assert not any(isinstance(v, list) and len(v) >= 12 for v in vars(folder).values())


@pytest.mark.parametrize("world, workers", [(1, 2), (2, 0), (2, 2)])
def test_processes_and_workers_change_no_sample_and_resume_skips_forward(ffhq, world, workers):
    crops, steps, batch = lazy("ffhq_shards"), 3, 4 // world
    cfg = resolve("smoke", overrides={"batch": batch})
    for rank in range(world):
        process = types.SimpleNamespace(num_processes=world, process_index=rank)
        for start in (0, 2):
            batches = list(run.loader(crops, start, steps, cfg, process, workers))
            for step, got in enumerate(batches, start):
                wanted = [crops[step * 4 + rank * batch + k] for k in range(batch)]
                assert got["index"].tolist() == [w["index"] for w in wanted] and got["name"] == [
                    w["name"] for w in wanted
                ]
                assert torch.equal(got["x_H"], torch.stack([w["x_H"] for w in wanted]))


def test_the_seed_changes_the_crops_and_sets_are_joined(ffhq):
    write(ffhq / "lsdir", {f"000000{n}.jpg": png(0, 50 + n, "JPEG", size=(90, 64)) for n in range(1, 5)})
    both = lazy("ffhq+lsdir")
    assert len(both.names) == 16 and not torch.equal(both[5]["x_H"], both[6]["x_H"])
    assert all(same(both[i], lazy("ffhq_shards+lsdir")[i]) for i in range(8)), "a folder beside shards"
    counts = np.bincount(
        [
            both.files[both.where[list(both.names).index(both[i]["name"]), 0]].endswith("jpg")
            for i in range(400)
        ]
    )
    assert abs(counts[1] / 400 - 4 / 16) < 0.09, "each image with the same chance (4 standard deviations)"
    other = training_crops(resolve("paper", seed=1, overrides={"training_set": "ffhq+lsdir", "patch": 64}))
    assert not torch.equal(other[0]["x_H"], both[0]["x_H"])


def test_a_scan_is_done_once(ffhq, monkeypatch):
    looked, look = [], streams._look
    monkeypatch.setattr(streams, "_look", lambda file: looked.append(Path(file).name) or look(file))
    lazy("ffhq"), lazy("ffhq_shards")
    assert len(looked) == 12 + 3
    lazy("ffhq"), lazy("ffhq_shards")
    assert len(looked) == 15
    write(ffhq / "ffhq", {"00003.png": png(90, 3)})
    assert len(lazy("ffhq").names) == 12 and looked[15:] == ["00003.png"]
    (ffhq / "ffhq" / streams.INDEX).write_bytes(b"\x00garbage,1\nfile,3")
    assert len(lazy("ffhq").names) == 12 and len(looked) == 16 + 12


def test_unfit_training_images_are_reported_and_refused_above_the_share(ffhq):
    write(ffhq / "ffhq", {"00000.png": png(40), "00001.png": png(80)[:-40]})
    with pytest.warns(
        UserWarning, match=r"2 of 12 training images.*00000.png: 40x40, below 64; 00001.png: cannot be read"
    ):
        crops = lazy("ffhq", bad_images=0.2)
    assert len(crops.names) == 10 and not {crops[i]["name"] for i in range(60)} & {"00000.png", "00001.png"}
    with pytest.raises(ValueError, match=r"2 of 12.*Allowed: a share of 0.1 \(bad_images\)"):
        lazy("ffhq", bad_images=0.1)


LFS = POINTER + b"\noid sha256:00\nsize 12\n"


@pytest.mark.parametrize(
    "file",
    ["ffhq/00002.png", "ffhq_shards/ffhq-000000.tar", "web/ffhq-000000.tar", "ffhq_shards/shards.json"],
)
def test_a_pointer_in_a_training_set_says_so(ffhq, server, file, capsys):
    """One stands for a clone without its files, so that no share of bad images excuses it."""
    place = server.root / "ffhq-000000.tar" if file.startswith("web") else ffhq / file
    place.write_bytes(LFS)
    part = f"{server.url}/ffhq-000000.tar" if file.startswith("web") else file.split("/")[0]
    if file.endswith("json"):
        assert main(["data", "ffhq"]) == 2
        text = capsys.readouterr().err
    else:
        with pytest.raises(ValueError) as info:
            lazy(part, bad_images=0.9)
        text = str(info.value)
    assert "git lfs pull" in text and place.name in text


@pytest.mark.parametrize("kind", ["realsr/test_HR/a.png", "realsr.zip", "realsr.tar", "realsr.tar.gz"])
def test_a_pointer_as_a_source_says_so(home, tmp_path, kind, capsys):
    path = tmp_path / "got" / kind
    path.parent.mkdir(parents=True)
    path.write_bytes(LFS)
    source = path if path.suffix != ".png" else tmp_path / "got" / "realsr"
    assert main(["data", "realsr", "--from", str(source)]) == 2
    text = capsys.readouterr().err
    assert "git lfs pull" in text and text.count("\n") == 1, text


DAMAGE = {
    "pointer": LFS,
    "a list": b"[]",
    "no rows": b'{"shards": {"a": 3}, "plan": {}}',
    "noise": bytes(range(256)) * 9,
    "other columns": b"file,sha256\na," + b"0" * 64 + b"\n",
    "text for numbers": b"file,bytes,width,height,sha256\na.png,x,1,1," + b"0" * 64 + b"\n",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", ["manifests/ffhq.csv", "ffhq_shards/shards.json", "ffhq/.ifcsr_index.csv"])
def test_records_of_ours_that_are_damaged(ffhq, file, damage, capsys):
    """A record is refused in one line that names it, or passed over; a scan's is always made again."""
    (ffhq / file).parent.mkdir(exist_ok=True)
    wanted = lazy("ffhq")[7]
    (ffhq / file).write_bytes(DAMAGE[damage])
    codes = [main(["data", "ffhq", *more]) for more in ([], ["--quick"], ["--shards", "5"])]
    text = capsys.readouterr().err
    assert set(codes) <= {0, 1, 2} and "unexpected" not in text, text
    if 2 in codes:
        assert Path(file).name in text and "Errno" not in text
    assert same(lazy("ffhq")[7], wanted)


@pytest.mark.parametrize("where", ["ffhq", "ffhq_shards"])
def test_damage_that_only_decoding_shows_is_replaced_by_a_further_draw(ffhq, where):
    """Headers and end marks are whole. The replacement is a function of (seed, i), too, whoever
    asks first.
    """
    image = ffhq / "ffhq/00004.png"
    content, file = image.read_bytes(), ffhq / "ffhq_shards/ffhq-000000.tar"
    damaged = content[:2000] + bytes(200) + content[2200:]
    (image if where == "ffhq" else file).write_bytes(
        damaged if where == "ffhq" else file.read_bytes().replace(content, damaged)
    )
    crops, again = lazy(where, bad_images=0.1), lazy(where, bad_images=0.1)
    with pytest.warns(UserWarning, match="1 of 12 training images left out so far, now .*00004.png"):
        first = [crops[i] for i in range(40)]
    assert "00004.png" not in {s["name"] for s in first}
    with pytest.warns(UserWarning, match="00004"):
        assert all(same(again[i], first[i]) for i in reversed(range(40)))
    with pytest.raises(ValueError, match=r"00004.*share of 0.05 \(bad_images\)"):
        [lazy(where, bad_images=0.05)[i] for i in range(40)]


@pytest.mark.parametrize("cut", ["in an image", "at a header", "in a header", "end mark", "empty", "no tar"])
@pytest.mark.parametrize("where", ["disk", "server"])
def test_a_shard_cut_short_is_an_error_before_training(ffhq, cut, where, server):
    """tarfile itself takes a cut at a header for the end of the archive; the missing end mark gives
    it away.
    """
    path = ffhq / "ffhq_shards/ffhq-000001.tar"
    content, last = path.read_bytes(), (ffhq / "ffhq/00009.png").read_bytes()
    at = content.index(last)
    end = at + -(-len(last) // 512) * 512
    length = {
        "in an image": at + 100,
        "at a header": at - 512,
        "in a header": at - 200,
        "end mark": end,
        "empty": 0,
    }.get(cut)
    path.write_bytes(os.urandom(2000) if cut == "no tar" else content[:length])
    for p in path.parent.glob("*.tar"):
        write(server.root, {p.name: p.read_bytes()})
    count = {"end mark": 5, "empty": 0, "no tar": 0}.get(cut, 4)
    kind, text = ValueError, rf"ffhq-000001.tar is cut short or damaged after {count} whole files.*again"
    if (cut, where) == ("empty", "server"):  # servers have no range of an empty file to give
        kind, text = OSError, "ffhq-000001.tar: the server answers 416"
    with pytest.raises(kind, match=text):
        lazy("ffhq_shards" if where == "disk" else server.url + "/ffhq-{000000..000002}.tar")


def test_training_sets_that_are_not_there(home, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"with ffhq/ \(python -m ifcsr_lib data"):
        lazy("ffhq+lsdir")
    with pytest.raises(FileNotFoundError, match="no-such"):
        lazy(str(tmp_path / "no-such-{0..1}.tar"))
    with pytest.raises(ValueError, match="plain .tar; gunzip"):
        lazy("x-{0..1}.tar.gz")
    tar(home / "a.tar", {"a.txt": b"text"})
    with pytest.raises(ValueError, match="no images in"):
        lazy("a.tar")
    tar(home / "b.tar", {"a.png": png(64)})
    with pytest.raises(ValueError, match="reading='disk'"):
        lazy("b.tar", reading="memory")
    crops = lazy("b.tar")
    (home / "b.tar").write_bytes(b"")
    with pytest.raises(OSError, match="became shorter"):
        crops[0]


def test_memory_and_disk_read_the_same_pixels(ffhq):
    """Only the draw differs: by area in memory, as the pocket profile does, equal chances on disk."""
    memory, disk = lazy("ffhq", reading="memory"), lazy("ffhq")
    assert isinstance(memory, data.Crops) and isinstance(disk, streams.LazyCrops)
    for n, name in enumerate(disk.names):
        assert np.array_equal(memory.images[memory.names.index(Path(name).stem)], disk.image(n))
    assert isinstance(training_crops(resolve("smoke")), data.Crops)


def test_kinds_of_images_are_measured(tmp_path):
    """16 bit, long headers, WebP, TIFF and BMP, too; a JPEG with bytes after its end is whole."""
    files = {
        "a.webp": png(0, 1, "WEBP", (30, 40)),
        "b.tif": png(0, 1, "TIFF", (30, 40)),
        "c.bmp": png(0, 1, "BMP", (30, 40)),
        "d.jpg": png(0, 1, "JPEG", (30, 40)) + bytes(200),
    }
    write_image(torch.rand(1, 3, 30, 40), tmp_path / "e.png", bits=16)
    out = io.BytesIO()
    Image.new("RGB", (40, 30)).save(out, "JPEG", icc_profile=bytes(200_000))
    for name, content in (files | {"e": (tmp_path / "e.png").read_bytes(), "f": out.getvalue()}).items():
        assert streams.image_size(io.BytesIO(b"xyz" + content), 3, len(content)) == (40, 30), name
        cut = content[: len(content) // 2]
        assert streams.image_size(io.BytesIO(cut), 0, len(cut)) == (0, 0), f"half of {name}"


def test_a_stage_trains_on_shards(ffhq, tiny_cfg, tmp_path):
    """Two steps of stage 1 through the real loader; the same again after a resume at step 1."""
    from ifcsr_lib import models

    cfg = tiny_cfg.replace(training_set="ffhq_shards", reading="disk", checkpoint_every=1)

    def run(folder, stop=None):
        distance = helpers.distance()
        stage, stopped = trainer.Stage1(models.new(cfg), distance), KeyboardInterrupt if stop else None

        def on_step(row):
            if row["step"] == stop:
                raise stopped

        return [r["loss"] for r in trainer.train(stage, training_crops(cfg), cfg, folder, 2, on_step)]

    whole = run(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", stop=1)
    assert run(tmp_path / "b") == whole and len(whole) == 2


def test_loader_workers_report_a_refusal_once(ffhq):
    """A worker's error reaches the main process with its text."""
    image = ffhq / "ffhq/00004.png"
    content = image.read_bytes()
    image.write_bytes(content[:2000] + bytes(200) + content[2200:])
    crops = lazy("ffhq", bad_images=0.0)
    with pytest.raises(ValueError, match="bad_images"):
        list(DataLoader(crops, batch_sampler=[[i, i + 1] for i in range(0, 60, 2)], num_workers=2))
