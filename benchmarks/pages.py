"""Tables of the documentation that benchmarks write: each stands between two marks, <!-- NAME:begin --> and <!-- NAME:end -->."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def fill(page, mark, write):
    """Replace what stands between a page's marks by write(what stands there). A page without the marks is an error."""
    path, begin, end = ROOT / page, f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
    text, count = re.subn(
        f"{begin}(.*?){end}", lambda found: begin + write(found[1]) + end, path.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    if count != 1:
        raise SystemExit(f"{page} has {count} places between {begin} and {end}, expected one")
    path.write_text(text, encoding="utf-8")
