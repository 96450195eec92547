"""Text that is almost extended XYZ."""

from __future__ import annotations

from malformed_inputs.cases import add, frame, has_waters, plain_row, sound, spoilt, text_case, waters

LINES = sound().splitlines(keepends=True)  # five lines for each of six molecules


def changed(number: int, line: str) -> str:
    """The sound text with one line replaced."""
    return "".join([*LINES[:number], line, *LINES[number + 1 :]])


def refuse(name: str, text: str | bytes, *words: str) -> None:
    """Add a text that is refused."""
    add("refused", name, text_case(text), *(words or ("train.xyz: structure 2 cannot be read",)))


refuse(
    "the last line is missing", "".join(LINES[:-1]), "structure 5 cannot be read: the file ends after 2 of its 3 atoms"
)
refuse("cut within a line", sound()[:-12], "structure 5")
refuse("cut within a comment", "".join(LINES[:25]) + "3\nREF_ener", "structure 5")
refuse(
    "ends after a number of atoms", sound() + "3\n", "structure 6 cannot be read: the file ends after 0 of its 3 atoms"
)
refuse("a number of atoms that is too small", changed(10, "2\n"), "structure 3 cannot be read")
refuse("a number of atoms that is too large", changed(10, "4\n"))
refuse("a negative number of atoms", changed(10, "-3\n"), "its number of atoms is -3")
refuse("a fractional number of atoms", changed(10, "3.5\n"), "a number of atoms is expected where '3.5' stands")
refuse("a word for the number of atoms", changed(10, "three\n"), "a number of atoms is expected where 'three' stands")
refuse("an enormous number of atoms", changed(10, "999999999999\n"), "the file ends after")
refuse("no number of atoms", "".join([*LINES[:10], *LINES[11:]]), "structure 2 cannot be read")
refuse("no atoms", changed(10, "0\n")[:0] + "".join(LINES[:10]) + "0\nREF_energy=1\n", "structure 2 has no atoms")
refuse("a column too few", changed(12, "O 0 0 0.1 0.0 0.0\n"))
refuse("a column too many", changed(12, LINES[12].rstrip() + " 7.5\n"), "has 8 columns where Properties names 7")
refuse("a column too many everywhere", spoilt(row=lambda s, p, f: plain_row(s, p, f) + " 1.0"), "columns")
refuse("a line of an atom that is empty", changed(12, "\n"))
refuse("a word for a number", changed(12, "O 0.0 zero 0.1 0 0 0\n"))
refuse("stars for a number", changed(12, "O 0.0 ******** 0.1 0 0 0\n"))
refuse("a Fortran exponent", changed(12, "O 0.0 1.0D-01 0.1 0 0 0\n"))
refuse("a comma for the decimal point", changed(12, "O 0,0 0,1 0,1 0 0 0\n"))
refuse("a minus sign of typography", changed(12, "O 0.0 \N{MINUS SIGN}0.1 0.1 0 0 0\n"))
refuse("columns that ran into each other", changed(12, "O 0.0-100.0 0.1 0 0 0 0\n"))
refuse("an element that does not exist", changed(12, LINES[12].replace("O", "Xx", 1)))
refuse("a dummy atom", changed(12, LINES[12].replace("O", "X", 1)), "structure 2 has an atom 'X'")
refuse("an atom with a label", changed(12, LINES[12].replace("O", "O1", 1)))
refuse("a quote that does not end", spoilt(info='note="half'), "structure 2")
refuse("a lattice of eight numbers", spoilt(info='Lattice="8 0 0 0 8 0 0 0"'), "structure 2")
refuse("a lattice of words", spoilt(info='Lattice="a b c d e f g h i"'), "structure 2")
refuse("two directions of repetition", spoilt(info='Lattice="8 0 0 0 8 0 0 0 8" pbc="T T"'), "structure 2")
refuse(
    "a word for the directions of repetition", spoilt(info='Lattice="8 0 0 0 8 0 0 0 8" pbc="perhaps"'), "structure 2"
)
refuse("columns without a number", spoilt(properties="species:S:1:pos:R:3:REF_forces:R"), "structure 2")
refuse("columns of an unknown type", spoilt(properties="species:S:1:pos:Q:3:REF_forces:R:3"), "structure 2")
refuse("no column of positions", spoilt(properties="species:S:1:place:R:3:REF_forces:R:3"), "structure 2")
refuse("no column of elements", spoilt(properties="kind:S:1:pos:R:3:REF_forces:R:3"), "structure 2")
refuse("a key that comes twice", spoilt(info="REF_energy=-400.0"), "structure 2", "'REF_energy' twice")
refuse("a column that comes twice", spoilt(properties="species:S:1:pos:R:3:pos:R:3"), "structure 2", "'pos' twice")
refuse(
    "letters of another encoding",
    spoilt(info="author=M\N{LATIN SMALL LETTER U WITH DIAERESIS}ller").encode("latin-1"),
    "not a readable text file",
)
refuse("text of two bytes a letter", sound().encode("utf-16"), "train.xyz")
refuse("zero bytes", changed(12, "O \x00 0 0 0 0 0\n"), "structure 2")
refuse("a key without a value", spoilt(info="config_type="), "structure 2", "no value for the key 'config_type'")
refuse("an apostrophe", spoilt(info="author=O'Brien"), "structure 2", "a quote or bracket that does not end")
for title, info in {
    "two apostrophes with a key between them": "author=O'Brien REF_energy=-469.2 note=it's",
    "an apostrophe before a word and one after": "note='tis REF_energy=-469.2 by='x'",
    "an apostrophe for a quote, and another for the next": "note='tis REF_energy=-469.2 by='",
    "an opened bracket in a word": "name=Cu[111 REF_energy=-469.2 face=1]",
}.items():
    refuse(title, spoilt(info=info, energy=""), "structure 2", "a quote or bracket")
