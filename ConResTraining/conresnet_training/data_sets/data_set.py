"""What every layout of a data set is read into: a list of cases, each with its channels' images and a label map."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One labelled subject: a name, the image files of its channels, and its label map."""

    name: str
    images: tuple[Path, ...]
    label: Path


@dataclass(frozen=True)
class DataSet:
    """Labelled cases, the names of their channels, and what each label value (not 0) means."""

    name: str
    channels: tuple[str, ...]
    labels: dict[int, str]
    licence: str
    cases: tuple[Case, ...]
