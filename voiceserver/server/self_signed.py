"""``serve --tls self-signed``: a certificate of one's own, so that a page of this server gets the microphone on every address.

The certificate is made once for the names and addresses of this machine and used again at the next start, so a browser that
was told to trust it goes on to do so. It is made by the package ``cryptography`` (extra ``self-signed``), else by the program
``openssl``. What is printed says where to go, with a QR code where the package ``segno`` is there.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.util
import io
import ipaddress
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from voiceserver.config.schema import ServerConfig
from voiceserver.errors import ConfigError, StartError

# Phones refuse certificates of their owner's that are good for more than 825 days.
VALID_DAYS: Final = 397
RENEWED_DAYS: Final = 14  # before its end a certificate is made anew
_NAMES_FILE: Final = "names.txt"
_ALL_ADDRESSES: Final = ("", "0.0.0.0", "::")
# Nothing is sent there: to ask for the way to a documentation address tells which address of ours would be used.
_SOMEWHERE: Final = {"0.0.0.0": [(socket.AF_INET, "192.0.2.1")], "::": [(socket.AF_INET6, "2001:db8::1")]}
MISSING: Final = (
    "--tls self-signed needs the package 'cryptography' (pip install 'voiceserver[self-signed]') or the program 'openssl', "
    "and finds neither"
)


class CannotKeep(StartError):
    """There is no place to keep a certificate in."""


class Certificate(NamedTuple):
    """Paths of the two files, as ``server.tls_cert`` and ``server.tls_key`` take them."""

    cert: Path
    key: Path

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, as browsers show it."""
        der = ssl.PEM_cert_to_DER_cert(self.cert.read_text())
        return hashlib.sha256(der).digest().hex(":").upper()


def certify(tls: str, server: ServerConfig) -> tuple[list[tuple[str, str, str]], Callable[[int], None]]:
    """For ``--tls`` with the value ``tls``: the settings that name a certificate of our own, as flags, and what tells people
    where to go with it, given the port. Raises ConfigError or StartError."""
    if tls != "self-signed":
        raise ConfigError(
            "--tls", f"must be self-signed, not {tls!r}; server.tls_cert names another certificate"
        )
    if server.tls_cert:
        message = "server.tls_cert names a certificate already; leave one of the two out"
        raise ConfigError("--tls", message)
    host = server.host
    names = names_of_this_machine(host)
    made, note = _kept_or_made(names)

    def tell(port: int) -> None:
        words = announcement(host, port, made, names) + note
        # A terminal that nobody reads must not hold the server up.
        threading.Thread(target=_print, args=(words,), daemon=True).start()

    files = [("server.tls_cert", str(made.cert), "--tls"), ("server.tls_key", str(made.key), "--tls")]
    return files, tell


