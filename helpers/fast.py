"""What Keras computes, computed faster by TensorFlow on a processor. Every class stands for a stock one, its test.

Networks are built, shown and saved with Keras's own layers; `quick` gives their weights to a twin, which is trained and
predicts. On a GPU (where it was not measured) and on other backends the twin is the network itself.
"""

import numpy as np

from helpers.backend import has_gpu, keras

layers, ops = keras.layers, keras.ops
FASTER = keras.config.backend() == "tensorflow" and not has_gpu()
if keras.config.backend() == "tensorflow":
    import tensorflow as tf


class InstanceNormalization(layers.GroupNormalization):
    """`GroupNormalization(groups=-1)`, by TensorFlow's fused batch normalisation of each slice."""

    def call(self, inputs):
        """Normalise (B, H, W, C) over H and W, in float32; as Keras does where B is not known."""
        if inputs.shape[0] is None:
            return super().call(inputs)
        scale, shift = (tf.fill([inputs.shape[-1]], default) if weight is None else tf.cast(weight, "float32")
                        for weight, default in ((self.gamma, 1.0), (self.beta, 0.0)))
        return tf.concat([tf.compat.v1.nn.fused_batch_norm(one, scale, shift, epsilon=self.epsilon)[0]
                          for one in tf.split(inputs, inputs.shape[0])], 0)


class UpConvolution(layers.Conv2D):
    """`UpSampling2D(2)`, then `Conv2D` 3x3, as one transposed convolution 4x4: 16 multiply-adds where 36 were."""

    def call(self, inputs):
        """(B, H, W, C) to (B, 2 H, 2 W, filters)."""
        kernel = self.kernel[::-1, ::-1]
        for before, after in ([(0, 1), (0, 0)], [(1, 0), (0, 0)]), ([(0, 0), (0, 1)], [(0, 0), (1, 0)]):
            kernel = ops.pad(kernel, [*before, (0, 0), (0, 0)]) + ops.pad(kernel, [*after, (0, 0), (0, 0)])
        return ops.conv_transpose(inputs, ops.swapaxes(kernel, 2, 3), 2, "same") + self.bias

    def compute_output_shape(self, input_shape):
        """Twice as high and wide."""
        return (input_shape[0], *(n and 2 * n for n in input_shape[1:3]), self.filters)


class QuickAdamW(keras.optimizers.AdamW):
    """`keras.optimizers.AdamW`, by one TensorFlow operation a variable: a quarter of the time to compile."""

    def _apply_weight_decay(self, variables):
        share = 1 - tf.cast(self.learning_rate, "float32") * self.weight_decay
        for variable in filter(self._use_weight_decay, variables):
            variable.assign(variable * share)

    def _clip_by_norm(self, values, axes=None):
        return tf.clip_by_norm(values, self.clipnorm)

    def update_step(self, gradient, variable, learning_rate):
        """Move a variable, and its two moments."""
        index, step = self._get_variable_index(variable), tf.cast(self.iterations + 1, "float32")
        moments = [slots[index].value.handle for slots in (self._momentums, self._velocities)]
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle, m=moments[0], v=moments[1], beta1_power=self.beta_1**step,
            beta2_power=self.beta_2**step, lr=tf.cast(learning_rate, "float32"), beta1=self.beta_1, beta2=self.beta_2,
            epsilon=self.epsilon, grad=gradient)


class SharedAdamW(keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` of several devices, whose gradients are added up before they are clipped."""

    def _clip_gradients(self, grads):
        n = over_devices(ops.ones(()))  # Keras adds up what is clipped once more
        return [grad / n for grad in super()._clip_gradients([over_devices(grad) for grad in grads])]


class FixedBatch(keras.Model):
    """A network that is told in training how many slices a batch has; `fit` does not say so."""

    batch = None

    def train_step(self, data):
        """Keras's own, on a batch of known size."""
        images, *rest = data
        return super().train_step((tf.ensure_shape(images, (self.batch, *images.shape[1:])), *rest))


AdamW = QuickAdamW if FASTER else keras.optimizers.AdamW


def over_devices(sums):
    """Sums over a device's part of a batch, summed over all devices; JAX does so by itself."""
    here = keras.config.backend() == "tensorflow" and tf.distribute.get_replica_context()
    return here.all_reduce("SUM", sums) if here and here.num_replicas_in_sync > 1 else sums


def quick(network):
    """A twin of a network that computes the same, with its weights; the network itself where it is not to be had."""
    if not FASTER:
        return network
    try:
        twin = keras.models.clone_model(network, clone_function=exchange)
        twin = FixedBatch(twin.input, twin.output, name=network.name)
        twin.set_weights(network.get_weights())
        twin(np.zeros([n or 32 for n in (1, *network.input_shape[1:])], "uint8"))
    except (tf.errors.OpError, ValueError):
        print("The faster layers do not fit this network or this processor: Keras's own are used.")
        return network
    return twin


def exchange(layer):
    """The layer that takes a layer's place in a twin."""
    kind, config = type(layer), layer.get_config()
    if kind is layers.GroupNormalization:
        return InstanceNormalization.from_config(config)
    if layer.name.startswith("up_"):  # of a pair that is not exchanged whole, shapes no longer fit: no twin then
        if kind is layers.UpSampling2D and (*config["size"], config["interpolation"]) == (2, 2, "nearest"):
            return layers.Identity(name=layer.name)
        if kind is layers.Conv2D and (layer.kernel_size, layer.strides, layer.use_bias) == ((3, 3), (1, 1), True):
            return UpConvolution.from_config(config)
    return kind.from_config(config)


def probabilities(network, images, batch):
    """A network's probabilities (N, H, W, L) of images (N, H, W, C), in batches of one size, which is compiled once."""
    found = []
    for at in range(0, len(images), batch):
        some = images[at:at + batch]
        filled = np.concatenate([some, np.zeros((batch - len(some), *some.shape[1:]), some.dtype)])
        found.append(ops.convert_to_numpy(network.predict_on_batch(filled))[:len(some)])
    return np.concatenate(found)
