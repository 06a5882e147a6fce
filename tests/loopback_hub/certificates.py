"""A certificate for Hubs that speak https."""

import shutil
import subprocess
from pathlib import Path


def make_certificate(folder: Path) -> Path | None:
    """Return a file with a new certificate of both host names and its key; `None` where openssl is not installed.

    Clients trust it once `SSL_CERT_FILE` names the file.
    """
    if shutil.which("openssl") is None:
        return None
    path = folder / "loopback.pem"
    command = "openssl req -x509 -nodes -days 1 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -subj /CN=localhost"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    written = ["-addext", names, "-keyout", str(path), "-out", str(folder / "certificate.pem")]
    subprocess.run([*command.split(), *written], check=True, capture_output=True)
    path.write_text(path.read_text() + (folder / "certificate.pem").read_text())
    return path
