import functools
import hashlib
import http.server
import shutil
import tarfile
import threading

import nibabel as nib
import numpy as np
import pytest

from helpers import data
from helpers.data import DataError
from helpers.datasets import discs


def write_scan(folder, scan, n="n4", labels=True, seed=0):
    """One scan in OASIS-1's layout: Analyze 7.5, 16-bit big-endian, 176x208x176 at 1 mm."""
    place = folder / scan / "PROCESSED" / "MPRAGE" / "T88_111"
    (place / "FSL_SEG").mkdir(parents=True)
    drawn = np.zeros((176, 208, 176), np.int16)
    drawn[20:156, 18:190, 20:160] = 2
    drawn[60:110, 60:140, 60:120] = 3
    drawn[30:50, 120:180, 20:160] = 3  # low x, far forward
    drawn[84:92, 90:120, 80:110] = 1
    image = drawn * 300 + np.random.default_rng(seed).integers(0, 50, drawn.shape, np.int16) * (drawn > 0)
    kinds = {f"{scan}_mpr_{n}_anon_111_t88_gfc": image}
    if labels:
        kinds[f"FSL_SEG/{scan}_mpr_{n}_anon_111_t88_masked_gfc_fseg"] = drawn
    for name, array in kinds.items():
        header = nib.Spm2AnalyzeHeader(endianness=">")
        header.set_data_dtype(">i2")
        nib.save(nib.Spm2AnalyzeImage(array.astype(">i2"), None, header), place / f"{name}.img")
        (place / f"{name}.mat").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def disc(tmp_path_factory):
    """disc1 with four subjects, one of them scanned twice, and one without labels."""
    folder = tmp_path_factory.mktemp("oasis1")
    for scan, n in (("OAS1_0001_MR1", "n4"), ("OAS1_0002_MR1", "n3"), ("OAS1_0002_MR2", "n4"), ("OAS1_0003_MR1", "n5"),
                    ("OAS1_0004_MR1", "n4")):
        write_scan(folder / "disc1", scan, n)
    write_scan(folder / "disc1", "OAS1_0005_MR1", labels=False)
    return folder


@pytest.fixture(scope="module")
def archive(disc, tmp_path_factory):
    file = tmp_path_factory.mktemp("packed") / "oasis_cross-sectional_disc1.tar.gz"
    with tarfile.open(file, "w:gz", compresslevel=1) as tar:
        tar.add(disc / "disc1", "disc1")
    return file


def test_layout_is_the_courses(disc):
    made = data.load("oasis", disc)
    assert made.image_shape == (256, 256, 1) and made.n_labels == 4
    counts = {s: int((split.subjects == s).sum()) for split in made.splits for s in set(split.subjects.tolist())}
    assert counts == {"OAS1_0001": 32, "OAS1_0002": 64, "OAS1_0003": 32, "OAS1_0004": 32}  # repeat scan: same person
    assert "5 scans; incomplete, left out: OAS1_0005_MR1" in made.task.origin
    rows, columns = np.nonzero(made.train.labels[0])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (60, 195, 42, 213)  # padded by 40 and 24
    rows, columns = np.nonzero(made.train.labels[0] == 3)
    assert columns.max() == 24 + 179  # forward is to the right
    assert (rows[columns > 170].mean() < 128) == (nib.AnalyzeHeader.default_x_flip is False)  # stored flipped in x
    assert made.train.images.max() == 255 and set(np.unique(made.train.labels)) == {0, 1, 2, 3}


def test_archive_reads_as_the_folder_does(disc, archive):
    unpacked, packed = data.load("oasis", disc), data.load("oasis", archive)
    for a, b in zip(unpacked.splits, packed.splits):
        assert np.array_equal(a.images, b.images) and a.subjects.tolist() == b.subjects.tolist()
    assert len(data.load("oasis", archive.parent).train) == len(packed.train)


def test_tar_cut_short(archive, tmp_path):
    (tmp_path / "cut.tar.gz").write_bytes(archive.read_bytes()[:200_000])
    with pytest.raises(DataError, match="cut.tar.gz is not a whole tar archive"):
        data.load("oasis", tmp_path / "cut.tar.gz")


