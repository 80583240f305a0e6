"""The paper's data sets: what they are, how to get, prepare and verify them below $IFCSR_DATA."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from ..config import ROOT, hint, path_setting
from ..errors import one_line
from ..files.checks import check_pointer, is_pointer
from ..files.results import atomic, read_json, sha256, write_json
from .remote import download, file_name, is_url

PUBLISHED = ROOT / "data" / "paper" / "manifests"  # what the repository knows file by file
COLUMNS = ("file", "bytes", "width", "height", "sha256")
# folder names in the field
FOLDERS = {"lr": "LR", "test_lr": "LR", "lq": "LR", "hr": "HR", "test_hr": "HR", "gt": "HR"}
CROPS_INDEX = 2 * 10**9  # sample indices of the DIV2K crops' degradation start here; see data.HELDOUT_INDEX


@dataclass(frozen=True)
class DataSet:
    """A data set of the paper. count: images, or pairs where `lr` is given; lr, hr: sides in pixels, hr None:
    they differ.
    """

    name: str
    title: str
    count: int
    hr: int | None
    licence: str
    where: str
    lr: int | None = None
    crops: int = 0  # crops per image, where the pairs can be made from whole images

    @property
    def files(self) -> int:
        return self.count * (2 if self.lr else 1)


DATASETS = {d.name: d for d in (
    DataSet("ffhq", "FFHQ, images 00000 to 09999, for training", 10_000, 1024,
            "CC BY-NC-SA 4.0 (the set, NVIDIA); each photograph has its own: CC BY 2.0, CC BY-NC 2.0, CC0, "
            "Public Domain Mark or U.S. Government Work, listed in its JSON. Not for commercial use",
            "https://github.com/NVlabs/ffhq-dataset, folder images1024x1024 (its download_ffhq.py fetches "
            "it: 89 GB; the first 10,000 are enough). Business inquiries: researchinquiries@nvidia.com"),
    DataSet("lsdir", "LSDIR, its training images", 84_991, None,
            "academic research only; the photographs belong to their owners",
            "https://ofsoundof.github.io/lsdir-data/; the model hub's repository ofsoundof/LSDIR asks you to "
            "log in and agree first, then get shard-00.tar.gz to shard-16.tar.gz (155 GB) with the hub's own "
            "client"),
    DataSet("realsr", "RealSR, 100 test crops", 100, 512,
            "none stated: research use, do not pass it on",
            "https://github.com/cswry/OSEDiff, folder preset/datasets/benchmark_realsr (clone it, or its "
            "archive)", lr=128),
    DataSet("drealsr", "DRealSR, 93 test crops", 93, 512,
            "none stated: research use, do not pass it on",
            "https://github.com/cswry/OSEDiff, folder preset/datasets/benchmark_drealsr (clone it, or its "
            "archive)", lr=128),
    DataSet("div2k_val", "DIV2K-val, 3,000 test crops", 3000, 512,
            "academic research only; the photographs belong to their owners",
            "either the crops that papers compare on: StableSR_testsets.zip of the hub's data set "
            "Iceclear/StableSR-TestSets (DIV2K_V2_val/lq and gt), or DIV2K_valid_HR.zip of "
            "https://data.vision.ee.ethz.ch/cvl/DIV2K/, of which 30 crops per image are made here: same "
            "recipe, other crops, so no number compares with published ones",
            lr=128, crops=30),
)}  # fmt: skip


@dataclass
class State:
    """What `verify` found; every list holds file names relative to the data set's folder."""

    data: DataSet
    folder: Path | None
    found: int = 0
    missing: list[str] = field(default_factory=list)
    # other bytes than the manifest says, or other sizes in pixels
    different: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)  # not in the manifest
    manifest: str = "none"  # "published" (the repository's), "recorded" (at the first prepare) or "none"
    shards: int = 0

    @property
    def complete(self) -> bool:
        """All files are there, none differs, none is unknown."""
        return self.found == self.data.files and not (self.missing or self.different or self.unknown)


def home() -> Path:
    """$IFCSR_DATA. Raises FileNotFoundError when it is not set or is no folder."""
    folder = path_setting("IFCSR_DATA")
    if folder is None or not folder.is_dir():
        text = f"is {str(folder)!r}, which is no folder" if folder else "is not set"
        raise FileNotFoundError(f"IFCSR_DATA {text}; set it to a folder of yours that may hold the data sets")
    return folder


