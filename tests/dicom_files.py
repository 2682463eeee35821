"""DICOM files of one image, as a scanner writes them."""

from __future__ import annotations

import io
from typing import Any

from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless


def dicom(array: NDArray[Any], kind: str = "MONOCHROME2", *, packed: bool = False, **more: Any) -> bytes:
    """A file of one image, as a scanner writes it."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, "1.2.3"
    dataset.Rows, dataset.Columns = array.shape[:2]
    dataset.SamplesPerPixel = 1 if array.ndim == 2 else array.shape[2]
    dataset.PhotometricInterpretation = kind
    dataset.BitsAllocated = 8 * array.dtype.itemsize
    dataset.BitsStored = 12 if array.dtype.itemsize == 2 else 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(array.dtype.kind == "i")
    if array.ndim == 3:
        dataset.PlanarConfiguration = 0
    for name, value in more.items():
        setattr(dataset, name, value)
    dataset.PixelData = array.tobytes()
    if packed:
        dataset.compress(RLELossless, generate_instance_uid=False)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
