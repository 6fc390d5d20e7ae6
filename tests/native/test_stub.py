"""The typed stub says what the module has: names, members and argument names, both ways."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import native._native as module

STUB = ast.parse((Path(__file__).parents[2] / "native" / "_native.pyi").read_text())


def stub_names(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    found: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
    return found


def public(names: list[str]) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def runtime_arguments(function: object) -> list[str]:
    """nanobind writes `def copy(entries: Sequence[…], threads: int = 1) -> float` into `__nb_signature__`."""
    signature = function.__nb_signature__[0][0]  # type: ignore[attr-defined]
    while "[" in signature:
        signature = re.sub(r"\[[^\[\]]*\]", "", signature)
    return re.findall(r"(?:\(|, )(\w+)(?=[:,)])", signature)


def stub_arguments(node: ast.stmt) -> list[str]:
    assert isinstance(node, ast.FunctionDef)
    return [argument.arg for argument in node.args.args]


def test_the_module_and_its_stub_have_the_same_names() -> None:
    assert set(stub_names(STUB.body)) == public(dir(module))


def test_functions_take_the_arguments_that_the_stub_says() -> None:
    for name, node in stub_names(STUB.body).items():
        if isinstance(node, ast.FunctionDef):
            assert runtime_arguments(getattr(module, name)) == stub_arguments(node), name


def test_classes_have_the_members_that_the_stub_says() -> None:
    for name, node in stub_names(STUB.body).items():
        if isinstance(node, ast.ClassDef) and name != "DriverError":
            kind = getattr(module, name)
            members = stub_names(node.body)
            assert set(members) - {"__init__"} == public(dir(kind)), name
            for member, stub in members.items():
                if isinstance(stub, ast.FunctionDef) and not stub.decorator_list:
                    assert runtime_arguments(getattr(kind, member)) == stub_arguments(stub), f"{name}.{member}"


def test_errors_carry_what_the_stub_says() -> None:
    node = stub_names(STUB.body)["DriverError"]
    assert isinstance(node, ast.ClassDef)
    with pytest.raises(RuntimeError) as raised:
        module.open_driver("none")
    assert isinstance(raised.value, module.DriverError)
    assert set(stub_names(node.body)) == set(vars(raised.value))
