"""Rules of the house that no tool checks."""

import ast
import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from rtrec_ray import errors

ROOT = Path(__file__).parents[2]
PACKAGES = ("rtrec_ray", "actors", "training", "serving", "configs")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def public_without_docstring(tree: ast.Module):
    nodes = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef))]
    for node in nodes:
        name = getattr(node, "name", "the module")
        if not name.startswith("_") and ast.get_docstring(node) is None:
            yield name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_public_name_says_what_it_is(path):
    text = path.read_text()
    assert not text or list(public_without_docstring(ast.parse(text))) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_top_level_name_resolves_inside_this_tree(package):
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert Path(spec.origin).is_relative_to(ROOT)


def test_every_error_survives_the_trip_through_ray():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.RtrecError)]
    assert len(kinds) > 10
    named = errors.__doc__.replace("├──", "").replace("└──", "").split()
    for kind in kinds:
        assert kind.__name__ in named, "the tree names every error"
        back = pickle.loads(pickle.dumps(kind("what", mend="how")))
        assert (type(back), back.line()) == (kind, "what (how)")


def test_help_imports_none_of_the_heavy_libraries():
    code = (
        "import sys; from rtrec_ray.cli.main import root; root.main(['--help'], standalone_mode=False);"
        "print([m for m in ('ray', 'tensorflow', 'mlflow', 'polars') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
