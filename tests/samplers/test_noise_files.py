"""Noise models that others wrote: what is wrong is one line, and takes no memory."""

import io
import zipfile

import numpy as np
import pytest

from samplers import AutoregressiveNoise, CorrelatedNoise, GaussianNoise, PhotonNoise, load_noise_model


def test_a_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        archive.open("std.npy", "w") as member,
    ):
        for _ in range(400):
            member.write(bytes(10**6))
    assert path.stat().st_size < 10**6
    with pytest.raises(ValueError, match="400 MB of arrays, allowed are 150"):
        load_noise_model(path)


def test_an_array_that_is_larger_than_its_file_is_one_line(tmp_path):
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": "<f8", "fortran_order": False, "shape": (10**13,)})
    with zipfile.ZipFile(tmp_path / "liar.npz", "w") as archive:
        archive.writestr("std.npy", array.getvalue())
    with pytest.raises(ValueError, match="not a readable"):
        load_noise_model(tmp_path / "liar.npz")


def test_arguments_do_not_ask_for_more_memory_than_there_are_weights(tmp_path):
    AutoregressiveNoise("row", filters=4).write(tmp_path / "sound.npz")
    with np.load(tmp_path / "sound.npz") as file:
        stored = dict(file)
    np.savez(tmp_path / "huge.npz", **stored | {"filters": np.array(10**6)})
    with pytest.raises(ValueError, match="weights do not fit"):
        load_noise_model(tmp_path / "huge.npz")


def test_arrays_that_a_damaged_directory_hides_are_missed(tmp_path):
    path = tmp_path / "noise.npz"
    GaussianNoise(gain=2.0, offset=5.0, min_variance=1.0).write(path)
    data = bytearray(path.read_bytes())
    first, last = data.index(b"PK\1\2"), data.rindex(b"PK\1\2")
    second = data.index(b"PK\1\2", first + 1)
    data[second + 32] = data.index(b"PK\5\6") - last  # the bytes of its comment: the whole last entry
    path.write_bytes(data)
    with pytest.raises(ValueError, match="arrays are left of 3"):
        load_noise_model(path)


@pytest.mark.parametrize(
    "model",
    [
        GaussianNoise(gain=2.0, offset=5.0),
        PhotonNoise(2.0, 5.0, 1.0),
        CorrelatedNoise([[0.1, 1.0, 0.1]], gain=1),
    ],
)
def test_keys_that_do_not_belong_and_values_of_other_kinds_are_one_line(model, tmp_path):
    path = tmp_path / "noise.npz"
    model.write(path)
    with np.load(path) as file:
        stored = dict(file)
    assert type(load_noise_model(path)) is type(model)
    for odd in ({"weights": 1}, {"gain": "a"}, {"gain": [1.0, 2.0]}, {"offset": np.array([object()])}):
        np.savez(path, **stored | odd)
        with pytest.raises(ValueError, match=r"noise\.npz"):
            load_noise_model(path)
