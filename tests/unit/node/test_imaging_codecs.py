"""Every transfer syntax, against the known uncompressed image or an independent decoder.

Encoders and second opinions: pydicom's own sample pairs, dcmtk's tools, OpenJPEG, CharLS, Pillow, and
OpenJPH's code streams in tests/vectors/htj2k.
"""

from __future__ import annotations

import io
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames

from rapha.node.sources.imaging import codecs, codestream
from rapha.node.sources.imaging.codecs import SYNTAXES, Layout
from rapha.node.sources.imaging.image import Image
from rapha.node.sources.imaging.pixels import values
from rapha.node.sources.interface import Quarantine
from rapha.node.sources.workers.interface import Unusable

Array = NDArray[Any]
VECTORS = Path(__file__).parents[2] / "vectors" / "htj2k"
UID = "1.2.840.10008.1.2"


def picture(samples: int = 1, bits: int = 16) -> Array:
    """As tests/vectors/htj2k/make.py: smooth, with some noise, over most of the range."""
    row, column, sample = np.ogrid[:40, :56, :samples]
    wave = np.sin(row / 7 + sample) * np.cos(column / 11) + 1
    noise = (row * 31 + column * 17 + sample * 5) % 13
    image: Array = (wave * (2 ** (bits - 1) - 20) + noise).astype(np.uint16 if bits > 8 else np.uint8)
    return image[..., 0] if samples == 1 else image


