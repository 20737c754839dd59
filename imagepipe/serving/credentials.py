"""Files of a server and of its callers that are worth stealing: tokens, and certificates with their keys."""

import ssl
import stat
from collections.abc import Iterator
from pathlib import Path

from imagepipe.base.errors import ConfigError

_MAX_TOKEN_BYTES = 4096


def read_token(file: Path) -> str:
    """Returns the token in a file: its only line, without blanks around it.

    Raises:
        ConfigError: if it can't be read, or holds no token that fits a header.
    """
    try:
        with file.open("rb") as opened:  # not more than that: it may be a device, or the wrong file
            content = opened.read(_MAX_TOKEN_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"the token file {file} can't be read: {error.strerror}") from None
    token = content.strip()
    if not token:
        raise ConfigError(f"the token file {file} is empty. Make one: openssl rand -hex 32 > {file}")
    if len(content) > _MAX_TOKEN_BYTES:
        raise ConfigError(f"the token file {file} has more than {_MAX_TOKEN_BYTES} bytes: that is no token")
    return check_token(token.decode("latin-1"), f"the token file {file}")


def check_token(token: str, place: str) -> str:
    """Returns a token that fits a header.

    Args:
        token: the token.
        place: where it comes from, for the message, which doesn't quote the token.

    Raises:
        ConfigError: if it doesn't fit.
    """
    if not (token.isascii() and token.isprintable() and token and " " not in token):
        raise ConfigError(f"{place} has to hold one word of printable ASCII: letters, digits and signs without blanks")
    return token


def check_certificate(certificate: Path, key: Path) -> None:
    """Checks that a server can use a certificate.

    Args:
        certificate: file in PEM: the certificate, then those between it and the authority's.
        key: file in PEM with the certificate's private key; it may be the same file.

    Raises:
        ConfigError: if it can't.
    """
    for file in (certificate, key):
        try:
            file.open("rb").close()
        except OSError as error:
            raise ConfigError(f"{file} can't be read: {error.strerror}") from None
    try:
        # An empty password: a key that needs one is refused here, instead of asking for it on a terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "reason", None) or error
        raise ConfigError(
            f"--certificate {certificate} and --key {key} don't fit together ({reason}): they have to be a certificate "
            "and its own private key, in PEM, the key without a password"
        ) from None


def load_authorities(file: Path) -> ssl.SSLContext:
    """Returns TLS of a caller that trusts the certificates in a file only.

    Raises:
        ConfigError: if it can't be used.
    """
    try:
        context = ssl.create_default_context(cafile=file)
    except OSError as error:  # ssl.SSLError is one
        reason = getattr(error, "reason", None) or error.strerror
        raise ConfigError(f"{file} is no file of certificates in PEM: {reason}") from None
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the server's own is enough, also if another signed it
    return context


def find_exposed(*files: Path | None) -> Iterator[str]:
    """Yields a line per file that every user of this machine can read."""
    for file in filter(None, files):
        state = file.stat()
        if stat.S_ISREG(state.st_mode) and state.st_mode & stat.S_IROTH:
            yield f"{file} can be read by every user of this machine: chmod o-rwx {file}"
