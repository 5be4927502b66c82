"""Build the wheel, and use it as somebody does who has only that.

In a fresh environment and an empty folder: what is missing in the wheel, or in what it
requires, is missing there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 600  # for one command

LOADING = """
import importlib.metadata, tensair_dask
assert "site-packages" in tensair_dask.__file__, tensair_dask.__file__
points = importlib.metadata.distribution("tensair-dask").entry_points
assert points
for each in points:
    each.load()
"""


def main() -> None:
    """Build, install, use; raise where something fails."""
    wheel = build()
    check_contents(wheel)
    with tempfile.TemporaryDirectory() as place:
        bin_folder = install(wheel, Path(place, "environment"))
        folder = Path(place, "empty")
        folder.mkdir()
        use(bin_folder, folder)
    print(f"The wheel works: {wheel.relative_to(ROOT)}")


def build() -> Path:
    """Build without what an earlier build has left, which would get into the wheel."""
    for left in (ROOT / "dist", ROOT / "build/lib", *ROOT.glob("build/bdist.*")):
        shutil.rmtree(left, ignore_errors=True)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps")
    run(*pip, "--wheel-dir", "dist", ".", cwd=ROOT)
    (wheel,) = (ROOT / "dist").glob("*.whl")
    return wheel


def check_contents(wheel: Path) -> None:
    """Compare with the files of the project: templates, defaults, types, pipelines."""
    command = ("git", "ls-files", "tensair_dask", "pipelines")
    listed = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    wanted = {re.sub("^pipelines/", "tensair_dask/pipelines/", each) for each in listed}
    held = {
        each for each in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in each
    }
    if held != wanted:
        raise SystemExit(
            f"The wheel lacks {sorted(wanted - held)}, and has {sorted(held - wanted)} "
            "that git does not know. See tool.setuptools in pyproject.toml."
        )


def install(wheel: Path, environment: Path) -> Path:
    """Install it with what the pipelines need; return where the programs are."""
    run(sys.executable, "-m", "venv", environment, cwd=ROOT)
    pip = (environment / "bin/python", "-m", "pip", "install", "--quiet")
    # Compiled when it is imported: most of it never is.
    pip += ("--no-compile", "--constraint", "constraints.txt")
    run(*pip, f"{wheel}[demo]", cwd=ROOT)
    return environment / "bin"


def use(programs: Path, folder: Path) -> None:
    """Do what the README says first."""
    readme = (ROOT / "README.md").read_text()
    snippet = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert snippet is not None
    Path(folder, "load.py").write_text(LOADING)
    run(programs / "python", "load.py", cwd=folder)
    run(programs / "dask", "tensair", "--help", cwd=folder)
    run(programs / "tensair", "run", "flights", "--limit", "20000", cwd=folder)
    Path(folder, "snippet.py").write_text(snippet[1])
    run(programs / "python", "snippet.py", cwd=folder)


def run(*command: str | Path, cwd: Path) -> None:
    """Run a command; show what it printed if it fails."""
    words = [str(each) for each in command]
    # Nothing of the environment that this program runs in.
    environ = {name: os.environ[name] for name in os.environ if name[:6] != "PYTHON"}
    begun = time.monotonic()
    done = subprocess.run(
        words,
        cwd=cwd,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    shown = " ".join([Path(words[0]).name, *words[1:]])
    print(f"{time.monotonic() - begun:6.1f} s  {shown}", flush=True)
    if done.returncode:
        raise SystemExit(f"{done.stdout}\nended with {done.returncode}: {words}")


if __name__ == "__main__":
    main()
