"""What of this package is installed, and the command that installs the rest.

A hint has to work where it is read: in a checkout that is not installed, in an editable install, with a wheel, and whether or
not an environment is activated.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

NAME: Final = "voiceserver"
_CHECKOUT: Final = Path(__file__).resolve().parents[1]


def missing(packages: Iterable[str]) -> tuple[str, ...]:
    """Those of ``packages`` (import names) that are not installed. Nothing is imported."""
    return tuple(package for package in packages if importlib.util.find_spec(package) is None)


def install_command(extras: Iterable[str]) -> str:
    """The command that brings ``extras`` into the environment that runs this.

    Where the package is installed, in whatever way, pip keeps it and adds what the extras name. Elsewhere, the checkout.
    """
    names = ",".join(dict.fromkeys(extras))
    what = f"'{NAME}[{names}]'" if _is_installed() else f"--editable {shlex.quote(f'{_CHECKOUT}[{names}]')}"
    return f"{_pip()} install {what}"


def missing_message(needs: str, packages: Iterable[str], extras: Iterable[str]) -> str:
    """One line: who ``needs`` (subject and verb) packages that are not there, and the command that brings them."""
    names = tuple(packages)
    noun = "package" if len(names) == 1 else "packages"
    return f"{needs} the {noun} {', '.join(names)}: {install_command(extras)}"


def _is_installed() -> bool:
    try:
        importlib.metadata.distribution(NAME)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _pip() -> str:
    """``pip`` where a shell would find that of this environment, else by the interpreter's path."""
    found = shutil.which("pip")
    if found is not None and Path(found).parent == Path(sys.executable).parent:
        return "pip"
    return f"{shlex.quote(sys.executable)} -m pip"
