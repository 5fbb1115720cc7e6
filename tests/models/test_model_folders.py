"""Model folders that were written by another version, hit by a failure, or made to do harm."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import signal
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from fixtures import make_models
from safetensors.numpy import load_file, save_file

import strecur as st
from strecur.models import DomainModel, ExpressionModel, ModelFolderError
from strecur.models.io import folders
from strecur.models.io.schema import check_values
from strecur.models.network import BACKBONES

resource = pytest.importorskip("resource")

RELEASED = Path(make_models.__file__).parent / "format_0.1"
KINDS = {"domains": DomainModel, "expression": ExpressionModel}
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def output(model: DomainModel | ExpressionModel) -> np.ndarray:
    return make_models.predict(model).output_DN


def read(folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8")), load_file(folder / "weights.safetensors")


def write(folder: Path, config: object, arrays: dict[str, np.ndarray], *, seal: bool) -> None:
    """Write a folder, with the checksum that belongs to it if it is to look untouched."""
    if seal and isinstance(config, dict):
        config = {**config, "checksum": folders.checksum(config, arrays)}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, folder / "weights.safetensors")


@pytest.fixture(params=list(KINDS))
def folder(request, tmp_path) -> Path:
    """Return a copy of a released model, free to be harmed."""
    return Path(shutil.copytree(RELEASED / request.param, tmp_path / request.param))


# Released formats


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_format_0_1_load_and_predict_what_they_did(kind):
    model = st.load_model(RELEASED / kind)
    assert type(model) is KINDS[kind]
    np.testing.assert_allclose(output(model), np.load(RELEASED / f"{kind}.npy"), atol=1e-5, rtol=1e-5)
    expected = {"domains": make_models.domain_model, "expression": make_models.expression_model}[kind]()
    assert (model.id, model.sections, model.architecture) == (expected.id, expected.sections, expected.architecture)
    for name in ("history", "scores"):
        assert getattr(model, name).equals(getattr(expected, name))
    if kind == "domains":
        assert (model.labels, model.temperature, model.halt_threshold) == (expected.labels, 1.25, 0.625)
        np.testing.assert_array_equal(model.conformal_scores, expected.conformal_scores)
        assert model.features.source.genes == expected.features.source.genes
        np.testing.assert_array_equal(model.features.familiar.means_SP, expected.features.familiar.means_SP)
    else:
        assert (model.target, model.encoder) == (expected.target, expected.encoder)
        np.testing.assert_array_equal(model.errors.error_BQG, expected.errors.error_BQG)
        assert model.reliability.equals(expected.reliability)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_a_loaded_model_runs_in_another_precision(precision):
    model = st.load_model(RELEASED / "domains")
    with st.settings.override(precision=precision):
        (answer,) = model.predict([make_models.section()], st.Inference(depth=3))
    found = answer.best
    np.testing.assert_allclose(found.output_DN, np.load(RELEASED / "domains.npy"), atol=0.05)


def test_what_can_be_saved_can_be_loaded_and_the_other_way_round():
    for make in (make_models.domain_model, make_models.expression_model):
        model = make()
        model.network.head.linear.weight.data[0, 0] = float("nan")
        with tempfile.TemporaryDirectory() as place:
            with pytest.raises(ValueError, match=r"head.linear.weight holds NaN"):
                model.save(Path(place) / "model")
            assert list(Path(place).iterdir()) == []


# Failures while saving


def in_child(work: object) -> tuple[int, int]:
    """Run in a child; return the signal that ended it and its exit code, 0 if all went well."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status), os.waitstatus_to_exitcode(status)


