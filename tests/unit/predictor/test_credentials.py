import io
import json
import struct
import subprocess
import sys
import tomllib
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import c2pa
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from PIL import Image

import certificates
import predictor
from predictor import images
from predictor.credentials import CertificateExpired, Signer
from predictor.errors import SigningUnavailable
from predictor.images import FORMATS, EncodedImage

MADE = {"seed": 7, "prompt": "zebra"}
PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
AUTHORITY = certificates.Authority()
KEY = certificates.ec_key()


@pytest.fixture(scope="module")
def mounted(tmp_path_factory) -> certificates.Mounted:
    return certificates.mount(tmp_path_factory.mktemp("mounted"))


@pytest.fixture(scope="module")
def signer(mounted) -> Signer:
    return Signer(mounted.certificate, mounted.key)


def encoded(output_format: str = "png", pixels: np.ndarray = PIXELS) -> EncodedImage:
    return images.encode(pixels, output_format, MADE)


def signed(signer: Signer, image: EncodedImage) -> EncodedImage:
    return signer.sign(image, "org/model", "c0ffee")


# ---------------------------------------------------------------- signatures


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_signature_says_that_a_model_made_the_picture_and_which(output_format, signer, mounted):
    image = signed(signer, encoded(output_format))
    found = certificates.read(image.data, image.media_type, mounted.authority)
    assert (found.state, found.failures) == ("Trusted", set())
    software = {"name": "kserve-text-to-image", "version": predictor.__version__}
    assert found.actions == [
        {
            "action": "c2pa.created",
            "digitalSourceType": "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
            "softwareAgent": software,
            "parameters": {"model": "org/model", "commit": "c0ffee"},
        }
    ]
    assert software.items() <= found.manifest["claim_generator_info"][0].items()


@pytest.mark.parametrize("output_format", FORMATS)
def test_all_else_in_the_file_stays(output_format, signer):
    plain = encoded(output_format)
    image = signed(signer, plain)
    assert (image.format, image.width, image.height) == (output_format, 64, 48)
    assert images.provenance(image.data) == MADE
    with Image.open(io.BytesIO(plain.data)) as before, Image.open(io.BytesIO(image.data)) as after:
        assert np.array_equal(np.asarray(before), np.asarray(after))
        assert after.info["xmp"] == before.info["xmp"]


def test_credentials_are_small_and_hold_no_prompt_and_no_thumbnail(signer, mounted):
    image = signed(signer, encoded())
    assert len(image.data) - len(encoded().data) < 4000
    manifest = certificates.read(image.data, image.media_type, mounted.authority).manifest
    assert "thumbnail" not in manifest
    assert MADE["prompt"] not in json.dumps(manifest)


def test_a_pixel_that_is_one_brighter_is_found_out(signer, mounted):
    pixels = PIXELS.copy()
    pixels[20, 30, 1] ^= 1
    image = signed(signer, encoded())
    data = replaced(image.data, b"IDAT", body(encoded(pixels=pixels).data, b"IDAT"))
    with Image.open(io.BytesIO(data)) as altered:
        assert np.array_equal(np.asarray(altered), pixels)
    found = certificates.read(data, image.media_type, mounted.authority)
    assert (found.state, found.failures) == ("Invalid", {"assertion.dataHash.mismatch"})


def test_so_is_a_seed_that_was_not_used(signer, mounted):
    for output_format in FORMATS:
        image = signed(signer, encoded(output_format))
        assert image.data.count(b'"seed": 7') == 1
        found = certificates.read(image.data.replace(b'"seed": 7', b'"seed": 8'), image.media_type, mounted.authority)
        assert (found.state, found.failures) == ("Invalid", {"assertion.dataHash.mismatch"})


def test_so_is_what_is_put_into_the_file_afterwards(signer, mounted):
    image = signed(signer, encoded())
    data = images.with_text(image.data, "parameters", "Steps: 20")
    assert certificates.read(data, image.media_type, mounted.authority).state == "Invalid"
    told = replace(encoded(), data=images.with_text(encoded().data, "parameters", "Steps: 20"))
    assert certificates.read(signed(signer, told).data, told.media_type, mounted.authority).state == "Trusted"


def test_threads_sign_side_by_side(signer, mounted):
    pictures = [encoded(pixels=np.full((8, 8, 3), shade, np.uint8)) for shade in range(40)]
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda image: signed(signer, image), pictures))
    for image, plain in zip(made, pictures, strict=True):
        assert certificates.read(image.data, image.media_type, mounted.authority).state == "Trusted"
        assert body(image.data, b"IDAT") == body(plain.data, b"IDAT")


def test_nothing_is_signed_with_a_certificate_that_has_expired(signer, monkeypatch):
    assert timedelta(days=80) < signer.expires - datetime.now(UTC) < timedelta(days=91)
    monkeypatch.setattr(signer, "expires", datetime.now(UTC))
    with pytest.raises(CertificateExpired):
        signed(signer, encoded())


# ---------------------------------------------------------------- what is mounted


