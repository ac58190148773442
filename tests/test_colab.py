import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from helpers import colab

ROOT = Path(__file__).parent.parent
BOOK = "OASIS_Improved_UNet.ipynb"
BADGE = (r"\[!\[Open in Colab\]\(https://colab\.research\.google\.com/assets/colab-badge\.svg\)\]"
         rf"\(https://colab\.research\.google\.com/github/(\S+)/blob/main/{BOOK}\)")
ADDRESS = "https://example.org/oasis"


def cell(tag, book=ROOT / BOOK):
    """The source of the one cell of the notebook that has a tag."""
    [found] = [c["source"] for c in json.loads(book.read_text())["cells"] if tag in c["metadata"].get("tags", [])]
    return "".join(found)


@pytest.fixture
def google(monkeypatch, tmp_path):
    """A stand-in for Colab's package: Drive is a folder here, mounted when asked for."""
    drive = tmp_path / "drive"
    found = types.SimpleNamespace(drive=drive, mounted=[], archive=drive / "MyDrive" / "slices.zip")
    modules = {name: types.ModuleType(name) for name in ("google", "google.colab", "google.colab.drive",
                                                         "google.colab.files")}

    def mount(folder):
        """What Colab does, once the reader has allowed it."""
        found.mounted.append(folder)
        found.archive.parent.mkdir(parents=True)
        found.archive.write_bytes(b"zip")

    found.google_drive, modules["google.colab.drive"].mount = modules["google.colab.drive"], mount
    modules["google.colab"].files = found.files = modules["google.colab.files"]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(colab, "DRIVE", drive)
    return found


@pytest.mark.parametrize("where, asked", [("Colab", [["no-such-package==1"]]), ("Jupyter", [])])
def test_in_colab_only_what_is_missing_is_installed(where, asked, request, monkeypatch):
    if where == "Colab":
        request.getfixturevalue("google")
    calls = []
    monkeypatch.setattr(colab, "MISSING", {"numpy": "numpy==1", "no_such_package": "no-such-package==1"})
    done = types.SimpleNamespace(returncode=0)
    monkeypatch.setattr(subprocess, "run", lambda words, **options: calls.append(words) or done)
    assert colab.set_up(Path.cwd(), "runs", "") == ["runs", ""]
    assert calls == [[sys.executable, "-m", "pip", "install", "--quiet", *pins] for pins in asked]


def test_pip_says_why_it_fails():
    with pytest.raises(colab.SetUpError, match="(?s)pip could not install --frobnicate: .*no such option"):
        colab.install(["--frobnicate"])


@pytest.mark.parametrize("error, sentence", [
    (ModuleNotFoundError("No module named 'nibabel'"), "No module named 'nibabel'. Install .*requirements.txt"),
    (ValueError("numpy.dtype size changed"), "nibabel does not fit .*numpy.dtype size changed.*environment or runtime"),
    (ImportError("numpy.core.multiarray failed"), "nibabel does not fit .*multiarray")])
def test_a_package_that_is_missing_or_does_not_fit_is_named(error, sentence, monkeypatch):
    def load(name):
        if name == "nibabel":
            raise error

    monkeypatch.setattr(colab.importlib, "import_module", load)
    with pytest.raises(colab.SetUpError, match=sentence):
        colab.set_up(Path.cwd())


def test_drive_is_mounted_only_where_a_path_lies_on_it(google, tmp_path):
    pane = tmp_path / "slices.zip"  # dropped into Colab's own file pane: used where it is
    pane.write_bytes(b"zip")
    assert colab.set_up(tmp_path, "runs", str(pane)) == ["runs", str(pane)]
    assert google.mounted == [] and not Path("runs").exists()
    runs = str(google.drive / "MyDrive" / "runs")
    assert colab.set_up(tmp_path, runs, str(google.archive)) == [runs, str(Path("runs/data/slices.zip"))]
    assert google.mounted == [str(google.drive)] and Path("runs/data/slices.zip").read_bytes() == b"zip"
    colab.set_up(tmp_path, runs)
    assert len(google.mounted) == 1  # it is there already


