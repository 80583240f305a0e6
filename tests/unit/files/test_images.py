"""Every kind of photo goes in and comes out as it should; bad files and tensors give one clear error."""

import dataclasses
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms, ImageFile, ImageOps

from ifcsr_lib import images
from ifcsr_lib.files import pixels
from ifcsr_lib.files.images import (
    Photo,
    check_images,
    list_images,
    read_image,
    to_tensor,
    to_uint8,
    upsample,
    write_image,
)

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
RNG = np.random.default_rng(0)
A8 = RNG.integers(0, 256, (20, 24, 4), dtype=np.uint8)
A16 = RNG.integers(0, 65536, (20, 24, 4), dtype=np.uint16)
SMOOTH = np.stack([np.add.outer(np.arange(20), np.arange(24)) * f for f in (2, 3, 4)], -1).astype(np.uint8)


def same(x: torch.Tensor, array: np.ndarray, top: int = 255) -> bool:
    """x (1, C, H, W) holds exactly the integers of array (H, W) or (H, W, C); a single channel serves all."""
    array = array[..., None] if array.ndim == 2 else array
    return np.array_equal(
        np.round(x[0].permute(1, 2, 0).numpy() * top), np.broadcast_to(array, (20, 24, x.shape[1]))
    )


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif", "a.tiff", "a.bmp", "a.PNG"])
def test_lossless_8_bit_colour(tmp_path, name):
    Image.fromarray(A8[..., :3]).save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    photo = read_image(tmp_path / name)
    assert photo.rgb.dtype == torch.float32 and photo.alpha is None and (photo.bits, photo.name) == (8, name)
    assert same(photo.rgb, A8[..., :3])
    again = read_image(write_image(photo, tmp_path / f"again{name[1:]}"))
    assert torch.equal(again.rgb, photo.rgb)


def test_jpeg_is_close_in_colour_grey_and_cmyk(tmp_path):
    """JPEG quality 95 on a smooth ramp: within 6 levels. Pillow's own CMYK conversion is the reference for
    CMYK.
    """
    colour = Image.fromarray(SMOOTH)
    for image in (colour, colour.convert("L"), colour.convert("CMYK")):
        image.save(tmp_path / "a.jpg", quality=95, subsampling=0)
        photo = read_image(tmp_path / "a.jpg")
        expected = to_tensor(np.asarray(image.convert("RGB")))
        assert photo.rgb.shape == (1, 3, 20, 24) and (photo.rgb - expected).abs().max() < 6 / 255
    write_image(to_tensor(SMOOTH), tmp_path / "b.jpeg")
    assert (read_image(tmp_path / "b.jpeg").rgb - to_tensor(SMOOTH)).abs().max() < 6 / 255


def test_grey_bilevel_and_palette(tmp_path):
    grey = Image.fromarray(A8[..., 0])
    grey.save(tmp_path / "l.png")
    grey.convert("1").save(tmp_path / "1.png")
    palette = Image.fromarray(SMOOTH).quantize(16)
    palette.save(tmp_path / "p.png")
    assert same(read_image(tmp_path / "l.png").rgb, A8[..., 0])
    assert set(read_image(tmp_path / "1.png").rgb.unique().tolist()) == {0.0, 1.0}
    photo = read_image(tmp_path / "p.png")
    assert same(photo.rgb, np.asarray(palette.convert("RGB"))) and photo.alpha is None


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_alpha_is_read_and_kept(tmp_path, suffix):
    how = {"lossless": True, "exact": True} if suffix == "webp" else {}
    Image.fromarray(A8).save(tmp_path / f"a.{suffix}", **how)
    photo = read_image(tmp_path / f"a.{suffix}")
    assert same(photo.rgb, A8[..., :3]) and same(photo.alpha, A8[..., 3])
    again = read_image(write_image(photo, tmp_path / f"b.{suffix}"))
    assert torch.equal(again.rgb, photo.rgb) and torch.equal(again.alpha, photo.alpha)


