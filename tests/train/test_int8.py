"""Small model files: what 8 bits keep of the weights, and that whatever does not fit is refused."""

from __future__ import annotations

import numpy as np
import pytest

from minires import models
from minires.data import Normalize
from minires.errors import CheckpointError
from minires.train import Trained, checkpoint, int8, load_model, save_model


def rounded(array):
    """Written a second time: to the nearest of 255 steps between plus and minus the channel's largest."""
    out = np.empty_like(array)
    for channel in range(array.shape[-1]):
        part = array[..., channel]
        step = np.abs(part).max() / 127 or 1.0
        out[..., channel] = np.round(part / step) * step
    return out


def test_what_is_not_finite_is_refused():
    w = np.ones((3, 2), np.float32)
    for value in (np.nan, np.inf):
        w[1, 1] = value
        with pytest.raises(CheckpointError, match="fc.weight holds numbers that are not finite"):
            int8.packed({"fc.weight": w})


def test_each_output_channel_is_rounded_to_its_own_steps():
    w = np.random.default_rng(0).standard_normal((3, 3, 8, 5)).astype(np.float32)
    w[..., 1] *= 1000
    w[..., 2] = 0
    back = int8.unpacked(int8.packed({"conv.weight": w}))["conv.weight"]
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, rounded(w), rtol=1e-6)
    assert np.abs(back[..., 0] - w[..., 0]).max() <= np.abs(w[..., 0]).max() / 254 * 1.0001
    assert not back[..., 2].any()


def test_vectors_stay_as_they_are():
    arrays = {"bn.gamma": np.linspace(0, 1, 7, dtype=np.float32), "bn.count": np.arange(3)}
    packed = int8.packed(arrays)
    assert packed.keys() == arrays.keys() and all(packed[name] is arrays[name] for name in arrays)


def small(path):
    model = models.build("resnet20_cifar", classes=3, seed=1)
    trained = Trained(model, "resnet20_cifar", {}, ("a", "b", "c"), Normalize.none(), (32, 32), "x")
    save_model(path, trained, small=True)
    return model


def test_a_small_file_is_a_quarter_as_large_and_is_read_as_any_other(tmp_path):
    model = small(tmp_path / "small.safetensors")
    there = load_model(tmp_path / "small.safetensors").model.state_dict()
    for name, array in model.state_dict().items():
        assert there[name].dtype == np.float32
        expected = rounded(array) if array.ndim > 1 else array
        np.testing.assert_allclose(there[name], expected, rtol=1e-6, err_msg=name)
    assert (tmp_path / "small.safetensors").stat().st_size < 320_000  # of 270,000 parameters


@pytest.mark.parametrize("wrong", ["missing", "shape", "dtype", "of nothing"])
def test_whole_numbers_without_their_scales_are_refused(wrong, tmp_path):
    path = tmp_path / "small.safetensors"
    small(path)
    arrays, info = checkpoint.read(path)
    scale = arrays.pop("conv1.weight/scale")
    if wrong == "shape":
        arrays["conv1.weight/scale"] = scale[:-1]
    elif wrong == "dtype":
        arrays["conv1.weight/scale"] = scale.astype(np.float64)
    elif wrong == "of nothing":
        arrays |= {"conv1.weight/scale": scale, "conv9.weight/scale": scale}
    checkpoint.write(path, arrays, {name: value for name, value in info.items() if name != "format"})
    with pytest.raises(CheckpointError, match=r"(?s)small.safetensors.*conv[19]\.weight"):
        load_model(path)
