"""What the tests took: the slowest of them, and all beside the figure in tests/README.md.

python times.py SECONDS [--fast|--long|""] JUNIT.xml ...
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

SLOWEST = 15


def main() -> None:
    seconds, form, *files = sys.argv[1:]
    cases = [case for file in files for case in ET.parse(file).getroot().iter("testcase")]
    print(f"\nthe {SLOWEST} slowest of {len(cases):,} tests:")
    for case in sorted(cases, key=lambda case: -float(case.get("time", 0)))[:SLOWEST]:
        module = case.get("classname", "").removeprefix("tests.")
        print(f"{float(case.get('time', 0)):7.1f} s  {module}::{case.get('name')}")
    page = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    command = re.escape(f"tests/run.sh {form}".strip())
    found = re.search(rf"^\| `bash {command}` \| ([\d.]+) minutes", page, re.M)
    told = f"; tests/README.md says {found[1]}" if found else ""
    print(f"checks and tests took {float(seconds) / 60:.1f} minutes{told}")


if __name__ == "__main__":
    main()
