"""Train the released adapters on a pocket backbone: the paper's stage 1, then its stage 2.

    python tools/pocket/train_adapters.py --tiles FOLDER --backbone FOLDER --out FOLDER --steps 300 300

Both stages see teacher_tiles.py's photographs. In stage 2 a share of them, --teacher, is replaced by the
teacher's picture of the same LQ: 0 is the paper's E3 unchanged, 1 has no photograph left. --weave adds a term
against a pattern of 4 pixels, which the feature maps hardly see. The same command continues a stopped run.
Writes the model into --out (ifcsr.load reads it) and the runs into --out/runs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch.utils.data import Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent))
from train_backbone import Tiles, named, options, tell

from ifcsr_lib import config, data, loss, models, results, trainer
from ifcsr_lib.extras import terms


class Targets(Dataset):
    """Crops of tiles, {"x_H", "x_L", "index", "name"}: in a share of them x_H is the teacher's picture.

    share: 0 to 1; which crops is a function of (seed, index) alone.
    """

    def __init__(self, tiles: Tiles, share: float):
        if not 0 <= share <= 1:
            raise ValueError(f"share={share}; allowed: 0 (photographs alone) to 1 (the teacher alone)")
        self.tiles, self.share = tiles, share

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, i: int) -> dict:
        sample = self.tiles[i]
        x_T = sample.pop("x_T")
        taught = data.uniform(self.tiles.seed + 1, torch.tensor([i])).item() < self.share
        return {**sample, "x_H": x_T} if taught else sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiles", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbone", default="pocket", help="a folder; default: the shipped one")
    parser.add_argument("--steps", type=int, nargs=2, required=True, metavar=("STAGE1", "STAGE2"))
    parser.add_argument("--teacher", type=float, default=0.0, help="share of teacher's pictures in stage 2")
    parser.add_argument("--weave", type=float, default=0.0, help="the setting of that name")
    parser.add_argument("--k", type=float, nargs=2, default=(7.0, 7.0), metavar=("STAGE1", "STAGE2"))
    parser.add_argument("--fidelity", type=Path, help="take stage 1 from this fidelity.safetensors")
    parser.add_argument("--count", type=int, default=2048, help="tiles to learn from")
    parser.add_argument("--patch", type=int, default=128)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    overrides = dict(
        backbone=args.backbone,
        patch=args.patch,
        batch=args.batch,
        lr=args.lr,
        k=args.k[0],
        steps_fidelity=args.steps[0],
        steps_realism=args.steps[1],
    )
    cfg = config.resolve("pocket", args.seed, overrides)
    model, distance = models.new(cfg), loss.feature_distance(cfg)
    tiles, runs = Tiles(args.tiles, args.patch, args.seed, args.count), args.out / "runs"
    if args.fidelity:
        model.load_adapter("fidelity", args.fidelity)
    else:
        stage = trainer.Stage1(model, distance)
        stage.name = named("stage1", argparse.Namespace(tiles=args.tiles, count=args.count))
        trainer.train(stage, Targets(tiles, 0.0), cfg, runs / "stage1", args.steps[0], tell)
        model.save_adapter("fidelity", args.out / "fidelity.safetensors")
    model.cfg = cfg = cfg.replace(k=args.k[1], weave=args.weave)
    stage = terms.stage2(model, distance)
    stage.name = named(stage.name, args)
    trainer.train(stage, Targets(tiles, args.teacher), cfg, runs / "stage2", args.steps[1], tell)
    made = {"tool": "tools/pocket/train_adapters.py", **options(args)}
    inputs = [args.tiles, *filter(None, [args.fidelity])]
    model.eval().save(args.out, results.provenance(cfg, inputs) | {"made": made})


if __name__ == "__main__":
    main()
