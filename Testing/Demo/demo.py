"""Segment real cases through the module's own logic, into demo/ or the given folder. Run by ``make demo``.

python Testing/Demo/demo.py [FOLDER [CT]]
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "SlicerHost"))

    import demo_cases

    demo_cases.main(*map(Path, sys.argv[1:3]))
