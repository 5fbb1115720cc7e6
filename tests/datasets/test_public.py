"""Public data sets: folders first, then checked downloads; a server on this machine stands for the sources."""

from __future__ import annotations

import gzip
import http.server
import json
import shutil
import socket
import threading
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import sparse

import strecur as st
from strecur.datasets import _download
from strecur.datasets._download import DownloadError, fetch, git_blob_id, registry

SITES = 6


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, with ranges as GitHub and S3 serve them."""

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        self.server.requests.append((self.path.lstrip("/"), self.headers.get("Range")))
        if not path.is_file():
            self.send_error(404)
            return
        body = path.read_bytes()
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-")) if self.headers["Range"] else 0
        if not self.server.ranges:
            start = 0
        if start and start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        sent = body[start:]
        self.wfile.write(sent[: self.server.breaks_after] if self.server.breaks_after else sent)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve ``tmp_path/served`` in place of all sources."""
    root = tmp_path / "served"
    root.mkdir()

    def handle(*args):
        return Handler(*args, directory=str(root))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handle) as running:
        running.requests, running.ranges, running.breaks_after, running.root = [], True, None, root
        threading.Thread(target=running.serve_forever, daemon=True).start()
        for source in _download.SOURCES:
            monkeypatch.setitem(_download.SOURCES, source, f"http://127.0.0.1:{running.server_port}/{source}/")
        yield running
        running.shutdown()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Use an empty folder of data sets."""
    monkeypatch.delenv("STRECUR_DATA", raising=False)
    with st.settings.override(dataset_dir=tmp_path / "cache", progress=False):
        yield tmp_path / "cache"


def serve(server, source, path, content, monkeypatch):
    """Put a file on the server and its checksum into the registry."""
    target = server.root / source / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    if registry().get((source, path)) is not None:
        monkeypatch.setitem(registry(), (source, path), f"git:{git_blob_id(target)}")
    return target


@pytest.fixture
def served(server, folder, monkeypatch):
    """Serve one file, and say where it belongs."""
    source, path = "her2st", "data/ST-cnts/A1.tsv.gz"
    content = np.random.default_rng(0).bytes(300_000)
    serve(server, source, path, content, monkeypatch)
    return source, path, folder / "A1.tsv.gz", content


# Downloads


def test_git_blob_id_is_that_of_git(tmp_path):
    path = tmp_path / "hello"
    path.write_bytes(b"hello world\n")
    assert git_blob_id(path) == "3b18e512dba79e4c8300dd08aeb37f8e728b8dad"  # git hash-object


def test_what_is_there_is_not_downloaded_again(server, served):
    source, path, target, content = served
    assert fetch(source, path, target).read_bytes() == content
    fetch(source, path, target)
    assert server.requests == [(f"{source}/{path}", None)]
    assert [p.name for p in target.parent.iterdir()] == [target.name]


def test_an_interrupted_download_is_continued(server, served):
    source, path, target, content = served
    server.breaks_after = 100_000
    with pytest.raises(DownloadError, match="65,536 bytes are kept and the next call continues"):
        fetch(source, path, target)
    assert not target.exists()
    server.breaks_after = None
    assert fetch(source, path, target).read_bytes() == content
    assert server.requests[-1] == (f"{source}/{path}", "bytes=65536-")


def test_a_server_without_ranges_is_asked_for_the_whole(server, served):
    source, path, target, content = served
    server.ranges = False
    target.parent.mkdir(parents=True)
    target.with_name("A1.tsv.gz.part").write_bytes(content[:1000])
    assert fetch(source, path, target).read_bytes() == content


@pytest.mark.parametrize("rest", [b"something else", b"x" * 400_000])
def test_a_rest_of_something_else_is_replaced(served, rest):
    source, path, target, content = served
    target.parent.mkdir(parents=True)
    target.with_name("A1.tsv.gz.part").write_bytes(rest)
    assert fetch(source, path, target).read_bytes() == content


def test_a_complete_rest_needs_no_request(server, served):
    source, path, target, content = served
    target.parent.mkdir(parents=True)
    target.with_name("A1.tsv.gz.part").write_bytes(content)
    assert fetch(source, path, target).read_bytes() == content
    assert server.requests == []


def test_a_damaged_copy_is_downloaded_again(served, caplog):
    source, path, target, content = served
    fetch(source, path, target)
    target.write_bytes(content[:-1] + b"?")
    assert fetch(source, path, target).read_bytes() == content
    assert "damaged or changed" in caplog.text


def test_a_changed_source_raises_and_nothing_is_kept(server, served):
    source, path, target, content = served
    (server.root / source / path).write_bytes(content[::-1])
    with pytest.raises(DownloadError, match="checksum is not git:"):
        fetch(source, path, target)
    assert list(target.parent.iterdir()) == []


def test_a_missing_file_says_so(server, served):
    source, path, target, _ = served
    (server.root / source / path).unlink()
    with pytest.raises(DownloadError, match="404"):
        fetch(source, path, target)


def test_every_file_on_github_has_a_checksum_of_a_pinned_commit():
    for (source, path), checksum in registry().items():
        if source == "spatial-dlpfc":
            assert checksum is None  # none is published
        else:
            kind, digest = checksum.split(":")
            assert kind == "git", path
            assert len(bytes.fromhex(digest)) == 20
            assert len(_download.SOURCES[source].rstrip("/").rpartition("/")[2]) == 40
    assert len(registry()) == len(set(registry()))


# HER2ST


def serve_her2st(server, monkeypatch, name="A1", *, labelled=True):
    """Serve a section of SITES × SITES spots, the last two of them off the tissue."""
    rng = np.random.default_rng(len(name))
    x, y = (part.ravel() + 3 for part in np.meshgrid(np.arange(SITES), np.arange(SITES)))
    spots = pd.DataFrame({"x": x, "y": y, "new_x": x + 0.018, "new_y": y - 0.006})
    spots["pixel_x"], spots["pixel_y"] = 290 * x, 290 * y
    spots["selected"] = (np.arange(len(x)) < len(x) - 2).astype(int)
    counts = pd.DataFrame(rng.poisson(2, (len(x), 5)), index=[f"{a}x{b}" for a, b in zip(x, y, strict=True)])
    counts.columns = ["TP53", "ERBB2", "MT-CO1", "CD8A", f"ONLY{name}"]
    order = rng.permutation(len(x))  # counts and spots stand in different orders
    base = "her2st", "data/ST-"
    text = gzip.compress(counts.iloc[order].to_csv(sep="\t").encode())
    serve(server, base[0], f"{base[1]}cnts/{name}.tsv.gz", text, monkeypatch)
    text = spots.to_csv(sep="\t", index=False).encode()
    serve(server, base[0], f"{base[1]}spotfiles/{name}_selection.tsv", text, monkeypatch)
    if labelled:
        labels = pd.DataFrame({"Row.names": "r", "x": spots["new_x"], "y": spots["new_y"]}).iloc[:-3]
        labels["label"] = np.where(labels["x"] < 5, "invasive cancer", "connective tissue")
        labels.loc[0, "label"] = "undetermined"
        text = labels.to_csv(sep="\t", index=False).encode()
        serve(server, base[0], f"{base[1]}pat/lbl/{name}_labeled_coordinates.tsv", text, monkeypatch)
    return counts, spots


def test_her2st_is_built_from_its_files(server, folder, monkeypatch):
    counts, _ = serve_her2st(server, monkeypatch)
    serve_her2st(server, monkeypatch, "A2", labelled=False)
    adata = st.datasets.her2st(["A1", "A2"])
    first = adata[adata.obs["section"] == "A1"]
    assert first.n_obs == SITES**2 - 2
    assert list(adata.obs.columns) == ["section", "patient", "array_row", "array_col", "domain"]
    site = first.obs["array_col"].astype(str) + "x" + first.obs["array_row"].astype(str)
    assert list("A1_" + site) == list(first.obs_names)
    np.testing.assert_array_equal(first[:, "ERBB2"].X.toarray().ravel(), counts.loc[site, "ERBB2"])
    np.testing.assert_array_equal(first.obsm["spatial"], 290.0 * first.obs[["array_col", "array_row"]])
    expected = np.where(first.obs["array_col"] < 5, "invasive cancer", "connective tissue").astype(object)
    expected[(site == "3x3") | (site == "6x8")] = None  # undetermined, and without a line
    assert list(first.obs["domain"].astype(object).where(first.obs["domain"].notna(), None)) == list(expected)
    assert adata[adata.obs["section"] == "A2"].obs["domain"].isna().all()
    assert adata.var["n_sections"].to_dict() == dict.fromkeys(counts.columns[:4], 2) | {"ONLYA1": 1, "ONLYA2": 1}
    assert adata.uns["spatial"]["A1"]["scalefactors"]["microns_per_pixel"] == pytest.approx(200 / 290)
    assert "source_image_path" not in adata.uns["spatial"]["A1"]["metadata"]


def test_her2st_is_built_once_and_then_needs_no_server(server, folder, monkeypatch, tmp_path):
    serve_her2st(server, monkeypatch)
    first = st.datasets.her2st("A1")
    asked = len(server.requests)
    shutil.rmtree(server.root)
    again = st.datasets.her2st("A1")
    assert len(server.requests) == asked
    pd.testing.assert_frame_equal(first.obs, again.obs)
    np.testing.assert_array_equal(first.X.toarray(), again.X.toarray())
    st.pp.to_grid(again, library_key="section")
    assert again.uns["grid"]["layout"] == "square"
    again.write_h5ad(tmp_path / "all.h5ad")


def test_her2st_images_come_only_if_wanted(server, folder, monkeypatch):
    serve_her2st(server, monkeypatch)
    (path,) = [path for source, path in registry() if source == "her2st" and "/A1/" in path]
    drawn = folder.parent / "drawn.jpg"
    Image.new("RGB", (64, 48), "pink").save(drawn)
    serve(server, "her2st", path, drawn.read_bytes(), monkeypatch)
    st.datasets.her2st("A1")
    assert not any(asked.endswith(".jpg") for asked, _ in server.requests)
    adata = st.datasets.her2st("A1", images=True)
    found = adata.uns["spatial"]["A1"]["metadata"]["source_image_path"]
    assert Path(found) == folder / "her2st" / "images" / "A1.jpg"
    assert Image.open(found).size == (64, 48)
    assert st.datasets.her2st("A1").uns["spatial"]["A1"]["metadata"]["source_image_path"] == found


# DLPFC


def serve_dlpfc(server, monkeypatch, name="151673", *, median=None):
    """Serve a section of 12 spots under tissue and 3 beside it."""
    import h5py

    rng = np.random.default_rng(1)
    barcodes = [f"{'ACGT'[i % 4]}{i:03d}-1" for i in range(15)]
    inside = barcodes[:12]
    matrix = sparse.csc_matrix(rng.poisson(1.0, (6, 12)).astype(np.int32))  # genes × spots, as Space Ranger has it
    target = server.root / "spatial-dlpfc" / f"h5/{name}_filtered_feature_bc_matrix.h5"
    target.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(target, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(inside[::-1], dtype="S")
        for key in ("data", "indices", "indptr"):
            group[key] = getattr(matrix, key)
        group["shape"] = np.array(matrix.shape)
        features = group.create_group("features")
        features["id"] = np.array([f"ENSG{i:011d}" for i in range(6)], dtype="S")
        features["name"] = np.array(["A", "B", "B", "C", "D", "E"], dtype="S")  # symbols repeat, ids do not
        features["feature_type"] = np.array(["Gene Expression"] * 6, dtype="S")
        features["genome"] = np.array(["GRCh38"] * 6, dtype="S")
    dense = matrix.toarray()
    stated = {
        "Estimated Number of Spots": "12",
        "Median UMI Counts per Spot": f"{np.median(dense.sum(axis=0)) if median is None else median:,.0f}",
        "Median Genes per Spot": f"{np.median((dense > 0).sum(axis=0)):.0f}",
        "Total Genes Detected": str((dense.sum(axis=1) > 0).sum()),
    }
    text = ",".join(stated) + "\n" + ",".join(f'"{value}"' for value in stated.values()) + "\n"
    serve(server, "humanpilot", f"10X/{name}/metrics_summary_csv.csv", text.encode(), monkeypatch)
    lines = [f"{b},{int(b in inside)},{i // 4},{2 * (i % 4) + i // 4 % 2},{100 + i},{200 + i}" for i, b in
             enumerate(barcodes)]  # fmt: skip
    serve(server, "humanpilot", f"10X/{name}/tissue_positions_list.txt", "\n".join(lines).encode(), monkeypatch)
    scales = {"spot_diameter_fullres": 96.4, "tissue_hires_scalef": 0.15, "fiducial_diameter_fullres": 144.6}
    serve(server, "humanpilot", f"10X/{name}/scalefactors_json.json", json.dumps(scales).encode(), monkeypatch)
    labels = [f"{b}\t{name}\tL{i % 3 + 1}" for i, b in enumerate(inside[:-1])]
    labels += [f"{b}\t151507\tWM" for b in inside]  # the same barcodes in another section
    serve(server, "humanpilot", "10X/barcode_level_layer_map.tsv", "\n".join(labels).encode(), monkeypatch)
    return dense[:, ::-1], inside  # in the order of ``inside``


def test_dlpfc_is_built_from_its_files(server, folder, monkeypatch):
    dense, inside = serve_dlpfc(server, monkeypatch)
    adata = st.datasets.dlpfc("151673")
    adata = adata[[f"151673_{barcode}" for barcode in inside]]
    np.testing.assert_array_equal(adata.X.toarray(), dense.T)
    assert list(adata.var["symbol"]) == ["A", "B", "B", "C", "D", "E"]
    assert adata.var_names.str.startswith("ENSG").all()
    np.testing.assert_array_equal(adata.obs["sum_umi"], dense.sum(axis=0))
    np.testing.assert_array_equal(adata.obsm["spatial"], [[200 + i, 100 + i] for i in range(12)])
    assert list(adata.obs["domain"].astype(object)[:-1]) == [f"L{i % 3 + 1}" for i in range(11)]
    assert adata.obs["domain"].isna().sum() == 1
    assert set(adata.obs["donor"]) == {"Br8100"}
    assert adata.uns["spatial"]["151673"]["scalefactors"]["tissue_hires_scalef"] == 0.15


def test_dlpfc_counts_without_checksum_must_agree_with_the_stated_summary(server, folder, monkeypatch):
    serve_dlpfc(server, monkeypatch, median=4120)
    with pytest.raises(DownloadError, match=r"Median UMI Counts per Spot is .*the authors report 4120"):
        st.datasets.dlpfc("151673")
    assert list((folder / "dlpfc").rglob("*.h5*")) == []


def test_half_of_a_count_matrix_without_checksum_is_continued(server, folder, monkeypatch):
    dense, _ = serve_dlpfc(server, monkeypatch)
    server.breaks_after = 3000
    with pytest.raises(DownloadError, match="next call continues"):
        st.datasets.dlpfc("151673")
    server.breaks_after = None
    assert st.datasets.dlpfc("151673").X.sum() == dense.sum()


def test_dlpfc_images(server, folder, monkeypatch, tmp_path):
    serve_dlpfc(server, monkeypatch)
    Image.new("RGB", (20, 10), "pink").save(tmp_path / "hires.png")
    content = (tmp_path / "hires.png").read_bytes()
    serve(server, "humanpilot", "10X/151673/tissue_hires_image.png", content, monkeypatch)
    assert "images" not in st.datasets.dlpfc("151673").uns["spatial"]["151673"]
    library = st.datasets.dlpfc("151673", images=True).uns["spatial"]["151673"]
    assert library["images"]["hires"].shape == (10, 20, 3)
    assert Path(library["metadata"]["hires_image_path"]).is_file()


# Mouse olfactory bulb


def test_mob_is_built_from_its_files(server, folder, monkeypatch, tmp_path):
    base = "tutorials/olfactory_bulb_st"
    spots = ["17.1_18", "33_35", "2_3"]
    counts = pd.DataFrame([[1, 0, 4], [0, 2, 0]], index=["Penk", "Doc2g"], columns=spots)
    serve(server, "splotch", f"{base}/count_tables/08_01.tsv", counts.to_csv(sep="\t").encode(), monkeypatch)
    layers = pd.DataFrame(0, index=["Glomerular layer", "Granular Cell Layer"], columns=spots[::-1])
    layers.loc["Granular Cell Layer", "17.1_18"] = layers.loc["Glomerular layer", "33_35"] = 1
    serve(server, "splotch", f"{base}/annotations/08_01.tsv", layers.to_csv(sep="\t").encode(), monkeypatch)
    Image.new("RGB", (320, 340), "pink").save(tmp_path / "08.jpg")
    serve(server, "splotch", f"{base}/images/08.jpg", (tmp_path / "08.jpg").read_bytes(), monkeypatch)
    adata = st.datasets.mob("Rep8")
    assert list(adata.obs_names) == [f"Rep8_{spot}" for spot in spots]
    assert list(adata.obs["domain"].astype(object)[:2]) == ["GCL", "GL"]
    assert adata.obs["domain"].isna().tolist() == [False, False, True]
    np.testing.assert_array_equal(adata.X.toarray(), counts.T)
    np.testing.assert_allclose(adata.obsm["spatial"], [[161, 170], [320, 340], [10, 20]])
    np.testing.assert_array_equal(adata.obs[["array_col", "array_row"]], [[17, 18], [33, 35], [2, 3]])
    assert Path(adata.uns["spatial"]["Rep8"]["metadata"]["source_image_path"]).name == "Rep8.jpg"


# Folders


def write_section(path, *, value=1.0, **obs):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame({"array_row": [0, 0, 1], "array_col": [0, 1, 0], **obs}, index=list("abc"))
    xy = {"spatial": np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])}
    ad.AnnData(sparse.csr_matrix(np.full((3, 2), value, dtype=np.float32)), obs=table, obsm=xy).write_h5ad(path)


@pytest.fixture
def offline(monkeypatch, folder):
    """Let nothing reach any server."""

    def refuse(*args, **kwargs):
        message = "network is unreachable"
        raise OSError(message)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return folder


def test_a_folder_is_enough(offline):
    for name in st.datasets.read_split("dlpfc-donors-v1").index:
        write_section(offline / "dlpfc" / f"{name}.h5ad", domain=["L2", "WM", np.nan])
    adata = st.datasets.dlpfc()
    assert adata.obs["section"].nunique() == 12
    assert list(adata.obs["domain"].cat.categories) == ["L2", "WM"]
    assert adata.obs["domain"].isna().sum() == 12
    by_donor = adata.obs.groupby("donor", observed=True)["section"].nunique()
    assert by_donor.to_dict() == {"Br5292": 4, "Br5595": 4, "Br8100": 4}


def test_the_environment_variable_names_a_second_folder(offline, tmp_path, monkeypatch):
    monkeypatch.setenv("STRECUR_DATA", str(tmp_path / "shared"))
    write_section(tmp_path / "shared/her2st/A1.h5ad", value=1, domain="cancer in situ")
    write_section(tmp_path / "shared/her2st/A2.h5ad", value=1)
    write_section(offline / "her2st/A1.h5ad", value=5)
    adata = st.datasets.her2st(["A2", "A1"])
    assert list(adata.obs["section"].cat.categories) == ["A2", "A1"]
    assert adata.X.max() == 5  # settings.dataset_dir comes first


def test_what_a_folder_lacks_cannot_be_had_without_network(offline):
    write_section(offline / "her2st/A1.h5ad")
    with pytest.raises(DownloadError) as caught:
        st.datasets.her2st(["A1", "A2", "B1"])
    message = str(caught.value)
    for part in ("sections ['A2', 'B1'] are not in", "<section>.h5ad", "STRECUR_DATA", "pass sections=['A1']"):
        assert part in message


def test_a_partial_folder_is_completed(server, folder, monkeypatch):
    write_section(folder / "her2st/A2.h5ad", value=7)
    serve_her2st(server, monkeypatch)
    adata = st.datasets.her2st(["A1", "A2"])
    assert adata.obs["section"].value_counts().to_dict() == {"A1": SITES**2 - 2, "A2": 3}
    assert not any("A2" in path for path, _ in server.requests)


def test_wrong_names_and_forms_are_told(offline):
    with pytest.raises(ValueError, match=r"unknown \['Z9'\]; her2st has \['A1'"):
        st.datasets.her2st(["A1", "Z9"])
    with pytest.raises(ValueError, match="repeated"):
        st.datasets.mob(["Rep1", "Rep1"])
    (offline / "her2st").mkdir(parents=True)
    (offline / "her2st/A1.h5ad").write_bytes(b"no h5ad")
    with pytest.raises(OSError, match=r"A1\.h5ad is damaged"):
        st.datasets.her2st("A1")
    ad.AnnData(np.ones((2, 2), dtype=np.float32)).write_h5ad(offline / "her2st/A1.h5ad")
    with pytest.raises(KeyError, match=r"spatial.*common form"):
        st.datasets.her2st("A1")


def test_real_sections(data_dir, monkeypatch):
    if not (data_dir / "dlpfc" / "151673.h5ad").is_file():
        pytest.skip(f"no dlpfc/151673.h5ad in {data_dir}")
    monkeypatch.setenv("STRECUR_DATA", str(data_dir))
    adata = st.datasets.dlpfc("151673", images=True)
    assert adata.obs["domain"].value_counts().to_dict() == {
        "L1": 273, "L2": 253, "L3": 989, "L4": 218, "L5": 673, "L6": 692, "WM": 513}  # fmt: skip
    st.pp.to_grid(adata, library_key="section")
    assert adata.uns["grid"]["layout"] == "hex"


# Splits and genes


def test_splits_hold_every_section_once_and_keep_their_promise():
    dlpfc, her2st = st.datasets._dlpfc.DLPFC.sections, st.datasets._her2st.HER2ST.sections
    for name, sections in [("dlpfc-sections-v1", dlpfc), ("dlpfc-donors-v1", dlpfc), ("her2st-b1-v1", her2st),
                           ("her2st-four-sections-v1", her2st), ("her2st-patients-v1", her2st)]:  # fmt: skip
        split = st.datasets.read_split(name)
        assert tuple(split.index) == sections
        assert set(np.unique(split)) <= {"train", "validation", "test"}
    assert (st.datasets.read_split("dlpfc-sections-v1") == "test").sum().tolist() == [1] * 12
    stem = st.datasets.read_split("her2st-b1-v1")["B1"]
    assert stem.value_counts().to_dict() == {"train": 34, "test": 1, "validation": 1}
    assert (stem["B1"], stem["B6"]) == ("test", "validation")
    for name, group in [("dlpfc-donors-v1", st.datasets._dlpfc.DLPFC.group[1]),
                        ("her2st-patients-v1", st.datasets._her2st.HER2ST.group[1])]:  # fmt: skip
        for fold, parts in st.datasets.read_split(name).items():
            assert {group[section] for section in parts.index[parts == "test"]} == {fold}
            assert fold not in {group[section] for section in parts.index[parts == "train"]}


def test_gene_lists():
    training, everything = (st.datasets.read_genes(f"her2st-300-{kind}-v1") for kind in ("training", "all"))
    for genes in (training, everything):
        assert len(genes) == len(set(genes)) == 300
        assert genes == sorted(genes)
        assert {"ERBB2", "CD74", "COL1A1"} <= set(genes)
        assert not [gene for gene in genes if gene.startswith(("MT", "RPS", "RPL"))]
    assert training != everything


def test_unknown_names_list_the_known():
    with pytest.raises(KeyError, match=r"her2st-b1-v1"):
        st.datasets.read_split("her2st")
    with pytest.raises(KeyError, match=r"her2st-300-training-v1"):
        st.datasets.read_genes("her2st")
