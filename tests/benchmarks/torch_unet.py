"""The Improved U-Net in PyTorch, written plainly: what speed.py and race.py run by a Python that has PyTorch.

Channels last, bfloat16 by autocast, on a GPU where there is one. Instances are normalised by GroupNorm(C, C) or by InstanceNorm2d: which is faster
depends on precision and machine, so speed.py measures both.
"""

import json
import math
import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def conv(before, after, kernel=3, stride=1):
    """A convolution that keeps the frame, He-normal."""
    layer = nn.Conv2d(before, after, kernel, stride, kernel // 2)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


def act(width, norm):
    """Instance normalisation, then leaky ReLU."""
    layer = nn.GroupNorm(width, width) if norm == "GroupNorm" else nn.InstanceNorm2d(width, affine=True)
    return nn.Sequential(layer, nn.LeakyReLU(0.01))


class ImprovedUNet(nn.Module):
    """Images uint8 (B, H, W, 1) to label probabilities float32 (B, L, H, W), as `helpers.model.improved_unet`."""

    def __init__(self, norm, n_labels=4, filters=16, dropout=0.0):
        super().__init__()
        widths, many = [filters * 2**level for level in range(5)], nn.ModuleList
        self.down = many(conv(a, b, stride=1 if k == 0 else 2) for k, (a, b) in enumerate(zip([1, *widths], widths)))
        self.context = many(nn.Sequential(act(w, norm), conv(w, w), nn.Dropout2d(dropout), act(w, norm), conv(w, w))
                            for w in widths)
        self.out = many(act(w, norm) for w in widths)
        up = widths[-2::-1]
        self.up = many(nn.Sequential(nn.Upsample(scale_factor=2), conv(2 * w, w), act(w, norm)) for w in up)
        self.wide = many(nn.Sequential(conv(2 * w, 2 * w), act(2 * w, norm)) for w in up)
        self.narrow = many(nn.Sequential(conv(2 * w, w, 1), act(w, norm)) for w in up[:-1])
        self.draw = many(conv(2 * w, n_labels, 1) for w in up[1:])

    def forward(self, images):
        x = images.permute(0, 3, 1, 2) / 255
        x = (x - x.mean((2, 3), keepdim=True)) * torch.rsqrt(x.var((2, 3), keepdim=True, correction=0) + 1e-5)
        x, skips, drawn = x.contiguous(memory_format=torch.channels_last), [], 0
        for down, context, out in zip(self.down, self.context, self.out):
            x = down(x)
            x = out(x + context(x))
            skips.append(x)
        for k, (up, wide) in enumerate(zip(self.up, self.wide)):
            x = wide(torch.cat([up(x), skips[-2 - k]], 1))
            if k > 0:
                drawn = (F.interpolate(drawn, scale_factor=2) if k > 1 else 0) + self.draw[k - 1](x)
            x = self.narrow[k](x) if k < len(self.narrow) else x
        return drawn.float().softmax(1)


class Trainer:
    """A network, AdamW, and a learning rate that warms up, then falls as half a cosine, over `steps`."""

    def __init__(self, norm, precision, steps, learning_rate=3e-3, weight_decay=1e-4, seed=0, **shape):
        torch.manual_seed(seed)
        self.device, self.low = "cuda" if torch.cuda.is_available() else "cpu", "bfl" in precision
        self.network = ImprovedUNet(norm, **shape).to(self.device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), learning_rate, weight_decay=weight_decay)
        warm = max(1, round(0.05 * steps))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: step / warm if step < warm else (
            1 + math.cos(math.pi * min(1, (step - warm) / max(1, steps - warm)))) / 2)

    def step(self, images, labels):
        """Train on a batch of images uint8 (B, H, W, 1) and labels (B, H, W), with the loss of `helpers.train`."""
        self.network.train()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.low):
            found = self.network(self.given(images))
        wanted = F.one_hot(self.given(labels).long(), found.shape[1]).permute(0, 3, 1, 2).float()
        both, total = (wanted * found).sum((0, 2, 3)), (wanted + found).sum((0, 2, 3))
        cross_entropy = -torch.log((wanted * found).sum(1).clamp_min(1e-7)).mean()
        self.optimizer.zero_grad(set_to_none=True)
        (1 - ((2 * both + 1) / (total + 1)).mean() + cross_entropy).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()

    def predict(self, images):
        """Probabilities (B, L, H, W) of images."""
        self.network.eval()
        with torch.inference_mode(), torch.autocast(self.device, torch.bfloat16, enabled=self.low):
            return self.network(self.given(images)).cpu().numpy()

    def given(self, array):
        """An array on the device."""
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def wait(self):
        """Until a GPU has done what it was told."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def speed_parts(name, precision, shape, batch, threads, filters):
    """What PyTorch can be asked for by speed.py: {word: function}."""
    torch.set_num_threads(threads)
    trainer, rng = Trainer(name.split()[-1], precision, 800, filters=filters), np.random.default_rng(0)
    images, labels = (rng.integers(0, top, (batch, *shape), "uint8") for top in (256, 4))
    return {"version": lambda: f"PyTorch {torch.__version__}",
            "weights": lambda: sum(weights.numel() for weights in trainer.network.parameters()),
            "train": lambda: trainer.step(images[..., None], labels),
            "predict": lambda: float(trainer.predict(images[..., None])[0, 0, 0, 0])}


def enter(settings, images, labels):
    """The functions that train on the next batch and that predict labels, for race.py."""
    from race import batches_of

    recipe = settings["recipe"]
    norm = "InstanceNorm" if "bfl" in settings["precision"] else "GroupNorm"  # the faster in training
    trainer = Trainer(norm, settings["precision"], settings["steps"], n_labels=len(settings["labels"]), **{
        name: recipe[name] for name in ("filters", "dropout", "learning_rate", "weight_decay", "seed")})
    batches = batches_of([images, labels], recipe["batch"], recipe["seed"], settings["task"][3])
    return lambda: trainer.step(*next(batches)), lambda some: trainer.predict(some).argmax(1)


if __name__ == "__main__":
    if sys.argv[1] == "speed":
        from speed import answer
        answer(speed_parts(sys.argv[2], **json.loads(sys.argv[3])))
    else:
        from race import compete
        compete(enter, *sys.argv[2:])
