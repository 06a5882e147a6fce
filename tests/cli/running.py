"""Running commands in this process, and as a program."""

import contextlib
import fcntl
import json
import os
import pty
import struct
import subprocess
import sysconfig
import termios
from pathlib import Path

from click.testing import CliRunner

import pnc_hub
from pnc_hub.cli import main

PROGRAM = Path(sysconfig.get_path("scripts")) / "pnc-hub"


def run(*arguments, **environment):
    return CliRunner().invoke(main, list(map(str, arguments)), env=environment)


def told(*arguments, code: int = 0):
    """What a command prints as JSON."""
    result = run(*arguments, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def environment(**more) -> dict[str, str]:
    """For a program that runs the code of this folder; commands run in this process may have silenced the libraries."""
    inherited = {name: value for name, value in os.environ.items() if not name.endswith("_PROGRESS_BARS")}
    return {**inherited, "PYTHONPATH": str(Path(pnc_hub.__file__).parents[1]), "OMP_NUM_THREADS": "1", **more}


def program(*arguments, **more) -> subprocess.CompletedProcess:
    """The installed program, with pipes for everything it prints."""
    command = [PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(**more), timeout=120, check=False)


def on_terminal(*arguments) -> tuple[str, str]:
    """What the installed program prints into a pipe, and what on a terminal of 80 columns, which is its standard error."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [PROGRAM, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True, env=environment()) as running:
        os.close(theirs)
        printed, seen = running.stdout.read(), b""
        with contextlib.suppress(OSError):  # how a terminal ends
            while part := os.read(ours, 4096):
                seen += part
    os.close(ours)
    return printed, seen.decode()
