"""Write one archive from which the course installs and tests itself without a network: the checkout and all its packages.

    python tools/offline.py [--to FILE.tar] [PIP OPTIONS ...]

1. `pip wheel` puts every package of requirements.txt, with what these need in turn, into a folder `wheelhouse`.
2. The checkout's files and the wheelhouse go into one tar file.
Unpack it on a machine with the same system and the same Python; `make book` and `make test` find the wheelhouse there and
ask no other place. Options of pip are passed on: on Linux, `--extra-index-url https://download.pytorch.org/whl/cpu` takes the small
build of torch.
"""
import argparse
import platform
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from checkout import ROOT, copy_checkout

BUILD = ["pip", "setuptools>=77", "wheel"]     # what installing the course's own package needs
NAME = "smaller-models"


def made_for() -> str:
    """The Python and the system that the wheels are for."""
    return f"Python {sys.version_info.major}.{sys.version_info.minor}, {platform.system()} {platform.machine()}"


def wheels(folder: Path, options: list[str]) -> int:
    """Fill the folder with wheels; returns how many. Raises: subprocess.CalledProcessError if pip fails."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    with tempfile.TemporaryDirectory() as scratch:
        # The same pins, without the course's own package: it comes as source, and is installed from there.
        wanted = Path(scratch, "requirements.txt")
        wanted.write_text("\n".join(line for line in lines if not line.startswith("-")) + "\n", encoding="utf-8")
        subprocess.run([sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check", "--progress-bar", "off", "--quiet",
                        "--wheel-dir", str(folder), "-c", str(ROOT / "constraints.txt"), "-r", str(wanted), *BUILD, *options], check=True)
    return len(list(folder.glob("*.whl")))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the course and all its packages into one archive.")
    parser.add_argument("--to", type=Path, default=ROOT / "_build" / f"{NAME}-offline.tar", metavar="FILE.tar")
    options, for_pip = parser.parse_known_args(arguments)
    options.to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.to.parent) as scratch:
        folder = copy_checkout(Path(scratch, NAME))
        (folder / "wheelhouse").mkdir()
        try:
            count = wheels(folder / "wheelhouse", for_pip)
        except subprocess.CalledProcessError as error:
            print(f"offline: pip failed ({error.returncode}); nothing was written", file=sys.stderr)
            return 1
        (folder / "wheelhouse" / "MADE_FOR").write_text(made_for() + "\n", encoding="utf-8")
        partial = Path(scratch, "archive")
        with tarfile.open(partial, "w") as archive:         # wheels are compressed already
            archive.add(folder, NAME)
        partial.replace(options.to)
    size = options.to.stat().st_size / 1e6
    print(f"offline: {options.to}, {size:,.0f} MB, {count} packages, for {made_for()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
