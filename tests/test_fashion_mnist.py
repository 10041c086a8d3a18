"""Pictures from IDX files: tiny ones written here, served by a server of our own; the real ones where they are."""

import functools
import gzip
import hashlib
import http.server
import struct
import threading
import warnings

import numpy as np
import pytest
import torch

from ddpmlab import data, studies
from ddpmlab.data import fashion_mnist
from ddpmlab.metrics import sleeves
from ddpmlab.studies import interpolation

NAMES = tuple(fashion_mnist.MD5)
SIZES = {"train": 40, "t10k": 20}


def idx(array, kind=8, magic=None):
    """The bytes of an IDX file, as http://yann.lecun.com/exdb/mnist describes them."""
    head = struct.pack(">I", magic if magic is not None else (kind << 8) + array.ndim)
    return head + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


def tiny(part):
    rng = np.random.default_rng(SIZES[part])
    n = SIZES[part]
    return rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), np.arange(n, dtype=np.uint8) % 10


def packed():
    files = {}
    for part in SIZES:
        x, y = tiny(part)
        files[f"{part}-images-idx3-ubyte.gz"] = gzip.compress(idx(x))
        files[f"{part}-labels-idx1-ubyte.gz"] = gzip.compress(idx(y))
    return files


FILES = packed()


@pytest.fixture(autouse=True)
def _published(monkeypatch):
    """Take the tiny files for the published ones, and read each anew."""
    monkeypatch.setattr(fashion_mnist, "MD5", {name: hashlib.md5(FILES[name]).hexdigest() for name in NAMES})
    contents = {name[:-3]: hashlib.md5(gzip.decompress(FILES[name])).hexdigest() for name in NAMES}
    monkeypatch.setattr(fashion_mnist, "CONTENT_MD5", contents)
    monkeypatch.setattr(fashion_mnist.time, "sleep", lambda seconds: None)
    fashion_mnist._read.cache_clear()
    yield
    fashion_mnist._read.cache_clear()


