"""The XMP mark: what is written is read back, from every format, and hostile packets do no harm."""

import time
from xml.etree import ElementTree

import make_bad_files as bad
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentswap.errors import BadInputError, ProvenanceError
from latentswap.media.image import as_image, encode
from latentswap.provenance.mark import read_mark, xmp_packet

IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
URI = "http://cv.iptc.org/newscodes/digitalsourcetype/"


def _packet(**details: str) -> bytes:
    kind = "compositeWithTrainedAlgorithmicMedia"
    return xmp_packet(digital_source_type=kind, software="latentswap 0.1.0", details=details)


def _with_xmp(body: str) -> bytes:
    return encode(as_image(bad.photo()), ".jpg", xmp=body.encode())


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("kind", ["compositeWithTrainedAlgorithmicMedia", "trainedAlgorithmicMedia"])
def test_the_mark_is_read_back(suffix: str, kind) -> None:
    details = {"version": "1", "method": "latentswap <&> \"quoted\" 'é' 日本", "empty": ""}
    packet = xmp_packet(digital_source_type=kind, software="latentswap 0.1.0", details=details)
    mark = read_mark(encode(as_image(bad.photo()), suffix, xmp=packet))
    assert mark == details | {"digital_source_type": kind, "software": "latentswap 0.1.0"}


def test_the_packet_is_xml_with_the_whole_iptc_address() -> None:
    packet = _packet(method="latentswap")
    assert packet.startswith(b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>')
    assert packet.endswith(b'<?xpacket end="w"?>')
    root = ElementTree.fromstring(packet)  # noqa: S314, our own bytes
    (source_type,) = root.iter(f"{{{IPTC}}}DigitalSourceType")
    assert source_type.text == URI + "compositeWithTrainedAlgorithmicMedia"


@given(value=st.text(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_text_survives_as_far_as_xml_can_hold_it(value: str) -> None:
    mark = read_mark(encode(as_image(bad.photo()), ".jpg", xmp=_packet(note=value)))
    legal = (c in "\t\n\r" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff" for c in value)
    expected = "".join(c if ok else "\ufffd" for c, ok in zip(value, legal, strict=True))
    expected = expected.replace("\r\n", "\n").replace("\r", "\n")  # as XML reads line ends
    assert mark is not None
    assert mark["note"] == expected


def test_what_xml_or_a_jpeg_cannot_hold_is_refused() -> None:
    for key in ("", "1st", "a b", "a:b", "a><b", "é"):
        with pytest.raises(ProvenanceError, match="cannot be a key"):
            _packet(**{key: "x"})
    with pytest.raises(ProvenanceError, match="more than 60000"):
        _packet(note="x" * 60_000)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_no_mark_is_none(suffix: str) -> None:
    assert read_mark(encode(as_image(bad.photo()), suffix)) is None


def test_marks_of_others_are_read() -> None:
    body = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:e="{IPTC}" xmlns:p="http://ns.adobe.com/xap/1.0/" rdf:about="" p:CreatorTool="Other 2"'
        f' e:DigitalSourceType="{URI}trainedAlgorithmicMedia"/></rdf:RDF></x:xmpmeta>'
    )
    assert read_mark(_with_xmp(body)) == {"digital_source_type": "trainedAlgorithmicMedia", "software": "Other 2"}


@pytest.mark.attack
def test_entities_are_never_expanded() -> None:
    packet = _packet(note="NOTE").decode()
    levels = "".join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">' for i in range(12))
    bombs = [
        f'<!DOCTYPE x [<!ENTITY e0 "lol">{levels}]>' + packet.replace("NOTE", "&e12;"),
        '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/hostname">]>' + packet.replace("NOTE", "&f;"),
        '<!DOCTYPE x SYSTEM "http://localhost:9/x.dtd">' + packet,
        '<?xml version="1.0" encoding="utf-7"?>+ADw-!DOCTYPE x+AD4-' + packet,
    ]
    for bomb in bombs:
        start = time.monotonic()
        assert read_mark(_with_xmp(bomb)) is None
        assert time.monotonic() - start < 1


@pytest.mark.attack
@pytest.mark.parametrize("body", ["", "not xml", "<a>", "<a></b>", "\0", "<" * 5000, "<a>" * 8000])
def test_broken_packets_are_no_mark(body: str) -> None:
    assert read_mark(_with_xmp(body)) is None


@pytest.mark.attack
def test_nested_descriptions_do_no_harm() -> None:
    packet = (
        _packet(note="<NOTE>")
        .decode()
        .replace("&lt;NOTE&gt;", "a<rdf:Description>b<rdf:Description>c</rdf:Description></rdf:Description>")
    )
    mark = read_mark(_with_xmp(packet))
    assert mark is not None
    assert mark["note"] == "a"


def test_what_is_no_picture_is_an_error() -> None:
    with pytest.raises(BadInputError):
        read_mark(b"not a picture")
