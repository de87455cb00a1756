"""Lines of the package and its tests, a floor a line (`python scripts/size.py`); fails above the limits."""

import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, SHARE = 6500, 0.6  # lines at most, and tests for each line of the package


def lines(folder: Path) -> Counter:
    """Lines of Python below a folder, by top-level module or subpackage."""
    found = Counter()
    for path in sorted(folder.rglob("*.py")):
        floor = path.relative_to(folder).parts[0].removesuffix(".py")
        found[floor] += len(path.read_text(encoding="utf-8").splitlines())
    return found


def main() -> int:
    """Print the table; returns 1 above a limit."""
    package, tests = lines(ROOT / "medcomfort_utils"), lines(ROOT / "tests")
    for name, count in package.most_common():
        print(f"{count:>6}  {name}")
    whole, tested = package.total(), tests.total()
    print(f"{whole:>6}  package (at most {PACKAGE:,})")
    print(f"{tested:>6}  tests (at most {SHARE} of it: {int(SHARE * whole):,})")
    return int(whole > PACKAGE or tested > SHARE * whole)


if __name__ == "__main__":
    sys.exit(main())
