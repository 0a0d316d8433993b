"""Model files and other data that runs code when it is loaded, however deep in archives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from rapha.runtime.scan import archives, pickles
from rapha.runtime.scan.blob import WHOLE, Blob, Budget
from rapha.runtime.scan.facts import Note
from rapha.runtime.scan.natives import magic
from rapha.runtime.scan.rules import RuleSet

_MAX_DEPTH: Final = 3
_MAX_NAMED: Final = 8
_OPCODES: Final = 1_000_000
_PICKLE_NAMES: Final = (".pkl", ".pickle", ".joblib", ".dill", ".pt", ".ckpt", ".p", ".pck", ".pcl")
_CODE_NAMES: Final = (".py", ".pyc", ".pyo", ".so", ".pyd", ".pth", ".dll", ".jar", ".class")
_OBJECT_DTYPE: Final = re.compile(rb"['\"][|<>=]?O\d*['\"]")
_LAMBDA: Final = re.compile(
    rb"class_name\\*[\"']\s*:\s*\\*[\"'](?:Lambda|TFOpLambda|SlicingOpLambda)\\*[\"']"
)
_KERAS_MODULE: Final = re.compile(
    rb"\"module\"\s*:\s*\"(?!keras|tensorflow\.keras|tf_keras|builtins\")([^\"]{1,100})"
)
_GRAPH_OPS: Final = re.compile(
    rb"\b(?:ReadFile|WriteFile|MatchingFiles|PyFunc|EagerPyFunc|PyFuncStateless|LoadLibrary|ShardedFilename)\b"
)
_TEMPLATE: Final = re.compile(rb"__(?:class|base|bases|mro|subclasses|globals|builtins|init|import)__")
_OBJECT_TAG: Final = re.compile(rb"(?m)^[^#\n]{0,400}!!python/(?:object|name|module)")
_HDF5: Final = b"\x89HDF\r\n\x1a\n"
_FORMATS: Final = (
    (".onnx", "an ONNX model, whose custom operators"),
    (".pb", "a TensorFlow graph, whose operators"),
    (".tflite", "a TensorFlow Lite model, whose custom operators"),
    (".mlmodel", "a Core ML model, whose layers"),
    (".pmml", "a PMML model, whose extensions"),
    (".rds", "an R data file, whose promises"),
    (".rdata", "an R data file, whose promises"),
    (".h5", "an HDF5 file, whose layers"),
    (".hdf5", "an HDF5 file, whose layers"),
    (".keras", "a Keras model, whose layers"),
    (".ser", "a serialised Java object, whose class"),
)


def judge(blob: Blob, rules: RuleSet, budget: Budget, depth: int = 0) -> Iterator[Note]:
    """What loading the file may run. Grave: code, or a container that hides what it holds."""
    contained = list(_contained(blob, rules, budget, depth))
    yield from contained
    yield from _pickled(blob, rules, budget, is_container=bool(contained) or archives.is_zip(blob))
    yield from _formats(blob)


def _contained(blob: Blob, rules: RuleSet, budget: Budget, depth: int) -> Iterator[Note]:
    if (kind := archives.opaque(blob)) is not None:
        yield _grave("image.unjudged", f"It is {kind}, which is not looked into.")
        return
    try:
        for member in archives.members(blob, budget):
            if depth >= _MAX_DEPTH:
                yield _grave("image.unjudged", "It is an archive in an archive, nested too deeply.")
                return
            yield from _member(member, rules, budget, depth)
    except archives.ArchiveError as error:
        yield _grave("image.dynamic_code", f"It is an archive that can't be judged: {error}.")


def _member(member: archives.Member, rules: RuleSet, budget: Budget, depth: int) -> Iterator[Note]:
    inside = f"Inside, `{member.name[:100]}`: "
    name, archived = member.blob.name, member.name
    if name.endswith(_CODE_NAMES) or magic(member.blob) is not None:
        yield _grave("image.dynamic_code", inside + "code that Python can load from there.")
    for note in judge(member.blob, rules, budget, depth + 1):
        yield Note(note.rule, 0, inside + note.reason, note.grave)
    if name == "config.json" and (found := _KERAS_MODULE.search(member.blob.part(WHOLE))):
        module = found.group(1).decode(errors="replace")
        yield _grave("image.pickle", f"{inside}a layer is made by `{module}`, which is not of Keras.")
    if not member.whole and archived.lower().endswith(_PICKLE_NAMES):
        yield _grave("image.unjudged", inside + "it is too large to be judged.")


def _pickled(blob: Blob, rules: RuleSet, budget: Budget, is_container: bool) -> Iterator[Note]:
    named = blob.name.endswith(_PICKLE_NAMES)
    start, what = 0, "a pickle"
    if blob.head[:6] == b"\x93NUMPY":
        start, what = _array(blob.head), "a NumPy array of objects, which is a pickle,"
        if not start:
            return
    elif blob.name.endswith((".py", ".pyw")) or (is_container and not named):
        return
    with blob.open() as file:
        file.seek(start)
        walked = pickles.walk(file, max(1, min(_OPCODES, budget.opcodes)))
    budget.opcodes -= walked.opcodes
    if walked.is_pickle or start or (named and walked.ended):
        yield from _walked(walked, what, rules)
    elif named and not is_container:
        yield _grave("image.pickle", "It is a pickle by its name, and can't be followed.")


def _walked(walked: pickles.Walked, what: str, rules: RuleSet) -> Iterator[Note]:
    bad = [name for name in walked.globals if name not in rules.pickle_data]
    for name in bad[:_MAX_NAMED]:
        shown = "a name that it computes" if "?" in name else f"`{name}`"
        yield _grave("image.pickle", f"It is {what} that imports {shown}.")
    if walked.problem:
        yield _grave("image.pickle", f"It is {what} that can't be followed: {walked.problem}.")
    elif not bad:
        yield _slight("image.pickle", f"It is {what} with nothing but data in it.")


def _array(head: bytes) -> int:
    """Where the pickle of an object array starts; 0 where the header names no objects (NumPy's NEP 1)."""
    wide = head[6:7] != b"\1"
    length = int.from_bytes(head[8:12] if wide else head[8:10], "little")
    start = (12 if wide else 10) + length
    return start if _OBJECT_DTYPE.search(head[:start]) or start > len(head) else 0


def _formats(blob: Blob) -> Iterator[Note]:
    """Formats of other frameworks: grave where the mark of code is there, slight where it can't be told."""
    what = next((what for suffix, what in _FORMATS if blob.name.endswith(suffix)), None)
    if what is None and blob.head.startswith(_HDF5):
        what = "an HDF5 file, whose layers"
    if what is None and blob.head[:4] == b"GGUF" and b"chat_template" in blob.head:
        what = "a GGUF model, whose chat template"
    if blob.name.endswith((".yaml", ".yml")) and _OBJECT_TAG.search(blob.part(WHOLE)):
        yield _slight("image.pickle", "It is YAML with tags that make Python objects.")
    if what is None and not blob.name.endswith(".json"):
        return
    data = blob.part(WHOLE)
    marked = _LAMBDA.search(data) or (blob.name.endswith(".pb") and _GRAPH_OPS.search(data))
    if marked or (blob.head[:4] == b"GGUF" and _TEMPLATE.search(data)):
        yield _grave("image.pickle", "It is a model with code in it.")
    elif what is not None:
        yield _slight("image.unjudged", f"It is {what} can't be judged here.")


def _grave(rule: str, reason: str) -> Note:
    return Note(rule, 0, reason)


def _slight(rule: str, reason: str) -> Note:
    return Note(rule, 0, reason, grave=False)