def _print(words: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        try:
            print(words, flush=True)
        except UnicodeEncodeError:  # a terminal without half blocks
            print(words.encode("ascii", "ignore").decode(), flush=True)


def _kept_or_made(names: list[str]) -> tuple[Certificate, str]:
    """The certificate, and what is to be said of where it is: a user of a container often has no home to keep it in."""
    try:
        return certificate_for(names, default_folder()), ""
    except CannotKeep as error:
        try:
            folder = Path(tempfile.mkdtemp(prefix="voiceserver-"))
        except OSError:
            raise error from None
        return certificate_for(names, folder), f"{error}; after a restart browsers warn again.\n"


def default_folder() -> Path:
    """Where the certificate is kept for the next start. Raises CannotKeep for a user without a home."""
    try:
        return Path.home() / ".local" / "share" / "voiceserver" / "self-signed"
    except RuntimeError:
        raise CannotKeep("The certificate is not kept, because this user has no home") from None


def names_of_this_machine(host: str) -> list[str]:
    """What a browser may call this server that listens on ``host``: names and addresses, this machine's own first."""
    names = ["localhost", "127.0.0.1", "::1"]
    if host not in (*_ALL_ADDRESSES, *names):
        names.append(host)
    if host in _ALL_ADDRESSES:
        name = socket.gethostname()
        names += [name, f"{name}.local"] if "." not in name else [name]
        names += _own_addresses(host)
    return list(dict.fromkeys(names))


def _own_addresses(host: str) -> Iterator[str]:
    """Of the kinds that ``host`` listens on; ``::`` and the empty host take both, those for phones first."""
    kinds = (
        _SOMEWHERE["0.0.0.0"] if host == "0.0.0.0" else [one for kind in _SOMEWHERE.values() for one in kind]
    )
    for family, address in kinds:
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as asking:
            asking.connect((address, 9))
            found = str(asking.getsockname()[0])
            if not ipaddress.ip_address(found).is_link_local:
                yield found


def certificate_for(names: Iterable[str], folder: Path, now: datetime.datetime | None = None) -> Certificate:
    """The certificate in ``folder`` if it is for all of ``names`` and not about to end, else a new one. Raises StartError where
    none can be made, and CannotKeep where ``folder`` cannot be written to."""
    wanted = list(names)
    made = Certificate(folder / "cert.pem", folder / "key.pem")
    now = now or datetime.datetime.now(datetime.UTC)
    if _is_good(made, wanted, now):
        return made
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fresh = Certificate(Path(scratch) / "cert.pem", Path(scratch) / "key.pem")
            _make(fresh, wanted, now)
            fresh.key.chmod(0o600)
            # The key first: a certificate is looked at to see whether there is a pair.
            os.replace(fresh.key, made.key)
            os.replace(fresh.cert, made.cert)
        (folder / _NAMES_FILE).write_text("\n".join(wanted))
    except OSError as error:
        raise CannotKeep(f"The certificate cannot be kept in {folder}: {error.strerror}") from None
    return made


def _is_good(made: Certificate, wanted: list[str], now: datetime.datetime) -> bool:
    names = made.cert.with_name(_NAMES_FILE)
    try:
        kept = names.read_text().split("\n")
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(made.cert, made.key)
        made_at = datetime.datetime.fromtimestamp(names.stat().st_mtime, datetime.UTC)
    except (OSError, ssl.SSLError, UnicodeDecodeError):
        return False
    days_left = VALID_DAYS - (now - made_at).days
    return set(wanted) <= set(kept) and days_left > RENEWED_DAYS


def _make(made: Certificate, names: list[str], now: datetime.datetime) -> None:
    if importlib.util.find_spec("cryptography") is not None:
        _make_with_cryptography(made, names, now)
    elif (openssl := shutil.which("openssl")) is not None:
        _make_with_openssl(openssl, made, names)
    else:
        raise StartError(MISSING)


def _make_with_cryptography(made: Certificate, names: list[str], now: datetime.datetime) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "voiceserver")])
    other_names: list[x509.GeneralName] = [
        x509.IPAddress(address) if (address := _address(name)) is not None else x509.DNSName(name)
        for name in names
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName(other_names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    made.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    _write_secret(
        made.key,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def _write_secret(path: Path, data: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)


_OPENSSL: Final = """[req]
distinguished_name = subject
x509_extensions = extensions
prompt = no
[subject]
CN = voiceserver
[extensions]
basicConstraints = critical, CA:FALSE
extendedKeyUsage = serverAuth
subjectAltName = {names}
"""


def _make_with_openssl(openssl: str, made: Certificate, names: list[str]) -> None:
    listed = ", ".join(f"{'IP' if _address(name) is not None else 'DNS'}:{name}" for name in names)
    settings = made.cert.with_name("openssl.cnf")
    settings.write_text(_OPENSSL.format(names=listed))
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-sha256", "-days", str(VALID_DAYS)]
    command += ["-config", str(settings), "-keyout", str(made.key), "-out", str(made.cert)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise StartError(f"--tls self-signed: openssl failed: {lines[-1] if lines else done.returncode}")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


# -------------------------------------------------------------------------------------------------- what is printed


def addresses(host: str, port: int, names: Iterable[str]) -> list[str]:
    """Where a browser finds the page: the address for other machines first, where they can reach this one."""
    known = [name for name in names if name not in ("127.0.0.1", "::1")]
    others = [name for name in known if _address(name) is not None] if host in _ALL_ADDRESSES else []
    if host not in (*_ALL_ADDRESSES, "localhost"):
        others = [host]
    shown = [*others, "localhost"] if host in (*_ALL_ADDRESSES, "localhost") else others
    return [f"https://{f'[{name}]' if ':' in name else name}:{port}/" for name in shown]


def announcement(host: str, port: int, certificate: Certificate, names: Iterable[str]) -> str:
    """What ``serve --tls self-signed`` prints once it listens."""
    listed = addresses(host, port, names)
    lines = ["", f"Open {listed[0]}", *(f"  or {one}" for one in listed[1:])]
    lines += [
        "The certificate is this server's own, so the browser warns once: go on to the page. Its SHA-256 fingerprint is",
        certificate.fingerprint,
    ]
    is_local = host == "localhost" or ((own := _address(host)) is not None and own.is_loopback)
    if is_local:
        return "\n".join(
            [*lines, "Only this machine can open it; with --host 0.0.0.0 phones in your network can.", ""]
        )
    code = qr_code(listed[0])
    return "\n".join([*lines, code or "For a QR code: pip install 'voiceserver[self-signed]'", ""])


def qr_code(text: str) -> str:
    """``text`` for a phone's camera, in half blocks; empty where the package segno is missing."""
    if importlib.util.find_spec("segno") is None:
        return ""
    import segno

    drawn = io.StringIO()
    segno.make(text, micro=False).terminal(drawn, compact=True)
    return drawn.getvalue()
