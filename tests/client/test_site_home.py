# SPDX-License-Identifier: Apache-2.0
import inspect
from pathlib import Path

import pytest

import client.site_home
from client.site_home import HOME_VARIABLE, SiteHome
from common.errors import InputError


def test_the_home_is_the_option_then_the_variable_then_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("option", "variable", "here"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "site.yaml").write_text("")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv(HOME_VARIABLE, raising=False)
    assert SiteHome.find(None).folder == tmp_path / "here"
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "variable"))
    assert SiteHome.find(None).folder == tmp_path / "variable"
    assert SiteHome.find(tmp_path / "option").folder == tmp_path / "option"


def test_another_folder_is_told_apart_and_the_way_is_shown(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"it has no site\.yaml.*--home DIR.*init --invitation FILE"):
        SiteHome.find(tmp_path)


def test_every_path_lies_in_the_folder_and_stands_in_the_docstring(tmp_path: Path) -> None:
    home = SiteHome(tmp_path)
    paths = [getattr(home, name) for name, kind in inspect.getmembers(SiteHome) if isinstance(kind, property)]
    assert len(paths) > 15
    for path in paths:
        assert path.parent == tmp_path
        assert path.name in (client.site_home.__doc__ or "")
    assert home.offer("ab").relative_to(tmp_path) == Path("studies/ab/offer.json")


def test_a_missing_invitation_says_where_it_belongs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"invitation\.json: no such file; put the coordinator's invitation there again"):
        SiteHome(tmp_path).read_invitation()
