"""The reviewers' page: its data, its words, and that one A4 page holds whatever it is about."""

from __future__ import annotations

import io
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pypdf import PdfReader

from rapha.evidence import canonical
from rapha.node.disclosure import html, page, pdf, text, view
from rapha.node.disclosure.page import File, Outgoing, Page, Signer, Source
from rapha.node.disclosure.words import MARKS, short
from rapha.runtime.guard.codes import CHECKS
from rapha.runtime.guard.report import Check, Transform
from rapha.spec.disclosure import Balance, Guarantee, Leakage, Price, Searched, Spent
from rapha.spec.refusals import Refused
from rapha.spec.verdicts import SENTENCE

EVIL = "</style><script src=//evil.example></script>{{7*7}}<img onerror=x>\"'&"
MEASURED = Leakage.parse(
    {
        **{"verdict": "measured", "members": 400, "non_members": 1200, "tpr": 0.0123, "low": 0.004},
        **{"high": 0.027, "auc": 0.55, "worst": "sex=F", "worst_tpr": 0.021, "canaries": 0.05, "shadows": 32},
    }
)
LEAKING = Leakage(verdict="measured", members=6000, non_members=1500, shadows=6, tpr=1.0, low=0.99, high=1.0)
FEW = Leakage(verdict="not_resolvable", members=400, non_members=113, reason="113 non-members, of 1,000")
GUARANTEE = Guarantee.parse(
    {
        **{"epsilon": 2.5, "delta": 2e-6, "noise_multiplier": 1.1, "sample_rate": 0.05},
        **{"steps": 400, "clip": 1.0, "accountant": "pld"},
    }
)
CHARGE = Price(bits=9714, epsilon=0.5, delta=1e-6, evaluations=1)
PARTS: dict[Source, float] = {
    **{"weights": 9600.0, "metrics": 60.3, "self_reported": 21.0, "counts": 11.2},
    **{"resources": 12.4, "verdict": 3.3, "timing": 5.1},
}


def balance(**changes: Any) -> Balance:
    lines = {
        **{"bits": (4_600_000, 2**30), "epsilon": (2.5, 8.0), "delta": (2e-6, 1e-5)},
        **{"evaluations": (7, 200), "cohorts": (3, 64), "most_used": (5, 200), **changes},
    }
    spent: dict[str, Any] = {name: Spent(spent=spent, cap=cap) for name, (spent, cap) in lines.items()}
    known: dict[str, Any] = {"dataset": "breast-fna", "jobs": 7, "entries": 9}
    return Balance(**known, **spent, opt_out_version="a" * 64, head="b" * 64)


def guard(reason: str = "as planned", verdict: str = "pass") -> tuple[Check, ...]:
    return tuple(
        Check.parse(
            {"n": n, "id": c.id, "verdict": verdict, "reason": reason, "does_not_show": c.does_not_show}
        )
        for n, c in CHECKS.items()
    )


def signer(name: str, key: str) -> Signer:
    return Signer(name=name, role="output reviewer", key=key * 64)


def make(**changes: Any) -> Page:
    searched, leakage = changes.pop("searched", Searched(found=False, searched=1694, too_short=12)), FEW
    leakage, kept = changes.pop("leakage", leakage), changes.pop("balance", balance())
    checks = changes.pop("checks", None) or page.checks(guard(), searched, leakage, kept)
    values: dict[str, Any] = {
        **{"job": "c" * 64, "report": "d" * 64, "name": "breast-fna-malignancy", "kind": "train"},
        **{"profile": "demo", "assurance": "simulated", "hospital": "St Elsewhere Hospital", "node": "n-1"},
        **{"company": "Acme Diagnostics", "company_id": "acme", "written_by": (signer("A. Dev", "e"),)},
        **{"purpose": "research/diagnosis", "dataset": "breast-fna", "dataset_title": "Aspirates"},
        **{
            "patients": "up to 570 patients",
            "balance": kept,
            "guarantee": None,
            "checks": checks,
            "charge": CHARGE,
        },
        "release": Outgoing(
            bits=9714,
            parts=PARTS,
            files=(File(name="model.safetensors", bytes=1234), File(name="metrics.json", bytes=640)),
        ),
        "metrics_only": Outgoing(
            bits=93, parts={"metrics": 60.3}, files=(File(name="metrics.json", bytes=600),)
        ),
        **{"searched": searched, "leakage": leakage},
        "transforms": (
            Transform(tensor="w", dtype="F32", released_as="BF16", clipped=3, largest_error=0.001),
        ),
        "trusted": {"auroc": 0.95, "auroc.low": 0.9, "auroc.high": 0.98, "roc.1": 0.4},
        "self_reported": {"loss": 0.125, "done": True},
        "choices": ("release", "metrics-only", "refuse"),
        **{"reviewers": (signer("R. Reviewer", "f"), signer("S. Statistician", "1")), "required": 2},
    }
    return Page(**{**values, **changes})


