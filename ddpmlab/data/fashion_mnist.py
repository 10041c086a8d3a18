r"""FashionMNIST (Xiao, Rasul & Vollgraf 2017): 70,000 grey pictures of garments, `(1, 28, 28)`, in 10 classes.

The four files are IDX: two zero bytes, a type (8: unsigned bytes), the number of dimensions, then the sizes as
big-endian 32-bit integers, then the values. They are looked for in the folder that `DDPMLAB_DATA` names, or in
`fashion-mnist` or `FashionMNIST/raw` within it; where it is not set they are downloaded once, from public mirrors, into
the user's cache.

In own units a pixel is in [0, 1], the byte over 255. In standardised units

.. math:: x' = (x - m)/s

with *one* mean m and one standard deviation s, those of all training pixels of the chosen classes, so that pictures
have mean 0 and variance 1 as all data here, and differences of brightness stay as they are.
"""

import gzip
import hashlib
import math
import os
import sys
import time
import warnings
import zlib
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpmlab.data.dataset import DATASETS, Dataset, Split
from ddpmlab.files import atomic

CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
"""Names of the classes; a label is its name's place, from 0."""
SHAPE = (1, 28, 28)
FOLDER = "fashion-mnist"
MIRRORS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "https://cdn.jsdelivr.net/gh/zalandoresearch/fashion-mnist@master/data/fashion/",
)
"""Addresses that the files are downloaded from, tried in turn."""
MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
"""The published md5 sums of the four files."""
CONTENT_MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
"""The md5 sums of what is in them, for files that were unpacked or packed anew."""
REMEDY = f"set DDPMLAB_DATA to a folder that holds {', '.join(MD5)}"
_ROUNDS, _TIMEOUT = 3, 30  # how often each mirror is tried, and for how many seconds it may be silent


class DataUnavailable(RuntimeError):
    """The data are neither here nor to be had; the message is one line and says what to do."""


class DamagedFile(ValueError):
    """A file that is not what its name says; the message names the file, the value found and the bound."""


class ForeignDataWarning(UserWarning):
    """A sound file with other content than the published one."""


# -- IDX -------------------------------------------------------------------------------------------------------------


