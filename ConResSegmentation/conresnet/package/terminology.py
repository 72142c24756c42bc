"""What a segment is, in codes: the category, type, modifier and region that a Slicer terminology entry holds."""

from dataclasses import dataclass
from typing import Any

from conresnet.package.fields import Fields

# Verhoeff's check digit: the multiplication table of the dihedral group D5 and the permutation applied by position.
_D5 = tuple(
    tuple((a + b) % 5 if a < 5 and b < 5 else
          (a + b) % 5 + 5 if a < 5 else
          (a - b) % 5 + 5 if b < 5 else
          (a - b) % 5 for b in range(10))
    for a in range(10)
)  # fmt: skip
_PERMUTATION = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)


@dataclass(frozen=True)
class Code:
    """One coded concept as DICOM writes it: coding scheme (``SCT`` is SNOMED CT), code value, meaning in words."""

    scheme: str
    value: str
    meaning: str

    @classmethod
    def parse(cls, fields: Fields) -> "Code":
        """Read and check one code; a SNOMED CT code must be a concept identifier with a right check digit."""
        code = cls(fields.text("scheme"), fields.text("value"), fields.text("meaning"))
        for key, text in (("scheme", code.scheme), ("value", code.value), ("meaning", code.meaning)):
            if any(character in text for character in "^~\r\n"):
                fields.refuse(key, "must not hold ^, ~ or line breaks, which divide the parts of a terminology entry")
        if code.scheme == "SCT" and not is_snomed_concept(code.value):
            fields.refuse("value", f'must be a SNOMED CT concept identifier, but is "{code.value[:40]}"')
        fields.finish()
        return code

    def to_dict(self) -> dict[str, str]:
        """The code as it stands in model.json."""
        return {"scheme": self.scheme, "value": self.value, "meaning": self.meaning}


@dataclass(frozen=True)
class Terminology:
    """A segment's terminology entry; a modifier refines its type or region, so it needs one."""

    category: Code
    type: Code
    type_modifier: Code | None = None
    region: Code | None = None
    region_modifier: Code | None = None

    @classmethod
    def parse(cls, fields: Fields) -> "Terminology":
        """Read and check the object ``terminology`` of a segment."""

        def optional(key: str) -> Code | None:
            return Code.parse(fields.child(key)) if fields.has(key) else None

        terminology = cls(
            category=Code.parse(fields.child("category")),
            type=Code.parse(fields.child("type")),
            type_modifier=optional("type_modifier"),
            region=optional("region"),
            region_modifier=optional("region_modifier"),
        )
        if terminology.region_modifier and not terminology.region:
            fields.refuse("region_modifier", "needs a region beside it")
        fields.finish()
        return terminology

    def to_dict(self) -> dict[str, Any]:
        """The entry as it stands in model.json; parts that are not there are left out, but for the type's modifier."""
        document: dict[str, Any] = {
            "category": self.category.to_dict(),
            "type": self.type.to_dict(),
            "type_modifier": self.type_modifier.to_dict() if self.type_modifier else None,
        }
        if self.region:
            document["region"] = self.region.to_dict()
        if self.region_modifier:
            document["region_modifier"] = self.region_modifier.to_dict()
        return document


def is_snomed_concept(text: str) -> bool:
    """Whether `text` has the shape of a SNOMED CT concept identifier.

    That is 6 to 18 digits, "00" or "10" before the last digit (a concept, not a description or a relationship), and
    Verhoeff's check digit last, which catches mistyped codes.
    """
    if not (text.isascii() and text.isdigit() and 6 <= len(text) <= 18 and text[0] != "0"):
        return False
    return text[-3:-1] in ("00", "10") and _verhoeff(text) == 0


def _verhoeff(digits: str) -> int:
    check = 0
    for position, digit in enumerate(reversed(digits)):
        value = int(digit)
        for _ in range(position % 8):
            value = _PERMUTATION[value]
        check = _D5[check][value]
    return check