def worst() -> Page:
    """Everything as long and as much as the types let it be."""
    long, person = "W" * 200, Signer(name="W" * 200, role="W" * 200, key="e" * 64)
    leakage = MEASURED.model_copy(update={"worst": "x" * 400})
    kept = balance(bits=(2.0**53, 2**30), evaluations=(10**6, 10**6))
    files = tuple(File(name="n" * 60 + f"{i:02}", bytes=2**40) for i in range(16))
    tensors = tuple(
        Transform(
            tensor="layer." * 20 + str(i), dtype="F32", released_as="BF16", clipped=2**40, largest_error=1e38
        )
        for i in range(8192)
    )
    parts = {**PARTS, "weights": float(2**53 - 1000)}
    return make(
        **{"name": "n" * 64, "hospital": long, "node": "n" * 64, "company": long, "company_id": "n" * 64},
        **{"written_by": (person,) * 64, "purpose": "/".join(["p" * 64] * 4), "dataset": "n" * 64},
        **{"dataset_title": long, "patients": long, "guarantee": GUARANTEE, "balance": kept},
        release=Outgoing(bits=2**53 - 1, parts=parts, files=files),
        metrics_only=Outgoing(bits=2**53 - 1, parts=parts, files=files),
        leakage=leakage,
        checks=page.checks(
            guard("Reason " * 100, "fail"), Searched(found=True, searched=1, too_short=1), leakage, kept
        ),
        transforms=tensors,
        trusted={f"metric{i}": 1e6 for i in range(200)} | {f"roc.{i}": 0.5 for i in range(9)},
        self_reported={"self.reported." * 4 + str(i): -1e-300 for i in range(200)},
        **{"reviewers": (person,) * 64, "required": 64},
    )


class Outline(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def printed(made: Page) -> tuple[PdfReader, str]:
    reader = PdfReader(io.BytesIO(pdf.render(made)))
    return reader, " ".join("".join(p.extract_text() for p in reader.pages).split())


def test_what_is_signed_is_what_is_shown() -> None:
    made = make()
    shown = canonical.loads(canonical.dumps(made.dump()))
    assert page.read(shown) == made
    assert made.digest == canonical.digest(shown)
    for changed in ({"patients": "up to 10"}, {"choices": ("release",)}, {"guarantee": GUARANTEE}):
        assert make(**changed).digest != made.digest


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda p: p.pop("patients"), "schema.field_missing"),
        (lambda p: p.pop("sentence"), "policy.approval_invalid"),
        (lambda p: p.pop("version"), "policy.approval_invalid"),
        (lambda p: p.update(sentence="All is well."), "schema.field_invalid"),
        (lambda p: p.update(note="x"), "schema.field_unknown"),
        (lambda p: p["checks"][0].update(verdict="perfect"), "schema.field_invalid"),
        (lambda p: p["leakage"].update(tpr=0.0), "schema.field_invalid"),
        (lambda p: p["release"].update(bits=-1), "schema.field_invalid"),
        (lambda p: p.update(choices=["release", "maybe"]), "schema.field_invalid"),
        (lambda p: p.update(company="Acme\u202eemcA"), "schema.field_invalid"),
    ],
)
def test_half_a_page_is_none(change: Any, code: str) -> None:
    shown = canonical.loads(canonical.dumps(make().dump()))
    change(shown)
    with pytest.raises(Refused) as caught:
        page.read(shown)
    assert caught.value.code == code
    with pytest.raises(Refused):
        page.read([])


