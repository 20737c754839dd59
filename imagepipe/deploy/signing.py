"""Signatures of models, in the format of OpenSSF's model-signing: who made a model, and that no file of it has changed.

A signature is a file in the model's folder, which TensorFlow Serving ignores. It covers every other file there by name
and SHA-256, so that one that was added or removed is noticed too. The version's number is not covered.

model-signing is an extra (``sign``), and is imported only if something is signed or verified.
"""

import base64
import hashlib
import importlib.util
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagepipe.base import filesystem
from imagepipe.base.errors import ConfigError, ModelError, describe_error
from imagepipe.base.labels import list_names

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from model_signing.hashing import Config as HashingConfig

SIGNATURE = "model.sig"
"""Name of the signature's file in a model's folder."""

PASSWORD = "IMAGEPIPE_SIGN_PASSWORD"  # noqa: S105 (the name of a variable)
"""Environment variable with the password of the private key, if it has one."""

_CURVES = ("secp256r1", "secp384r1", "secp521r1")  # those that model-signing takes
_PRIVATE_COMMAND = "openssl ecparam -name prime256v1 -genkey -noout -out signing.key"
_PUBLIC_COMMAND = "openssl ec -in signing.key -pubout -out signing.pub"
_MAX_KEY_BYTES = 64 * 2**10
_MAX_SIGNATURE_BYTES = 16 * 2**20
_MAX_ENTRIES = 10_000  # files and folders of a model; ours have about ten
_CHUNK_BYTES = 2**20


def check_private_key(file: str) -> None:
    """Checks that models can be signed with a private key.

    Raises:
        ConfigError: if they can't, with the commands that make a pair of keys.
    """
    _read_private_key(file)


def check_public_key(file: Path) -> None:
    """Checks that signatures can be verified with a public key.

    Raises:
        ConfigError: if they can't.
    """
    _check_installed("--verify")
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    problem = f"--verify: {file} is no public key to verify signatures with"
    remedy = f"The private key's is written by: {_PUBLIC_COMMAND}"
    content = _read_key(file, problem, remedy)
    try:
        _check_curve(load_pem_public_key(content))
    except ValueError as error:
        raise ConfigError(f"{problem} ({error}). {remedy}") from None


def _read_private_key(file: str) -> "EllipticCurvePrivateKey":
    _check_installed("deploy.sign")
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    problem = f"deploy.sign: {file} is no private key to sign models with"
    remedy = f"Make a pair of keys: {_PRIVATE_COMMAND} && {_PUBLIC_COMMAND}"
    content, password = _read_key(Path(file), problem, remedy), _read_password()
    try:
        key: Any = load_pem_private_key(content, password)
        _check_curve(key)
    except TypeError:  # a password that it doesn't have, or the reverse
        fix = f"has no password: unset {PASSWORD}" if password else f"has a password: give it as {PASSWORD}"
        raise ConfigError(f"deploy.sign: {file} {fix} in the environment") from None
    except ValueError as error:
        raise ConfigError(f"{problem} ({error}). {remedy}") from None
    private_key: EllipticCurvePrivateKey = key
    return private_key


def _check_installed(option: str) -> None:
    if importlib.util.find_spec("model_signing") is None:
        raise ConfigError(f"{option} needs a package that is not installed: pip install 'imagepipe-tfx[sign]'")


def _read_password() -> bytes | None:
    password = os.environ.get(PASSWORD)
    return password.encode() if password else None


def _read_key(file: Path, problem: str, remedy: str) -> bytes:
    try:
        return filesystem.read(str(file), _MAX_KEY_BYTES)
    except OSError as error:
        raise ConfigError(f"{problem} ({error.strerror}). {remedy}") from None


def _check_curve(key: Any) -> None:
    curve = key.curve.name if hasattr(key, "curve") else type(key).__name__
    if curve not in _CURVES:
        raise ValueError(f"it is of {curve}, not of an elliptic curve of {', '.join(_CURVES)}")


