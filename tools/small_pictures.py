"""A picture below 150 kB: for the rendered notebooks, and for what notebooks say that you should see."""

from __future__ import annotations

import io

from PIL import Image

LIMIT = 150_000  # bytes of one picture
QUALITIES = (90, 84, 78)  # of JPEG, before a picture is made smaller


def small(data: bytes, width: int) -> tuple[str, bytes]:
    """(suffix, bytes) of a picture of at most `width` pixels across and LIMIT bytes.

    data: an image file. The result is ".png", without loss but for the size, where that is small enough, and
    ".jpg" elsewhere; what is transparent becomes white. Raises OSError for bytes that are no image.
    """
    with Image.open(io.BytesIO(data)) as opened:
        rgba = opened.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    scale = min(1.0, width / image.width)
    kinds = [(".png", dict(format="PNG", optimize=True))]
    kinds += [(".jpg", dict(format="JPEG", quality=q, subsampling=0)) for q in QUALITIES]
    while True:
        size = [max(1, round(side * scale)) for side in image.size]
        scaled = image if size == list(image.size) else image.resize(size, Image.Resampling.LANCZOS)
        for suffix, options in kinds:
            buffer = io.BytesIO()
            scaled.save(buffer, **options)
            if buffer.tell() <= LIMIT or size == [1, 1]:
                return suffix, buffer.getvalue()
        scale *= 0.85
