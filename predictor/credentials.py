"""Content Credentials: a signature in the picture's file, by which anybody can tell who vouches for it and that nothing has
changed since. For operators who mount a certificate and its key; this module is imported for nobody else.

What is signed is the whole file, what it says about itself included: nothing may be put into it any more.

Needs the package c2pa-python. Nothing is asked over the network, so no authority attests the time of signing: readers take
the signature for valid as long as the certificate is.

Source: the C2PA specification (spec.c2pa.org), on the assertion c2pa.actions.v2 and on certificate profiles.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509 import Certificate, load_pem_x509_certificates

from predictor import __version__, images
from predictor.errors import SigningUnavailable
from predictor.images import EncodedImage

_SOFTWARE = {"name": "kserve-text-to-image", "version": __version__}
_SETTINGS = {
    "builder": {"thumbnail": {"enabled": False}},  # it would take longer and be larger than all the rest
    "verify": {"verify_after_sign": False},
    "core": {"allowed_network_hosts": []},
}
_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
_KEYS = "EC on P-256, P-384 or P-521, Ed25519, or RSA of at least 2048 bits"
_PROFILE = (
    "key usage digitalSignature, extended key usage emailProtection, documentSigning or C2PA's own, an authority key "
    f"identifier, and a key that is {_KEYS}"
)


class CertificateExpired(RuntimeError):
    """While serving. A new process reads a new certificate, or says at its start that there is none."""


class Signer:
    """For several threads at once."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """`certificate`: PEM, that of the key, then its issuers', each before its own issuer's. `key`: PEM, not encrypted.
        Raises SigningUnavailable for those that no picture can be signed with; tries it."""
        self._c2pa = _package()
        chain, private = _read_certificates(certificate), _read_key(key)
        if chain[0].public_key() != private.public_key():
            raise SigningUnavailable(f"the key in {key} is not that of the first certificate in {certificate}")
        _check(chain, certificate)
        self.expires = chain[0].not_valid_after_utc
        algorithm = _algorithm(private, key)
        try:
            self._context = _context(self._c2pa, chain, private, algorithm)
            self.sign(images.encode(np.zeros((1, 1, 3), np.uint8), "png", {}), "", "")
        except self._c2pa.C2paError:
            raise SigningUnavailable(f"the certificate in {certificate} does not fit C2PA's profile: {_PROFILE}") from None

    def sign(self, image: EncodedImage, model: str, commit: str) -> EncodedImage:
        """The same picture with its credentials inside: 3 to 5 kB. Raises CertificateExpired."""
        if datetime.now(UTC) >= self.expires:
            raise CertificateExpired
        signed = io.BytesIO()
        builder = self._c2pa.Builder(_manifest(model, commit), self._context)
        builder.sign(image.media_type, io.BytesIO(image.data), signed)
        return replace(image, data=signed.getvalue())


def _manifest(model: str, commit: str) -> dict[str, Any]:
    created = {
        "action": "c2pa.created",
        "digitalSourceType": images.DIGITAL_SOURCE_TYPE,
        "softwareAgent": _SOFTWARE,
        "parameters": {"model": model, "commit": commit},
    }
    # "created": what the signer says itself; or else it would count as gathered from others.
    actions = {"label": "c2pa.actions.v2", "created": True, "data": {"actions": [created]}}
    return {"claim_generator_info": [_SOFTWARE], "assertions": [actions]}


# ---------------------------------------------------------------- what is mounted


def _package() -> ModuleType:
    try:
        import c2pa
    except ImportError:
        how = "pip install 'kserve-text-to-image[c2pa]', or docker build --build-arg EXTRAS=c2pa"
        raise SigningUnavailable(f"signing needs the package c2pa-python: {how}") from None
    package: ModuleType = c2pa
    return package


def _read_certificates(path: Path) -> list[Certificate]:
    try:
        return load_pem_x509_certificates(_read(path))
    except ValueError:
        raise SigningUnavailable(f"{path} holds no certificate in PEM") from None


def _read_key(path: Path) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(_read(path), password=None)
    except TypeError:
        raise SigningUnavailable(f"the key in {path} must not be encrypted") from None
    except (ValueError, UnsupportedAlgorithm):
        raise SigningUnavailable(f"{path} holds no private key in PEM") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SigningUnavailable(f"{path} cannot be read: {error.strerror}") from None


def _check(chain: Sequence[Certificate], path: Path) -> None:
    """What the library would not find, or not name."""
    for issued, issuer in zip(chain, chain[1:], strict=False):
        try:
            issued.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):  # of another name; with a key of another kind; with another key
            raise SigningUnavailable(f"each certificate in {path} must be issued by the one after it") from None
    begin, end = chain[0].not_valid_before_utc, chain[0].not_valid_after_utc
    if not begin <= datetime.now(UTC) < end:
        raise SigningUnavailable(f"the certificate in {path} is not valid now, but from {begin:%F %R} to {end:%F %R} UTC")


def _algorithm(key: PrivateKeyTypes, path: Path) -> str:
    """As C2PA calls it."""
    match key:
        case ec.EllipticCurvePrivateKey() if key.curve.name in _CURVES:
            return _CURVES[key.curve.name]
        case rsa.RSAPrivateKey():
            return "ps256"
        case ed25519.Ed25519PrivateKey():
            return "ed25519"
    raise SigningUnavailable(f"the key in {path} must be {_KEYS}")


def _context(c2pa: ModuleType, chain: Sequence[Certificate], key: PrivateKeyTypes, algorithm: str) -> Any:
    certificates = b"".join(each.public_bytes(Encoding.PEM) for each in chain)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())  # the only form that the library reads
    information = c2pa.C2paSignerInfo(algorithm, certificates, private, ta_url=None)
    return c2pa.Context.from_dict(_SETTINGS, signer=c2pa.Signer.from_info(information))
