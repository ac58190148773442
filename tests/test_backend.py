import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import backend

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("gpu, expected", [
    (("A100", (8, 0)), "mixed_bfloat16"), (("Tesla T4", (7, 5)), "mixed_float16"), (("K80", (3, 7)), "float32")])
def test_precision_follows_the_device(monkeypatch, gpu, expected):
    monkeypatch.setattr(backend, "gpu", lambda: gpu)
    assert backend.has_gpu() and backend.device_and_precision() == (gpu[0], expected)


@pytest.mark.parametrize("flags, keras_runs_on, expected", [
    ("avx2 avx512_bf16", "tensorflow", "mixed_bfloat16"), ("avx2", "tensorflow", "float32"),
    ("avx2 amx_bf16", "jax", "float32")])
def test_precision_follows_the_processor(monkeypatch, tmp_path, flags, keras_runs_on, expected):
    monkeypatch.setattr(backend.keras.config, "backend", lambda: keras_runs_on)
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}")
    monkeypatch.setattr(backend, "gpu", lambda: (None, (0, 0)))
    monkeypatch.setattr(backend, "CPU_FLAGS", tmp_path / "cpuinfo")
    assert not backend.has_gpu() and backend.device_and_precision() == ("CPU", expected)


def python(code, **more):
    """What a new Python prints, and writes to stderr, that runs some code in the project."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, **more)


def test_import_is_quiet_and_says_what_it_runs_on():
    done = python("import sys, helpers.data; print('keras' in sys.modules)\n"  # data needs no backend
                  "from helpers import backend; import numpy as np, random\n"
                  "for _ in range(2):\n"
                  "    backend.set_up(1, 'mixed_float16'); print('draws', random.random(), np.random.rand())\n"
                  "print(backend.keras.mixed_precision.dtype_policy().name)", check=True)
    lines = done.stdout.splitlines()
    assert done.stderr == "" and lines[0] == "False" and lines[-1] == "mixed_float16"
    first = f"Python {sys.version.split()[0]}, Keras {backend.keras.__version__} on {backend.version()}, device: "
    assert lines[1].startswith(first) and lines[1].endswith("precision: mixed_float16")
    first, second = (line for line in lines if line.startswith("draws"))
    assert first == second  # both seeded


def test_chatter_is_shown_where_keras_cannot_be_imported(tmp_path):
    (tmp_path / "keras.py").write_text("import os; os.write(2, b'the' + b' reason'); raise ImportError")
    done = python("import helpers.backend", env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert done.returncode and "the reason" in done.stderr


def test_keras_itself_may_be_missing(tmp_path):
    code = "import sys; sys.modules['keras'] = None; import helpers.backend"
    assert python(code).stderr.splitlines()[-1].endswith("Keras is not installed here: pip install -r requirements.txt.")


@pytest.mark.parametrize("given", ["nonsense", "jax", "torch"])
def test_a_backend_that_is_not_there_is_told_in_one_sentence(given):
    if importlib.util.find_spec(given):
        pytest.skip(f"{given} is installed here")
    done = python("import helpers.backend", env=os.environ | {"KERAS_BACKEND": given})
    assert f"UserError: Keras cannot start on {given}: " in done.stderr.splitlines()[-1]


def test_another_layout_in_kerass_own_settings_changes_nothing(tmp_path):
    (tmp_path / "keras.json").write_text('{"image_data_format": "channels_first"}')
    done = python("from helpers import backend; print(backend.keras.config.image_data_format())", check=True,
                  env=os.environ | {"KERAS_HOME": str(tmp_path)})
    assert done.stdout == "channels_last\n"
