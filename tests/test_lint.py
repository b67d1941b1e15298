"""Loaders that can run what they read are banned from the package, by its syntax trees; each ban is tried on a snippet."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pathfm

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(pathfm.__file__).parent

# Never called, under these names or below them.
BANNED = (
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "_pickle", "cPickle", "cloudpickle", "dill", "joblib"),
    *("marshal", "shelve", "pandas.read_pickle", "pandas.read_hdf", "pandas.eval", "tables"),
    *("torch.jit.load", "torch.hub", "torch.package", "torch.utils.cpp_extension"),
    *("timm.models.load_checkpoint", "timm.models.load_state_dict", "timm.models.load_custom_pretrained"),
    *("os.system", "os.popen", "os.execv", "os.execvp", "os.spawnv"),
    *("subprocess.getoutput", "subprocess.getstatusoutput", "pty.spawn", "runpy", "code"),
    *("shutil.unpack_archive", "imp", "importlib.util.spec_from_file_location", "xml", "lxml"),
)
BUILTINS = ("eval", "exec", "compile", "__import__")
# Functions that are called with this said, or not at all; a dot in front stands for a method of whatever object.
DEMANDED = {
    "torch.load": ("weights_only", True),
    ".load_from_checkpoint": ("weights_only", True),
    "numpy.load": ("allow_pickle", False),
    "numpy.lib.format.read_array": ("allow_pickle", False),
    ".from_pretrained": ("trust_remote_code", False),
}
# Methods that are never called, and arguments that are never passed but with this value.
METHODS = (".extractall", ".unpack_archive", ".recv", ".unsafe_load", ".full_load", ".load_state_dict_from_url")
ARGUMENTS = {"shell": False, "trust_remote_code": False, "allow_pickle": False, "weights_only": True}
YAML = ("yaml.safe_load", "yaml.safe_dump", "yaml.dump", "yaml.YAMLError")
# Where a ban does not hold, and how often; an entry that nobody needs any more is an error too.
ALLOWED = {
    ("confined.py", "pickle.loads"): 2,  # from the program that started it, and its own
    ("process.py", "pickle.loads"): 1,  # from the process that it started
    ("devices.py", "pickle.loads"): 2,  # from the program that started it, and from the process that it started
    ("cli.py", "importlib.import_module"): 1,  # the names in its own table
    ("backbones/network.py", "importlib.import_module"): 1,  # the class in a row of the table
    ("plainyaml.py", "yaml.load"): 1,  # by the loader that makes text of everything
    ("plainyaml.py", "yaml.BaseLoader"): 1,
    ("plainyaml.py", "yaml.scan"): 1,  # words, no values: to refuse aliases before they are followed
    ("plainyaml.py", "yaml.compose"): 1,  # nodes, no values: to refuse keys that stand twice
    **{("plainyaml.py", f"yaml.{name}Token"): 1 for name in ("Alias", "BlockEnd")},
    **{("plainyaml.py", f"yaml.{way}{of}StartToken"): 1 for way in ("Flow", "Block") for of in ("Sequence", "Mapping")},
    **{("plainyaml.py", f"yaml.Flow{of}EndToken"): 1 for of in ("Sequence", "Mapping")},
    ("embeddings.py", "h5py.File"): 1,
    ("hollow.py", "h5py.File"): 1,
    ("layouts/__init__.py", "h5py.File"): 1,
    ("layouts/arrays.py", "h5py.File"): 1,
    ("layouts/written.py", "h5py.File"): 1,
}


def test_the_package_calls_no_loader_that_runs_what_it_reads() -> None:
    found: dict[tuple[str, str], list[int]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        for line, what in unsafe(path.read_text(encoding="utf-8")):
            found.setdefault((path.relative_to(ROOT).as_posix(), what), []).append(line)
    assert {place: len(lines) for place, lines in found.items()} == ALLOWED, found


@pytest.mark.parametrize(
    ("snippet", "what"),
    [
        ("import pickle; pickle.load(file)", "pickle.load"),
        ("import pickle as p; p.loads(data)", "pickle.loads"),
        ("from pickle import loads; loads(data)", "pickle.loads"),
        ("from pickle import Unpickler as U; U(file).load()", "pickle.Unpickler"),
        ("import pickle; read = pickle.load", "pickle.load"),
        ("import pickle; list(map(pickle.loads, parts))", "pickle.loads"),
        ("import marshal; marshal.loads(data)", "marshal.loads"),
        ("import shelve; shelve.open(path)", "shelve.open"),
        ("import joblib; joblib.load(path)", "joblib.load"),
        ("def f():\n    from joblib import load\n    return load(path)", "joblib.load"),
        ("import dill; dill.load(file)", "dill.load"),
        ("import pandas as pd; pd.read_pickle(path)", "pandas.read_pickle"),
        ("import torch; torch.load(path)", "torch.load"),
        ("import torch; torch.load(path, weights_only=False)", "torch.load"),
        ("import torch; torch.load(path, weights_only=flag)", "torch.load"),
        ("from torch import load; load(path, None)", "torch.load"),
        ("import torch; read = torch.load", "torch.load"),
        ("import torch; torch.jit.load(path)", "torch.jit.load"),
        ("Model.load_from_checkpoint(path)", ".load_from_checkpoint"),
        ("Model.load_from_checkpoint(path, weights_only=False)", ".load_from_checkpoint"),
        ("trainer.fit(module, loader, ckpt_path=path)", "ckpt_path"),
        ("trainer.test(module, loader, ckpt_path=path, weights_only=False)", "ckpt_path"),
        ("import numpy as np; np.load(path)", "numpy.load"),
        ("import numpy as np; np.load(path, allow_pickle=True)", "numpy.load"),
        ("from numpy import load as read; read(path)", "numpy.load"),
        ("import yaml; yaml.load(text, Loader=yaml.Loader)", "yaml.load"),
        ("import yaml; yaml.unsafe_load(text)", "yaml.unsafe_load"),
        ("import yaml; yaml.full_load(text)", "yaml.full_load"),
        ("from yaml import load_all; load_all(text)", "yaml.load_all"),
        ("eval(text)", "eval"),
        ("exec(text)", "exec"),
        ("compile(text, 'a', 'exec')", "compile"),
        ("__import__(name)", "__import__"),
        ("import importlib; importlib.import_module(name)", "importlib.import_module"),
        ("import os; os.system(line)", "os.system"),
        ("from os import popen; popen(line)", "os.popen"),
        ("import subprocess; subprocess.run(line, shell=True)", "shell"),
        ("import subprocess as s; s.Popen(line, shell=flag)", "shell"),
        ("import subprocess; subprocess.getoutput(line)", "subprocess.getoutput"),
        ("AutoModel.from_pretrained(name)", ".from_pretrained"),
        ("AutoModel.from_pretrained(name, trust_remote_code=True)", ".from_pretrained"),
        ("load(name, trust_remote_code=True)", "trust_remote_code"),
        ("import h5py; h5py.File(path)", "h5py.File"),
        ("from h5py import File; File(path)", "h5py.File"),
        ("import zipfile; zipfile.ZipFile(path).extractall(folder)", ".extractall"),
        ("import tarfile\nwith tarfile.open(path) as t:\n    t.extract(name, folder)", ".extract"),
        ("import shutil; shutil.unpack_archive(path)", "shutil.unpack_archive"),
        ("import xml.etree.ElementTree as e; e.parse(path)", "xml.etree.ElementTree.parse"),
        ("connection.recv()", ".recv"),
        ("read(path, **{'weights_only': False})", "weights_only"),
    ],
)
def test_the_lint_catches(snippet: str, what: str) -> None:
    assert what in [found for _, found in unsafe(snippet)]


@pytest.mark.parametrize(
    "snippet",
    [
        "import pickle; pickle.dumps(value)",
        "from pickle import UnpicklingError",
        "import torch; torch.load(path, map_location='cpu', weights_only=True)",
        "trainer.fit(module, loader, ckpt_path=path, weights_only=True)",
        "import numpy as np; np.load(path, mmap_mode='r', allow_pickle=False)",
        "import yaml; yaml.safe_load(text)",
        "import re; re.compile(text); model.eval()",
        "import subprocess; subprocess.run(['ls'], check=True)",
        "import h5py\ndef f(file: h5py.File) -> None: ...",
        "import zipfile; zipfile.ZipFile(path).infolist()",
        "AutoModel.from_pretrained(name, trust_remote_code=False)",
        "backbone.extract(slide)",
    ],
)
def test_the_lint_lets_what_is_safe_be(snippet: str) -> None:
    assert list(unsafe(snippet)) == []


def unsafe(source: str) -> Iterator[tuple[int, str]]:
    """(line, name) of everything in a program that the bans are about."""
    tree = ast.parse(source)
    names = dict(_imported(tree))
    annotations = {id(inner) for outer in _annotations(tree) for inner in ast.walk(outer)}
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    archives = any(name.split(".")[0] in ("zipfile", "tarfile") for name in names.values())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and id(node) not in annotations:
            what = _wrong_name(_full_name(node, names), called.get(id(node)))
            if isinstance(node, ast.Attribute):
                what = what or _wrong_method(f".{node.attr}", called.get(id(node)), archives=archives)
            if what:
                yield node.lineno, what
        if isinstance(node, ast.Call):
            yield from ((node.lineno, what) for what in _wrong_arguments(node))


def _imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """What each imported name stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (
                (alias.asname or alias.name.split(".")[0], alias.name if alias.asname else alias.name.split(".")[0])
                for alias in node.names
            )
        if isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, f"{node.module or ''}.{alias.name}") for alias in node.names)