def dataset(name: str) -> DataSet:
    """The row of DATASETS; ValueError for other names."""
    if name not in DATASETS:
        raise ValueError(
            f"data set {name!r} is unknown; allowed: {', '.join(DATASETS)}{hint(name, DATASETS)}"
        )
    return DATASETS[name]


def _images(folder: Path, data: DataSet) -> dict[str, Path]:
    """{name relative to the folder: path} of the data set's images that are there."""
    from ..files.images import FORMATS

    folders = [folder / side for side in ("LR", "HR")] if data.lr else [folder]
    entries = [entry for f in folders if f.is_dir() for entry in os.scandir(f)]
    paths = [
        Path(e.path) for e in entries if not e.name.startswith(".") and Path(e.name).suffix.lower() in FORMATS
    ]
    return {path.relative_to(folder).as_posix(): path for path in sorted(paths)}


def _read_manifest(path: Path) -> dict[str, dict]:
    if not path.exists():
        return {}
    check_pointer(path)
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        # no torn line
        rows = [row for row in csv.DictReader(file) if row.get("sha256") and len(row["sha256"]) == 64]
    try:
        for row in rows:
            row.update({key: int(row[key]) for key in ("bytes", "width", "height")})
        return {row["file"]: row for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no manifest of {', '.join(COLUMNS)} ({one_line(error)}); get it again, or delete it "
            "and prepare the data set again (--from)"
        ) from error


def _recorded(name: str) -> Path:
    return home() / "manifests" / f"{name}.csv"


def verify(name: str, hashes: bool = True) -> State:
    """Compare $IFCSR_DATA/<name> with the manifest and the known count and sizes; nothing is changed.

    hashes: False compares bytes counted instead of sha256, which takes seconds instead of minutes for 100,000
        images.
    """
    data, folder = dataset(name), home() / name
    there, state = _images(folder, data), State(data, folder)
    state.found = len(there)
    published = _read_manifest(PUBLISHED / f"{name}.csv")
    rows = published or _read_manifest(_recorded(name))
    state.manifest = "published" if published else "recorded" if rows else "none"
    if rows:
        state.missing, state.unknown = sorted(rows.keys() - there.keys()), sorted(there.keys() - rows.keys())
    elif data.lr:
        stems = {side: {Path(file).stem for file in there if file.startswith(side)} for side in ("LR", "HR")}
        state.missing = sorted(
            f"{b}/{stem}" for a, b in (("LR", "HR"), ("HR", "LR")) for stem in stems[a] - stems[b]
        )
    for file, path in _progress(there.items(), f"verify {name}"):
        row = rows.get(file)
        if row and (path.stat().st_size != row["bytes"] or (hashes and sha256(path) != row["sha256"])):
            state.different.append(file)
        elif hashes and not row and (problem := _problem(data, file, path.read_bytes())[1]):
            state.different.append(f"{file} ({problem})")
    state.shards, wrong = _verify_shards(name, hashes)
    state.different += wrong
    return state


def _verify_shards(name: str, hashes: bool) -> tuple[int, list[str]]:
    folder = home() / f"{name}_shards"
    if not (folder / "shards.json").exists():
        return 0, []
    rows = _read_shards(folder / "shards.json")["shards"]
    wrong = [
        file
        for file, row in rows.items()
        if not (path := folder / file).exists()
        or path.stat().st_size != row["bytes"]
        or (hashes and sha256(path) != row["sha256"])
    ]
    return len(rows), [f"../{folder.name}/{file}" for file in wrong]


def _read_shards(path: Path) -> dict:
    record = read_json(path)
    rows = record.get("shards") if isinstance(record, dict) else None
    if (
        not isinstance(rows, dict)
        or "plan" not in record
        or not all(isinstance(row, dict) and {"bytes", "sha256"} <= set(row) for row in rows.values())
    ):
        raise ValueError(f"{path} is no record of shards; delete it, --shards makes it again")
    return record


def _progress(items, text: str):
    from tqdm import tqdm

    return tqdm(items, desc=text, unit="file", disable=None, delay=2)


