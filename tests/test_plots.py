"""Pictures of runs and scripts/plot_run.py: what is drawn is what metrics.jsonl says."""

from __future__ import annotations

import itertools
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, run_tool

from gluon_resnest.drawing import run_plots as plots
from gluon_resnest.drawing.curves import colours_of, draw_line, readable
from gluon_resnest.drawing.run_plots import draw_learning_curve, draw_runs
from gluon_resnest.errors import InputError
from gluon_resnest.runs.history import run_labels
from gluon_resnest.runs.metrics import MetricsLog
from gluon_resnest.tasks.classification.ablation import find_recipe
from gluon_resnest.tasks.classification.history import read_run
from gluon_resnest.tasks.classification.recipe import recipe_of

PNG = b"\x89PNG\r\n\x1a\n"
SCRIPT = "scripts/plot_run.py"
# matplotlib 3.9, the last for Python 3.9, calls pyparsing by names of old.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:matplotlib.*")


def write_run(folder: Path, rng: np.random.Generator, epochs: float = 4, recipe=None,
              average: bool = False, validate: bool = True, every: int = 2,
              exchange: float | None = 0.02, **start) -> Path:
    """A run of ten steps an epoch, as the trainer writes it."""
    folder.mkdir(parents=True)
    if recipe is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump({"recipe": recipe.as_dict()}))
    log = MetricsLog(folder, tensorboard=False)
    log.write("start", step=0, model="resnest50", workers=2, global_batch=32, steps_per_epoch=10,
              epochs=int(np.ceil(epochs)), **start)
    for step in range(1, round(10 * epochs) + 1):
        if step % every == 0:
            log.write("step", step=step, epoch=step / 10, loss=5 / step + rng.random() / 10,
                      lr=0.1 / step, images_per_second=100 + rng.random(), data_seconds=0.01,
                      step_seconds=0.1, allreduce_seconds=exchange)
        if step % 10:
            continue
        epoch = step // 10
        log.write("epoch", epoch=epoch, step=step, loss=5 / step, lr=0.1 / step, seconds=1.0,
                  data_seconds=0.05, images_per_second=100 + rng.random())
        for event in ("validation", *(["validation_ema"] if average else [])):
            if validate:
                log.write(event, epoch=epoch, step=step, images=9, skipped=0, loss=4 / epoch,
                          top1=min(80, 10 * epoch) + rng.random(), top5=90.0)
    log.close()
    return folder


def events(folder: Path, event: str) -> list[dict]:
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["event"] == event]


# ---- what a run directory tells ----


def test_figures_of_a_run(tmp_path, rng):
    run = read_run(write_run(tmp_path / "run", rng, epochs=5.4, average=True))
    top1 = [record["top1"] for record in events(run.folder, "validation")]
    assert run.best() == (max(top1), 1 + int(np.argmax(top1)))
    assert run.best(average=True)[0] == max(
        record["top1"] for record in events(run.folder, "validation_ema"))
    assert run.epochs_done == 5.4
    assert run.last_loss == 5 / 50
    assert run.images_per_second == events(run.folder, "epoch")[-1]["images_per_second"]
    assert run.breaks == []
    assert run.reference is None


def test_a_run_before_its_first_epoch(tmp_path, rng):
    run = read_run(write_run(tmp_path / "run", rng, epochs=0.4))
    assert (run.epochs, run.best(), run.epochs_done) == ([], None, 0.4)
    assert run.last_loss == events(run.folder, "step")[-1]["loss"]


def test_what_was_done_anew_counts_as_it_was_then(tmp_path, rng):
    folder = write_run(tmp_path / "run", rng, epochs=3)
    with (folder / "metrics.jsonl").open("a") as file:
        for record in ({"event": "rollback", "step": 25, "to_step": 20},
                       {"event": "start", "step": 20, "steps_per_epoch": 10, "epochs": 3},
                       {"event": "step", "step": 22, "loss": 7.0},
                       {"event": "validation", "epoch": 2, "step": 20, "top1": 1.0}):
            file.write(json.dumps(record) + "\n")
    run = read_run(folder)
    assert [record["step"] for record in run.steps] == list(range(2, 23, 2))
    assert run.steps[-1] == {"event": "step", "step": 22, "loss": 7.0, "epoch": 2.2}
    assert [record["step"] for record in run.epochs] == [10, 20, 30]
    assert [record["top1"] for record in run.validations][1:] == [1]
    assert run.breaks == [(2.5, "weights set back"), (2.0, "resumed")]


