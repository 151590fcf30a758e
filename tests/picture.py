"""Makes the README's picture: the landing page over `runmeter demo`, as a browser shows it after a while of real runs.

python tests/picture.py [FILE]        needs Debian's chromium and chromium-driver
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path

from browser import CHROMIUM, DRIVER, chromium

FILE = Path(__file__).parent.parent / "grafana" / "landing-page.png"
PLENTY = """
    const calls = [...document.querySelectorAll('#rows-running tr')].map(row => Number(row.cells[3].innerText));
    const looks = document.querySelector('#spark polyline').getAttribute('points').trim().split(/\\s+/).length;
    return looks >= 60 && calls.length >= 4 && calls.length <= 6 && Math.min(...calls) >= 1;
"""
"""When the picture is taken: a rate curve worth the name, and some runs that have all been answered once."""


def main(file: Path) -> int:
    """Take the picture."""
    if not (CHROMIUM and DRIVER):
        print("needs chromium and chromedriver (apt install chromium chromium-driver)", file=sys.stderr)
        return 2
    command = [
        sys.executable,
        "-m",
        "runmeter.launch.main",
        "demo",
        "--listen",
        "127.0.0.1:0",
        "--otlp-listen",
        "127.0.0.1:0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        try:
            assert demo.stdout is not None
            url = next(found[0] for line in demo.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
            threading.Thread(target=demo.stdout.read, daemon=True).start()
            with chromium(1180, 810) as browser:
                browser.open(url)
                browser.wait("!document.getElementById('numbers').hidden")
                browser.run("document.documentElement.style.overflow = 'hidden'")  # no scroll bar
                while not browser.run(PLENTY):
                    browser.wait(f"document.getElementById('t-tokens').innerText !== {browser.text('t-tokens')!r}")
                file.write_bytes(browser.screenshot())
        finally:
            demo.terminate()
    print(f"{file}: {file.stat().st_size / 1024:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else FILE))