def test_all_nine_checks_are_there_with_what_they_do_not_show() -> None:
    found = page.checks(guard(), None, FEW, None)
    assert [c.n for c in found] == list(range(1, 10))
    assert all(c.does_not_show for c in found)
    assert (found[7].verdict, found[8].verdict) == ("not_resolvable", "not_run")


@pytest.mark.parametrize(
    ("leakage", "verdict", "said"),
    [
        (MEASURED, "pass", "1.2% of members found at 0.1% false positives (95% interval 0.4% to 2.7%)"),
        (MEASURED, "pass", "worst subgroup sex=F: 2.1%; planted records: 5.0%; 32 shadow models"),
        (LEAKING, "fail", "100.0% of members found at 0.1% false positives (95% interval 99.0% to 100.0%)"),
        (FEW, "not_resolvable", "not resolvable: 113 non-members, of 1,000"),
        (
            Leakage(verdict="not_run", reason="the dataset's manifest asks for none"),
            "not_run",
            "asks for none",
        ),
        (Leakage(verdict="not_run"), "not_run", "no reason was given"),
    ],
)
def test_the_leakage_test_is_never_hidden(leakage: Leakage, verdict: str, said: str) -> None:
    made = make(leakage=leakage)
    assert made.checks[7].verdict == verdict
    assert said in made.checks[7].found
    for shown in (Outline(html.render(made)).text, printed(made)[1], text.render(made)):
        assert said in shown
        assert made.checks[7].found in shown


@pytest.mark.parametrize(
    ("searched", "verdict", "said"),
    [
        (
            Searched(found=False, searched=1694, too_short=12),
            "pass",
            "1,694 known identifiers searched: not found, 12",
        ),
        (Searched(found=True, searched=5, too_short=0), "fail", "5 known identifiers searched: FOUND"),
        (None, "pass", "as planned"),
    ],
)
def test_the_search_for_identifiers_is_told(searched: Searched | None, verdict: str, said: str) -> None:
    check = make(searched=searched).checks[6]
    assert check.verdict == verdict
    assert check.found.startswith(said)


def test_a_cap_that_is_overspent_is_a_failed_check_and_a_red_bar() -> None:
    made = make(balance=balance(bits=(2**31, 2**30)))
    assert (made.checks[8].verdict, made.checks[8].found) == ("fail", "beyond the cap: bits")
    meter = view.view(made).meters[0]
    assert meter.over
    assert meter.before + meter.job == pytest.approx(1.0)
    assert "over" in html.render(made)


@given(spent=st.floats(0, 2**53), cap=st.floats(0, 2**53), bits=st.integers(0, 2**53 - 1))
def test_bars_stay_inside_their_frame(spent: float, cap: float, bits: int) -> None:
    for meter in view._meters(balance(bits=(spent, cap), epsilon=(spent, cap)), Price(bits=bits)):
        assert 0 <= meter.before <= meter.before + meter.job <= 1.0000001


def test_no_ledger_and_no_metrics_only_are_said() -> None:
    made = make(balance=None, metrics_only=None, choices=("release", "refuse"))
    for shown in (Outline(html.render(made)).text, printed(made)[1], text.render(made)):
        assert "No disclosure ledger is kept" in shown
        assert "--refuse" in shown and "--metrics-only" not in shown