def save_and_die(path: Path, point: str) -> None:
    """Save another model over one, and be killed at one point."""
    kind, _, number = point.partition(" ")
    calls, write_through, rename = Counter(), folders.write_through, Path.replace

    def die_at(name: str) -> None:
        if (name, str(calls[name])) == (kind, number):
            os.kill(os.getpid(), signal.SIGKILL)

    def written(file: Path, data: bytes) -> None:
        calls.update(["unwritten", "half-written", "written"])
        die_at("unwritten")
        write_through(file, data[: len(data) // 2])
        die_at("half-written")
        write_through(file, data)
        die_at("written")

    def replace(self: Path, target: Path) -> Path:
        calls.update(["unnamed", "renamed"])
        die_at("unnamed")
        found = rename(self, target)
        die_at("renamed")
        return found

    folders.write_through, Path.replace = written, replace
    make_models.domain_model().save(path, overwrite=True)


POINTS = [f"{name} {i}" for name in ("unwritten", "half-written", "written", "unnamed", "renamed") for i in (1, 2)]


@needs_fork
@pytest.mark.parametrize("point", POINTS)
def test_a_save_killed_at_any_moment_leaves_the_old_or_the_new_model(point, tmp_path):
    path = tmp_path / "model"
    old = make_models.domain_model()
    old.id = "old"
    old.save(path)
    ended_by, _ = in_child(lambda: save_and_die(path, point))
    assert ended_by == signal.SIGKILL
    expected = "0123456789ab" if point == "renamed 2" else "old"
    assert st.load_model(path).id == expected
    # and the next save finds its way
    make_models.domain_model().save(path, overwrite=True)
    assert st.load_model(path).id == "0123456789ab"
    assert not folders.kept_aside(path).exists()


@needs_fork
@pytest.mark.parametrize("point", [*POINTS[:-1], "none"])
def test_a_first_save_is_complete_or_absent(point, tmp_path):
    path = tmp_path / "model"
    ended_by, _ = in_child(lambda: save_and_die(path, point))
    if point in {"none", "renamed 1", "unnamed 2"}:  # there is one renaming only
        model = st.load_model(path)
        # saved by another process
        np.testing.assert_array_equal(output(model), output(make_models.domain_model()))
    else:
        assert ended_by == signal.SIGKILL
        assert not path.exists()
        with pytest.raises(ModelFolderError, match="not a complete model folder"):
            st.load_model(path)


@needs_fork
def test_a_full_disk_keeps_the_old_model(folder):
    before = output(st.load_model(folder))

    def save_on_full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, resource.RLIM_INFINITY))
        with pytest.raises(OSError, match=r"cannot be written to .*the model that was there is kept"):
            make_models.domain_model().save(folder, overwrite=True)

    assert in_child(save_on_full_disk) == (0, 0)
    np.testing.assert_array_equal(output(st.load_model(folder)), before)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@needs_fork
def test_a_read_only_folder_is_named_and_keeps_the_old_model():
    place = Path(tempfile.mkdtemp())
    try:
        path = place / "model"
        make_models.domain_model().save(path)
        place.chmod(0o555)

        def save_powerless() -> None:
            model = make_models.expression_model()
            # the installation may be one that only root can read
            sys.modules["strecur.models.expression"].version = lambda _name: "0.1.0"
            if os.geteuid() == 0:
                os.setuid(65534)
            with pytest.raises(OSError, match=r"cannot be written to .*Permission denied.*is kept"):
                model.save(path, overwrite=True)

        assert in_child(save_powerless) == (0, 0)
        assert st.load_model(path).id == "0123456789ab"
    finally:
        place.chmod(0o755)
        shutil.rmtree(place)


# Harm


HUGE = {
    "width": ("backbone", "width", 10**9),
    "layers": ("backbone", "n_layers", 10**9),
    "window": ("backbone", "window", 10**6),
    "heads": ("backbone", "n_heads", 10**9),
    "wide": ("backbone", "width", 16_384),
    "many windows": ("backbone", "window", 100),
    "steps": ("architecture", "n_steps", 10**12),
    "columns": ("features", "width", 10**8),
    "no float": ("architecture", "damping", float("nan")),
    "neither": ("architecture", "n_latent", True),
    "other network": ("architecture", "n_steps", "3; import os"),
}


