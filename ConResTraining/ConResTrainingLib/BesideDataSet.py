"""Where what belongs to a data set is proposed to lie: beside its folder, and called after it."""

from pathlib import Path

# What a folder without a name of its own, such as the root of a drive, is called.
_NAMELESS = "data-set"


def pathBeside(folder: Path, ending: str) -> Path:
    """ "scans-plan.yaml" beside the folder "scans", for the ending "-plan.yaml"; nothing is made there.

    There is nothing beside the root of a drive: for it the path lies in the user's home.
    """
    if folder.name:
        return folder.with_name(f"{folder.name}{ending}")
    return Path.home() / f"{_NAMELESS}{ending}"
