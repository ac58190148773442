"""The networks: the Improved U-Net of Isensee et al. (2017) in 2-D, and the plain U-Net beside it.

Every layer is named `block-part` (`context_2-conv_a`), so that the table and the drawing of a network
are read off the built graph and can never disagree with it.
"""

import pandas as pd

from helpers.backend import keras

layers = keras.layers

SLOPE = 0.01  # of the leaky ReLU; Keras's own default is 0.3
EPSILON = 1e-5  # added to the variance in every normalisation


def build(recipe, dataset):
    """The recipe's network for a data set, at the size it sees, first weights from the recipe's seed."""
    keras.utils.set_random_seed(recipe.seed)
    return of_recipe(recipe, dataset.image_shape[-1], dataset.n_labels, dataset.box.seen(recipe.size))


def of_recipe(recipe, channels, n_labels, shape=(None, None)):
    """The recipe's network for images of any size, or of one `shape` (H, W)."""
    if recipe.network == "unet":
        return unet((*shape, channels), n_labels, recipe.filters)
    return improved_unet((*shape, channels), n_labels, recipe.filters, recipe.dropout)


def improved_unet(shape, n_labels, filters, dropout, levels=5, supervised=3):
    """Build the Improved U-Net (Isensee et al. 2017, arXiv 1802.10508), carried from 3-D to 2-D.

    `shape` is (H, W, C), H and W divisible by 2 ** (levels - 1), or None for any; `filters` is the width of level 1
    and doubles at each level down; `dropout` is the share of maps dropped in context modules; the top `supervised`
    levels each draw a segmentation, and these are summed. Maps uint8 images (B, H, W, C) to label probabilities
    (B, H, W, L), float32.
    """
    check_shape(shape, levels)
    image = keras.Input(shape, dtype="uint8", name="image")
    x = standardise(image)

    skips = []
    for level in range(1, levels + 1):
        width = filters * 2 ** (level - 1)
        x = conv(x, width, f"down_{level}", strides=1 if level == 1 else 2)  # (B, H/2^(l-1), W/2^(l-1), width)
        x = context_module(x, width, dropout, f"context_{level}")
        skips.append(x)

    segmentation = None
    for level in range(levels - 1, 0, -1):
        width = filters * 2 ** (level - 1)
        x = upsampling_module(x, width, f"up_{level}")
        x = layers.Concatenate(name=f"localisation_{level}-concatenate")([x, skips[level - 1]])  # (B, h, w, 2 * width)
        wide = conv_norm_act(x, 2 * width, f"localisation_{level}", part="conv_a")
        if level <= supervised:  # deep supervision: the coarser levels draw maps too, and the maps are summed
            segmentation = add_segmentation(segmentation, wide, n_labels, f"output_{level}")
        if level > 1:
            x = conv_norm_act(wide, width, f"localisation_{level}", part="conv_b", kernel=1)
    return keras.Model(image, to_probabilities(segmentation), name="improved_unet")


def context_module(x, width, dropout, name):
    """Two pre-activation 3x3 convolutions with dropout between, added to their input: a residual block."""
    residual = norm_act(x, name, "a")
    residual = conv(residual, width, name, part="conv_a")
    residual = layers.SpatialDropout2D(dropout, name=f"{name}-dropout")(residual)
    residual = norm_act(residual, name, "b")
    residual = conv(residual, width, name, part="conv_b")
    return norm_act(layers.Add(name=f"{name}-add")([x, residual]), name, "out")


def upsampling_module(x, width, name):
    """Repeat every pixel 2x2, then a 3x3 convolution that halves the number of maps."""
    x = layers.UpSampling2D(2, interpolation="nearest", name=f"{name}-upsample")(x)
    return conv_norm_act(x, width, name)


def add_segmentation(so_far, x, n_labels, name):
    """A 1x1 convolution to one map per label, added element-wise to the coarser level's, upsampled x2."""
    maps = conv(x, n_labels, name, kernel=1)
    if so_far is None:
        return maps
    so_far = layers.UpSampling2D(2, interpolation="nearest", name=f"{name}-upsample")(so_far)
    return layers.Add(name=f"{name}-add")([so_far, maps])


def unet(shape, n_labels, filters, levels=5):
    """Build the plain U-Net (Ronneberger et al. 2015): no normalisation, no residuals, one output.

    Arguments and result as in `improved_unet`; the original has 64 filters (31 million weights).
    """
    check_shape(shape, levels)
    image = keras.Input(shape, dtype="uint8", name="image")
    x = standardise(image)
    skips = []
    for level in range(1, levels + 1):
        if level > 1:
            x = layers.MaxPooling2D(2, name=f"encode_{level}-pool")(x)
        x = double_conv(x, filters * 2 ** (level - 1), f"encode_{level}")
        skips.append(x)
    for level in range(levels - 1, 0, -1):
        width = filters * 2 ** (level - 1)
        x = layers.Conv2DTranspose(width, 2, strides=2, name=f"decode_{level}-upsample")(x)
        x = layers.Concatenate(name=f"decode_{level}-concatenate")([x, skips[level - 1]])
        x = double_conv(x, width, f"decode_{level}")
    return keras.Model(image, to_probabilities(conv(x, n_labels, "output_1", kernel=1)), name="unet")


def double_conv(x, width, name):
    """Two 3x3 convolutions, each followed by a ReLU."""
    for part in ("a", "b"):
        x = conv(x, width, name, part=f"conv_{part}")
        x = layers.ReLU(name=f"{name}-relu_{part}")(x)
    return x


def conv(x, width, name, part="conv", kernel=3, strides=1):
    """A convolution that keeps the frame (padding 'same'), He-normal, with no activation of its own."""
    return layers.Conv2D(width, kernel, strides, padding="same", kernel_initializer="he_normal",
                         name=f"{name}-{part}")(x)


def norm_act(x, name, part):
    """Instance normalisation, then leaky ReLU."""
    x = layers.GroupNormalization(groups=-1, epsilon=EPSILON, name=f"{name}-norm_{part}")(x)
    return layers.LeakyReLU(negative_slope=SLOPE, name=f"{name}-act_{part}")(x)


def conv_norm_act(x, width, name, part="conv", kernel=3):
    """A convolution, then instance normalisation and leaky ReLU."""
    return norm_act(conv(x, width, name, part, kernel), name, part)


def standardise(image):
    """Scale grey values 0..255 to mean 0 and standard deviation 1 over each image and channel."""
    x = layers.Rescaling(1 / 255, dtype="float32", name="input-rescale")(image)
    return layers.GroupNormalization(groups=-1, epsilon=EPSILON, center=False, scale=False, dtype="float32",
                                     name="input-standardise")(x)


def to_probabilities(maps):
    """Softmax over the labels, in float32 whatever the precision of the layers before it."""
    return layers.Softmax(dtype="float32", name="output-softmax")(maps)


def check_shape(shape, levels):
    """Raise ValueError unless (H, W, C) can be halved `levels` - 1 times."""
    step = 2 ** (levels - 1)
    if len(shape) != 3 or any(n is not None and (not n or n % step) for n in shape[:2]):
        raise ValueError(f"Images are {shape}; with {levels} levels, height and width must be multiples of {step}.")


def blocks(network):
    """One row per block of a built network, in the order data flows: layers, output shape (H, W, C), weights."""
    rows = pd.DataFrame({"block": layer.name.split("-")[0], "layers": 1, "output": layer.output.shape[1:],
                         "weights": layer.count_params()} for layer in network.layers)
    return rows.groupby("block", sort=False).agg({"layers": "sum", "output": "last", "weights": "sum"})
