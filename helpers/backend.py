"""Keras on whichever backend is installed: imported quietly, seeded, in the precision that suits the device."""

import logging
import os
import platform
import sys
import tempfile
from contextlib import contextmanager, nullcontext
from pathlib import Path

from helpers.recipe import UserError

CPU_FLAGS = Path("/proc/cpuinfo")
PROCESSES = "KERAS_DISTRIBUTION_NUM_PROCESSES"  # the names that `keras.distribution.initialize` reads
PATIENCE = 30  # seconds without a sign of life, after which another process is given up


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
            raise UserError(f"Keras cannot start on {name}: {error}. Install it, or set KERAS_BACKEND to another.") from error
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    keras.config.set_image_data_format("channels_last")  # whatever keras.json says
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of compiling for slices of another size
    return keras


def join():
    """Join the processes that the environment names as `keras.distribution.initialize` does; all train one network."""
    try:
        if keras.config.backend() != "jax":
            raise ValueError(f"this is {keras.config.backend()}")
        import jax
        jax.distributed.initialize(  # SLURM would give each process one GPU only
            os.environ.get("KERAS_DISTRIBUTION_JOB_ADDRESSES", "").split(",")[0], int(os.environ[PROCESSES]),
            int(os.environ.get("KERAS_DISTRIBUTION_PROCESS_ID", 0)), cluster_detection_method="deactivate",
            initialization_timeout=2 * PATIENCE, heartbeat_timeout_seconds=PATIENCE)
    except (ImportError, ValueError, RuntimeError) as error:
        raise UserError(f"The processes did not find each other ({error}). All need KERAS_BACKEND=jax.") from error


keras = import_quietly()
if PROCESSES in os.environ:
    join()  # before anything is computed


def set_up(seed=0, precision=None):
    """Seed everything, choose the precision that suits this device, and print both with the versions."""
    keras.utils.set_random_seed(seed)
    device, best = device_and_precision()
    keras.mixed_precision.set_dtype_policy(precision or best)
    print(f"Python {platform.python_version()}, Keras {keras.__version__} on {version()}, device: {device}, "
          f"precision: {precision or best}")
    if device == "CPU":
        print("No GPU found: training is sized for a processor. In Colab: Runtime > Change runtime type > T4 GPU.")


def processes():
    """Number of this process, from 0, and how many train together."""
    if keras.config.backend() != "jax":
        return 0, 1
    import jax
    return jax.process_index(), jax.process_count()


def shared(devices, batch):
    """Two contexts, to make a network in and to train it in, so that devices share each batch; UserError if they cannot."""
    if devices == 1 and processes()[1] == 1:
        return nullcontext(), nullcontext()
    found = keras.distribution.list_devices() if keras.config.backend() in ("jax", "tensorflow") else []
    if devices > len(found) or devices < len(found) and processes()[1] > 1:
        raise UserError(f"devices is {devices}; here are {len(found)}: {', '.join(found)}.")
    if batch % devices:
        raise UserError(f"batch is {batch}; {devices} devices share a multiple of {devices}.")
    if keras.config.backend() == "tensorflow" and keras.mixed_precision.dtype_policy().name == "mixed_float16":
        raise UserError("TensorFlow cannot share batches in mixed_float16. Set KERAS_BACKEND=jax.")
    if keras.config.backend() == "jax":
        share = keras.distribution.DataParallel(devices=found[:devices], auto_shard_dataset=False)
        return share.scope(), share.scope()
    strategy = sys.modules["tensorflow"].distribute.MirroredStrategy
    return strategy([name.upper() for name in found[:devices]]).scope(), nullcontext()


@contextmanager
def alone():
    """Inside, what is computed is computed by this process on one device, whatever is shared around it."""
    around = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    yield
    keras.distribution.set_distribution(around)


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
        for device in (device for device in jax.devices() if device.platform == "gpu"):
            return device.device_kind, tuple(int(n) for n in str(device.compute_capability).split("."))
    elif backend == "torch":
        import torch
        if torch.cuda.is_available():
            return torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    return None, (0, 0)