def _annotations(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation:
            yield node.annotation
        if isinstance(node, ast.FunctionDef) and node.returns:
            yield node.returns


def _full_name(node: ast.expr, names: dict[str, str]) -> str:
    """The dotted name of what was imported, or of a builtin; "" for all else."""
    if isinstance(node, ast.Attribute):
        before = _full_name(node.value, names)
        return f"{before}.{node.attr}" if before else ""
    plain = node.id if isinstance(node, ast.Name) else ""
    return names.get(plain, plain if plain in BUILTINS else "")


def _wrong_name(name: str, call: ast.Call | None) -> str:
    banned = name in ("h5py.File", "importlib.import_module", *BUILTINS)
    banned = banned or any(name == one or name.startswith(f"{one}.") for one in BANNED)
    banned = banned or (name.startswith("yaml.") and name not in YAML)
    banned = banned or (name in DEMANDED and not (call and _says(call, *DEMANDED[name])))
    return name if banned else ""


def _wrong_method(name: str, call: ast.Call | None, *, archives: bool) -> str:
    if name in METHODS or (name == ".extract" and archives):
        return name
    if name in DEMANDED and not (call and _says(call, *DEMANDED[name])):
        return name
    return ""


def _wrong_arguments(call: ast.Call) -> Iterator[str]:
    said = dict(_keywords(call))
    for name, value in ARGUMENTS.items():
        if name in said and not _is(said[name], value=value):
            yield name
    if "ckpt_path" in said and not _says(call, "weights_only", True):
        yield "ckpt_path"


def _keywords(call: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    for one in call.keywords:
        if one.arg:
            yield one.arg, one.value
        elif isinstance(one.value, ast.Dict):
            yield from (
                (str(k.value), v)
                for k, v in zip(one.value.keys, one.value.values, strict=True)
                if isinstance(k, ast.Constant)
            )


def _says(call: ast.Call, name: str, value: bool) -> bool:
    return _is(dict(_keywords(call)).get(name), value=value)


def _is(node: ast.expr | None, *, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value
