"""Id ranges: no two sandboxes share an id; a window is free again when its holder is gone."""

import os

import pytest

from glovebox import errors
from glovebox_server.runtimes.namespace import ids


def spans(window: ids.Window, slot: int) -> list[range]:
    lines = [tuple(map(int, line.split())) for line in window.map(slot).splitlines()]
    return [range(outside, outside + count) for _, outside, count in lines]


@pytest.mark.parametrize("narrow", [False, True])
def test_slots_do_not_overlap_each_other_or_the_zygote(narrow: bool) -> None:
    window = ids.Window("", "", 63, narrow=narrow, lock_fd=-1)
    seen = {0}
    for slot in range(window.slots):
        for span in spans(window, slot):
            assert seen.isdisjoint((span[0], span[-1]))
            seen.update((span[0], span[-1]))
    assert window.base(1) > window.base(0)


@pytest.mark.parametrize("narrow", [False, True])
def test_every_map_has_root_the_user_and_nobody(narrow: bool) -> None:
    window = ids.Window("", "", 63, narrow=narrow, lock_fd=-1)
    inside = [tuple(map(int, line.split())) for line in window.map(5).splitlines()]
    for wanted in (0, 1000, 65534):
        assert any(first <= wanted < first + count for first, _, count in inside)


def test_windows_are_exclusive_while_held() -> None:
    first, second = ids.take_window(), ids.take_window()
    try:
        assert first.uid_map != second.uid_map
    finally:
        os.close(first.lock_fd)
        os.close(second.lock_fd)
    again = ids.take_window()
    os.close(again.lock_fd)
    assert again.uid_map == first.uid_map


def test_a_host_without_a_subordinate_range_is_told_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54_321)
    monkeypatch.setattr(ids.pwd, "getpwuid", lambda _: type("P", (), {"pw_name": "nosuchuser"}))
    with pytest.raises(errors.UnsupportedError, match="usermod --add-subuids"):
        ids.take_window()