def test_header_without_image(disc, tmp_path):
    shutil.copytree(disc / "disc1" / "OAS1_0001_MR1", tmp_path / "disc1" / "OAS1_0001_MR1")
    next(tmp_path.rglob("*_gfc.img")).unlink()
    with pytest.raises(DataError, match="t88_gfc.hdr in .* lacks its other half"):
        data.load("oasis", tmp_path)


def test_volumes_of_different_shape(disc, tmp_path):
    shutil.copytree(disc / "disc1" / "OAS1_0001_MR1", tmp_path / "disc1" / "OAS1_0001_MR1")
    [file] = tmp_path.rglob("*_fseg.img")
    nib.save(nib.Spm2AnalyzeImage(np.ones((90, 90, 90), np.int16), None), file)
    with pytest.raises(DataError, match=r"fseg.img \(90, 90, 90\) does not lie on the grid of .*gfc.img \(176, "):
        data.load("oasis", tmp_path)


def test_climbing_names(tmp_path):
    with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../outside.hdr"))
    with pytest.raises(DataError, match="leads out of the archive"):
        data.load("oasis", tmp_path / "bad.tar.gz")


class Server(http.server.BaseHTTPRequestHandler):
    content, cut = b"", None  # what is served; after how many bytes the line breaks

    def do_GET(self):  # noqa: N802
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        if start >= len(self.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(self.content)}")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start:None if self.cut is None else start + self.cut])

    def log_message(self, *args):
        pass


@pytest.fixture
def served():
    """A server of ten thousand bytes, and a `fetch` that asks it."""
    handler = type("Handler", (Server,), {"content": bytes(range(250)) * 40})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/oasis_disc{{}}.tar.gz"
    yield handler, functools.partial(discs.fetch, [1], address=address, accept_terms=True,
                                     md5={1: hashlib.md5(handler.content).hexdigest()})
    server.shutdown()


def test_fetch_shows_the_terms_and_waits_for_them(served, tmp_path, capsys):
    _, fetch = served
    with pytest.raises(DataError, match="accept_terms"):
        fetch(tmp_path / "new", accept_terms=False)
    with pytest.raises(DataError, match="'false'"):
        fetch(tmp_path / "new", accept_terms="false")
    with pytest.raises(DataError, match="no disc '1;2'"):
        discs.fetch(["1;2"], tmp_path / "new", accept_terms=True)
    assert "Data Use Agreement" in capsys.readouterr().out and not (tmp_path / "new").exists()


def test_fetch_resumes_a_broken_download(served, tmp_path):
    handler, fetch = served
    handler.cut = 4000
    for have in (4000, 8000):
        with pytest.raises(DataError, match="goes on where it was"):
            fetch(tmp_path)
        assert [(f.name, f.stat().st_size) for f in tmp_path.iterdir()] == [("oasis_disc1.tar.gz.part", have)]
    fetch(tmp_path)
    [file] = tmp_path.iterdir()
    assert file.name == "oasis_disc1.tar.gz" and file.read_bytes() == handler.content
    handler.content = b"other"
    fetch(tmp_path)  # what is there is not fetched again
    assert len(file.read_bytes()) == 10_000


def test_wrong_checksum_is_said_and_removed(served, tmp_path):
    handler, fetch = served
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(DataError, match="arrived damaged: its md5"):
        fetch(tmp_path, md5={1: "0" * 32})
    assert [f.name for f in tmp_path.iterdir()] == ["mine.txt"]


def test_full_disk_and_wrong_address(served, tmp_path, monkeypatch):
    _, fetch = served
    with pytest.raises(DataError, match="stopped"):
        fetch(tmp_path, address="http://127.0.0.1:9/disc{}.tar.gz")
    monkeypatch.setattr(discs.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(DataError, match="Free some space"):
        fetch(tmp_path)


def test_disc_slices_lie_like_the_real_pair(disc, real_data):
    from helpers.datasets import oasis

    files = oasis.Files(real_data / "oasis_sample")
    made, real = data.load("oasis", disc).train, oasis.read_split(files, "train", oasis.find_slices(files))
    ours, theirs = (np.argwhere(split.labels[0] > 0) for split in (made, real))
    assert np.abs(ours.min(0) - theirs.min(0)).max() <= 3 and np.abs(ours.max(0) - theirs.max(0)).max() <= 3