def read_idx(path: str | Path, n_dims: int | None = None) -> np.ndarray:
    """Read an IDX file of unsigned bytes, packed by gzip or not.

    Args:
        path: the file.
        n_dims: how many dimensions it must have: 3 for pictures, 1 for labels.

    Returns:
        uint8, read-only, of the sizes that the file states.

    Raises:
        DamagedFile: cut short, too long, not gzip though its name says so, a wrong magic number, type or number of
            dimensions.
        OSError: no such file, or not readable.
    """
    path = Path(path)
    content = path.read_bytes()
    if path.suffix == ".gz" or content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise DamagedFile(f"{path} does not unpack ({error}); it is cut short or damaged: get it anew") from None
    if len(content) < 4:
        raise DamagedFile(f"{path} has {len(content)} bytes; an IDX file has at least the 4 of its magic number")
    zeros, kind, found = int.from_bytes(content[:2], "big"), content[2], content[3]
    wanted = f"{0x800 + n_dims} (unsigned bytes, {n_dims} dimensions)" if n_dims else "2048 + dimensions"
    if zeros or kind != 8 or found == 0 or (n_dims is not None and found != n_dims):
        magic = int.from_bytes(content[:4], "big")
        raise DamagedFile(f"{path} has the magic number {magic}; need {wanted}")
    start = 4 + 4 * found
    if len(content) < start:
        raise DamagedFile(f"{path} has {len(content)} bytes; its header alone has {start}: it is cut short")
    sizes = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(found)]
    expected = start + math.prod(sizes)
    if len(content) != expected:
        fault = "is cut short" if len(content) < expected else "goes on behind its end"
        raise DamagedFile(f"{path} {fault}: {len(content):,} bytes, and sizes {sizes} make {expected:,}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)


def read_pictures(images: str | Path, labels: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Pictures `(n, 28, 28)` and labels `(n,)`, both uint8, of a pair of IDX files.

    Raises:
        DamagedFile: see `read_idx`; no pictures, not 28 by 28, another number of labels, or a label beyond 9.
    """
    x, y = read_idx(images, 3), read_idx(labels, 1)
    if x.shape[1:] != SHAPE[1:] or len(x) == 0:
        raise DamagedFile(f"{images} holds pictures {x.shape}; need (n, 28, 28) with n at least 1")
    if len(y) != len(x):
        raise DamagedFile(f"{labels} holds {len(y):,} labels, {images} {len(x):,} pictures; they must agree")
    if y.max() >= len(CLASSES):
        at = int((y >= len(CLASSES)).argmax())
        raise DamagedFile(f"{labels} has the label {y[at]} at {at:,}; labels are 0 to {len(CLASSES) - 1}")
    return x, y


# -- Where the files are -----------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where downloaded files are kept: `fashion-mnist` in the user's cache folder of ddpmlab."""
    import pooch

    return Path(pooch.os_cache("ddpmlab")) / FOLDER


def _in_folder(folder: Path) -> dict[str, Path] | None:
    """The four files by name without `.gz`, if all lie in `folder`, or in one of two folders within it."""
    for place in (folder, folder / FOLDER, folder / "FashionMNIST" / "raw"):
        found = {}
        for name in MD5:
            stem = name.removesuffix(".gz")
            there = [path for path in (place / name, place / stem) if path.is_file()]
            if there:
                found[stem] = there[0]
        if len(found) == len(MD5):
            return found
    return None


def locate() -> dict[str, Path] | None:
    """Paths of the four files by name without `.gz`, or None where they would have to be downloaded.

    Raises:
        DataUnavailable: `DDPMLAB_DATA` is set to a folder that does not hold them.
    """
    named = os.environ.get("DDPMLAB_DATA")
    if not named:
        return _in_folder(cache_folder())
    folder = Path(named).expanduser()
    found = _in_folder(folder)
    if found is None:
        wrong = "is no folder" if not folder.is_dir() else f"lacks some of {', '.join(MD5)}"
        raise DataUnavailable(
            f"DDPMLAB_DATA = {named} {wrong}; {REMEDY} (or a {FOLDER} with them), or unset it to download them"
        )
    return found


def available() -> bool:
    """Whether the pictures can be read without a network."""
    try:
        return locate() is not None
    except DataUnavailable:
        return False


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _download(name: str, folder: Path, mirrors: Sequence[str], progress: bool) -> None:
    """Bring one file into `folder`, from the first mirror that gives the published content."""
    import pooch
    import requests

    failures = []
    for attempt in range(_ROUNDS):
        if attempt:
            time.sleep(attempt)
        for mirror in mirrors:
            try:
                pooch.retrieve(
                    mirror.rstrip("/") + "/" + name,
                    known_hash=f"md5:{MD5[name]}",
                    fname=name,
                    path=folder,
                    downloader=pooch.HTTPDownloader(progressbar=progress, timeout=_TIMEOUT),
                )
                return
            except (requests.RequestException, ValueError, OSError) as error:
                reason = "no connection" if isinstance(error, requests.ConnectionError) else str(error).split("\n")[0]
                failures.append(f"{mirror}: {reason[:200]}")
    unlike = list(dict.fromkeys(failures))
    raise DataUnavailable(f"{name} could not be downloaded ({'; '.join(unlike)}); {REMEDY}")


def fetch(mirrors: Sequence[str] | None = None, progress: bool = True) -> dict[str, Path]:
    """See that the four files are here and sound, downloading what is missing or damaged.

    Files in the folder of `DDPMLAB_DATA` are read and never written. In the cache a file whose md5 sum is not the
    published one is named on stderr and downloaded anew.

    Args:
        mirrors: addresses to try in turn, three times over; `MIRRORS` if omitted.
        progress: show a bar for each file.

    Returns:
        Paths by file name without `.gz`.

    Raises:
        DataUnavailable: `DDPMLAB_DATA` names a folder without them, or no mirror answers.
        DamagedFile: a file in the folder of `DDPMLAB_DATA` is damaged.
    """
    if os.environ.get("DDPMLAB_DATA"):
        found = locate()
        for part in ("train", "t10k"):
            _read(*_pair(found, part))
        return found
    folder = cache_folder()
    for name, published in MD5.items():
        path = folder / name
        if path.is_file():
            sum_ = _md5(path)
            if sum_ == published:
                continue
            _say(f"{path} is damaged (md5 {sum_}, published {published}); downloading it anew")
        _download(name, folder, MIRRORS if mirrors is None else mirrors, progress)
    return _in_folder(folder)


# -- Reading -----------------------------------------------------------------------------------------------------------


_File = tuple[Path, int, int]
_Pair = tuple[_File, _File]


def _pair(found: dict[str, Path], part: str) -> _Pair:
    """Images and labels of a part, each with what tells a changed file: modification time and size."""
    pair = []
    for kind in ("images-idx3", "labels-idx1"):
        path = found[f"{part}-{kind}-ubyte"].absolute()
        state = path.stat()
        pair.append((path, state.st_mtime_ns, state.st_size))
    return tuple(pair)


@lru_cache(maxsize=4)
def _read(images: _File, labels: _File) -> tuple[np.ndarray, np.ndarray]:
    try:
        pictures = read_pictures(images[0], labels[0])
    except OSError as error:
        raise DataUnavailable(f"{error.filename} cannot be read ({error.strerror}); {REMEDY}") from error
    for (path, *_), values in zip((images, labels), pictures, strict=True):
        header = b"\x00\x00\x08" + bytes([values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
        content, published = hashlib.md5(header), CONTENT_MD5[path.name.removesuffix(".gz")]
        content.update(values)
        if content.hexdigest() != published:
            warnings.warn(
                f"{path} is sound but not the published file (md5 of the content {content.hexdigest()}, published "
                f"{published}): its scores do not compare with others",
                ForeignDataWarning,
                stacklevel=2,
            )
    return pictures


@lru_cache(maxsize=4)
def _of_classes(pair: _Pair, classes: tuple[int, ...] | None) -> tuple[np.ndarray, np.ndarray]:
    x, y = _read(*pair)
    if classes is None:
        return x, y
    missing = [label for label in classes if label not in y]
    if missing:
        raise ValueError(f"class {missing[0]} is not there: {pair[1][0]} has {np.unique(y).tolist()}")
    kept = np.isin(y, classes)
    return x[kept], y[kept]


@lru_cache(maxsize=16)
def _moments(pair: _Pair, classes: tuple[int, ...] | None) -> tuple[float, float]:
    """Mean and standard deviation of all pixels over 255."""
    counts = np.bincount(_of_classes(pair, classes)[0].reshape(-1), minlength=256).astype(np.float64)
    level = np.arange(256) / 255
    mean = float(counts @ level / counts.sum())
    return mean, math.sqrt(float(counts @ (level - mean) ** 2 / counts.sum()))


@lru_cache(maxsize=4)
def _tensors(pair: _Pair, classes: tuple[int, ...] | None, n: int, mean: float, scale: float) -> tuple[Tensor, Tensor]:
    """The first n pictures `(n, 1, 28, 28)` float32 and labels `(n,)` int64."""
    x, y = (values[:n] for values in _of_classes(pair, classes))
    table = torch.from_numpy(((np.arange(256) / 255 - mean) / scale).astype(np.float32))
    pictures = table[torch.from_numpy(x.reshape(-1).astype(np.int32))].reshape(-1, *SHAPE)
    return pictures, torch.from_numpy(y.astype(np.int64))


def _chosen(name: str, value: int | None, there: int, classes: tuple[int, ...] | None) -> int:
    if value is None:
        return there
    if isinstance(value, bool) or int(value) != value or not 1 <= value <= there:
        of = "" if classes is None else f" of classes {list(classes)}"
        raise ValueError(f"{name} = {value}; Fashion-MNIST has {there:,} such pictures{of}: need 1 to {there:,}")
    return int(value)


def _checked_classes(classes: int | Iterable[int] | None) -> tuple[int, ...] | None:
    if classes is None:
        return None
    classes = [classes] if isinstance(classes, int | np.integer) else list(classes)
    for label in classes:
        if isinstance(label, bool) or not isinstance(label, int | np.integer) or not 0 <= label < len(CLASSES):
            raise ValueError(f"class {label!r} is not there; Fashion-MNIST has the classes 0 to {len(CLASSES) - 1}")
    if not classes:
        raise ValueError("classes is empty; name at least one of 0 to 9, or leave it out for all")
    return tuple(sorted({int(label) for label in classes}))


@DATASETS.register("fashion_mnist")
class FashionMNIST(Dataset):
    r"""FashionMNIST, 60,000 training and 10,000 test pictures; read when first needed.

    Args:
        classes: keep these labels only, 0 to 9 (see `CLASSES`); one label, several, or all if omitted. Labels keep
            their values.
        n_train, n_test: keep the first so many of them; the files' order is random.

    Raises:
        ValueError: a class that is not there, or more pictures than there are; the latter when they are first read.
        DataUnavailable: when first read, if the files are neither here nor to be had.
    """

    name = "fashion_mnist"
    shape = SHAPE

    def __init__(
        self,
        classes: int | Sequence[int] | None = None,
        n_train: int | None = None,
        n_test: int | None = None,
    ):
        self.classes = _checked_classes(classes)
        for option, value in (("n_train", n_train), ("n_test", n_test)):
            if value is not None:
                _chosen(option, value, (60_000 if option == "n_train" else 10_000), None)
        self._n_train, self._n_test = n_train, n_test

    @property
    def n_classes(self) -> int:
        """How many classes labels count, 10 whichever are kept."""
        return len(CLASSES)

    @cached_property
    def _files(self) -> dict[str, _Pair]:
        """Images and labels of both halves, found and checked."""
        found = fetch()
        return {half: _pair(found, prefix) for half, prefix in (("train", "train"), ("test", "t10k"))}

    def _there(self, half: str) -> int:
        return len(_of_classes(self._files[half], self.classes)[1])

    def _numpy(self, half: str) -> tuple[np.ndarray, np.ndarray]:
        x, y = _of_classes(self._files[half], self.classes)
        n = self.n_train if half == "train" else self.n_test
        return x[:n], y[:n]

    @property
    def n_train(self) -> int:
        """Number of training pictures kept."""
        return _chosen("n_train", self._n_train, self._there("train"), self.classes)

    @property
    def n_test(self) -> int:
        """Number of test pictures kept."""
        return _chosen("n_test", self._n_test, self._there("test"), self.classes)

    @property
    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation of all training pixels of the chosen classes, in own units.

        They are those of the whole training set of these classes, whatever `n_train`, so that sets of different sizes
        share their units.
        """
        return _moments(self._files["train"], self.classes)

    def _split(self, mean: float, scale: float) -> Split:
        halves = [
            _tensors(self._files[half], self.classes, n, mean, scale)
            for half, n in (("train", self.n_train), ("test", self.n_test))
        ]
        (train, train_labels), (test, test_labels) = halves
        return Split(train, test, train_labels, test_labels)

    def split(self) -> Split:
        """Training and test pictures `(n, 1, 28, 28)` float32 in [0, 1], with labels `(n,)`. Do not write into them."""
        return self._split(0.0, 1.0)

    def standardised(self) -> "StandardisedPictures":
        """The same pictures with mean 0 and variance 1 over all pixels."""
        return StandardisedPictures(self)


class StandardisedPictures(Dataset):
    """Pictures in units of one mean and one standard deviation, those of all training pixels."""

    shape = SHAPE

    def __init__(self, pictures: FashionMNIST):
        self.pictures, self.name, self.classes = pictures, pictures.name, pictures.classes
        self.n_classes = pictures.n_classes

    @property
    def n_train(self) -> int:
        """Number of training pictures."""
        return self.pictures.n_train

    @property
    def n_test(self) -> int:
        """Number of test pictures."""
        return self.pictures.n_test

    @property
    def mean(self) -> float:
        """Mean of the training pixels in [0, 1]."""
        return self.pictures.moments[0]

    @property
    def scale(self) -> float:
        """Standard deviation of the training pixels in [0, 1]."""
        return self.pictures.moments[1]

    def split(self) -> Split:
        """Training and test pictures `(n, 1, 28, 28)` float32, with labels `(n,)`. Do not write into them."""
        return self.pictures._split(self.mean, self.scale)

    def standardised(self) -> "StandardisedPictures":
        """Itself."""
        return self

    def to_own_units(self, x: Tensor) -> Tensor:
        """Map standardised pictures of any shape back to pixels; data lie in [0, 1], generated ones may leave it."""
        return x * self.scale + self.mean


def export_npy(folder: str | Path, label: int = 0) -> tuple[Path, Path]:
    """Write one class as the homework had it: two npy files of 784 columns, float64 pixels in [0, 1].

    Args:
        folder: made if it is not there.
        label: the class; 0, T-shirts and tops, has 6,000 training and 1,000 test pictures.

    Returns:
        Paths of `fashion_mnist_<label>_train.npy` and `fashion_mnist_<label>_test.npy`.

    Raises:
        ValueError: no such class.
        DataUnavailable: the data are neither here nor to be had.
    """
    pictures = FashionMNIST(classes=[label])
    paths = []
    for half in ("train", "test"):
        path = Path(folder) / f"fashion_mnist_{label}_{half}.npy"
        x = pictures._numpy(half)[0]
        with atomic(path) as temporary:
            np.save(temporary, x.reshape(len(x), -1) / 255)
        paths.append(path)
    return tuple(paths)
