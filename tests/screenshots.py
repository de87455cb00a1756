"""`make screenshots`: the site in build/site as a reader sees it, into docs/screenshots (needs Chromium)."""

import shutil
import subprocess
import sys
import tempfile

from medcomfort_utils.paths import ROOT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# No sandbox, since a container's root has none; it opens our own files only, and no name resolves.
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
           "--allow-file-access-from-files", "--host-resolver-rules=MAP * ~NOTFOUND")  # fmt: skip
PICTURES = {"site": ("notebooks/04_figures.html", "1280,1640"),
            "telephone": ("index.html", "500,844")}  # fmt: skip

if __name__ == "__main__":
    if not CHROMIUM:
        sys.exit("Chromium is not installed: on Debian, apt-get install chromium")
    for name, (page, size) in PICTURES.items():
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            target = ROOT / f"docs/screenshots/{name}.png"
            own = (f"--user-data-dir={folder}", f"--window-size={size}", f"--screenshot={target}")
            address = f"{(ROOT / 'build/site').as_uri()}/{page}"
            subprocess.run([CHROMIUM, *OPTIONS, *own, address], check=True, timeout=120)