def test_transparency_of_grey_and_palette(tmp_path):
    Image.fromarray(A8[..., :2], "LA").save(tmp_path / "la.png")
    photo = read_image(tmp_path / "la.png")
    assert same(photo.rgb, A8[..., 0]) and same(photo.alpha, A8[..., 1])
    indexed = Image.fromarray(A8[..., 0] % 4, "P")
    indexed.putpalette([v for i in range(4) for v in (i, 2 * i, 3 * i)])
    indexed.save(tmp_path / "p.png", transparency=bytes([0, 100, 200, 255]))
    photo = read_image(tmp_path / "p.png")
    assert same(photo.alpha, np.array([0, 100, 200, 255])[A8[..., 0] % 4])
    assert same(photo.rgb[:, 1:2], 2 * (A8[..., 0] % 4))
    Image.fromarray(A8[..., 0]).save(tmp_path / "key.png", transparency=int(A8[3, 4, 0]))
    assert same(read_image(tmp_path / "key.png").alpha, np.where(A8[..., 0] == A8[3, 4, 0], 0, 255))


def test_formats_without_alpha_show_it_on_white(tmp_path):
    photo = Photo(torch.zeros(1, 3, 16, 16), torch.full((1, 1, 16, 16), 0.25))
    for name, tolerance in (("a.bmp", 0.5), ("a.jpg", 2)):
        back = read_image(write_image(photo, tmp_path / name))
        assert back.alpha is None and (back.rgb - 0.75).abs().max() <= tolerance / 255 + 1e-6


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png(tmp_path, channels):
    """Values keep all 16 bits: exact, well inside 1/65535."""
    (tmp_path / "a.png").write_bytes(pixels._png16(A16[..., :channels], None))
    photo = read_image(tmp_path / "a.png")
    assert photo.bits == 16 and same(photo.rgb, A16[..., : 3 if channels > 2 else 1], 65535)
    assert photo.alpha is None if channels % 2 else same(photo.alpha, A16[..., channels - 1], 65535)
    for name in ("b.png", "b.tif"):
        back = read_image(write_image(photo, tmp_path / name))
        assert back.bits == 16 and torch.equal(back.rgb, photo.rgb)
        assert (back.alpha is None) == (photo.alpha is None)
        assert back.alpha is None or torch.equal(back.alpha, photo.alpha)
    back = read_image(write_image(photo, tmp_path / "b.webp"))
    assert back.bits == 8 and (back.rgb - photo.rgb).abs().max() <= 0.5 / 255 + 1e-6


def test_our_16_bit_png_is_read_alike_by_an_independent_decoder(tmp_path):
    cv2 = pytest.importorskip("cv2")
    write_image(to_tensor(A16[..., :3]), tmp_path / "a.png", alpha=to_tensor(A16[..., 3]), bits=16, icc=SRGB)
    assert np.array_equal(cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)[..., [2, 1, 0, 3]], A16)
    assert Image.open(tmp_path / "a.png").info["icc_profile"] == SRGB


@pytest.mark.parametrize(
    "how", [{}, {"byteorder": ">"}, {"planarconfig": "separate"}, {"compression": "zlib", "predictor": True}]
)
def test_16_bit_tiff(tmp_path, how):
    planes = A16[..., :3].transpose(2, 0, 1) if "planarconfig" in how else A16[..., :3]
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", **how)
    photo = read_image(tmp_path / "a.tif")
    assert photo.bits == 16 and same(photo.rgb, A16[..., :3], 65535)