def test_a_folder_of_data_on_drive_is_said_to_be_slow_and_read_where_it_is(google, tmp_path, capsys):
    google.google_drive.mount(google.drive)
    runs, data, near = google.drive / "MyDrive" / "runs", google.drive / "MyDrive" / "slices", tmp_path / "slices"
    for folder in (runs, data, near):
        folder.mkdir()
    assert colab.set_up(Path.cwd(), str(runs), str(near), "") == [str(runs), str(near), ""]
    assert colab.set_up(Path.cwd(), str(runs), str(google.archive)) and not capsys.readouterr().out
    assert colab.set_up(Path.cwd(), str(runs), str(data), "") == [str(runs), str(data), ""]
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{data} is a folder on Drive, slow to read") and "zip" in line


def test_a_drive_that_cannot_be_mounted_is_said(google, monkeypatch):
    def refuse(folder):
        raise ValueError("mount failed")

    google.google_drive.mount = refuse
    with pytest.raises(colab.SetUpError, match="could not be mounted .mount failed.. Allow it, or use the file pane"):
        colab.set_up(Path.cwd(), str(google.archive))
    monkeypatch.delitem(sys.modules, "google.colab")
    with pytest.raises(colab.SetUpError, match="this is not Colab: give a path on this machine"):
        colab.set_up(Path.cwd(), str(google.archive))


def test_an_archive_is_copied_once_and_again_when_it_changed(google):
    google.google_drive.mount(google.drive)
    copy = colab.local_copy(google.archive)
    copy.write_bytes(b"two")
    os.utime(copy, ns=(google.archive.stat().st_atime_ns, google.archive.stat().st_mtime_ns))
    assert colab.local_copy(google.archive).read_bytes() == b"two"  # not copied again
    google.archive.write_bytes(b"newer")
    assert colab.local_copy(google.archive).read_bytes() == b"newer"
    assert colab.local_copy(google.archive.parent) == google.archive.parent  # a folder is read where it is
    with pytest.raises(colab.SetUpError, match="Nothing is at .*no.zip. Check its name"):
        colab.local_copy(google.drive / "no.zip")


def test_a_copy_is_whole_or_not_there(google, monkeypatch):
    google.google_drive.mount(google.drive)

    def break_off(source, target):
        Path(target).write_bytes(b"z")
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(shutil, "copy2", break_off)
        with pytest.raises(colab.SetUpError, match="slices.zip could not be copied .*Input/output error.*file pane"):
            colab.local_copy(google.archive)
    assert not Path("runs/data/slices.zip").exists()
    assert colab.local_copy(google.archive).read_bytes() == b"zip"