refuse("a word that ends in =", spoilt(info="note=a=", energy="REF_energy=-469.2"), "structure 2", "no value")
refuse("a word that ends in a backslash", spoilt(info="note=C:\\data\\"), "structure 2", "a backslash before a blank")
refuse("lattice and Lattice", spoilt(info='lattice="8 0 0 0 8 0 0 0 8" Lattice="8 0 0 0 8 0 0 0 8"'), "'Lattice' twice")
refuse("a cell for a lattice", spoilt(info='cell="8 0 0 0 8 0 0 0 8"'), "'cell' but no 'Lattice'", "write Lattice=")
refuse("numbers in the column of symbols", changed(12, LINES[12].replace("O", "8", 1)), "'8', which is none", "Z:I:1")
refuse("a table of numbers", "1.0 2.0 3.0\n" * 9, "structure 0 cannot be read")

add("read", "carriage returns and line feeds", text_case(sound().replace("\n", "\r\n")), check=has_waters())
add("read", "carriage returns alone", text_case(sound().replace("\n", "\r")), check=has_waters())
add("read", "a mark of the byte order", text_case(b"\xef\xbb\xbf" + sound().encode()), check=has_waters())
add(
    "read",
    "reserved words in small letters",
    text_case(sound(info='lattice="8 0 0 0 8 0 0 0 8" pbc="F F F"').replace("Properties", "properties")),
    check=has_waters(),
)
add("read", "free words", text_case(sound(info="it's water, \"one = two\" the others' water,")), check=has_waters())
add("read", "deuterium", text_case(sound().replace("H ", "D ")), check=has_waters())
add("read", "an equals sign in quotes", text_case(spoilt(info="note='a = b' by=\"x=1\"")), check=has_waters())
add("read", "two apostrophes in a word", text_case(spoilt(info="name=5'-ATG-3' author=O'Brien's")), check=has_waters())
add("read", "tabs and blanks", text_case(sound().replace(" 0.", "\t 0.").replace("\n", "  \n")), check=has_waters())
add(
    "read",
    "blank lines between structures and at the end",
    text_case("\n" + sound().replace("\n3\n", "\n\n\n3\n") + "\n\n"),
    check=has_waters(),
)
add("read", "no end of the last line", text_case(sound().rstrip()), check=has_waters())
add(
    "read",
    "blanks around the number of atoms",
    text_case(" " + sound().replace("\n3\n", "\n  3  \n")),
    check=has_waters(),
)
add("read", "elements in small letters", text_case(sound().replace("O ", "o ").replace("H ", "h ")), check=has_waters())
add(
    "read",
    "letters beyond ASCII",
    text_case(sound(info="author='M\N{LATIN SMALL LETTER U WITH DIAERESIS}ller'")),
    check=has_waters(),
)
add(
    "read",
    "numbers with exponents",
    text_case(
        "".join(frame(i, row=lambda s, p, f: f"{s} " + " ".join(f"{x:.9E}" for x in (*p, *f))) for i in waters())
    ),
    check=has_waters(),
)
add("read", "an empty value before the labels", text_case(sound(info="note=\"\" author=''")), check=has_waters())
add("read", "blanks around equals signs", text_case(sound(info="a = 3 b =4 c= 5")), check=has_waters())
add(
    "read",
    "words and tables among the entries",
    text_case(sound(info='checked note="a=b c=d" m=[[1,0],[0,1]] n={1 2} k="_JSON {\\"a\\": \\"b=c\\"}"')),
    check=has_waters(),
)
