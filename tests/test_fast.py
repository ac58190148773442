"""What is computed faster is what Keras's own layers and optimizer compute."""

import keras
import numpy as np
import pytest

from helpers import fast, model, train
from helpers.recipe import Recipe

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.skipif(not fast.FASTER, reason="Keras's own are used here")
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(3, 2, (3, 8, 12, 6)).astype("float32")


def outputs_and_gradients(network, images):
    """Outputs of a network, and gradients of a weighted sum of them, in its images and weights."""
    images = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(images)
        found = network(images)
        total = tf.reduce_sum(found * np.random.default_rng(1).normal(size=found.shape).astype("float32"))
    return [found, *tape.gradient(total, [images, *network.trainable_variables])]


def network_of(*layers):
    """A network of layers, with weights drawn at random."""
    network = keras.Sequential([keras.Input(IMAGES.shape[1:]), *layers])
    rng = np.random.default_rng(2)
    network.set_weights([rng.normal(1, 0.5, weight.shape) for weight in network.weights])
    return network


@pytest.mark.parametrize("stock, quick", [
    ([keras.layers.GroupNormalization(groups=-1, epsilon=1e-5)], [fast.InstanceNormalization(groups=-1, epsilon=1e-5)]),
    ([keras.layers.GroupNormalization(groups=-1, center=False, scale=False)],
     [fast.InstanceNormalization(groups=-1, center=False, scale=False)]),
    ([keras.layers.UpSampling2D(2), keras.layers.Conv2D(5, 3, padding="same")],
     [fast.UpConvolution(5, 3, padding="same")])])
def test_layers_have_the_outputs_and_gradients_of_keras(stock, quick):
    stock, quick = network_of(*stock), network_of(*quick)
    assert stock.output_shape == quick.output_shape
    for expected, found in zip(*(outputs_and_gradients(net, IMAGES) for net in (stock, quick)), strict=True):
        assert np.allclose(expected, found, atol=2e-5 * np.abs(expected).max())


def test_the_optimizer_moves_as_keras_does():
    moved = []
    for kind in (keras.optimizers.AdamW, fast.AdamW):
        rng = np.random.default_rng(0)
        variables = [keras.Variable(np.ones(shape, "float32")) for shape in ((3, 4), (5,))]
        optimizer = kind(train.schedule(100, 3e-3), 0.1, clipnorm=1.0)
        optimizer.build(variables)
        for _ in range(6):  # one gradient is clipped, one is not
            optimizer.apply([tf.constant(rng.normal(0, sd, v.shape), tf.float32)
                             for sd, v in zip((5, 0.001), variables)])
        moved.append([np.array(value) for value in (*variables, *optimizer.variables)])
    assert not np.allclose(moved[0][0], 1)
    for expected, found in zip(*moved, strict=True):
        assert np.allclose(expected, found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["improved_unet", "unet"])
def test_a_twin_computes_what_its_network_does(name):
    keras.utils.set_random_seed(0)  # of some first weights, rounding alone moves the second step by .001
    network = model.of_recipe(Recipe("practice", network=name, filters=4), 1, 4)
    twin = fast.quick(network)
    kinds = {type(layer) for layer in twin.layers}
    assert ({fast.InstanceNormalization, fast.UpConvolution} <= kinds) == (name == "improved_unet")
    assert [w.path for w in twin.weights] == [w.path for w in network.weights]
    images = RNG.integers(0, 256, (2, 32, 48, 1)).astype("uint8")
    assert np.allclose(network(images), twin(images), atol=1e-4)
    labels = RNG.integers(0, 4, (2, 32, 48))
    for net in (network, twin):
        net.compile(keras.optimizers.SGD(0.1), train.dice_and_cross_entropy)
    twin.batch = 2
    assert twin.train_on_batch(images, labels) == pytest.approx(network.train_on_batch(images, labels), abs=1e-4)
    assert twin.train_on_batch(images, labels) == pytest.approx(network.train_on_batch(images, labels), abs=1e-4)


def test_where_the_batch_is_not_known_the_stock_layer_is_used():
    network = network_of(fast.InstanceNormalization(groups=-1))
    assert np.allclose(network.predict(IMAGES, verbose=0), network(IMAGES), atol=1e-5)


def test_another_upsampling_has_no_twin(monkeypatch):
    def bilinear(x, width, name):
        x = keras.layers.UpSampling2D(2, interpolation="bilinear", name=f"{name}-upsample")(x)
        return model.conv_norm_act(x, width, name)

    monkeypatch.setattr(model, "upsampling_module", bilinear)
    network = model.of_recipe(Recipe("practice", filters=1), 1, 4)
    assert fast.quick(network) is network


def test_without_tensorflow_a_network_is_its_own_twin(monkeypatch):
    monkeypatch.setattr(fast, "FASTER", False)
    network = network_of(keras.layers.Conv2D(2, 3))
    assert fast.quick(network) is network


def test_a_processor_without_a_kernel_uses_the_stock_layers(monkeypatch, capsys):
    def lacking(*_, **__):
        raise tf.errors.UnimplementedError(None, None, "no such kernel")

    monkeypatch.setattr(tf.compat.v1.nn, "fused_batch_norm", lacking)
    network = model.of_recipe(Recipe("practice", filters=1), 1, 4)
    assert fast.quick(network) is network and "Keras's own are used" in capsys.readouterr().out


def test_batches_of_one_size_hold_every_image():
    shapes = []

    class Network:
        def predict_on_batch(self, images):
            shapes.append(images.shape)
            return images / 2

    images = RNG.integers(0, 256, (5, 4, 4, 1))
    assert np.array_equal(fast.probabilities(Network(), images, 2), images / 2) and set(shapes) == {(2, 4, 4, 1)}