def test_a_run_of_an_older_version(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"event": "step", "step": 2, "loss": 1.5, "lr": 0.1, "data_share": 0.5}\n'
        '{"event": "epoch", "epoch": 1, "step": 2, "loss": 1.0, "lr": 0.1}\n')
    run = read_run(tmp_path)
    assert (run.steps, run.epochs_done, run.last_loss) == ([], 1, 1)
    draw_runs([run], tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(("recipe", "expected"), [
    (find_recipe("resnest-50").resolve(), (81.13, "resnest-50", "paper, Ablation Study", ())),
    (find_recipe("resnest-50").resolve(epochs=90, batch_size=64),
     (81.13, "resnest-50", "paper, Ablation Study", ("batch_size", "epochs"))),
    (recipe_of("resnest14"), (75.75, "resnest14", "GluonCV's published weights", ())),
    (recipe_of("resnest50", classes=10), None),
])
def test_the_published_accuracy_is_of_the_runs_recipe(tmp_path, rng, recipe, expected):
    found = read_run(write_run(tmp_path / "run", rng, 1, recipe)).reference
    assert (found and (found.top1, found.model, found.source, found.overridden)) == expected


@pytest.mark.parametrize("content", ["", "[]", "recipe: 7", "recipe: {model: none}", "a: [",
                                     "recipe: {model: resnest50, epochs: many}"])
def test_settings_that_cannot_be_read_give_no_reference(tmp_path, rng, content):
    folder = write_run(tmp_path / "run", rng, 1)
    (folder / "config.yaml").write_text(content)
    assert read_run(folder).reference is None


def test_labels_are_as_short_as_tells_runs_apart():
    assert run_labels([Path("/a/b/c")]) == ["c"]
    assert run_labels([Path("/a/one"), Path("/a/two")]) == ["one", "two"]
    assert run_labels([Path("/a/x/run"), Path("/b/x/run"), Path("/b/y/run"), Path("/b/z")]) == [
        "a/x/run", "b/x/run", "y/run", "z"]


def test_long_names_and_signs_of_mathematics():
    assert readable("a\n$x$") == r"a \$x\$"
    assert len(readable("a" * 500)) <= 110


# ---- what is drawn ----


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, in the order in which they are."""
    figures, save = [], plots.save
    monkeypatch.setattr(plots, "save", lambda figure, *where, **options: (
        figures.append(figure) or save(figure, *where, **options)))
    return figures


def lines(axes) -> list[tuple[list, list, str]]:
    return [(list(line.get_xdata()), list(line.get_ydata()), line.get_linestyle())
            for line in axes.lines if len(line.get_xdata())]


def legend(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()] if axes.get_legend() else []


def test_lines_are_the_figures_of_the_run(tmp_path, rng, drawn):
    recipe = find_recipe("resnest-50").resolve(epochs=12)
    folder = write_run(tmp_path / "run", rng, 12, recipe, average=True)
    draw_runs([read_run(folder)], tmp_path / "run.png")
    _, loss, top1, rate, speed, shares = drawn[0].axes
    epochs = list(range(1, 13))
    assert lines(loss) == [(epochs, [r["loss"] for r in events(folder, event)], "-")
                           for event in ("epoch", "validation")]
    assert lines(top1)[:2] == [
        (epochs, [r["top1"] for r in events(folder, "validation")], "-"),
        (epochs, [r["top1"] for r in events(folder, "validation_ema")], "--")]
    assert lines(top1)[2][:2] == ([0, 1], [81.13, 81.13])  # from side to side
    assert legend(top1) == ["weights", "averaged weights (EMA)", "paper: 81.13 %"]
    steps = events(folder, "step")
    assert lines(rate) == [([r["epoch"] for r in steps], [r["lr"] for r in steps], "-")]
    assert lines(speed) == [(epochs, [r["images_per_second"] for r in events(folder, "epoch")],
                             "-")]
    waiting, exchange = lines(shares)
    assert waiting == (epochs, pytest.approx([5] * 12), "-")
    assert exchange == (epochs, pytest.approx([20] * 12), ":")
    assert drawn[0]._suptitle.get_text() == "run\nresnest50, 2 workers, 32 images a step"


def test_few_epochs_show_their_steps(tmp_path, rng, drawn):
    folder = write_run(tmp_path / "run", rng, 1, validate=False, exchange=None)
    draw_runs([read_run(folder)], tmp_path / "run.png")
    _, loss, top1, _, _, shares = drawn[0].axes
    assert legend(loss) == ["training, by step", "training, mean of the epoch"]
    assert lines(loss)[0][1] == [r["loss"] for r in events(folder, "step")]
    assert [text.get_text() for text in top1.texts] == ["none in this run"]
    assert lines(shares) == [([0.2, 0.4, 0.6, 0.8, 1.0], pytest.approx([10] * 5), "-")]
    assert shares.get_title() == "share of the time spent waiting for data"


def test_each_run_and_each_model_once(tmp_path, rng, drawn):
    recipes = [find_recipe(name).resolve() for name in ("resnest-50", "resnest-50", "2s1x64d")]
    runs = [read_run(write_run(tmp_path / f"run{number}", rng, 3, recipe))
            for number, recipe in enumerate(recipes)]
    draw_runs(runs, tmp_path / "runs.svg", title="three")
    assert (tmp_path / "runs.svg").read_bytes().startswith(b"<?xml")
    head, loss, top1, *_ = drawn[0].axes
    assert legend(head) == ["run0", "run1", "run2"]
    assert legend(top1) == ["resnest-50, paper: 81.13 %", "2s1x64d, paper: 80.64 %"]
    colours = [line.get_color() for line in loss.lines if line.get_linewidth() > 1]
    assert colours == colours_of(3)
    assert top1.lines[-1].get_color() == colours[2]  # of that run alone
    assert drawn[0]._suptitle.get_text() == "three"
    draw_runs(runs[:1], tmp_path / "run.png", reference=77)
    assert legend(drawn[1].axes[2]) == ["reference: 77.00 %"]


@pytest.mark.parametrize(("count", "epochs"), [(1, 40), (6, 3), (9, 0.6)])
def test_nothing_overlaps(tmp_path, rng, drawn, count, epochs):
    """Panels with all their text and legends are apart from each other and within the page."""
    names = [f"resnest50-fast-{number}s1x64d-{'with-a-very-long-name-' * (number % 5)}of-{'$' * 2}"
             for number in range(count)]
    recipe = recipe_of("resnest50")
    runs = [read_run(write_run(tmp_path / name, rng, epochs, recipe, average=True, every=1))
            for name in names]
    draw_runs(runs, tmp_path / "out" / "runs.png")
    (figure,) = drawn
    figure.canvas.draw()
    boxes = [axes.get_tightbbox(figure.canvas.get_renderer())
             for axes in figure.axes[0 if count > 1 else 1:]]
    boxes.append(figure._suptitle.get_window_extent())
    for one, other in itertools.combinations(boxes, 2):
        assert not (one.x0 < other.x1 - 1 and other.x0 < one.x1 - 1
                    and one.y0 < other.y1 - 1 and other.y0 < one.y1 - 1), (one, other)
    width, height = figure.canvas.get_width_height()
    assert all(box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
               for box in boxes)


def test_twelve_colours_differ():
    assert len(set(colours_of(12))) == 12
    assert len(set(colours_of(7))) == 7


def test_smooth_is_a_centred_mean_of_a_twentieth(rng):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    x, y = np.arange(100.0), rng.random(100)
    y[40] = np.nan
    draw_line(axes, (x, y), "#000000", smooth=True)
    plain, smooth = (line.get_ydata() for line in axes.lines)
    np.testing.assert_array_equal(plain, y)
    for place in range(100):
        reach = min(2, place, 99 - place)
        mean = np.nanmean(y[place - reach:place + reach + 1]) if place != 40 else np.nan
        np.testing.assert_allclose(smooth[place], mean, rtol=1e-9)


def test_many_steps_are_drawn_as_means(rng):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    y = rng.random(4500)
    y[0], y[3:6] = np.nan, np.nan
    draw_line(axes, (np.arange(4500.0), y), "#000000")
    (line,) = axes.lines
    assert len(line.get_xdata()) == 1500
    np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 4500, 3))
    np.testing.assert_allclose(line.get_ydata()[[0, 1, 7]],
                               [np.mean(y[1:3]), np.nan, np.mean(y[21:24])])


# ---- the picture that training draws ----


def test_learning_curve(tmp_path, rng, drawn):
    folder = write_run(tmp_path / "run", rng, 11, average=True)
    draw_learning_curve(folder / "metrics.jsonl", folder / "curve.png", "resnest50, 2 worker(s)")
    assert (folder / "curve.png").read_bytes().startswith(PNG)
    losses, accuracy, rate = drawn[0].axes
    epochs = list(range(1, 12))
    assert [line[1] for line in lines(losses)] == [
        [r["loss"] for r in events(folder, event)] for event in ("epoch", "validation")]
    assert lines(accuracy) == [
        (epochs, [r["top1"] for r in events(folder, event)], style)
        for event, style in (("validation", "-"), ("validation_ema", "--"))]
    assert lines(rate) == [(epochs, [0.1 / r["step"] for r in events(folder, "epoch")], ":")]
    assert legend(accuracy) == ["validation top-1", "of averaged weights", "learning rate"]


def test_a_run_does_not_end_for_its_learning_curve(tmp_path, rng, capsys):
    folder = write_run(tmp_path / "run", rng, 1)
    draw_learning_curve(folder / "metrics.jsonl", Path("/proc/curve.png"), "title")
    (folder / "metrics.jsonl").write_text('damage\n{"event": "step"}\n')
    draw_learning_curve(folder / "metrics.jsonl", folder / "curve.png", "title")
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: no learning curve: cannot write /proc/curve.png: ")
    assert second.startswith("warning: no learning curve: line 1 of ")
    assert [path.name for path in folder.iterdir()] == ["metrics.jsonl"]


# ---- the tool ----


@pytest.fixture
def tool(capsys, monkeypatch):
    """Run the script in this process: (exit code, stdout, stderr)."""
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", [SCRIPT, *map(str, arguments)])
        try:
            runpy.run_path(str(ROOT / SCRIPT), run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code
        return (code, *capsys.readouterr())

    return call


def test_plot_run(tmp_path, rng):
    folder = write_run(tmp_path / "run", rng, 6, find_recipe("resnest-50").resolve(epochs=6))
    done = run_tool(SCRIPT, folder)
    run = read_run(folder)
    picture, header, row, note = done.stdout.splitlines()
    assert picture == f"{folder}/run.png"
    assert header.split("  ")[0] == "run"
    assert row.split() == ["run", "6", "of", "6", f"{run.best()[0]:.2f}", f"{run.best()[1]}",
                           f"{run.last_loss:.4f}", f"{run.images_per_second:.1f}"]
    assert len(header) == len(row)
    assert note == "run: the 81.13 % of paper, Ablation Study are of a run with other epochs"
    assert done.stderr == ""
    assert (folder / "run.png").read_bytes().startswith(PNG)


def test_plot_several(tmp_path, rng, tool, monkeypatch):
    runs = [write_run(tmp_path / name, rng, 2, average=name == "b", validate=name != "a")
            for name in "abc"]
    monkeypatch.chdir(tmp_path)
    code, out, err = tool(*runs, runs[0], "--smooth", "--title", "three", "--reference", 80)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "runs.png"
    assert out.splitlines()[1].split("  ")[-1] == "images/s"
    assert "best EMA top-1, %" in out
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["a", "b", "c"]
    assert " - " in out.splitlines()[2]
    assert (tmp_path / "runs.png").read_bytes().startswith(PNG)
    assert tool(runs[1], "-o", tmp_path / "new/x.PDF")[0] == 0
    assert (tmp_path / "new/x.PDF").read_bytes().startswith(b"%PDF")


def test_help_ends_with_examples(tool):
    code, out, _ = tool("--help")
    assert code == 0
    assert out.rstrip().splitlines()[-1].startswith("  python scripts/plot_run.py ")


FAULTS = {
    "missing": (["none"], "none does not exist"),
    "a file": (["file"], "file is not a folder: give the --save-dir of a run"),
    "no run": (["folder"], "folder holds no run: it has no metrics.jsonl"),
    "empty": (["empty"], "metrics.jsonl tells of no step yet"),
    "begun": (["begun"], "metrics.jsonl tells of no step yet"),
    "damaged": (["damaged"], "line 1 of damaged/metrics.jsonl is damaged"),
    "one of two": (["run", "none"], "none does not exist"),
    "no such kind": (["run", "-o", "x.jpg"], "-o x.jpg must end in .png, .pdf, .svg"),
    "not writable": (["run", "-o", "/proc/x.png"], "cannot write /proc/x.png"),
    "reference": (["run", "--reference", "101"], "argument --reference: '101' must be a number"),
    "no number": (["run", "--reference", "nan"], "argument --reference: 'nan' must be a number"),
    "no run at all": ([], "the following arguments are required: RUN"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_one_line_and_code_2(fault, tmp_path, rng, tool, monkeypatch):
    write_run(tmp_path / "run", rng, 1)
    for name, content in (("empty", ""), ("damaged", "{\n{}\n"), ("begun", json.dumps(
            {"event": "start", "step": 0}) + "\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(content)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    arguments, words = FAULTS[fault]
    code, out, err = tool(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert words in err
    assert err.count("\n") == 1


def test_reading_says_what_is_missing(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_run(tmp_path / "none")
