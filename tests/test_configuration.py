"""Flags from YAML files, and what each flag becomes."""

from __future__ import annotations

import pytest
import yaml

from gluon_resnest.errors import InputError
from gluon_resnest.training.flags import parse_arguments
from gluon_resnest.training.recipe import recipe_of
from gluon_resnest.training.setup import RunOptions


def parse(path, content, *flags):
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return parse_arguments(["-c", str(path), *flags])


def test_a_file_gives_flags_by_their_names(tmp_path):
    args = parse(tmp_path / "a.yaml", """
model: resnest26
base-lr: 1e-1          # a string, for YAML
num_epochs: 12
input-size: 64
mixup: false
label-smoothing: true  # as the flag alone
no-wd: true
accumulate: 2
rec-train: data/train.rec
checkpoint-minutes: 0.5
ema: 0.99
""", "--num-epochs", "13")
    assert (args.model, args.base_lr, args.epochs, args.train_size) == ("resnest26", 0.1, 13, 64)
    assert (args.mixup, args.label_smoothing, args.wd_all) == (False, 0.1, False)
    assert (args.accumulate, str(args.rec_train), args.checkpoint_minutes, args.ema) == (
        2, "data/train.rec", 0.5, 0.99)
    assert args.keep == 2


def test_the_config_of_a_run_is_accepted_back(tmp_path):
    recipe = recipe_of("resnest50", lr=0.3, epochs=7, warmup_epochs=1, mixup_alpha=0.0,
                       auto_aug=False, ema=0.5, teacher="resnest101", seed=5)
    options = RunOptions(tmp_path / "t.rec", tmp_path / "run", eval_frequency=3, override=True,
                         pretrained=tmp_path / "w.params", keep=7, overwrite=True)
    args = parse(tmp_path / "config.yaml", {"recipe": recipe.as_dict(), "run": options.as_dict(),
                                            "workers": 4})
    flags = {name: value for name, value in vars(args).items() if name in recipe.as_dict()}
    model = flags.pop("model")
    assert recipe_of(model, **flags) == recipe
    for name in ("rec_train", "save_dir", "eval_frequency", "keep"):
        assert getattr(args, name) == getattr(options, name), name
    assert str(args.params) == str(tmp_path / "w.params")
    assert not args.use_pretrained
    # What was asked for then is not asked for again.
    assert not args.overwrite
    assert not args.override


@pytest.mark.parametrize(("content", "flags", "expected"), [
    ("base_lr: 0.1", ("--lr", "0.01"), {"lr": 0.01, "base_lr": None}),
    ("lr: 0.1", ("--base-lr", "0.2"), {"lr": None, "base_lr": 0.2}),
    ("mixup_alpha: 0.0", ("--mixup",), {"mixup": True, "mixup_alpha": None}),
    ("mixup_alpha: 0.4", ("--mixup",), {"mixup": True, "mixup_alpha": 0.4}),
    ("mixup: false", ("--mixup-alpha", "0.3"), {"mixup": None, "mixup_alpha": 0.3}),
    ("mixup: true", ("--no-mixup",), {"mixup": False, "mixup_alpha": None}),
])
def test_the_command_line_goes_before_a_file(content, flags, expected, tmp_path):
    args = parse(tmp_path / "a.yaml", content, *flags)
    assert {name: getattr(args, name) for name in expected} == expected


@pytest.mark.parametrize(("content", "words"), [
    ("learning_rate: 1", "unknown setting 'learning_rate'"),
    ("base_lrr: 1", "did you mean base_lr"),
    ("keep: 0", "keep: 0, which --keep does not take ('0' must be a whole number of at least 1)"),
    ("mixup: 1", "mixup: 1, which must be true or false"),
    ("sharding: both", "must be one of fixed, global"),
    ("lr: [1, 2]", "which must be a single value"),
    ("- lr", "must have settings such as"),
    ("lr: {", "is not YAML: line 1: expected the node content"),
    ("!!python/object/apply:os.system ['true']", "line 1: could not determine a constructor"),
    ("", "must have settings such as"),
])
def test_bad_files(content, words, tmp_path):
    with pytest.raises(InputError) as error:
        parse(tmp_path / "a.yaml", content)
    assert words in str(error.value)
    assert "a.yaml" in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"cannot read -c .*none.yaml: No such file"):
        parse_arguments(["-c", str(tmp_path / "none.yaml")])


@pytest.mark.parametrize(("overrides", "words"), [
    ({"ema": 1.0}, "--ema 1.0 is too large"), ({"accumulate": 0}, "--accumulate 0"),
    ({"accumulate": 65, "batch_size": 64}, "--accumulate 65 is more than the --batch-size 64"),
    ({"clip_norm": -1}, "--clip-norm -1"), ({"temperature": 0}, "--temperature 0 must be above"),
    ({"hard_weight": 1.5}, "--hard-weight 1.5 must be at most 1"),
    ({"teacher": "resnest5"}, "resnest5"), ({"teacher_params": "a"}, "needs --teacher"),
])
def test_settings_that_cannot_be(overrides, words):
    with pytest.raises(InputError) as error:
        recipe_of("resnest14", **overrides)
    assert words in str(error.value)


def test_differences_are_named_by_their_flags():
    now, then = recipe_of("resnest14", epochs=5, warmup_epochs=1), recipe_of("resnest14")
    assert now.differences(now.as_dict()) == []
    assert now.differences(then.as_dict()) == [
        "--num-epochs 270 (now 5)", "--warmup-epochs 5 (now 1)"]
    older = {name: value for name, value in now.as_dict().items() if name != "ema"}
    assert now.differences(older) == []  # of a version that had no moving average
    assert recipe_of("resnest14", epochs=5, warmup_epochs=1, ema=0.9).differences(older) == [
        "--ema 0.0 (now 0.9)"]