@contextmanager
def little_memory(n_bytes: int = 2**30):
    """Let an allocation of more than so many bytes fail, and a case that hangs end."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + n_bytes, before[1]))
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("hangs"))
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, before)


needs_limits = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits memory as Linux does")


@needs_limits
@pytest.mark.parametrize("case", HUGE)
def test_a_network_that_no_one_has_memory_for_is_refused_before_it_is_made(case, folder):
    part, name, value = HUGE[case]
    config, arrays = read(folder)
    config[part][name] = value
    write(folder, config, arrays, seal=True)
    with (
        little_memory(),
        pytest.raises(ModelFolderError, match=rf"{folder.name} is not a usable model: .*expected|needs|takes?"),
    ):
        st.load_model(folder)


@needs_limits
def test_bombs_are_refused(folder):
    config, weights = folder / "config.json", folder / "weights.safetensors"
    whole, header = config.read_bytes(), {"a": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}
    for data in (
        b"[" * 10**6,
        b'{"a":' * 10**5,
        b'{"format": 1' + b"0" * 10**6,
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b"",
    ):
        config.write_bytes(data)
        with little_memory(), pytest.raises(ModelFolderError):
            st.load_model(folder)
    with config.open("wb") as file:
        file.truncate(2**36)  # nothing but a hole
    with little_memory(), pytest.raises(ModelFolderError, match="bytes, which no model needs"):
        st.load_model(folder)
    config.write_bytes(whole)
    text = json.dumps(header).encode()
    with weights.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 2**40)
    with little_memory(2**42), pytest.raises(ModelFolderError, match=r"takes? [\d,]+ bytes|damaged"):
        st.load_model(folder)
    save_file({f"t{i}": np.zeros(0, "f4") for i in range(10_001)}, weights)
    with pytest.raises(ModelFolderError, match="10,001 tensors"):
        st.load_model(folder)


class Exploit:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_nothing_is_executed(folder, tmp_path):
    data = pickle.dumps(Exploit(tmp_path / "was here"))
    pickle.loads(data)
    assert (tmp_path / "was here").exists()
    (tmp_path / "was here").unlink()
    for name in ("config.json", "weights.safetensors"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(data)
        with pytest.raises(ModelFolderError, match="damaged"):
            st.load_model(folder)
        (folder / name).write_bytes(whole)
    (folder / "config.py").write_text("raise SystemExit")
    st.load_model(folder)
    assert not (tmp_path / "was here").exists()


def test_names_are_no_paths(folder, tmp_path):
    config, arrays = read(folder)
    config["id"], config["sections"] = "../../id", ["/etc/passwd", "../S1"]
    write(folder, config, arrays, seal=True)
    model = st.load_model(folder)
    model.save(tmp_path / "place" / "model")
    assert sorted(path.name for path in tmp_path.rglob("*") if "place" in path.parts and path.is_file()) == [
        "config.json",
        "weights.safetensors",
    ]


def test_weights_of_another_model_are_refused(folder):
    other = make_models.domain_model() if folder.name == "domains" else make_models.expression_model()
    other.network.head.linear.weight.data += 1
    other.save(folder.parent / "other")
    shutil.copy(folder.parent / "other" / "weights.safetensors", folder)
    with pytest.raises(ModelFolderError, match="two files are of different models"):
        st.load_model(folder)
    shutil.copy(RELEASED / ({"domains", "expression"} - {folder.name}).pop() / "weights.safetensors", folder)
    with pytest.raises(ModelFolderError, match=r"unknown|missing"):
        st.load_model(folder)


def test_an_unknown_format_is_refused_with_advice(folder):
    config, arrays = read(folder)
    write(folder, config | {"format": 2, "strecur": "3.1"}, arrays, seal=True)
    with pytest.raises(ModelFolderError, match=r"format 2, written by strecur '3.1'.*Load it with the version"):
        st.load_model(folder)


def test_links_are_followed_to_files_and_nowhere_else(folder, tmp_path):
    """Download caches hold links to files; devices, pipes and folders are none."""
    weights = folder / "weights.safetensors"
    weights.rename(tmp_path / "blob")
    weights.symlink_to(tmp_path / "blob")
    assert np.isfinite(output(st.load_model(folder))).all()
    os.mkfifo(tmp_path / "pipe")
    for target in ("/dev/zero", tmp_path / "pipe", tmp_path, weights, tmp_path / "nowhere"):
        weights.unlink()
        weights.symlink_to(target)
        with pytest.raises(ModelFolderError, match="missing"):
            st.load_model(folder)


# Fuzzing

N_MUTATIONS = 150
WRONG = [
    None,
    True,
    "x",
    "",
    -1,
    0,
    1,
    2,
    7,
    10**9,
    10**30,
    1e308,
    0.5,
    float("nan"),
    float("inf"),
    [],
    {},
    [[[[]]]],
    {"a": 1},
]


def places(value: object, found: tuple = ()) -> list[tuple]:
    """Every place in nested values."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, part in items for place in [(*found, key), *places(part, (*found, key))]]


def mutate_config(config: dict, rng: np.random.Generator) -> str:
    """Change one place of the configuration."""
    chosen = places(config)
    *outer, last = chosen[rng.integers(len(chosen))]
    holder = config
    for key in outer:
        holder = holder[key]
    what = ("replace", "remove", "rename", "nest", "duplicate")[rng.choice(5, p=[0.5, 0.2, 0.1, 0.1, 0.1])]
    if what == "replace":
        holder[last] = copy.deepcopy(WRONG[rng.integers(len(WRONG))])
    elif what == "nest":
        bomb: object = holder[last]
        for _ in range(int(rng.integers(1, 500))):
            bomb = [bomb]
        holder[last] = bomb
    elif isinstance(holder, list):
        holder.insert(last, holder[last]) if what == "duplicate" else holder.pop(last)
    else:
        value = holder[last] if what == "duplicate" else holder.pop(last)
        if what != "remove":
            holder[f"{last}_"] = value
    return f"config: {what}"


