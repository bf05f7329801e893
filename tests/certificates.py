"""Certificates of an authority that nobody knows, to sign pictures with, and a reader that knows it."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

_USES = "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign crl_sign".split()


def ec_key(curve: type[ec.EllipticCurve] = ec.SECP256R1) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve())


def pem(
    key: PrivateKeyTypes, form: PrivateFormat = PrivateFormat.PKCS8, lock: KeySerializationEncryption | None = None
) -> bytes:
    return key.private_bytes(Encoding.PEM, form, lock or NoEncryption())


class Authority:
    def __init__(self) -> None:
        self._key = ec_key()

    @cached_property
    def certificate(self) -> bytes:
        """Its own, PEM."""
        return self._certificate("Authority", self._key, (-1, 365), True, ("key_cert_sign", "crl_sign"))

    def issue(
        self,
        key: PrivateKeyTypes,
        days: tuple[int, int] = (-1, 90),
        purposes: Sequence[ObjectIdentifier] = (ExtendedKeyUsageOID.EMAIL_PROTECTION,),
    ) -> bytes:
        """A signer's, PEM; valid between two `days` from now."""
        usage = x509.ExtendedKeyUsage(purposes)
        return self._certificate("Signer", key, days, False, ("digital_signature",), usage)

    def _certificate(
        self,
        subject: str,
        key: PrivateKeyTypes,
        days: tuple[int, int],
        is_authority: bool,
        uses: Sequence[str],
        *more: x509.ExtensionType,
    ) -> bytes:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .issuer_name(_name("Authority"))
            .subject_name(_name(subject))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=days[0]))
            .not_valid_after(now + timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
            .add_extension(_key_usage(uses), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        for extension in more:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(self._key, SHA256()).public_bytes(Encoding.PEM)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Toys"), x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _key_usage(uses: Sequence[str]) -> x509.KeyUsage:
    return x509.KeyUsage(**{use: use in uses for use in _USES}, encipher_only=False, decipher_only=False)


@dataclass(frozen=True)
class Mounted:
    """What an operator mounts; and of the authority behind it, what a reader must know."""

    certificate: Path
    key: Path
    authority: bytes

    @property
    def arguments(self) -> list[str]:
        return ["--c2pa-certificate", str(self.certificate), "--c2pa-key", str(self.key)]


def mount(folder: Path, key: PrivateKeyTypes | None = None) -> Mounted:
    """A chain of two, and its key."""
    authority, key = Authority(), key or ec_key()
    mounted = Mounted(folder / "tls.crt", folder / "tls.key", authority.certificate)
    mounted.certificate.write_bytes(authority.issue(key) + authority.certificate)
    mounted.key.write_bytes(pem(key))
    return mounted


@dataclass(frozen=True)
class Credentials:
    """What C2PA's own reader makes of a picture."""

    state: str  # Trusted, Valid or Invalid
    failures: set[str]
    manifest: dict[str, Any]

    @property
    def actions(self) -> list[dict[str, Any]]:
        """That the signer vouches for."""
        found = [each for each in self.manifest["assertions"] if each["label"] == "c2pa.actions.v2" and each["created"]]
        return [action for assertion in found for action in assertion["data"]["actions"]]


def read(data: bytes, media_type: str, authority: bytes) -> Credentials:
    """`authority`: whom to trust, PEM. Raises c2pa.C2paError where there are no credentials."""
    context = c2pa.Context.from_dict({"trust": {"trust_anchors": authority.decode()}})
    with c2pa.Reader(media_type, io.BytesIO(data), context=context) as reader:
        told = json.loads(reader.json())
    failures = told["validation_results"]["activeManifest"]["failure"]
    manifest = told["manifests"][told["active_manifest"]]
    return Credentials(told["validation_state"], {each["code"] for each in failures}, manifest)
