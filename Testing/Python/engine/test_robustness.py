"""Short versions of the campaigns with damaged inputs in Testing/Robustness."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGNS = sorted(
    path.stem.removeprefix("campaign_") for path in (Path(__file__).parents[2] / "Robustness").glob("campaign_*.py")
)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="statuses of signals are those of POSIX")
def test_short_campaigns_find_no_problems(repository: Path) -> None:
    command = [sys.executable, repository / "Testing" / "Robustness" / "robustness.py", "--count", "20"]
    finished = subprocess.run(
        [*map(str, command), "--seconds", "20"], capture_output=True, text=True, timeout=3000, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert CAMPAIGNS and finished.stdout.count(" inputs, ") >= len(CAMPAIGNS)


def test_campaign_detects_problems(tmp_path: Path, repository: Path) -> None:
    """Uses Python commands that end in each of the unacceptable ways."""
    sys.path.insert(0, str(repository / "Testing" / "Robustness"))
    try:
        import robustness
    finally:
        sys.path.pop(0)

    def problems(code: str, **settings) -> list[str]:
        (tmp_path / "bad.py").write_text(code)
        trial = robustness.Trial(("bad",), **settings)
        outcome = robustness.run(trial, tmp_path)
        return robustness.problems_of(trial, outcome, tmp_path)

    assert problems("") == []
    assert problems("import sys; sys.exit('a message')") == ["exit status 1: a message"]
    assert problems("import sys; print('a message', file=sys.stderr); sys.exit(2)") == []
    assert problems("import sys; sys.exit(2)") == ["exit status 2 without a message"]
    assert problems("import os; os.kill(os.getpid(), 11)") == ["signal 11: no message"]
    assert problems("import time; time.sleep(60)", seconds=0.5) == ["still running after 0 s"]
    assert problems("import time; time.sleep(60)", kill_after=0.5) == []
    assert "an internal error occurred" in problems("import sys; print('an internal error occurred', file=sys.stderr)")
    assert problems("", check=lambda outcome: ["something"]) == ["something"]
    assert problems("import tempfile; tempfile.mkstemp(prefix='left')[0]")[0].startswith("left behind: tmp/left")
