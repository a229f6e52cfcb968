"""Make the pages that are made of the code, or check that they are not stale.

    python docs/make_pages.py            # writes them
    python docs/make_pages.py --check    # fails where one is stale

They are kept in the repository, and not made while the site is built: they are read on the repository's own pages too,
a change of the code shows what it changes in them, and the code blocks in them are tested like those of any other page.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import make_algorithms
import make_api
import make_commands
import make_datasets
import make_environments
import make_study_reference

HERE = Path(__file__).parent


def pages() -> dict[Path, str]:
    """Return every generated page's text by its file."""
    figures = json.loads(make_algorithms.FIGURES.read_text(encoding="utf-8"))
    made = {
        module.PAGE: module.page() for module in (make_commands, make_datasets, make_environments, make_study_reference)
    }
    return {make_algorithms.PAGE: make_algorithms.page(figures), **made, **make_api.pages()}


def stale(found: dict[Path, str]) -> list[Path]:
    """Return the files that do not hold what they should; also pages of the API that nothing makes any more."""
    left = [file for file in make_api.FOLDER.glob("*.md") if file not in found]
    return [
        file for file, text in found.items() if not file.exists() or file.read_text(encoding="utf-8") != text
    ] + left


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a page is stale")
    parsed = parser.parse_args(arguments)
    found = pages()
    if parsed.check:
        for file in (old := stale(found)):
            print(f"error: {file} is stale; run python docs/make_pages.py", file=sys.stderr)
        return int(bool(old))
    for file, text in found.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
