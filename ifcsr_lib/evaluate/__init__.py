"""Scores: the metrics of the paper over images or along gamma (metrics), and its benchmarks (benchmark)."""

from .metrics import (
    EPS,
    GAMMAS,
    LUMA,
    METRICS,
    Metric,
    best_gamma,
    left_out,
    missing,
    psnr_curve,
    reported,
    score,
    summary,
    sweep,
)

__all__ = [
    "EPS",
    "GAMMAS",
    "LUMA",
    "METRICS",
    "Metric",
    "best_gamma",
    "left_out",
    "missing",
    "psnr_curve",
    "reported",
    "score",
    "summary",
    "sweep",
]
