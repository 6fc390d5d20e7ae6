"""The page's files: served whole, under a strict policy, and without anything that the policy would refuse."""

from __future__ import annotations

import re

import pytest

from coordinator.admin.page import FILES, FOLDER
from tests.helpers.admin import admin


@pytest.mark.parametrize("path", FILES)
async def test_a_file_is_open_without_a_key_and_closed_to_other_sites(path: str) -> None:
    async with admin("the key") as bench:
        async with bench.session.get(bench.url + path) as answer:
            assert answer.status == 200
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert "Set-Cookie" not in answer.headers
            assert await answer.read() == (FOLDER / FILES[path][0]).read_bytes()
            tag = answer.headers["ETag"]
        async with bench.session.get(bench.url + path, headers={"If-None-Match": tag}) as answer:
            assert answer.status == 304
        async with bench.session.get(bench.url + path, headers={"Host": "evil.example"}) as answer:
            assert answer.status == 403
        async with bench.session.post(bench.url + path) as answer:
            assert answer.status == 401


def test_every_file_is_served_and_every_reference_is_a_file() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {name for name, _ in FILES.values()}
    page = (FOLDER / "index.html").read_text()
    assert set(re.findall(r"(?:src|href)=\"(/[^\"]*)\"", page)) <= set(FILES)
    for script in FOLDER.glob("*.js"):
        for name in re.findall(r"from \"\./([^\"]+)\"", script.read_text()):
            assert f"/web/{name}" in FILES


def test_nothing_is_inline_and_nothing_becomes_markup() -> None:
    page = (FOLDER / "index.html").read_text()
    assert not re.search(r"\son\w+=|\sstyle=|<style|javascript:|https?://", page)
    assert all("src=" in script for script in re.findall(r"<script[^>]*>", page))
    for script in FOLDER.glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", script.read_text()
        )