def test_16_bit_tiff_kinds(tmp_path):
    """White-is-zero grey; straight and premultiplied alpha (the latter within half a level of 4096); LZW."""
    tifffile.imwrite(tmp_path / "w.tif", 65535 - A16[..., 0], photometric="miniswhite")
    assert same(read_image(tmp_path / "w.tif").rgb, A16[..., 0], 65535)
    tifffile.imwrite(tmp_path / "s.tif", A16, photometric="rgb", extrasamples=["unassalpha"])
    assert same(read_image(tmp_path / "s.tif").alpha, A16[..., 3], 65535)
    alpha = np.full((20, 24, 1), 4096 * 4, np.uint16)
    rgb = np.round(A16[..., :3] * (alpha / 65535)).astype(np.uint16)
    tifffile.imwrite(
        tmp_path / "m.tif", np.dstack([rgb, alpha]), photometric="rgb", extrasamples=["assocalpha"]
    )
    assert (read_image(tmp_path / "m.tif").rgb - to_tensor(A16[..., :3])).abs().max() < 0.5 / 4096
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(tmp_path / "z.tif"), A16[..., 2::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    assert same(read_image(tmp_path / "z.tif").rgb, A16[..., :3], 65535)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    """8 and 16 bit are turned as Pillow turns."""
    image = Image.fromarray(A8[..., :3])
    exif = Image.Exif()
    exif[274] = orientation
    expected = to_tensor(np.asarray(ImageOps.exif_transpose(_with(image, exif))))
    for name in ("a.png", "a.tif", "a.webp"):
        image.save(tmp_path / name, exif=exif, **({"lossless": True} if name == "a.webp" else {}))
        assert torch.equal(read_image(tmp_path / name).rgb, expected), name
    wide = A8[..., :3].astype(np.uint16) * 257
    tifffile.imwrite(
        tmp_path / "w.tif", wide, photometric="rgb", extratags=[(274, "H", 1, orientation, True)]
    )
    photo = read_image(tmp_path / "w.tif")
    assert photo.bits == 16 and (photo.rgb - expected).abs().max() < 1e-6


def _with(image: Image.Image, exif: Image.Exif) -> Image.Image:
    image = image.copy()
    image.getexif().update(exif)
    return image


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif"])
def test_colour_profile_is_kept(tmp_path, name):
    Image.fromarray(SMOOTH).save(tmp_path / name, icc_profile=SRGB)
    photo = read_image(tmp_path / name)
    assert photo.icc == SRGB
    for bits in (8, 16):
        assert (
            read_image(write_image(photo.rgb, tmp_path / f"b{name[1:]}", bits=bits, icc=photo.icc)).icc
            == SRGB
        )


GREY_ICC = SRGB[:16] + b"GRAY" + SRGB[20:]


def test_a_profile_goes_only_where_the_channels_fit(tmp_path):
    """Grey into grey, RGB into RGB; WebP knows no grey."""
    Image.fromarray(A8[..., 0]).save(tmp_path / "a.png", icc_profile=GREY_ICC)
    photo = read_image(tmp_path / "a.png")
    for name, kept in (("b.png", GREY_ICC), ("b.jpg", GREY_ICC), ("b.tif", GREY_ICC), ("b.webp", None)):
        assert read_image(write_image(photo, tmp_path / name)).icc == kept, name
        rgb = dataclasses.replace(photo, grey=False)
        assert Image.open(write_image(rgb, tmp_path / name)).info.get("icc_profile") is None, name
        wrong = dataclasses.replace(photo, icc=SRGB)
        assert read_image(write_image(wrong, tmp_path / name)).icc == (None if kept else SRGB), name


def grey_files(folder):
    """A grey photograph in every kind of grey that the formats have."""
    ramp = np.add.outer(np.arange(20), np.arange(24)).astype(np.uint8) * 5
    grey, alpha = Image.fromarray(ramp), RNG.integers(1, 256, (20, 24), dtype=np.uint8)
    for suffix in ("png", "jpg", "jpeg", "tif", "tiff", "bmp"):
        grey.save(folder / f"l.{suffix}")
    for suffix in ("png", "tif", "bmp"):
        grey.convert("1").save(folder / f"bit.{suffix}")
    for suffix in ("png", "tif"):
        Image.fromarray(np.dstack([ramp, alpha]), "LA").save(folder / f"la.{suffix}")
    grey.save(folder / "key.png", transparency=5)
    for channels in (1, 2):
        wide = np.dstack([ramp.astype(np.uint16) * 257, alpha.astype(np.uint16) * 257])[..., :channels]
        (folder / f"wide{channels}.png").write_bytes(pixels._png16(wide, None))
    tifffile.imwrite(folder / "wide1.tif", wide[..., 0], photometric="minisblack")
    tifffile.imwrite(folder / "white.tif", 65535 - wide[..., 0], photometric="miniswhite")
    tifffile.imwrite(
        folder / "wide2.tif",
        wide,
        photometric="minisblack",
        planarconfig="contig",
        extrasamples=["unassalpha"],
    )
    return sorted(folder.iterdir())


CHANNELS = {"1": 1, "L": 1, "LA": 2, "I;16": 1, "I;16B": 1, "RGB": 3, "RGBA": 4}


def channels(path):
    """Of the file as it is stored, and the bits of each."""
    if path.suffix == ".tif":
        with tifffile.TiffFile(path) as file:
            return file.pages[0].samplesperpixel, file.pages[0].bitspersample
    if path.suffix == ".png":  # Pillow has no mode for 16-bit grey with alpha
        data = path.read_bytes()
        return {0: 1, 2: 3, 4: 2, 6: 4}[data[25]], data[24]
    with Image.open(path) as image:
        return CHANNELS[image.mode], 8


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp"])
def test_grey_comes_out_grey(tmp_path, suffix):
    """Every kind of grey file, given colour, is written as one channel of the same bits, where there is
    such; what it shows has R = G = B.
    """
    (tmp_path / "in").mkdir()
    for path in grey_files(tmp_path / "in"):
        photo = read_image(path)
        assert photo.grey and bool(images.is_grey(photo.rgb)), path.name
        tinted = photo.rgb * torch.tensor([1, 0.8, 0.9]).view(1, 3, 1, 1)
        out = write_image(dataclasses.replace(photo, rgb=tinted), tmp_path / f"out.{suffix}")
        back = read_image(out)
        assert bool(images.is_grey(back.rgb)), path.name
        keeps_alpha = photo.alpha is not None and suffix in ("png", "tif", "webp")
        wide = 16 if photo.bits == 16 and suffix in ("png", "tif") else 8
        assert channels(out) == ((3 if suffix == "webp" else 1) + keeps_alpha, wide), path.name
        if suffix in ("png", "tif"):
            assert (back.rgb - images.to_grey(tinted)).abs().max() <= 0.5 / (2**wide - 1) + 1e-6, path.name
            assert photo.alpha is None or torch.equal(back.alpha, photo.alpha)


def test_luma_is_pillows_and_keeps_grey():
    x = to_tensor(A8[..., :3])
    pillow = np.asarray(Image.fromarray(A8[..., :3]).convert("L")).astype(float)
    # Pillow's weights are 16-bit integers and it rounds: within one level
    assert np.abs(images.to_grey(x)[0, 1].numpy() * 255 - pillow).max() < 0.51
    grey = torch.rand(2, 1, 16, 16).expand(2, 3, 16, 16)
    assert torch.equal(images.to_grey(grey), grey)
    assert images.is_grey(torch.cat([x, images.to_grey(x)])).tolist() == [False, True]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "suffix, wide", [("png", 0), ("jpg", 0), ("webp", 0), ("tif", 0), ("bmp", 0), ("png", 1), ("tif", 1)]
)
def test_truncated_and_strange_files_name_themselves(tmp_path, suffix, wide):
    array = RNG.integers(0, 65536, (64, 64, 3), dtype=np.uint16) if wide else A8[..., :3]
    whole = write_image(to_tensor(array), tmp_path / f"whole.{suffix}", bits=16 if wide else 8).read_bytes()
    for part in (whole[: int(len(whole) * 0.6)], whole[:30], b"", b"not an image at all"):
        (tmp_path / f"bad.{suffix}").write_bytes(part)
        with pytest.raises(ValueError, match=rf"bad\.{suffix} cannot be read as an image \(.+\); allowed"):
            read_image(tmp_path / f"bad.{suffix}")


