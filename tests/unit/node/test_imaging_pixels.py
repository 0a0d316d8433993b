"""What pixels mean, and how records are rendered from stored files."""

from __future__ import annotations

import hashlib
import io
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, convert_color_space

from rapha.node.sources.imaging import decode
from rapha.node.sources.imaging.image import Image
from rapha.node.sources.imaging.order import Args, Expect, Kind, RenderOrder, Setup, What, encode
from rapha.node.sources.imaging.pixels import values
from rapha.node.sources.interface import Quarantine
from rapha.node.sources.workers.interface import Unusable, Work
from rapha.spec.transforms import Form, Step

Array = NDArray[Any]
AXIAL = [1, 0, 0, 0, 1, 0]


def dicom(pixels: Array, **more: Any) -> bytes:
    """An explicit little-endian file of `pixels`, a frame unless `more` says otherwise."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID, data.PatientID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3", "P1"
    data.Modality, data.PhotometricInterpretation, data.SamplesPerPixel = "OT", "MONOCHROME2", 1
    data.Rows, data.Columns = pixels.shape[:2]
    data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    if pixels.dtype.kind != "f":
        data.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
        data["PixelData"].VR = "OW"
    for keyword, value in more.items():
        setattr(data, keyword, value)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def item(**elements: Any) -> Dataset:
    found = Dataset()
    for keyword, value in elements.items():
        setattr(found, keyword, value)
    return found


def read(name: str) -> bytes:
    return Path(str(get_testdata_file(name))).read_bytes()


def grey(file: bytes, dtype: str = "float64", frame: int = 0) -> Array:
    return values(Image(file), frame, dtype, 1)


def work(kind: Kind, *renders: tuple[What, Form, tuple[dict[str, Any], ...]]) -> tuple[Work, memoryview]:
    orders = [
        RenderOrder(f"f{i}", what, form, tuple(Step.parse(step) for step in steps))
        for i, (what, form, steps) in enumerate(renders)
    ]
    setup = Setup(kind, tuple(orders))
    return decode.make(encode(setup)), memoryview(bytearray(setup.output_bytes))


def render(
    kind: Kind,
    form: Form,
    *files: bytes,
    steps: tuple[dict[str, Any], ...] = (),
    what: What = "pixels",
    frame: int = 0,
    who: tuple[str, str] | None = None,
) -> Array:
    done, out = work(kind, (what, form, steps))
    expect = [Expect(*(who or (Image(file).sop_uid, Image(file).patient_id))) for file in files]
    digest = done(encode(Args(frame, tuple(expect))), [io.BytesIO(file) for file in files], out)
    assert digest == hashlib.sha256(b"".join(files)).digest()
    after = RenderOrder("f", what, form, tuple(Step.parse(step) for step in steps)).after
    return np.frombuffer(out, after.dtype).reshape(after.shape)


def refused(kind: Kind, form: Form, *files: bytes, **more: Any) -> Quarantine:
    with pytest.raises(Unusable) as caught:
        render(kind, form, *files, **more)
    return caught.value.quarantine


class TestStoredValues:
    IMAGE = np.array([[0, 1, 2047], [2048, 4095, 100]], np.uint16)

    def test_overlay_bits_above_high_bit_are_no_part_of_a_value(self) -> None:
        file = dicom(self.IMAGE | 0xF000, BitsStored=12, HighBit=11)
        assert (grey(file) == self.IMAGE).all()

    def test_the_sign_is_extended(self) -> None:
        file = dicom(self.IMAGE | 0x5000, BitsStored=12, HighBit=11, PixelRepresentation=1)
        assert grey(file).tolist() == [[0, 1, 2047], [-2048, -1, 100]]

    @pytest.mark.parametrize("signed", [0, 1])
    def test_bits_that_start_higher(self, signed: int) -> None:
        file = dicom(self.IMAGE << 4 | 7, BitsStored=12, HighBit=15, PixelRepresentation=signed)
        expected = [[0, 1, 2047], [-2048, -1, 100]] if signed else self.IMAGE.tolist()
        assert grey(file).tolist() == expected

    @pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32"])
    def test_every_width(self, dtype: str) -> None:
        limits = np.iinfo(dtype)
        image = np.array([[limits.min, limits.max, 1]], dtype)
        assert (grey(dicom(image)) == image).all()

    @pytest.mark.parametrize("dtype", ["f4", "f8"])
    def test_float_pixels(self, dtype: str) -> None:
        image = np.array([[-1.5, 1e10], [0, 3.25]], dtype)
        keyword = {"f4": "FloatPixelData", "f8": "DoubleFloatPixelData"}[dtype]
        assert (grey(dicom(image, **{keyword: image.tobytes()})) == image).all()
        image[0, 0] = np.nan
        file = dicom(image, **{keyword: image.tobytes()})
        assert refused("frame", Form("float32", (2, 2)), file) is Quarantine.VALUE_NOT_FINITE

    def test_one_bit_a_pixel(self) -> None:
        expected = pydicom.dcmread(str(get_testdata_file("liver.dcm"))).pixel_array
        for frame in range(3):
            assert (grey(read("liver.dcm"), "uint8", frame) == expected[frame]).all()

    def test_frames_of_single_bits_share_bytes(self) -> None:
        bits = np.random.default_rng(3).integers(0, 2, (5, 3, 3)).astype(np.uint8)
        packed = np.packbits(bits.ravel(), bitorder="little")
        file = dicom(
            bits[0], BitsAllocated=1, BitsStored=1, HighBit=0, NumberOfFrames=5, PixelData=packed.tobytes()
        )
        for frame in range(5):
            assert (grey(file, "uint8", frame) == bits[frame]).all()

    @pytest.mark.parametrize(
        "name",
        [
            "CT_small.dcm",
            "MR_small.dcm",
            "emri_small.dcm",
            "MR-SIEMENS-DICOM-WithOverlays.dcm",
            "rtdose.dcm",
            "gdcm-US-ALOKA-16.dcm",
            "RG3_UNCR.dcm",
            "examples_overlay.dcm",
            "693_UNCI.dcm",
        ],
    )
    def test_as_pydicom_reads_it(self, name: str) -> None:
        image = Image(read(name))
        expected = pydicom.dcmread(str(get_testdata_file(name))).pixel_array.reshape(
            image.frames, *_shape(image)
        )
        for frame in range(min(image.frames, 3)):
            assert (image.stored(frame).samples == expected[frame]).all()


def _shape(image: Image) -> tuple[int, int, int]:
    return image.layout.rows, image.layout.columns, image.layout.samples


class TestMeaning:
    IMAGE = np.array([[0, 100], [1000, 4095]], np.uint16)

    def test_ct_comes_in_hu(self) -> None:
        data = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
        expected = apply_modality_lut(data.pixel_array, data)
        assert (grey(read("CT_small.dcm")) == expected).all()
        assert (grey(read("CT_small.dcm"), "int16") == expected).all()

    def test_a_fractional_slope(self) -> None:
        found = grey(dicom(self.IMAGE, RescaleSlope="0.5", RescaleIntercept="-10.25"))
        assert (found == self.IMAGE * 0.5 - 10.25).all()

    def test_integers_are_rounded_and_saturate(self) -> None:
        file = dicom(self.IMAGE, RescaleSlope="0.5", RescaleIntercept="-1024")
        assert grey(file, "int8").tolist() == [[-128, -128], [-128, 127]]
        unsigned = dicom(self.IMAGE, RescaleSlope="1", RescaleIntercept="-1024")
        assert grey(unsigned, "uint16").tolist() == [[0, 0], [0, 3071]]
        assert grey(dicom(np.array([[65535]], np.uint16), RescaleIntercept="-1024"), "int16").tolist() == [
            [32767]
        ]

    @pytest.mark.parametrize("intercept", ["1e299", "nan", "x", "1\\2", "1_0", "0x10", "inf"])
    def test_a_hostile_rescale(self, intercept: str) -> None:
        with pydicom.config.disable_value_validation():
            data = Dataset()
            data.add_new(0x00281052, "LT", intercept)
        file = dicom(self.IMAGE, RescaleSlope="1", RescaleIntercept="0")
        old = b"\x28\x00\x52\x10DS\x02\x000 "
        text = intercept.encode().ljust(len(intercept) + len(intercept) % 2)
        hostile = file.replace(old, old[:6] + len(text).to_bytes(2, "little") + text)
        assert hostile != file
        found = {Quarantine.FILE_INVALID, Quarantine.PIXELS_INVALID}
        if intercept == "1e299":
            assert render("frame", Form("float32", (2, 2)), hostile).max() <= np.finfo(np.float32).max
        else:
            assert refused("frame", Form("float32", (2, 2)), hostile) in found

    def test_each_frame_has_its_own_rescale(self) -> None:
        groups = [
            item(PixelValueTransformationSequence=[item(RescaleSlope=slope, RescaleIntercept=-1)])
            for slope in (1, 2, 4)
        ]
        stack = np.stack([self.IMAGE] * 3)
        file = dicom(
            self.IMAGE,
            NumberOfFrames=3,
            PixelData=stack.tobytes(),
            RescaleSlope=1000,
            RescaleIntercept=0,
            PerFrameFunctionalGroupsSequence=groups,
        )
        for frame, slope in enumerate((1, 2, 4)):
            assert (grey(file, frame=frame) == self.IMAGE * slope - 1.0).all()

    def test_shared_groups(self) -> None:
        data = pydicom.dcmread(str(get_testdata_file("eCT_Supplemental.dcm")))
        assert (grey(read("eCT_Supplemental.dcm"), frame=1) == data.pixel_array[1] - 1024.0).all()

    def test_a_modality_lut(self) -> None:
        data = pydicom.dcmread(str(get_testdata_file("mlut_18.dcm")))
        assert (grey(read("mlut_18.dcm")) == apply_modality_lut(data.pixel_array, data)).all()

    def test_a_modality_lut_holds_its_ends(self) -> None:
        table = item(LUTDescriptor=[3, 99, 16], LUTData=np.array([7, 8, 9], "<u2").tobytes())
        table.ModalityLUTType = "US"
        table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW"
        assert grey(dicom(self.IMAGE, ModalityLUTSequence=[table])).tolist() == [[7, 8], [9, 9]]

    @pytest.mark.parametrize(
        ("photometric", "expected"), [("MONOCHROME1", [4088, 4086]), ("MONOCHROME2", [7, 9])]
    )
    def test_what_a_modality_lut_makes_is_turned_over(self, photometric: str, expected: list[int]) -> None:
        table = item(LUTDescriptor=[2, 100, 12], LUTData=np.array([7, 9], "<u2").tobytes())
        table.ModalityLUTType = "US"
        table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW"
        image = np.array([[100, 101]], np.uint16)
        file = dicom(image, PhotometricInterpretation=photometric, ModalityLUTSequence=[table])
        assert grey(file).tolist() == [expected]

    def test_a_frame_without_the_groups_that_others_have(self) -> None:
        rescale = item(RescaleSlope=2, RescaleIntercept=-1024, RescaleType="HU")
        groups = [item(PixelValueTransformationSequence=[rescale])]
        stack = np.stack([self.IMAGE] * 2)
        file = dicom(
            self.IMAGE, NumberOfFrames=2, PixelData=stack.tobytes(), PerFrameFunctionalGroupsSequence=groups
        )
        assert (grey(file) == 2.0 * self.IMAGE - 1024).all()
        with pytest.raises(Unusable) as caught:
            grey(file, frame=1)
        assert caught.value.quarantine is Quarantine.FILE_INVALID

    @pytest.mark.parametrize(
        ("modality", "turned"), [("CR", True), ("DX", True), ("MG", True), ("CT", False), ("PT", False)]
    )
    def test_monochrome1_is_turned_over_unless_it_is_a_quantity(self, modality: str, turned: bool) -> None:
        more: dict[str, Any] = {"BitsStored": 12, "HighBit": 11, "RescaleSlope": 1, "RescaleIntercept": 0}
        file = dicom(self.IMAGE, Modality=modality, PhotometricInterpretation="MONOCHROME1", **more)
        assert (grey(file) == (4095 - self.IMAGE if turned else self.IMAGE)).all()

    @pytest.mark.parametrize("modality", ["CT", "PT"])
    @pytest.mark.parametrize("given", [{"RescaleSlope": 1}, {"RescaleIntercept": -1024}])
    def test_a_quantity_with_half_a_rescale_has_no_unit(self, modality: str, given: dict[str, int]) -> None:
        with pytest.raises(Unusable) as caught:
            grey(dicom(self.IMAGE, Modality=modality, **given))
        assert caught.value.quarantine is Quarantine.VALUE_MISSING

    @pytest.mark.parametrize("modality", ["CT", "PT", "MR"])
    def test_without_a_rescale_stored_values_are_the_values(self, modality: str) -> None:
        assert (grey(dicom(self.IMAGE, Modality=modality)) == self.IMAGE).all()

    def test_monochrome1_with_a_sign(self) -> None:
        image = np.array([[-128, 127, 0]], np.int8)
        assert grey(dicom(image, PhotometricInterpretation="MONOCHROME1")).tolist() == [[127, -128, -1]]


class TestColour:
    IMAGE = np.random.default_rng(5).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    RGB: dict[str, Any] = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}  # noqa: RUF012

    def test_rgb_by_pixel_and_by_plane(self) -> None:
        planes = self.IMAGE.transpose(2, 0, 1)
        by_plane = dicom(self.IMAGE, **{**self.RGB, "PlanarConfiguration": 1, "PixelData": planes.tobytes()})
        for file in (dicom(self.IMAGE, **self.RGB), by_plane):
            assert (values(Image(file), 0, "uint8", 3) == self.IMAGE).all()

    @pytest.mark.parametrize(
        "wrong", [{"PlanarConfiguration": 2}, {"PixelRepresentation": 2}, {"BitsStored": 7, "HighBit": 6}]
    )
    def test_a_description_that_can_only_be_guessed_at(self, wrong: dict[str, int]) -> None:
        file = dicom(self.IMAGE, **{**self.RGB, **wrong})
        assert refused("frame", Form("uint8", (4, 6, 3)), file) is Quarantine.PIXELS_INVALID

    def test_full_resolution_under_the_name_of_half(self) -> None:
        file = dicom(self.IMAGE, **{**self.RGB, "PhotometricInterpretation": "YBR_FULL_422"})
        assert refused("frame", Form("uint8", (4, 6, 3)), file) is Quarantine.PIXELS_INVALID

    def test_more_than_8_bits_keep_the_most_significant(self) -> None:
        deep = (self.IMAGE.astype(np.uint16) << 4) | 9
        file = dicom(deep, **self.RGB, BitsStored=12, HighBit=11)
        assert (values(Image(file), 0, "uint8", 3) == self.IMAGE).all()

    def test_ybr_as_pydicom_converts_it(self) -> None:
        file = dicom(self.IMAGE, **{**self.RGB, "PhotometricInterpretation": "YBR_FULL"})
        expected = convert_color_space(self.IMAGE, "YBR_FULL", "RGB").astype(int)
        assert np.abs(values(Image(file), 0, "int16", 3) - expected).max() <= 1

    @pytest.mark.parametrize(
        "name",
        [
            "SC_ybr_full_422_uncompressed.dcm",
            "SC_ybr_full_uncompressed.dcm",
            "examples_ybr_color.dcm",
            "SC_rgb_dcmtk_+eb+cy+n2.dcm",
            "SC_rgb_jpeg_dcmtk.dcm",
        ],
    )
    def test_ybr_samples(self, name: str) -> None:
        data = pydicom.dcmread(str(get_testdata_file(name)))
        data.pixel_array_options(
            decoding_plugin="pillow" if "jpeg" in name or "ybr_color" in name or "dcmtk" in name else ""
        )
        expected = data.pixel_array.reshape(-1, data.Rows, data.Columns, 3)[0].astype(int)
        assert np.abs(values(Image(read(name)), 0, "int16", 3) - expected).max() <= 1

    @pytest.mark.parametrize("name", ["OBXXXX1A.dcm", "color-pl.dcm", "examples_palette.dcm"])
    def test_palettes_as_pydicom_applies_them(self, name: str) -> None:
        data = pydicom.dcmread(str(get_testdata_file(name)))
        if data.PhotometricInterpretation != "PALETTE COLOR":
            assert (
                values(Image(read(name)), 0, "uint8", 3)
                == data.pixel_array.reshape(-1, data.Rows, data.Columns, 3)[0]
            ).all()
            return
        expected = apply_color_lut(data.pixel_array, data)
        bits = data.RedPaletteColorLookupTableDescriptor[2]
        assert (values(Image(read(name)), 0, "uint8", 3) == expected >> (bits - 8)).all()

    @pytest.mark.parametrize("entries", [255, 256])
    def test_a_palette_of_bytes(self, entries: int) -> None:
        more: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
        for colour, step in (("Red", 1), ("Green", 3), ("Blue", 5)):
            table = (np.arange(entries) * step).astype(np.uint8)
            more[f"{colour}PaletteColorLookupTableDescriptor"] = [entries, 0, 8]
            more[f"{colour}PaletteColorLookupTableData"] = table.tobytes() + bytes(entries % 2)
        image = np.arange(16, dtype=np.uint8).reshape(4, 4)
        found = values(Image(dicom(image, **more)), 0, "uint8", 3)
        assert (found == image[..., np.newaxis] * np.array([1, 3, 5], np.uint8)).all()

    def test_luminance_and_grey_in_three(self) -> None:
        found = values(Image(dicom(self.IMAGE, **self.RGB)), 0, "float64", 1)
        assert np.allclose(found, self.IMAGE @ [0.299, 0.587, 0.114])
        file = dicom(np.array([[5, 6]], np.uint16), RescaleIntercept="1")
        assert values(Image(file), 0, "int16", 3).tolist() == [[[6] * 3, [7] * 3]]

    @pytest.mark.parametrize(
        "photometric", ["HSV", "CMYK", "ARGB", "YBR_PARTIAL_420", "YBR_PARTIAL_422", "YBR_RCT", "", "RGB "]
    )
    def test_what_is_not_read(self, photometric: str) -> None:
        more = {**self.RGB, "PhotometricInterpretation": photometric}
        if photometric.strip() == "RGB":
            assert (values(Image(dicom(self.IMAGE, **more)), 0, "uint8", 3) == self.IMAGE).all()
        else:
            found = refused(
                "frame", Form("uint8", (0, 0, 3)), dicom(self.IMAGE, **more), steps=({"resize": [4, 4, 3]},)
            )
            assert found is Quarantine.PHOTOMETRIC_UNSUPPORTED

    @pytest.mark.parametrize(
        "wrong",
        [
            {"RedPaletteColorLookupTableData": b"\0" * 10},
            {"GreenPaletteColorLookupTableData": b""},
            {"BluePaletteColorLookupTableDescriptor": [256, 0, 12]},
            {"RedPaletteColorLookupTableDescriptor": [0, 0, 16]},
            {"RedPaletteColorLookupTableDescriptor": [256, 0, 0]},
            {"RedPaletteColorLookupTableDescriptor": [256, 0, 65535]},
            {"RedPaletteColorLookupTableDescriptor": [256, 0]},
            {"RedPaletteColorLookupTableDescriptor": [255, 1, 16]},
        ],
    )
    def test_palettes_of_a_wrong_length(self, wrong: dict[str, Any]) -> None:
        more: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
        for colour in ("Red", "Green", "Blue"):
            more[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
            more[f"{colour}PaletteColorLookupTableData"] = np.arange(256, dtype="<u2").tobytes()
        image = np.arange(16, dtype=np.uint8).reshape(4, 4)
        assert render("frame", Form("uint8", (4, 4, 3)), dicom(image, **more)).max() == 0
        found = refused("frame", Form("uint8", (4, 4, 3)), dicom(image, **{**more, **wrong}))
        assert found in (Quarantine.PIXELS_INVALID, Quarantine.PHOTOMETRIC_UNSUPPORTED)


class TestFrames:
    IMAGE = np.arange(24, dtype=np.int16).reshape(4, 6)

    @pytest.mark.parametrize("shape", [(4, 6), (0, 0), (4, 0), (1, 4, 6), (4, 6, 1), (3, 4, 6), (4, 6, 3)])
    def test_the_field_says_where_channels_go(self, shape: tuple[int, ...]) -> None:
        sizes = [(4, 6)[i] if n == 0 else n for i, n in enumerate(shape)]
        found = render("frame", Form("int16", shape), dicom(self.IMAGE), steps=({"resize": sizes},))
        assert (
            np.squeeze(np.moveaxis(found, 0, -1) if shape[0] in (1, 3) else found)
            == np.squeeze(np.repeat(self.IMAGE[..., None], 3, 2) if 3 in shape else self.IMAGE)
        ).all()

    @pytest.mark.parametrize("shape", [(4, 5), (6, 4), (3, 4, 5), (1, 1, 6)])
    def test_another_shape_than_promised(self, shape: tuple[int, ...]) -> None:
        assert refused("frame", Form("int16", shape), dicom(self.IMAGE)) is Quarantine.SHAPE

    @pytest.mark.parametrize("shape", [(), (24,), (2, 4, 6), (1, 1, 4, 6), (4, 4, 6)])
    def test_a_shape_that_no_image_has_is_an_error_of_the_task(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="no image"):
            work("frame", ("pixels", Form("int16", shape), ()))

    def test_renders_follow_one_another(self) -> None:
        window = ({"window": {"center": 12, "width": 24}}, {"resize": [2, 3]}, {"dtype": "float16"})
        done, out = work(
            "frame", ("pixels", Form("int16", (4, 6)), ()), ("pixels", Form("int16", (0, 0)), window)
        )
        done(encode(Args(0, (Expect("1.2.3", "P1"),))), [io.BytesIO(dicom(self.IMAGE))], out)
        assert (np.frombuffer(out[:48], np.int16).reshape(4, 6) == self.IMAGE).all()
        small = np.frombuffer(out[48:], np.float16).reshape(2, 3)
        assert np.allclose(small, (self.IMAGE / 24).reshape(2, 2, 3, 2).mean(axis=(1, 3)), atol=1e-3)

    @pytest.mark.parametrize("who", [("1.2.4", "P1"), ("1.2.3", "P2"), ("1.2.3", ""), ("", "P1")])
    def test_another_image_or_patient_than_indexed(self, who: tuple[str, str]) -> None:
        assert refused("frame", Form("int16", (4, 6)), dicom(self.IMAGE), who=who) is Quarantine.CHANGED

    @pytest.mark.parametrize(
        ("charset", "patient"),
        [
            ("ISO_IR 100", "Zoë^1"),
            ("ISO_IR 192", "患者1"),
            ("ISO_IR 144", "Люкceмбypг"),
            ("GB18030", "王^小东"),
        ],
    )
    def test_an_identifier_in_another_script(self, charset: str, patient: str) -> None:
        file = dicom(self.IMAGE, SpecificCharacterSet=charset, PatientID=patient)
        assert render("frame", Form("int16", (4, 6)), file, who=("1.2.3", patient)).shape == (4, 6)

    def test_an_identifier_that_its_character_set_does_not_explain(self) -> None:
        file = dicom(self.IMAGE, SpecificCharacterSet="ISO_IR 192", PatientID="??")
        broken = file.replace(b"??", b"\xff\xfe")
        assert refused("frame", Form("int16", (4, 6)), broken, who=("1.2.3", "??")) is Quarantine.CHANGED

    def test_a_frame_that_is_not_there(self) -> None:
        assert refused("frame", Form("int16", (4, 6)), dicom(self.IMAGE), frame=1) is Quarantine.CHANGED
        assert refused("frame", Form("int16", (4, 6)), dicom(self.IMAGE), frame=-1) is Quarantine.CHANGED

    def test_a_multi_frame_file_is_read_once(self, tmp_path: Path) -> None:
        stack = np.stack([self.IMAGE + n for n in range(5)])
        path = tmp_path / "image"
        path.write_bytes(dicom(self.IMAGE, NumberOfFrames=5, PixelData=stack.tobytes()))
        done, out = work("frame", ("pixels", Form("int16", (4, 6)), ()))
        for frame in range(5):
            with path.open("rb", buffering=0) as file:
                done(encode(Args(frame, (Expect("1.2.3", "P1"),))), [file], out)
                assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == (path.stat().st_size if frame == 0 else 0)
            assert (np.frombuffer(out, np.int16).reshape(4, 6) == stack[frame]).all()

    def test_a_file_is_let_go_before_the_next_is_read(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        opened: list[weakref.ref[Image]] = []

        def open_(file: bytes) -> Image:
            assert [image() for image in opened] == [None] * len(opened)
            image = Image(file)
            opened.append(weakref.ref(image))
            return image

        monkeypatch.setattr(decode, "Image", open_)
        done, out = work("frame", ("pixels", Form("int16", self.IMAGE.shape), ()))
        stack = np.stack([self.IMAGE] * 2)
        for number in range(3):
            path = tmp_path / f"{number}.dcm"
            path.write_bytes(dicom(self.IMAGE, NumberOfFrames=2, PixelData=stack.tobytes()))
            with path.open("rb") as file:
                done(encode(Args(1, (Expect("1.2.3", "P1"),))), [file], out)
        assert len(opened) == 3

    def test_a_file_that_was_rewritten_is_read_again(self, tmp_path: Path) -> None:
        path = tmp_path / "image"
        done, out = work("frame", ("pixels", Form("int16", (4, 6)), ()))
        for shift in (0, 100):
            stack = np.stack([self.IMAGE + shift] * 2)
            path.unlink(missing_ok=True)
            path.write_bytes(dicom(self.IMAGE, NumberOfFrames=2, PixelData=stack.tobytes()))
            with path.open("rb") as file:
                digest = done(encode(Args(1, (Expect("1.2.3", "P1"),))), [file], out)
            assert digest == hashlib.sha256(path.read_bytes()).digest()
            assert (np.frombuffer(out, np.int16).reshape(4, 6) == stack[1]).all()

    def test_an_item_that_does_not_fit_is_an_error_of_the_task(self) -> None:
        done, out = work("frame", ("pixels", Form("int16", (4, 6)), ()))
        args = encode(Args(0, (Expect("1.2.3", "P1"),)))
        for stored, room in (([], out), ([io.BytesIO()] * 2, out), ([io.BytesIO()], out[:-1])):
            with pytest.raises(ValueError, match="fit"):
                done(args, stored, room)

    def test_a_render_that_the_record_does_not_have(self) -> None:
        with pytest.raises(ValueError, match="frame"):
            work("frame", ("ct", Form("int16", (4, 6)), ()))


def slice_at(z: float, n: int, shape: tuple[int, int] = (3, 4), **more: Any) -> bytes:
    image = np.full(shape, n, np.int16)
    given: dict[str, Any] = {
        "SOPInstanceUID": f"1.2.3.{n}",
        "ImagePositionPatient": [0, 0, z],
        "ImageOrientationPatient": AXIAL,
        "PixelSpacing": [1, 1],
        "FrameOfReferenceUID": "1.9",
        **more,
    }
    return dicom(image, **{key: value for key, value in given.items() if value is not None})


class TestSeries:
    FORM = Form("int16", (4, 3, 4))

    @pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
    def test_slices_rise_along_the_normal(self, order: tuple[int, ...]) -> None:
        found = render("series", self.FORM, *(slice_at(2.5 * n, n) for n in order))
        assert found[:, 0, 0].tolist() == [0, 1, 2, 3]

    def test_the_normal_is_that_of_the_stored_axes(self) -> None:
        flipped = [1, 0, 0, 0, -1, 0]
        files = [slice_at(2.5 * n, n, ImageOrientationPatient=flipped) for n in range(4)]
        assert render("series", self.FORM, *files)[:, 0, 0].tolist() == [3, 2, 1, 0]

    def test_coronal(self) -> None:
        files = [
            slice_at(0, n, ImagePositionPatient=[5, -3.0 * n, 7], ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
            for n in range(4)
        ]
        assert render("series", self.FORM, *files)[:, 0, 0].tolist() == [3, 2, 1, 0]

    def test_small_differences_of_spacing_are_rounding(self) -> None:
        files = [slice_at(z, n) for n, z in enumerate((0, 2.51, 4.99, 7.5))]
        assert render("series", self.FORM, *files).shape == (4, 3, 4)

    @pytest.mark.parametrize(
        "files",
        [
            [slice_at(0, 0), slice_at(2, 1), slice_at(4, 2), slice_at(8, 3)],
            [slice_at(0, 0), slice_at(2, 1), slice_at(2, 2), slice_at(4, 3)],
            [slice_at(1, n) for n in range(4)],
            [slice_at(n, n, ImagePositionPatient=[0, 0.3 * n, n]) for n in range(4)],
            [slice_at(n, n, ImageOrientationPatient=AXIAL if n else [0, 1, 0, -1, 0, 0]) for n in range(4)],
            [slice_at(n, n, PixelSpacing=[1, 1 + n]) for n in range(4)],
            [slice_at(n, n, FrameOfReferenceUID=f"1.{n}") for n in range(4)],
            [slice_at(n, n, ImagePositionPatient=None) for n in range(4)],
            [slice_at(n, n, ImagePositionPatient=None, ImageOrientationPatient=None) for n in range(4)],
            [slice_at(n, n, ImageOrientationPatient=[0, 0, 0, 0, 0, 0]) for n in range(4)],
            [slice_at(n, n, ImageOrientationPatient=[1, 0, 0, 1, 0, 0]) for n in range(4)],
            [slice_at(n, n, ImagePositionPatient=[0, 0]) for n in range(4)],
            [slice_at(n * 1e9, n) for n in range(4)],
            [slice_at(n, n, PixelSpacing=[-1, 1]) for n in range(4)],
        ],
        ids=[
            "gap",
            "twice",
            "same place",
            "sheared",
            "turned",
            "spacing",
            "reference",
            "no position",
            "no place",
            "no plane",
            "one direction",
            "two numbers",
            "far away",
            "negative",
        ],
    )
    def test_what_is_no_stack(self, files: list[bytes]) -> None:
        assert refused("series", self.FORM, *files) is Quarantine.GEOMETRY

    def test_slices_of_several_sizes(self) -> None:
        files = [slice_at(n, n, shape=(3, 4) if n else (4, 3)) for n in range(4)]
        assert refused("series", self.FORM, *files) is Quarantine.SHAPE

    def test_one_slice_too_many(self) -> None:
        assert refused("series", self.FORM, *(slice_at(n, n) for n in range(5))) is Quarantine.SHAPE

    def test_resized_on_all_axes(self) -> None:
        form = Form("int16", (0, 0, 0))
        found = render(
            "series",
            form,
            *(slice_at(n, n) for n in range(4)),
            steps=({"resize": [2, 3, 2]}, {"dtype": "float32"}),
        )
        # The mean of 0 and 1, and of 2 and 3, in whole numbers.
        assert found[:, 0, 0].tolist() == [0, 2]

    def test_channels_first(self) -> None:
        found = render("series", Form("float32", (1, 4, 3, 4)), *(slice_at(n, n) for n in range(4)))
        assert found[0, :, 0, 0].tolist() == [0, 1, 2, 3]

    def test_each_slice_by_its_own_slope(self) -> None:
        files = [
            slice_at(n, 1, SOPInstanceUID=f"1.{n}", RescaleSlope=n + 1, RescaleIntercept=0) for n in range(4)
        ]
        assert render("series", self.FORM, *files)[:, 0, 0].tolist() == [1, 2, 3, 4]

    def test_a_cine_loop_keeps_its_order(self) -> None:
        stack = np.stack([np.full((3, 4), n, np.int16) for n in range(4)])
        file = dicom(stack[0], NumberOfFrames=4, PixelData=stack.tobytes())
        assert render("series", self.FORM, file)[:, 0, 0].tolist() == [0, 1, 2, 3]

    @pytest.mark.parametrize(
        ("places", "expected"),
        [((0, 2, 4, 6), [0, 1, 2, 3]), ((6, 2, 4, 0), [3, 1, 2, 0]), ((0, 2, 4, 9), None)],
    )
    def test_an_enhanced_image(self, places: tuple[int, ...], expected: list[int] | None) -> None:
        stack = np.stack([np.full((3, 4), n, np.int16) for n in range(4)])
        shared = item(
            PlaneOrientationSequence=[item(ImageOrientationPatient=AXIAL)],
            PixelMeasuresSequence=[item(PixelSpacing=[1, 1], SliceThickness=2)],
        )
        groups = [item(PlanePositionSequence=[item(ImagePositionPatient=[0, 0, z])]) for z in places]
        file = dicom(
            stack[0],
            NumberOfFrames=4,
            PixelData=stack.tobytes(),
            SharedFunctionalGroupsSequence=[shared],
            PerFrameFunctionalGroupsSequence=groups,
        )
        if expected is None:
            assert refused("series", self.FORM, file) is Quarantine.GEOMETRY
        else:
            assert render("series", self.FORM, file)[:, 0, 0].tolist() == expected

    def test_a_volume_too_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(decode, "MAX_VOLUME_BYTES", 4 * 24 - 1)
        assert refused("series", self.FORM, *(slice_at(n, n) for n in range(4))) is Quarantine.TOO_LARGE

    def test_no_file_is_held_any_more_when_a_volume_is_transformed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened: list[weakref.ref[Image]] = []
        finished = decode._Axes.finished

        def open_(file: bytes) -> Image:
            image = Image(file)
            opened.append(weakref.ref(image))
            return image

        def finish(axes: decode._Axes, value: Array) -> Array:
            assert [image() for image in opened] == [None] * 4
            return finished(axes, value)

        monkeypatch.setattr(decode, "Image", open_)
        monkeypatch.setattr(decode._Axes, "finished", finish)
        assert render("series", self.FORM, *(slice_at(n, n) for n in range(4))).shape == (4, 3, 4)

    def test_one_changed_file_is_enough(self) -> None:
        files = [slice_at(n, n) for n in range(4)]
        assert refused("series", self.FORM, *files, who=("1.2.3.0", "P1")) is Quarantine.CHANGED


class TestPetCt:
    """CT values that are linear in x and y have to be the same function on the PET grid."""

    @staticmethod
    def ct(z: float = 0.0, **more: Any) -> bytes:
        y, x = np.mgrid[:40, :50]
        image = (10 * (x * 1.0 - 20) + 3 * (y * 1.0 - 15)).astype(np.int16)
        given = {
            "SOPInstanceUID": "1.5",
            "Modality": "CT",
            "RescaleSlope": "1",
            "RescaleIntercept": "0",
            "ImagePositionPatient": [-20, -15, z],
            "SliceThickness": 2,
            "ImageOrientationPatient": AXIAL,
            "PixelSpacing": [1, 1],
            "FrameOfReferenceUID": "1.9",
        }
        return dicom(image, **{**given, **more})

    @staticmethod
    def pet(**more: Any) -> bytes:
        given = {
            "SOPInstanceUID": "1.6",
            "Modality": "PT",
            "ImagePositionPatient": [-8, -6, 0.5],
            "SliceThickness": 3,
            "ImageOrientationPatient": AXIAL,
            "PixelSpacing": [2.5, 3.5],
            "FrameOfReferenceUID": "1.9",
            "RescaleSlope": "0.5",
            "RescaleIntercept": "0",
        }
        return dicom(np.arange(30, dtype=np.uint16).reshape(5, 6), **{**given, **more})

    def test_ct_on_the_grid_of_pet(self) -> None:
        found = render("pet-ct", Form("float32", (5, 6)), self.pet(), self.ct(), what="ct")
        rows, columns = np.mgrid[:5, :6]
        expected = 10 * (-8 + 3.5 * columns) + 3 * (-6 + 2.5 * rows)
        assert np.allclose(found, expected, atol=1e-3)

    def test_pet_comes_as_rescaled_activity(self) -> None:
        found = render("pet-ct", Form("float32", (5, 6)), self.pet(), self.ct(), what="pet")
        assert (found == np.arange(30).reshape(5, 6) / 2).all()

    def test_both_in_one_record(self) -> None:
        done, out = work("pet-ct", ("pet", Form("float32", (5, 6)), ()), ("ct", Form("int16", (1, 5, 6)), ()))
        files = (self.pet(), self.ct())
        digest = done(
            encode(Args(0, (Expect("1.6", "P1"), Expect("1.5", "P1")))),
            [io.BytesIO(file) for file in files],
            out,
        )
        assert digest == hashlib.sha256(b"".join(files)).digest()
        assert np.frombuffer(out[:120], np.float32)[29] == 14.5
        assert np.frombuffer(out[120:], np.int16)[0] == 10 * -8 + 3 * -6

    def test_axes_that_are_turned_in_the_plane(self) -> None:
        # Stored by columns: the CT's row index runs along x, its column index along y.
        y, x = np.mgrid[:40, :50]
        image = np.ascontiguousarray((10 * (x - 20) + 3 * (y - 15)).astype(np.int16).T)
        turned = self.ct(
            Rows=50, Columns=40, PixelData=image.tobytes(), ImageOrientationPatient=[0, 1, 0, 1, 0, 0]
        )
        found = render("pet-ct", Form("float32", (5, 6)), self.pet(), turned, what="ct")
        assert np.allclose(found, render("pet-ct", Form("float32", (5, 6)), self.pet(), self.ct(), what="ct"))

    def test_outside_the_ct_there_is_air(self) -> None:
        pet = self.pet(ImagePositionPatient=[-200, -6, 0.5])
        assert (render("pet-ct", Form("int16", (5, 6)), pet, self.ct(), what="ct") == -1024).all()

    @pytest.mark.parametrize(
        ("pet", "ct"),
        [
            ({}, {"FrameOfReferenceUID": "1.8"}),
            ({"FrameOfReferenceUID": ""}, {"FrameOfReferenceUID": ""}),
            ({}, {"ImagePositionPatient": [0, 0, 5]}),
            ({}, {"ImageOrientationPatient": [1, 0, 0, 0, 0, 1]}),
            ({}, {"PixelSpacing": [0, 1]}),
            ({"PixelSpacing": None}, {}),
            ({"ImagePositionPatient": None}, {}),
            ({}, {"ImageOrientationPatient": None}),
            ({"SliceThickness": 0}, {"SliceThickness": 0}),
        ],
    )
    def test_slices_that_are_no_pair(self, pet: dict[str, Any], ct: dict[str, Any]) -> None:
        found = refused("pet-ct", Form("float32", (5, 6)), self.pet(**pet), self.ct(**ct), what="ct")
        assert found is Quarantine.GEOMETRY