def test_everything_a_reviewer_needs_is_on_every_form_of_the_page() -> None:
    made = make(guarantee=GUARANTEE, leakage=MEASURED)
    facts = (
        *("Acme Diagnostics (acme)", "A. Dev", "e" * 12, "research/diagnosis", "up to 570 patients"),
        *("Aspirates (breast-fna)", "9,714 bits", "1,215 bytes", "18 identifier rows", "less than 0.01 CT"),
        *("model.safetensors", "1,234 bytes", "metrics.json", "9,600", "60.3", "575.0 kB of 134.2 MB"),
        *("epsilon 2.5, delta 2e-06, unit one patient", "7 of 200", "3 of 64", "5 of 200", "2.5 of 8"),
        *("F32 to BF16", "0.001", "auroc", "0.950", "0.900 to 0.980", "loss", "0.125", "yes"),
        *(
            "checked by nobody",
            "of the rounded weights above",
            SENTENCE,
            "At most 93 bits",
            "2 of 2 must sign",
        ),
        *("R. Reviewer", "S. Statistician", made.digest, made.job, made.report, "One refusal ends the job"),
        *(c.does_not_show for c in made.checks),
    )
    for shown in (Outline(html.render(made)).text, printed(made)[1], text.render(made)):
        folded = " ".join(shown.split()).lower()
        missing = [fact for fact in facts if fact.lower() not in folded]
        assert not missing, missing


@pytest.mark.parametrize(
    "made", [make(), worst(), make(balance=None, checks=())], ids=["usual", "worst", "least"]
)
def test_the_pdf_is_one_a4_page_with_the_sentence(made: Page) -> None:
    reader, words = printed(made)
    assert len(reader.pages) == 1
    box = reader.pages[0].mediabox
    assert (round(float(box.width)), round(float(box.height))) == (595, 842)
    assert SENTENCE in words
    lines: list[float] = []
    reader.pages[0].extract_text(
        visitor_text=lambda t, cm, tm, font, size: lines.append(tm[5]) if t.strip() else None
    )
    assert min(lines) >= pdf.BOTTOM
    assert max(lines) <= pdf.TOP


def test_what_does_not_fit_is_counted_and_never_dropped_in_silence() -> None:
    made = worst()
    command = f"`rapha node releases show {made.job[:8]}`"
    for shown, where in (
        (Outline(html.render(made)).text, "below, under All of it"),
        (printed(made)[1], command),
    ):
        folded = " ".join(shown.split())
        for rest in (
            f"and 8,188 more changed no more than these: {where}",
            f"and 195 more metrics; 9 points of curves: {where}",
            f"and 197 more self-reported values: {where}",
            "and 63 more keys",
        ):
            assert rest in folded
    assert "and 63 more keys" in text.render(made)


def test_all_that_is_signed_can_be_read() -> None:
    """Eighty-one metrics, the points of a curve, and as many self-reported values as a plan may have."""
    trusted = {f"metric{i}": i + 0.125 for i in range(81)} | {"metric7.low": 6.5, "metric7.high": 8.25}
    trusted |= {f"roc.{i}": i / 1000 for i in range(101)}
    words = {f"name_{i:03}_" + "n" * 40: f"value {i:03} " + "v" * 40 for i in range(256)}
    tensors = tuple(
        Transform(tensor=f"layer.{i}", dtype="F32", released_as="BF16", clipped=i, largest_error=0)
        for i in range(9)
    )
    files = tuple(File(name=f"file{i}.json", bytes=i) for i in range(5))
    release = Outgoing(bits=9714, parts=PARTS, files=files)
    made = make(trusted=trusted, self_reported=words, transforms=tensors, release=release)
    for shown in (re.sub(r"<[^>]*>", " ", html.render(made)), text.render(made)):
        folded = " ".join(shown.split())
        for i in range(81):
            assert f"metric{i} {i}.125" in folded
        assert "metric7 7.125 6.500 to 8.250" in folded
        assert all(f"roc.{i} {i / 1000:.3f} a point" in folded for i in range(101))
        assert all(f"{name} {said}" in folded for name, said in words.items())
        assert all(f"layer.{i} F32 to BF16 {i}" in folded for i in range(9))
        assert all(f"file{i}.json" in folded for i in range(5))
    assert not {"script", "details"} & {tag for tag, _ in Outline(html.render(made)).tags}
    assert len(printed(made)[0].pages) == 1