def write(folder, **changed):
    """The four files in a folder; `changed` maps a part and kind to other bytes, or to None for no file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in FILES.items():
        content = changed.get("_".join(name.split("-")[:2]), content)
        if content is not None:
            (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPMLAB_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("place", [".", "fashion-mnist"])
def test_files_are_read_byte_for_byte_from_the_folder_or_from_one_within(folder, place):
    write(folder / place)
    split = data.make("fashion_mnist").split()
    for part, x, y in (("train", split.train, split.train_labels), ("t10k", split.test, split.test_labels)):
        pixels, labels = tiny(part)
        assert x.dtype == torch.float32
        assert x.shape == (SIZES[part], 1, 28, 28)
        torch.testing.assert_close(x[:, 0], torch.from_numpy(pixels / 255).float(), atol=0, rtol=1e-7)
        assert y.dtype == torch.int64
        assert y.tolist() == labels.tolist()


def test_unpacked_files_serve_too(folder):
    for name, content in FILES.items():
        (folder / name[:-3]).write_bytes(gzip.decompress(content))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data.make("fashion_mnist").n_train == 40


def test_standardised_by_one_mean_and_one_sd_of_the_training_pixels(folder):
    write(folder)
    own, standardised = data.make("fashion_mnist"), data.make("fashion_mnist").standardised()
    x = standardised.split().train
    pixels = tiny("train")[0] / 255
    assert standardised.mean == pytest.approx(pixels.mean(), abs=1e-12)
    assert standardised.scale == pytest.approx(pixels.std(), abs=1e-12)
    assert x.dtype == torch.float32
    assert float(x.double().mean()) == pytest.approx(0, abs=1e-6)
    assert float(x.double().std(correction=0)) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(standardised.to_own_units(standardised.split().test), own.split().test)
    assert standardised.standardised() is standardised
    assert (standardised.shape, standardised.dim, standardised.n_test) == ((1, 28, 28), 784, 20)
    # another number of pictures, the same units; another class, its own
    assert data.make("fashion_mnist", n_train=3).standardised().mean == standardised.mean
    of_class = tiny("train")[0][tiny("train")[1] == 2] / 255
    assert data.make("fashion_mnist", classes=[2]).standardised().mean == pytest.approx(of_class.mean(), abs=1e-12)


def test_classes_and_limits_keep_the_first_of_each_label(folder):
    write(folder)
    chosen = data.make("fashion_mnist", classes=[7, 2], n_train=5)
    split = chosen.split()
    assert split.train_labels.tolist() == [2, 7, 2, 7, 2]
    assert split.test_labels.tolist() == [2, 7, 2, 7]
    pixels = tiny("train")[0][[2, 7, 12, 17, 22]] / 255
    torch.testing.assert_close(split.train[:, 0], torch.from_numpy(pixels).float())
    assert (chosen.n_train, chosen.n_test, chosen.n_classes) == (5, 4, 10)


def test_nothing_is_read_before_it_is_needed(folder):
    data.make("fashion_mnist", classes=[0]).standardised()  # there are no files
    write(folder)
    first = data.make("fashion_mnist").split()
    assert fashion_mnist._read.cache_info().misses == 2
    data.make("fashion_mnist", classes=[1]).split()
    assert fashion_mnist._read.cache_info().misses == 2
    assert len(first.train) == 40
    assert data.make("fashion_mnist").split().train is first.train


@pytest.mark.filterwarnings("ignore::ddpmlab.data.fashion_mnist.ForeignDataWarning")
def test_a_file_that_changes_is_read_again(folder):
    write(folder)
    assert data.make("fashion_mnist").n_test == 20
    x, y = tiny("t10k")
    write(folder, t10k_images=gzip.compress(idx(x[:10])), t10k_labels=gzip.compress(idx(y[:10])))
    with pytest.warns(fashion_mnist.ForeignDataWarning, match=r"t10k-images.* is sound but not the published file"):
        assert data.make("fashion_mnist").n_test == 10


X, Y = tiny("train")
RAW = idx(X)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_images": gzip.compress(idx(X, magic=2_049))}, r"train-images.*magic number 2049; need 2051"),
        ({"train_images": gzip.compress(idx(X, kind=13))}, r"train-images.*magic number 3331; need 2051"),
        ({"train_labels": gzip.compress(idx(X))}, r"train-labels.*magic number 2051; need 2049"),
        ({"train_images": gzip.compress(RAW[:-1])}, r"train-images.*cut short: 31,375 bytes.*make 31,376"),
        ({"train_images": gzip.compress(RAW + b"\0")}, r"train-images.*goes on behind its end: 31,377 bytes"),
        ({"train_images": gzip.compress(RAW[:9])}, r"train-images.*has 9 bytes; its header alone has 16"),
        ({"train_images": gzip.compress(b"")}, r"train-images.*has 0 bytes"),
        ({"t10k_images": FILES["t10k-images-idx3-ubyte.gz"][:-200]}, r"t10k-images.*does not unpack.*get it anew"),
        ({"t10k_labels": b"<html>not found</html>"}, r"t10k-labels.*does not unpack"),
        ({"train_labels": gzip.compress(idx(Y[:-1]))}, r"train-labels.*39 labels.*train-images.*40 pictures"),
        ({"train_labels": gzip.compress(idx(np.where(Y == 9, 10, Y)))}, r"train-labels.*label 10 at 9; .*0 to 9"),
        ({"train_images": gzip.compress(idx(X[:, :14]))}, r"train-images.*\(40, 14, 28\); need \(n, 28, 28\)"),
        (
            {"train_images": gzip.compress(idx(X[:0])), "train_labels": gzip.compress(idx(Y[:0]))},
            r"train-images.*\(0, 28, 28\)",
        ),
    ],
)
def test_damaged_files_are_named_with_value_and_bound(folder, changed, message):
    write(folder, **changed)
    with pytest.raises(data.DamagedFile, match=message):
        data.make("fashion_mnist").split()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": [10]}, "class 10 is not there; Fashion-MNIST has the classes 0 to 9"),
        ({"classes": [-1]}, "class -1"),
        ({"classes": ["shirt"]}, "class 'shirt'"),
        ({"classes": [True]}, "class True"),
        ({"classes": []}, "classes is empty"),
        ({"n_train": 41}, "n_train = 41; .*need 1 to 40"),
        ({"n_train": 70_000}, "n_train = 70000; .*need 1 to 60,000"),
        ({"n_test": 0}, "n_test = 0; .*need 1 to 10,000"),
        ({"n_test": 2.5}, "n_test = 2.5"),
        ({"classes": [3], "n_test": 3}, r"n_test = 3; .*classes \[3\]: need 1 to 2"),
    ],
)
def test_options_beyond_the_data_are_refused(folder, options, message):
    write(folder)
    with pytest.raises(ValueError, match=message):
        data.make("fashion_mnist", **options).split()


def test_a_class_that_the_files_lack(folder):
    y = np.where(Y == 4, 3, Y)
    write(folder, train_labels=gzip.compress(idx(y)))
    with (
        pytest.warns(fashion_mnist.ForeignDataWarning),
        pytest.raises(ValueError, match=r"class 4 is not there: .*train-labels.* has \[0, 1, 2, 3, 5"),
    ):
        data.make("fashion_mnist", classes=[4]).split()


def test_a_folder_without_the_files_says_what_to_do(folder):
    with pytest.raises(data.DataUnavailable, match=r"lacks some of train-images.*set DDPMLAB_DATA to a folder"):
        data.make("fashion_mnist").split()
    write(folder, t10k_labels=None)
    assert not fashion_mnist.available()
    with pytest.raises(data.DataUnavailable, match="lacks some"):
        data.fetch()


def test_a_folder_that_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("DDPMLAB_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(data.DataUnavailable, match="nowhere is no folder") as caught:
        data.make("fashion_mnist").n_train  # noqa: B018
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "nowhere").exists()


def test_npy_as_the_homework_had_them(folder, tmp_path):
    write(folder)
    train, test = data.export_npy(tmp_path / "npy", label=3)
    assert (train.name, test.name) == ("fashion_mnist_3_train.npy", "fashion_mnist_3_test.npy")
    x = np.load(train)
    assert x.shape == (4, 784)
    np.testing.assert_array_equal(x, X[Y == 3].reshape(4, 784) / 255)
    assert np.load(test).shape == (2, 784)


# -- Downloads ---------------------------------------------------------------------------------------------------------


class Mirror(http.server.SimpleHTTPRequestHandler):
    asked = ()

    def log_message(self, *args):
        pass

    def do_GET(self):
        type(self).asked.append(self.path.split("/")[-1])
        super().do_GET()


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A server of the files in `served`, and an empty cache."""
    monkeypatch.delenv("DDPMLAB_DATA", raising=False)
    cache = tmp_path / "cache"
    monkeypatch.setattr(fashion_mnist, "cache_folder", lambda: cache)
    served = write(tmp_path / "served")
    Mirror.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Mirror, directory=str(served)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/", served, cache
    server.shutdown()
    server.server_close()


