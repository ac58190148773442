"""Keras on whichever backend is installed: imported quietly, seeded, in the precision that suits the device."""

import logging
import os
import platform
import sys
import tempfile
from pathlib import Path

from helpers.recipe import UserError

CPU_FLAGS = Path("/proc/cpuinfo")


def import_quietly():
    """Import Keras without its backend's start-up chatter, which no setting silences; show it if it fails."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    kept = os.dup(2)
    with tempfile.TemporaryFile() as chatter:
        os.dup2(chatter.fileno(), 2)
        try:
            import keras
        except BaseException as error:
            chatter.seek(0)
            os.write(kept, chatter.read())
            if not isinstance(error, (ImportError, ValueError)):
                raise
            if getattr(error, "name", "") == "keras":
                raise UserError("Keras is not installed here: pip install -r requirements.txt.") from error
            name = os.environ.get("KERAS_BACKEND") or "the one in ~/.keras/keras.json, or tensorflow"
            raise UserError(f"Keras cannot start on its backend ({name}): {error}. Install that backend, or set the "
                            "environment variable KERAS_BACKEND to one that is installed.") from error
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    keras.config.set_image_data_format("channels_last")  # whatever keras.json says
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of compiling for slices of another size
    return keras


keras = import_quietly()


def set_up(seed=0, precision=None):
    """Seed everything, choose the precision that suits this device, and print both with the versions."""
    keras.utils.set_random_seed(seed)
    device, best = device_and_precision()
    keras.mixed_precision.set_dtype_policy(precision or best)
    print(f"Python {platform.python_version()}, Keras {keras.__version__} on {version()}, device: {device}, "
          f"precision: {precision or best}")
    if device == "CPU":
        print("No GPU found: training is sized for a processor. In Colab: Runtime > Change runtime type > T4 GPU.")


def version():
    """Name and version of the backend that Keras runs on."""
    backend = keras.config.backend()
    return f"{backend} {getattr(sys.modules.get(backend), '__version__', '')}".strip()


def has_gpu():
    """Whether Keras will use a GPU."""
    return gpu()[0] is not None


def device_and_precision():
    """Name of the device, and the precision that suits it.

    bfloat16 where the processor computes in it, float16 (Keras then scales the loss) on older GPUs with
    float16 units, float32 elsewhere.
    """
    name, capability = gpu()
    if name:
        return name, ("mixed_bfloat16" if capability >= (8, 0) else
                      "mixed_float16" if capability >= (7, 0) else "float32")
    has_bfloat16 = CPU_FLAGS.exists() and any(flag in CPU_FLAGS.read_text() for flag in ("avx512_bf16", "amx_bf16"))
    return "CPU", "mixed_bfloat16" if has_bfloat16 and keras.config.backend() == "tensorflow" else "float32"


def gpu():
    """Name and compute capability (major, minor) of the GPU that Keras will use; (None, (0, 0)) without one."""
    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf
        for device in tf.config.list_physical_devices("GPU")[:1]:
            details = tf.config.experimental.get_device_details(device)
            return details.get("device_name", "GPU"), details.get("compute_capability", (0, 0))
    elif backend == "jax":
        import jax
        for device in jax.devices()[:1]:
            if device.platform == "gpu":
                return device.device_kind, tuple(int(n) for n in str(device.compute_capability).split("."))
    elif backend == "torch":
        import torch
        if torch.cuda.is_available():
            return torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    return None, (0, 0)