def mutate_arrays(arrays: dict[str, np.ndarray], rng: np.random.Generator) -> str:
    """Change one array."""
    name = sorted(arrays)[rng.integers(len(arrays))]
    value = arrays[name]
    what = ("rename", "remove", "add", "reshape", "grow", "cut", "dtype", "nan", "value")[rng.integers(9)]
    if what in ("rename", "remove"):
        del arrays[name]
    if what in ("rename", "add"):
        arrays[f"{name}_"] = value
    changed = {
        "reshape": lambda: value.reshape(-1, 1),
        "grow": lambda: np.concatenate([value, value]),
        "cut": lambda: value[:-1],
        "dtype": lambda: value.astype([np.float16, np.float64, np.int8, np.int64, np.bool_][rng.integers(5)]),
        "nan": lambda: np.where(np.arange(value.size).reshape(value.shape) == 0, np.nan, value).astype(np.float32),
        "value": lambda: value + 1,
    }
    if what in changed:
        arrays[name] = changed[what]()
    return f"weights: {what}"


def mutate_bytes(path: Path, rng: np.random.Generator) -> str:
    """Change the bytes of a file."""
    data = bytearray(path.read_bytes())
    what = ("flip", "cut", "append", "zeros", "empty", "gone", "folder")[
        rng.choice(7, p=[0.5, 0.2, 0.1, 0.1, 0.04, 0.03, 0.03])
    ]
    place = int(rng.integers(len(data)))
    if what == "flip":
        data[place] ^= 1 << int(rng.integers(8))
    elif what == "cut":
        del data[place:]
    elif what == "append":
        data += bytes(int(rng.integers(1, 100)))
    elif what == "zeros":
        data[place : place + 50] = bytes(len(data[place : place + 50]))
    elif what == "empty":
        data.clear()
    path.write_bytes(bytes(data))
    if what in ("gone", "folder"):
        path.unlink()
    if what == "folder":
        path.mkdir()
    return f"{path.suffix}: {what}"


def mutate(folder: Path, rng: np.random.Generator, *, seal: bool) -> str:
    """Change one thing in a folder."""
    if not seal and rng.random() < 0.5:
        return mutate_bytes(folder / ("config.json", "weights.safetensors")[rng.integers(2)], rng)
    config, arrays = read(folder)
    said = mutate_config(config, rng) if rng.random() < 0.6 else mutate_arrays(arrays, rng)
    write(folder, config, arrays, seal=seal)
    return said


@needs_limits
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seal", [False, True])
def test_a_changed_folder_is_refused_or_means_the_same(kind, seal, tmp_path):
    """With a checksum that was made to fit, a folder may mean something else, but never anything but a model."""
    rng, outcomes, expected = (
        np.random.default_rng([N_MUTATIONS, seal, len(kind)]),
        Counter(),
        np.load(RELEASED / f"{kind}.npy"),
    )
    wrong, path = [], tmp_path / "model"
    with little_memory():
        for i in range(N_MUTATIONS):
            shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(RELEASED / kind, path)
            said = mutate(path, rng, seal=seal)
            signal.alarm(300)
            try:
                model = st.load_model(path)
            except ModelFolderError as error:
                outcomes[f"{said}: refused"] += 1
                wrong += [f"{i}, {said}: does not name the folder"] * (str(path) not in f"{error}")
                continue
            except Exception as error:  # noqa: BLE001
                wrong.append(f"{i}, {said}: {error!r}")
                continue
            outcomes[f"{said}: loaded"] += 1
            if not seal and not np.allclose(output(model), expected, atol=1e-5, rtol=1e-5):
                wrong.append(f"{i}, {said}: predicts something else")
    assert wrong == []
    assert sum(outcomes.values()) == N_MUTATIONS
    n_refused = sum(n for name, n in outcomes.items() if name.endswith("refused"))
    assert n_refused > N_MUTATIONS // 2
    print(kind, "sealed" if seal else "as found", n_refused, "refused of", N_MUTATIONS, dict(outcomes))


def test_the_schema_takes_what_it_is_made_for():
    for kind in KINDS:
        check_values(read(RELEASED / kind)[0], BACKBONES)