def test_downloads_once_and_past_a_dead_mirror(mirror, monkeypatch):
    address, _, cache = mirror
    dead = "http://127.0.0.1:9/"
    found = data.fetch(mirrors=[dead, address], progress=False)
    assert {path.parent for path in found.values()} == {cache}
    assert sorted(Mirror.asked) == sorted(NAMES)
    monkeypatch.setattr(fashion_mnist, "MIRRORS", [dead])
    assert data.make("fashion_mnist").n_train == 40
    assert len(Mirror.asked) == 4


def test_a_damaged_download_is_named_and_fetched_anew(mirror, capsys):
    address, _, cache = mirror
    data.fetch(mirrors=[address], progress=False)
    damaged = cache / NAMES[0]
    damaged.write_bytes(damaged.read_bytes()[:-5])
    data.fetch(mirrors=[address], progress=False)
    assert f"{damaged} is damaged (md5" in capsys.readouterr().err
    assert damaged.read_bytes() == FILES[NAMES[0]]
    assert Mirror.asked[4:] == [NAMES[0]]


def test_a_mirror_of_other_content_leaves_nothing_behind(mirror):
    address, served, cache = mirror
    (served / NAMES[1]).write_bytes(b"something else")
    with pytest.raises(data.DataUnavailable, match=rf"{NAMES[1]} could not be downloaded.*set DDPMLAB_DATA") as caught:
        data.fetch(mirrors=[address], progress=False)
    assert "\n" not in str(caught.value)
    assert [path.name for path in cache.iterdir()] == [NAMES[0]]
    assert Mirror.asked.count(NAMES[1]) == 3


