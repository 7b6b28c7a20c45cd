"""Folders that are no classes, one class, and validation sets that lack a class: what to do."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import run_tool

from gluon_resnest.data.augment.transforms import EvaluationTransform
from gluon_resnest.data.class_names import check_class_names
from gluon_resnest.data.loading.labelled_images import EvaluationLoader
from gluon_resnest.data.records.packing import PackOptions, pack
from gluon_resnest.data.records.record_file import RecordFile
from gluon_resnest.errors import InputError


def images(root: Path, *folders: str, count: int = 2) -> Path:
    """`root` with PNG files of 8x8 pixels in each of the folders below it."""
    for number, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        for i in range(count):
            cv2.imwrite(str(root / folder / f"{i}.png"), np.full((8, 8, 3), 10 * number + i))
    return root


@pytest.mark.parametrize(("folders", "named"), [
    (("train/bee", "train/ant", "val/bee", "val/ant"), "folders train and val, which"),
    (("Training/bee", "Test/bee"), "folders Test and Training, which"),
    (("train", "val"), "folders train and val, which"),
    (("train/bee", "train/ant"), "folder train, which"),
    (("train/bee", "val/bee", "more/bee"), "folders train and val, which"),
])
def test_parts_of_a_data_set_are_no_classes(
    tmp_path: Path, folders: tuple[str, ...], named: str
) -> None:
    source = images(tmp_path / "data", *folders)
    first = sorted(folder.split("/")[0] for folder in folders if not folder.startswith("more"))[0]
    with pytest.raises(InputError, match=rf"data has the {named} would become a class each: .*pack "
                       rf"each into a file of its own, .*data/{first} first; .*"
                       "--folders-are-classes"):
        pack(source, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))
    packed = pack(source, tmp_path / "out", PackOptions(folders_are_classes=True))
    assert packed.class_names == sorted({folder.split("/")[0] for folder in folders})


@pytest.mark.parametrize("folders", [
    ("train", "tram", "bus"), ("train", "train/old", "tram"), ("trainer", "value"),
    ("bee/val", "ant/val"),
])
def test_classes_that_are_called_alike_are_packed(tmp_path: Path, folders: tuple[str, ...]) -> None:
    packed = pack(images(tmp_path / "data", *folders), tmp_path / "out")
    assert packed.class_names == sorted({folder.split("/")[0] for folder in folders})


class TestValidationWithoutAClass:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """train.rec of ant, bee and fly; val.rec without bee; source folders of both."""
        pack(images(tmp_path / "train", "ant", "bee", "fly"), tmp_path / "train")
        pack(images(tmp_path / "val", "ant", "fly"), tmp_path / "val")
        return tmp_path

    def test_the_missing_class_is_named(self, folder: Path) -> None:
        with RecordFile(folder / "val.rec") as validation:
            with pytest.raises(InputError, match=r"val.rec lacks 'bee' of the 3 classes expected, "
                               ".*: pack it again with --classes-of TRAIN.rec"):
                check_class_names(validation, ["ant", "bee", "fly"])
            with pytest.raises(InputError, match=r"val.rec has 'fly', which the network does not "
                               "know and lacks 'bee', 'wasp': pack it from the folders"):
                check_class_names(validation, ["ant", "bee", "wasp"])
            with pytest.raises(InputError, match=r"label 0 of .*val.rec is 'ant' .* 'fly' is exp"):
                check_class_names(validation, ["fly", "ant"])
            with pytest.raises(InputError, match=r"lacks 'c0', 'c1', 'c2', 'c3', 'c4' and 3 more"):
                check_class_names(validation, ["ant", "fly", *(f"c{i}" for i in range(8))])

    @pytest.mark.parametrize("flags", [(), ("--classes", 3), ("--classes", 2)])
    def test_by_the_trainer(self, folder: Path, flags: tuple, tool) -> None:
        """No advice leads to the next refusal: --classes 2 contradicts the training images."""
        code, stderr = tool("train_imagenet.py", "--model", "resnest14", "--no-cuda",
                            "--rec-train", folder / "train.rec", "--rec-val", folder / "val.rec",
                            "--save-dir", folder / "run", "--input-size", 32, *flags)
        assert code == 2
        assert stderr.splitlines()[-1].startswith(
            f"error: {folder}/train.rec has 3 classes" if 2 in flags else
            f"error: {folder}/val.rec lacks 'bee' of the 3 classes expected")

    def test_the_remedy(self, folder: Path) -> None:
        done = run_tool("scripts/pack_records.py", folder / "val", folder / "val", "--overwrite",
                        "--classes-of", folder / "train.rec")
        assert done.stdout.startswith("packed 4 images of 3 classes")
        assert (folder / "val.classes.txt").read_text() == "ant\nbee\nfly\n"
        lines = (folder / "val.lst").read_text().splitlines()
        assert {tuple(line.split("\t")[1:]) for line in lines} == {
            ("0.000000", "ant/0.png"), ("0.000000", "ant/1.png"),
            ("2.000000", "fly/0.png"), ("2.000000", "fly/1.png")}
        with RecordFile(folder / "val.rec") as validation:
            check_class_names(validation, ["ant", "bee", "fly"])
            loader = EvaluationLoader(validation, EvaluationTransform(32), 4, classes=3, threads=1)
            ((_, labels),) = list(loader)
            assert sorted(labels) == [0, 0, 2, 2]

    def test_what_the_remedy_cannot_do(self, folder: Path) -> None:
        options = PackOptions(classes_of=folder / "val.rec")
        with pytest.raises(InputError, match=r"class folder .*train/bee is no class of .*val.rec"):
            pack(folder / "train", folder / "other", options)
        (folder / "val.classes.txt").unlink()
        with pytest.raises(InputError, match=r"--classes-of .*val.rec has no class list beside it "
                           r"\(val.classes.txt\)"):
            pack(folder / "train", folder / "other", options)
        listing = folder / "list.lst"
        listing.write_text("0\t1\tant/0.png\n")
        with pytest.raises(InputError, match=r"--classes-of is for class folders; a \.lst has"):
            pack(listing, folder / "other", PackOptions(classes_of=folder / "train.rec"),
                 root=folder / "train")

    def test_evaluation_of_a_network_without_names(self, folder: Path) -> None:
        with RecordFile(folder / "val.rec") as validation:
            with pytest.raises(InputError, match=r"val.rec has 2 classes by its class list "
                               "val.classes.txt, but the network has 3, so .*--classes-of TRAIN"):
                EvaluationLoader(validation, EvaluationTransform(32), 4, classes=3)


def test_one_class_folder_is_called_that(tmp_path: Path, tool) -> None:
    pack(images(tmp_path / "data", "bee"), tmp_path / "train")
    for flags in (), ("--classes", 2), ("--dry-run",):
        code, stderr = tool("train_imagenet.py", "--model", "resnest14", "--no-cuda",
                            "--rec-train", tmp_path / "train.rec", "--save-dir", tmp_path / "run",
                            *flags)
        assert code == 2
        assert stderr.splitlines()[-1] == (
            f"error: {tmp_path}/train.rec has one class, 'bee', by its class list, so there is "
            "nothing to learn: pack a folder that has one folder for each of at least two classes")