def dicom(syntax: str, pixels: bytes, like: Array, bits: int, **more: Any) -> bytes:
    """A file of one frame that looks like `like`; `pixels` are what Pixel Data holds of it."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID, data.PatientID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3", "P1"
    data.Modality = "OT"
    data.Rows, data.Columns = like.shape[:2]
    data.SamplesPerPixel = 3 if like.ndim == 3 else 1
    data.PhotometricInterpretation = "RGB" if like.ndim == 3 else "MONOCHROME2"
    if like.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = 16 if bits > 8 else 8
    data.BitsStored, data.HighBit, data.PixelRepresentation = bits, bits - 1, 0
    compressed = not syntax.startswith(UID) or syntax[len(UID) :] in (".5",) or ".4." in syntax
    data.PixelData = encapsulate([pixels]) if compressed else pixels
    data["PixelData"].VR = "OB" if compressed or bits <= 8 else "OW"
    data["PixelData"].is_undefined_length = compressed
    for keyword, value in more.items():
        setattr(data, keyword, value)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def stored(file: bytes, frame: int = 0) -> Array:
    samples = Image(file).stored(frame).samples
    return samples[..., 0] if samples.shape[-1] == 1 else samples


def read(name: str) -> bytes:
    return Path(str(get_testdata_file(name))).read_bytes()


def refused(file: bytes, frame: int = 0) -> Quarantine:
    with pytest.raises(Unusable) as caught:
        Image(file).stored(frame)
    return caught.value.quarantine


class TestNative:
    @pytest.mark.parametrize("syntax", [f"{UID}", f"{UID}.1", f"{UID}.1.99", f"{UID}.2"])
    @pytest.mark.parametrize(("samples", "bits"), [(1, 16), (1, 12), (1, 8), (3, 8)])
    def test_every_way_of_not_compressing(self, syntax: str, samples: int, bits: int) -> None:
        image = picture(samples, bits)
        order = ">" if syntax == f"{UID}.2" else "<"
        assert (
            stored(dicom(syntax, image.astype(f"{order}u{image.dtype.itemsize}").tobytes(), image, bits))
            == image
        ).all()

    def test_big_endian_bytes_in_words(self) -> None:
        image = picture(1, 8)
        swapped = image.view("<u2").astype(">u2").tobytes()
        file = dicom(f"{UID}.2", swapped, image, 8)
        at = (
            file.rindex(b"\xe0\x7f\x10\x00")
            if b"\xe0\x7f\x10\x00" in file
            else file.rindex(b"\x7f\xe0\x00\x10")
        )
        assert (stored(file[: at + 4] + b"OW" + file[at + 6 :]) == image).all()

    @pytest.mark.parametrize(
        ("name", "original"),
        [
            ("MR_small_implicit.dcm", "MR_small.dcm"),
            ("MR_small_bigendian.dcm", "MR_small.dcm"),
            ("emri_small_big_endian.dcm", "emri_small.dcm"),
            ("SC_rgb_expb_16bit_2frame.dcm", "SC_rgb_16bit_2frame.dcm"),
            ("liver_expb.dcm", "liver.dcm"),
        ],
    )
    def test_sample_pairs(self, name: str, original: str) -> None:
        for frame in range(Image(read(name)).frames):
            assert (stored(read(name), frame) == stored(read(original), frame)).all()


class TestRle:
    @pytest.mark.parametrize(
        ("name", "original"),
        [
            ("MR_small_RLE.dcm", "MR_small.dcm"),
            ("emri_small_RLE.dcm", "emri_small.dcm"),
            ("SC_rgb_rle_16bit_2frame.dcm", "SC_rgb_16bit_2frame.dcm"),
            ("SC_rgb_rle_32bit.dcm", "SC_rgb_32bit.dcm"),
            ("OBXXXX1A_rle_2frame.dcm", "OBXXXX1A_2frame.dcm"),
            ("rtdose_rle.dcm", "rtdose.dcm"),
        ],
    )
    def test_sample_pairs(self, name: str, original: str) -> None:
        for frame in range(Image(read(name)).frames):
            assert (stored(read(name), frame) == stored(read(original), frame)).all()

    @pytest.mark.peer("dcmcrle")
    def test_as_dcmtk_writes_it(self, tmp_path: Path) -> None:
        image = picture()
        assert (stored(_by("dcmcrle", tmp_path, image, 16)) == image).all()

    @pytest.mark.parametrize(
        "header",
        [
            [0] * 16, [3, 64, 70, 80, *[0] * 12], [2, 64, 60, *[0] * 13], [2, 60, 90, *[0] * 13],
            [2, 64, 2**31, *[0] * 13], [2**32 - 1, *[64] * 15], [2, 64, 64, *[0] * 13],
        ],
    )  # fmt: skip
    def test_a_header_that_points_anywhere(self, header: list[int]) -> None:
        frame = np.array(header, "<u4").tobytes() + bytes(100)
        assert refused(dicom(f"{UID}.5", frame, picture(), 16)) is Quarantine.PIXELS_INVALID

    def test_segments_that_hold_too_much_or_too_little(self) -> None:
        chance = np.random.default_rng(1)
        plain = np.array([2, 64, 1064, *[0] * 13], "<u4").tobytes()
        for _ in range(200):
            frame = plain + chance.integers(0, 256, 2000, dtype=np.uint8).tobytes()
            try:
                assert stored(dicom(f"{UID}.5", frame, picture(), 16)).shape == (40, 56)
            except Unusable as error:
                assert error.quarantine is Quarantine.PIXELS_INVALID

    def test_a_bomb_expands_to_no_more_than_the_image(self) -> None:
        frame = np.array([1, 64, *[0] * 14], "<u4").tobytes() + b"\x81\x07" * 2**16
        image = picture(1, 8)
        assert (stored(dicom(f"{UID}.5", frame, image, 8)) == np.full_like(image, 7)).all()


class TestJpeg:
    def test_baseline_grey_is_bounded(self) -> None:
        image = picture(1, 8)
        found = stored(dicom(f"{UID}.4.50", _pillow(image, quality=95), image, 8))
        assert np.abs(found.astype(int) - image).max() <= 12
        assert np.abs(found.astype(int) - image).mean() <= 2

    @pytest.mark.parametrize("subsampling", [0, 1, 2])
    def test_baseline_colour_is_rgb_again(self, subsampling: int) -> None:
        # The hue varies slowly, so that halving its resolution costs little.
        image = np.stack([picture(1, 8) // 2 + shift for shift in (0, 40, 80)], axis=-1).astype(np.uint8)
        frame = _pillow(image, quality=95, subsampling=subsampling)
        file = dicom(f"{UID}.4.50", frame, image, 8, PhotometricInterpretation="YBR_FULL_422")
        assert np.abs(values(Image(file), 0, "int16", 3) - image.astype(int)).max() <= 16

    def test_components_that_were_never_transformed(self) -> None:
        name = "SC_jpeg_no_color_transform.dcm"
        expected = pydicom.dcmread(str(get_testdata_file(name)))
        expected.pixel_array_options(decoding_plugin="pillow")
        assert (values(Image(read(name)), 0, "uint8", 3) == expected.pixel_array).all()

    @pytest.mark.peer("dcmcjpeg", "dcmdjpeg")
    def test_baseline_as_dcmtk_decodes_it(self, tmp_path: Path) -> None:
        image = picture(1, 8)
        file = _by("dcmcjpeg", tmp_path, image, 8, "+eb")
        second = _decoded("dcmdjpeg", tmp_path, file)
        assert np.abs(stored(file).astype(int) - second).max() <= 1

    @pytest.mark.peer("dcmcjpeg", "dcmdjpeg")
    def test_extended_12_bits_as_dcmtk_decodes_it(self, tmp_path: Path) -> None:
        image = picture(1, 12)
        file = _by("dcmcjpeg", tmp_path, image, 12, "+ee", "+bt")
        assert Image(file).syntax == f"{UID}.4.51"
        assert (stored(file) == _decoded("dcmdjpeg", tmp_path, file)).all()

    @pytest.mark.peer("dcmdjpeg")
    def test_extended_sample_as_dcmtk_decodes_it(self, tmp_path: Path) -> None:
        file = read("JPGExtended.dcm")
        assert (stored(file) == _decoded("dcmdjpeg", tmp_path, file)).all()

    @pytest.mark.peer("dcmcjpeg")
    @pytest.mark.parametrize("bits", [8, 12, 16])
    @pytest.mark.parametrize("process", [("+e1",), *(("+el", "+sv", str(n)) for n in (1, 4, 6, 7))])
    def test_lossless_is_exact(self, tmp_path: Path, process: tuple[str, ...], bits: int) -> None:
        image = picture(1, bits)
        file = _by("dcmcjpeg", tmp_path, image, bits, *process)
        assert Image(file).syntax == f"{UID}.4.{70 if process == ('+e1',) else 57}"
        assert (stored(file) == image).all()

    @pytest.mark.peer("dcmcjpeg")
    def test_lossless_colour_is_exact(self, tmp_path: Path) -> None:
        image = picture(3, 8)
        assert (stored(_by("dcmcjpeg", tmp_path, image, 8, "+e1")) == image).all()

    @pytest.mark.peer("dcmcjpeg")
    def test_lossless_keeps_the_sign(self, tmp_path: Path) -> None:
        image = picture().view(np.int16)
        file = _by("dcmcjpeg", tmp_path, image, 16, "+e1", PixelRepresentation=1)
        assert (stored(file) == image).all()
        assert stored(file).min() < 0

    def test_lossless_sample(self) -> None:
        assert stored(read("JPEG-LL.dcm")).shape == (1024, 256)


class TestJpegColour:
    """What three components are is said by Adobe's marker or JFIF, else by the data set: never guessed."""

    IMAGE = np.stack([picture(1, 8) // 2 + shift for shift in (0, 40, 80)], axis=-1).astype(np.uint8)
    JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"

    @staticmethod
    def adobe(transform: int) -> bytes:
        return b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])

    @staticmethod
    def named(frame: bytes, names: bytes) -> bytes:
        """`frame` without its own markers of colour, and its components called that."""
        bare = bytearray(codestream.unmarked(frame).replace(TestJpegColour.adobe(0), b""))
        header, scan = re.search(b"\xff[\xc0\xc3]\0\x11", bare), bare.index(b"\xff\xda")
        assert header is not None
        for number, name in enumerate(names):
            bare[header.start() + 10 + 3 * number] = name
            if bare[scan + 4] == 3:
                bare[scan + 5 + 2 * number] = name
        return bytes(bare)

    def error(self, frame: bytes, photometric: str, syntax: int = 50) -> int:
        file = dicom(f"{UID}.4.{syntax}", frame, self.IMAGE, 8, PhotometricInterpretation=photometric)
        return int(np.abs(values(Image(file), 0, "int16", 3) - self.IMAGE.astype(int)).max())

    @pytest.mark.parametrize("names", [b"\1\2\3", b"\0\1\2", b"RGB"])
    @pytest.mark.parametrize(
        ("marks", "said"),
        [
            (b"", False), (JFIF, True), (adobe(1), True), (adobe(2), False), (JFIF + adobe(1), True),
            (JFIF + adobe(0), False), (adobe(0) + adobe(1), True),
        ],
    )  # fmt: skip
    def test_ycbcr(self, marks: bytes, said: bool, names: bytes) -> None:
        frame = self.named(_pillow(self.IMAGE, quality=98, subsampling=0), names)
        marked = frame[:2] + marks + frame[2:]
        assert self.error(marked, "YBR_FULL_422") <= 6
        assert (self.error(marked, "RGB") <= 6) == said

    @pytest.mark.parametrize("names", [b"\1\2\3", b"\0\1\2", b"RGB"])
    @pytest.mark.parametrize("marks", [b"", adobe(0), adobe(2), JFIF + adobe(0), adobe(0) + JFIF])
    def test_rgb(self, marks: bytes, names: bytes) -> None:
        frame = self.named(_pillow(self.IMAGE, quality=98, subsampling=0, keep_rgb=True), names)
        assert self.error(frame[:2] + marks + frame[2:], "RGB") <= 6

    @pytest.mark.peer("dcmcjpeg")
    @pytest.mark.parametrize("marks", [b"", JFIF, adobe(0), adobe(1), adobe(2), JFIF + adobe(0)])
    def test_lossless_is_what_the_data_set_says(self, tmp_path: Path, marks: bytes) -> None:
        data = pydicom.dcmread(io.BytesIO(_by("dcmcjpeg", tmp_path, self.IMAGE, 8, "+e1")))
        frame = self.named(next(generate_frames(data.PixelData, number_of_frames=1)), b"\1\2\3")
        assert self.error(frame[:2] + marks + frame[2:], "RGB", 70) == 0

    @pytest.mark.parametrize("stored", [7, 9, 16])
    def test_colour_of_more_or_fewer_bits_than_stored(self, stored: int) -> None:
        more = {"BitsAllocated": 16, "BitsStored": stored, "HighBit": stored - 1}
        file = dicom(f"{UID}.4.50", _pillow(self.IMAGE), self.IMAGE, 8, **more)
        assert refused(file) is Quarantine.PIXELS_INVALID

    def test_application_data_never_reaches_a_decoder(self) -> None:
        image = picture(1, 8)
        frame = _pillow(image, quality=95, comment=b"P1", exif=b"Exif\0\0P1", icc_profile=b"P1" * 99)
        plain = codestream.unmarked(frame)
        assert b"P1" in frame
        assert b"P1" not in plain
        assert (stored(dicom(f"{UID}.4.50", frame, image, 8)) == Pillow.open(io.BytesIO(plain))).all()

    def test_fill_bytes_before_a_marker(self) -> None:
        image = picture(1, 8)
        frame = _pillow(image, quality=95)
        filled = frame[:2] + b"\xff" * 2**22 + frame[2:]
        assert codestream.jpeg(filled) == codestream.jpeg(frame)
        assert codestream.unmarked(filled) == codestream.unmarked(frame)


