"""The trainer in turns with a bare loop: the last line of rank 0's output is JSON.

Usage: run_trainer.py RECORDS FOLDER MODEL SIZE BATCH TURN TURNS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks/ is not installed

from benchmarks.alternating import AlternatingTrainer, as_result
from gluon_resnest.tasks.classification.build import RunOptions
from gluon_resnest.tasks.classification.recipe import recipe_of
from gluon_resnest.workers import connect


def main(records: str, folder: str, model: str, size: str, batch: str, turn: str,
         turns: str) -> None:
    workers = connect()
    AlternatingTrainer.turn = int(turn)
    # A rate that changes nothing: the weights of both loops must stay finite numbers.
    recipe = recipe_of(model, train_size=int(size), batch_size=int(batch), epochs=1000,
                       warmup_epochs=0, base_lr=1e-6, mixup_alpha=0.0, auto_aug=False)
    steps = int(turn) * (int(turns) + 2)
    trainer = AlternatingTrainer(
        recipe, RunOptions(Path(records), Path(folder), steps=steps, overwrite=True,
                           checkpoint_minutes=0), workers)
    if len(trainer.loader) < steps:
        sys.exit(f"{len(trainer.loader)} steps an epoch are fewer than the {steps} asked for")
    trainer.run()
    if workers.rank == 0:
        print(json.dumps(as_result(trainer)), flush=True)
    workers.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