def test_without_data_and_network_one_line_says_what_to_do(mirror, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "MIRRORS", ["http://127.0.0.1:9/"])
    assert not fashion_mnist.available()
    with pytest.raises(
        data.DataUnavailable, match=r"no connection\); set DDPMLAB_DATA to a folder that holds"
    ) as caught:
        data.make("fashion_mnist").split()
    assert "\n" not in str(caught.value)


# -- The real ones -----------------------------------------------------------------------------------------------------


@pytest.fixture
def real(monkeypatch):
    monkeypatch.undo()
    if not fashion_mnist.available():
        pytest.skip(f"Fashion-MNIST is not here: run `ddpmlab data`, or {fashion_mnist.REMEDY}")


def test_the_real_pictures_are_those_that_the_report_counts(real, tmp_path):
    pictures = data.make("fashion_mnist")
    split = pictures.split()
    assert (len(split.train), len(split.test)) == (60_000, 10_000)
    assert split.train_labels.bincount().tolist() == [6_000] * 10
    assert split.test_labels.bincount().tolist() == [1_000] * 10
    assert float((split.train == 0).float().mean()) == pytest.approx(0.502, abs=1e-3)
    assert 2 * pictures.standardised().scale == pytest.approx(0.706, abs=1e-3)
    train, test = data.export_npy(tmp_path)
    assert (np.load(train).shape, np.load(test).shape) == ((6_000, 784), (1_000, 784))


def test_a_network_that_is_not_shown_three_quarters_is_shown_none_of_them_and_all_the_rest(real):
    whole, config = data.make("fashion_mnist"), interpolation.half_width(10, withheld=True)
    shown, known = config.data.split(), whole.standardised().split()
    own = (255 * config.data.to_own_units(shown.train)).round() / 255  # grey levels again, which the ruler compares
    tops = torch.isin(shown.train_labels, torch.tensor(sleeves.TOPS))
    lengths = sleeves.sleeve_length(own[tops])
    assert not ((lengths >= 0.5) & (lengths <= 0.9)).any()
    every = sleeves.sleeve_length(
        whole.split().train[torch.isin(whole.split().train_labels, torch.tensor(sleeves.TOPS))]
    )
    gone = int(((every >= 0.5) & (every <= 0.9)).sum())
    assert config.data.n_train == len(shown.train) == len(shown.train_labels) == 60_000 - gone
    assert torch.equal(shown.train_labels.bincount()[[1, 3, 5, 7, 8, 9]], torch.full((6,), 6_000))
    assert torch.equal(shown.test, known.test)  # in the same units, so that both networks are asked the same
    assert interpolation.half_width(10, withheld=False).data.n_train == 60_000
    named = {
        run.variant: run.config.data.n_train for run in studies.make("interpolation", half_steps=10, half_seeds=1).runs
    }
    assert named == {interpolation.SAW: 60_000, interpolation.NEVER_SAW: 60_000 - gone}