def _problem(data: DataSet, target: str, content: bytes) -> tuple[tuple[int, int], str]:
    """((width, height), why the image does not belong: damaged or of another size, "" when it does)."""
    from .streams import image_size

    if is_pointer(content):
        return (0, 0), "is a git-LFS pointer, run `git lfs pull`"
    size = image_size(io.BytesIO(content), 0, len(content))
    side = data.lr if target.startswith("LR/") else data.hr
    if size == (0, 0):
        return size, "cannot be read"
    return size, f"{size[0]}x{size[1]}, not {side}x{side}" if side and size != (side, side) else ""


def _target(data: DataSet, path: PurePosixPath) -> str | None:
    """Where a file of a source belongs, such as "00042.png" or "HR/a.png"; None for one that is not of the
    data set.
    """
    from ..files.images import FORMATS

    folders = [part.lower() for part in path.parts[:-1]]
    if path.suffix.lower() not in FORMATS or path.name.startswith(".") or "__macosx" in folders:
        return None
    if data.name == "ffhq":
        ours = re.fullmatch(r"\d{5}", path.stem) and int(path.stem) < 10_000
        return path.name if ours and not {"thumbnails128x128", "in-the-wild-images"} & set(folders) else None
    # its x2, x3 and x4 have names such as 0000001x4.png, its validation images are in val1/
    if data.name == "lsdir":
        ours = re.fullmatch(r"\d{7}", path.stem)
        return (
            path.name if ours and not any(re.fullmatch(r"(val|test)\d*", part) for part in folders) else None
        )
    if not folders or not (side := FOLDERS.get(folders[-1])):
        return None
    other = next((key for key in ("drealsr", "realsr", "div2k") if key in "/".join(folders[:-1])), None)
    return f"{side}/{path.name}" if other in (None, data.name.removesuffix("_val")) else None


def _members(source: Path) -> Iterator[tuple[PurePosixPath, int, object, Path | None]]:
    """(path inside, bytes, function that reads them, file on disk or None) of every file of a folder or
    archive.

    Raises FileNotFoundError, or ValueError: neither folder nor archive, or damaged or cut short.
    """
    from .streams import tar_members

    if source.is_dir():
        base = PurePosixPath(source.resolve().name)
        for path in sorted(source.rglob("*")):
            if path.is_file():
                yield base / path.relative_to(source).as_posix(), path.stat().st_size, path.read_bytes, path
        return
    if not source.exists():
        raise FileNotFoundError(
            f"{source} does not exist; pass a folder, a .zip, .tar or .tar.gz, or an address"
        )
    check_pointer(source)
    with _undamaged(source):
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                for info in archive.infolist():
                    if not info.is_dir():
                        yield PurePosixPath(info.filename), info.file_size, partial(archive.read, info), None
        elif _plain_tar(source):
            with open(source, "rb") as file:
                for member in tar_members(file, str(source)):
                    yield PurePosixPath(member.name), member.size, partial(_at, file, member), None
        else:
            with tarfile.open(source, "r|*") as archive:
                for member in archive:
                    if member.isfile():
                        yield PurePosixPath(member.name), member.size, archive.extractfile(member).read, None


@contextlib.contextmanager
def _undamaged(source: Path):
    """ValueError naming the archive for the many kinds of error that damaged ones raise."""
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk, not the archive
            raise
        raise ValueError(
            f"{source} is damaged, cut short or no archive ({error or type(error).__name__}); get it again, "
            "what came before is kept. Allowed: a folder, .zip, .tar, .tar.gz"
        ) from error


