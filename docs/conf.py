from __future__ import annotations

import shutil
import sys
import urllib.request
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.ext import intersphinx
from sphinx.ext.napoleon import NumpyDocstring

if TYPE_CHECKING:
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment
    from sphinx.writers.html5 import HTML5Translator

# sphinx-autodoc-typehints still uses a name that Sphinx 10 drops
warnings.filterwarnings("ignore", message="'sphinx_autodoc_typehints", category=DeprecationWarning)

info = metadata("strecur")
project = info["Name"]
author = copyright = "the strecur developers"
release = version = info["Version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
]
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "unsrt"
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
templates_path = ["_templates"]

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_favicon = "_static/favicon.svg"
html_math_renderer = "mathml"
html_theme_options = {
    "home_page_in_toc": True,
    "logo": {"image_light": "_static/logo.svg", "image_dark": "_static/logo-dark.svg", "alt_text": "strecur"},
    "navbar_persistent": [],
    "show_navbar_depth": 1,
}

# The notebooks of the repository are shown with their stored output.
HERE = Path(__file__).parent
for notebook in (HERE.parent / "tutorials").glob("*.ipynb"):
    shutil.copy2(notebook, HERE / "tutorials")


def write_errors() -> None:
    """Generate the page on errors from the invalid inputs that the tests try."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from bad_inputs import page

    path, text = HERE / "errors.md", page()
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


write_errors()

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are stored with their results
copybutton_prompt_text = r">>> |\$ "
copybutton_prompt_is_regexp = True

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # the base class has the documentation of a method, and torch that of its modules
autodoc_default_options = {"members": True, "undoc-members": False, "inherited-members": False}
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True  # attributes of dataclasses are documented twice otherwise
typehints_defaults = "braces"
always_use_bars_union = True
autodoc_type_aliases = {"ArrayLike": "numpy.typing.ArrayLike"}


def keep_prose(self: NumpyDocstring, section: str) -> list[str]:
    """Keep "Returns" as written: sentences and lists of keys, which napoleon would parse as types."""
    lines = self._dedent(self._consume_to_next_section())
    # sphinx-autodoc-typehints marks the section with a colon
    return self._format_block(":returns: ", lines[1:] if lines[:1] == [":"] else lines)


def keep_attribute(self: NumpyDocstring) -> list[str]:
    """Keep docstrings of properties as written: napoleon takes what comes before a colon for a type."""
    return self._consume_to_end()


NumpyDocstring._parse_returns_section = keep_prose
NumpyDocstring._parse_attribute_docstring = keep_attribute

INVENTORIES = {
    "anndata": "https://anndata.readthedocs.io/en/stable/",
    "geopandas": "https://geopandas.org/en/stable/",
    "matplotlib": "https://matplotlib.org/stable/",
    "numpy": "https://numpy.org/doc/stable/",
    "pandas": "https://pandas.pydata.org/pandas-docs/stable/",
    "python": "https://docs.python.org/3/",
    "scanpy": "https://scanpy.readthedocs.io/en/stable/",
    "scipy": "https://docs.scipy.org/doc/scipy/",
    "spatialdata": "https://spatialdata.scverse.org/en/stable/",
    "torch": "https://docs.pytorch.org/docs/stable/",
}


def answers(url: str) -> bool:
    """Return whether an inventory can be reached; without a network the docs are built without its links."""
    try:
        with urllib.request.urlopen(f"{url}objects.inv", timeout=5):
            return True
    except OSError:
        return False


with ThreadPoolExecutor() as pool:
    reached = dict(zip(INVENTORIES, pool.map(answers, INVENTORIES.values()), strict=True))
intersphinx_mapping = {name: (url, None) for name, url in INVENTORIES.items() if reached[name]}

# Type hints name the module that defines a class; inventories use the one that users import it from.
PUBLIC_NAMES = {
    "anndata._core.anndata.AnnData": "anndata.AnnData",
    "geopandas.geodataframe.GeoDataFrame": "geopandas.GeoDataFrame",
    "matplotlib.axes._axes.Axes": "matplotlib.axes.Axes",
    "np.ndarray": "numpy.ndarray",
    "pandas.core.frame.DataFrame": "pandas.DataFrame",
    "pandas.core.series.Series": "pandas.Series",
    "pd.DataFrame": "pandas.DataFrame",
    "scipy.sparse._base.sparray": "scipy.sparse.sparray",
    "scipy.sparse._csr.csr_matrix": "scipy.sparse.csr_matrix",
    "scipy.sparse._matrix.spmatrix": "scipy.sparse.spmatrix",
    "spatialdata._core.spatialdata.SpatialData": "spatialdata.SpatialData",
}

nitpicky = True
# names of type hints that are not resolved
nitpick_ignore = [
    *(("py:class", name) for name in ("Architecture", "LinearDomains", "Selection", "SpotFeatures", "SpotNovelty")),
    *(("py:class", name) for name in ("np.ndarray", "pd.DataFrame")),
    ("py:data", "Ellipsis"),
]
# a project whose inventory could not be reached
nitpick_ignore_regex = [(r"py:.*", rf"{name}\..*") for name in INVENTORIES if not reached[name]]
# parts of models and networks, which are attributes of public classes
nitpick_ignore_regex += [
    (r"py:class", r"strecur\.models\.(calibration|counts|features|linear|novelty|targets)\..*"),
    (r"py:class", r"strecur\.nn\.\w+\.(\w+Backbone|Feedforward|Head|LinearStart|Recursion|TRM|Universal)"),
    (r"py:class", r"strecur\.nn\.\w+\.(Quarters|Windows)"),
]
if not reached["python"]:
    standard_library = r"(collections|pathlib|typing)\..*|None|bool|dict|float|int|list|object|str|tuple|[A-Z]\w*Error"
    nitpick_ignore_regex.append((r"py:.*", standard_library))


def link_public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.TextElement
) -> nodes.reference | None:
    """Resolve a class by its public name, here or in the inventories."""
    target = node.get("reftarget", "")
    if target.startswith("strecur."):
        # type hints name the module that defines a class, the API pages the package that exports it
        module, _, name = target.rpartition(".")
        public = f"{module.rpartition('.')[0]}.{name}"
        place = env, node.get("refdoc", ""), app.builder
        return env.domains["py"].resolve_xref(*place, "class", public, node, contnode)
    if target not in PUBLIC_NAMES:
        return None
    node["reftarget"] = PUBLIC_NAMES[target]
    return intersphinx.missing_reference(app, env, node, contnode)


def write_formula(self: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML, which browsers display without scripts from the network."""
    is_block = isinstance(node, nodes.math_block)
    formula = tex2mathml(node.astext(), as_block=is_block)
    self.body.append(f'<div style="overflow-x: auto; padding: 0.5em 0">{formula}</div>' if is_block else formula)
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Register the functions above."""
    app.add_html_math_renderer("mathml", (write_formula, None), (write_formula, None))
    app.connect("missing-reference", link_public_name)
