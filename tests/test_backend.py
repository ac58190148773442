import subprocess
import sys
from pathlib import Path

import pytest

from helpers import backend


@pytest.mark.parametrize("gpu, expected", [
    (("A100", (8, 0)), "mixed_bfloat16"), (("Tesla T4", (7, 5)), "mixed_float16"), (("K80", (3, 7)), "float32")])
def test_precision_follows_the_device(monkeypatch, gpu, expected):
    monkeypatch.setattr(backend, "gpu", lambda: gpu)
    assert backend.device_and_precision() == (gpu[0], expected)


@pytest.mark.parametrize("flags, expected", [("avx2 avx512_bf16", "mixed_bfloat16"), ("avx2", "float32")])
def test_precision_follows_the_processor(monkeypatch, tmp_path, flags, expected):
    monkeypatch.setattr(backend.keras.config, "backend", lambda: "tensorflow")  # others stay in float32
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}")
    monkeypatch.setattr(backend, "gpu", lambda: (None, (0, 0)))
    monkeypatch.setattr(backend, "CPU_FLAGS", tmp_path / "cpuinfo")
    assert backend.device_and_precision() == ("CPU", expected)


def test_import_is_quiet_and_data_needs_no_backend():
    root = Path(__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", "import helpers.data, sys; print('keras' in sys.modules); "
                          "import helpers.backend; helpers.backend.set_up(1)"],
                         cwd=root, capture_output=True, text=True, check=True)
    assert run.stderr == "" and run.stdout.startswith("False\nPython 3")
    assert "seed: 1" in run.stdout
