"""Whether folders are classes, and labels of a set in which some classes have no images."""

from __future__ import annotations

from pathlib import Path

from gluon_resnest.data.records.image_list import ImageList
from gluon_resnest.data.records.record_file import read_class_names
from gluon_resnest.errors import InputError

# What the parts of a data set are called, in small letters.
_PARTS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing", "dev",
                    "eval"})


def refuse_parts(source: str | Path, listed: ImageList) -> None:
    """Refuse a folder of the parts of a data set, whose classes lie one folder below.

    The names tell: all folders are called as parts are, or one is and has no images but those in
    folders of its own. So a class of railway trains may be called `train` beside others.

    Raises
    ------
    InputError
        Naming the folders, and how to go on.
    """
    parts = [name for name in listed.class_names or [] if name.lower() in _PARTS]
    flat = {image.path.split("/")[0] for image in listed.images if image.path.count("/") == 1}
    if parts and (len(parts) == len(listed.class_names) or set(parts) - flat):
        raise InputError(
            f"{source} has the folder{'s' * (len(parts) > 1)} {' and '.join(parts)}, which would "
            f"become a class each: if they are parts of a data set, pack each into a file of its "
            f"own, {Path(source) / parts[0]} first; if they are classes, give "
            "--folders-are-classes")


def with_classes_of(listed: ImageList, record_file: str | Path) -> ImageList:
    """`listed` with the labels that the classes have in another record file.

    Parameters
    ----------
    listed
        Of class folders; some of the other file's classes may be missing.
    record_file
        A `.rec` with its class list beside it.

    Raises
    ------
    InputError
        The other file has no class list, or lacks a class.
    """
    names = read_class_names(Path(record_file))
    if names is None:
        raise InputError(f"--classes-of {record_file} has no class list beside it "
                         f"({Path(record_file).with_suffix('.classes.txt').name}): give a .rec "
                         "that was packed from class folders")
    if listed.class_names is None:
        raise InputError("--classes-of is for class folders; a .lst has its labels already")
    unknown = [name for name in listed.class_names if name not in names]
    if unknown:
        raise InputError(f"class folder {listed.root / unknown[0]} is no class of {record_file}: "
                         "remove it, or pack both from the same classes")
    labels = [names.index(name) for name in listed.class_names]
    images = [image._replace(label=float(labels[int(image.label)])) for image in listed.images]
    return ImageList(listed.root, images, names)
