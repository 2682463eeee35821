"""Features in a file are the encoder's, complete, resumable to the bit; what cannot be so is refused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from spoilt_files import spoil_share
from tiny_features import SMALL, embedded, embedding
from tiny_runs import draw_images
from tiny_supervised import write_encoder
from unmask.data.bad_files import TooManyBadFiles
from unmask.data.loader import EvalLoader
from unmask.data.sources import ArraySource, open_source
from unmask.embedding import embed
from unmask.embedding.embed import EmbedConfig, EmbeddingStopped
from unmask.embedding.files import open_features
from unmask.embedding.rows import FeatureFile
from unmask.evaluation.features import extract
from unmask.models.pretrained import open_encoder

KINDS = ("parquet", "npy", "safetensors")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images, one of which is none, and an encoder with a class token."""
    desk = tmp_path_factory.mktemp("desk")
    data = draw_images(desk / "data", 30)
    (data / "cold" / "002.png").write_bytes(b"no image")
    write_encoder(desk / "encoder.safetensors")
    return desk


@pytest.fixture
def encoder(desk: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(desk)
    return Path("encoder.safetensors")


def features(file: FeatureFile) -> NDArray[np.float32]:
    return np.concatenate([file.block(number) for number in range(len(file.starts) - 1)])


def images(desk: Path) -> torch.Tensor:
    """All readable images, as the encoder sees them."""
    encoder = open_encoder(str(desk / "encoder.safetensors")).encoder
    height, width = encoder.image_size
    loader = EvalLoader(open_source(desk / "data"), height=height, width=width, batch_size=40, workers=0)
    return torch.cat([batch for batch, _ in loader])


@pytest.mark.parametrize(("output", "block"), [("mean", None), ("class", 0), ("dense", 1)])
def test_features_are_those_of_the_encoder(
    desk: Path, encoder: Path, tmp_path: Path, output: str, block: int | None
) -> None:
    out = tmp_path / "features.parquet"
    header = embedded(encoder, Path("data"), out, output=output, block=block)
    trained = open_encoder(str(encoder)).to(torch.device("cpu"))
    seen = images(desk)
    if output == "dense":
        expected = trained.maps(seen, block)
        assert expected.shape[2:] == trained.encoder.grid
    else:
        expected = trained.features(seen, output, block)  # type: ignore[arg-type]
    file = open_features(out)
    assert file.header == header
    assert (header.images, header.bad_files, len(file)) == (29, 1, 29)
    np.testing.assert_allclose(features(file), expected.numpy(), rtol=1e-4, atol=1e-5)
    assert header.plan.recipe.block == (trained.encoder.depth - 1 if block is None else block)


def test_features_are_those_of_evaluations_to_the_bit(encoder: Path, tmp_path: Path) -> None:
    """The same images side by side in a batch give the same sums."""
    embedded(encoder, Path("data"), tmp_path / "f.npy")
    trained = open_encoder(str(encoder)).to(torch.device("cpu"))
    height, width = trained.encoder.image_size
    found = extract(
        trained.features, open_source("data"), height=height, width=width, channels=3, batch_size=4, workers=0
    )
    assert np.array_equal(features(open_features(tmp_path / "f.npy")), found.x_ND.numpy())


def test_a_block_is_the_normed_output_of_that_block(desk: Path) -> None:
    trained = open_encoder(str(desk / "encoder.safetensors")).to(torch.device("cpu"))
    seen = images(desk)[:3]
    last = trained.encoder.depth - 1
    assert torch.equal(trained.features(seen, "class", last), trained.features(seen, "class"))
    assert not torch.allclose(trained.features(seen, "mean", 0), trained.features(seen, "mean"))
    torch.testing.assert_close(trained.maps(seen).flatten(2).mean(dim=2), trained.features(seen))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_kinds_of_files_hold_the_same(encoder: Path, tmp_path: Path, precision: str) -> None:
    config = EmbedConfig(batch_size=4, part_size=8, precision=precision)  # type: ignore[arg-type]
    files = []
    for kind in KINDS:
        embedded(encoder, Path("data"), tmp_path / f"f.{kind}", config)
        files.append(open_features(tmp_path / f"f.{kind}"))
    source = open_source("data")
    assert source.labels is not None
    first = features(files[0])
    assert first.dtype == (np.float32 if precision == "fp32" else np.float16)
    every = list(range(len(files[0])))
    for file in files:
        assert file.header == files[0].header
        assert features(file).dtype == first.dtype
        assert np.array_equal(features(file), first)
        assert max(b - a for a, b in pairwise(file.starts)) <= 8
        rows = file.rows([*every, 3])
        assert [row.path for row in rows] == [source.path(row.index) for row in rows]
        assert [row.label for row in rows] == [source.labels[row.index] for row in rows]
        assert rows[-1] == rows[3]
        bad = next(k for k in range(30) if source.path(k).endswith("cold/002.png"))
        assert [row.index for row in rows[:-1]] == [k for k in range(30) if k != bad]


def test_other_libraries_read_the_files(encoder: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    for kind in KINDS:
        embedded(encoder, Path("data"), tmp_path / f"f.{kind}")
    plain = np.load(tmp_path / "f.npy", allow_pickle=False)
    table = pandas.read_parquet(tmp_path / "f.parquet")
    names = pandas.read_csv(tmp_path / "f.npy.csv")
    assert list(table.columns) == ["index", "path", "label", "class", "feature"]
    assert np.array_equal(np.stack(table["feature"]), plain)
    assert table.drop(columns="feature").astype(object).equals(names.astype(object))
    assert set(table["class"]) == {"cold", "warm"}
    with safe_open(tmp_path / "f.safetensors", framework="pt") as file:
        assert np.array_equal(file.get_tensor("features").numpy(), plain)
        assert file.get_tensor("label").tolist() == names["label"].tolist()
        assert bytes(file.get_tensor("paths").numpy()).decode().split("\0")[:-1] == names["path"].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_anywhere_the_end_is_the_same_to_the_bit(encoder: Path, tmp_path: Path, kind: str) -> None:
    one, other = tmp_path / "one" / f"f.{kind}", tmp_path / "other" / f"f.{kind}"
    for out in (one, other):
        out.parent.mkdir()
    embedded(encoder, Path("data"), one)
    begun = []
    for patience in (2, 3):
        calls = iter([False] * patience + [True] * 99)
        with pytest.raises(EmbeddingStopped):
            embedding(encoder, Path("data"), other).write(
                workers=0,
                stop=lambda calls=calls: next(calls),
                report=lambda seen, before: begun.append(before),  # type: ignore[misc]
            )
        assert not other.exists()
    embedded(encoder, Path("data"), other)
    assert sorted(set(begun)) == [0, 8]
    assert {path.name: path.read_bytes() for path in one.parent.iterdir()} == {
        path.name: path.read_bytes() for path in other.parent.iterdir()
    }


def test_only_a_part_is_ever_held(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are written while images come in, and maps make smaller ones."""
    kept: list[int] = []
    add = embed.PartFolder.add

    def noted(self: embed.PartFolder, number: int, part: embed.Part) -> None:
        kept.append(len(part.index_N))
        add(self, number, part)

    monkeypatch.setattr(embed.PartFolder, "add", noted)
    embedded(encoder, Path("data"), tmp_path / "f.npy")
    assert kept == [7, 8, 8, 6]
    kept.clear()
    dense = embedding(encoder, Path("data"), tmp_path / "d.npy", output="dense")
    monkeypatch.setattr(embed, "PART_BYTES", int(np.prod(dense.extractor.shape)) * 4 * 4)
    embedded(encoder, Path("data"), tmp_path / "dense.npy", output="dense")
    assert max(kept) == 4


def test_parts_without_any_readable_image(encoder: Path, tmp_path: Path) -> None:
    data = draw_images(tmp_path / "data", 24, classes=("",))
    for number in range(8, 16):
        (data / f"{number:03d}.png").write_bytes(b"")
    config = EmbedConfig(batch_size=4, part_size=8, max_bad_share=0.5)
    for kind in ("parquet", "npy"):
        out = tmp_path / f"f.{kind}"
        header = embedded(encoder, data, out, config)
        assert (header.images, header.bad_files, header.classes) == (16, 8, None)
        rows = open_features(out).rows(range(16))
        assert [row.index for row in rows] == [*range(8), *range(16, 24)]
        assert {row.label for row in rows} == {None}
        listed = (tmp_path / f"f.{kind}.bad_files.txt").read_text().splitlines()
        assert listed == [f"{data}/{number:03d}.png\tthe file is empty" for number in range(8, 16)]


def test_too_many_bad_files(encoder: Path, tmp_path: Path) -> None:
    data = draw_images(tmp_path / "data", 40, classes=("",))
    spoil_share(sorted(data.glob("*.png")), 0.5)
    with pytest.raises(TooManyBadFiles, match=r"^\d+ of the \d+ files read so far cannot be used \(at most 10% may be"):
        embedded(encoder, data, tmp_path / "f.npy", EmbedConfig(batch_size=20, part_size=40))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    for file in data.glob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"^no readable image in .*, for example .*png: the file is empty$"):
        embedded(encoder, data, tmp_path / "f.npy", EmbedConfig(max_bad_share=1.0))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_another_image_size(encoder: Path, tmp_path: Path) -> None:
    trained = open_encoder(str(encoder)).encoder
    height, width = trained.image_size
    header = embedded(encoder, Path("data"), tmp_path / "f.npy", output="dense", image_size=(2 * height, width))
    assert header.shape == (trained.width, 2 * trained.grid[0], trained.grid[1])
    usual = embedded(encoder, Path("data"), tmp_path / "g.npy", output="dense")
    assert header.plan.recipe.checksum == usual.plan.recipe.checksum  # it is still the same encoder


@pytest.mark.parametrize("network", ["resnet18", "convmae", "igpt"])
def test_encoders_of_every_kind(tmp_path: Path, network: str) -> None:
    file = write_encoder(tmp_path / "encoder.safetensors", network)
    trained = open_encoder(str(file)).to(torch.device("cpu"))
    height, width = trained.encoder.image_size
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (4, height, width, trained.encoder.config.channels), dtype=np.uint8)
    source = ArraySource("pixels", pixels)
    for output in ("mean", "dense"):
        out = tmp_path / f"{output}.npy"
        embedded(file, source, out, output=output)
        found = features(open_features(out))
        if output == "dense":
            assert found.shape == (4, trained.encoder.width, *trained.encoder.grid)
            found = found.mean(axis=(2, 3))
        expected = trained.features(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_what_an_encoder_does_not_have(encoder: Path, tmp_path: Path) -> None:
    maps = write_encoder(tmp_path / "maps.safetensors", "resnet18")
    out = tmp_path / "f.npy"
    for file, recipe, said in (
        (encoder, {"block": 9}, r"^block 9 is not there: the encoder's blocks are 0 to \d$"),
        (encoder, {"image_size": (17, 16)}, r"^image height 17 is not divisible by the patch size"),
        (maps, {"block": 0}, r"^'resnet18' is no ViT, of which a block could be chosen; leave it out$"),
        (maps, {"output": "class"}, r"^this encoder has no class token; pool by mean$"),
    ):
        with pytest.raises(ValueError, match=said):
            embedded(file, Path("data"), out, **recipe)
    assert [path.name for path in tmp_path.iterdir()] == ["maps.safetensors"]


def test_numbers_that_fp16_does_not_hold(encoder: Path, tmp_path: Path) -> None:
    work = embedding(encoder, Path("data"), tmp_path / "f.npy", EmbedConfig(precision="fp16"))
    last = work.extractor.encoder.encoder.vit.norm  # type: ignore[attr-defined]
    last.weight.data.fill_(1e6)
    with pytest.raises(ValueError, match=r"^some features are beyond 65504, the largest number of fp16: use"):
        work.write(workers=0, report=lambda seen, before: None)
    last.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"have features with NaN or infinite values"):
        work.write(workers=0, report=lambda seen, before: None)
    assert not (tmp_path / "f.npy").exists()


def test_a_file_of_another_plan_is_never_overwritten(encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.parquet"
    embedded(encoder, Path("data"), out)
    before = out.read_bytes()
    assert embedding(encoder, Path("data"), out).finished() == open_features(out).header
    other = draw_images(tmp_path / "other", 4)
    for data, recipe, said in (
        (Path("data"), {"output": "class"}, "output mean, not class"),
        (other, {}, "data data, not .*other"),
        (Path("data"), {"image_size": (32, 64)}, r"image size \(.*\), not \(32, 64\)"),
    ):
        with pytest.raises(ValueError, match=rf"exists and holds other features \({said}\); choose another --out$"):
            embedding(encoder, data, out, **recipe).finished()
    out.write_bytes(b"thesis")
    with pytest.raises(ValueError, match="is not a readable parquet file"):
        embedding(encoder, Path("data"), out).finished()
    assert out.read_bytes() == b"thesis" != before


def test_parts_of_another_plan_are_not_mixed(encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.npy"
    calls = iter([False, False, True])
    with pytest.raises(EmbeddingStopped):
        embedding(encoder, Path("data"), out).write(
            workers=0, stop=lambda: next(calls), report=lambda seen, before: None
        )
    with pytest.raises(ValueError, match=r"was begun otherwise \(batch size 4, not 2\); give what you gave then"):
        embedded(encoder, Path("data"), out, EmbedConfig(batch_size=2, part_size=8))
    (part,) = (tmp_path / ".f.npy.parts").glob("000000*")
    part.write_bytes(part.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"000000.safetensors is damaged; remove it, and the same command goes on$"):
        embedded(encoder, Path("data"), out, SMALL)
    part.unlink()
    assert embedded(encoder, Path("data"), out, SMALL).images == 29


def test_one_writer_at_a_time(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """POSIX locks belong to a process, so the other one is only told of here."""
    first = embedding(encoder, Path("data"), tmp_path / "f.npy")
    seen: list[bool] = []
    first.write(
        workers=0, report=lambda done, before: seen.append((tmp_path / ".f.npy.parts" / ".owner.json").exists())
    )
    assert all(seen)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "f.npy",
        "f.npy.bad_files.txt",
        "f.npy.csv",
        "f.npy.json",
    ]
