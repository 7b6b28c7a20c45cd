"""YAML files of settings, by way of the whole plan."""

from __future__ import annotations

import random
from pathlib import Path

import yaml
from values import NUMBERS, WORDS, mutated

from gluon_resnest.training.flags import _parser, parse_arguments
from gluon_resnest.training.plan import plan
from gluon_resnest.training.recipe import recipe_of
from gluon_resnest.training.setup import RunOptions
from train_imagenet import resolve_recipe

_NAMES = sorted({action.dest for action in _parser(None)._actions} - {"help"})


def make(rng: random.Random, folder: Path) -> Path:
    path = folder / "a.yaml"
    kind = rng.randrange(5)
    if kind == 0:  # a run's file, damaged
        options = RunOptions(Path("t.rec"), Path("run")).as_dict()
        whole = {"recipe": recipe_of("resnest14").as_dict(), "run": options, "workers": 2}
        content = mutated(yaml.safe_dump(whole, sort_keys=False).encode(), rng)
    elif kind == 1:  # nested and aliased
        depth = rng.choice((2, 30, 900, 20_000))
        bomb = "".join(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
                       for before, name in zip("abcdefghi", "bcdefghij"))
        content = rng.choice((
            "lr: " + "[" * depth, "lr: " + "[" * depth + "]" * depth, "{a: " * depth,
            "- " * depth, "&a [*a]", f"a: &a [x, y]\n{bomb}lr: *j", "recipe: &r {lr: *r}",
            "x: &x {lr: 1}\n<<: *x", "? " * depth)).encode()
    else:  # settings that nobody means
        lines = ["model: resnest14"] if rng.random() < 0.7 else []
        for _ in range(rng.choice((1, 1, 2, 6))):
            name = rng.choice(_NAMES)
            if rng.random() < 0.3:
                name = rng.choice(("lr", "epochs", "classes", "seed", "momentum", "wd", "keep"))
            value = rng.choice((lambda: str(rng.choice(NUMBERS)), lambda: rng.choice(WORDS),
                                lambda: rng.choice(("0.5", "12", "1e-1", "40")),
                                lambda: str(rng.randrange(1, 300)), lambda: "true",
                                lambda: yaml.safe_dump(rng.choice(WORDS)).strip(),
                                lambda: "[1, {2: 3}]", lambda: "{1: 2}"))()
            lines.append(f"{name}: {value}")
        content = "\n".join(lines).encode("utf-8", "surrogatepass")
        content = mutated(content, rng) if rng.random() < 0.2 else content
    path.write_bytes(content)
    return path


def read(path: Path) -> None:
    args = parse_arguments(["-c", str(path)])
    recipe = resolve_recipe(args, args.classes or 10)
    plan(recipe, 100_000, world_size=2, prove=True)