class TestJpegLs:
    @pytest.mark.parametrize(
        ("name", "original"),
        [
            ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
            ("emri_small_jpeg_ls_lossless.dcm", "emri_small.dcm"),
        ],
    )
    def test_sample_pairs(self, name: str, original: str) -> None:
        for frame in range(Image(read(name)).frames):
            assert (stored(read(name), frame) == stored(read(original), frame)).all()

    @pytest.mark.parametrize("near", [0, 1, 5])
    @pytest.mark.parametrize(
        ("samples", "bits", "interleave"), [(1, 8, 0), (1, 16, 0), (3, 8, 0), (3, 8, 1), (3, 8, 2)]
    )
    def test_errors_are_within_near(self, samples: int, bits: int, interleave: int, near: int) -> None:
        import jpeg_ls

        image = picture(samples, bits)
        planes = image.transpose(2, 0, 1) if samples == 3 and interleave == 0 else image
        frame = jpeg_ls.encode_array(
            np.ascontiguousarray(planes), lossy_error=near, interleave_mode=interleave
        )
        file = dicom(f"{UID}.4.{81 if near else 80}", bytes(frame), image, bits)
        assert np.abs(stored(file).astype(int) - image).max() <= near

    @pytest.mark.peer("dcmcjpls")
    def test_as_dcmtk_writes_it(self, tmp_path: Path) -> None:
        image = picture(1, 12)
        assert (stored(_by("dcmcjpls", tmp_path, image, 12)) == image).all()
        near = stored(_by("dcmcjpls", tmp_path, image, 12, "+en", "+md", "3"))
        assert np.abs(near.astype(int) - image).max() <= 3