def test_a_page_that_holds_all_of_it_says_it_once() -> None:
    made = make(trusted={"auroc": 0.95}, self_reported={"loss": 0.125})
    for shown in (Outline(html.render(made)).text, printed(made)[1], text.render(made)):
        assert "All of it" not in shown and "releases show" not in shown


@pytest.mark.parametrize("value", [0.12345, 1e-9])
def test_no_digit_of_a_metric_is_left_out(value: float) -> None:
    assert view.view(make(trusted={"auroc": value})).trusted.rows[0][1] == str(value)


def test_what_is_cut_within_a_row_is_told_in_full_too() -> None:
    made = make(trusted={}, self_reported={"note": "begin " + "x" * 60 + "HIDDEN" + "y" * 60 + " end"})
    assert "HIDDEN" in text.render(made) and "HIDDEN" in Outline(html.render(made)).text
    assert "in full: `rapha node releases show" in " ".join(printed(made)[1].split())


def test_the_pdf_tells_nothing_of_the_machine_and_is_the_same_each_time() -> None:
    made = make()
    data = pdf.render(made)
    assert data == pdf.render(make())
    about = PdfReader(io.BytesIO(data)).metadata
    assert about is not None
    assert about.author == "" or about.author is None
    assert about.creation_date is not None and about.creation_date.year == 2000
    assert str(Path.home()).encode() not in data


def test_the_html_loads_nothing_and_runs_nothing() -> None:
    outline = Outline(html.render(make()))
    tags = [tag for tag, _ in outline.tags]
    assert not {"script", "img", "link", "iframe", "object", "form", "a"} & set(tags)
    assert tags.count("style") == 1
    assert not any(name == "style" or name.startswith("on") for _, a in outline.tags for name in a)
    content = next(a["content"] for tag, a in outline.tags if tag == "meta" and "http-equiv" in a)
    assert content is not None and content.startswith("default-src 'none'; style-src 'sha256-")
    ids = [a["id"] for _, a in outline.tags if "id" in a]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("where", ["tensor", "reported", "metric", "reason", "subgroup", "transform"])
def test_hostile_text_is_shown_and_does_nothing(where: str) -> None:
    cases: dict[str, dict[str, Any]] = {
        "tensor": {
            "transforms": (
                Transform(tensor=EVIL, dtype="F32", released_as="BF16", clipped=0, largest_error=0),
            )
        },
        "reported": {"self_reported": {EVIL: EVIL}},
        "metric": {"trusted": {EVIL.replace(".", ""): 0.5}},
        "reason": {"checks": page.checks(guard(EVIL), None, FEW, None)},
        "subgroup": {"leakage": MEASURED.model_copy(update={"worst": EVIL})},
        "transform": {
            "transforms": (Transform(tensor="w", dtype=EVIL, released_as=EVIL, clipped=0, largest_error=0),)
        },
    }
    made = make(**cases[where])
    outline = Outline(html.render(made))
    assert not {"script", "img"} & {tag for tag, _ in outline.tags}
    assert "</style" in outline.text
    assert len(printed(made)[0].pages) == 1


@settings(max_examples=25, deadline=None)
@given(
    words=st.text(max_size=300),
    name=st.text(max_size=80),
    number=st.floats(allow_nan=False, allow_infinity=False),
)
def test_any_text_is_a_page_and_one_only(words: str, name: str, number: float) -> None:
    transform = Transform(tensor=name, dtype="F32", released_as="BF16", clipped=0, largest_error=abs(number))
    reported = {name: words, "x": number}
    made = make(
        transforms=(transform,), self_reported=reported, checks=page.checks(guard(words), None, FEW, None)
    )
    shown = html.render(made)
    shown.encode("utf-8")
    assert not {"\x00", "\x1b", "\u202e"} & set(shown + text.render(made))
    assert len(printed(made)[0].pages) == 1