@pytest.mark.parametrize(
    ("key", "form", "algorithm"),
    [
        (certificates.ec_key(), PrivateFormat.TraditionalOpenSSL, "Es256"),
        (certificates.ec_key(ec.SECP384R1), PrivateFormat.PKCS8, "Es384"),
        (certificates.ec_key(ec.SECP521R1), PrivateFormat.PKCS8, "Es512"),
        (ed25519.Ed25519PrivateKey.generate(), PrivateFormat.PKCS8, "Ed25519"),
        (rsa.generate_private_key(65537, 2048), PrivateFormat.TraditionalOpenSSL, "Ps256"),
    ],
)
def test_every_kind_of_key_that_c2pa_knows(key, form, algorithm, tmp_path):
    mounted = certificates.mount(tmp_path, key)
    mounted.key.write_bytes(certificates.pem(key, form))
    image = signed(Signer(mounted.certificate, mounted.key), encoded())
    found = certificates.read(image.data, image.media_type, mounted.authority)
    assert found.state == "Trusted"
    assert found.manifest["signature_info"]["alg"] == algorithm


def refused(folder: Path, certificate: bytes, key: bytes) -> str:
    files = folder / "chain.pem", folder / "key.pem"
    for file, content in zip(files, (certificate, key), strict=True):
        file.write_bytes(content)
    with pytest.raises(SigningUnavailable) as error:
        Signer(*files)
    return str(error.value).replace(f"{folder}/", "")


STRANGER = certificates.Authority().certificate
SHORT, KOBLITZ = rsa.generate_private_key(65537, 1024), certificates.ec_key(ec.SECP256K1)


@pytest.mark.parametrize(
    ("certificate", "key", "message"),
    [
        (AUTHORITY.issue(KEY), b"", "key.pem holds no private key in PEM"),
        (AUTHORITY.issue(KEY), AUTHORITY.issue(KEY), "key.pem holds no private key in PEM"),
        (
            AUTHORITY.issue(KEY),
            certificates.pem(KEY, lock=BestAvailableEncryption(b"secret")),
            "the key in key.pem must not be encrypted",
        ),
        (b"-", certificates.pem(KEY), "chain.pem holds no certificate in PEM"),
        (
            AUTHORITY.issue(certificates.ec_key()),
            certificates.pem(KEY),
            "the key in key.pem is not that of the first certificate in chain.pem",
        ),
        (
            AUTHORITY.certificate + AUTHORITY.issue(KEY),
            certificates.pem(KEY),
            "the key in key.pem is not that of the first certificate in chain.pem",
        ),
        (
            AUTHORITY.issue(KEY) + STRANGER,
            certificates.pem(KEY),
            "each certificate in chain.pem must be issued by the one after it",
        ),
        (AUTHORITY.issue(KEY, (-9, -1)), certificates.pem(KEY), "the certificate in chain.pem is not valid now, but from "),
        (AUTHORITY.issue(KEY, (1, 9)), certificates.pem(KEY), "the certificate in chain.pem is not valid now, but from "),
        (
            AUTHORITY.issue(KEY, purposes=[ExtendedKeyUsageOID.SERVER_AUTH]),
            certificates.pem(KEY),
            "the certificate in chain.pem does not fit C2PA's profile: key usage ",
        ),
        (
            AUTHORITY.issue(SHORT),
            certificates.pem(SHORT),
            "the certificate in chain.pem does not fit C2PA's profile: key usage ",
        ),
        (AUTHORITY.issue(KOBLITZ), certificates.pem(KOBLITZ), "the key in key.pem must be EC on P-256, P-384 or P-521, "),
    ],
)
def test_what_cannot_sign_is_refused_before_it_has_to(certificate, key, message, tmp_path):
    assert refused(tmp_path, certificate, key).startswith(message)


def test_files_that_cannot_be_read_are_named(mounted, tmp_path):
    with pytest.raises(SigningUnavailable, match=r"/absent\.pem cannot be read: No such file or directory"):
        Signer(tmp_path / "absent.pem", mounted.key)
    with pytest.raises(SigningUnavailable, match="cannot be read: Is a directory"):
        Signer(mounted.certificate, tmp_path)


def test_a_package_that_is_missing_is_named_with_what_installs_it(mounted, monkeypatch):
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(SigningUnavailable, match=r"pip install 'kserve-text-to-image\[c2pa\]'"):
        Signer(mounted.certificate, mounted.key)


def test_nothing_of_it_is_loaded_for_who_does_not_sign():
    code = (
        "import sys\n"
        "from predictor import answers, loading, settings\n"
        "assert loading._signer(settings.Settings(model_id='a/b')) is None\n"
        "print([name for name in sys.modules if 'c2pa' in name or name == 'predictor.credentials'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_the_version_that_is_told_is_that_of_the_project():
    project = tomllib.loads((Path(predictor.__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert predictor.__version__ == project["version"]


def test_a_picture_without_credentials_has_none(mounted):
    with pytest.raises(c2pa.C2paError.ManifestNotFound):
        certificates.read(encoded().data, "image/png", mounted.authority)


# ---------------------------------------------------------------- PNG


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        found.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def body(png: bytes, kind: bytes) -> bytes:
    [found] = (data for each, data in chunks(png) if each == kind)
    return found


def replaced(png: bytes, kind: bytes, data: bytes) -> bytes:
    parts = [(each, data if each == kind else old) for each, old in chunks(png)]
    files = [struct.pack(">I", len(part)) + each + part + struct.pack(">I", zlib.crc32(each + part)) for each, part in parts]
    return png[:8] + b"".join(files)