class TestJpeg2000:
    @pytest.mark.parametrize(
        ("name", "original"),
        [
            ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
            ("emri_small_jpeg_2k_lossless.dcm", "emri_small.dcm"),
            ("RG1_J2KR.dcm", "RG1_UNCR.dcm"),
            ("MR2_J2KR.dcm", "MR2_UNCR.dcm"),
            ("US1_J2KR.dcm", "US1_UNCR.dcm"),
        ],
    )
    def test_lossless_sample_pairs(self, name: str, original: str) -> None:
        for frame in range(Image(read(name)).frames):
            assert (stored(read(name), frame) == stored(read(original), frame)).all()

    @pytest.mark.parametrize(
        ("name", "original"), [("RG1_J2KI.dcm", "RG1_UNCI.dcm"), ("MR2_J2KI.dcm", "MR2_UNCI.dcm")]
    )
    def test_lossy_sample_pairs_are_bounded(self, name: str, original: str) -> None:
        difference = np.abs(stored(read(name)).astype(int) - stored(read(original)).astype(int))
        assert difference.mean() < 0.01 * 2 ** Image(read(original)).layout.stored

    @pytest.mark.parametrize(("samples", "bits"), [(1, 8), (1, 12), (1, 16), (3, 8)])
    def test_lossless_is_exact(self, samples: int, bits: int) -> None:
        from openjpeg.utils import encode

        image = picture(samples, bits)
        frame = encode(image, photometric_interpretation=1 if samples == 3 else 2, bits_stored=bits)
        more = {"PhotometricInterpretation": "YBR_RCT"} if samples == 3 else {}
        file = dicom(f"{UID}.4.90", frame, image, bits, **more)
        assert (stored(file) == image).all()
        if samples == 3:
            assert (values(Image(file), 0, "uint8", 3) == image).all()

    def test_signed_by_both_accounts(self) -> None:
        from openjpeg.utils import encode

        image = picture().view(np.int16)
        file = dicom(f"{UID}.4.90", encode(image), image, 16, PixelRepresentation=1)
        assert (stored(file) == image).all()

    def test_a_stream_of_fewer_bits_than_stored(self) -> None:
        from openjpeg.utils import encode

        image = picture(1, 8)
        file = dicom(f"{UID}.4.90", encode(image), image, 12, PhotometricInterpretation="MONOCHROME1")
        assert (values(Image(file), 0, "int16", 1) == 4095 - image.astype(int)).all()

    def test_unsigned_bits_of_a_signed_image(self) -> None:
        found = stored(read("J2K_pixelrep_mismatch.dcm"))
        assert (found.min(), found.max()) == (-2000, 1896)

    def test_signed_bits_of_an_unsigned_image_are_refused(self) -> None:
        from openjpeg.utils import encode

        image = picture().view(np.int16)
        file = dicom(f"{UID}.4.90", encode(image), image, 16)
        assert refused(file) is Quarantine.PIXELS_INVALID

    def test_lossy_is_bounded(self) -> None:
        from openjpeg.utils import encode

        image = picture(1, 12)
        frame = encode(image, bits_stored=12, compression_ratios=[4])
        assert np.abs(stored(dicom(f"{UID}.4.91", frame, image, 12)).astype(int) - image).mean() < 8

    def test_a_jp2_file_in_place_of_a_code_stream(self) -> None:
        from openjpeg.utils import encode

        image = picture()
        frame = encode(image, codec_format=1)
        assert frame[4:8] == b"jP  "
        assert (stored(dicom(f"{UID}.4.90", frame, image, 16)) == image).all()

    @pytest.mark.parametrize("syntax", [201, 202, 203])
    @pytest.mark.parametrize("name", ["grey16", "grey16_tiles_tlm", "rgb8"])
    def test_high_throughput_is_exact(self, name: str, syntax: int) -> None:
        image = picture(3, 8) if name == "rgb8" else picture()
        more = {"PhotometricInterpretation": "YBR_RCT"} if name == "rgb8" else {}
        frame = (VECTORS / f"{name}.j2c").read_bytes()
        file = dicom(f"{UID}.4.{syntax}", frame, image, 8 if name == "rgb8" else 16, **more)
        assert (stored(file) == image).all()

    def test_high_throughput_lossy_is_bounded(self) -> None:
        image = picture()
        frame = (VECTORS / "grey16_lossy.j2c").read_bytes()
        assert np.abs(stored(dicom(f"{UID}.4.203", frame, image, 16)).astype(int) - image).max() <= 100


