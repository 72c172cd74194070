"""The house: its layers, what breaks them, and its figures."""

from __future__ import annotations

import ast
import collections
import configparser
import functools
import itertools
import pathlib
import re
import shutil
import subprocess
import sysconfig

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "wsgi_busyguard"

config = configparser.ConfigParser()
config.read(ROOT / "setup.cfg")
# From the top; those of one layer are siblings.
LAYERS = [
    [name.strip() for name in layer.split("|")]
    for layer in config["importlinter:contract:house"]["layers"].split("\n")
    if layer.strip()
]
HOSTS = config["importlinter:contract:hosts"]["forbidden_modules"].split()

# What is longer today. An entry goes as soon as it no longer is; none is added.
MOST_LINES = 400
LONG_MODULES: set[str] = set()
MOST_LINES_OF_A_FUNCTION = 40
LONG_FUNCTIONS: set[str] = set()

# Names of more than one class: the public ones of an integration; likewise. The demo has its own.
NAMESAKES = {"BusyGuard", "NoPlace", "NotBegun", "Server"}

# Words that do too much, so that no name has them; a word of a board's memory, or of a line of
# HAProxy's, is one.
VAGUE_WORDS = {"said", "told"}
VAGUE_IN_ADAPTERS = {*VAGUE_WORDS, "word", "words"}


def lint_imports(folder):
    command = pathlib.Path(sysconfig.get_path("scripts"), "lint-imports")
    return subprocess.run([command, "--no-cache"], capture_output=True, text=True, cwd=folder)


def test_no_contract_is_broken():
    """Who may import whom: import-linter's contracts in setup.cfg."""
    linted = lint_imports(ROOT)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_each_module_at_the_top_is_in_a_layer():
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    known = {name.split(".")[1] for layer in LAYERS for name in layer}
    assert names - known == {"__init__", "__pycache__"} & names


@pytest.mark.slow
def test_an_import_that_breaks_a_rule_is_seen_to_break_it(tmp_path):
    """From each layer one upwards and one to a sibling; from a new module, each host."""
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name)

    def probe(importer, imported):
        path = tmp_path.joinpath(*importer.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        with path.open("a") as module:
            print(f"import {imported}", file=module)
        return f"{importer} -> {imported} "

    upwards = [probe(low[0], high[0]) for high, low in itertools.pairwise(LAYERS)]
    sideways = [probe(left, right) for layer in LAYERS for left, right in itertools.pairwise(layer)]
    hosts = [probe("wsgi_busyguard.new", host) for host in HOSTS]
    broken = lint_imports(tmp_path)
    assert broken.returncode == 1
    assert "0 kept, 2 broken" in broken.stdout
    assert [line for line in upwards + sideways + hosts if line not in broken.stdout] == []


def code_lines(function):
    """How many lines a function has, its docstring left out."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        lines -= function.body[0].end_lineno - function.body[0].lineno + 1
    return lines


def longer():
    """Return the modules, and the functions, that have more lines than they should."""
    modules, functions = set(), set()
    for path in sorted(PACKAGE.rglob("*.py")):
        name, text = path.relative_to(PACKAGE).as_posix(), path.read_text()
        if len(text.splitlines()) > MOST_LINES:
            modules.add(name)
        for node in ast.walk(trees()[name]):
            is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            if is_function and code_lines(node) > MOST_LINES_OF_A_FUNCTION:
                functions.add(f"{name} {node.name}")
    return modules, functions


def test_no_module_and_no_function_is_too_long_but_those_that_are_listed():
    modules, functions = longer()
    assert (modules - LONG_MODULES, functions - LONG_FUNCTIONS) == (set(), set()), "split them"
    assert (LONG_MODULES - modules, LONG_FUNCTIONS - functions) == (set(), set()), "unlist them"


def test_there_are_few_modules_and_few_packages_at_the_top():
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert len(modules) <= 12
    assert len([path for path in PACKAGE.glob("*/*.py") if path.name == "__init__.py"]) <= 12


@functools.cache
def trees():
    """Return the syntax trees of the package by their names."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in paths}


def test_no_two_classes_have_one_name_but_those_that_are_listed():
    names = collections.Counter(
        node.name
        for path, tree in trees().items()
        if not path.startswith("demo/")
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )
    namesakes = {name for name, count in names.items() if count > 1}
    assert namesakes - NAMESAKES == set(), "call one of them by what it is"
    assert NAMESAKES - namesakes == set(), "unlist them"


def names_of(node):
    """Return the names that a node gives or uses."""
    found = [getattr(node, name, None) for name in ("id", "attr", "arg", "name", "asname")]
    return [name for name in found if isinstance(name, str)]


def test_no_name_is_a_word_that_does_too_much():
    vague = {
        f"{path} {name}"
        for path, tree in trees().items()
        for node in ast.walk(tree)
        for name in names_of(node)
        if (VAGUE_IN_ADAPTERS if path.startswith("adapters/") else VAGUE_WORDS)
        & set(name.lower().split("_"))
        if not path.startswith("demo/")
    }
    assert vague == set()


def test_a_constant_that_is_a_number_says_of_what():
    """``EVERY`` had ten values in ten modules, and ``PATIENCE`` six in six."""
    bare = {
        f"{path} {target.id}"
        for path, tree in trees().items()
        for node in tree.body
        if not path.startswith("demo/")
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        if type(node.value.value) in (int, float)
        for target in node.targets
        if isinstance(target, ast.Name) and "_" not in target.id.strip("_")
    }
    assert bare == set()


def test_there_are_few_layers():
    assert len(LAYERS) <= 14


def test_the_oldest_versions_that_are_tried_are_those_that_are_promised():
    promised = {}
    asked = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    for line in "\n".join(asked).splitlines():
        name, _, oldest = re.sub(r"\[.*?\]|;.*", "", line).partition(" >= ")
        promised[name.strip()] = oldest.strip()
    tried = re.findall(r"^(\S+)==(\S+) ", (ROOT / ".ci" / "versions").read_text(), re.MULTILINE)
    assert len(tried) > 10
    for name, version in tried:
        oldest = promised[name].split(".")
        assert version.split(".")[: len(oldest)] == oldest, name