@pytest.fixture
def project(tmp_path):
    """What has to be fetched, in a folder of its own."""
    shutil.copytree(ROOT / "helpers", tmp_path / "far" / "oasis" / "helpers", ignore=shutil.ignore_patterns("__pyc*"))
    return tmp_path / "far" / "oasis"


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    """A function that runs the notebook's `project` cell, as when the notebook was opened alone; its variables."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    (tmp_path / "content").mkdir()

    def run(source, code=cell("project"), **variables):
        """From where the notebook lies, as after a restart, with the parameter PROJECT."""
        os.chdir(tmp_path / "content")
        variables |= {"PROJECT": source}
        exec(code, variables)
        return variables

    return run


def test_a_project_is_cloned_and_cloned_once(project, fetch, tmp_path, monkeypatch):
    git = ["git", "-C", str(project), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], check=True)
    for name, value in (("COUNT", "1"), ("KEY_0", f"url.file://{project}.insteadOf"), ("VALUE_0", ADDRESS)):
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    for _ in range(2):  # the second time as after a restart of the kernel
        fetch(ADDRESS)
        assert Path.cwd() == tmp_path / "content" / "project_fetched" and Path("helpers/model.py").is_file()
        assert sys.path[0] == str(Path.cwd())


def test_paths_given_before_the_fetch_are_meant_from_the_notebook(project, fetch, google, tmp_path):
    source = shutil.make_archive(str(tmp_path / "oasis"), "zip", project.parent)
    for variables in (fetch(source), fetch(source)):  # run once more: nothing moves
        assert Path.cwd() == tmp_path / "content" / "project_fetched" / "oasis"
        there = tmp_path / "content"
        assert colab.set_up(variables["HERE"], "runs", "slices.zip", "", "~/scan.nii") == [
            str(there / "runs"), str(there / "slices.zip"), "", str(Path.home() / "scan.nii")]


def test_a_zip_of_the_project_is_taken_in_a_plain_jupyter(project, fetch, tmp_path):
    fetch(shutil.make_archive(str(tmp_path / "oasis"), "zip", project.parent))
    assert Path.cwd() == tmp_path / "content" / "project_fetched" / "oasis"


def test_in_colab_a_zip_is_asked_for_and_a_wrong_one_can_be_mended(project, fetch, google, tmp_path):
    (tmp_path / "slices").mkdir()
    (tmp_path / "slices" / "case_001_slice_0.nii.png").write_bytes(b"")
    sources = iter([tmp_path / "slices", project.parent])
    google.files.upload = lambda: {Path(shutil.make_archive("upload", "zip", next(sources))).name: b""}
    with pytest.raises(SystemExit, match="no helpers/ here: .*DATA that of the slices"):
        fetch("https://github.com/OWNER/NAME")
    assert not Path("project_fetched").exists()  # so that git could clone there now
    fetch("https://github.com/OWNER/NAME")
    assert Path.cwd() == tmp_path / "content" / "project_fetched" / "oasis"


@pytest.mark.parametrize("source", ["https://github.com/OWNER/NAME", "", "no/such.zip", "https://nowhere.invalid/a"])
def test_what_cannot_be_fetched_is_said_in_one_sentence(source, fetch):
    with pytest.raises(SystemExit, match="There is no helpers/ here: PROJECT is the project"):
        fetch(source)


def test_beside_the_project_nothing_is_fetched(project, fetch, tmp_path):
    shutil.move(project / "helpers", tmp_path / "content" / "helpers")
    assert fetch(ADDRESS)["HERE"] == Path.cwd() == tmp_path / "content" and os.listdir() == ["helpers"]


@pytest.fixture
def published(tmp_path):
    """Copies of README and notebook after the README's line for publishers was run on them."""
    for name in ("README.md", BOOK):
        shutil.copy(ROOT / name, tmp_path)
    [line] = [line for line in (tmp_path / "README.md").read_text().splitlines() if line.startswith("sed -i")]
    subprocess.run(line, shell=True, cwd=tmp_path, check=True)
    return tmp_path


def test_one_line_writes_the_address_everywhere(published):
    for place, owner in ((ROOT, "OWNER/NAME"), (published, "you/your-repository")):
        first = "".join(json.loads((place / BOOK).read_text())["cells"][0]["source"])
        for text in ((place / "README.md").read_text(), first):
            assert re.findall(BADGE, text) == [owner]
        assert f'PROJECT = "https://github.com/{owner}"' in cell("parameters", place / BOOK)


def test_a_published_notebook_clones_its_project(published, fetch, monkeypatch):
    asked = []

    def clone(words, **options):
        asked.append(words)
        Path("project_fetched/helpers").mkdir(parents=True)
        Path("project_fetched/helpers/colab.py").touch()
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(subprocess, "run", clone)
    fetch("https://github.com/you/your-repository", cell("project", published / BOOK))
    [words] = asked
    assert words[:2] == ["git", "clone"] and words[-2:] == ["https://github.com/you/your-repository", "project_fetched"]


def test_a_number_is_a_name(tmp_path):
    assert colab.set_up(Path.cwd(), 2, 2018, None) == ["2", "2018", ""]