def _hash_key(key: "EllipticCurvePublicKey") -> str:
    """Returns the hash by which a signature names its key."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _cover_all_files() -> "HashingConfig":
    from model_signing import hashing

    # By default it leaves out .git and the like, in which code can be hidden as in any other file.
    return hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


# --- signing


def sign_model(model: Path, signature: Path, key: str) -> None:
    """Signs a model.

    Args:
        model: the SavedModel's folder.
        signature: the file to write.
        key: file in PEM with the private key.

    Raises:
        ConfigError: if the key can't be used.
        ModelError: if the folder has symbolic links, or can't be read.
    """
    _read_private_key(key)
    from model_signing import signing

    # Its type says str, but cryptography gets it unchanged, and takes bytes only.
    config = signing.Config().use_elliptic_key_signer(private_key=key, password=_read_password())  # type: ignore[arg-type]
    try:
        config.set_hashing_config(_cover_all_files()).sign(model.resolve(), signature)
    except (ValueError, OSError) as error:
        raise ModelError(f"{model} can't be signed: {error}") from error


def is_signed(model: str, key: str) -> bool:
    """Returns whether a model has a signature that names a key as its own; whether it is valid is not checked.

    Raises:
        ConfigError: if the key can't be used.
    """
    try:
        named = json.loads(filesystem.read(f"{model}/{SIGNATURE}", _MAX_SIGNATURE_BYTES))
        key_hash = named["verificationMaterial"]["publicKey"]["hint"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(key_hash == _hash_key(_read_private_key(key).public_key()))


# --- verifying


@contextmanager
def copy_verified(model: Path, key: Path) -> Iterator[Path]:
    """Copies a model into a private folder, and verifies the copy, so that nobody changes what was verified.

    Args:
        model: the SavedModel's folder.
        key: file in PEM with the public key.

    Yields:
        The copy, which is removed afterwards.

    Raises:
        ModelError: if it has no signature by this key that covers all of its files as they are.
    """
    if not (model / SIGNATURE).is_file():
        raise ModelError(f"{model} is not loaded: it is not signed ({SIGNATURE} is missing). deploy.sign signs models")
    with tempfile.TemporaryDirectory(prefix="imagepipe-verified-") as folder:
        copy = Path(folder, model.name)
        try:
            _copy(model.resolve(), copy)
            _verify(copy, key)
        except (ModelError, ConfigError, OSError) as error:
            raise ModelError(f"{model} is not loaded: {describe_error(error)}") from error
        yield copy


def _copy(source: Path, target: Path) -> None:
    """Copies a folder of ordinary files, of which the limits leave room for others on the disk."""
    target.mkdir()
    free = shutil.disk_usage(target).free // 2
    count = 0
    for parent, folders, files in os.walk(source):
        for path in (Path(parent, name) for name in (*folders, *files)):
            relative, mode = path.relative_to(source), path.lstat().st_mode
            count += 1
            if count > _MAX_ENTRIES:
                raise ModelError(f"it has more than {_MAX_ENTRIES:,} files and folders")
            if stat.S_ISDIR(mode):
                (target / relative).mkdir()
            elif stat.S_ISREG(mode):
                free = _copy_file(path, target / relative, free)
            else:
                raise ModelError(f"{relative} is a symbolic link or a special file, which no signature covers")


def _copy_file(source: Path, target: Path, limit: int) -> int:
    """Copies a file of at most ``limit`` bytes; returns what is left of them."""
    handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb") as original, target.open("xb") as copy:  # noqa: PTH123 (a handle)
        while chunk := original.read(_CHUNK_BYTES):
            limit -= len(chunk)
            if limit < 0:
                raise ModelError(f"{source.name} does not fit: a model gets half of the free space of {target.parent}")
            copy.write(chunk)
    return limit


def _verify(model: Path, key: Path) -> None:
    check_public_key(key)  # again, as it may have been renewed since the server started
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    file = model / SIGNATURE
    if file.stat().st_size > _MAX_SIGNATURE_BYTES:
        raise ModelError(f"{SIGNATURE} has more than {_MAX_SIGNATURE_BYTES / 2**20:.0f} MiB, and is no signature")
    try:
        predicate = _read_predicate(file)
        left_out = [Path(name) for name in predicate["serialization"].get("ignore_paths", ())]
        if present := [name for name in left_out if name != Path(SIGNATURE) and (model / name).exists()]:
            raise ModelError(f"its signature leaves out {list_names(sorted(map(str, present)))}")
        config = verifying.Config().use_elliptic_key_verifier(public_key=key)
        config.set_hashing_config(_cover_all_files()).verify(model, file)
    except ModelError:
        raise
    except InvalidSignature:
        raise ModelError(f"{SIGNATURE} was changed: the signature in it is not valid") from None
    except Exception as error:  # a stranger's file, which several libraries parse
        if str(error).startswith("Signature mismatch"):
            raise ModelError(f"{_describe_changes(model, predicate)} since it was signed") from None
        if str(error).startswith("Key mismatch"):
            raise ModelError(f"it is signed with another key than that of {key}") from None
        raise ModelError(f"{SIGNATURE} can't be read as a signature: {error!r:.200}") from None


def _read_predicate(signature: Path) -> dict[str, Any]:
    """Returns what a signature states: the files with their hashes, and how they were listed."""
    payload = json.loads(signature.read_bytes())["dsseEnvelope"]["payload"]
    return dict(json.loads(base64.b64decode(payload))["predicate"])


def _describe_changes(model: Path, predicate: dict[str, Any]) -> str:
    """Returns which files are not as a valid signature states."""
    signed = {resource["name"]: resource["digest"] for resource in predicate["resources"]}
    present = {str(path.relative_to(model)): path for path in model.rglob("*") if path.is_file()}
    del present[SIGNATURE]
    changes = {
        "added": present.keys() - signed.keys(),
        "removed": signed.keys() - present.keys(),
        "changed": {n for n in present.keys() & signed.keys() if _hash_file(present[n]) != signed[n]},
    }
    return "; ".join(f"{list_names(sorted(names))} was {change}" for change, names in changes.items() if names)


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
