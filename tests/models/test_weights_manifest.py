"""The manifest of a weights folder: damage and folders that are none are refused by name."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from siimcovid.core.errors import InputError
from siimcovid.models import weights_manifest


def test_damaged_weights_are_refused_by_name(imagenet, tmp_path):
    for name in ("manifest.json", "efficientnet_lite0.safetensors"):
        (tmp_path / name).write_bytes((imagenet / name).read_bytes())
    with (tmp_path / "efficientnet_lite0.safetensors").open("r+b") as stream:
        stream.seek(1_000_000)
        stream.write(b"\xff")
    with pytest.raises(InputError, match=r"efficientnet_lite0\.safetensors is damaged"):
        weights_manifest.verified(tmp_path, "efficientnet_lite0.safetensors")
    (tmp_path / "efficientnet_lite0.safetensors").unlink()
    with pytest.raises(InputError, match=r"efficientnet_lite0\.safetensors is missing"):
        weights_manifest.verified(tmp_path, "efficientnet_lite0.safetensors")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest\.json is damaged"):
        weights_manifest.read_manifest(tmp_path)


def test_a_manifest_cut_anywhere_is_one_sentence(imagenet, tmp_path):
    text = (imagenet / "manifest.json").read_text().strip()
    for length in range(len(text)):
        (tmp_path / "manifest.json").write_text(text[:length])
        with pytest.raises(InputError, match=r"manifest\.json is damaged .*siimcovid weights import"):
            weights_manifest.read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["[]", "null", '{"a": 1}', '{"a": {}}', '{"a": {"sha256": 3}}', "3"])
def test_json_that_is_no_manifest(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json is no manifest"):
        weights_manifest.read_manifest(tmp_path)


def test_a_weights_folder_that_is_a_file(tmp_path):
    (tmp_path / "study.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"study\.safetensors is a file; name the folder"):
        weights_manifest.read_manifest(tmp_path / "study.safetensors")
    with pytest.raises(InputError, match=r"study\.safetensors is a file; name the folder"):
        weights_manifest.verified(tmp_path / "study.safetensors", "study.safetensors")
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(InputError, match=r"manifest\.json cannot be read"):
        weights_manifest.read_manifest(tmp_path)


def test_entries_made_at_the_same_time_are_all_there(tmp_path):
    """As two trainings leave them that end at the same moment in one folder."""
    names = [f"model{number}.safetensors" for number in range(24)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: weights_manifest.register(tmp_path / name, stage="rcnn"), names))
    assert set(weights_manifest.read_manifest(tmp_path)) == set(names)
