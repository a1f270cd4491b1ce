"""Loads any noise model from its file."""

from io import BytesIO

import numpy as np

from samplers.noise import npz
from samplers.noise.autoregressive import AutoregressiveNoise
from samplers.noise.base import NoiseModel
from samplers.noise.channels import PREFIX, ChannelNoise
from samplers.noise.correlated import CorrelatedNoise
from samplers.noise.gaussian import GaussianNoise
from samplers.noise.gmm import GaussianMixtureNoise
from samplers.noise.histogram import HistogramNoise
from samplers.noise.photons import PhotonNoise

# A key that only files of this kind contain.
KINDS: dict[
    str, type[AutoregressiveNoise | GaussianMixtureNoise | GaussianNoise | HistogramNoise | PhotonNoise]
] = {
    "context": AutoregressiveNoise,  # before std, which its files contain too
    "trained_weight": GaussianMixtureNoise,
    "correlation": CorrelatedNoise,  # before gain, which its files contain too
    "read_noise": PhotonNoise,  # before gain, which its files contain too
    "gain": GaussianNoise,
    "std": GaussianNoise,
    "histogram": HistogramNoise,
}


def load_noise_model(path: npz.NoiseFile) -> NoiseModel:
    """Loads a noise model of any kind from an .npz file, including the GMM files of PN2V-family tools.

    Raises ValueError if the file contains none.
    """
    arrays = npz.read(path)
    keys = arrays.keys()
    if f"{PREFIX}0" in keys:
        return _of_channels(path, arrays)
    kind = next((kind for key, kind in KINDS.items() if key in keys), None)
    if kind is None:
        raise ValueError(
            f"{path}: holds {', '.join(keys) or 'nothing'}, none of {', '.join(KINDS)};"
            " pass a noise model that distill or a PN2V-family tool wrote"
        )
    return kind.read(path)


def _of_channels(path: npz.NoiseFile, arrays: dict[str, np.ndarray]) -> ChannelNoise:
    models = []
    for c in range(len(arrays)):
        try:
            models.append(load_noise_model(BytesIO(arrays[f"{PREFIX}{c}"].tobytes())))
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{path}: the noise model of channel {c} is damaged or missing ({error})"
            ) from None
    return ChannelNoise(models)