class TestBombs:
    """A code stream that says another size than the data set never reaches a decoder."""

    LAYOUT = Layout(rows=40, columns=56, samples=1, allocated=16, stored=16, signed=False)

    @staticmethod
    def jpeg_2000(**wrong: int) -> bytes:
        frame = bytearray((VECTORS / "grey16.j2c").read_bytes())
        places = {"width": 8, "height": 12, "left": 16, "tile_width": 24, "tile_height": 28}
        for name, value in wrong.items():
            if name in places:
                frame[places[name] : places[name] + 4] = value.to_bytes(4, "big")
            else:
                at = {"components": 41, "depth": 42, "across": 43}[name]
                frame[at] = value
        return bytes(frame)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"width": 65535, "height": 65535}, {"width": 2**32 - 1}, {"left": 2**31}, {"tile_width": 0},
            {"tile_width": 1, "tile_height": 1, "width": 20000, "height": 20000}, {"components": 4},
            {"components": 0}, {"depth": 37}, {"across": 255}, {"depth": 31},
        ],
    )  # fmt: skip
    def test_jpeg_2000(self, wrong: dict[str, int]) -> None:
        file = dicom(f"{UID}.4.90", self.jpeg_2000(**wrong), picture(), 16)
        assert refused(file) is Quarantine.PIXELS_INVALID

    def test_tiles_are_counted(self) -> None:
        image = np.zeros((200, 200), np.uint16)
        frame = self.jpeg_2000(width=200, height=200, tile_width=1, tile_height=1)
        assert refused(dicom(f"{UID}.4.90", frame, image, 16)) is Quarantine.PIXELS_INVALID

    @pytest.mark.parametrize(("rows", "columns"), [(65535, 65535), (0, 56), (40, 57), (65500, 8)])
    @pytest.mark.parametrize("syntax", [50, 51, 57, 70, 80, 81])
    def test_jpeg(self, syntax: int, rows: int, columns: int) -> None:
        frame = bytearray(_pillow(picture(1, 8)))
        at = frame.index(b"\xff\xc0")
        frame[at + 5 : at + 9] = rows.to_bytes(2, "big") + columns.to_bytes(2, "big")
        frame[at + 1] = {50: 0xC0, 51: 0xC1, 57: 0xC3, 70: 0xC3}.get(syntax, 0xF7)
        assert (
            refused(dicom(f"{UID}.4.{syntax}", bytes(frame), picture(1, 8), 8)) is Quarantine.PIXELS_INVALID
        )

    @pytest.mark.parametrize("process", [0xC2, 0xC3, 0xC9, 0xF7])
    def test_another_process_than_the_syntax_says(self, process: int) -> None:
        frame = bytearray(_pillow(picture(1, 8)))
        frame[frame.index(b"\xff\xc0") + 1] = process
        assert refused(dicom(f"{UID}.4.50", bytes(frame), picture(1, 8), 8)) is Quarantine.PIXELS_INVALID

    def test_two_frame_headers(self) -> None:
        frame = _pillow(picture(1, 8))
        at = frame.index(b"\xff\xc0")
        header = frame[at : at + 13]
        with pytest.raises(Unusable):
            codestream.jpeg(frame[:at] + header + frame[at:])

    @pytest.mark.parametrize("syntax", sorted(SYNTAXES - codecs.NATIVE.keys()))
    @pytest.mark.parametrize(
        "frame",
        [
            b"", b"\xff\xd8", b"\xff\xd8\xff\xda", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ", b"\xff" * 4096,
            b"\xff\xd8" + b"\xff\xd0" * 5000, b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\0jp2h" * 4,
        ],
    )  # fmt: skip
    def test_nothing_useful(self, syntax: str, frame: bytes) -> None:
        with pytest.raises(Unusable) as caught:
            codecs.decode(syntax, frame, self.LAYOUT)
        assert caught.value.quarantine is Quarantine.PIXELS_INVALID


