"""The machine-readable mark of a synthetic picture: an XMP packet with the IPTC digital source type.

IPTC's vocabulary is what search engines and editors read to label generated media:
https://cv.iptc.org/newscodes/digitalsourcetype/. XMP is specified in ISO 16684-1. The mark is a statement, not a
proof: any program can remove it.
"""

import re
from typing import Literal
from xml.parsers import expat
from xml.sax.saxutils import escape

from latentswap.errors import BadInputError, ProvenanceError
from latentswap.media.image import open_image

DigitalSourceType = Literal["compositeWithTrainedAlgorithmicMedia", "trainedAlgorithmicMedia"]

_SOURCE_TYPE_URI = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_IPTC_EXT = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_XMP = "http://ns.adobe.com/xap/1.0/"
_OWN = "urn:latentswap:mark:1#"

_MAX_PACKET = 60_000  # a JPEG holds 65,502 bytes of XMP in one segment
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def xmp_packet(*, digital_source_type: DigitalSourceType, software: str, details: dict[str, str]) -> bytes:
    """The XMP packet (UTF-8) that marks a picture as synthetic.

    Args:
        digital_source_type: `compositeWithTrainedAlgorithmicMedia` for a real picture with a generated face in it,
            `trainedAlgorithmicMedia` for a wholly generated one.
        software: what made it, with its version ("latentswap 0.1.0").
        details: more to say, such as the method; keys are letters, digits and underscores, starting with a letter.

    Raises:
        ProvenanceError: a key that XML does not allow, or more than 60,000 bytes in all.
    """
    for key in details:
        if not _KEY.fullmatch(key):
            raise ProvenanceError(f"{key!r} cannot be a key of the mark; use letters, digits and underscores")
    lines = [
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>',
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">',
        f'<rdf:RDF xmlns:rdf="{_RDF}">',
        f'<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="{_IPTC_EXT}" xmlns:xmp="{_XMP}" xmlns:latentswap="{_OWN}">',
        f"<Iptc4xmpExt:DigitalSourceType>{_SOURCE_TYPE_URI}{digital_source_type}</Iptc4xmpExt:DigitalSourceType>",
        f"<xmp:CreatorTool>{_text(software)}</xmp:CreatorTool>",
        *(f"<latentswap:{key}>{_text(value)}</latentswap:{key}>" for key, value in details.items()),
        "</rdf:Description>",
        "</rdf:RDF>",
        "</x:xmpmeta>",
        '<?xpacket end="w"?>',
    ]
    packet = "\n".join(lines).encode("utf-8")
    if len(packet) > _MAX_PACKET:
        raise ProvenanceError(f"the mark has {len(packet)} bytes, more than {_MAX_PACKET}; shorten its details")
    return packet


def read_mark(data: bytes) -> dict[str, str] | None:
    """What an encoded picture's XMP says of its making, or None where it names no IPTC digital source type.

    Reads the marks of this project and those that others write in the same vocabulary.

    Returns:
        `digital_source_type` (without the IPTC address), `software` where stated, and this project's details.

    Raises:
        BadInputError: the data is not a picture that the project reads.
    """
    packet = open_image(data).info.get("xmp")
    if not packet:
        return None
    try:
        properties = _properties(packet)
    except (expat.ExpatError, BadInputError, UnicodeDecodeError):
        return None
    source_type = properties.get(f"{_IPTC_EXT} DigitalSourceType")
    if source_type is None:
        return None
    mark = {key.removeprefix(f"{_OWN} "): value for key, value in properties.items() if key.startswith(f"{_OWN} ")}
    mark["digital_source_type"] = source_type.rstrip("/").rpartition("/")[2]
    if software := properties.get(f"{_XMP} CreatorTool"):
        mark["software"] = software
    return mark


def _text(value: str) -> str:
    return escape(_NOT_XML.sub("\ufffd", value))


def _properties(packet: bytes | str) -> dict[str, str]:
    """The simple properties of every rdf:Description, written as elements or as attributes, by "namespace name".

    Declaring a document type is refused, and with it every entity: nothing can expand or be fetched.
    """
    text = packet if isinstance(packet, str) else packet.decode("utf-8")
    found: dict[str, str] = {}
    path: list[str] = []
    description = f"{_RDF} Description"

    def start(tag: str, attributes: dict[str, str]) -> None:
        path.append(tag)
        if tag == description:
            found.update(attributes)
        if path[-2:-1] == [description]:
            found[tag] = ""

    def content(chunk: str) -> None:
        if path[-2:-1] == [description]:
            found[path[-1]] += chunk

    def refuse(*_: object) -> None:
        raise BadInputError("the XMP declares a document type")

    # Naming the encoding overrides whatever the text itself declares.
    parser = expat.ParserCreate(encoding="utf-8", namespace_separator=" ")
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: path.pop()
    parser.CharacterDataHandler = content
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(text.encode("utf-8"), True)
    return found
