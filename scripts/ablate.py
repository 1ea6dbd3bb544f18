"""What each loss and each choice of the mixer's training does: short runs with one thing changed, measured alike.

    ablate.py --people-from runs/default/people --out out/ablations            all of them, about three minutes each
    ablate.py … --only identity-0.5 identity-1                                 some

A run goes on from the shipped mixer for --steps steps with its last part's settings and one of them changed; those
whose network has another form start from nothing (and are compared with `new`). Figures are `study.py mixers`'s, on
people that no training has seen. A run that is there is not made again.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from study import draw_people, measure, print_table, swapped

from latentswap.inversion.optimise import EXACT_ROWS
from latentswap.networks import load_networks, load_trunks
from latentswap.runtime.memory import keep_freed_memory
from latentswap.runtime.precision import bfloat16_is_native
from latentswap.swappers.mixer import LatentMixer, MixerConfig
from latentswap.train.bank import Bank, BankConfig, build_bank
from latentswap.train.loop import LoopConfig, train
from latentswap.train.mixer import MixerTrainee, MixerTraining
from latentswap.train.sample import BROADCAST
from latentswap.weights.assets import asset_path

SHIPPED = MixerTraining(
    mixer=MixerConfig(hidden=(512, 512), rows=EXACT_ROWS, identity_dim=128),
    identity=2.5,
    away=0.4,
    detail=6.0,
    features=1.0,
)
CHANGES: dict[str, dict[str, object]] = {
    "as-shipped": {},
    "no-identity": {"identity": 0.0},
    "no-latent": {"latent": 0.0, "colour": 0.0},
    "no-shape": {"shape": 0.0},
    "no-keep": {"keep": 0.0},
    "no-away": {"away": 0.0},
    "no-picture-of-the-source": {"detail": 0.0, "features": 0.0},
    "no-pixel": {"pixel": 0.0},
    "no-same-pairs": {"same": 0.0},
    "true-codes-only": {"inverted": 0.0},
    "identity-0.6": {"identity": 0.6},
    "identity-1.2": {"identity": 1.2},
    "identity-5": {"identity": 5.0},
    "identity-10": {"identity": 10.0},
    "latent-0.6": {"latent": 0.6},
    "latent-2.4": {"latent": 2.4},
}
NEW: dict[str, dict[str, object]] = {
    "new": {},
    "new-narrow": {"hidden": (128, 128)},
    "new-wide": {"hidden": (1024, 1024)},
    "new-paper-depth": {"hidden": (1024, 1024, 512, 512)},
    "new-without-identity-input": {"identity_dim": 0},
    "new-all-rows": {"rows": None},
}
BROADCAST_NAME = "broadcast-w"  # trained on one w in all rows, ψ 0.7, true codes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*CHANGES, BROADCAST_NAME, *NEW]
    parser.add_argument("--people-from", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--people", type=int, default=8000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    args = parser.parse_args()

    keep_freed_memory()
    nets = load_networks(offline=True)
    drawing, identity, mesh = load_trunks(offline=True)
    if bfloat16_is_native("cpu"):
        drawing.half_precision()
    bank = Bank.load(args.people_from, BankConfig(people=args.people))
    broadcast = BankConfig(people=min(args.people, 1000), codes=BROADCAST)
    for name in args.only:
        folder = args.out / name
        if (folder / "mixer.safetensors").exists():
            continue
        start, config, people = LatentMixer.load(asset_path("mixer")), SHIPPED, bank
        if name in NEW:
            start, config = None, replace(SHIPPED, mixer=replace(SHIPPED.mixer, **NEW[name]))
        elif name == BROADCAST_NAME:
            build_bank(drawing, identity, mesh, args.out / "people-broadcast", broadcast)
            people = Bank.load(args.out / "people-broadcast", broadcast)
            config = replace(SHIPPED, inverted=0.0, jitter=0.0)
        else:
            config = replace(SHIPPED, **CHANGES[name])
        encoder = nets.encoder if config.inverted else None
        trainee = MixerTrainee(drawing, identity, mesh, people, config, encoder, start)
        loop = LoopConfig(out=folder, steps=args.steps, lr=5e-4, warmup=10, sample_every=10_000)
        train(
            trainee, loop, lambda p, name=name: print(f"{name} {p.step}/{p.steps} {p.losses['total']:.3f}", flush=True)
        )
        trainee.mixer.save(folder / "mixer.safetensors", summary={"change": name, "steps": args.steps})

    with torch.no_grad():
        people = draw_people(nets, args.pairs)
        rows = []
        for name in args.only:
            ws_PLD = swapped(nets, LatentMixer.load(args.out / name / "mixer.safetensors"), people)
            rows.append((name, measure(nets, None, ws_PLD, people)[0]))
    print_table(rows)


if __name__ == "__main__":
    main()
