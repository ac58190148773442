"""Segment brain slices with an Improved U-Net: the modules, in the order data flows through them.

recipe      Recipe: every option, checked before anything is loaded
data        Split, Dataset, Task, Box: the types, and the checks every data set passes
datasets/   load(recipe); one module per source: practice, varied, oasis, discs, volumes, lgg, nuclei; files
evaluate    Scores and Verdict: Dice and its relatives per label, subject and image
backend     Keras without start-up chatter; seeds, device and precision
preprocess  a split -> augmented batches, uint8 all the way
model       the blocks, improved_unet(), unet()
fast        a network's twin, which computes the same faster on TensorFlow
train       loss, validation, learning rate, one line per epoch
run         Run: a folder in which a network is trained; a stopped run goes on where it was
predict     Predictor: images in, labels out, in their own frame
show        every figure
scan        scans of your own -> masks on their own grid; python -m helpers.scan
export      a run -> ONNX, LiteRT and a model card; python -m helpers.export
play        slice browser
colab       what Colab needs beyond a plain Jupyter
"""
