import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from helpers import colab

ROOT = Path(colab.__file__).parent.parent
CELLS = json.loads((ROOT / "OASIS_Improved_UNet.ipynb").read_text())["cells"]
PROJECT = ["".join(cell["source"]) for cell in CELLS if "project" in cell["metadata"].get("tags", [])]


@pytest.fixture
def google(monkeypatch, tmp_path):
    """A stand-in for Colab's package: Drive is a folder here, an upload is a zip of the project."""
    drive = tmp_path / "drive"
    monkeypatch.setattr(colab, "DRIVE", drive)
    mounted = []
    modules = {name: types.ModuleType(name) for name in ("google", "google.colab", "google.colab.drive",
                                                         "google.colab.files")}
    modules["google.colab.drive"].mount = lambda folder: mounted.append(folder)
    modules["google.colab"].drive = modules["google.colab.drive"]
    modules["google.colab"].files = modules["google.colab.files"]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return types.SimpleNamespace(drive=drive, mounted=mounted, files=modules["google.colab.files"])


@pytest.fixture
def project(tmp_path):
    """The files that have to be fetched, in a folder of their own."""
    shutil.copytree(ROOT / "helpers", tmp_path / "far" / "oasis" / "helpers", ignore=shutil.ignore_patterns("__pyc*"))
    shutil.copy(ROOT / "requirements.txt", tmp_path / "far" / "oasis")
    (tmp_path / "far" / "oasis" / "runs").mkdir()
    return tmp_path / "far" / "oasis"


def run_set_up(tmp_path, source, monkeypatch, **parameters):
    """Run the notebook's set-up cells in an empty folder, as when it was opened alone; their variables."""
    (tmp_path / "content").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "content")
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(colab, "install_missing", lambda: ["nilearn>=0.13.1"])
    variables = {"PROJECT": source, "DRIVE": False, "RUNS": "runs", "DATA": "", "TRY_ON": "", "SCAN": "",
                 "START": ""} | parameters
    for cell in PROJECT:
        exec(cell, variables)
    return variables


def test_a_project_is_cloned_from_its_address_once(project, google, tmp_path, monkeypatch, capsys):
    git = ["git", "-C", str(project), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], check=True)
    for _ in range(2):  # the second time as after a restart of the kernel
        run_set_up(tmp_path, f"file://{project}", monkeypatch)
        assert Path.cwd() == tmp_path / "content" / "project" / "clone" and Path("helpers/model.py").is_file()
        assert sys.path[0] == str(Path.cwd())
    assert "installed: nilearn" in capsys.readouterr().out


def test_a_project_is_copied_from_drive_without_its_results(project, google, tmp_path, monkeypatch):
    run_set_up(tmp_path, str(project), monkeypatch)
    assert google.mounted == ["/content/drive"]
    assert Path.cwd() == tmp_path / "content" / "project" and not Path("runs").exists()


def test_a_path_still_holds_after_going_to_the_project(project, google, tmp_path, monkeypatch):
    (tmp_path / "content").mkdir()
    (tmp_path / "content" / "slices.zip").write_bytes(b"zip")
    (tmp_path / "content" / "earlier").mkdir()
    variables = run_set_up(tmp_path, str(project), monkeypatch, DATA="slices.zip", SCAN="not/here.nii", START="earlier")
    assert Path(variables["DATA"]).read_bytes() == b"zip" and variables["SCAN"] == "not/here.nii"
    assert Path(variables["START"]).is_dir()
    variables["DATA"] = "slices.zip"  # everything is run once more, in the folder to which it went
    for cell in PROJECT:
        exec(cell, variables)
    assert Path(variables["DATA"]).read_bytes() == b"zip"


def test_a_project_is_uploaded_where_no_address_is_given(project, google, tmp_path, monkeypatch):
    def upload():
        return {Path(shutil.make_archive("oasis-main", "zip", project.parent)).name: b""}

    google.files.upload = upload
    run_set_up(tmp_path, "", monkeypatch)
    assert Path.cwd() == tmp_path / "content" / "project" / "oasis"


def test_what_cannot_be_fetched_is_said(tmp_path, monkeypatch):
    for source in ("file:///nowhere/at/all", ""):
        with pytest.raises(SystemExit, match="Open the notebook from a clone"):
            run_set_up(tmp_path, source, monkeypatch)
    with pytest.raises(RuntimeError, match="DRIVE is for Colab"):
        colab.mount()


