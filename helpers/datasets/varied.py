"""Varied brains: practice brains (synthetic) that differ far more, with and without skull, to learn for real scans."""

from helpers.datasets import practice


def load(recipe):
    """Make them: see `helpers.datasets.practice.load`."""
    return practice.load(recipe, practice.VARIED, "varied practice brains (synthetic)")
