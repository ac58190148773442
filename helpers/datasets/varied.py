"""Varied brains: practice brains (synthetic) that differ far more, with and without skull, to learn for real scans."""

from helpers.datasets import practice


def load(path=None, size=None, limit=None, seed=0):
    """Make them: see `helpers.datasets.practice.load`."""
    return practice.load(path, size, limit, seed, practice.VARIED, "varied practice brains (synthetic)")
