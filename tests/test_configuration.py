"""Flags from YAML files, and what each flag becomes."""

from __future__ import annotations

import pytest
import yaml

from gluon_resnest.errors import InputError
from gluon_resnest.tasks.classification.flags import parse_arguments
from gluon_resnest.tasks.classification.recipe import recipe_of
from gluon_resnest.tasks.classification.task import Source
from gluon_resnest.training.options import RunOptions, as_settings


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
    source = Source(tmp_path / "t.rec", pretrained=tmp_path / "w.params")
    options = RunOptions(tmp_path / "run", eval_frequency=3, override=True, keep=7, overwrite=True)
    args = parse(tmp_path / "config.yaml", {
        "recipe": recipe.as_dict(), "run": {**as_settings(source), **options.as_dict()},
        "workers": 4})
    flags = {name: value for name, value in vars(args).items() if name in recipe.as_dict()}
    model = flags.pop("model")
    assert recipe_of(model, **flags) == recipe
    assert args.rec_train == source.rec_train
    for name in ("save_dir", "eval_frequency", "keep"):
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
    ("lr: 0.1\nkeep: 2\nlr: 0.2", "line 3: 'lr' is there twice: delete one"),
    ("base-lr: 0.1\nbase_lr: 0.2", "has base_lr twice"),
    ("epochs: 1\nnum-epochs: 2", "has epochs and num_epochs, which set the same"),
    ("mixup: true\nno-mixup: true", "has mixup and no_mixup, which set the same"),
    ("recipe: {lr: 1}\nlr: 2", "has lr twice"),
    ("a: &a [x, y]\nlr: *a", "line 2: aliases (*) are not allowed here"),
    ("x: {lr: 1}\n<<: {keep: 3}", "line 2: '<<' merges nothing here"),
    ("lr: " + "[" * 900 + "]" * 900, "nested more than 20 deep"),
    ("{lr: " * 900, "nested more than 20 deep"),
    ("recipe: {1: 2}", "'1' is no name"),
    ("lr: 2024-01-01", "lr: 2024-01-01, which --lr does not take"),
    ("epochs: 1:30", "epochs: 1:30, which --epochs does not take"),
    ("epochs: 0x7fffffffffffffffffff", "which --epochs does not take"),
    ("keep: !!int abc", "line 1: 'abc' is no decimal number"),
    ("keep: " + "9" * 5000, "line 1: a number of 5,000 digits"),
    ("keep: '" + "9" * 4000 + "'", "which --keep does not take"),
    ("keep: 99999999999", "is too large: at most 2,147,483,647"),
    ("data-nthreads: 2000000000", "is too large: at most 1,024"),
    ("'" + "x" * 900 + "': 1", "has the unknown setting 'xxx"),
    ("sharding: " + "x" * 100_000, "must be one of fixed, global"),
    ("!!binary aGVsbG8=: 1", "could not determine a constructor"),
    ("? [1, 2]\n: 3", "found unhashable key"),
    ("lr: \x07", "special characters are not allowed"),
])
def test_bad_files(content, words, tmp_path):
    with pytest.raises(InputError) as error:
        parse(tmp_path / "a.yaml", content)
    assert words in str(error.value)
    assert "a.yaml" in str(error.value)
    assert len(str(error.value)) < 700


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"cannot read -c .*none.yaml: No such file"):
        parse_arguments(["-c", str(tmp_path / "none.yaml")])


@pytest.mark.parametrize(("overrides", "words"), [
    ({"ema": 1.0}, "--ema 1.0 is too large"), ({"accumulate": 0}, "--accumulate 0"),
    ({"accumulate": 65, "batch_size": 64}, "--accumulate 65 is more than the --batch-size 64"),
    ({"clip_norm": -1}, "--clip-norm -1"), ({"temperature": 0}, "--temperature 0 must be above"),
    ({"hard_weight": 1.5}, "--hard-weight 1.5 is too large: give at most 1"),
    ({"batch_size": 10**7}, "--batch-size 10000000 is too large: give at most 1,000,000"),
    ({"batch_size": 10**5}, "arrays of more than 2,147,483,647 numbers, which MXNet cannot"),
    ({"train_size": 10**5}, "--input-size 100000 is too large: give at most 8192"),
    ({"test_size": 10**5}, "--test-size 100000 is too large"),
    ({"classes": 10**9}, "--classes 1000000000 is too large"),
    ({"epochs": 10**9}, "--num-epochs 1000000000 is too large"),
    ({"seed": 10**30}, "--seed 1000000000000000000000000000000 is too large"),
    ({"lr": 1e300}, "--lr 1e+300 is too large"), ({"temperature": 1e9}, "--temperature"),
    ({"model": "resnest50_1s999x64d"}, "cardinality 999 of resnest50_1s999x64d is too large"),
    ({"model": "resnest50_99s1x64d"}, "radix 99 of resnest50_99s1x64d is too large"),
    ({"model": "resnest50_1s1x99999d"}, "unknown model 'resnest50_1s1x99999d'"),
    ({"model": "resnest50_1s1x9999d"}, "width 9999 of resnest50_1s1x9999d is too large"),
    ({"model": "x" * 10**6}, "unknown model 'xxx"),
    ({"teacher": "resnest5"}, "resnest5"), ({"teacher_params": "a"}, "needs --teacher"),
])
def test_settings_that_cannot_be(overrides, words):
    with pytest.raises(InputError) as error:
        recipe_of(overrides.pop("model", "resnest14"), **overrides)
    assert words in str(error.value)
    assert len(str(error.value)) < 500


def test_numbers_of_yaml_are_decimal_and_the_rest_is_text(tmp_path):
    """As people mean them: YAML 1.1 reads 1:30 as 90, 010 as 8 and 1e-1 as text."""
    args = parse(tmp_path / "a.yaml", "base-lr: 1e-1\nepochs: 010\nclasses: 1e1\n"
                 "save-dir: 2024-01-01\nrec-train: 0x10\n")
    assert (args.base_lr, args.epochs, args.classes) == (0.1, 10, 10)
    assert (str(args.save_dir), str(args.rec_train)) == ("2024-01-01", "0x10")


def test_differences_are_named_by_their_flags():
    now, then = recipe_of("resnest14", epochs=5, warmup_epochs=1), recipe_of("resnest14")
    assert now.differences(now.as_dict()) == []
    assert now.differences(then.as_dict()) == [
        "--warmup-epochs 5 (now 1)", "--num-epochs 270 (now 5)"]
    older = {name: value for name, value in now.as_dict().items() if name != "ema"}
    assert now.differences(older) == []  # of a version that had no moving average
    assert recipe_of("resnest14", epochs=5, warmup_epochs=1, ema=0.9).differences(older) == [
        "--ema 0.0 (now 0.9)"]
