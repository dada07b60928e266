"""Pictures of the page in headless Chromium, for docs/images: PYTHONPATH=. python scripts/view_screenshots.py REPORT.html [FOLDER]

Each of the sections at three widths, light and dark, with what the page says on its console, how heavy it is and when it first paints;
those of docs/images are view_wide (three runs), view_dark, view_narrow and view_problem.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.browser import Browser

WIDTHS = (390, 900, 1440)
DRAWN = "document.body.classList.contains('drawn')"
PAINTED = "Math.round(performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? -1)"


def main() -> None:
    page, output = Path(sys.argv[1]).resolve(), Path((sys.argv[2:] or ["build/screenshots"])[0])
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile, Browser(Path(profile)) as browser:
        for width in WIDTHS:
            for dark in (False, True):
                for section in ("", "tokens", "samples"):
                    browser.open(f"file://{page}#at={section}", width=width, height=1000, dark=dark, until=DRAWN)
                    browser.value("new Promise((done) => setTimeout(done, 500))")
                    name = f"{section or 'headline'}-{width}-{'dark' if dark else 'light'}.png"
                    browser.picture(output / name)
                    wide = browser.value("document.documentElement.scrollWidth")
                    print(f"{name}: first paint {browser.value(PAINTED)} ms, {wide} px wide")
        print(f"{page.stat().st_size / 1e6:.2f} MB; console: {browser.console or 'nothing'}")


if __name__ == "__main__":
    main()
