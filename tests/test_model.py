"""The built graph against the list of ingredients in Isensee et al. 2017 (arXiv 1802.10508)."""

import keras
import numpy as np
import pytest
from keras import layers

from helpers import model
from helpers.data import TISSUES, Box, Dataset, Split, Task
from helpers.recipe import Recipe


@pytest.fixture(scope="module")
def net():
    return model.improved_unet((64, 64, 1), 4, 16, 0.3)


def named(net, part, kind):
    found = [layer for layer in net.layers if part in layer.name and isinstance(layer, kind)]
    assert found, f"no {kind.__name__} named {part}"
    return found


def parents(layer):
    inputs = layer.input if isinstance(layer.input, list) else [layer.input]
    return [tensor._keras_history.operation for tensor in inputs]


def test_weights_are_pinned(net):
    # worked out by hand for level 1: 1*9*16+16 = 160, context 2*(16*16*9+16) + 3 norms of 2*16 = 4,736
    table = model.blocks(net)
    assert table.weights["down_1"] == 160 and table.weights["context_1"] == 4736
    assert table.weights.sum() == 3_189_404
    assert model.unet((16, 16, 1), 4, 64).count_params() == 31_030_788
    assert model.improved_unet((128, 128, 3), 2, 16, 0).count_params() == (
        3_189_404 + 2 * 9 * 16 - 2 * (128 + 64 + 32 + 3))


def test_filters_double_from_16_to_256(net):
    table = model.blocks(net)
    assert [table.output[f"context_{level}"] for level in range(1, 6)] == [
        (64, 64, 16), (32, 32, 32), (16, 16, 64), (8, 8, 128), (4, 4, 256)]


def test_stride_2_convolutions_go_down_and_nothing_pools(net):
    down = named(net, "down_", layers.Conv2D)
    assert [(c.strides[0], c.kernel_size) for c in down] == [(1, (3, 3))] + [(2, (3, 3))] * 4
    assert not [layer for layer in net.layers if isinstance(layer, layers.MaxPooling2D)]


@pytest.mark.parametrize("level", range(1, 6))
def test_context_modules_are_pre_activation_residuals_with_dropout(net, level):
    name = f"context_{level}"
    add = net.get_layer(f"{name}-add")
    start, second = parents(add)
    chain = [second]
    while parents(chain[-1])[0] is not start:
        chain.append(parents(chain[-1])[0])
    assert [type(layer).__name__ for layer in reversed(chain)] == [
        "GroupNormalization", "LeakyReLU", "Conv2D", "SpatialDropout2D", "GroupNormalization", "LeakyReLU", "Conv2D"]
    assert start.name == f"down_{level}-conv" and net.get_layer(f"{name}-dropout").rate == 0.3
    assert all(layer.kernel_size == (3, 3) for layer in chain if isinstance(layer, layers.Conv2D))


@pytest.mark.parametrize("level", range(1, 5))
def test_upsampling_concatenation_and_localisation(net, level):
    width = 16 * 2 ** (level - 1)
    assert net.get_layer(f"up_{level}-upsample").interpolation == "nearest"
    up = net.get_layer(f"up_{level}-conv")
    assert up.kernel_size == (3, 3) and up.filters == width
    sources = {layer.name for layer in parents(net.get_layer(f"localisation_{level}-concatenate"))}
    assert sources == {f"up_{level}-act_conv", f"context_{level}-act_out"}
    wide = net.get_layer(f"localisation_{level}-conv_a")
    assert wide.kernel_size == (3, 3) and wide.filters == 2 * width
    halving = [c for c in net.layers if c.name == f"localisation_{level}-conv_b"]
    assert [(c.kernel_size, c.filters) for c in halving] == ([((1, 1), width)] if level > 1 else [])


def test_deep_supervision_sums_three_levels_before_the_softmax(net):
    for level in (1, 2, 3):
        maps = net.get_layer(f"output_{level}-conv")
        assert maps.kernel_size == (1, 1) and maps.filters == 4
        assert parents(maps)[0].name == f"localisation_{level}-act_conv_a"
    for level in (1, 2):
        assert {p.name for p in parents(net.get_layer(f"output_{level}-add"))} == {
            f"output_{level}-upsample", f"output_{level}-conv"}
        assert parents(net.get_layer(f"output_{level}-upsample"))[0].name == (
            "output_2-add" if level == 1 else "output_3-conv")
    softmax = net.get_layer("output-softmax")
    assert parents(softmax)[0].name == "output_1-add" and softmax.compute_dtype == "float32"


def test_instance_norm_slope_and_initialisation(net):
    norms = [layer for layer in net.layers if isinstance(layer, layers.GroupNormalization)]
    assert all(norm.groups == norm.input.shape[-1] for norm in norms)  # one group per map: instance norm
    assert {layer.negative_slope for layer in net.layers if isinstance(layer, layers.LeakyReLU)} == {0.01}
    assert all(isinstance(c.kernel_initializer, keras.initializers.HeNormal)
               for c in net.layers if isinstance(c, layers.Conv2D))


def test_scaling_is_inside_and_forgets_gain_and_offset(net):
    inner = keras.Model(net.input, net.get_layer("input-standardise").output)
    image = np.random.default_rng(0).integers(20, 100, (1, 64, 64, 1)).astype(np.uint8)
    scaled = inner.predict(image, verbose=0)
    assert abs(scaled.mean()) < 1e-3 and abs(scaled.std() - 1) < 1e-2
    assert np.allclose(scaled, inner.predict(2 * image + 10, verbose=0), atol=1e-2)
    assert np.allclose(inner.predict(0 * image, verbose=0), 0)  # an empty slice is no trouble


def test_plain_unet():
    net = model.unet((64, 64, 1), 4, 16)
    assert len([layer for layer in net.layers if isinstance(layer, layers.MaxPooling2D)]) == 4
    assert net.output_shape == (None, 64, 64, 4)
    assert not [layer for layer in net.layers if isinstance(layer, (layers.Add, layers.SpatialDropout2D))]


@pytest.mark.parametrize("network", ["improved_unet", "unet"])
def test_a_recipes_network_is_the_same_at_any_size(network):
    """Built at the box, shrunk to the recipe's size, or for any: the same first weights, the same probabilities."""
    recipe = Recipe("practice", network=network, filters=1, dropout=0.2, size=32, seed=3)
    images = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 1), np.uint8)
    splits = [Split(name, images + np.uint8(own), images[..., 0] % 4, np.array([name] * 2), Task("toy", TISSUES, "made"))
              for own, name in enumerate(("train", "validation", "test"))]
    fixed = model.build(recipe, Dataset(*splits, Box(0, 0, 48, 64)))
    assert fixed.name == network and fixed.input_shape == (None, 32, 32, 1)  # 24 rounded to a multiple of 16
    keras.utils.set_random_seed(3)
    any_size = model.of_recipe(recipe, 1, 4)
    assert any_size.input_shape == (None, None, None, 1)
    rates = {layer.rate for layer in any_size.layers if isinstance(layer, layers.SpatialDropout2D)}
    assert rates == ({0.2} if network == "improved_unet" else set())
    small = images[:, :32, :32]
    found = np.asarray(any_size(small))
    assert np.allclose(found, np.asarray(fixed(small)), atol=1e-6) and found.dtype == np.float32
    assert np.allclose(found.sum(-1), 1, atol=1e-5) and np.asarray(any_size(images)).shape == (2, 48, 64, 4)


def test_images_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match="multiples of 16"):
        model.improved_unet((100, 100, 1), 4, 16, 0)
