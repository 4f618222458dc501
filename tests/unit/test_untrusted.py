"""Files of unknown origin: only regular files inside their folder are read, and JSON is strict."""

import os

import pytest

from lm import untrusted
from lm.errors import UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"a": 1}')
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "a\0b", "sub/../config.json"])
def test_a_name_with_a_path_is_refused(folder, name):
    with pytest.raises(UserError, match="must be a plain name"):
        untrusted.inside(folder, name)


@pytest.mark.parametrize(
    "make", ["link out", "link to a link out", "relative link out", "broken", "circle", "fifo", "folder", "none"]
)
def test_only_regular_files_within_the_folder(folder, make):
    path = folder / "x"
    if make == "link out":
        path.symlink_to("/etc/passwd")
    elif make == "link to a link out":
        (folder / "y").symlink_to("/etc/passwd")
        path.symlink_to(folder / "y")
    elif make == "relative link out":
        path.symlink_to("../secret")
    elif make == "broken":
        path.symlink_to("nothing")
    elif make == "circle":
        path.symlink_to("x")
    elif make == "fifo":
        os.mkfifo(path)
    elif make == "folder":
        path.mkdir()
    assert untrusted.has(folder, "x") == (make != "none")
    with pytest.raises(UserError) as error:
        untrusted.inside(folder, "x")
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_links_within_the_folder_and_of_a_hub_cache_are_followed(folder, tmp_path):
    (folder / "again.json").symlink_to("config.json")
    assert untrusted.read_json(folder, "again.json") == {"a": 1}
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    (blobs / "f00").write_text('{"b": 2}')
    (snapshot / "config.json").symlink_to("../../blobs/f00")
    assert untrusted.read_json(snapshot, "config.json") == {"b": 2}
    (snapshot / "evil").symlink_to("../../../secret")
    with pytest.raises(UserError, match="leaves its folder"):
        untrusted.inside(snapshot, "evil")
    # A folder that is itself a link is the user's own choice.
    (tmp_path / "linked").symlink_to(folder)
    assert untrusted.read_json(tmp_path / "linked", "config.json") == {"a": 1}


def test_a_file_that_is_too_large_is_not_read(folder):
    with (folder / "config.json").open("wb") as file:
        file.truncate(untrusted.JSON_BYTES + 1)  # a hole: takes no disk
    with pytest.raises(UserError, match="has 67 MB; at most 67 MB"):
        untrusted.read_json(folder, "config.json")


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "Expecting value"),
        (b'{"a": ', "Expecting value"),
        (b'{"a": "caf\xe9"}', "codec can't decode"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        (b"[1]", "not list"),
        (b"3", "not int"),
        (b"null", "not NoneType"),
        (b'{"a": 1, "b": {"c": 1, "d": 2, "c": 3}}', "key 'c' appears twice"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": [-Infinity]}', "-Infinity is not a JSON number"),
        (b'{"a": 1e999}', "1e999 is too large a number"),
        (b'{"a": ' + b"1" * 5000 + b"}", "digits"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
        (b'{"a": ' * 200_000 + b"1" + b"}" * 200_000, "nested too deeply"),
    ],
)
def test_json_that_is_not_strict_is_refused_in_one_line(folder, data, cause):
    (folder / "config.json").write_bytes(data)
    with pytest.raises(UserError) as error:
        untrusted.read_json(folder, "config.json")
    assert f"{folder / 'config.json'} is not valid JSON" in str(error.value) and cause in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