def test_other_kinds_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "f.tif", np.zeros((20, 24), np.float32))
    Image.fromarray(SMOOTH).save(tmp_path / "a.gif")
    for name in ("f.tif", "a.gif"):
        with pytest.raises(ValueError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="none.png does not exist"):
        read_image(tmp_path / "none.png")


def test_list_images(tmp_path):
    for name in ("b.PNG", "a.jpg", "c.txt", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "d.png").mkdir()
    assert [p.name for p in list_images(tmp_path)] == ["a.jpg", "b.PNG"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty has no images; allowed: \.png"):
        list_images(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="not a folder"):
        list_images(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
@pytest.mark.parametrize("kind", ["cut", "garbage", "of RGB", "empty tags"])
def test_cmyk_with_an_unusable_profile_is_read_without_it(tmp_path, suffix, kind):
    image, path = Image.fromarray(SMOOTH).convert("CMYK"), tmp_path / f"a.{suffix}"
    icc = {
        "cut": (SRGB[:16] + b"CMYK" + SRGB[20:])[:200],
        "garbage": b"no profile " * 30,
        "of RGB": SRGB,
        "empty tags": SRGB[:16] + b"CMYK" + SRGB[20:],
    }[kind]
    image.save(path, icc_profile=icc)
    photo = read_image(path)
    assert (photo.rgb - to_tensor(np.asarray(Image.open(path).convert("RGB")))).abs().max() == 0
    assert [note for note in photo.notes if "CMYK profile" in note]
    image.save(path)
    assert read_image(path).notes == ()


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_a_damaged_profile_is_not_passed_on(tmp_path, suffix):
    for mode, icc in (("RGB", SRGB), ("L", GREY_ICC)):
        how = {"lossless": True} if suffix == "webp" else {}
        Image.fromarray(SMOOTH).convert(mode).save(tmp_path / f"a.{suffix}", icc_profile=icc[:90], **how)
        photo = read_image(tmp_path / f"a.{suffix}")
        assert photo.icc is None and [note for note in photo.notes if "profile is damaged" in note]


def test_large_files_are_told_in_one_line_of_ours(tmp_path, monkeypatch):
    """Pillow warns from MAX_IMAGE_PIXELS on and refuses from twice that on."""
    Image.fromarray(SMOOTH).save(tmp_path / "a.png")
    for most, told in ((480, ()), (479, ("24x20, 0 megapixels",)), (None, ())):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            notes = read_image(tmp_path / "a.png").notes
        assert len(notes) == len(told) and all(map(str.startswith, notes, told))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"a\.png cannot .*megapixels; cut or shrink"):
        read_image(tmp_path / "a.png")


def test_other_names_of_jpeg(tmp_path):
    for name in ("a.jfif", "b.JPE", "c.jpeg"):
        Image.fromarray(SMOOTH).save(tmp_path / name, "JPEG")
    assert [p.name for p in list_images(tmp_path)] == ["a.jfif", "b.JPE", "c.jpeg"]
    assert Image.open(write_image(read_image(tmp_path / "a.jfif"), tmp_path / "d.jfif")).format == "JPEG"


@pytest.mark.skipif(".avif" not in images.readable(), reason="this Pillow cannot read AVIF")
def test_avif_is_read_and_turned(tmp_path):
    """Lossy: within 8 levels on a ramp. Written it is never."""
    exif = Image.Exif()
    exif[274], exif[306] = 6, "2024:05:06 07:08:09"
    Image.fromarray(SMOOTH).save(tmp_path / "a.avif", quality=95, exif=exif)
    photo = read_image(tmp_path / "a.avif")
    assert list_images(tmp_path) == [tmp_path / "a.avif"] and b"2024:05:06" in photo.exif
    assert (photo.rgb - to_tensor(np.rot90(SMOOTH, -1))).abs().max() < 8 / 255
    with pytest.raises(ValueError, match=r"suffix '\.avif' is unknown"):
        write_image(photo, tmp_path / "b.avif")


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path, monkeypatch):
    """A stand-in for pillow_heif: it registers its format, and from then on the folder has one photo more."""
    (tmp_path / "a.heic").write_bytes(b"heic of test")
    Image.fromarray(SMOOTH).save(tmp_path / "b.png")
    assert [p.name for p in list_images(tmp_path)] == ["b.png"]

    class Heif(ImageFile.ImageFile):
        format, format_description = "HEIF", "stand-in"

        def _open(self):
            self._size, self._mode, self.info["exif"] = (24, 20), "RGB", b""

        def load(self):
            self.im = Image.fromarray(SMOOTH).im

    def register():
        Image.register_open("HEIF", Heif, lambda head: head.startswith(b"heic"))
        Image.register_extensions("HEIF", [".heic", ".heif"])

    plugin = types.ModuleType("pillow_heif")
    plugin.register_heif_opener = register
    before = Image.registered_extensions().copy(), dict(Image.OPEN), list(Image.ID)
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    images.readable.cache_clear()
    try:
        assert [p.name for p in list_images(tmp_path)] == ["a.heic", "b.png"]
        assert same(read_image(tmp_path / "a.heic").rgb, SMOOTH) and images.left_out(tmp_path) == ""
    finally:
        images.readable.cache_clear()
        for now, old in zip((Image.EXTENSION, Image.OPEN), before, strict=False):
            now.clear()
            now.update(old)
        Image.ID[:] = before[2]


