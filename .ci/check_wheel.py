"""Check what lies in a wheel: ``python .ci/check_wheel.py dist/bayesgen-*.whl``."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

MAX_MEGABYTES = 13.0  # of which at most 12 are weights of the shipped generators


def main(path: Path) -> int:
    """Print what is wrong with the wheel; 0 if nothing is."""
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
    source = Path(__file__).resolve().parents[1] / "bayesgen"
    expected = {
        str(Path("bayesgen") / file.relative_to(source))
        for pattern in ("**/*.py", "py.typed", "models/weights/*.safetensors", "datasets/data/*")
        for file in source.glob(pattern)
    }
    problems = [f"missing: {name}" for name in sorted(expected - set(names))]
    problems += [
        f"should not be there: {name}"
        for name in names
        if not name.startswith(("bayesgen/", "bayesgen-")) or name.endswith((".pt", ".pkl", ".pyc"))
    ]
    megabytes = path.stat().st_size / 1e6
    if megabytes > MAX_MEGABYTES:
        problems.append(f"too large: {megabytes:.1f} MB, at most {MAX_MEGABYTES} MB")
    print(*problems, sep="\n", end="\n" if problems else "")
    print(f"{path.name}: {megabytes:.2f} MB, {len(names)} files, {len(problems)} problems")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
