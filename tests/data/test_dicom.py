"""DICOM files give what their pixels measure."""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from dicom_files import dicom
from unmask.data.decode import DecodeError, open_image, read_size
from unmask.data.stored import StoredPixels

HOUNSFIELD = {"RescaleSlope": 1, "RescaleIntercept": -1024}


def scan(kind: str = "uint16") -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 2000, (12, 10)).astype(kind)


def stored(data: bytes) -> NDArray[Any]:
    content = open_image(data).content
    assert isinstance(content, StoredPixels)
    return content.values_HWC


@pytest.mark.parametrize("packed", [False, True])
def test_grey_is_in_the_units_of_its_slope_and_intercept(packed: bool) -> None:
    data = dicom(scan(), packed=packed, **HOUNSFIELD)
    assert np.array_equal(stored(data)[:, :, 0], scan().astype(int) - 1024)
    assert open_image(data).dtype == "int16"
    assert read_size(data) == (12, 10)
    half = stored(dicom(scan(), packed=packed, RescaleSlope=0.5, RescaleIntercept=0))
    assert np.array_equal(half[:, :, 0], scan() / 2)


def test_without_slope_stored_values_stay() -> None:
    assert np.array_equal(stored(dicom(scan()))[:, :, 0], scan())
    assert np.array_equal(stored(dicom(scan("int16") - 500))[:, :, 0], scan("int16") - 500)


@pytest.mark.parametrize("slope", [{}, HOUNSFIELD])
def test_small_values_that_are_bright_are_turned_round(slope: dict[str, Any]) -> None:
    usual, turned = stored(dicom(scan(), **slope)), stored(dicom(scan(), "MONOCHROME1", **slope))
    total = usual.astype(int) + turned
    assert (total == total[0, 0]).all()
    if not slope:
        assert turned.max() <= 4095


def test_colours() -> None:
    array = np.random.default_rng(0).integers(0, 256, (12, 10, 3)).astype(np.uint8)
    opened = open_image(dicom(array, "RGB"))
    assert (opened.channels, opened.dtype) == (3, "uint8")
    assert np.array_equal(opened.decode(min_size=None, channels=3).pixels_HWC, array)


def test_several_frames_and_none_are_refused() -> None:
    frames = dicom(np.concatenate([scan(), scan()]), NumberOfFrames=2, Rows=12)
    with pytest.raises(DecodeError, match="it holds 2 frames: save each as an image of its own"):
        open_image(frames)
    dataset = pydicom.dcmread(io.BytesIO(dicom(scan())))
    del dataset.PixelData
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    with pytest.raises(DecodeError, match="it is a DICOM file without an image"):
        open_image(buffer.getvalue())


def test_huge_ones_are_refused_by_their_header() -> None:
    with pytest.raises(DecodeError, match="more than the"):
        open_image(dicom(scan(), Rows=60_000, Columns=60_000))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dicom(scan())
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(DecodeError, match=r"DICOM files need the library pydicom, which is missing: pip install 'unm"):
        open_image(data)