def test_what_a_folder_leaves_out_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(pixels, "readable", lambda: images.FORMATS)
    for name in ("a.HEIC", "b.heic", "c.gif", "d.avif", "e.txt", ".f.gif", "g.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "h.gif").mkdir()
    told = images.left_out(tmp_path)
    assert told.startswith("left out 4 pictures") and "1 .avif, 1 .gif, 2 .heic" in told
    assert "pillow-heif" in told and "\n" not in told
    with pytest.raises(FileNotFoundError, match=r"has no images; left out 4 .*; allowed: \.png"):
        list_images(tmp_path)
    (tmp_path / "a.png").touch()
    assert [p.name for p in list_images(tmp_path)] == ["a.png"]
    for path in tmp_path.glob("*.[haHg]*"):
        path.unlink() if path.is_file() else path.rmdir()
    assert images.left_out(tmp_path) == ""


def test_further_frames_and_pages_are_told(tmp_path):
    """The first is read, and how many there were is said; one alone says nothing."""
    first, *others = (Image.fromarray(np.roll(SMOOTH, k, 0)) for k in (0, 7, 12))
    kinds = {"a.png": "frames", "a.apng": "frames", "a.webp": "frames", "a.tif": "pages"}
    if ".avif" in images.readable():
        kinds["a.avif"] = "frames"
    for name, word in kinds.items():
        how = {"lossless": True} if name.endswith("webp") else {}
        first.save(tmp_path / name, save_all=True, append_images=others, **how)
        photo = read_image(tmp_path / name)
        assert photo.notes == (f"the first of its 3 {word} only",), name
        assert (photo.rgb - to_tensor(SMOOTH)).abs().max() < 0.1
        first.save(tmp_path / name, **how)
        assert read_image(tmp_path / name).notes == (), name
    tifffile.imwrite(tmp_path / "w.tif", np.stack([A16[..., :3]] * 3), photometric="rgb")
    assert read_image(tmp_path / "w.tif").notes == ("the first of its 3 pages only",)
    # a phone's JPEG holds a preview or a gain map behind the photo: no second photo
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=others)
    assert read_image(tmp_path / "a.jpg").notes == ()


