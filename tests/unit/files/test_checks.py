"""files/checks.py: pointers of git-LFS are told from files, and every way an ifcsr.json can be wrong is
one line.
"""

import copy
import json
import os
import socket

import pytest

from ifcsr_lib.config import ROOT
from ifcsr_lib.errors import one_line
from ifcsr_lib.files.checks import POINTER, check_card, check_pointer, is_pointer, oddity, printable

LFS = POINTER + b"\noid sha256:" + b"4d" * 32 + b"\nsize 12345\n"
CARD = json.loads((ROOT / "data" / "pocket" / "adapters" / "ifcsr.json").read_text(encoding="utf-8"))


def test_pointers_are_told_from_files(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(LFS)
    with pytest.raises(ValueError, match=r"a\.safetensors is a git-LFS pointer.*git lfs pull"):
        check_pointer(path)
    for other in (b"", LFS[1:], LFS[:20], b"\x89PNG\r\n"):
        path.write_bytes(other)
        assert not is_pointer(other) and check_pointer(path) is None
    assert check_pointer(tmp_path / "absent") is None and check_pointer(tmp_path) is None


def test_the_shipped_card_passes():
    check_card(CARD, "ifcsr.json")
    old = {k: v for k, v in CARD.items() if k not in ("model", "format", "provenance")}
    check_card(old | {"config": CARD["model"], "provenance": None}, "ifcsr.json")


def places(value, path=()):
    """Every place in the card, as a tuple of keys."""
    for key, inner in value.items():
        yield (*path, key)
        if isinstance(inner, dict):
            yield from places(inner, (*path, key))


NEEDED = {
    ("model",),
    ("model", "profile"),
    ("backbone",),
    ("backbone", "id"),
    ("backbone", "hash"),
    ("adapters",),
    *(("adapters", a, *rest) for a in ("fidelity", "realism") for rest in ((), ("file",), ("sha256",))),
}


def changed(place, change):
    card = copy.deepcopy(CARD)
    inner = card
    for key in place[:-1]:
        inner = inner[key]
    change(inner, place[-1])
    return card


@pytest.mark.parametrize("place", sorted(NEEDED), ids=".".join)
def test_what_is_needed_may_not_be_missing_or_of_another_type(place):
    assert place in set(places(CARD))
    wrong = [changed(place, lambda inner, key: inner.pop(key))]
    wrong += [
        changed(place, lambda inner, key, v=v: inner.update({key: v})) for v in (None, 3, [], "", True, {})
    ]
    for card in wrong:
        with pytest.raises(ValueError, match=place[-1]) as info:
            check_card(card, "folder/ifcsr.json")
        text = str(info.value)
        assert text.startswith("folder/ifcsr.json is damaged") and "allowed: " in text and "\n" not in text


@pytest.mark.parametrize("card", [None, [], "text", 3, {}])
def test_no_card_at_all(card):
    with pytest.raises(ValueError, match="damaged or of another version"):
        check_card(card, "ifcsr.json")


@pytest.mark.parametrize(
    "place, value, words",
    [
        (("format",), "ifcsr 3", "allowed: 'ifcsr 1' or 'ifcsr 2'"),
        (("format",), None, "format is None"),
        (("backbone", "files"), [1], "backbone.files"),
        (("provenance",), "yesterday", "provenance"),
        (("adapters", "fidelity", "file"), "fidelity.bin", "ends in .safetensors"),
        (("adapters", "fidelity", "sha256"), "4d", "64 hex digits"),
        (("adapters", "fidelity", "sha256"), "x" * 10_000, "64 hex digits"),
    ],
)
def test_other_wrong_values(place, value, words):
    with pytest.raises(ValueError, match=words) as info:
        check_card(changed(place, lambda inner, key: inner.update({key: value})), "ifcsr.json")
    assert len(str(info.value)) < 400


def test_pointers_are_told_wherever_a_file_is_read(tmp_path, monkeypatch):
    """From Python too, where no command looks first: pictures, pairs, feature networks, saved models."""
    from ifcsr_lib import images, models
    from ifcsr_lib.control import Endpoints
    from ifcsr_lib.nets import features

    def pointer(name):
        path = tmp_path / name
        path.write_bytes(POINTER + b"\noid sha256:" + b"0" * 64 + b"\nsize 12\n")
        return path

    monkeypatch.setattr(features, "POCKET_FEATURES", pointer("features.safetensors"))
    pointer("ifcsr.json")
    for read in (
        lambda: images.read_image(pointer("a.png")),
        lambda: Endpoints.load(pointer("a.ifcsr.zip")),
        features.pocket_features,
        lambda: models.load(tmp_path),
    ):
        with pytest.raises(ValueError, match="git-LFS pointer.*git lfs pull"):
            read()


@pytest.fixture
def oddities(tmp_path):
    """{what: a path that is that}; a socket that stays open until the test ends."""
    os.mkfifo(tmp_path / "p.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s.png"))
        (tmp_path / "n.png").symlink_to("nowhere")
        (tmp_path / "c.png").symlink_to("c.png")
        yield {
            "a pipe": [tmp_path / "p.png"],
            "a socket": [tmp_path / "s.png"],
            "a device": [os.devnull],
            "a link that leads nowhere": [tmp_path / "n.png", tmp_path / "c.png"],
        }


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a POSIX system")
def test_what_is_neither_file_nor_folder(oddities, tmp_path):
    """Told apart without being opened: a pipe without a writer would be waited for without end."""
    from ifcsr_lib.files.images import left_out, read_image

    for what, paths in oddities.items():
        for path in paths:
            assert oddity(path) == what
            check_pointer(path)
            with pytest.raises(ValueError, match=f"is {what}; pass an image file"):
                read_image(path)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    for path in (tmp_path, tmp_path / "file", tmp_path / "link", tmp_path / "none", "a\0b"):
        assert oddity(path) == ""
    text = left_out(tmp_path)
    assert "c.png is a link that leads nowhere; n.png is a link" in text and "and 1 more alike" in text


@pytest.mark.parametrize(
    "name, shown",
    [
        ("a\nb", r"a\nb"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x9b2J", r"\x9b2J"),
        ("gnp.\u202eexe", r"gnp.\u202eexe"),
        ("\udcfc", r"\udcfc"),
    ],
)
def test_names_that_a_terminal_would_obey(name, shown):
    assert printable(name) == shown and one_line(ValueError(f"x{name.replace(chr(10), '')}x")).isprintable()
    assert printable("gr\u00fcn \u5199\u771f 1.png") == "gr\u00fcn \u5199\u771f 1.png"