def test_a_wrong_upload_can_be_mended(project, google, tmp_path, monkeypatch):
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "photo.txt").write_text("not the project")
    sources = iter([tmp_path / "wrong", project.parent])
    google.files.upload = lambda: {Path(shutil.make_archive("upload", "zip", next(sources))).name: b""}
    with pytest.raises(SystemExit, match="does not give it"):
        run_set_up(tmp_path, "", monkeypatch)
    (project / ".venv" / "helpers").mkdir(parents=True)
    (project / ".venv" / "helpers" / "__init__.py").write_text("")  # a package of that name comes before ours
    run_set_up(tmp_path, "", monkeypatch)
    assert Path.cwd() == tmp_path / "content" / "project" / "oasis"


def test_results_go_to_drive_and_a_zip_comes_from_there(google, tmp_path, monkeypatch):
    (google.drive / "MyDrive").mkdir(parents=True)
    archive = google.drive / "MyDrive" / "slices.zip"
    archive.write_bytes(b"zip")
    monkeypatch.chdir(ROOT)  # helpers/ is here: nothing is fetched
    variables = {"PROJECT": "", "DRIVE": True, "RUNS": "runs", "DATA": str(archive), "TRY_ON": "", "SCAN": "",
                 "START": ""}
    monkeypatch.setattr(colab, "install_missing", list)
    monkeypatch.setattr(colab.near, "__defaults__", (tmp_path / "data",))
    for cell in PROJECT:
        exec(cell, variables)
    assert variables["RUNS"] == google.drive / "MyDrive" / "OASIS_Improved_UNet" / "runs"
    assert variables["DATA"] == str(tmp_path / "data" / "slices.zip")
    assert Path(variables["DATA"]).read_bytes() == b"zip" and google.mounted == [str(google.drive)]


def test_a_zip_is_copied_near_once_and_again_when_it_changed(google, tmp_path):
    google.drive.mkdir()
    far, near = google.drive / "slices.zip", tmp_path / "data"
    far.write_bytes(b"one")
    copy = colab.near(far, near)
    copy.write_bytes(b"two")
    os.utime(copy, ns=(far.stat().st_atime_ns, far.stat().st_mtime_ns))
    assert colab.near(far, near).read_bytes() == b"two"  # not copied again
    far.write_bytes(b"new")
    os.utime(far, (1, 1))
    assert colab.near(far, near).read_bytes() == b"new"
    assert colab.near(tmp_path / "here.zip") == tmp_path / "here.zip"
    assert colab.near(google.drive) == google.drive  # a folder stays where it is


def test_only_what_is_missing_is_installed_and_nothing_else_changed(tmp_path, monkeypatch):
    asked = []

    def pip(words):
        asked.append((words[:-2], Path(words[-1]).read_text()))

    monkeypatch.setattr(colab, "pip", pip)
    assert colab.install_missing() == [] and asked == []
    listed = tmp_path / "requirements.txt"
    listed.write_text(f"# a\nnumpy>=99\nno_such-package>=1  # why\n{colab.NOT_NEEDED}: b\nother-package\n")
    assert colab.install_missing(listed) == ["no_such-package>=1"]
    [(words, constraints)] = asked
    assert words == ["install", "--quiet", "no_such-package>=1"]
    assert f"numpy=={importlib.metadata.version('numpy')}" in constraints.splitlines()


def test_pip_says_why_it_fails():
    with pytest.raises(RuntimeError, match="(?s)pip frobnicate failed.*frobnicate"):
        colab.pip(["frobnicate"])


def test_the_address_is_written_in_one_step(tmp_path):
    for name in ("README.md", "OASIS_Improved_UNet.ipynb"):
        shutil.copy(ROOT / name, tmp_path)
    for owner in ("alice", "bob"):  # twice: it can be changed
        colab.write_address(f"https://github.com/{owner}/oasis.git", tmp_path)
        badge = f"colab.research.google.com/github/{owner}/oasis/blob/main/OASIS_Improved_UNet.ipynb"
        assert (tmp_path / "README.md").read_text().count(badge) == 1
        cells = json.loads((tmp_path / "OASIS_Improved_UNet.ipynb").read_text())["cells"]
        assert badge in "".join(cells[0]["source"])
        [parameters] = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
        assert f'PROJECT = "https://github.com/{owner}/oasis"' in "".join(parameters["source"])
    with (tmp_path / "README.md").open("a") as file:
        file.write('<!-- badge --> say "hi"')
    before = [(tmp_path / name).read_bytes() for name in ("README.md", "OASIS_Improved_UNet.ipynb")]
    with pytest.raises(SystemExit, match="README.md has 2 places.*Nothing was changed"):
        colab.write_address("https://github.com/carol/oasis", tmp_path)
    assert before == [(tmp_path / name).read_bytes() for name in ("README.md", "OASIS_Improved_UNet.ipynb")]
    with pytest.raises(SystemExit, match="is not like"):
        colab.write_address("github.com/alice", tmp_path)