def test_writing_refuses_what_it_cannot_write(tmp_path):
    x = torch.rand(1, 3, 16, 16)
    for call, text in (
        (lambda: write_image(x, tmp_path / "a.gif"), r"suffix '\.gif' is unknown; allowed: \.png"),
        (lambda: write_image(x + 1, tmp_path / "a.png"), r"spans .*allowed: \[0, 1\]"),
        (lambda: write_image(torch.rand(2, 3, 16, 16), tmp_path / "a.png"), "one .1, 3, H, W. image"),
        (lambda: write_image(x, tmp_path / "a.png", bits=12), "8 or 16 bits"),
        (lambda: write_image(x, tmp_path / "a.png", alpha=torch.rand(1, 1, 4, 4)), "alpha"),
        (
            lambda: write_image(torch.rand(1, 3, 1, 16400), tmp_path / "a.webp"),
            r"written as WEBP .*try \.png",
        ),
    ):
        with pytest.raises(ValueError, match=text):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bits", [8, 16])
def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, bits):
    x = torch.rand(1, 3, 16, 16)
    old = write_image(x, tmp_path / "a.png").read_bytes()

    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match=r"no disk space: .*a\.png"):
        write_image(1 - x, tmp_path / "a.png", bits=bits)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"] and (tmp_path / "a.png").read_bytes() == old


def test_check_images_says_what_came():
    ok = torch.rand(2, 3, 16, 17)
    check_images(ok)
    check_images(ok.clamp(0, 1) + 9e-7 * (ok > 2))
    check_images(torch.rand(1, 3, 4, 4), min_side=4)
    nan = ok.clone()
    nan[0, 0, 0, :2] = float("nan")
    for x, kind, text in (
        (ok.numpy(), TypeError, "ndarray"),
        (ok.double(), TypeError, "float64"),
        (to_uint8(ok), TypeError, "ndarray"),
        ((ok * 255).byte(), TypeError, "uint8"),
        (ok[0], ValueError, r"\(3, 16, 17\).*image\[None\]"),
        (ok[:, :1], ValueError, r"\(2, 1, 16, 17\)"),
        (ok[:0], ValueError, r"\(0, 3"),
        (ok[..., :15], ValueError, "15x16 pixels; allowed: 16 or more"),
        (nan, ValueError, "2 NaN"),
        (ok * 255, ValueError, r"allowed: \[0, 1\]"),
        (ok - 0.5, ValueError, r"spans \[-0"),
    ):
        with pytest.raises(kind, match=f"lr.*{text}"):
            check_images(x, "lr")