def _plain_tar(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(512)[257:262] == b"ustar"


def _at(file, member: tarfile.TarInfo) -> bytes:
    file.seek(member.offset_data)
    data = file.read(member.size)
    if len(data) != member.size:
        raise EOFError(f"{member.name} ends early")
    return data


class _Records:
    """The manifest in the making: a line is added to a .part file as each image is stored, so a killed run
    goes on.
    """

    def __init__(self, name: str):
        self.path = _recorded(name)
        self.part = self.path.with_suffix(".part.csv")
        self.part.parent.mkdir(parents=True, exist_ok=True)
        self.rows = _read_manifest(self.path) | _read_manifest(self.part)

    def __enter__(self):
        fresh = not self.part.exists()
        self.file = open(self.part, "a", newline="", encoding="utf-8", errors="surrogateescape", buffering=1)
        self.writer = csv.writer(self.file, lineterminator="\n")
        self.writer.writerow(COLUMNS if fresh else [])  # an empty line ends one that a kill has torn
        return self

    def __exit__(self, *error):
        self.file.close()

    def known(self, target: str, path: Path, size: int | None = None) -> bool:
        row = self.rows.get(target)
        return bool(row) and path.exists() and row["bytes"] == path.stat().st_size == (size or row["bytes"])

    def add(self, target: str, content: bytes, size: tuple[int, int]) -> None:
        row = (target, len(content), *size, hashlib.sha256(content).hexdigest())
        self.rows[target] = dict(zip(COLUMNS, row, strict=True))
        self.writer.writerow(row)

    def finish(self) -> None:
        with (
            atomic(self.path) as tmp,
            open(tmp, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows[target] for target in sorted(self.rows))
        self.file.close()
        self.part.unlink()


def prepare(name: str, sources: list[str | Path], bad_images: float = 0.01, seed: int = 0) -> State:
    """Bring a data set to $IFCSR_DATA/<name> from folders, archives or http(s) addresses, and verify it.

    Files of a folder on the same disk are hard-linked (no second copy), all others written; images that are
    there with the right bytes are not touched, so that a killed run continues. Damaged images and wrong sizes
    are left out; more than the share `bad_images` of them (any, for test pairs) raises ValueError with counts
    and names, as does a source without a file of the data set. seed: of the DIV2K crops, where whole images
    are given.
    """
    data, folder, taken, bad = dataset(name), home() / name, {}, []
    urls = [file_name(source) for source in map(str, sources) if is_url(source)]
    if len(set(urls)) < len(urls):
        raise ValueError(
            f"two addresses end in the same file name ({', '.join(urls)}); prepare them one after the other"
        )
    with _Records(name) as records:
        for source in map(str, sources):
            local = download(source, home() / "downloads") if is_url(source) else Path(source)
            for path, size, read, origin in _progress(_members(local), f"{name} from {local.name}"):
                target = _target(data, path)
                if target is None and data.crops and re.fullmatch(r"08\d[1-9]|08[1-9]0|0900", path.stem):
                    target = path.stem
                if target is None:
                    continue
                if (other := taken.setdefault(target, (local, path))) != (local, path):
                    raise ValueError(
                        f"{other[1]} of {other[0].name} and {path} of {local.name} would both become "
                        f"{target}; name a source with one of them"
                    )
                if "." not in target:
                    with _undamaged(local):
                        _div2k_crops(data, target, read, folder, records, seed)
                elif not records.known(target, folder / target, size):
                    with _undamaged(local):
                        content = read()
                    pixels, problem = _problem(data, target, content)
                    if problem:
                        bad.append(f"{path}: {problem}")
                        continue
                    _store(content, folder / target, origin)
                    records.add(target, content, pixels)
        records.finish()
    if not taken:
        raise ValueError(
            f"no file of {name} in {', '.join(map(str, sources))}; wanted: {data.title}, {data.where}"
        )
    if len(bad) > (0 if data.lr else bad_images) * len(taken):
        raise ValueError(
            f"{len(bad)} of {len(taken)} images of {name} are unfit, first {'; '.join(bad[:3])}; allowed: "
            f"{'none' if data.lr else f'a share of {bad_images:g}'}. The others are stored; get these "
            "again and run the same command"
        )
    state = verify(name, hashes=False)  # they were computed a moment ago
    state.different += bad
    return state


def _store(content: bytes, path: Path, origin: Path | None) -> None:
    if path.exists() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if origin:
        with contextlib.suppress(OSError):  # another disk, or one without links
            return os.link(origin.resolve(), path)
    with atomic(path) as tmp:
        tmp.write_bytes(content)


def _div2k_crops(data: DataSet, stem: str, read, folder: Path, records: _Records, seed: int) -> None:
    """The pairs of one DIV2K image: crops at random places, degraded with x4plus; a function of (seed, image,
    crop).
    """
    import numpy as np

    from ..degradation import degrade
    from ..files.images import decode_image, write_image

    names = [f"{stem}_{k:02d}.png" for k in range(data.crops)]
    if all(records.known(f"{side}/{n}", folder / side / n) for n in names for side in ("LR", "HR")):
        return
    image = decode_image(read(), stem).rgb
    if min(image.shape[-2:]) < data.hr:
        raise ValueError(
            f"{stem} is {image.shape[-1]}x{image.shape[-2]}; crops of {data.hr} pixels need the whole image"
        )
    for k, name in enumerate(names):
        # DECISION D28: 30 crops per image at uniform places, x4plus; the published 3,000 crops state no seed
        index = (int(stem) - 801) * data.crops + k
        rng = np.random.default_rng([seed, CROPS_INDEX + index])
        top, left = (int(rng.integers(side - data.hr + 1)) for side in image.shape[-2:])
        x_H = image[..., top : top + data.hr, left : left + data.hr]
        sides = {"HR": x_H, "LR": degrade(x_H, seed, "x4plus", index=CROPS_INDEX + index)}
        for side, x in sides.items():
            path = write_image(x, folder / side / name)
            records.add(f"{side}/{name}", path.read_bytes(), (x.shape[-1], x.shape[-2]))


def write_shards(name: str, images: int = 1000) -> list[Path]:
    """Write $IFCSR_DATA/<name>_shards/<name>-000000.tar ... with `images` images each, and shards.json with
    their sha256.

    Webdataset's format: the files as they are, sorted by name. Shards that are there are kept, so a killed
    run continues; ValueError when they hold other images or another number per shard.
    """
    data, folder = dataset(name), home() / f"{name}_shards"
    files = list(_images(home() / name, data).values())
    if data.lr or images < 1 or not files:
        raise ValueError(
            f"shards of {name} with {images} images each, {len(files)} images there; allowed: a training set "
            "that is prepared, and 1 or more images a shard"
        )
    text = "".join(f"{path.name} {path.stat().st_size}\n" for path in files).encode(
        "utf-8", "surrogateescape"
    )
    wanted = {"images": len(files), "images_a_shard": images, "of": hashlib.sha256(text).hexdigest()}
    record = {"plan": wanted, "shards": {}}
    if (folder / "shards.json").exists():
        record = _read_shards(folder / "shards.json")
        if record["plan"] != wanted:
            raise ValueError(
                f"{folder} holds shards of other images or another size ({record['plan']}, now {wanted}); "
                "delete the folder to make them again"
            )
    paths = [folder / f"{name}-{n:06d}.tar" for n in range(-(-len(files) // images))]
    for n, path in enumerate(_progress(paths, f"{name} shards")):
        row = record["shards"].get(path.name)
        if row and path.exists() and path.stat().st_size == row["bytes"]:
            continue
        part = files[n * images : (n + 1) * images]
        with atomic(path) as tmp, tarfile.open(tmp, "w") as archive:
            for image in part:
                archive.addfile(_entry(image), io.BytesIO(image.read_bytes()))
        record["shards"][path.name] = {
            "images": len(part),
            "bytes": path.stat().st_size,
            "sha256": sha256(path),
        }
        write_json(record, folder / "shards.json")
    return paths


def _entry(image: Path) -> tarfile.TarInfo:
    """The header of an image in a shard, as webdataset's TarWriter writes it: the same bytes on every
    machine.
    """
    entry = tarfile.TarInfo(image.stem + image.suffix.lower())
    entry.size, entry.mode, entry.uname, entry.gname = image.stat().st_size, 0o444, "bigdata", "bigdata"
    return entry


def report(state: State) -> str:
    """A few lines for people: what is there, what is wrong, the licence, where to get it."""
    data = state.data
    unit = "pairs" if data.lr else "images"
    lines = [
        f"{data.name}: {data.title}",
        f"  folder    $IFCSR_DATA/{data.name}"
        + (f", shards $IFCSR_DATA/{data.name}_shards ({state.shards})" if state.shards else ""),
        f"  there     {state.found:,} of {data.files:,} files ({data.count:,} {unit}"
        + (
            f", LR {data.lr} x {data.lr} and HR {data.hr} x {data.hr}"
            if data.lr
            else f", {data.hr} x {data.hr}"
            if data.hr
            else ""
        )
        + f"), {'complete' if state.complete else 'not complete'}",
    ]
    manifests = {
        "published": "sha256 of data/paper/manifests",
        "recorded": "sha256 recorded at the first prepare",
        "none": "none; counts and sizes only, until `prepare` (--from) records one",
    }
    lines.append(f"  manifest  {manifests[state.manifest]}")
    for text, files in (("missing", state.missing), ("differ", state.different), ("unknown", state.unknown)):
        if files:
            lines.append(f"  {text:9s} {len(files):,}, first {', '.join(files[:3])}")
    return "\n".join([*lines, f"  licence   {data.licence}", f"  get it    {data.where}"])
