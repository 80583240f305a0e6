"""The figures of the notebooks. Every function returns a matplotlib figure; nothing here computes a
result.
"""

from __future__ import annotations

import contextlib
import zlib

import matplotlib.pyplot as plt
import pandas as pd
from torch import Tensor
from tqdm.auto import tqdm

from . import control
from .evaluate import METRICS
from .files.images import to_uint8

RECIPES = (
    "this run",
    "released",
    "single stage, baseline",
    "two stages, k = 1 (baseline)",
    "two stages, k = 3",
    "two stages, k = 7",
)
STYLE = {
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 100,
}


@contextlib.contextmanager
def styled():
    """Draw with STYLE inside the block, and show figures afterwards as before.

    The first figure of a notebook loads the inline backend, which switches "interactive" on. Inside
    rc_context that would be undone at its end, and no later figure would be shown; so the backend is loaded
    first.
    """
    plt.draw_if_interactive()  # loads the backend, and draws nothing where no figure is open
    with plt.rc_context(STYLE):
        yield


def pictures(
    images: dict[str, Tensor], columns: int = 5, size: float = 2.6, crop: tuple[int, int, int] | None = None
):
    """A grid of titled images; each (1, 3, H, W) or (3, H, W) RGB in [0, 1] (clamped), or (H, W) in [0, 1]
    shown in grey.

    crop: (top, left, side) in pixels of the images, cut from every one of them.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    first = next(iter(images.values()))
    tall = 1 if crop else first.shape[-2] / first.shape[-1]
    room = 0.25 * (1 + max(title.count("\n") for title in images))
    fig, axes = plt.subplots(
        rows, columns, figsize=(size * columns, (size * tall + room) * rows), squeeze=False
    )
    for ax in axes.flat:
        ax.axis("off")
    for ax, (title, x) in zip(axes.flat, images.items(), strict=False):
        x = x.detach().cpu()
        if crop and x.ndim > 2:
            top, left, side = crop
            x = x[..., top : top + side, left : left + side]
        if x.ndim == 2:
            ax.imshow(x.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        else:
            ax.imshow(to_uint8(x.reshape(1, *x.shape[-3:]).clamp(0, 1))[0], interpolation="nearest")
        ax.set_title(title, fontsize=9)
    fig.tight_layout()
    return fig


def strip(
    ends: control.Endpoints,
    gammas=(0.0, 0.25, 0.5, 0.75, 1.0),
    crop: tuple[int, int, int] | None = None,
    hr=None,
):
    """One image along gamma, bicubic first and, when given, the reference last."""
    images = {"bicubic": ends.x_L} if ends.x_L is not None else {}
    images |= {f"gamma {g:g}": ends.blend(float(g)) for g in gammas}
    if hr is not None:
        images["HR"] = hr
    return pictures(images, columns=len(images), crop=crop)


def sheet(
    rows: dict[str, tuple[control.Endpoints, dict[str, Tensor]]],
    gammas=(0.0, 0.5, 1.0),
    side: int = 192,
    size: float = 2.0,
):
    """A contact sheet of centre crops: one row per image, {name: (its Endpoints, {label: picture})}.

    A row has bicubic LR, each gamma, and the pictures, such as {"HR": x_H}; all rows have the same labels.
    side: of a crop, in pixels; size: of a cell, in inches.
    """
    images, columns = {}, 0
    for name, (ends, others) in rows.items():
        top, left = ((s - side) // 2 for s in ends.x_L.shape[-2:])
        shown = {"bicubic": ends.x_L} | {f"gamma {g:g}": ends.blend(float(g)) for g in gammas} | others
        images |= {f"{name}\n{k}": x[..., top : top + side, left : left + side] for k, x in shown.items()}
        columns = len(shown)
    return pictures(images, columns=columns, size=size)


def losses(history: list[dict], title: str, key: str = "loss"):
    """A training curve with its running mean over a twentieth of the run."""
    table = pd.DataFrame(history).set_index("step")[key]
    with styled():
        fig, ax = plt.subplots(figsize=(6, 2.6))
        ax.plot(table.index, table, lw=0.7, alpha=0.5)
        ax.plot(table.index, table.rolling(max(1, len(table) // 20), min_periods=1).mean(), lw=1.8)
        ax.set(title=title, xlabel="step", ylabel=key, yscale="log" if key == "loss" else "linear")
        fig.tight_layout()
    return fig


class Bar:
    """A callback for trainer.train: a progress bar alone. Stages that follow each other start a new one."""

    def __init__(self, title: str):
        self.title, self.bar = title, None

    def __call__(self, row: dict) -> None:
        if self.bar is None:
            self.bar = tqdm(
                total=row["steps"], initial=row["step"] - 1, desc=f"{self.title}, {row['objective']}"
            )
        self.bar.update()
        if row["step"] == row["steps"]:
            self.bar.close()
            self.bar = None


class Live(Bar):
    """The same, and a curve redrawn in place every twentieth of the run."""

    def __init__(self, title: str):
        super().__init__(title)
        self.history, self.handle = [], None

    def __call__(self, row: dict) -> None:
        super().__call__(row)
        self.history.append(row)
        if row["step"] == row["steps"] or row["step"] % max(1, row["steps"] // 20) == 0:
            self._draw()

    def _draw(self) -> None:
        from IPython.display import display

        fig = losses(self.history, self.title)
        if self.handle is None:
            self.handle = display(fig, display_id=True)
        else:
            self.handle.update(fig)
        plt.close(fig)


def bars(rows: dict[str, Tensor], ticks: list[str], ylabel: str):
    """Groups of bars, one group a tick and one bar of it a row; a dashed line marks 1, where ratios are even.

    rows: {name in the legend: (T,) finite numbers}. ticks: T names. Raises ValueError when a row has another
    length.
    """
    for name, values in rows.items():
        if len(values) != len(ticks):
            raise ValueError(
                f"{name!r} has {len(values)} numbers and there are {len(ticks)} ticks; pass one each"
            )
    width = 0.8 / len(rows)
    with styled():
        fig, ax = plt.subplots(figsize=(7, 2.8))
        for i, (name, values) in enumerate(rows.items()):
            left = (i - (len(rows) - 1) / 2) * width
            ax.bar([t + left for t in range(len(ticks))], [float(v) for v in values], width, label=name)
        ax.axhline(1, color="black", lw=1, ls="--")
        ax.set(ylabel=ylabel)
        ax.set_xticks(range(len(ticks)), ticks)
        ax.grid(visible=False, axis="x")
        ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        fig.tight_layout()
    return fig


def gamma_curves(table: pd.DataFrame, columns: list[str]):
    """One panel per metric against gamma. table: indexed by gamma, as evaluate.sweep gives it."""
    with styled():
        fig, axes = plt.subplots(1, len(columns), figsize=(3.2 * len(columns), 2.6), squeeze=False)
        for ax, name in zip(axes[0], columns, strict=True):
            ax.plot(table.index, table[name].astype(float), "o-", ms=3)
            ax.set(ylabel=axis_label(name), xlabel="gamma (0 fidelity, 1 realism)")
        fig.tight_layout()
    return fig


def spectrum(
    tables: dict[str, pd.DataFrame], x: str, ys: list[str], points: dict[str, pd.Series] | None = None
):
    """Each model's path from gamma 0 (open circle) to 1 (filled): fidelity metric x against each of the
    realism metrics ys, one panel each.

    tables: indexed by gamma, with columns x and ys. points: images without a gamma, a row of scores each.
    """
    with styled():
        fig, axes = plt.subplots(1, len(ys), figsize=(6 * len(ys), 4), squeeze=False)
        for ax, y in zip(axes[0], ys):
            for name, table in tables.items():
                a, b = table[x].astype(float), table[y].astype(float)
                ax.plot(a, b, "-", lw=1.5, label=name, color=colour(name))
                ax.plot(a.iloc[0], b.iloc[0], "o", mfc="white", color=colour(name))
                ax.plot(a.iloc[-1], b.iloc[-1], "o", color=colour(name))
            for name, row in (points or {}).items():
                at = float(row[x]), float(row[y])
                ax.plot(*at, "k*", ms=9)
                ax.annotate(name, at, xytext=(0, 7), textcoords="offset points", fontsize=8, ha="center")
            ax.margins(x=0.12, y=0.1)
            ax.set(xlabel=axis_label(x), ylabel=axis_label(y))
        axes[0, 0].set_title("from fidelity (open) to realism (filled)")
        axes[0, -1].legend(fontsize=8)
        fig.tight_layout()
    return fig


def colour(name: str):
    """The colour of a method, the same in every figure: in order for strategies and recipes, else by hash."""
    known = [*control.strategies(), *RECIPES]
    place = known.index(name) if name in known else zlib.crc32(name.encode())
    return plt.get_cmap("tab20").colors[place % 20]


def axis_label(metric: str) -> str:
    """ "PSNR (dB), higher is better" of a metric's name in evaluate.METRICS; another name as it is."""
    known = METRICS.get(metric)
    return f"{known.label}, {'lower' if known.lower_better else 'higher'} is better" if known else metric