@pytest.mark.parametrize(
    "syntax", ["1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.94", "1.2.840.10008.1.2.4.53"]
)
def test_any_other_syntax_is_unsupported(syntax: str) -> None:
    image = picture(1, 8)
    assert refused(dicom(syntax, b"\0\0", image, 8)) is Quarantine.SYNTAX_UNSUPPORTED
    with pytest.raises(Unusable) as caught:
        codecs.decode(syntax, b"", TestBombs.LAYOUT)
    assert caught.value.quarantine is Quarantine.SYNTAX_UNSUPPORTED


def _pillow(image: Array, **options: Any) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(image).save(file, "JPEG", **options)
    return file.getvalue()


def _by(program: str, folder: Path, image: Array, bits: int, *options: str, **more: Any) -> bytes:
    """The image as one of dcmtk's encoders writes it."""
    source, made = folder / "source.dcm", folder / "made.dcm"
    source.write_bytes(dicom(f"{UID}.1", image.tobytes(), image, bits, **more))
    subprocess.run([program, *options, source, made], check=True, capture_output=True)
    return made.read_bytes()


def _decoded(program: str, folder: Path, file: bytes) -> Array:
    """The image as one of dcmtk's decoders reads it."""
    source, made = folder / "compressed.dcm", folder / "plain.dcm"
    source.write_bytes(file)
    subprocess.run([program, source, made], check=True, capture_output=True)
    return stored(made.read_bytes()).astype(int)
