"""Lists of cases, and the output about each case."""

import sys
import unicodedata
from pathlib import Path

import pytest

from conresnet.cli.cases import ListedCase, read_case_list, result_text
from engine.package_cases import refusal

CHANNELS = ["T1", "FLAIR"]


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "list é.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_columns_may_have_any_order_and_paths_are_relative_to_list(tmp_path, encoding):
    path = write(
        tmp_path,
        'FLAIR,name,roi,t1\r\nb.nii,Å 1,"1,2,3,4,5,6",sub/a.nii\r\n\r\n/x/d.nii,2,box.mrk.json,"c, d.nii"\r\n',
        encoding,
    )
    assert read_case_list(path, CHANNELS) == [
        ListedCase("Å 1", (tmp_path / "sub/a.nii", tmp_path / "b.nii"), "1,2,3,4,5,6"),
        ListedCase("2", (tmp_path / "c, d.nii", Path("/x/d.nii")), str(tmp_path / "box.mrk.json")),
    ]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("cases-columns", ""),
        ("cases-columns", "name,T1\na,b\n"),
        ("cases-columns", "name,T1,FLAIR,T2\na,b,c,d\n"),
        ("cases-columns", "name,T1,t1,FLAIR\na,b,c,d\n"),
        ("cases-empty", "name,T1,FLAIR\n\n,,\n"),
        ("case-line-incomplete", "name,T1,FLAIR\na,b\n"),
        ("case-line-incomplete", "name,T1,FLAIR\n,b,c\n"),
        ("case-name", "name,T1,FLAIR\n../a,b,c\n"),
        ("case-line-repeated", "name,T1,FLAIR\na,b,c\na,d,e\n"),
        ("case-names-collide", "name,T1,FLAIR\na,b,c\nA,d,e\n"),
        ("case-quotes", 'name,T1,FLAIR\na,b,"c\nd,e,f\n'),
        ("case-quotes", 'name,T1,FLAIR\na,"b,c\nd,"e",f\n'),
        ("case-quotes", 'name,T1,FLAIR\na,b,"c\n'),
        # The same name, composed and decomposed, which is a single folder on macOS.
        ("case-names-collide", "name,T1,FLAIR\n\u00c4,b,c\nA\u0308,d,e\n"),
        ("cases-unreadable", "name,T1,FLAIR\na,b\0,c\n"),
    ],
)
def test_invalid_lists_are_refused(tmp_path, code, text):
    assert "list é.csv" in refusal(code, read_case_list, write(tmp_path, text), CHANNELS)


@pytest.mark.parametrize("columns", ["name,T1,FLAIR", "name,T1,FLAIR,roi"])
def test_unquoted_roi_is_refused(tmp_path, columns):
    message = refusal("case-too-long", read_case_list, write(tmp_path, f"{columns}\na,b,c,0,1,0,1,0,1\n"), CHANNELS)
    assert "quotes" in message and "Line 2" in message


def test_spaces_after_commas_are_ignored(tmp_path):
    (case,) = read_case_list(write(tmp_path, 'name, T1, FLAIR, roi\na, "b, c", d, "0,1,0,1,0,1"\n'), CHANNELS)
    assert case == ListedCase("a", (tmp_path / "b, c", tmp_path / "d"), "0,1,0,1,0,1")


@pytest.mark.parametrize(
    "name",
    [
        "x.",
        "CON",
        "nul",
        "com1.x",
        "LPT9",
        "a:b",
        "a\tb",
        "n" * 256,
        "ä" * 128,
        "...",
        "a?",
        "CONOUT$",
        "Cohort.csv",
        "cohort.html",
        ".cohort",
        ".conresnet-x",
    ],
)
def test_name_that_is_not_portable_as_folder_is_refused(tmp_path, name):
    message = refusal("case-name", read_case_list, write(tmp_path, f"name,T1,FLAIR\nfirst,b,c\n{name},b,c\n"), CHANNELS)
    assert "ine 3" in message


