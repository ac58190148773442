"""Segment brain slices with an Improved U-Net: the modules, in the order data flows through them.

data        Split, Dataset, DataError, the checks every set must pass, load(name, path, ...)
datasets/   one module per source: practice, varied, oasis (course slices, discs), volumes, lgg, nuclei
backend     Keras without start-up chatter; seeds, device and precision
preprocess  Dataset -> augmented batches, uint8 all the way
model       the blocks, improved_unet(), unet()
train       loss, precision, schedule, fit with resume
evaluate    predictions -> Dice and its relatives per label, subject and image; uncertainty; the verdict
show        every figure
predict     a trained network on a scan of your own
play        slice browser, live curves, scan picker
colab       what Colab needs beyond a plain Jupyter
"""
