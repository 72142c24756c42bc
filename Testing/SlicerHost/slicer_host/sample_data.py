"""``SampleData``: the sample data that modules register are checked and recorded; nothing is downloaded."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass


@dataclass
class SampleDataSource:
    """One registered data set."""

    category: str
    sampleName: str
    uris: list[str]
    fileNames: list[str]
    nodeNames: list[str]
    checksums: list[str]
    thumbnailFileName: str | None


sources: list[SampleDataSource] = []


def _listed(value: object) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


class SampleDataLogic:
    """Stand-in for the module's logic."""

    @staticmethod
    def registerCustomSampleDataSource(
        category: str = "Custom",
        sampleName: str | None = None,
        uris: object = None,
        fileNames: object = None,
        nodeNames: object = None,
        customDownloader: object = None,
        thumbnailFileName: str | None = None,
        loadFileTypes: object = None,
        loadFiles: object = None,
        loadFileProperties: dict | None = None,
        checksums: object = None,
        loadFileType: object = None,
    ) -> None:
        """Record a data set; ValueError if its lists differ in length, or a checksum or the thumbnail is invalid."""
        source = SampleDataSource(
            category, sampleName, *map(_listed, (uris, fileNames, nodeNames, checksums)), thumbnailFileName
        )
        counts = {len(source.uris), len(source.fileNames), len(source.checksums) or len(source.uris)}
        if len(counts) > 1 or not source.uris:
            raise ValueError(f"{sampleName}: each address needs its file name and checksum")
        if any(re.fullmatch(r"SHA256:[0-9a-f]{64}", checksum) is None for checksum in source.checksums):
            raise ValueError(f"{sampleName}: a checksum is written SHA256:<64 digits>")
        if thumbnailFileName is not None and not os.path.isfile(thumbnailFileName):
            raise ValueError(f"{sampleName}: the thumbnail {thumbnailFileName} does not exist")
        sources.append(source)