@pytest.mark.parametrize("name", ["console", "com10", "a.b", "n" * 255, "$HOME", "-x", "é 1"])
def test_other_names_are_accepted(tmp_path, name):
    (case,) = read_case_list(write(tmp_path, f"name,T1,FLAIR\n{name},b,c\n"), CHANNELS)
    assert case.name == name


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_lists_from_excel_with_decimal_commas_are_read(tmp_path, delimiter):
    text = 'name;T1;FLAIR;roi\na;b, c.nii;d.nii;0,1,0,1,0,1\n"b";e;f;\n'.replace(";", delimiter)
    assert read_case_list(write(tmp_path, text, "utf-8-sig"), CHANNELS) == [
        ListedCase("a", (tmp_path / "b, c.nii", tmp_path / "d.nii"), "0,1,0,1,0,1"),
        ListedCase("b", (tmp_path / "e", tmp_path / "f"), ""),
    ]


def test_missing_field_is_named_by_channel(tmp_path):
    text = "name,t1,flair\na,b,c\n\nd,,f\n"
    assert "Line 4 " in refusal("case-line-incomplete", read_case_list, write(tmp_path, text), CHANNELS)
    assert "has no T1" in refusal("case-line-incomplete", read_case_list, write(tmp_path, text), CHANNELS)


@pytest.mark.parametrize("above", ["sep=;\r\n", "\n", "\n  \nSEP=;\n"])
def test_lines_above_header_are_skipped(tmp_path, above):
    path = write(tmp_path, f"{above}name;T1;FLAIR\na;b;c\n;d;e\n", "utf-8-sig")
    number = above.count("\n") + 3
    assert f"Line {number} " in refusal("case-line-incomplete", read_case_list, path, CHANNELS)
    (case,) = read_case_list(write(tmp_path, f"{above}name;T1;FLAIR\na;b;c\n"), CHANNELS)
    assert case.images == (tmp_path / "b", tmp_path / "c")


@pytest.mark.parametrize(("listed", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_file_names_match_in_either_unicode_form(tmp_path, listed, stored):
    names = {form: unicodedata.normalize(form, "sub é/Ä.nii") for form in (listed, stored)}
    (tmp_path / names[stored]).parent.mkdir()
    (tmp_path / names[stored]).touch()
    (case,) = read_case_list(write(tmp_path, f"name,T1,FLAIR\na,{names[listed]},é.nii\n"), CHANNELS)
    assert case.images[0].exists() and case.images[1] == tmp_path / "é.nii"


def test_missing_list_is_refused(tmp_path):
    refusal("cases-unreadable", read_case_list, tmp_path / "none.csv", CHANNELS)
    refusal("cases-unreadable", read_case_list, write(tmp_path, "name,Tä\n", "latin-1"), CHANNELS)


def test_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    (case,) = read_case_list(write(tmp_path, "name,T1\n1,~/a.nii"), ["T1"])
    assert case.images == (tmp_path / "home" / "a.nii",)


def test_file_that_is_not_a_list_is_refused_with_reason(tmp_path):
    assert "folder" in refusal("cases-unreadable", read_case_list, tmp_path, CHANNELS)
    assert "CSV UTF-8" in refusal("cases-unreadable", read_case_list, write(tmp_path, "name,T1", "utf-16"), CHANNELS)
    assert "no others" in refusal("cases-columns", read_case_list, write(tmp_path, "name,T1,FLAIR,age\n"), CHANNELS)


@pytest.mark.parametrize(("count", "is_terminal", "lines"), [(6, True, 1), (7, True, 1 + 4), (7, False, 1)])
def test_many_volumes_are_printed_in_columns_on_a_terminal(monkeypatch, count, is_terminal, lines):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    monkeypatch.setenv("COLUMNS", "40")
    text = result_text("Wrote", Path("out"), {f"organ {n}": 20.0 * n for n in range(count)}).splitlines()
    assert len(text) == lines and text[0].startswith("Wrote out:")
    assert lines == 1 or text[1] == "  organ 0   0.00 mL  organ 4  80.00 mL"
    assert sum(line.count(" mL") for line in text) == count
