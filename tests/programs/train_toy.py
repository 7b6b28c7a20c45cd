"""Train the toy task, alone or under Horovod. Usage: train_toy.py EPOCHS --save-dir DIR"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gluon_resnest  # noqa: F401 - before MXNet

# isort: split
from toy_task import Recipe, Regression

from gluon_resnest.training.options import RunOptions
from gluon_resnest.training.run import train
from gluon_resnest.workers import connect


def main() -> None:
    _, epochs, _, save_dir = sys.argv
    workers = connect()
    options = RunOptions(Path(save_dir), checkpoint_steps=4, log_interval=1, tensorboard=False)
    outcome = train(Regression(Recipe(int(epochs)), workers), options, workers)
    if workers.rank == 0:
        print("best", outcome.best["negative_error"], outcome.best_ema["negative_error"])
    workers.close()


if __name__ == "__main__":
    main()