def test_tensor_and_array_conversions():
    levels = torch.arange(256).view(1, 1, 16, 16).expand(1, 3, 16, 16).float() / 255
    assert np.array_equal(to_uint8(levels)[0, ..., 0].ravel(), np.arange(256))
    edges = torch.tensor([-0.2, 0.4999 / 255, 0.51 / 255, 1.3]).view(1, 1, 1, 4)
    assert to_uint8(edges).ravel().tolist() == [0, 0, 1, 255]
    assert torch.equal(to_tensor(to_uint8(levels)), levels)
    assert to_tensor(A8[..., 0]).shape == (1, 1, 20, 24) and to_tensor(A8).shape == (1, 4, 20, 24)
    assert torch.equal(
        to_tensor(A16).mul(65535).round()[0, 2], torch.from_numpy(A16[..., 2].astype(np.float32))
    )
    assert to_tensor(np.full((2, 8, 8, 3), 0.5)).dtype == torch.float32
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(torch.full((1, 3, 2, 2), float("nan")))
    with pytest.raises(TypeError, match="int64"):
        to_tensor(np.zeros((4, 4), np.int64))
    with pytest.raises(ValueError, match=r"\(4,\)"):
        to_tensor(np.zeros(4))


def test_upsample_is_x4_bicubic_and_in_range():
    """Keys' kernel with a = -0.75 written out (1e-6); constants stay; overshoot at an edge is clamped."""

    def kernel(t, a=-0.75):
        t = np.abs(t)
        near, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * (t**3 - 5 * t**2 + 8 * t - 4)
        return np.where(t < 1, near, np.where(t < 2, far, 0))

    x = 0.3 + 0.4 * torch.rand(1, 3, 16, 18, generator=torch.Generator().manual_seed(0))
    # an output pixel away from the borders; its place in the input is (r + 0.5) / 4 - 0.5
    row, column = 26, 33
    wy, wx = kernel((row + 0.5) / 4 - 0.5 - np.arange(16)), kernel((column + 0.5) / 4 - 0.5 - np.arange(18))
    assert np.allclose(upsample(x)[0, :, row, column], wy @ x[0].numpy() @ wx, atol=1e-6)
    assert torch.allclose(upsample(torch.full((1, 3, 16, 18), 0.3)), torch.tensor(0.3), atol=1e-6)
    edge = upsample((torch.arange(16) > 7).float().expand(1, 3, 16, 16))
    assert edge.shape == (1, 3, 64, 64) and edge.min() == 0 and edge.max() == 1


def test_partners_have_the_same_full_name_or_the_only_stem():
    """photo.jpg and photo.png are two photographs: neither is ever taken for the other's reference."""

    def found(left, right):
        pairs = images.partners([Path("sr", n) for n in left], [Path("hr", n) for n in right])
        return {a.name: b.name for a, b in pairs.items()}

    assert found(["photo.jpg", "photo.png"], ["photo.png", "photo.jpg"]) == {
        "photo.jpg": "photo.jpg",
        "photo.png": "photo.png",
    }
    assert found(["a.png", "b.png"], ["a.bmp", "c.bmp", "b.png"]) == {"a.png": "a.bmp", "b.png": "b.png"}
    assert found(["photo.jpg", "photo.png"], ["photo.png"]) == {"photo.png": "photo.png"}, (
        "the jpg has no partner"
    )
    for left, right in (
        (["photo.bmp"], ["photo.jpg", "photo.png"]),
        (["photo.jpg", "photo.png"], ["photo.bmp"]),
    ):
        with pytest.raises(
            ValueError, match=r"photo.* all are called 'photo'; give partners the same full name"
        ):
            found(left, right)


def test_labels_are_stems_where_those_differ():
    assert images.labels([Path("a.png"), Path("b.jpg"), Path("b.png")]) == ["a", "b.jpg", "b.png"]
    assert images.labels([Path("gr\udcfcn.png")]) == ["gr\\udcfcn"]
    assert images.labels([Path("a.jpg.png"), Path("a.jpg"), Path("a.png")]) == ["a.jpg.png", "a.jpg", "a.png"]
