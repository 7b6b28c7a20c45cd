"""The trainer in turns with a bare loop: the last line of rank 0's output is JSON.

Usage: run_trainer.py RECORDS FOLDER MODEL SIZE BATCH TURN TURNS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks/ is not installed

from benchmarks.alternating import AlternatingTrainer, as_result
from gluon_resnest.tasks.classification.recipe import recipe_of
from gluon_resnest.tasks.classification.task import ClassificationTask, Source
from gluon_resnest.training.options import RunOptions
from gluon_resnest.training.run import train
from gluon_resnest.workers import connect


def main(records: str, folder: str, model: str, size: str, batch: str, turn: str,
         turns: str) -> None:
    workers = connect()
    AlternatingTrainer.turn = int(turn)
    # A rate that changes nothing: the weights of both loops must stay finite numbers.
    recipe = recipe_of(model, train_size=int(size), batch_size=int(batch), epochs=1000,
                       warmup_epochs=0, base_lr=1e-6, mixup_alpha=0.0, auto_aug=False)
    steps = int(turn) * (int(turns) + 2)
    task = ClassificationTask(recipe, Source(Path(records)), workers)
    if len(task.training) < steps:
        sys.exit(f"{len(task.training)} steps an epoch are fewer than the {steps} asked for")
    options = RunOptions(Path(folder), steps=steps, overwrite=True, checkpoint_minutes=0)
    trainers: list[AlternatingTrainer] = []

    def make_trainer(*parts: Any) -> AlternatingTrainer:
        trainers.append(AlternatingTrainer(*parts))
        return trainers[0]

    train(task, options, workers, make_trainer=make_trainer)
    if workers.rank == 0:
        print(json.dumps(as_result(trainers[0])), flush=True)
    workers.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