def test_letters_that_the_pdf_has_no_sign_for_are_not_dropped() -> None:
    made = make(hospital="Szpital w Łodzi", company="医療")
    assert "Szpital w ?odzi" in printed(made)[1]
    assert "?? (acme)" in printed(made)[1]
    assert "Szpital w Łodzi" in Outline(html.render(made)).text


@pytest.mark.peer("chromium")
@pytest.mark.parametrize(
    ("made", "pages"),
    [(make(trusted={"auroc": 0.95}), 1), (make(), 2), (worst(), None)],
    ids=["all fits", "usual", "worst"],
)
def test_the_html_prints_what_is_decided_on_its_first_page(
    made: Page, pages: int | None, tmp_path: Path
) -> None:
    (tmp_path / "page.html").write_text(html.render(made), encoding="utf-8")
    command = [
        *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"),
        *(f"--user-data-dir={tmp_path / 'profile'}", f"--print-to-pdf={tmp_path / 'page.pdf'}"),
        (tmp_path / "page.html").as_uri(),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    reader = PdfReader(tmp_path / "page.pdf")
    first = " ".join(reader.pages[0].extract_text().split())
    assert SENTENCE in first and made.digest in first and "This page stays in the hospital." in first
    assert pages is None or len(reader.pages) == pages
    for sheet in range(1, min(3, len(reader.pages))):
        assert reader.pages[sheet].extract_text().startswith("All of it") == (sheet == 1)


def test_what_a_verdict_does_is_on_every_form_of_a_full_page() -> None:
    made = worst()
    for shown in (Outline(html.render(made)).text, printed(made)[1], text.render(made)):
        folded = " ".join(shown.split())
        for said in (
            "One refusal ends the job; else the narrowest verdict counts.",
            "Weights and self-reported values are destroyed.",
            "64 of 64 must sign",
            "and 14 more files",
            "1,099,511,627,776",
            f"--metrics-only --page {made.digest[:16]}",
        ):
            assert said in folded


def test_everybody_is_told_before_any_subgroup() -> None:
    groups = {f"auroc@sex={value}": 0.5 for value in range(8)}
    made = make(trusted={**groups, "brier": 0.1, "auroc": 0.95})
    assert [row[0] for row in view.view(made).trusted.rows[:3]] == ["auroc", "brier", "auroc@sex=0"]
    stored = page.read(canonical.loads(canonical.dumps(made.dump())))
    assert view.view(stored) == view.view(made)


@pytest.mark.parametrize(
    ("changes", "of"),
    [
        ({}, "of the rounded weights above"),
        ({"transforms": ()}, "of the job's code alone: no weights would leave"),
        ({"kind": "evaluate", "transforms": ()}, "of the base model"),
    ],
)
def test_metrics_say_of_what_they_are(changes: dict[str, Any], of: str) -> None:
    assert of in view.view(make(**changes)).measured


@pytest.mark.parametrize("value", [1234567.125, 1e-9, 2**53 - 1, 0.1])
def test_a_self_reported_number_is_told_in_full(value: float) -> None:
    assert view.view(make(self_reported={"x": value})).reported.rows == (("x", str(value)),)


@pytest.mark.parametrize(
    ("searched", "verdict"),
    [
        (Searched(found=False, searched=0, too_short=7), "pass"),
        (Searched(found=False, searched=5, too_short=0), "fail"),
    ],
)
def test_a_search_for_nothing_or_another_hit_is_not_told_as_not_found(
    searched: Searched, verdict: str
) -> None:
    found = page.checks(guard("the guard's words", verdict), searched, FEW, None)[6]
    assert (found.verdict, found.found) == (verdict, "the guard's words")


def test_piled_marks_do_not_cover_other_lines() -> None:
    pile = "a" + "\u0301" * 20
    assert short(pile) == "a" + "\u0301" * MARKS + "?" * 17
    assert short("\u0301" * 5) == "\u0301" * MARKS + "??"
    assert short("Nguye\u0302\u0303n") == "Nguye\u0302\u0303n"
    assert pile not in html.render(make(company=pile))
